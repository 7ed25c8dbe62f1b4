"""
The scores of a grid of models, with resamples to take differences and slopes of.

    scores = Scores(study.grid)               # gather.Runs
    scores.of("plot")                         # (sizes, 1 + ROUNDS): the estimate, then resamples
    interval(scores.slope("plot"), n=8)       # of any statistic of them

Scores are relative: 0 is chance, 1 is all right. A resample draws questions, the same for all
models, and of each size its seeds. Where a judge has graded every size, its grades stand in for
grammar, consistency and plot, relative as the paper's (published.py), and creativity has no other
score.
"""

import numpy as np

from eval import published

ROUNDS = 2000
FEW = 4  # sizes below which no slope is fitted
CHANCE = 0.5
GRADES = ("grammar", "consistency", "plot", "creativity")  # what a judge says of a story


def interval(drawn, n):
    """
    {"mean", "low", "high", "n"} of an array whose first is the estimate, the others resamples; None
    where there is no estimate.
    """
    if drawn is None:
        return None
    if not np.isfinite(drawn[0]):
        return None
    low, high = np.nanpercentile(drawn[1:], (2.5, 97.5))
    return {"mean": float(drawn[0]), "low": float(low), "high": float(high), "n": int(n)}


class Scores:
    """
    The relative scores of a grid. sizes: [Size]; kinds: {name: float64 (sizes, 1 + ROUNDS)}, the
    estimate first; judged: whether they are a judge's.
    """

    def __init__(self, runs, seed=0):
        """runs: gather.Runs, those of a size one after the other."""
        told = {run.out_dir: answers(run) for run in runs}
        self.judged = bool(runs) and all(run.found.get("graded") for run in runs if run.seed == 1)
        self.judge = runs[0].found["judge-paper"]["judge"]["model"] if self.judged else ""
        if self.judged:  # of each size the first seed
            for run in runs:
                plain = {kind: x for kind, x in told[run.out_dir].items() if kind not in GRADES}
                told[run.out_dir] = plain | grades(run)
        names = {kind for some in told.values() for kind in some}
        self.sizes = list(dict.fromkeys(run.size for run in runs))
        self.kinds, rng = {}, np.random.default_rng(seed)
        for kind in sorted(names):
            columns = [
                [told[run.out_dir][kind] for run in runs
                 if run.size == size and kind in told[run.out_dir]] for size in self.sizes
            ]  # fmt: skip
            lengths = {len(one) for some in columns for one in some}
            if len(lengths) == 1 and all(columns):
                self.kinds[kind] = resampled([np.array(some) for some in columns], rng)

    def of(self, kind):
        """(sizes, 1 + ROUNDS) of a kind; None where a size has none."""
        return self.kinds.get(kind)

    def slopes(self, kind):
        """
        {"width", "layers": (1 + ROUNDS,)}: how much a kind gains by twice the width and by twice
        the layers, each as the other stays; None of too few sizes, or where they go together.
        """
        scores = self.of(kind)
        x = np.array([[1, np.log2(s.width), np.log2(s.layers)] for s in self.sizes])
        if scores is None or len(x) < FEW or np.linalg.matrix_rank(x) < 3:
            return None
        _, width, layers = np.linalg.lstsq(x, scores, rcond=None)[0]
        return {"width": width, "layers": layers}

    def slope(self, kind, chosen):
        """
        (1 + ROUNDS,): how much a kind gains by twice the parameters, among the sizes with these
        numbers, int (n,); None of fewer than two.
        """
        if self.of(kind) is None or len(chosen) < 2:
            return None
        x = np.log2([self.sizes[i].parameters for i in chosen])
        x = x - x.mean()
        return x @ self.of(kind)[chosen] / (x @ x)


def answers(run):
    """{kind: float64 (questions,)} of eval.skills: 1 told, 0 not, relative to chance."""
    skills = run.found.get("skills")
    told = skills["told"] if skills else {}
    return {kind: (np.array(some) - CHANCE) / (1 - CHANCE) for kind, some in told.items()}


def grades(run):
    """{grade: float64 (stories,)} of a judge, relative; nan where it could not be read."""
    lines, found = run.found.get("graded") or (), {}
    for grade in GRADES if lines else ():
        worst, best = published.WORST[grade][0], published.BEST[grade][0]
        said = [(line["verdict"] or {}).get(grade, np.nan) for line in lines]
        found[grade] = (np.array(said) - worst) / (best - worst)
    return found


def resampled(columns, rng):
    """
    Means of each column, then those of ROUNDS resamples of the questions, the same for all columns,
    and of each column's seeds: (columns, 1 + ROUNDS). columns: [(seeds, questions)], nan left out.
    """
    n = columns[0].shape[1]
    times = rng.multinomial(n, np.full(n, 1 / n), ROUNDS).T  # (questions, ROUNDS)
    rows = []
    for column in columns:
        there = ~np.isnan(column)
        tops, bottoms = np.where(there, column, 0) @ times, there @ times  # (seeds, ROUNDS)
        chosen = rng.multinomial(len(column), np.full(len(column), 1 / len(column)), ROUNDS).T
        means = (tops * chosen).sum(0) / np.maximum(1, (bottoms * chosen).sum(0))
        rows.append(np.concatenate([[np.nanmean(column)], means]))
    return np.array(rows)


def spread_of(row):
    """The standard error that a 95 % interval stands for."""
    return (row["high"] - row["low"]) / (2 * 1.96)


def apart(one, other):
    """The interval of one interval's mean less another's, where nothing is common to both."""
    middle, half = one["mean"] - other["mean"], 1.96 * np.hypot(spread_of(one), spread_of(other))
    return {"mean": middle, "low": middle - half, "high": middle + half, "n": one["n"]}
