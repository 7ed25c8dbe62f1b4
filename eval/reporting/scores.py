"""
The scores of a grid of models, with resamples to take differences and slopes of.

    scores = Scores(study.grid)               # gather.Runs
    scores.of("plot")                         # (sizes, 1 + ROUNDS): the estimate, then resamples
    interval(scores.slopes("plot")["width"], n=8)

Scores are relative: 0 is chance, 1 is all right. A resample draws questions, the same for all
models, and adds what another seed of the training would change: a t-distributed error of the
spread between seeds, pooled over all sizes. The sizes themselves stay: an interval is about these.

Where a judge has graded every size, its grades stand in for grammar, consistency and plot,
relative as the paper's (published.py: 0 its 64-2, 1 GPT-4), and creativity has no other score.
"""

import numpy as np

from eval import published
from eval.bootstrap import resample_models

FEW = 4  # sizes below which no slope is fitted
CHANCE = 0.5
GRADES = ("grammar", "consistency", "plot", "creativity")  # what a judge says of a story


class Scores:
    """
    The relative scores of a grid. sizes: [Size]; kinds: {name: float64 (sizes, 1 + ROUNDS)}, the
    estimate first; counts: {name: how many questions}; judge: whose grades they are, "" nobody's;
    seeds: the fewest runs of a size.
    """

    def __init__(self, runs, seed=0):
        """runs: gather.Runs."""
        told = {run.out_dir: answers(run) for run in runs}
        self.sizes = list(dict.fromkeys(run.size for run in runs))
        graded = [run for run in runs if run.found.get("judge-paper") and run.found.get("graded")]
        self.judge = ""
        if graded and {run.size for run in graded} == set(self.sizes):
            self.judge = graded[0].found["judge-paper"]["judge"]["model"]
            for run in runs:
                plain = {kind: x for kind, x in told[run.out_dir].items() if kind not in GRADES}
                told[run.out_dir] = plain | grades(run)
        self.kinds, self.counts, rng = {}, {}, np.random.default_rng(seed)
        self.seeds = min((sum(run.size == size for run in runs) for size in self.sizes), default=0)
        for kind in sorted({kind for some in told.values() for kind in some}):
            columns = [
                [told[run.out_dir][kind] for run in runs
                 if run.size == size and kind in told[run.out_dir]] for size in self.sizes
            ]  # fmt: skip
            lengths = {len(one) for some in columns for one in some}
            if len(lengths) == 1 and all(columns):
                self.kinds[kind] = resample_models([np.array(some) for some in columns], rng)
                self.counts[kind] = lengths.pop()

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


def of_grid(study):
    """The Scores of a gather.Study's grid: of the runs that were asked."""
    return Scores([run for run in study.grid if run.found.get("skills")])


def answers(run):
    """{kind: float64 (questions,)} of eval.skills: 1 told, 0 not, relative to chance."""
    skills = run.found.get("skills")
    told = skills["told"] if skills else {}
    return {kind: (np.array(some) - CHANCE) / (1 - CHANCE) for kind, some in told.items()}


def grades(run):
    """
    {grade: float64 (beginnings,)} of a judge, relative: means over the completions of a beginning,
    nan where none could be read.
    """
    lines, found = run.found.get("graded") or (), {}
    prompts = sorted({line["number"][0] for line in lines})
    for grade in GRADES if lines else ():
        worst, best = published.WORST[grade][0], published.BEST[grade][0]
        said = {prompt: [] for prompt in prompts}
        for line in lines:
            if line["verdict"]:
                said[line["number"][0]].append((line["verdict"][grade] - worst) / (best - worst))
        found[grade] = np.array([np.mean(some) if some else np.nan for some in said.values()])
    return found
