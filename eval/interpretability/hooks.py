"""
What a model computes inside, read and changed by hooks on its own modules.

    maps = attention_maps(model, tokens, layer=0)        # (B, H, T, T), the rows sum to 1
    activations(model, tokens, see)                      # see(layer, (B, T, 4 C)), layer by layer
    with without(model, Unit("head", 0, 3), means):      # head 3 of layer 0 says what it says on
        changed = losses(model, batches)                 # average, whatever the text

The fused kernels never hold attention's weights, so these are computed once more from the very
queries and keys that the layer hands to attention. A neuron is read where it is used: what the
MLP's second matrix multiplies, after the GELU. A unit is taken away by the mean of what it gives
to the residual stream, not by zero, which no text may ever make it say (Wang et al. 2022).
"""

import contextlib
from dataclasses import dataclass

import torch

from kernels.attention import attention_scores, attention_weights, windowed
from kernels.cross_entropy import IGNORE_INDEX

ROWS = 8  # stories of one pass


@dataclass(frozen=True)
class Unit:
    """A part of a model that can be read and taken away: kind is "head" or "neuron"."""

    kind: str
    layer: int
    index: int

    def columns(self, config):
        """Where it stands in the input of the matrix that reads it, see `reader`: a slice."""
        width = config.n_embd // config.n_head if self.kind == "head" else 1
        return slice(self.index * width, (self.index + 1) * width)


def reader(model, kind, layer):
    """The matrix that adds a layer's heads, or neurons, to the residual stream."""
    block = model.h[layer]
    return (block.attn if kind == "head" else block.mlp).c_proj


@dataclass(frozen=True)
class Rows:
    """Stories, one a row, padded at the end: which stories they are, tokens and targets (B, T)."""

    stories: list
    lengths: list
    tokens: torch.Tensor  # int64
    targets: (
        torch.Tensor
    )  # int64: the next token, after a story's last its `last`; then IGNORE_INDEX


def rows_of(stories, device):
    """[Rows] of heads.Story, those of like length together. The padding is seen by no token."""
    order, found = sorted(range(len(stories)), key=lambda i: len(stories[i].ids)), []
    for first in range(0, len(order), ROWS):
        some = order[first : first + ROWS]
        lengths = [len(stories[i].ids) for i in some]
        tokens = torch.zeros(len(some), max(lengths), dtype=torch.int64)
        targets = torch.full_like(tokens, IGNORE_INDEX)
        for row, i in enumerate(some):
            ids = [*stories[i].ids, stories[i].last]
            tokens[row, : len(ids) - 1] = torch.tensor(ids[:-1])
            targets[row, : len(ids) - 1] = torch.tensor(ids[1:])
        found.append(Rows(some, lengths, tokens.to(device), targets.to(device)))
    return found


# ----------------------------------------------------------------------------------------------
# reading


@contextlib.contextmanager
def _watching(modules, see):
    """Within it, see(i, x, y) is told what number i of the modules takes and gives, when called."""
    hooks = [
        module.register_forward_hook(lambda _, args, y, i=i: see(i, args[0], y))
        for i, module in enumerate(modules)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def attention_maps(model, tokens, layer):
    """
    The attention weights of a layer's heads: (B, H, T, T), query before key; each row sums to 1.

    tokens: (B, T) int64, a story in each row, from its first token on.
    """
    (B, T), block, given = tokens.shape, model.h[layer].attn, []
    with _watching([block.c_attn], lambda _, x, y: given.append(y)):
        model.hidden(tokens)
    qkv = given[0].view(B, T, 3, block.n_head, -1).float()
    window = model.window(layer)
    start = windowed(None, window, (B, T), tokens.device).contiguous() if window else None
    return attention_weights(qkv, start, block.scale)


@torch.no_grad()
def activations(model, tokens, see):
    """
    Call see(layer, values) with the neurons' values (B, T, 4 C) of each layer, as the model runs:
    so never those of all layers are held. tokens: see `attention_maps`.
    """
    with _watching([block.mlp.c_proj for block in model.h], lambda i, x, y: see(i, x)):
        model.hidden(tokens)


@torch.no_grad()
def average_words(model, batches, ids):
    """
    Each token as the average of its kind: {id: row}, and of each layer (rows, C), what the layer
    takes in where these ids stand in [Rows], on average; for those that do not occur, the average
    of all tokens.
    """
    wanted = sorted(set(ids))
    row_of = {token: row for row, token in enumerate(wanted)}
    device, width = model.wte.weight.device, model.config.n_embd
    number = torch.full([model.config.padded_vocab_size], len(wanted), device=device)
    number[torch.tensor(wanted, device=device)] = torch.arange(len(wanted), device=device)
    sums = torch.zeros(len(model.h), len(wanted) + 1, width, device=device)
    counts = torch.zeros(len(wanted) + 1, device=device)
    for rows in batches:
        real = rows.targets != IGNORE_INDEX  # (B, T): no padding
        which = number[rows.tokens[real]]
        counts += torch.bincount(which, minlength=len(counts))

        def take(i, x, y, which=which, real=real):
            sums[i].index_add_(0, which, x[real].float())

        with _watching([block.ln_1 for block in model.h], take):
            model.hidden(rows.tokens)
    average = sums.sum(1, keepdim=True) / counts.sum()
    found = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], average)
    return row_of, list(found[:, :-1])  # the last row is of all other tokens


@torch.no_grad()
def word_scores(model, layer, vectors):
    """
    The scores (H, T, T) of a layer's heads for T tokens, each the average of its kind: (T, C), rows
    of `average_words`.
    """
    block = model.h[layer]
    qkv = block.attn.c_attn(block.ln_1(vectors[None]))
    qkv = qkv.view(1, len(vectors), 3, block.attn.n_head, -1).float()
    return attention_scores(qkv, block.attn.scale)[0]


@torch.no_grad()
def means(model, batches):
    """
    {(kind, layer): what its units say on average, (C,) or (4 C,)} over the tokens of [Rows].
    """
    places = [(kind, layer) for kind in ("head", "neuron") for layer in range(len(model.h))]
    sums, count = dict.fromkeys(places, 0), 0
    for rows in batches:
        real = rows.targets != IGNORE_INDEX

        def take(i, x, y, real=real):
            sums[places[i]] = sums[places[i]] + x[real].float().sum(0).cpu().double()

        with _watching([reader(model, *place) for place in places], take):
            model.hidden(rows.tokens)
        count += int(real.sum())
    device = model.wte.weight.device
    return {place: (total / count).float().to(device) for place, total in sums.items()}


# ----------------------------------------------------------------------------------------------
# changing


@contextlib.contextmanager
def without(model, unit, averages):
    """Within it, a Unit says the same at every token: its average, see `means`."""
    columns = unit.columns(model.config)
    average = averages[unit.kind, unit.layer][columns]

    def replace(_, args):
        changed = args[0].clone()
        changed[..., columns] = average.type_as(changed)
        return (changed,)

    hook = reader(model, unit.kind, unit.layer).register_forward_pre_hook(replace)
    try:
        yield model
    finally:
        hook.remove()


@torch.no_grad()
def losses(model, batches):
    """The loss of every token's target, in nats: a list of float64 (tokens,), a story each."""
    found = {}
    for rows in batches:
        loss = model(rows.tokens, rows.targets, mean=False).cpu().double().numpy()
        for i, length, row in zip(rows.stories, rows.lengths, loss, strict=True):
            found[i] = row[:length]
    return [found[i] for i in sorted(found)]
