"""What an attention head looks at: how much of its attention distance, repetition and content
explain.

    rows = classify(patterns, scores, stories)   # of each story (H, T, T), twice; a dict per head

Three predictors of the attention know more and more. Query i attends to the tokens j before it in
proportion to

    distance       u(i - j)
    repetition     u(i - j) r(i, j)                r: whether j is the same token, or follows one
    content        u(i - j) r(i, j) exp(t s(i, j))

where s is the head's own score for the two tokens without their context: for the mean residual
stream of each, over other stories (hooks.mean_residuals). The predictors are fitted to half of the
stories: the factors u and r are multiplied in turn by (attention observed) / (attention predicted)
until they converge (iterative scaling, Darroch & Ratcliff 1972), with Newton steps of t in between.
A head that scores by distance and content alone is of exactly this form, whatever its softmax makes
of it. On the other half, the fraction of variance that a predictor P of the attention A explains is

    1 - sum (A_ij - P_ij)^2 / sum (A_ij - m_i / n_i)^2

over the n_i visible keys j <= i of each query, whose mean attention is m_i / n_i. The first token
is left out, and each row of P sums to m_i, what A gives to the other tokens: a head with nothing to
do attends to the first token (an attention sink), and how much it does is a measure of its own.
What a predictor explains beyond the one before it is due to what it knows more.
"""

import itertools

import numpy as np
import torch

from eval import bootstrap
from nanostories.text.pos_tags import POS

PREDICTORS = ("distance", "repetition", "content")
REPEATS = ("duplicate", "induction")
EXACT, PER_OCTAVE = 128, 4  # distances with buckets of their own; buckets of each doubling beyond
BUCKETS = EXACT + 16 * PER_OCTAVE  # far beyond any story
MIN_PAIRS = 200  # buckets with fewer pairs, or less than half of the most, share the last's factor
QUERY_STEP = 4  # the fit reads every fourth query: a head has about 150 numbers to fit
ROUNDS = 15  # of the fit: explained fractions change by less than 0.001 after it
MAX_STEP, MAX_WEIGHT = 0.5, 8.0  # of t in a round, and in all: Newton overshoots for rare tokens
SMOOTHING = 1e-3  # attention added to the observed and the predicted: neither is 0
# How a head gets its name, see `head_kind`.
MIN_VARIANCE = 0.005  # of a query's row, as a sum of squares; below it attention is uniform
MIN_EXPLAINED = 0.25  # fraction of the variance that a named cause explains
MIN_SINK = 0.9  # attention of a sink on the first token
MIN_ATTENTION = 2.0  # in all, of the tokens and pairs that are listed
TOP = 8  # of them at most


def distance_bucket(distance):
    """The buckets of an int64 tensor of distances."""
    octave = torch.log2(distance.clamp(min=EXACT) / EXACT)
    return distance.clamp(max=EXACT) + (octave * PER_OCTAVE).long()


class PairFeatures:
    """A TaggedStory's attention, for each pair of query and key, (n, n), without its first token,
    and what may explain it.

    whole, scores: its attention and the scores of its contents, (H, T, T). window: how many keys a
    query sees; 0: all. query_step: 4 takes every fourth query alone."""

    def __init__(self, story, whole, scores, window=0, query_step=1):
        device, queries = whole.device, slice(None, None, query_step)
        self.whole, self.attention = whole, whole[:, 1:, 1:][:, queries]
        self.mass = self.attention.sum(-1)  # what each query gives to these keys, (H, n)
        self.scores = scores[:, 1:, 1:][:, queries]
        ids = torch.tensor(story.ids, device=device)
        self.ids, previous = ids[1:], ids[:-1]
        position = torch.arange(len(self.ids), device=device)
        self.distance = position[queries, None] - position  # query minus key
        self.visible = self.distance >= 0
        if window:
            self.visible &= self.distance < window
        self.bucket = distance_bucket(self.distance.clamp(min=0))
        earlier, query_ids = self.visible & (self.distance > 0), self.ids[queries, None]
        self.duplicate = earlier & (query_ids == self.ids)  # the same token
        self.induction = earlier & (query_ids == previous)  # it follows the same token
        self.repetition = self.duplicate + 2 * self.induction  # 0 to 3
        self.pos = story.pos and torch.tensor([POS.index(x) for x in story.pos[1:]], device=device)


