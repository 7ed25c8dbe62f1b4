"""
What a head looks at: how much of its attention follows from distance, repetition or words alone.

    rows = classify(maps, scores, stories)   # of each story (H, T, T), twice; a dict for each head

The question is put as models that know too little. Let query i give its attention to the tokens j
before it in proportion to

    distance       u(i - j)
    repetition     u(i - j) r(i, j)                 r: whether j is the same token, or follows one
    words          u(i - j) r(i, j) exp(t s(i, j))

where s is the head's own score for the two words by themselves, whatever stands around them and
wherever they stand: for two vectors each of which is the average of its token's, over other stories
(inside.words). u, r and t are fitted to half of the stories, the factors each multiplied by
(attention seen + a) / (attention expected + a), in turn, until they stand (iterative scaling,
Darroch & Ratcliff 1972; a is a prior that holds what was hardly seen near 1). A head that scores by
distance and words is of exactly this form, whatever the softmax makes of it. On the other half
counts how much of the variance of the attention inside each query's row a model explains:

    1 - sum (A_ij - P_ij)^2 / sum (A_ij - m_i / n_i)^2

over the causal region and no further: the pairs j <= i, n_i of them. The first token is left out,
and P_i sums to m_i, what A_i gives to the others: heads with nothing to say rest on the first
token, and how much they do so is a figure of its own. What a model explains beyond the one before
it is due to what it knows besides.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch

from eval import intervals
from eval.speech import PARTS

EXACT, PER_OCTAVE = 32, 4  # distances told apart one by one; beyond, so many steps to each doubling
BUCKETS = EXACT + 16 * PER_OCTAVE  # far beyond any story
MODELS = ("distance", "repetition", "words")
REPEATS = ("duplicate", "induction")
NAMED = 0.25  # a share of the variance from which on a head is named after what explains it
RESTS = 0.9  # and the share of attention on the first token from which on it is said to rest
PRIOR = 0.1  # a, in attention of one query
EVERY = 4  # of the stories fitted to, one query in so many: a head has about 60 numbers to fit
ROUNDS = 12  # of the scaling: shares move by less than 0.001 after it
STEEPEST = 4.0  # t, at the most
TINY = 1e-6  # variance below which there is nothing to explain
LEAST = 2.0  # attention that a pair of words must have got to be shown


@dataclass(frozen=True)
class Story:
    """A story's token ids, the first token among them, and each one's part of speech."""

    ids: list
    parts: list | None  # of speech.PARTS; None without a tagger


def bucket(distance):
    """The number that distances share which are not told apart, of an int64 tensor of them."""
    octave = torch.log2(distance.clamp(min=EXACT) / EXACT)
    return torch.minimum(distance, torch.tensor(EXACT)) + (octave * PER_OCTAVE).long()


class Pairs:
    """What may explain a story's attention, for each pair of query i and key j, (T - 1, T - 1)."""

    def __init__(self, story, scores=None, window=0, device="cpu"):
        """scores: the words' own, (H, T - 1, T - 1). window: how far back a query sees; 0: all."""
        ids = torch.tensor(story.ids[1:], device=device)  # without the first token
        n = len(ids)
        place = torch.arange(n, device=device)
        distance = place[:, None] - place  # (n, n), query before key
        self.visible = distance >= 0
        if window:
            self.visible &= distance < window
        self.distance = bucket(distance.clamp(min=0))
        same = (ids[:, None] == ids) & (distance > 0)
        before = torch.tensor(story.ids[:-1], device=device)  # the token before each key
        follows = (ids[:, None] == before) & (distance > 0)
        follows[:, 0] &= ids == before[0]
        self.same, self.follows = same & self.visible, follows & self.visible
        self.repetition = self.same.long() + 2 * self.follows.long()  # 0 to 3
        self.ids, self.parts, self.scores = ids, None, scores
        if story.parts is not None:
            self.parts = torch.tensor([PARTS.index(x) for x in story.parts[1:]], device=device)

    def thinned(self):
        """The same for one query in EVERY, for Model.fit alone."""
        thin = copy.copy(self)
        for name in ("visible", "distance", "repetition"):
            setattr(thin, name, getattr(self, name)[::EVERY])
        thin.scores = self.scores[:, ::EVERY]
        return thin


