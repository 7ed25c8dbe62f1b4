"""A model's forward pass for generation: one token a row, reading a key-value cache.

    decoder = Decoder(model)                    # or Decoder(model, "bfloat16"), or "int8"

It computes what model.py computes, on plain tensors: a step of a small model is mostly Python and
waiting for weights. kv_cache.py holds the cache and attends to it.
"""

import torch
import torch.nn.functional as F

from configs import UserError
from model import activate, rotate, rotation
from nanostories.inference import compiled
from nanostories.inference.kv_cache import BatchedKVCache
from nanostories.training.device import pick_dtype
from nanostories.training.int8 import quantize_rows


def _linear(weight, bias, dtype):
    """The function x (N, in) -> x weight^T + bias (N, out), fastest for this device and dtype."""
    weight = weight.detach()
    bias = weight.new_zeros(len(weight)) if bias is None else bias.detach()
    if dtype == "int8":
        return _int8_linear(weight, bias)
    weight, bias = weight.to(dtype), bias.to(dtype)
    transposed = weight.t()
    if weight.device.type != "cpu" or (dtype == torch.float32 and weight.numel() < 2**19):
        return lambda x: torch.addmm(bias, x, transposed)

    def linear(x):
        if len(x) > 1:
            return torch.addmm(bias, x, transposed)
        if dtype == torch.bfloat16:  # mv has a fast kernel for it, addmv has not
            return torch.mv(weight, x[0]).add_(bias)[None]
        return torch.addmv(bias, weight, x[0])[None]

    return linear


def _int8_linear(weight, bias):
    """`_linear` with weights of 8 bits, a scale for each output row; activations are bfloat16."""
    (rounded, scale), bias = quantize_rows(weight, torch.bfloat16), bias.bfloat16()

    def linear(x):
        # The int8 kernel takes one row at a time, slower from here on, and whole 16 columns of it.
        if len(x) > 8 or x.shape[1] % 16:
            return F.linear(x, rounded.bfloat16()) * scale + bias
        return torch._weight_int8pack_mm(x, rounded, scale) + bias

    return linear


def _layer_norm(layer, dtype):
    """A layer norm computed in float32, its result in `dtype`."""
    args = layer.normalized_shape, layer.weight.detach(), layer.bias.detach(), layer.eps
    return lambda x: torch.layer_norm(x, *args).to(dtype)  # no copy where it is float32


class Decoder:
    """A GPT's weights laid out for decoding.

    dtype: of the matrices, "float32", "bfloat16" (half the bytes) or "int8" (a quarter; CPU only);
    UserError if the device lacks it. The residual stream and the layer norms are always float32."""

    def __init__(self, model, dtype="float32"):
        config, self.device = model.config, model.wte.weight.device
        if dtype not in ("float32", "bfloat16", "int8"):
            raise UserError(f"dtype must be float32, bfloat16 or int8, not '{dtype}'")
        if dtype == "int8" and self.device.type != "cpu":
            raise UserError(f"int8 weights run on CPUs, not on {self.device.type}: take bfloat16")
        self.config, self.attn, self.window = config, model.attn, model.window
        self.dtype = torch.bfloat16 if dtype == "int8" else getattr(torch, dtype)  # of activations
        weight_dtype = dtype if dtype == "int8" else self.dtype
        # On CPUs attention over the cache is faster in float32, whatever the weights are.
        self.cache_dtype = torch.float32 if self.device.type == "cpu" else self.dtype
        self.scale = (config.n_embd // config.n_head) ** -0.5 if config.scale_attention else 1.0
        self.wte = model.wte.weight.detach()
        self.wpe = None if model.wpe is None else model.wpe.weight.detach()
        self.layers = []
        for block in model.h:
            linears = block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj
            linears = [_linear(linear.weight, linear.bias, weight_dtype) for linear in linears]
            norms = [_layer_norm(norm, self.dtype) for norm in (block.ln_1, block.ln_2)]
            self.layers.append((*norms, *linears))
        self.ln_f, head = _layer_norm(model.ln_f, self.dtype), model.head_weight.detach()
        if weight_dtype == torch.float32 and self.device.type == "cpu":
            # The one copy made in float32: by columns, the largest matrix reads 1.3 times as fast.
            head = head.t().contiguous().t()
        self.head = _linear(head, None, weight_dtype)

    def new_cache(self, batch_size, max_length, **penalties):
        return BatchedKVCache(self, batch_size, max_length, **penalties)

    def hidden(self, tokens, positions, attend):
        """The last layer's output for one token a row, float32 (N, C).

        tokens, positions: (N,) int64. attend(layer, qkv): attention; gets (N, 3 C), returns (N, C).
        """
        x, heads = F.embedding(tokens, self.wte), (3, self.config.n_head, -1)  # (N, C)
        if self.wpe is None:
            angles = rotation(positions, self.config.n_embd // self.config.n_head)
        else:
            x = x + F.embedding(positions, self.wpe)
        x = x.float()
        for layer, (ln_1, ln_2, qkv, proj, up, down) in enumerate(self.layers):
            packed = qkv(ln_1(x))  # (N, 3 C)
            if self.wpe is None:
                packed = rotate(packed.unflatten(-1, heads), *angles).flatten(1)
            x += proj(attend(layer, packed))
            x += down(activate(up(ln_2(x)), self.config))
        return x

    def logits(self, x):
        """float32 (N, vocab_size) from what `hidden` returned."""
        return self.head(self.ln_f(x))[:, : self.config.vocab_size].float()


def open_decoder(model, weights, device):
    """The Decoder for a script's setting `weights`: a dtype, or auto: bfloat16 on newer GPUs."""
    if weights == "auto":
        cuda = device.type == "cuda" and str(pick_dtype("auto", device)) == "torch.bfloat16"
        weights = "bfloat16" if cuda else "float32"
    if device.type == "cpu" and compiled.load_library(model.config.mlp):
        return compiled.CompiledDecoder(model, weights)
    return Decoder(model, weights)
