"""The transformer: GPT-2's architecture, weight for weight (Radford et al. 2019), in one file.

    model = GPT(GPTConfig(vocab_size=50257, n_layer=4, n_head=16, n_embd=768))
    logits = model(tokens)                                          # (B, T) -> (B, T, vocab_size)
    loss = model(tokens, targets, positions=positions, doc_start=doc_start)

Token plus position embeddings; n_layer blocks of layer norm -> attention -> add, layer norm -> MLP
-> add; a last layer norm; and the token embedding once more as the output head. Three settings turn
it into GPT-Neo (Black et al. 2021), the architecture of the published TinyStories models. With
positions = "rope", turned into queries and keys in place of the position embeddings, and
gelu = "erf" it is GPT-NeoX (Black et al. 2022) with tied embeddings. `mlp` and `tied_head` choose
another MLP, and a head with a matrix of its own.

Initial weights, as GPT-2 has them:

    embeddings, linear weights       normal, std 0.02
    attention and MLP projections    normal, std 0.02 / sqrt(2 n_layer): 2 n_layer of them add up
                                     in the residual stream, which so keeps its variance
    biases 0, layer norm gains 1

Not here: dropout on attention probabilities (no fused kernel has it, and one epoch needs none).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from kernels.attention import attention, attention_span, choose_attention, windowed
from kernels.cross_entropy import IGNORE_INDEX, linear_cross_entropy
from kernels.mlp import fused_mlp

POSITIONS = ("learned", "rope")
GELU = {"tanh": "tanh", "erf": "none"}  # {setting: what torch calls its approximation}
MLPS = ("gelu", "relu2", "swiglu")


@dataclass(frozen=True)
class GPTConfig:
    """The architecture: what a checkpoint must agree on. Counts, except where noted."""

    vocab_size: int = 50257
    block_size: int = 512  # positions, so the longest story piece, in tokens
    n_layer: int = 4
    n_head: int = 16
    n_embd: int = 768
    dropout: float = 0.0  # probability, on embeddings and on what a block adds
    # GPT-2's values; GPT-Neo has window=256, scale_attention=False, qkv_bias=False
    window: int = 0  # every second layer sees only so many tokens back; 0: all see everything
    scale_attention: bool = True  # scores divided by sqrt(head size)
    qkv_bias: bool = True
    positions: str = "learned"  # an embedding of each position, or rope: see `rotate`
    gelu: str = "tanh"  # GPT-2's approximation, or erf: the GELU itself, faster on CPUs
    mlp: str = "gelu"  # or relu2 or swiglu: see `activate`
    tied_head: bool = True  # the head is the token embedding; False: a matrix of its own

    def __post_init__(self):
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        if self.positions not in POSITIONS or self.gelu not in GELU or self.mlp not in MLPS:
            raise ValueError(f"positions is in {POSITIONS}, gelu in {tuple(GELU)}, mlp in {MLPS}")
        if self.positions == "rope" and self.n_embd // self.n_head % 2:
            raise ValueError(f"rope needs an even head size, not {self.n_embd // self.n_head}")

    @property
    def padded_vocab_size(self):
        """vocab_size rounded up to a multiple of 128, for the head's matmul."""
        return (self.vocab_size + 127) // 128 * 128

    @property
    def mlp_width(self):
        """Neurons of an MLP: 4 n_embd. SwiGLU has three matrices for the others' two, so with two
        thirds of that, to the nearest multiple of 8, as many parameters."""
        return 8 * max(1, round(self.n_embd / 3)) if self.mlp == "swiglu" else 4 * self.n_embd


# ---- rotary positions --------------------------------------------------------------------------


def rotation(positions, head_size):
    """(cos, sin) of the angles of `rotate`, float32 (..., 1, 1, D / 2); positions: (...) int64."""
    pair = torch.arange(0, head_size, 2, device=positions.device)
    angles = positions[..., None, None, None] * 10_000.0 ** (-pair / head_size)
    return angles.cos(), angles.sin()


