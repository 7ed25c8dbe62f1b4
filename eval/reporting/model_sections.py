"""The report's sections about the models: sizes, losses, scores, scaling, heads. Each function of
a results.Study returns what the macro of its name in sections.html takes.
"""

import numpy as np

from eval import published
from eval.bootstrap import interval, resample_models
from eval.llm.rubrics import AGES
from eval.reporting import charts
from eval.reporting.page import Cell, cell, grade_pair
from eval.reporting.scores import Scores

GRADES = ("creativity", "grammar", "consistency", "plot")
SKILLS = ("grammar", "consistency", "plot", "context", "reasoning", "facts")
KINDS = {"": "TinyStories", "syn": "Syn", "instruct": "Instruct"}
TOKENS = "training tokens"
NOT_PRINTED = Cell("not printed", look="none")


def by_name(runs):
    """{name: [Run]}, in their order."""
    groups = {}
    for run in runs:
        groups.setdefault(run.name, []).append(run)
    return groups


def mean_loss(runs):
    """The mean loss over seeds as an interval from the lowest to the highest; of one seed a float,
    of none None.
    """
    losses = [run.loss for run in runs if run.loss is not None]
    mean = float(np.mean(losses)) if losses else None
    return {"mean": mean, "low": min(losses), "high": max(losses)} if len(losses) > 1 else mean


def accuracy(runs, kind):
    """The interval of the accuracy of a size's runs, over questions and seeds; or None."""
    correct = [r.results["skills"]["correct"].get(kind) for r in runs if r.results.get("skills")]
    if not correct or None in correct or len(set(map(len, correct))) > 1:
        return None
    [draws] = resample_models([np.array(correct)], np.random.default_rng(0))
    return interval(draws, len(correct[0]))


def accuracies(runs, kinds=SKILLS):
    return [accuracy(runs, kind) for kind in kinds]


def grades(run, mode="paper"):
    """{grade: interval} of a judge, {} without one."""
    judged = run and run.results.get(f"judge-{mode}")
    return judged["grades"] if judged else {}


def score_intervals(study):
    """(the grid's Scores, {kind: {size: interval}} of grammar, consistency and plot)."""
    scores = Scores(study.grid)
    rows = {
        kind: {size: interval(draws, 1) for size, draws in scores.by_size(kind).items()}
        for kind in SKILLS[:3] if kind in scores.draws
    }  # fmt: skip
    return scores, rows


def headline(study):
    """The panels of the report's first figure, [(draw, labels)]; [] if nothing is measured."""
    scores, rows = score_intervals(study)
    if not rows:
        return []
    parameters = {size: size.parameters for size in scores.sizes}
    curves = {name: runs[0].curve for name, runs in by_name(study.grid).items() if runs[0].curve}
    return [(charts.draw_lines(curves, False, ".-"),
             {"xlabel": TOKENS, "ylabel": "validation loss, nats per token"}),
            (charts.draw_intervals(rows, parameters),
             {"xlabel": "parameters without embeddings", "ylabel": scores.unit})]  # fmt: skip


# ---- sections ----------------------------------------------------------------------------------


def models(study):
    rows = []
    for kind, label in KINDS.items():
        for name, runs in by_name(run for run in study.runs if run.kind == kind).items():
            counts = runs[0].parameters, runs[0].block_parameters, runs[0].tokens
            rows.append([name, label, *counts, len(runs), mean_loss(runs)])
    return {"study": study, "rows": rows}


def losses(study):
    labels = {"xlabel": TOKENS, "ylabel": "loss, nats per token", "log": False}
    validation, training, within = {}, {}, {}
    for name, runs in by_name(study.grid).items():
        validation[name], training[name] = runs[0].curve, charts.smooth(runs[0].train_curve)
        if runs[0].curve:
            seeds = {f"seed {run.seed}": run.curve for run in runs if run.curve}
            within[name] = charts.draw_lines({"training": training[name]} | seeds, log=False)
    pairs, rows = {}, []
    for other in study.of_kind("table1"):
        both = {"ours": study.first(other.size), "table 1": other}
        both = {label: run for label, run in both.items() if run}
        pairs[other.name] = charts.draw_lines({x: both[x].curve for x in both}, False, "o-")
        rows += [[other.name, label, run.tokens, run.loss, *accuracies([run], SKILLS[:3])]
                 for label, run in both.items()]  # fmt: skip
    return {"validation": charts.lines(validation, style="o-", **labels),
            "training": charts.lines(training, **labels),
            "within": charts.panels(within, xlabel="tokens"), "table_1": rows,
            "table_1_curves": charts.panels(pairs, xlabel=TOKENS)}  # fmt: skip


