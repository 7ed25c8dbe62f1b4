"""
What a head looks at: how much of its attention follows from distance, repetition or words alone.

    rows = classify(maps, scores, stories)   # of each story (H, T, T), twice; a dict for each head

The question is put as guesses that know too little. Let query i give its attention to the tokens j
before it in proportion to

    distance       u(i - j)
    repetition     u(i - j) r(i, j)                 r: whether j is the same token, or follows one
    words          u(i - j) r(i, j) exp(t s(i, j))

where s is the head's own score for the two words by themselves, whatever stands around them and
wherever they stand: for two vectors each of which is the average of its token's, over other stories
(inside.average_words). u, r and t are fitted to half of the stories: the factors u and r are each
multiplied by (attention seen) / (attention expected), in turn, until they stand (iterative scaling,
Darroch & Ratcliff 1972), t takes Newton steps in between. A head that scores by distance and words
is of exactly this form, whatever the softmax makes of it. On the other half counts how much of the
variance of the attention inside each query's row a guess explains:

    1 - sum (A_ij - P_ij)^2 / sum (A_ij - m_i / n_i)^2

over the causal region and no further: the pairs j <= i, n_i of them. The first token is left out,
and P_i sums to m_i, what A_i gives to the others: heads with nothing to say rest on the first
token, and how much they do so is a figure of its own. What a guess explains beyond the one before
it is due to what it knows besides.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch

from eval import bootstrap
from nanostories.text.pos_tags import POS

GUESSES = ("distance", "repetition", "words")
REPEATS = ("duplicate", "induction")
EXACT, PER_OCTAVE = 128, 4  # distances told apart one by one; then so many steps to each doubling
BUCKETS = EXACT + 16 * PER_OCTAVE  # far beyond any story
SPARSE = 200  # distances of fewer pairs than this, or than half of the most, are one with the last
EVERY = 4  # of the stories fitted to, one query in so many: a head has about 150 numbers to fit
ROUNDS = 15  # of the fit: shares move by less than 0.001 after it
STEP = 0.5  # of t in a round, at the most: Newton's overshoots where words are rare
STEEPEST = 8.0  # t, at the most
FLOOR = 1e-3  # attention added to what was seen and what was expected: neither is 0
EVEN = 0.005  # variance of a query's row, as a sum of squares, below which there is nothing to name
NAMED = 0.25  # a share of the variance from which on a head is named after what explains it
RESTS = 0.9  # and the share of attention on the first token from which on it is said to rest
LEAST = 2.0  # attention that a pair of words must have got to be shown


@dataclass(frozen=True)
class Story:
    """
    A story as it is read: token ids, each one's part of speech, and those of what follows the last.
    """

    ids: list
    parts: list | None = None  # of speech.POS; None without a tagger
    last: int = 0  # <|endoftext|> or, where the story was cut, the next token
    last_part: str = "end"


def bucket(distance):
    """The number that distances share which are not told apart, of an int64 tensor of them."""
    octave = torch.log2(distance.clamp(min=EXACT) / EXACT)
    return distance.clamp(max=EXACT) + (octave * PER_OCTAVE).long()


class Pairs:
    """What may explain a story's attention, for each pair of query and key: (n, n), n = T - 1."""

    def __init__(self, story, scores=None, window=0, device="cpu"):
        """scores: the words' own, (H, n, n). window: how many tokens a query sees; 0: all."""
        ids = torch.tensor(story.ids, device=device)
        ids, before = ids[1:], ids[:-1]  # without the first token; the token before each
        n = len(ids)
        place = torch.arange(n, device=device)
        self.apart = place[:, None] - place  # (n, n), query before key
        self.visible = self.apart >= 0
        if window:
            self.visible &= self.apart < window
        self.distance = bucket(self.apart.clamp(min=0))
        earlier = self.visible & (self.apart > 0)
        self.same, self.follows = (earlier & (ids[:, None] == other) for other in (ids, before))
        self.repetition = self.same.long() + 2 * self.follows.long()  # 0 to 3
        self.ids, self.parts, self.scores = ids, None, scores
        if story.parts is not None:
            self.parts = torch.tensor([POS.index(x) for x in story.parts[1:]], device=device)

    def thinned(self):
        """The same for one query in EVERY, for Guess.fit alone."""
        thin = copy.copy(self)
        for name in ("visible", "distance", "repetition"):
            setattr(thin, name, getattr(self, name)[::EVERY])
        thin.scores = None if self.scores is None else self.scores[:, ::EVERY]
        return thin