class AttentionPredictor:
    """The attention of a layer's heads as predicted from `knowledge`, one of PREDICTORS."""

    def __init__(self, knowledge, start=None):
        """start: a fitted predictor with less knowledge, from which to go on."""
        self.knowledge = knowledge
        self.factors = dict(start.factors) if start else {}  # u and r, by name, (H, values)
        self.last_bucket = start.last_bucket if start else BUCKETS - 1
        self.weight = None  # t, (H,)

    def predict(self, pairs):
        """P of a story, (H, n, n)."""
        odds = self.factors["bucket"][:, pairs.bucket.clamp(max=self.last_bucket)] * pairs.visible
        if "repetition" in self.factors:
            odds = odds * self.factors["repetition"][:, pairs.repetition]
        if self.weight is not None:
            score = self.weight[:, None, None] * pairs.scores
            score = score.masked_fill(~pairs.visible, float("-inf"))
            odds = odds * (score - score.amax(-1, keepdim=True)).exp()
        return odds * (pairs.mass / odds.sum(-1).clamp(min=1e-30))[..., None]

    def fit(self, pairs):
        """Fit to the PairFeatures of some stories; returns itself."""
        patterns = [one.attention for one in pairs]
        ones = patterns[0].new_ones(len(patterns[0]), 4)  # (H, 4)
        if not self.factors:
            self._start(patterns, pairs)
        elif "repetition" not in self.factors:
            self.factors["repetition"] = ones
        if self.knowledge == "content":
            self.weight = torch.zeros_like(ones[:, 0])
        observed = {name: self._sum_by_value(name, patterns, pairs) for name in self.factors}
        for _ in range(ROUNDS):
            for name in self.factors:
                predicted = self._sum_by_value(name, map(self.predict, pairs), pairs)
                ratio = observed[name] + SMOOTHING
                self.factors[name] = self.factors[name] * ratio / (predicted + SMOOTHING)
            if self.weight is not None:
                self.weight = self._newton_step(pairs)
        return self

    def _start(self, patterns, pairs):
        """Start u as the mean attention of each bucket; rare ones join the last before them."""
        visible = [one.visible[None].float() for one in pairs]
        count = self._sum_by_value("bucket", visible, pairs)[0]
        self.last_bucket = int((count >= min(MIN_PAIRS, count.max() / 2)).nonzero()[-1])
        count = self._sum_by_value("bucket", visible, pairs)[0]
        observed = self._sum_by_value("bucket", patterns, pairs)
        self.factors["bucket"] = (observed + SMOOTHING) / (count + 1)

    def _sum_by_value(self, name, patterns, pairs):
        """The attention of all pairs with each value of a factor, (H, values)."""
        sums = 0
        for pattern, one in zip(patterns, pairs, strict=True):
            values = getattr(one, name).clamp(max=self.last_bucket).flatten()
            zeros = pattern.new_zeros(len(pattern), 4 if name == "repetition" else BUCKETS)
            sums = sums + zeros.index_add_(1, values, pattern.flatten(1))
        return sums

    def _newton_step(self, pairs):
        """t one step nearer to its maximum likelihood: scores observed equal those predicted."""
        slope = curvature = 0
        for one in pairs:
            predicted, mass = self.predict(one), one.mass.clamp(min=1e-30)[..., None]
            mean = (predicted * one.scores).sum(-1, keepdim=True) / mass
            slope = slope + ((one.attention - predicted) * one.scores).sum((-2, -1))
            curvature = curvature + (predicted * (one.scores - mean) ** 2).sum((-2, -1))
        step = slope / (curvature + SMOOTHING)
        return (self.weight + step.clamp(-MAX_STEP, MAX_STEP)).clamp(0, MAX_WEIGHT)


