"""What a model computes inside, read and changed by hooks on its own modules.

    patterns = attention_patterns(model, tokens, layer=0)   # (B, H, T, T), the rows sum to 1
    neuron_activations(model, tokens, callback)             # callback(layer, (B, T, neurons))
    with mean_ablate(model, Unit("head", 0, 3), means):     # head 3 of layer 0 adds its mean output
        losses = token_losses(model, batches)

The fused kernels never hold the attention weights, so these are computed again from the very
queries and keys that a layer hands to attention. A neuron is read where it is used: the input of
the MLP's second matrix, after the GELU; with SwiGLU the product with the gate. Ablation replaces
what a head or neuron adds to the residual stream by its mean, not by zero, which no text may ever
make it add (Wang et al. 2022).
"""

import contextlib
import itertools
from dataclasses import dataclass

import torch

from kernels.attention import attention_scores, attention_weights, windowed
from model import rotate, rotation
from nanostories.dataset.packing import pad_batch
from nanostories.inference.generate import Completion

BATCH_SIZE = 8  # stories of one forward pass


@dataclass(frozen=True)
class Unit:
    """A part of a model that can be read and ablated."""

    kind: str  # "head" or "neuron"
    layer: int
    index: int

    def columns(self, config):
        """Its columns in the input of its `output_projection`, a slice."""
        width = config.n_embd // config.n_head if self.kind == "head" else 1
        return slice(self.index * width, (self.index + 1) * width)


def output_projection(block, kind):
    """The linear layer that adds a block's heads, or its neurons, to the residual stream."""
    return (block.attn if kind == "head" else block.mlp).c_proj


@dataclass(frozen=True)
class TaggedStory:
    """Token ids, their parts of speech, and id and part of speech of the token after the last."""

    ids: list
    pos: list | None = None  # of pos_tags.POS; None without a tagger
    next_id: int = 0  # <|endoftext|> or, where the story was cut, its next token
    next_pos: str = "end"


def make_batches(stories, device):
    """TaggedStories of like length together: a list of (their indices, their packing.PaddedBatch).
    Its targets are the next tokens, and of a story's last token its next_id."""
    order, batches = sorted(range(len(stories)), key=lambda i: len(stories[i].ids)), []
    for first in range(0, len(order), BATCH_SIZE):
        indices = order[first : first + BATCH_SIZE]
        starts = [stories[i].ids[:1] for i in indices]
        rest = [Completion([*stories[i].ids[1:], stories[i].next_id]) for i in indices]
        batches.append((indices, pad_batch(starts, rest, 0, device)))
    return batches


@torch.no_grad()
def run_with_hooks(model, tokens, modules, hook):
    """Run the model; hook(i, x, y) gets the input and output of number i of the modules."""
    with contextlib.ExitStack() as stack:
        for i, module in enumerate(modules):
            handle = module.register_forward_hook(lambda _, args, y, i=i: hook(i, args[0], y))
            stack.enter_context(handle)
        model.hidden(tokens)


def attention_patterns(model, tokens, layer):
    """The attention weights of a layer's heads: (B, H, T, T), query before key; each row sums to 1.

    tokens: (B, T) int64, a story in each row, from its first token on."""
    (B, T), attn, outputs = tokens.shape, model.h[layer].attn, []
    run_with_hooks(model, tokens, [attn.c_attn], lambda i, x, y: outputs.append(y))
    qkv = outputs[0].view(B, T, 3, attn.n_head, -1).float()
    if model.wpe is None:
        qkv = rotate(qkv, *rotation(torch.arange(T, device=tokens.device), qkv.shape[-1]))
    window = model.window(layer)
    start = windowed(None, window, (B, T), tokens.device).contiguous() if window else None
    return attention_weights(qkv, start, attn.scale)


def neuron_activations(model, tokens, callback):
    """Call callback(layer, values) with each layer's neurons, (B, T, mlp_width), while the model
    runs: never are all layers held. tokens: see `attention_patterns`."""
    modules = [output_projection(block, "neuron") for block in model.h]
    run_with_hooks(model, tokens, modules, lambda layer, x, y: callback(layer, x))


def mean_residuals(model, batches, ids):
    """The mean residual stream of each token id at the input of each layer, whatever its context.

    batches: of `make_batches`. Returns (the row of each of these ids, int64 (vocab,), [(rows, C) of
    each layer]); an id that does not occur gets the mean over all tokens."""
    device, ids = model.wte.weight.device, sorted(set(ids))
    row_of = torch.full([model.config.padded_vocab_size], len(ids), device=device)
    row_of[ids] = torch.arange(len(ids), device=device)
    sums = torch.zeros(len(model.h), len(ids) + 1, model.config.n_embd, device=device)
    counts = torch.zeros(len(ids) + 1, device=device)
    for _, batch in batches:
        mask = batch.completion_mask
        rows = row_of[batch.tokens[mask]]
        counts += torch.bincount(rows, minlength=len(counts))

        def add(layer, x, y, rows=rows, mask=mask):
            sums[layer].index_add_(0, rows, x[mask].float())

        run_with_hooks(model, batch.tokens, [block.ln_1 for block in model.h], add)
    overall = sums.sum(1, keepdim=True) / counts.sum()
    means = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], overall)
    return row_of, list(means[:, :-1])  # the last row is of all other tokens


@torch.no_grad()
def content_scores(model, layer, residuals):
    """A layer's attention scores (H, T, T) of tokens without context: (T, C), `mean_residuals`;
    with rotary positions, of tokens at one place."""
    block = model.h[layer]
    qkv = block.attn.c_attn(block.ln_1(residuals[None]))
    qkv = qkv.view(1, len(residuals), 3, block.attn.n_head, -1).float()
    return attention_scores(qkv, block.attn.scale)[0]


def mean_activations(model, batches):
    """{(kind, layer): mean input of its `output_projection` over all tokens, (C,) or (neurons,)}"""
    places = list(itertools.product(("head", "neuron"), range(len(model.h))))
    modules = [output_projection(model.h[layer], kind) for kind, layer in places]
    sums, count = [0] * len(places), 0
    for _, batch in batches:
        mask = batch.completion_mask
        count += int(mask.sum())

        def add(i, x, y, mask=mask):
            sums[i] = sums[i] + x[mask].float().sum(0).cpu().double()

        run_with_hooks(model, batch.tokens, modules, add)
    means = [(total / count).float().to(model.wte.weight.device) for total in sums]
    return dict(zip(places, means, strict=True))


@contextlib.contextmanager
def mean_ablate(model, unit, means):
    """Within it, a Unit's activation is its mean at every token; means: of `mean_activations`."""
    columns = unit.columns(model.config)
    mean = means[unit.kind, unit.layer][columns]

    def replace(_, args):
        changed = args[0].clone()
        changed[..., columns] = mean.type_as(changed)
        return (changed,)

    with output_projection(model.h[unit.layer], unit.kind).register_forward_pre_hook(replace):
        yield model


@torch.no_grad()
def token_losses(model, batches):
    """The loss of every token's target in nats: a list of float64 (tokens,), one per story."""
    losses = {}
    for indices, batch in batches:
        loss = model(batch.tokens, batch.targets, mean=False).cpu().double()
        for i, row, mask in zip(indices, loss, batch.completion_mask.cpu(), strict=True):
            losses[i] = row[mask].numpy()
    return [losses[i] for i in sorted(losses)]