# ----------------------------------------------------------------------------------------------
# what attention would be


class Guess:
    """What attention would be if every head of a layer knew one of GUESSES and no more."""

    def __init__(self, knows, begin=None):
        """knows: a name in GUESSES. begin: a fitted Guess that knows less, from which to go on."""
        self.knows = knows
        self.factors = dict(begin.factors) if begin else {}  # u and r, each (H, values)
        self.steep = None  # t, (H,)
        self.farthest = begin.farthest if begin else BUCKETS - 1

    def expect(self, pairs, mass):
        """P of a story, (H, n, n). mass: what each query gives to these keys, (H, n)."""
        odds = self.factors["distance"][:, pairs.distance.clamp(max=self.farthest)] * pairs.visible
        if "repetition" in self.factors:
            odds = odds * self.factors["repetition"][:, pairs.repetition]
        if self.steep is not None:
            score = self.steep[:, None, None] * pairs.scores
            score = score.masked_fill(~pairs.visible, float("-inf"))
            odds = odds * (score - score.amax(-1, keepdim=True)).exp()
        return odds * (mass / odds.sum(-1).clamp(min=1e-30))[..., None]

    def fit(self, maps, pairs):
        """Fit it to the maps of some stories, (H, n, n) each, and their Pairs; returns itself."""
        masses = [attention.sum(-1) for attention in maps]
        heads, device = len(maps[0]), maps[0].device
        if not self.factors:
            self._begin(maps, pairs)
        elif "repetition" not in self.factors:
            self.factors["repetition"] = torch.ones(heads, 4, device=device)
        if self.knows == "words":
            self.steep = torch.zeros(heads, device=device)
        seen = {name: self._total(name, maps, pairs) for name in self.factors}
        for _ in range(ROUNDS):
            for name in self.factors:
                both = zip(pairs, masses, strict=True)
                expected = self._total(name, (self.expect(*one) for one in both), pairs)
                self.factors[name] = self.factors[name] * (seen[name] + FLOOR) / (expected + FLOOR)
            if self.steep is not None:
                self.steep = self._newton(maps, pairs, masses)
        return self

    def _begin(self, maps, pairs):
        """u as the mean attention at each distance; rare ones are one with the last before them."""
        visible = [one.visible[None].float() for one in pairs]
        count = self._total("distance", visible, pairs)[0]
        self.farthest = int((count >= min(SPARSE, count.max() / 2)).nonzero()[-1])
        count = self._total("distance", visible, pairs)[0]
        seen = self._total("distance", maps, pairs)
        self.factors["distance"] = (seen + FLOOR) / (count + 1)

    def _total(self, name, maps, pairs):
        """The attention of all pairs that share one value of a factor, (H, values)."""
        total = 0
        for attention, one in zip(maps, pairs, strict=True):
            which = getattr(one, name).clamp(max=self.farthest).flatten()
            sums = attention.new_zeros(len(attention), 4 if name == "repetition" else BUCKETS)
            total = total + sums.index_add_(1, which, attention.flatten(1))
        return total

    def _newton(self, maps, pairs, masses):
        """t after a step towards the likeliest: where the scores seen are those expected."""
        slope, curve = 0, 0
        for attention, one, mass in zip(maps, pairs, masses, strict=True):
            expected = self.expect(one, mass)
            mean = (expected * one.scores).sum(-1) / mass.clamp(min=1e-30)  # (H, n)
            slope = slope + ((attention - expected) * one.scores).sum((-2, -1))
            curve = curve + (expected * (one.scores - mean[..., None]) ** 2).sum((-2, -1))
        step = slope / (curve + FLOOR)
        return (self.steep + step.clamp(-STEP, STEP)).clamp(0, STEEPEST)


