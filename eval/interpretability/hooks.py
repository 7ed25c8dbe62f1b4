"""What a model computes inside, read and changed by hooks on its own modules.

    patterns = attention_patterns(model, tokens, layer=0)   # (B, H, T, T), the rows sum to 1
    neuron_activations(model, tokens, callback)             # callback(layer, (B, T, 4 C))
    with mean_ablate(model, Unit("head", 0, 3), means):     # head 3 of layer 0 adds its mean output
        losses = token_losses(model, batches)

The fused kernels never hold the attention weights, so these are computed again from the very
queries and keys that a layer hands to attention. A neuron is read where it is used: the input of
the MLP's second matrix, after the GELU. Ablation replaces what a head or neuron adds to the
residual stream by its mean, not by zero, which no text may ever make it add (Wang et al. 2022).
"""

import contextlib
from dataclasses import dataclass

import torch

from kernels.attention import attention_scores, attention_weights, windowed
from nanostories.dataset.packing import pad_batch
from nanostories.inference.generate import Completion

BATCH_SIZE = 8  # stories of one forward pass


@dataclass(frozen=True)
class Unit:
    """A part of a model that can be read and ablated: kind is "head" or "neuron"."""

    kind: str
    layer: int
    index: int

    def columns(self, config):
        """Its columns in the input of its `output_projection`, a slice."""
        width = config.n_embd // config.n_head if self.kind == "head" else 1
        return slice(self.index * width, (self.index + 1) * width)


def output_projection(model, kind, layer):
    """The linear layer that adds a layer's heads, or its neurons, to the residual stream."""
    block = model.h[layer]
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
    Its targets are the next tokens, and of a story's last token its next_id.
    """
    order, batches = sorted(range(len(stories)), key=lambda i: len(stories[i].ids)), []
    for first in range(0, len(order), BATCH_SIZE):
        indices = order[first : first + BATCH_SIZE]
        some = [stories[i] for i in indices]
        rest = [Completion([*one.ids[1:], one.next_id]) for one in some]
        batches.append((indices, pad_batch([one.ids[:1] for one in some], rest, 0, device)))
    return batches


# ----------------------------------------------------------------------------------------------
# reading


@torch.no_grad()
def run_with_hooks(model, tokens, modules, hook):
    """Run the model; hook(i, x, y) gets the input and output of number i of the modules."""
    handles = [
        module.register_forward_hook(lambda _, args, y, i=i: hook(i, args[0], y))
        for i, module in enumerate(modules)
    ]
    try:
        model.hidden(tokens)
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def attention_patterns(model, tokens, layer):
    """The attention weights of a layer's heads: (B, H, T, T), query before key; each row sums to 1.

    tokens: (B, T) int64, a story in each row, from its first token on.
    """
    (B, T), attn, outputs = tokens.shape, model.h[layer].attn, []
    run_with_hooks(model, tokens, [attn.c_attn], lambda i, x, y: outputs.append(y))
    qkv = outputs[0].view(B, T, 3, attn.n_head, -1).float()
    window = model.window(layer)
    start = windowed(None, window, (B, T), tokens.device).contiguous() if window else None
    return attention_weights(qkv, start, attn.scale)


def neuron_activations(model, tokens, callback):
    """Call callback(layer, values) with the neurons' activations (B, T, 4 C) of each layer while
    the model runs, so that never all layers are held. tokens: see `attention_patterns`.
    """
    modules = [block.mlp.c_proj for block in model.h]
    run_with_hooks(model, tokens, modules, lambda layer, x, y: callback(layer, x))


@torch.no_grad()
def mean_residuals(model, batches, ids):
    """The mean residual stream of each token id at the input of each layer, whatever its context.

    batches: of `make_batches`. Returns ({id: row}, [(rows, C) of each layer]); an id that does not
    occur gets the mean over all tokens.
    """
    wanted = sorted(set(ids))
    row_of = {token: row for row, token in enumerate(wanted)}
    device, width = model.wte.weight.device, model.config.n_embd
    rows = torch.full([model.config.padded_vocab_size], len(wanted), device=device)
    rows[torch.tensor(wanted, device=device)] = torch.arange(len(wanted), device=device)
    sums = torch.zeros(len(model.h), len(wanted) + 1, width, device=device)
    counts = torch.zeros(len(wanted) + 1, device=device)
    for _, batch in batches:
        mask = batch.completion_mask
        batch_rows = rows[batch.tokens[mask]]
        counts += torch.bincount(batch_rows, minlength=len(counts))

        def add(layer, x, y, batch_rows=batch_rows, mask=mask):
            sums[layer].index_add_(0, batch_rows, x[mask].float())

        run_with_hooks(model, batch.tokens, [block.ln_1 for block in model.h], add)
    overall = sums.sum(1, keepdim=True) / counts.sum()
    means = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], overall)
    return row_of, list(means[:, :-1])  # the last row is of all other tokens


@torch.no_grad()
def content_scores(model, layer, residuals):
    """The attention scores (H, T, T) of a layer's heads for T tokens without their context:
    residuals (T, C) are rows of `mean_residuals`.
    """
    block = model.h[layer]
    qkv = block.attn.c_attn(block.ln_1(residuals[None]))
    qkv = qkv.view(1, len(residuals), 3, block.attn.n_head, -1).float()
    return attention_scores(qkv, block.attn.scale)[0]


@torch.no_grad()
def mean_activations(model, batches):
    """{(kind, layer): mean input of its `output_projection` over all tokens, (C,) or (4 C,)}."""
    places = [(kind, layer) for kind in ("head", "neuron") for layer in range(len(model.h))]
    modules = [output_projection(model, *place) for place in places]
    sums, count = dict.fromkeys(places, 0), 0
    for _, batch in batches:

        def add(i, x, y, mask=batch.completion_mask):
            sums[places[i]] = sums[places[i]] + x[mask].float().sum(0).cpu().double()

        run_with_hooks(model, batch.tokens, modules, add)
        count += int(batch.completion_mask.sum())
    device = model.wte.weight.device
    return {place: (total / count).float().to(device) for place, total in sums.items()}


# ----------------------------------------------------------------------------------------------
# ablation


@contextlib.contextmanager
def mean_ablate(model, unit, means):
    """Within it, a Unit's activation is its mean at every token; means: of `mean_activations`."""
    columns = unit.columns(model.config)
    mean = means[unit.kind, unit.layer][columns]

    def replace(_, args):
        changed = args[0].clone()
        changed[..., columns] = mean.type_as(changed)
        return (changed,)

    module = output_projection(model, unit.kind, unit.layer)
    handle = module.register_forward_pre_hook(replace)
    try:
        yield model
    finally:
        handle.remove()


@torch.no_grad()
def token_losses(model, batches):
    """The loss of every token's target in nats: a list of float64 (tokens,), one per story."""
    losses = {}
    for indices, batch in batches:
        loss = model(batch.tokens, batch.targets, mean=False).cpu().double()
        for i, row, mask in zip(indices, loss, batch.completion_mask.cpu(), strict=True):
            losses[i] = row[mask].numpy()
    return [losses[i] for i in sorted(losses)]