def classify(patterns, scores, stories, window=0, seed=0):
    """What each head of a layer looks at: a dict of numbers and intervals over the stories. The
    functions below return columns, {name: [value of each head]}.

    patterns, scores: of each TaggedStory (H, T, T) float, from hooks.attention_patterns and
    content_scores. Every second story tests the predictors fitted to the others."""
    if len(stories) < 2:
        raise ValueError("heads are fitted to one half of the stories and tested on the other")
    inputs = list(zip(stories, patterns, scores, strict=True))
    pairs = [PairFeatures(*one, window) for one in inputs]
    fitted = [PairFeatures(*one, window, QUERY_STEP) for one in inputs[::2]]
    predictor, predictors = None, {}
    for name in PREDICTORS:
        predictor = predictors[name] = AttentionPredictor(name, predictor).fit(fitted)
    columns = explained_variance(predictors, pairs[1::2], seed)
    columns |= attention_statistics(predictors["distance"], pairs, seed)
    columns |= top_tokens(predictors["repetition"], pairs)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return [{"kind": head_kind(row)} | row for row in rows]


def _floats(tensor):
    """A tensor as a float64 array; it moves to the CPU first, for MPS has no float64."""
    return tensor.cpu().double().numpy()


def explained_variance(predictors, pairs, seed):
    """The fraction of each head's variance that each predictor explains beyond the one before it,
    and as "row_variance" that variance, the mean of a query's sum of squares."""
    errors = []  # a story's sums of squares: of the mean, then each predictor; (predictors + 1, H)
    for one in pairs:
        uniform = one.visible * (one.mass / one.visible.sum(-1))[..., None]
        predicted = [uniform, *(predictor.predict(one) for predictor in predictors.values())]
        errors.append(torch.stack([((one.attention - p) ** 2).sum((-2, -1)) for p in predicted]))
    heads, queries = _floats(torch.stack(errors)).T, [len(one.ids) for one in pairs]
    columns = {"row_variance": [bootstrap.ratio(x[0], queries, seed) for x in heads]}
    for i, name in enumerate(predictors):
        columns[name] = [bootstrap.ratio(x[i] - x[i + 1], x[0], seed) for x in heads]
    return columns


def attention_statistics(predictor, pairs, seed):
    """Means over the queries: attention to the first token, the query's own, the previous one, an
    earlier duplicate and what followed one (induction); "entropy", a row's, in bits.

    Beside "duplicate" and "induction", over queries that have such a token, stands as "_expected"
    what `predictor`, of distance, predicts there. "attention_by_distance" is the mean attention at
    each distance up to EXACT over queries with such a token, "peak_distance" where it is highest,
    and "median_distance" the distance within which half of the attention on the text lies."""
    stories, longest = [], max(len(one.ids) for one in pairs)
    by_distance, queries = np.zeros((len(pairs[0].whole), longest)), np.zeros(longest)
    for one in pairs:
        n, whole, pattern = len(one.ids), one.whole, one.attention
        logs = torch.where(whole > 0, whole, 1).log2()
        sums = {  # (sum over the queries, (H,); number of queries)
            "first_token": (whole[:, 1:, 0].sum(-1), n),
            "own_token": (pattern.diagonal(0, 1, 2).sum(-1), n),
            "previous_token": (pattern.diagonal(-1, 1, 2).sum(-1), n - 1),
            "entropy": (-(whole * logs)[:, 1:].sum((-2, -1)), n),
        }
        predicted = predictor.predict(one)
        for name in REPEATS:
            mask = getattr(one, name)
            count = int(mask.any(-1).sum())
            sums[name] = (pattern * mask).sum((-2, -1)), count
            sums[f"{name}_expected"] = (predicted * mask).sum((-2, -1)), count
        stories.append({name: (_floats(x), count) for name, (x, count) in sums.items()})
        zeros, distances = pattern.new_zeros(len(pattern), n), one.distance.clamp(min=0).flatten()
        by_distance[:, :n] += _floats(zeros.index_add_(1, distances, pattern.flatten(1)))
        queries[:n] += n - np.arange(n)
    columns = {}
    for name in stories[0]:
        sums, counts = zip(*(story[name] for story in stories), strict=True)
        columns[name] = [bootstrap.ratio(head, counts, seed) for head in np.transpose(sums)]
    profile = (by_distance / queries)[:, :EXACT]
    half = np.cumsum(by_distance, 1) >= by_distance.sum(1, keepdims=True) / 2
    return columns | {
        "peak_distance": profile.argmax(1).tolist(), "median_distance": half.argmax(1).tolist(),
        "attention_by_distance": [[round(x, 4) for x in row] for row in profile.tolist()],
    }  # fmt: skip


