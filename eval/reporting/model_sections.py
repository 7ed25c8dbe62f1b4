"""The report's sections about the models: sizes, losses, scores, claims, scaling, heads. Each
function of a results.Study returns blocks of page.py.
"""

from collections import Counter

import numpy as np

from eval import published
from eval.bootstrap import interval, resample_models
from eval.llm.rubrics import AGES
from eval.reporting import charts
from eval.reporting.claims import FAILS, HOLDS
from eval.reporting.page import Cell, cell, figure, grade_pair, missing, table, text
from eval.reporting.scores import grid_scores

GRADES = ("creativity", "grammar", "consistency", "plot")
SKILLS = ("grammar", "consistency", "plot", "context", "reasoning", "facts")
# The settings of a run that make its recipe.
RECIPE = ("batch_size", "gradient_accumulation_steps", "row_tokens", "block_size", "optimizer",
          "learning_rate", "schedule", "warmup_iters", "weight_decay", "beta1", "beta2",
          "grad_clip", "dropout", "max_iters", "eval_stories")  # fmt: skip
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
    """A Cell of the mean loss over seeds, with the lowest and highest below; None without one."""
    losses = [run.loss for run in runs if run.loss is not None]
    if not losses:
        return None
    ends = f"{min(losses):.3f} to {max(losses):.3f}" * (len(losses) > 1)
    mean = float(np.mean(losses))
    return Cell(f"{mean:.3f}", mean, below=ends)


def accuracy(runs, kind):
    """The interval of the accuracy of a size's runs, over questions and seeds; or None."""
    correct = [r.results["skills"]["correct"].get(kind) for r in runs if r.results.get("skills")]
    if not correct or None in correct or len(set(map(len, correct))) > 1:
        return None
    [draws] = resample_models([np.array(correct)], np.random.default_rng(0))
    return interval(draws, len(correct[0]))


def accuracies(runs, kinds=SKILLS):
    """`accuracy` for each of the kinds."""
    return [accuracy(runs, kind) for kind in kinds]


def grades(run, mode="paper"):
    """{grade: interval} of a judge, {} without one."""
    judged = run and run.results.get(f"judge-{mode}")
    return judged["grades"] if judged else {}


# ----------------------------------------------------------------------------------------------
# sections


def models(study):
    """Sizes, recipe and data."""
    rows = []
    for kind, label in KINDS.items():
        for name, runs in by_name([run for run in study.runs if run.kind == kind]).items():
            run = runs[0]
            rows.append([name, label, run.parameters, run.block_parameters, run.tokens, len(runs),
                         mean_loss(runs)])  # fmt: skip
    splits = [
        [folder, split, facts["stories"], facts["tokens"], facts["bytes"]]
        for folder, manifest in study.data.items() for split, facts in manifest["splits"].items()
    ]  # fmt: skip
    ours, student = study.grid[0].recipe if study.grid else {}, published.RECIPE
    names = dict.fromkeys((*RECIPE, *student))
    recipe = [[name, str(ours.get(name, "-")), student.get(name, "-")] for name in names]
    data = study.plain_data
    return [
        table("Every model of this study. Losses compare only on the same data and tokenizer.",
              ["width-layers-heads", "stories", "parameters", "without embeddings", TOKENS, "seeds",
               "validation loss (lowest to highest seed)"], rows),
        table(f"The stories: {study.settings['source']}, tokenizer {data.get('tokenizer')} with "
              f"{data.get('vocab_size', 0):,} tokens.",
              ["folder", "split", "stories", "tokens", "bytes"], splits),
        table("How they were trained (train.py), and the student report's table 1.",
              ["setting", "ours", "student report"], recipe),
    ]  # fmt: skip


def losses(study):
    """Training and validation losses, across models and within each."""
    grid = by_name(study.grid)
    labels = {"xlabel": TOKENS, "ylabel": "loss, nats per token", "log": False}
    val = {name: runs[0].curve for name, runs in grid.items()}
    train = {name: charts.smooth(runs[0].train_curve) for name, runs in grid.items()}
    draws = {}
    for name in [name for name in grid if val[name]]:
        seeds = {f"seed {run.seed}": run.curve for run in grid[name] if run.curve}
        draws[name] = charts.draw_lines({"training": train[name]} | seeds, log=False)
    within = "Within models: training loss and the validation loss of each seed."
    return [
        figure(charts.lines(val, style="o-", **labels), "Validation loss, first seed of each."),
        figure(charts.lines(train, **labels),
               "Training loss, running mean over a twentieth of the run. In the first epoch every "
               "story is new, so it follows the validation loss."),
        *[figure(svg, within) for svg in charts.panels(draws, xlabel="tokens")],
    ]  # fmt: skip