class Model:
    """What one of MODELS knows of every head of a layer: factors, 1 at first, and t, 0."""

    def __init__(self, knows, heads, device, begin=None):
        """knows: a name in MODELS. begin: a Model that knows less, from which to go on."""
        self.factors = {"distance": torch.ones(heads, BUCKETS, device=device)}
        if knows != "distance":
            self.factors["repetition"] = torch.ones(heads, 4, device=device)
        self.factors |= begin.factors if begin else {}
        self.words = torch.zeros(heads, device=device) if knows == "words" else None  # t

    def expect(self, pairs, mass):
        """P of a story, (H, n, n). mass: what each query gives to these keys, (H, n)."""
        odds = self.factors["distance"][:, pairs.distance] * pairs.visible
        if "repetition" in self.factors:
            odds = odds * self.factors["repetition"][:, pairs.repetition]
        if self.words is not None:
            score = self.words[:, None, None] * pairs.scores
            score = score.masked_fill(~pairs.visible, float("-inf"))
            odds = odds * (score - score.amax(-1, keepdim=True)).exp()
        return odds * (mass / odds.sum(-1).clamp(min=1e-30))[..., None]

    def totals(self, name, attention, pairs):
        """A factor's attention: that of all pairs which share one of its values, (H, values)."""
        attention, which = attention.flatten(1), getattr(pairs, name).flatten()
        return attention.new_zeros(self.factors[name].shape).index_add_(1, which, attention)

    def fit(self, maps, pairs):
        """Fit all of it to the maps of some stories, (H, n, n) each, and their Pairs."""
        masses = [attention.sum(-1) for attention in maps]
        seen = {
            name: sum(self.totals(name, *both) for both in zip(maps, pairs, strict=True))
            for name in self.factors
        }
        for _ in range(ROUNDS):
            for name, factor in self.factors.items():
                expected = sum(
                    self.totals(name, self.expect(one, mass), one)
                    for one, mass in zip(pairs, masses, strict=True)
                )
                # Of a factor that is far from 1, the prior is that far away, too.
                self.factors[name] = (seen[name] + PRIOR) / (expected / factor + PRIOR)
            if self.words is not None:
                self.words = self._newton(maps, pairs, masses)
        return self

    def _newton(self, maps, pairs, masses):
        """t after a step towards the likeliest: where the scores seen are those expected."""
        slope, curve = 0, 0
        for attention, one, mass in zip(maps, pairs, masses, strict=True):
            expected = self.expect(one, mass)
            mean = (expected * one.scores).sum(-1) / mass.clamp(min=1e-30)  # (H, n)
            slope = slope + ((attention - expected) * one.scores).sum((-2, -1))
            curve = curve + (expected * (one.scores - mean[..., None]) ** 2).sum((-2, -1))
        return (self.words + slope / (curve + PRIOR)).clamp(0, STEEPEST)


def classify(maps, scores, stories, window=0, seed=0):
    """
    What each head of a layer looks at: a list of dicts of numbers and intervals, over the stories.

    maps, scores: of each Story (H, T, T) float, from inside.attention_maps and word_scores. Every
    second story tests the models fitted to the others; raises ValueError for fewer than two.
    """
    if len(stories) < 2:
        raise ValueError("heads are fitted to one half of the stories and tested on the other")
    device, heads = maps[0].device, len(maps[0])
    both = zip(stories, scores, strict=True)
    pairs = [Pairs(story, score[:, 1:, 1:], window, device) for story, score in both]
    text = [attention[:, 1:, 1:] for attention in maps]
    tagged = stories[0].parts is not None
    model, models = None, {}
    fitted = [x[:, ::EVERY] for x in text[::2]], [one.thinned() for one in pairs[::2]]
    for knows in MODELS:
        model = models[knows] = Model(knows, heads, device, model).fit(*fitted)
    explained = shares(models, text[1::2], pairs[1::2], seed)
    seen = looks(models["distance"], maps, text, pairs, seed)
    words = favourites(models["repetition"], text, pairs, tagged)
    rows = [explained[h] | seen[h] | words[h] for h in range(heads)]
    return [{"kind": kind_of(row)} | row for row in rows]


def shares(models, text, pairs, seed):
    """The share of each head's variance that each model explains beyond the one before it."""
    left = []  # a story's sums of squares: of nothing known, then of each model; (models + 1, H)
    for attention, one in zip(text, pairs, strict=True):
        mass = attention.sum(-1)
        even = one.visible * (mass / one.visible.sum(-1))[..., None]
        guesses = [even, *(model.expect(one, mass) for model in models.values())]
        left.append(torch.stack([((attention - p) ** 2).sum((-2, -1)) for p in guesses]))
    left = torch.stack(left).double().cpu().numpy()  # (stories, models + 1, H)
    left[:, :, left[:, 0].sum(0) < TINY] = 0  # an even head's: rounding alone
    gains = -np.diff(left, axis=1)
    return [
        {
            name: intervals.ratio(gains[:, i, h], left[:, 0, h], seed)
            for i, name in enumerate(models)
        }
        for h in range(gains.shape[2])
    ]