def rotate(qkv, cos, sin):
    """Queries and keys turned by their positions (Su et al. 2021): rotary position embedding.

    qkv: (..., 3, H, D). cos, sin: of `rotation`. Channels c and c + D/2 are a point of a plane,
    which position p turns by the angle p theta_c, theta_c = 10,000^(-2c / D). Between a query at i
    and a key at j the turn is (i - j) theta_c: their product depends on how far apart they are, not
    on where."""
    queries_keys, values = qkv.split((2, 1), dim=-3)
    x, y = queries_keys.float().chunk(2, -1)  # (..., 2, H, D / 2) each
    turned = torch.cat([x * cos - y * sin, y * cos + x * sin], -1)
    return torch.cat([turned.type_as(values), values], -3)


# ---- the model ---------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.scale = None if config.scale_attention else 1.0
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.qkv_bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x, span, angles, implementation):
        B, T, C = x.shape
        start, end = span  # see kernels.attention.attention_span
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)  # (B, T, 3, H, D)
        if angles:
            qkv = rotate(qkv, *angles)
        out = attention(qkv, start, self.scale, implementation, end)  # (B, T, H, D)
        return self.c_proj(out.reshape(B, T, C))


def activate(x, config):
    """An MLP's neurons (..., mlp_width), from what its first matrix returns."""
    if config.mlp == "swiglu":  # Shazeer 2020: one half of x gates the other
        gate, x = x.chunk(2, -1)
        return F.silu(gate) * x
    if config.mlp == "relu2":  # So et al. 2021
        return F.relu(x).square()
    return F.gelu(x, approximate=GELU[config.gelu])


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, width = config, config.mlp_width
        # SwiGLU's two matrices that read x are the halves of one, as q, k and v are its thirds.
        self.c_fc = nn.Linear(config.n_embd, 2 * width if config.mlp == "swiglu" else width)
        self.c_proj = nn.Linear(width, config.n_embd)

    def forward(self, x, fused):
        config, up, down = self.config, self.c_fc, self.c_proj
        if not fused:  # through the modules, whose inputs and outputs hooks may read
            return down(activate(up(x), config))
        if config.mlp != "gelu":
            raise ValueError(f"fused_mlp computes mlp='gelu' alone, not '{config.mlp}'")
        weights = (up.weight, up.bias, down.weight, down.bias)
        return fused_mlp(x, *weights, GELU[config.gelu], "triton")


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x, span, angles, implementation, fused_mlp):
        x = x + self.drop(self.attn(self.ln_1(x), span, angles, implementation))
        return x + self.drop(self.mlp(self.ln_2(x), fused_mlp))


