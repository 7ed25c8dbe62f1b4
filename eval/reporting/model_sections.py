"""The report's sections about the models: sizes, losses, scores, scaling, heads. Each function of
a results.Study returns what the macro of its name in sections.html takes.
"""

import numpy as np

from eval import published
from eval.bootstrap import interval, resample_models
from eval.llm.rubrics import AGES
from eval.reporting import charts
from eval.reporting.page import Cell, grade_pair
from eval.reporting.scores import CHANCE, Scores

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


def accuracies(groups, kinds=SKILLS):
    """{name: [the interval of the accuracy in each kind, or None]} of {name: [Run]}, over questions
    and seeds. The spread of the seeds is that of all groups: two seeds alone hardly have one."""
    table, rng = {name: [] for name in groups}, np.random.default_rng(0)
    for kind in kinds:
        answers = {name: [x["correct"].get(kind) for r in runs if (x := r.results.get("skills"))]
                   for name, runs in groups.items()}  # fmt: skip
        answers = {x: rows for x, rows in answers.items() if rows and None not in rows}
        same = len({len(x) for rows in answers.values() for x in rows}) == 1  # questions of all
        draws = resample_models([*map(np.array, answers.values())], rng) if same else ()
        draws = dict(zip(answers, np.clip(draws, 0, 1), strict=same))
        for name, row in table.items():
            row.append(interval(draws.get(name), 1))
    return table


def grades(run, mode="paper"):
    """{grade: interval} of a judge, {} without one."""
    judged = run and run.results.get(f"judge-{mode}")
    return judged["grades"] if judged else {}


MEASURES = {"mean_loss": mean_loss, "grades": grades}  # that tables take


def score_intervals(study):
    """(the grid's Scores; {kind: {size: interval}} of grammar, consistency and plot, accuracies or
    a judge's grades; their unit)."""
    scores = Scores(study.grid)
    chance, unit = (0, scores.unit) if scores.judge else (CHANCE, "accuracy (chance: 0.5)")
    rows = {kind: {size: interval(chance + (1 - chance) * x, 1) for size, x in by_size.items()}
            for kind in SKILLS[:3] if (by_size := scores.by_size(kind))}  # fmt: skip
    return scores, rows, unit


def headline(study):
    """The panels of the report's first figure, [(draw, labels)]; [] if nothing is measured."""
    scores, rows, unit = score_intervals(study)
    if not rows:
        return []
    parameters = {size: size.parameters for size in scores.sizes}
    curves = {name: runs[0].curve for name, runs in by_name(study.grid).items() if runs[0].curve}
    return [(charts.draw_lines(curves, False, ".-"),
             {"xlabel": TOKENS, "ylabel": "validation loss, nats per token"}),
            (charts.draw_intervals(rows, parameters),
             {"xlabel": "parameters without embeddings", "ylabel": unit})]  # fmt: skip


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
    pairs, table_1 = {}, {}
    for other in study.of_kind("table1"):
        plain = study.first(other.size)
        both = [("ours", plain)] * bool(plain) + [("table 1", other)]
        table_1 |= {(run.name, label): [run] for label, run in both}
        pairs[other.name] = charts.draw_lines({x: run.curve for x, run in both}, False, "o-")
    return {"validation": charts.lines(validation, style="o-", **labels),
            "training": charts.lines(training, **labels), "skills": accuracies(table_1),
            "within": charts.panels(within, xlabel="tokens"), "table_1": table_1,
            "table_1_curves": charts.panels(pairs, xlabel=TOKENS)}  # fmt: skip


def grid(study):
    """Our models, and the published ones beside those of the same shape."""
    ours, others, by_shape, paper = by_name(study.grid), by_name(study.of_kind("baseline")), {}, []
    skills = accuracies(ours) | accuracies(others)
    for name, runs in reversed(ours.items()):
        by_shape["{}-{}".format(*runs[0].size[:2])] = [mean_loss(runs), *skills[name][:3]]
    for name, row in published.MODELS.items():
        printed = [grade_pair(*row[x]) if x in row else NOT_PRINTED for x in published.GRADES]
        printed.insert(0, row.get("loss", NOT_PRINTED))
        paper.append([name, *printed, *by_shape.get(name, [None] * 4)])
    return {"study": study, "groups": ours | others, "paper": paper, "skills": skills, **MEASURES}


def trends(study):
    """Scores against size, along training, against loss; ages."""
    scores, rows, unit = score_intervals(study)
    widths, by_width = {size: size.width for size in scores.sizes}, {}
    for kind, by_size in rows.items():
        depths = {f"{n} layer{'s' * (n > 1)}": {s: x for s, x in by_size.items() if s.layers == n}
                  for n in sorted({size.layers for size in by_size})}  # fmt: skip
        by_width[kind] = charts.draw_intervals(depths, widths, sorted(set(widths.values())))
    along, points = {}, {kind: [] for kind in SKILLS[:3]}
    for run in study.grid:
        skills = run.results.get("skills") or {"correct": {}}
        steps = [row for row in skills.get("checkpoints") or () if row["tokens"]]
        if len(steps) > 2:
            along[run.name] = charts.draw_lines({
                kind: [(row["tokens"], row["skills"][kind]["accuracy"]["mean"]) for row in steps
                       if kind in row["skills"]] for kind in points})  # fmt: skip
        for kind in points:
            if kind in skills["correct"] and run.loss:
                points[kind].append((run.loss, float(np.mean(skills["correct"][kind]))))
    labels = {"xlabel": "validation loss", "ylabel": "accuracy"}
    return {"by_width": charts.panels(by_width, xlabel="width", ylabel=unit),
            "along": charts.panels(along, xlabel=TOKENS, ylabel="accuracy"),
            "by_loss": charts.lines(points, log=False, style="o", **labels),
            "judge": scores.judge, "ages": AGES,
            "judged": [x for x in study.grid if x.results.get("judge-paper")]}  # fmt: skip


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
    return {"groups": groups, "skills": accuracies(groups), **MEASURES}


SECTIONS = (models, losses, grid, trends, heads)
