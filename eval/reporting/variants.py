"""The report's sections about single changes: another architecture, or other stories, beside the
model that differs in nothing else; and how good the measures are that such differences are seen by.
Each function of a results.Study returns what the macro of its name in sections.html takes.
"""

import itertools
from operator import attrgetter

import numpy as np

from eval import bootstrap
from eval.reporting import charts
from eval.reporting.model_sections import SKILLS
from eval.reporting.scores import CHANCE, Scores, slopes
from eval.reporting.study_jobs import ARCHITECTURES, CORPORA, COUNTERPARTS

# {measure of eval.fluency: (what it is, 1: more is better, -1: less is, 0: as in real stories is)}
FLUENCY = {
    "relative": ("the referee's nats per byte less those of real stories", -1),
    "non_words": ("non-words, fraction", -1),
    "repeated": ("repeated 4-grams, fraction", 0),
    "new_names": ("names that nothing introduces, fraction", -1),
    "ended": ("stories that end, fraction", 1),
}
TEMPERATURE = "temperature 1.0"  # where a model writes as it has learned
size_of, kind_and_size = attrgetter("size"), attrgetter("kind", "size")  # of a Run


def written(run, measure="relative", from_real=False):
    """A measure of eval.fluency of what a Run writes, or its distance from that of real stories, as
    a float; None where there is none."""
    measured = run.results.get("fluency")
    interval = measured and measured["sets"][TEMPERATURE][measure]
    return interval and (distance(interval, measured, measure) if from_real else interval)["mean"]


def distance(interval, measured, measure):
    """The interval of the distance of a measure, an interval, from that of the real stories in what
    eval.fluency measured."""
    real = measured["sets"]["real stories"][measure]["mean"]
    low, high = sorted(abs(interval[end] - real) for end in ("low", "high"))
    low *= not interval["low"] <= real <= interval["high"]
    return interval | {"mean": abs(interval["mean"] - real), "low": low, "high": high}


def final_loss(run):
    """The loss of a Run on the plain validation stories, None where it is not known: its own are
    others where it reads other stories, and then only eval.loss says it."""
    measured = run.results.get("loss")
    return measured["loss"] if measured else None if run.kind in CORPORA else run.loss


def draws_by_seed(runs, value_of, of, seed=0):
    """{name: (1 + ROUNDS,)} of the means over seeds of what a run has one value of; the spread of
    the seeds is that of all. With one seed each, only the means, (1,). of: as of Scores. seed: of
    the draws, another one for another value that they are compared with."""
    values = {}
    for run in runs:
        if (value := value_of(run)) is not None:
            values.setdefault(of(run), []).append(value)
    groups = [np.array(group) for group in values.values()]
    draws = bootstrap.resample_seeds(groups, np.random.default_rng(seed)) if groups else None
    means = [np.array([np.mean(group)]) for group in groups]
    return dict(zip(values, draws or means, strict=True))


def fluency_draws(runs, measure, from_real=False):
    """`draws_by_seed` of a measure of what the sizes write, see `written`; fractions end at 1."""
    draws = draws_by_seed(runs, lambda run: written(run, measure, from_real), size_of, seed=1)
    ends = (0, 1) if FLUENCY[measure][0].endswith("fraction") else (None, None)
    return {size: one.clip(*ends) for size, one in draws.items()}


def as_value(draws):
    """An interval of draws; of an estimate alone a float; None of None and of [nan]."""
    if draws is None or np.isnan(draws[0]):
        return None
    return bootstrap.interval(draws, 1) if len(draws) > 1 else float(draws[0])


def differences(study, kinds, counterparts):
    """[row] of the kinds' runs beside their counterparts of the same size. counterparts: {kind: the
    other kind}, "" where it is not named. A row has the `run`s and `other` runs, and `values`:
    {measure: interval of the difference}, of the loss, the skills (accuracy) and the fluency."""
    runs = [run for kind in ("", *kinds) for run in study.of_kind(kind)]
    scores = Scores([*study.grid, *(run for run in runs if run.kind)], kind_and_size)
    skills = {skill: {name: (1 - CHANCE) * one for name, one in scores.by_size(skill).items()}
              for skill in scores.draws}  # fmt: skip
    rows = []
    for kind, size in dict.fromkeys(kind_and_size(run) for run in runs if run.kind):
        one, other = (kind, size), (counterparts.get(kind, ""), size)
        pair = [[run for run in runs if kind_and_size(run) == name] for name in (one, other)]
        if kind in counterparts.values() or not all(pair):
            continue
        # The seeds of other kinds say nothing of these: losses on other stories lie far apart.
        those = {run.out_dir: run for run in (*study.grid, *pair[0], *pair[1])}.values()
        draws = skills | {"loss": draws_by_seed(those, final_loss, kind_and_size),
                          "relative": draws_by_seed(those, written, kind_and_size)}  # fmt: skip
        values = {measure: as_value(by_name[one] - by_name[other])
                  for measure, by_name in draws.items() if {one, other} <= {*by_name}}  # fmt: skip
        if values:
            rows.append({"run": pair[0], "other": pair[1], "values": values})
    return rows


def changes_of(rows):
    """The rows of a table of `differences`: a measure each, with a cell for each difference."""
    labels = {"loss": "loss, nats per token"} | {skill: skill for skill in SKILLS}
    labels["relative"] = "referee, nats per byte"
    return [[label, *(row["values"].get(measure) for row in rows)]
            for measure, label in labels.items()
            if any(measure in row["values"] for row in rows)]  # fmt: skip


