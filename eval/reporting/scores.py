"""The scores of a grid of models, resampled, to take differences and slopes of.

    scores = Scores(study.grid)               # results.Runs
    scores.draws["plot"]                      # (sizes, 1 + ROUNDS): the estimate, then resamples
    interval(slopes(scores.by_size("plot"))["width"], n=8)

A score of 0 is chance, 1 is every question right. A resample draws questions, the same
for all models, and adds what another training seed would change (bootstrap.resample_models). The
sizes stay: an interval is about these models.

Where a judge has graded every size, its grades replace the scores of grammar, consistency and plot,
and add creativity, on the paper's scale (published.py: 0 is its 64-2, 1 is GPT-4).
"""

import numpy as np

from eval import published
from eval.bootstrap import resample_models

MIN_SIZES = 4  # below which no slope is fitted
CHANCE = 0.5
ONE_SEED = "one seed per model: the interval leaves out what another seed would change"
UNITS = {False: "score: 0 chance, 1 all right", True: "grade: 0 the paper's 64-2, 1 GPT-4"}
GRADES = ("grammar", "consistency", "plot", "creativity")  # that a judge gives


class Scores:
    """The scores of those runs of a grid that eval.skills has evaluated.

    of: a function of a Run, what its scores stand for; runs of one count as seeds of each other.
    vary: as of resample_models. sizes: [Size], or what `of` returns; draws: {kind: float64 (sizes,
    1 + ROUNDS)}, the estimate first; judge: the model that graded, "" for none; unit: what 0 and 1
    stand for."""

    def __init__(self, runs, of=lambda run: run.size, vary=("questions", "seeds")):
        runs = [run for run in runs if run.results.get("skills")]
        answers = [(of(run), answers_of(run)) for run in runs]
        self.judge, self.draws, self.vary, self.fewest = "", {}, vary, {}  # fewest: runs of a size
        graded = [r for r in runs if r.results.get("judge-paper") and r.results.get("grades")]
        if graded and {of(run) for run in graded} == {of(run) for run in runs}:
            self.judge = graded[0].results["judge-paper"]["judge"]["model"]
            for run, (_, scores) in zip(runs, answers, strict=True):
                for grade in GRADES:
                    scores.pop(grade, None)
                scores |= relative_grades(run)
        self.unit, rng = UNITS[bool(self.judge)], np.random.default_rng(0)
        self.sizes = list(dict.fromkeys(map(of, runs)))
        for kind in sorted({kind for _, scores in answers for kind in scores}):
            by_size = [[scores[kind] for name, scores in answers if name == size and kind in scores]
                       for size in self.sizes]  # fmt: skip
            if len({len(row) for rows in by_size for row in rows}) == 1 and all(by_size):
                groups = [np.array(rows) for rows in by_size]
                self.draws[kind] = resample_models(groups, rng, vary)
                self.fewest[kind] = min(map(len, groups))

    def seed_note(self, *kinds):
        """ONE_SEED where a size has one run with a score of one of the kinds, else ""."""
        return ONE_SEED * any(self.fewest.get(kind) == 1 for kind in kinds)

    def by_size(self, kind):
        """{size: (1 + ROUNDS,)} of a kind, {} where a size has no score of it."""
        return dict(zip(self.sizes, self.draws[kind], strict=True)) if kind in self.draws else {}

    def slope(self, kind, chosen):
        """(1 + ROUNDS,): what a kind gains from twice the parameters, among the `chosen` sizes, int
        (n,). [nan] for fewer than two."""
        if kind not in self.draws or len(chosen) < 2:
            return np.array([np.nan])
        x = np.log2([self.sizes[i].parameters for i in chosen])
        x = x - x.mean()
        return x @ self.draws[kind][chosen] / (x @ x)


def slopes(draws):
    """{"width", "layers": (1 + ROUNDS,)}: what {size: (1 + ROUNDS,)} gain from twice the parameters
    of the blocks, if they make the model wider, by the root of 2, or deeper: there are
    12 * width**2 * layers. [nan] without draws, for too few sizes, or where both grow together."""
    _, width, layers = fit([(2 * np.log2(one.width), np.log2(one.layers)) for one in draws], draws)
    return {"width": width, "layers": layers}


def deeper(draws, parameters):
    """(1 + ROUNDS,): what {size: (1 + ROUNDS,)} gain from twice the layers at as many parameters,
    {size: number}, so in layers less in width, whichever parameters are counted. [nan] as of
    `slopes`."""
    return fit([(np.log2(parameters[size]), np.log2(size.layers)) for size in draws], draws)[2]


def fit(rows, draws):
    """The coefficients of 1 and of the two columns of rows, in a linear fit of {size: (1 +
    ROUNDS,)}, a row each: (3, 1 + ROUNDS), or [nan] each where `slopes` says so."""
    x = np.array([(1, *row) for row in rows])
    if len(x) < MIN_SIZES or np.linalg.matrix_rank(x) < 3:
        return np.full((3, 1), np.nan)
    return np.linalg.lstsq(x, np.array([*draws.values()]), rcond=None)[0]


def answers_of(run):
    """{kind: float64 (questions,)} of eval.skills: 1 is right, 0 is chance."""
    correct = (run.results.get("skills") or {"correct": {}})["correct"]
    return {kind: (np.array(x) - CHANCE) / (1 - CHANCE) for kind, x in correct.items()}


def relative_grades(run):
    """{grade: float64 (beginnings,)} of a judge, relative: means over the completions of a
    beginning, nan where no reply could be read."""
    verdicts, relative = {}, {}  # verdicts: {beginning: those that could be read}
    for line in run.results.get("grades") or ():
        verdicts.setdefault(line["number"][0], []).extend(filter(None, [line["verdict"]]))
    for grade in GRADES if verdicts else ():
        worst, best = published.WORST[grade][0], published.BEST[grade][0]
        rows = ([(verdict[grade] - worst) / (best - worst) for verdict in verdicts[beginning]]
                for beginning in sorted(verdicts))  # fmt: skip
        relative[grade] = np.array([np.mean(row) if row else np.nan for row in rows])
    return relative