# ----------------------------------------------------------------------------------------------
# what is measured


def classify(maps, scores, stories, window=0, seed=0):
    """
    What each head of a layer looks at: a list of dicts of numbers and intervals, over the stories.

    maps, scores: of each Story (H, T, T) float, from inside.attention_maps and word_scores. Every
    second story tests the guesses fitted to the others; raises ValueError for fewer than two.
    """
    if len(stories) < 2:
        raise ValueError("heads are fitted to one half of the stories and tested on the other")
    both = zip(stories, scores, strict=True)
    pairs = [Pairs(story, score[:, 1:, 1:], window, score.device) for story, score in both]
    text = [attention[:, 1:, 1:] for attention in maps]
    guess, guesses = None, {}
    fitted = [x[:, ::EVERY] for x in text[::2]], [one.thinned() for one in pairs[::2]]
    for knows in GUESSES:
        guess = guesses[knows] = Guess(knows, guess).fit(*fitted)
    explained = shares(guesses, text[1::2], pairs[1::2], seed)
    seen = looks(guesses["distance"], maps, text, pairs, seed)
    words = favourites(guesses["repetition"], text, pairs)
    rows = [explained[h] | seen[h] | words[h] for h in range(len(maps[0]))]
    return [{"kind": kind_of(row)} | row for row in rows]


def _floats(tensor):
    """A tensor as a float64 array: not before it is on the CPU, for MPS has no float64."""
    return tensor.cpu().double().numpy()


def shares(guesses, text, pairs, seed):
    """
    The share of each head's variance that each guess explains beyond the one before it, and under
    "uneven" that variance, a query's.
    """
    left = []  # a story's sums of squares: of nothing known, then of each guess; (guesses + 1, H)
    for attention, one in zip(text, pairs, strict=True):
        mass = attention.sum(-1)
        even = one.visible * (mass / one.visible.sum(-1))[..., None]
        guessed = [even, *(guess.expect(one, mass) for guess in guesses.values())]
        left.append(torch.stack([((attention - p) ** 2).sum((-2, -1)) for p in guessed]))
    left = _floats(torch.stack(left))  # (stories, guesses + 1, H)
    queries = np.array([len(one.ids) for one in pairs])
    rows = []
    for sums in np.moveaxis(left, 2, 0):  # a head's, (stories, guesses + 1)
        row = {"uneven": bootstrap.ratio(sums[:, 0], queries, seed)}
        for i, name in enumerate(guesses):
            row[name] = bootstrap.ratio(sums[:, i] - sums[:, i + 1], sums[:, 0], seed)
        rows.append(row)
    return rows


def looks(guess, maps, text, pairs, seed):
    """
    Plain means over the queries: attention on the first token, on itself, on the token before, on
    the same token earlier and on what followed it; "spread", the entropy of a row in bits.

    Beside "duplicate" and "induction", of queries where there is such a token, stands what `guess`,
    which knows distances alone, expects there. "profile" is the attention at each distance up to
    EXACT, where there is such a token; "peak" the distance where that is highest, and "median" the
    one up to which half of the attention on the text goes.
    """
    names = ["first", "self", "previous", "spread"]
    names += [f"{name}{by}" for name in REPEATS for by in ("", "_by_distance")]
    tops, bottoms = {name: [] for name in names}, {name: [] for name in names}
    longest = max(len(one.ids) for one in pairs)
    at, queries = np.zeros((len(maps[0]), longest)), np.zeros(longest)  # by distance
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
        expected = guess.expect(one, attention.sum(-1))
        for name, where in zip(REPEATS, (one.same, one.follows), strict=True):
            now[name] = (attention * where).sum((-2, -1))
            now[f"{name}_by_distance"] = (expected * where).sum((-2, -1))
            count[name] = count[f"{name}_by_distance"] = int(where.any(-1).sum())
        for name in names:
            tops[name].append(_floats(now[name]))
            bottoms[name].append(count[name])
        sums = attention.new_zeros(len(attention), n)
        sums.index_add_(1, one.apart.clamp(min=0).flatten(), attention.flatten(1))
        at[:, :n] += _floats(sums)
        queries[:n] += n - np.arange(n)
    profile = at / queries
    half = np.cumsum(at, 1) >= at.sum(1, keepdims=True) / 2
    rows = []
    for h in range(len(at)):
        row = {name: bootstrap.ratio([x[h] for x in tops[name]], bottoms[name], seed)
               for name in names}  # fmt: skip
        row |= {"peak": int(profile[h, :EXACT].argmax()), "median": int(half[h].argmax())}
        rows.append(row | {"profile": [round(float(x), 4) for x in profile[h, :EXACT]]})
    return rows