class WithoutWeights(TorchFunctionMode):
    """`with WithoutWeights(): GPT(config)` has parameters on the meta device: shapes, no values."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", "") == "torch.nn.init":  # it would import torch.compile
            return kwargs["tensor"]
        with torch.device("meta"):
            return function(*args, **kwargs or {})


class GPT(nn.Module):
    """config: a GPTConfig. `use_attention` says which attention to run; with `fused_mlp` set to
    True the MLPs run kernels.mlp's Triton kernels."""

    def __init__(self, config):
        super().__init__()
        self.config, self.attn, self.fused_mlp = config, "sdpa", False
        self.residual_dtype = None  # of the sum that blocks add to; None: the embeddings'
        self.wte = nn.Embedding(config.padded_vocab_size, config.n_embd)
        learned = config.positions == "learned"
        self.wpe = nn.Embedding(config.block_size, config.n_embd) if learned else None
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.lm_head = None
        if not config.tied_head:
            self.lm_head = nn.Linear(config.n_embd, config.padded_vocab_size, bias=False)
        self.apply(self._init)
        for name, weight in self.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * config.n_layer))

    @staticmethod
    def _init(module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def use_attention(self, name, dtype):
        """Select the attention implementation behind a setting, to compute in a torch dtype.

        name: "auto", "triton", "sdpa" or "math". Returns the reason for the choice; raises
        ValueError where the device, head size or dtype does not allow it."""
        config, device = self.config, self.wte.weight.device
        self.attn, reason = choose_attention(name, device, config.n_embd // config.n_head, dtype)
        return reason

    def window(self, layer):
        """How many tokens back layer number `layer` sees; 0: all (GPT-Neo's odd layers: 256)."""
        return self.config.window if layer % 2 else 0

    def forward(self, tokens, targets=None, positions=None, doc_start=None, mean=True):
        """Logits, or with targets the loss.

        tokens: (B, T) int64. targets: (B, T) int64, IGNORE_INDEX where nothing is scored.
        positions: (B, T) int64, each token's place in its story; default: in its row. doc_start:
        (B, T) int32, the column where each token's story starts; default: the row is one story.
        Returns logits (B, T, vocab_size); or the cross-entropy in nats, float32: its mean over the
        scored targets, or with mean=False (B, T), 0 where IGNORE_INDEX. Raises ValueError where a
        position would pass block_size."""
        x = self.hidden(tokens, positions, doc_start)
        if targets is None:
            return self.head(x)
        vocab_size = self.config.vocab_size
        loss = linear_cross_entropy(
            x.flatten(0, 1), self.head_weight, targets.flatten(), vocab_size, IGNORE_INDEX, mean
        )
        return loss if mean else loss.view(targets.shape)

    def hidden(self, tokens, positions=None, doc_start=None):
        """What the head reads, (B, T, C); arguments and errors as of `forward`."""
        B, T = tokens.shape
        if positions is None:
            if (limit := self.config.block_size) < T:
                raise ValueError(f"{T} tokens, but block_size is {limit}")
            positions = torch.arange(T, device=tokens.device)
        x, angles = self.wte(tokens), None  # (B, T, C)
        if self.wpe is None:
            angles = rotation(positions, self.config.n_embd // self.config.n_head)
        else:
            x = x + self.wpe(positions)
        x = self.drop(x).to(self.residual_dtype)
        # Which keys each query attends to, computed once for all layers.
        spans = {
            window: attention_span(windowed(doc_start, window, (B, T), x.device), self.attn)
            for window in {0, self.config.window}
        }
        for i, block in enumerate(self.h):
            x = block(x, spans[self.window(i)], angles, self.attn, self.fused_mlp)
        return self.ln_f(x)

    @property
    def head_weight(self):
        """The head's matrix, (padded_vocab_size, n_embd): the token embedding, or its own."""
        return self.wte.weight if self.lm_head is None else self.lm_head.weight

    def head(self, x):
        """Hidden states (..., C) -> logits (..., vocab_size): the padding is cropped away."""
        return F.linear(x, self.head_weight)[..., : self.config.vocab_size]

    def num_params(self, embeddings=True):
        """Parameters, without the vocabulary's padding; if asked, without embeddings and head."""
        config = self.config
        body = sum(p.numel() for p in (*self.h.parameters(), *self.ln_f.parameters()))
        rows = config.vocab_size if config.tied_head else 2 * config.vocab_size
        rows += 0 if self.wpe is None else config.block_size
        return body + (rows * config.n_embd if embeddings else 0)

    def num_matmul_params(self):
        """Parameters of the blocks and the head: all but what is only looked up."""
        return self.num_params(embeddings=False) + self.config.vocab_size * self.config.n_embd

    def flops_per_token(self, context):
        """Forward and backward floating-point operations of one training token.

        6 for each weight that multiplies (the head does, the embeddings look up), and attention's
        12 n_layer n_embd for each of the `context` tokens a query sees on average (PaLM, appendix
        B)."""
        config = self.config
        return 6 * self.num_matmul_params() + 12 * config.n_layer * config.n_embd * context