def looks(model, maps, text, pairs, seed):
    """
    Plain means over the queries: attention on the first token, on itself, on the token before, on
    the same token earlier and on what followed it; and how many tokens a query looks at.

    Beside "duplicate" and "induction", of queries where there is such a token, stands what `model`,
    which knows distances alone, expects there. "profile" is the attention at each distance up to
    EXACT, "peak" where it is highest.
    """
    names = ["first", "self", "previous", "spread"]
    names += [f"{name}{by}" for name in REPEATS for by in ("", "_by_distance")]
    tops, bottoms = {name: [] for name in names}, {name: [] for name in names}
    profile, queries = 0, 0
    for whole, attention, one in zip(maps, text, pairs, strict=True):
        n = len(one.ids)
        logs = torch.where(whole > 0, whole, 1).log2()
        now = {
            "first": whole[:, 1:, 0].sum(-1),
            "self": attention.diagonal(0, 1, 2).sum(-1),
            "previous": attention.diagonal(-1, 1, 2).sum(-1),
            "spread": -(whole * logs)[:, 1:].sum((-2, -1)),
        }
        count = {"first": n, "self": n, "previous": n - 1, "spread": n}
        expected = model.expect(one, attention.sum(-1))
        for name, where in zip(REPEATS, (one.same, one.follows), strict=True):
            now[name] = (attention * where).sum((-2, -1))
            now[f"{name}_by_distance"] = (expected * where).sum((-2, -1))
            count[name] = count[f"{name}_by_distance"] = int(where.any(-1).sum())
        for name in names:
            tops[name].append(now[name].double().cpu().numpy())
            bottoms[name].append(count[name])
        near = range(min(EXACT, n))
        sums = torch.stack([attention.diagonal(-d, 1, 2).sum(-1) for d in near], 1)  # (H, near)
        profile = profile + np.pad(sums.double().cpu().numpy(), ((0, 0), (0, EXACT - len(near))))
        queries = queries + np.maximum(0, n - np.arange(EXACT))
    profile = profile / np.maximum(1, queries)
    rows = []
    for h in range(len(maps[0])):
        row = {name: intervals.ratio([x[h] for x in tops[name]], bottoms[name], seed)
               for name in names}  # fmt: skip
        row["peak"] = int(profile[h].argmax())
        row["profile"] = [round(float(x), 4) for x in profile[h]]
        rows.append(row)
    return rows


def favourites(model, text, pairs, tagged, most=8):
    """
    Which words a head attends to, and from which, beyond what `model` expects: those with the most
    attention above it, for each head {"keys": [(token, attention, times what was expected)],
    "links": [(query token, key token, ...)], "parts": [(query's part of speech, key's, ...)]}.
    """
    masses = [attention.sum(-1) for attention in text]
    expected = [model.expect(*both) for both in zip(pairs, masses, strict=True)]
    size = 1 + max(int(one.ids.max()) for one in pairs)
    # Pairs of tokens, numbered as they occur; those that are seen once tell little.
    links = [(one.ids[:, None] * size + one.ids)[one.visible] for one in pairs]
    known, number = torch.unique(torch.cat(links), return_inverse=True)
    sums = []
    for maps in (text, expected):
        flat = torch.cat([x[:, one.visible] for x, one in zip(maps, pairs, strict=True)], 1)
        sums.append(flat.new_zeros(len(flat), len(known)).index_add_(1, number, flat))
    queries, keys = known // size, known % size
    found = [{} for _ in sums[0]]
    by_key = [x.new_zeros(len(x), size).index_add_(1, keys, x) for x in sums]
    for h, row in enumerate(found):
        top = _above(by_key[0][h], by_key[1][h], most)
        row["keys"] = [(k, *figures) for k, *figures in top]
        top = _above(sums[0][h], sums[1][h], most)
        row["links"] = [(int(queries[i]), int(keys[i]), *figures) for i, *figures in top]
    if tagged:
        both = [
            sum(_by_part(x, one) for x, one in zip(maps, pairs, strict=True))
            for maps in (text, expected)
        ]
        for h, row in enumerate(found):
            top = _above(both[0][h].flatten(), both[1][h].flatten(), most)
            names = ((PARTS[i // len(PARTS)], PARTS[i % len(PARTS)], *rest) for i, *rest in top)
            row["parts"] = list(names)
    return found


def _by_part(attention, pairs):
    """(H, parts, parts): the attention from queries of each part of speech to keys of each."""
    which = torch.nn.functional.one_hot(pairs.parts, len(PARTS)).float()
    return which.T @ attention @ which


def _above(seen, expected, most):
    """[(number, attention seen, times what was expected)] of those furthest above it."""
    beyond = torch.where(seen >= LEAST, seen - expected, -1.0)
    best = beyond.argsort(descending=True)[:most].tolist()
    return [
        (i, round(float(seen[i]), 2), round(float(seen[i] / expected[i].clamp(min=1e-9)), 2))
        for i in best
        if beyond[i] > 0
    ]


def kind_of(row):
    """The name of what a head does, by the figures that `classify` has of it."""
    figures = (*MODELS, "first", "previous", *REPEATS, *(f"{x}_by_distance" for x in REPEATS))
    mean = {name: row[name]["mean"] if row[name] else 0.0 for name in figures}
    best = max(MODELS, key=mean.get)
    if mean["first"] >= RESTS:
        return "rests"
    if mean[best] < NAMED:
        return "mixed"
    if best == "distance":
        return "previous token" if row["peak"] == 1 and mean["previous"] >= 0.5 else "distance"
    if best == "words":
        return "semantic"
    return max(REPEATS, key=lambda name: mean[name] - mean[f"{name}_by_distance"])