def top_tokens(predictor, pairs):
    """The tokens that a head attends to most above what `predictor` predicts, and from which:
    "top_keys" [(token, attention, times the predicted)], "top_pairs" [(query's token, key's, ...)]
    and, where parts of speech are known, "top_pos" [(query's part of speech, key's, ...)]."""
    vocab_size = 1 + max(int(one.ids.max()) for one in pairs)
    # All pairs of tokens that occur, numbered; and the attention of each, observed and predicted.
    codes = [(one.ids[:, None] * vocab_size + one.ids)[one.visible] for one in pairs]
    known, number = torch.unique(torch.cat(codes), return_inverse=True)
    queries, keys = known // vocab_size, known % vocab_size
    by_pair, by_key, by_pos = [], [], []
    for patterns in ([one.attention for one in pairs], [predictor.predict(one) for one in pairs]):
        flat = torch.cat([x[:, one.visible] for x, one in zip(patterns, pairs, strict=True)], 1)
        by_pair.append(flat.new_zeros(len(flat), len(known)).index_add_(1, number, flat))
        by_key.append(flat.new_zeros(len(flat), vocab_size).index_add_(1, keys, by_pair[-1]))
        if pairs[0].pos is not None:
            by_pos.append(sum(map(_by_pos, patterns, pairs)).flatten(1))
    top = _most_above(*by_pair)
    columns = {
        "top_keys": _most_above(*by_key),
        "top_pairs": [[(int(queries[i]), int(keys[i]), *x) for i, *x in row] for row in top],
    }
    if by_pos:
        names, top = list(itertools.product(POS, POS)), _most_above(*by_pos)
        columns["top_pos"] = [[(*names[i], *x) for i, *x in row] for row in top]
    return columns


def _by_pos(pattern, pairs):
    """The attention from queries to keys of each part of speech: (H, parts, parts)."""
    one_hot = torch.nn.functional.one_hot(pairs.pos, len(POS)).float()  # (n, parts)
    return one_hot.T @ pattern @ one_hot


def _most_above(observed, predicted):
    """Of each head [(index, attention observed, times the predicted)], furthest above it first."""
    excess = torch.where(observed >= MIN_ATTENTION, observed - predicted, -1.0)
    times, heads = observed / predicted.clamp(min=1e-9), []
    for h, row in enumerate(excess):
        top = [i for i in row.argsort(descending=True)[:TOP].tolist() if row[i] > 0]
        heads.append([(i, *(round(float(x[h, i]), 2) for x in (observed, times))) for i in top])
    return heads


def head_kind(row):
    """The name of what a head does, by its measures in `classify`."""
    names = (*PREDICTORS, *REPEATS, "first_token", "previous_token", "row_variance")
    names += tuple(f"{name}_expected" for name in REPEATS)
    mean = {name: row[name]["mean"] if row[name] else 0.0 for name in names}
    best = max(PREDICTORS, key=mean.get)
    if mean["first_token"] >= MIN_SINK:
        return "attention sink"
    if mean["row_variance"] < MIN_VARIANCE:
        return "uniform"
    if mean[best] < MIN_EXPLAINED:
        return "mixed"
    if best == "distance":
        previous = row["peak_distance"] == 1 and mean["previous_token"] >= 0.5
        return "previous token" if previous else "distance"
    if best == "content":
        return "semantic"
    excess = {name: mean[name] - mean[f"{name}_expected"] for name in REPEATS}
    repeat = max(excess, key=excess.get)
    return repeat if excess[repeat] > 0 else "mixed"  # a head that avoids repetition is neither