def grid(study):
    """Our models, and the paper's large table beside them."""
    ours, rows, by_shape = by_name(study.grid), [], {}
    for name, runs in ours.items():
        by_shape.setdefault(f"{runs[0].size.width}-{runs[0].size.layers}", runs)
        instructed = study.first(runs[0].size, "instruct")
        checks = instructed and instructed.results.get("instruct")
        rows.append([
            name, mean_loss(runs), *accuracies(runs),
            checks["checks"]["joint"]["model"] if checks else None,
            *map(grades(runs[0]).get, GRADES), grades(instructed, "instruct").get("consistency"),
        ])  # fmt: skip
    for run in study.of_kind("baseline"):
        rows.append([run.name, Cell("not comparable", look="none"), *accuracies([run]), None,
                     *map(grades(run).get, GRADES), None])  # fmt: skip
    paper = []
    for name, row in published.MODELS.items():
        runs = by_shape.get(name, [])
        printed = [grade_pair(*row[x]) if x in row else NOT_PRINTED for x in published.GRADES]
        paper.append([name, row.get("loss", NOT_PRINTED), *printed, mean_loss(runs),
                      *accuracies(runs, SKILLS[:3])])  # fmt: skip
    student, columns = [], ("grammar", "creativity", "consistency", "plot")
    for name, plain, _ in published.REPORT:
        judged = grades(ours.get(name, [None])[0], "report")
        student.append([name, *(cell(x, 2) for x in plain[:4]), *map(judged.get, columns)])
    return [
        text("Grammar, consistency, plot, context, reasoning and facts are accuracies on questions "
             "with a right and a wrong answer (eval.skills): chance is 0.5. They need no judge; "
             "their trends, but not their values, compare with the published grades."),
        table("Our models. Accuracies and grades with 95 % intervals.",
              ["model", "loss", *SKILLS, "instructions followed", *(f"judge: {x}" for x in GRADES),
               "judge: consistency with the instruction"], rows),
        table("The paper's models: its loss, GPT-4's grades as grade / relative, and ours of the "
              "same width and depth. Ours saw far fewer tokens, of another tokenizer, so losses do "
              "not compare.",
              ["width-layers", "loss", *published.GRADES, "our loss",
               *(f"our {kind}" for kind in SKILLS[:3])], paper),
        table("The student report's models: its judge's grades (table 2), and ours.",
              ["model", *columns, *(f"ours: {x}" for x in columns)], student),
    ]  # fmt: skip


def relative_scores(study):
    """(the grid's Scores, {kind: {size: interval}} of grammar, consistency and plot)."""
    scores = grid_scores(study)
    rows = {
        kind: {size: interval(draws, 1) for size, draws in scores.by_size(kind).items()}
        for kind in SKILLS[:3] if kind in scores.draws
    }  # fmt: skip
    return scores, rows


def trends(study):
    """Scores against size, along training, against loss; ages."""
    scores, rows = relative_scores(study)
    scale = "Scores are accuracies, relative: 0 is chance, 1 is all right."
    if scores.judge:
        scale = f"Scores are grades of {scores.judge}, relative: 0 is the paper's 64-2, 1 is GPT-4."
    widths, by_width = {size: size.width for size in scores.sizes}, {}
    for kind, by_size in rows.items():
        depths = {
            f"{n} layer{'s' * (n > 1)}": {s: x for s, x in by_size.items() if s.layers == n}
            for n in sorted({size.layers for size in by_size})
        }
        ticks = sorted(set(widths.values()))
        by_width[kind] = charts.draw_intervals(depths, widths, ticks)
    runs = [run for run in study.grid if run.results.get("skills")]
    along = {}
    for run in runs:
        steps = [row for row in run.results["skills"].get("checkpoints") or () if row["tokens"]]
        if len(steps) > 2:
            along[run.name] = charts.draw_lines({
                kind: [(row["tokens"], row["skills"][kind]["accuracy"]["mean"]) for row in steps
                       if kind in row["skills"]] for kind in SKILLS[:3]
            })  # fmt: skip
    points = {kind: [] for kind in SKILLS[:3]}
    for run in runs:
        correct = run.results["skills"]["correct"]
        for kind in [kind for kind in points if kind in correct and run.loss]:
            points[kind].append((run.loss, float(np.mean(correct[kind]))))
    by_loss = {"": charts.draw_lines(points, log=False, style="o")} if runs else {}
    return [
        text(scale),
        *[figure(svg, "By width, a line for each depth.")
          for svg in charts.panels(by_width, xlabel="width", ylabel="relative score")],
        *[figure(svg, "Along training, from checkpoints at steps 1, 2, 4, 8, ...")
          for svg in charts.panels(along, xlabel=TOKENS, ylabel="accuracy")],
        *[figure(svg, "Accuracy against loss, a point for each run.")
          for svg in charts.panels(by_loss, width=7, xlabel="validation loss", ylabel="accuracy")],
        ages(study),
    ]  # fmt: skip