def grid(study):
    """Our models, and the published ones beside those of the same shape."""
    groups, ours, judged, by_shape = by_name(study.grid), [], [], {}
    for name, runs in groups.items():
        size = runs[0].size
        by_shape.setdefault(f"{size.width}-{size.layers}", runs)
        instructed = study.first(size, "instruct")
        checks = instructed and instructed.results.get("instruct")
        ours.append([
            name, mean_loss(runs), *accuracies(runs),
            checks["checks"]["joint"]["model"] if checks else None,
        ])  # fmt: skip
        judged.append([name, *map(grades(runs[0]).get, GRADES),
                       grades(instructed, "instruct").get("consistency")])  # fmt: skip
    for run in study.of_kind("baseline"):
        ours.append([run.name, Cell("not comparable", look="none"), *accuracies([run]), None])
        judged.append([run.name, *map(grades(run).get, GRADES), None])
    judged = judged if any(x for _, *cells in judged for x in cells) else []
    paper = []
    for name, row in published.MODELS.items():
        runs = by_shape.get(name, [])
        printed = [grade_pair(*row[x]) if x in row else NOT_PRINTED for x in published.GRADES]
        paper.append([name, row.get("loss", NOT_PRINTED), *printed, mean_loss(runs),
                      *accuracies(runs, SKILLS[:3])])  # fmt: skip
    student, order = [], ("grammar", "creativity", "consistency", "plot")
    for name, plain, _ in published.REPORT:
        row = grades(groups.get(name, [None])[0], "report")
        student.append([name, *(cell(x, 2) for x in plain[:4]), *map(row.get, order)])
    return {"ours": ours, "judged": judged, "paper": paper, "student": student}


def trends(study):
    """Scores against size, along training, against loss; ages."""
    scores, rows = score_intervals(study)
    widths, by_width = {size: size.width for size in scores.sizes}, {}
    for kind, by_size in rows.items():
        depths = {
            f"{n} layer{'s' * (n > 1)}": {s: x for s, x in by_size.items() if s.layers == n}
            for n in sorted({size.layers for size in by_size})
        }
        by_width[kind] = charts.draw_intervals(depths, widths, sorted(set(widths.values())))
    along, points, ages = {}, {kind: [] for kind in SKILLS[:3]}, []
    for run in study.grid:
        skills = run.results.get("skills") or {"correct": {}}
        steps = [row for row in skills.get("checkpoints") or () if row["tokens"]]
        if len(steps) > 2:
            along[run.name] = charts.draw_lines({
                kind: [(row["tokens"], row["skills"][kind]["accuracy"]["mean"]) for row in steps
                       if kind in row["skills"]] for kind in points
            })  # fmt: skip
        for kind in points:
            if kind in skills["correct"] and run.loss:
                points[kind].append((run.loss, float(np.mean(skills["correct"][kind]))))
        if counts := (run.results.get("judge-paper") or {}).get("age_groups"):
            total = sum(counts.values())
            ages.append([run.name, *(counts.get(age, 0) / total for age in AGES)])
    labels = {"xlabel": "validation loss", "ylabel": "accuracy"}
    return {
        "judge": scores.judge,
        "by_width": charts.panels(by_width, xlabel="width", ylabel=scores.unit),
        "along": charts.panels(along, xlabel=TOKENS, ylabel="accuracy"),
        "by_loss": charts.lines(points, log=False, style="o", **labels),
        "ages": ages, "age_groups": list(AGES.values()),
    }  # fmt: skip


def scaling(study, law):
    """law: what scaling_law.fit returns."""
    if not law or not law["alpha"]:
        return {"law": law}
    curves = {name: [(tokens * run.matmul_parameters, loss) for tokens, loss in run.curve]
              for name, [run, *_] in by_name(study.grid).items() if run.curve}  # fmt: skip
    draw_curves = charts.draw_lines(curves, style=".-")
    flops, lowest = np.array([(row["flops"], row["loss"]) for row in law["budgets"]]).T

    def draw(axes):
        draw_curves(axes)
        axes.plot(flops, lowest, color=charts.INK, lw=2, alpha=0.6, label="lower envelope")
        power_law = np.exp(law["log_b"]) * flops ** -law["alpha"]["mean"]
        axes.plot(flops, power_law, ":", color=charts.INK, label="power law")
        axes.set_yscale("log")

    svg = charts.chart(draw, xlabel="parameters x training tokens", ylabel="validation loss")
    return {"law": law, "svg": svg}


def heads(study):
    """Of every shape with models outside the grid, which differ from those of it in their heads."""
    plain = study.of_kind("")
    shapes = {run.size[:2] for run in plain if run not in study.grid}
    groups = by_name(run for run in plain if run.size[:2] in shapes)
    rows = [
        [name, mean_loss(runs), accuracy(runs, "grammar"), grades(runs[0]).get("creativity"),
         accuracy(runs, "consistency")]
        for name, runs in sorted(groups.items())
    ]  # fmt: skip
    return {"rows": rows}


SECTIONS = (models, losses, grid, trends, heads)
