"""The report's sections about the models: sizes, losses, scores, scaling, heads. Each function of
a results.Study returns what the macro of its name in sections.html takes.
"""

import numpy as np

from eval import published
from eval.bootstrap import interval, resample_models
from eval.llm.rubrics import AGES
from eval.reporting import charts
from eval.reporting.page import Cell, grade_pair
from eval.reporting.scores import Scores

SKILLS = ("grammar", "consistency", "plot", "context", "reasoning", "facts")
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
    of none None."""
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


MEASURES = {"mean_loss": mean_loss, "accuracies": accuracies, "grades": grades}  # that tables take


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
    return {"study": study, "by_name": by_name, "mean_loss": mean_loss}


def losses(study):
    labels = {"xlabel": TOKENS, "ylabel": "loss, nats per token", "log": False}
    validation, training, within = {}, {}, {}
    for name, runs in by_name(study.grid).items():
        validation[name], training[name] = runs[0].curve, charts.smooth(runs[0].train_curve)
        if runs[0].curve:
            seeds = {f"seed {run.seed}": run.curve for run in runs if run.curve}
            within[name] = charts.draw_lines({"training": training[name]} | seeds, log=False)
    pairs, table_1 = {}, []
    for other in study.of_kind("table1"):
        plain = study.first(other.size)
        both = [("ours", plain)] * bool(plain) + [("table 1", other)]
        table_1 += both
        pairs[other.name] = charts.draw_lines({x: run.curve for x, run in both}, False, "o-")
    return {"validation": charts.lines(validation, style="o-", **labels),
            "training": charts.lines(training, **labels),
            "within": charts.panels(within, xlabel="tokens"), "table_1": table_1,
            "table_1_curves": charts.panels(pairs, xlabel=TOKENS), **MEASURES}  # fmt: skip


def grid(study):
    """Our models, and the published ones beside those of the same shape."""
    by_shape, paper = {}, []
    for runs in reversed(by_name(study.grid).values()):
        by_shape["{}-{}".format(*runs[0].size[:2])] = runs
    for name, row in published.MODELS.items():
        runs = by_shape.get(name, [])
        printed = [grade_pair(*row[x]) if x in row else NOT_PRINTED for x in published.GRADES]
        paper.append([name, row.get("loss", NOT_PRINTED), *printed, mean_loss(runs),
                      *accuracies(runs, SKILLS[:3])])  # fmt: skip
    groups = by_name([*study.grid, *study.of_kind("baseline")])
    return {"study": study, "groups": groups, "paper": paper, **MEASURES}


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
    along, points = {}, {kind: [] for kind in SKILLS[:3]}
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
    labels = {"xlabel": "validation loss", "ylabel": "accuracy"}
    return {
        "judge": scores.judge,
        "by_width": charts.panels(by_width, xlabel="width", ylabel=scores.unit),
        "along": charts.panels(along, xlabel=TOKENS, ylabel="accuracy"),
        "by_loss": charts.lines(points, log=False, style="o", **labels),
        "ages": AGES, "judged": [x for x in study.grid if x.results.get("judge-paper")],
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
    return {"groups": by_name(run for run in plain if run.size[:2] in shapes), **MEASURES}


SECTIONS = (models, losses, grid, trends, heads)
