"""
What a neuron fires at: the tokens over many stories at which it is highest, and how alike they are.

    ranks, checks = search(model, batches)        # of every neuron, its highest places, twice
    found = coherence(ranks, stories, seed=0)     # arrays, a number for each neuron

A neuron's examples are the stories in which it gets highest, each with the one token where it does:
no story's hero is counted twenty times. The first token, the same in all, is left out. How much
they have in common is told by two entropies, of the tokens and of their parts of speech, beside
those of as many tokens drawn at random, one a story:

    coherence = 1 - (H(tokens) / H(random tokens) + H(parts) / H(random parts)) / 2

1 where all are the same token, about 0 where they might as well be any. Of thousands of neurons
some look coherent by chance, so the stories are dealt into two halves: the first ranks the neurons,
and the second measures the ranked ones again, with examples of its own.

A neuron of random weights, too, fires more at some words than at others: how coherent those of an
untrained model are says what of it was learned.
"""

from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from eval.interpretability import hooks
from kernels.cross_entropy import IGNORE_INDEX
from nanostories.text.pos_tags import POS

TOP = 20  # examples of a neuron in each half of the stories
DRAWS = 1000  # random sets of as many tokens
READABLE = 99  # a neuron is readable if it is more coherent than so many per cent of these


@dataclass(frozen=True)
class Tops:
    """
    Of each neuron its TOP stories in one half: values (neurons, TOP), descending, and the number of
    each story and of the token in it. Where a half has fewer stories, as many as it has.
    """

    values: np.ndarray
    stories: np.ndarray
    tokens: np.ndarray


def search(model, batches, name="neurons"):
    """
    The highest places of every neuron, layer after layer, in stories of even number and of odd:
    two Tops. batches: [inside.Rows]. name: of the bar that shows progress on a terminal.
    """
    halves = [[None] * len(model.h), [None] * len(model.h)]  # of each layer what `_merged` returns
    for rows in tqdm(batches, name, disable=None):
        out = rows.targets == IGNORE_INDEX  # (B, T): padding
        out[:, 0] = True
        story = torch.tensor(rows.stories, device=out.device)

        def see(layer, values, out=out, story=story):
            values = values.float().masked_fill(out[..., None], float("-inf"))
            best, token = values.max(1)  # (B, neurons)
            for half in (0, 1):
                mine = story % 2 == half
                found = best[mine].T, story[mine].expand(best.shape[1], -1), token[mine].T
                halves[half][layer] = _merged(halves[half][layer], found)

        hooks.activations(model, rows.tokens, see)
    return [
        Tops(*(torch.cat(x).cpu().numpy() for x in zip(*layers, strict=True))) for layers in halves
    ]


def _merged(old, new):
    """The TOP of two sets of places: (values, stories, tokens), each (neurons, places)."""
    if old:
        new = tuple(torch.cat(both, 1) for both in zip(old, new, strict=True))
    values, order = new[0].topk(min(TOP, new[0].shape[1]), dim=1)
    return values, *(x.gather(1, order) for x in new[1:])


# ----------------------------------------------------------------------------------------------
# coherence


def entropies(kinds):
    """The entropy of each row of an int array (rows, n), in bits, float64 (rows,)."""
    rows, n = kinds.shape
    ranked = np.sort(kinds, axis=1)
    # Each run of equal numbers ends where the next begins.
    ends = np.concatenate([ranked[:, 1:] != ranked[:, :-1], np.ones((rows, 1), bool)], axis=1)
    row, end = np.nonzero(ends)
    count = np.diff(end, prepend=-1)
    first = np.diff(row, prepend=-1) > 0
    count[first] = end[first] + 1
    share = count / n
    return np.bincount(row, -share * np.log2(share), rows)


def kinds_of(stories):
    """
    [(tokens, parts)] of each heads.Story as int arrays; parts None where they are not known.
    """
    number = {part: i for i, part in enumerate(POS)}
    return [
        (np.array(one.ids), None if one.parts is None else np.array([number[x] for x in one.parts]))
        for one in stories
    ]


