"""What a neuron fires at: its highest activations over many stories, and how alike these are.

    halves = top_activations(model, batches)         # of every neuron, in each half of the stories
    scores = coherence(halves[0], stories, seed=0)   # arrays, a number for each neuron

A neuron's examples are the stories in which its activation gets highest, each with the one token
where it does. The first token, the same in all, is left out. How alike the examples are is measured
by two entropies, of the tokens and of their parts of speech, relative to those of as many random
tokens, one per story:

    coherence = 1 - (H(tokens) / H(random tokens) + H(pos) / H(random pos)) / 2

It is 1 where all tokens are the same, and about 0 where they look random. Some of thousands look
coherent by chance, so the first half of the stories ranks the neurons, and the second measures them
again. An untrained model shows how much of the coherence was learned: its neurons, too, fire more
at some tokens than at others.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from eval.interpretability import hooks
from nanostories.text.pos_tags import POS

TOP = 20  # examples of a neuron in each half of the stories
RANDOM_SETS = 1000  # of as many random tokens
READABLE = 99  # a neuron is readable if it is more coherent than this percentage of them


@dataclass(frozen=True)
class TopActivations:
    """The TOP stories of each neuron in one half, or all there are: arrays (neurons, TOP)."""

    values: np.ndarray  # activations, descending
    stories: np.ndarray  # their indices
    tokens: np.ndarray  # the index in the story of the token


def top_activations(model, batches, name="neurons"):
    """Two TopActivations of all neurons, layer after layer: in stories of even index and of odd."""
    halves = [[None] * len(model.h), [None] * len(model.h)]  # (values, stories, tokens) by layer
    for indices, batch in tqdm(batches, name, disable=None):
        ignored = ~batch.completion_mask  # (B, T)
        ignored[:, 0] = True
        stories = torch.tensor(indices, device=ignored.device)

        def merge(layer, values, ignored=ignored, stories=stories):
            values = values.float().masked_fill(ignored[..., None], float("-inf"))
            values, tokens = values.max(1)  # (B, neurons)
            for half in (0, 1):
                rows = stories % 2 == half
                new = (values[rows].T, stories[rows].expand(values.shape[1], -1), tokens[rows].T)
                if old := halves[half][layer]:
                    new = tuple(torch.cat(both, 1) for both in zip(old, new, strict=True))
                top, order = new[0].topk(min(TOP, new[0].shape[1]), dim=1)
                halves[half][layer] = (top, *(x.gather(1, order) for x in new[1:]))

        hooks.neuron_activations(model, batch.tokens, merge)
    return [
        TopActivations(*(torch.cat(x).cpu().numpy() for x in zip(*layers, strict=True)))
        for layers in halves
    ]


def entropies(kinds):
    """The entropy of each row of an int array (rows, n), in bits, float64 (rows,)."""
    rows, n = kinds.shape
    ascending = np.sort(kinds, axis=1)
    # Each run of equal numbers ends where the next begins.
    ends = np.diff(ascending, axis=1, append=ascending[:, -1:] + 1) != 0
    row, end = np.nonzero(ends)
    p = np.diff(row * n + end, prepend=-1) / n
    return np.bincount(row, -p * np.log2(p), rows)


def coherence(top, stories, seed=0):
    """Scores of the neurons of TopActivations, each an array (neurons,), over TaggedStories.

    Returns {"coherence"; "token_entropy" and, where parts of speech are known, "pos_entropy", in
    bits; "rarity": the mean of -log2 of the tokens' frequencies; "readable": bool, whether it is
    above "threshold", the READABLE percentile of the coherence of random tokens, a float}."""
    starts = np.cumsum([0, *(len(one.ids) for one in stories)])
    kinds = {"token": np.concatenate([one.ids for one in stories])}
    if stories[0].pos is not None:
        kinds["pos"] = np.array([POS.index(pos) for one in stories for pos in one.pos])
    counts = np.bincount(np.delete(kinds["token"], starts[:-1]))
    places = starts[top.stories] + top.tokens  # (neurons, TOP)
    random_places = _random_places(starts, top.stories, seed)
    scores, relative, random_relative = {}, [], []
    for name, values in kinds.items():
        at = values[places]
        if name == "token":
            scores["rarity"] = -np.log2(counts[at] / counts.sum()).mean(1)
        scores[f"{name}_entropy"] = entropies(at)
        random = entropies(values[random_places])
        typical = max(random.mean(), 1e-9)  # 0 only where all tokens are the same
        relative.append(scores[f"{name}_entropy"] / typical)
        random_relative.append(random / typical)
    scores["coherence"] = 1 - np.mean(relative, axis=0)
    scores["threshold"] = float(np.percentile(1 - np.mean(random_relative, axis=0), READABLE))
    scores["readable"] = scores["coherence"] > scores["threshold"]
    return scores


def _random_places(starts, stories, seed):
    """RANDOM_SETS rows of as many places as a row of stories has, in different ones if possible."""
    rng, n, stories, sets = np.random.default_rng(seed), stories.shape[1], np.unique(stories), []
    for _ in range(RANDOM_SETS):
        chosen = rng.choice(stories, n, replace=len(stories) < n)
        sets.append([rng.integers(starts[s] + 1, starts[s + 1]) for s in chosen])
    return np.array(sets)


def rank(scores):
    """The neurons' indices by coherence, descending; equals by the rarity of their tokens."""
    return np.lexsort((-scores["rarity"], -scores["coherence"]))


def examples(model, stories, top, chosen, device, before=12, after=8):
    """{neuron: [{"story", "peak", "ids", "values"}]}: the top activations of the chosen neurons,
    with the tokens around each, the neuron's activation at every one, and the index of the highest.

    stories: TaggedStories. chosen: indices of neurons, layer after layer."""
    width = model.config.mlp_width
    places = defaultdict(list)  # story -> [(neuron, rank, token)]
    for neuron in chosen:
        pairs = zip(top.stories[neuron].tolist(), top.tokens[neuron].tolist(), strict=True)
        for i, (s, t) in enumerate(pairs):
            places[s].append((neuron, i, t))
    rows = {neuron: [None] * top.stories.shape[1] for neuron in chosen}
    for s, story_places in places.items():

        def add(layer, values, s=s, story_places=story_places):
            for neuron, i, t in story_places:
                if neuron // width == layer:
                    begin = max(0, t - before)
                    span = slice(begin, t + after + 1)
                    rows[neuron][i] = {
                        "story": s, "peak": t - begin, "ids": stories[s].ids[span],
                        "values": [round(x, 3) for x in values[0, span, neuron % width].tolist()],
                    }  # fmt: skip

        hooks.neuron_activations(model, torch.tensor([stories[s].ids], device=device), add)
    return rows
