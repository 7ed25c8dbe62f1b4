"""
A model made ready to tell stories: a token a row each step, with a static cache.

    decoder = Decoder(model)                    # or Decoder(model, "bfloat16"), or "int8"
    rows = Rows(decoder, count=64, tokens=512)
    rows.admit(prompts, seeds)                  # as many as there are free rows
    chosen = rows.step(temperature=0.8)         # (n,): the next token of each
    rows.release([3, 5])                        # their stories have ended

`Decoder` is model.py's forward pass once more, on plain tensors and for one token a row: a step of
a small model is mostly Python and waiting for weights, so it has nothing that is not needed. `Rows`
holds what the stories have seen. Its cache never moves or grows, so that on CUDA a step is one
captured graph: replaying it costs no Python.
"""

import torch
import torch.nn.functional as F

from configs import UserError
from nanostories.training.device import pick_dtype

# ----------------------------------------------------------------------------------------------
# choosing tokens


# ----------------------------------------------------------------------------------------------
# the model, for decoding


def _matrix(weight, bias, dtype):
    """x (N, in) -> x weight^T + bias (N, out), by the fastest way this device has for the dtype."""
    weight = weight.detach()
    bias = weight.new_zeros(len(weight)) if bias is None else bias.detach()
    if dtype == "int8":
        return _int8(weight, bias)
    weight, bias = weight.to(dtype), bias.to(dtype)
    transposed = weight.t()
    if weight.device.type != "cpu" or (dtype == torch.float32 and weight.numel() < 2**19):
        return lambda x: torch.addmm(bias, x, transposed)

    def matrix(x):
        if len(x) > 1:
            return torch.addmm(bias, x, transposed)
        if dtype == torch.bfloat16:  # addmv has no quick way for it, mv has
            return torch.mv(weight, x[0]).add_(bias)[None]
        return torch.addmv(bias, weight, x[0])[None]

    return matrix


def _int8(weight, bias):
    """
    `_matrix` with weights of 8 bits: each row of the matrix times its own scale, rounded.

    Read from memory, a weight is a quarter of float32's bytes; what it multiplies is bfloat16.
    """
    scale = (weight.abs().amax(1).clamp(min=1e-12) / 127).bfloat16()  # (out,)
    rounded = (weight / scale.float()[:, None]).round().to(torch.int8)
    bias = bias.bfloat16()

    def int8(x):
        if len(x) > 8:  # the kernel takes a row at a time: from here on the other way is faster
            return F.linear(x, rounded.bfloat16()) * scale + bias
        return torch._weight_int8pack_mm(x, rounded, scale) + bias

    return int8


def _norm(layer, dtype):
    """A layer norm in float32, its result in `dtype`."""
    shape, weight, bias, eps = layer.normalized_shape, layer.weight, layer.bias, layer.eps
    weight, bias = weight.detach(), bias.detach()
    if dtype == torch.float32:
        return lambda x: torch.layer_norm(x, shape, weight, bias, eps)
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps).to(dtype)


class Decoder:
    """
    A model's weights laid out for decoding.

    model: a GPT. dtype: of the matrices, "float32", "bfloat16" (half the bytes) or "int8" (a
    quarter; CPU only). The residual stream and the layer norms are float32 always. Raises UserError
    for a dtype that the device does not have.
    """

    def __init__(self, model, dtype="float32"):
        self.device = device = model.wte.weight.device
        if dtype not in ("float32", "bfloat16", "int8"):
            raise UserError(f"dtype must be float32, bfloat16 or int8, not '{dtype}'")
        if dtype == "int8" and device.type != "cpu":
            raise UserError(f"int8 weights run on CPUs, not on {device.type}: take bfloat16")
        self.config, self.attn, self.window = model.config, model.attn, model.window
        self.dtype = torch.bfloat16 if dtype == "int8" else getattr(torch, dtype)  # activations'
        kind = dtype if dtype == "int8" else self.dtype
        # On CPUs attention over the cache is quicker in float32, whatever the weights are.
        self.cache_dtype = torch.float32 if device.type == "cpu" else self.dtype
        C = model.config.n_embd
        self.scale = (C // model.config.n_head) ** -0.5 if model.config.scale_attention else 1.0
        self.wte, self.wpe = model.wte.weight.detach(), model.wpe.weight.detach()
        self.layers = [
            (
                _norm(block.ln_1, self.dtype),
                _matrix(block.attn.c_attn.weight, block.attn.c_attn.bias, kind),
                _matrix(block.attn.c_proj.weight, block.attn.c_proj.bias, kind),
                _norm(block.ln_2, self.dtype),
                _matrix(block.mlp.c_fc.weight, block.mlp.c_fc.bias, kind),
                _matrix(block.mlp.c_proj.weight, block.mlp.c_proj.bias, kind),
            )
            for block in model.h
        ]
        self.ln_f, head = _norm(model.ln_f, self.dtype), model.wte.weight
        if kind == torch.float32 and device.type == "cpu":
            # float32's one copy: laid out by columns, the largest matrix is read 1.3 times as fast.
            head = head.detach().t().contiguous().t()
        self.head = _matrix(head, None, kind)

    def hidden(self, tokens, positions, attend):
        """
        The last layer's output of one token a row, float32 (N, C).

        tokens, positions: (N,) int64. attend(i, qkv): attention in layer i; it gets (N, 3 C) and
        returns (N, C).
        """
        x = (F.embedding(tokens, self.wte) + F.embedding(positions, self.wpe)).float()  # (N, C)
        for i, (ln_1, qkv, proj, ln_2, up, down) in enumerate(self.layers):
            x += proj(attend(i, qkv(ln_1(x))))
            x += down(F.gelu(up(ln_2(x)), approximate="tanh"))
        return x

    def logits(self, x):
        """float32 (N, vocab_size) of what `hidden` returned."""
        return self.head(self.ln_f(x))[:, : self.config.vocab_size].float()


# ----------------------------------------------------------------------------------------------
# rows of stories


def open_decoder(model, weights, device):
    """The Decoder of a model with the weights that a script's settings ask for, auto or a dtype."""
    if weights == "auto":
        cuda = device.type == "cuda" and str(pick_dtype("auto", device)) == "torch.bfloat16"
        weights = "bfloat16" if cuda else "float32"
    return Decoder(model, weights)