def favourites(guess, text, pairs, most=8):
    """
    Which words a head attends to, and from which, beyond what `guess` expects: those with the most
    attention above it, for each head {"keys": [(token, attention, times what was expected)],
    "links": [(query token, key token, ...)], "parts": [(query's part of speech, key's, ...)]}, the
    last where parts of speech are known.
    """
    expected = [guess.expect(one, x.sum(-1)) for x, one in zip(text, pairs, strict=True)]
    size = 1 + max(int(one.ids.max()) for one in pairs)
    # All pairs of tokens that occur, numbered; and the attention of each, seen and expected.
    links = [(one.ids[:, None] * size + one.ids)[one.visible] for one in pairs]
    known, number = torch.unique(torch.cat(links), return_inverse=True)
    queries, keys = known // size, known % size
    by_link, by_key, by_part = [], [], []
    for maps in (text, expected):
        flat = torch.cat([x[:, one.visible] for x, one in zip(maps, pairs, strict=True)], 1)
        by_link.append(flat.new_zeros(len(flat), len(known)).index_add_(1, number, flat))
        by_key.append(flat.new_zeros(len(flat), size).index_add_(1, keys, by_link[-1]))
        if pairs[0].parts is not None:
            by_part.append(sum(_by_part(x, one) for x, one in zip(maps, pairs, strict=True)))
    rows = []
    for h in range(len(text[0])):
        top = _above(by_link[0][h], by_link[1][h], most)
        row = {"keys": _above(by_key[0][h], by_key[1][h], most)}
        row["links"] = [(int(queries[i]), int(keys[i]), *figures) for i, *figures in top]
        if by_part:
            top = _above(by_part[0][h].flatten(), by_part[1][h].flatten(), most)
            row["parts"] = [(POS[i // len(POS)], POS[i % len(POS)], *x) for i, *x in top]
        rows.append(row)
    return rows


def _by_part(attention, pairs):
    """(H, parts, parts): the attention from queries of each part of speech to keys of each."""
    which = torch.nn.functional.one_hot(pairs.parts, len(POS)).float()  # (n, parts)
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
    names = (*GUESSES, "first", "previous", "uneven", *REPEATS)
    mean = {name: row[name]["mean"] if row[name] else 0.0 for name in names}
    best = max(GUESSES, key=mean.get)
    if mean["first"] >= RESTS:
        return "rests"
    if mean["uneven"] < EVEN:
        return "even"
    if mean[best] < NAMED:
        return "mixed"
    if best == "distance":
        return "previous token" if row["peak"] == 1 and mean["previous"] >= 0.5 else "distance"
    if best == "words":
        return "semantic"
    by_distance = {x: (row[f"{x}_by_distance"] or {"mean": 0.0})["mean"] for x in REPEATS}
    beyond = {x: mean[x] - by_distance[x] for x in REPEATS}
    repeat = max(beyond, key=beyond.get)
    return repeat if beyond[repeat] > 0 else "mixed"  # what avoids repetition is none of these