def loss_per_doubling(runs):
    """What twice the width adds to the losses of a grid, by `slopes`; nan where they are."""
    losses = draws_by_seed(runs, lambda run: run.loss, size_of)
    return 2 * slopes(losses)["width"][0]


# ---- sections ----------------------------------------------------------------------------------


def architectures(study):
    rows, slope = differences(study, ARCHITECTURES, {}), loss_per_doubling(study.grid)
    for row in rows:
        doublings = np.log2(row["run"][0].recipe["n_embd"] / row["other"][0].size.width)
        row["by_width"] = as_value([slope * doublings + 0.0])  # no -0.0
    return {"rows": rows, "kinds": ARCHITECTURES, "changes": changes_of(rows)}


def corpora(study):
    rows = differences(study, CORPORA, COUNTERPARTS)
    kinds = CORPORA | {"": ("the plain stories",)}
    return {"rows": rows, "kinds": kinds, "epochs": study.epochs, "changes": changes_of(rows)}


def fluency(study):
    """What the models write, as a stronger model reads it."""
    runs = [run for run in study.grid if run.results.get("fluency")]
    if not runs:
        return {"rows": {}}
    first = runs[0].results["fluency"]
    controls = {name: row for name, row in first["sets"].items() if "temperature" not in name}
    rows = {name: [row[measure] for measure in FLUENCY] for name, row in controls.items()}
    draws = {name: fluency_draws(runs, name) for name in FLUENCY}
    for size in dict.fromkeys(run.size for run in runs):
        rows[str(size)] = [as_value(draws[measure].get(size)) for measure in FLUENCY]
    relative = {size: as_value(one) for size, one in draws["relative"].items() if len(one) > 1}
    draw = charts.draw_intervals({"relative": relative}, {s: s.parameters for s in relative})
    labels = {"xlabel": "parameters without embeddings", "ylabel": "nats per byte above real"}
    return {"rows": rows, "measures": FLUENCY, "stories": first["stories"],
            "by_size": charts.chart(draw, **labels) if len(relative) > 1 else None}  # fmt: skip


def validity(study):
    """Whether a measure says what the loss says: along one training, and from size to size."""
    if not (runs := study.grid):
        return {"rows": [], "run": None}
    scores = Scores(runs)
    losses = draws_by_seed(runs, lambda run: run.loss, size_of)
    skills = sorted(scores.draws, key=SKILLS.index) if not scores.judge else ()
    measures = {skill: (skill, 1, scores.by_size(skill)) for skill in skills}
    for name, (label, sign) in FLUENCY.items():
        label += ": distance from that of real stories" * (not sign)
        measures[name] = label, sign or -1, fluency_draws(runs, name, from_real=not sign)
    # Along the training of the largest run with both kinds of measures at its checkpoints.
    measured = [run for run in runs if run.results.get("fluency-steps")] or runs
    shown = max(measured, key=lambda run: (run.size.parameters, -run.seed))
    rows = [{"measure": label} | rise(*along(shown, name), sign) | agreement(losses, draws, sign)
            for name, (label, sign, draws) in measures.items()]  # fmt: skip
    return {"rows": rows, "run": shown}


def along(run, measure):
    """The intervals of a measure, or its distance, at a Run's checkpoints, the earliest first; and
    the answers there, [] where only their intervals are known."""
    if measure in FLUENCY:
        measured = run.results.get("fluency-steps") or {"checkpoints": {}}
        steps = measured["checkpoints"]
        rows = [steps[step][measure] for step in sorted(steps, key=int)]
        rows = [x if FLUENCY[measure][1] else distance(x, measured, measure) for x in rows if x]
        return rows, []
    rows = (run.results.get("skills") or {}).get("checkpoints") or []
    rows = [row for row in rows if measure in row.get("correct", ())]
    return ([row["skills"][measure]["accuracy"] for row in rows],
            [np.array(row["correct"][measure]) for row in rows])  # fmt: skip


def rise(intervals, answers, sign):
    """How a measure changes along training: its first and last intervals, their difference, counted
    upwards where it gets better, and in how many of the steps between checkpoints it did. The
    difference is of the same questions where there are `answers`, else as of independent ones."""
    if len(intervals) < 2:
        return {"first": None, "last": None, "gain": None, "better": 0, "steps": 0}
    first, last = intervals[0], intervals[-1]
    ends = (last, first) if sign > 0 else (first, last)
    steps = [sign * (b["mean"] - a["mean"]) > 0 for a, b in itertools.pairwise(intervals)]
    gain = bootstrap.independent_difference(*ends)
    if answers:
        gain = bootstrap.mean(sign * (answers[-1] - answers[0]))
    return {"first": first, "last": last, "gain": gain, "better": sum(steps), "steps": len(steps)}


def agreement(losses, draws, sign):
    """Of the pairs of sizes whose losses differ by more than the interval of that difference: how
    many a measure orders as the loss does, and how many it clearly orders otherwise."""
    pairs = alike = otherwise = 0
    for one, other in itertools.combinations([size for size in draws if size in losses], 2):
        gap = as_value(losses[other] - losses[one])
        if not isinstance(gap, dict) or gap["low"] * gap["high"] <= 0:
            continue
        difference = sign * np.sign(gap["mean"]) * (draws[one] - draws[other])  # > 0 if it agrees
        pairs += 1
        alike += difference[0] > 0
        otherwise += len(difference) > 1 and as_value(difference)["high"] < 0
    return {"pairs": pairs, "alike": int(alike), "otherwise": int(otherwise)}


SECTIONS = (fluency, validity, architectures, corpora)