def coherence(tops, stories, seed=0):
    """
    {"tokens", "parts", "coherence", "rarity": float64 (neurons,)} of a Tops: entropies in bits
    ("parts" only where they are known), and the mean of -log2 of the tokens' shares of all; under
    "chance" and "readable" the READABLE percentile of random sets' coherence and which neurons are
    above it.
    """
    kinds = kinds_of(stories)
    counts = np.bincount(np.concatenate([tokens[1:] for tokens, _ in kinds]))
    draws = _random(kinds, np.unique(tops.stories), tops.stories.shape[1], seed)
    found, scores, chances = {}, [], []
    for i, name in enumerate(("tokens", "parts")):
        if draws[i] is None:
            continue
        at = [
            [kinds[s][i][t] for s, t in zip(*row, strict=True)]
            for row in zip(tops.stories, tops.tokens, strict=True)
        ]
        at = np.array(at)
        if name == "tokens":
            found["rarity"] = -np.log2(counts[at] / counts.sum()).mean(1)
        found[name], chance = entropies(at), entropies(draws[i])
        typical = max(chance.mean(), 1e-9)  # 0 only where all tokens are the same
        scores.append(found[name] / typical)
        chances.append(chance / typical)
    found["coherence"] = 1 - np.mean(scores, axis=0)
    chance = 1 - np.mean(chances, axis=0)
    found["chance"] = float(np.percentile(chance, READABLE))
    found["readable"] = found["coherence"] > found["chance"]
    return found


def _random(kinds, stories, n, seed):
    """DRAWS sets of n tokens of different stories: their (tokens, parts), each (DRAWS, n)."""
    rng = np.random.default_rng(seed)
    sets = [[], []]
    for _ in range(DRAWS):
        chosen = [kinds[s] for s in rng.choice(stories, n, replace=len(stories) < n)]
        places = [int(rng.integers(1, len(one[0]))) for one in chosen]
        for i in (0, 1):
            sets[i].append([one[i][p] for one, p in zip(chosen, places, strict=True)]
                           if chosen[0][i] is not None else None)  # fmt: skip
    return [np.array(x) if x[0] is not None else None for x in sets]


def ranked(scores):
    """The neurons' numbers by coherence, the best first; among equals those of rarer tokens."""
    return np.lexsort((-scores["rarity"], -scores["coherence"]))


# ----------------------------------------------------------------------------------------------
# examples


@torch.no_grad()
def examples(model, stories, tops, chosen, device, before=12, after=8):
    """
    {neuron: [{"story", "at", "ids", "values"}]}: the highest places of the chosen neurons, with the
    tokens around each and the neuron's value at every one of these.

    stories: heads.Story. chosen: numbers of neurons, layer after layer.
    """
    width = 4 * model.config.n_embd
    wanted = {}  # story -> [(neuron, rank, token)]
    for neuron in chosen:
        for rank, (s, t) in enumerate(zip(tops.stories[neuron], tops.tokens[neuron], strict=True)):
            wanted.setdefault(int(s), []).append((neuron, rank, int(t)))
    found = {neuron: {} for neuron in chosen}
    for s, places in wanted.items():

        def see(layer, values, s=s, places=places):
            for neuron, rank, t in places:
                if neuron // width == layer:
                    begin = max(0, t - before)
                    span = slice(begin, t + after + 1)
                    found[neuron][rank] = {
                        "story": s, "at": t - begin, "ids": stories[s].ids[span],
                        "values": [round(x, 3) for x in values[0, span, neuron % width].tolist()],
                    }  # fmt: skip

        hooks.activations(model, torch.tensor([stories[s].ids], device=device), see)
    return {neuron: [rows[rank] for rank in sorted(rows)] for neuron, rows in found.items()}