def headline(study, make):
    """The report's first figure, by charts.chart or charts.picture; None if nothing is measured."""
    scores, rows = relative_scores(study)
    if not rows:
        return None
    parameters = {size: size.parameters for size in scores.sizes}
    curves = {name: runs[0].curve for name, runs in by_name(study.grid).items() if runs[0].curve}
    draws = charts.draw_lines(curves, False, ".-"), charts.draw_intervals(rows, parameters)
    return make(*draws, size=(9, 3.6), xlabel=[TOKENS, "parameters without embeddings"],
                ylabel=["validation loss, nats per token", "relative score"])  # fmt: skip


def ages(study):
    """The table of the age groups that a judge gave."""
    rows = []
    for run in study.grid:
        counts = (run.results.get("judge-paper") or {}).get("age_groups")
        if counts:
            total = sum(counts.values())
            rows.append([run.name, *(counts.get(age, 0) / total for age in AGES)])
    if not rows:
        return missing("the age group of the writer, as a judge estimates it",
                       "python -m eval.study <config> --judge=<model>")  # fmt: skip
    return table("The writer's age group as the judge estimates it, fractions of the stories.",
                 ["model", *AGES.values()], rows)  # fmt: skip


def verdicts(claims):
    """The claims with their verdicts."""
    looks, rows = {HOLDS: "success", FAILS: "failure"}, []
    for claim in claims:
        verdict = Cell(claim.verdict, claim.verdict, looks.get(claim.verdict, "partial"))
        value = cell(claim.value) if claim.value else Cell("-", look="none")
        rows.append([claim.text, verdict, value, claim.measure, claim.note, claim.source])
    counts = Counter(claim.verdict for claim in claims)
    return [
        text("Each claim is a difference or slope that is above 0 if the claim holds. It holds if "
             "all of its 95 % interval is above 0, and does not if all is below. "
             + ", ".join(f"{verdict}: {n}" for verdict, n in counts.items()) + "."),
        table("In the paper's order.",
              ["claim", "verdict", "value", "what was compared", "note", "source"], rows, "wrap"),
    ]  # fmt: skip


def scaling(study, law):
    """The scaling law."""
    if law is None:
        return [missing("it takes two sizes", "more --models")]
    if not law["alpha"]:
        return [missing("no loss falls with FLOPs", "more --models")]
    curves = {
        name: [(tokens * runs[0].matmul_parameters, loss) for tokens, loss in runs[0].curve]
        for name, runs in by_name(study.grid).items() if runs[0].curve
    }  # fmt: skip
    alpha, a, budgets = law["alpha"], law["a"], law["budgets"]
    draw_curves = charts.draw_lines(curves, style=".-")

    def draw(axes):
        draw_curves(axes)
        flops, losses = np.array([(row["flops"], row["loss"]) for row in budgets]).T
        axes.plot(flops, losses, color=charts.INK, lw=2, alpha=0.6)
        axes.plot(flops, np.exp(law["log_b"]) * flops ** -alpha["mean"], ":", color=charts.INK)
        axes.set_yscale("log")

    rows = [[Cell(f"{row['flops']:.2e}", row["flops"]), row["size"], round(row["tokens"]),
             row["loss"]] for row in budgets]  # fmt: skip
    growth = "Too few sizes are best between a smaller and a larger one to fit how the best grows."
    if a:
        growth = (f"The best size grows as FLOPs^{a['mean']:.2f}{ends(a)}, so the best number of "
                  f"tokens as FLOPs^{1 - a['mean']:.2f}.")  # fmt: skip
    return [
        text(f"The loss of the best model falls as FLOPs^-{alpha['mean']:.3f}{ends(alpha)}. "
             f"{growth} The paper shows the same kind of plot and prints no exponent."),
        figure(charts.chart(draw, xlabel="parameters x training tokens", ylabel="validation loss"),
               "Loss against FLOPs = parameters x training tokens, first seeds; the lower envelope "
               "(mean of the seeds) is bold, the power law dotted. A learning rate that falls over "
               "the run makes the end of each curve better than a longer run is at that point."),
        table("The best model at each budget, and how many tokens it has seen by then.",
              ["parameters x tokens", "best size", "tokens", "loss"], rows),
    ]  # fmt: skip


def ends(row):
    """The ends of the interval of an exponent in words, "" for one seed."""
    if row["low"] is None:
        return ""
    return f" (95 % interval {row['low']:.3f} to {row['high']:.3f})"


def heads(study):
    """The table of attention heads."""
    plain = study.of_kind("")
    shapes = {run.size[:2] for run in plain if run not in study.grid}
    rows = [
        [name, mean_loss(runs), accuracy(runs, "grammar"), grades(runs[0]).get("creativity"),
         accuracy(runs, "consistency")]
        for name, runs in sorted(by_name([r for r in plain if r.size[:2] in shapes]).items())
    ]  # fmt: skip
    paper = [[f"paper: {name}", *(cell(x, 2) for x in row)]
             for name, row in published.HEADS.items()]  # fmt: skip
    return [
        table("Models that differ only in their heads. Ours: accuracies; the paper's: GPT-4's "
              "grades.", ["width-layers-heads", "loss", "grammar", "creativity", "consistency"],
              rows + paper),
    ]  # fmt: skip
