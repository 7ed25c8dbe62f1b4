"""The report's sections about the models: sizes, losses, scores, claims, scaling, heads."""

from collections import Counter

import numpy as np

from eval import published
from eval.bootstrap import interval, resample_models
from eval.llm.rubrics import AGES
from eval.reporting import charts
from eval.reporting.claims import FAILS, HOLDS
from eval.reporting.page import Cell, Section, cell, figure, missing, table, text
from eval.reporting.scores import of_grid

GRADES = ("creativity", "grammar", "consistency", "plot")
# Of a run's settings those that make its recipe.
RECIPE = ("batch_size", "gradient_accumulation_steps", "row_tokens", "block_size", "optimizer",
          "learning_rate", "schedule", "warmup_iters", "weight_decay", "beta1", "beta2",
          "grad_clip", "dropout", "max_iters", "eval_stories")  # fmt: skip
SKILLS = ("grammar", "consistency", "plot", "context", "reasoning", "facts")
LOOKS = {HOLDS: "success", FAILS: "failure"}


def by_size(runs):
    """{name: [Run]}, in their order."""
    found = {}
    for run in runs:
        found.setdefault(run.name, []).append(run)
    return found


def over_seeds(values):
    """A Cell of a mean over seeds, with the lowest and highest."""
    values = [x for x in values if x is not None]
    if not values:
        return None
    mean = float(np.mean(values))
    spread = f"{min(values):.3f} to {max(values):.3f}" if len(values) > 1 else ""
    return Cell(f"{mean:.3f}", mean, below=spread)


def skill(runs, kind):
    """The interval of what a size's runs have told of a kind, over questions and seeds; or None."""
    told = [run.found["skills"]["told"].get(kind) for run in runs if run.found.get("skills")]
    if not told or None in told or len(set(map(len, told))) > 1:
        return None
    rows = resample_models([np.array(told)], np.random.default_rng(0))
    return interval(rows[0], len(told[0]))


def graded(run, mode="paper"):
    """{grade: interval} of a judge, {} without one."""
    found = run and run.found.get(f"judge-{mode}")
    return found["grades"] if found else {}


# ----------------------------------------------------------------------------------------------
# sections


def models(study):
    """Sizes, recipe and data."""
    rows = []
    for name, runs in by_size([r for r in study.runs if r.kind in ("", "syn", "instruct")]).items():
        for kind in dict.fromkeys(run.kind for run in runs):
            mine = [run for run in runs if run.kind == kind]
            run = mine[0]
            rows.append([name, {"": "TinyStories", "syn": "Syn", "instruct": "Instruct"}[kind],
                         run.parameters, run.blocks, run.tokens, len(mine),
                         over_seeds([one.loss for one in mine])])  # fmt: skip
    head = ["width-layers-heads", "stories", "parameters", "without embeddings", "tokens seen",
            "seeds", "validation loss (lowest to highest seed)"]  # fmt: skip
    data = [[folder, split, facts["stories"], facts["tokens"], facts["bytes"]]
            for folder, manifest in study.data.items()
            for split, facts in manifest["splits"].items()]  # fmt: skip
    recipe = study.grid[0].recipe if study.grid else {}
    both = [[name, str(recipe.get(name, "-")), published.RECIPE.get(name, "-")]
            for name in dict.fromkeys((*RECIPE, *published.RECIPE))]  # fmt: skip
    return Section("models", "Models and data", [
        table("Every model of this study. A loss compares with others on the same data and "
              "tokenizer alone.", head, rows),
        table(f"The stories: {study.settings['source']}, tokenizer {study.plain.get('tokenizer')} "
              f"of {study.plain.get('vocab_size', 0):,}.",
              ["folder", "split", "stories", "tokens", "bytes"], data),
        table("How they were trained (train.py), and the student report's table 1.",
              ["setting", "ours", "the report's"], both),
    ])  # fmt: skip


def losses(study):
    """Training and validation losses, across models and within each."""
    grid = by_size(study.grid)
    across = {name: runs[0].curve for name, runs in grid.items()}
    train = {name: charts.smooth(runs[0].train_curve) for name, runs in grid.items()}
    labels = {"xlabel": "training tokens", "ylabel": "loss, nats a token", "log": False}
    blocks = [
        figure(charts.lines(across, marks="o", **labels), "Validation loss, first seed of each."),
        figure(charts.lines(train, **labels),
               "Training loss, running means over a twentieth of the run. In a first epoch no "
               "story was seen before, so it follows the validation loss."),
    ]  # fmt: skip
    some = [(name, runs) for name, runs in grid.items() if runs[0].curve]
    for i in range(0, len(some), 4):
        draws, titles = [], []
        for name, runs in some[i : i + 4]:
            pair = {"training": charts.smooth(runs[0].train_curve)}
            pair |= {f"seed {run.seed}": run.curve for run in runs if run.curve}
            draws.append(charts.draw_lines(pair, log=False))
            titles.append(name)
        blocks.append(figure(
            charts.chart(*draws, size=(2.6 * len(draws), 2.6), title=titles, xlabel="tokens"),
            "Within models: training loss and the validation loss of each seed."))  # fmt: skip
    return Section("losses", "Loss", blocks)


def grid(study):
    """The paper's large table with ours beside."""
    ours = by_size(study.grid)
    rows = []
    for name, runs in ours.items():
        told = study.first(runs[0].size, "instruct")
        found = told and told.found.get("instruct")
        row = [name, over_seeds([run.loss for run in runs])]
        row += [skill(runs, kind) for kind in SKILLS]
        row += [found["checks"]["joint"]["model"] if found else None]
        row += [graded(runs[0]).get(grade) for grade in GRADES]
        rows.append([*row, graded(told, "instruct").get("consistency")])
    for run in study.of("rival"):
        row = [run.name, Cell("not comparable", None, "none")]
        row += [skill([run], kind) for kind in SKILLS] + [None]
        rows.append([*row, *(graded(run).get(grade) for grade in GRADES), None])
    head = ["model", "loss", *SKILLS, "instructions followed", *(f"judge: {x}" for x in GRADES),
            "judge: consistency with the instruction"]  # fmt: skip
    at, unprinted = {}, Cell("not printed", None, "none")
    for runs in ours.values():
        at.setdefault(f"{runs[0].size.width}-{runs[0].size.layers}", runs)
    beside = []
    for name, row in published.MODELS.items():
        runs = at.get(name, [])
        beside.append(
            [name, row.get("loss", unprinted), *(Cell("{:.2f} / {:.2f}".format(*row[g]), row[g][0])
             if g in row else unprinted for g in published.GRADES),
             over_seeds([run.loss for run in runs]), *(skill(runs, kind) for kind in SKILLS[:3])]
        )  # fmt: skip
    reported = ("grammar", "creativity", "consistency", "plot")
    theirs = []
    for name, plain, _ in published.REPORT:
        ours_ = graded(ours.get(name, [None])[0], "report")
        theirs.append([name, *(cell(x, 2) for x in plain[:4]), *(ours_.get(x) for x in reported)])
    return Section("grid", "Size and skill", [
        text("Grammar, consistency, plot, context, reasoning and facts are shares of questions "
             "told (eval.skills): half are told by chance. They stand in for a judge's grades, and "
             "cannot be compared with the published ones, only their trends can."),
        table("Our models. Shares and grades with 95 % intervals.", head, rows),
        table("The paper's models: its loss, GPT-4's grades as grade / relative, and beside them "
              "ours of the same width and depth, trained on far fewer tokens with another "
              "tokenizer, so losses do not compare.",
              ["width-layers", "loss", *published.GRADES, "our loss",
               *(f"our {kind}" for kind in SKILLS[:3])], beside),
        table("The student report's models: its judge's grades (table 2), and ours.",
              ["model", *reported, *(f"ours: {x}" for x in reported)], theirs),
    ])  # fmt: skip


def relative(study):
    """(the grid's Scores, {kind: {size: interval}} of grammar, consistency and plot)."""
    scores = of_grid(study)
    return scores, {
        kind: {size: interval(row, 1) for size, row in zip(scores.sizes, found, strict=True)}
        for kind in SKILLS[:3] if (found := scores.of(kind)) is not None
    }  # fmt: skip


def trends(study):
    """Scores against size, along training, against loss; ages."""
    runs = [run for run in study.grid if run.found.get("skills")]
    scores, rows = relative(study)
    what = "Below stand shares of questions told, relative: 0 is chance, 1 all right."
    if scores.judge:
        what = f"Below stand grades of {scores.judge}, relative: 0 is the paper's 64-2, 1 GPT-4."
    blocks = [text(what)]
    draws = []
    widths = {size: size.width for size in scores.sizes}
    for by_size_ in rows.values():
        lines = {}
        for layers in sorted({size.layers for size in scores.sizes}):
            points = {s: x for s, x in by_size_.items() if s.layers == layers}
            lines[f"{layers} layer{'s' * (layers > 1)}"] = points
        draws.append(charts.draw_intervals(lines, widths, sorted(set(widths.values()))))
    if draws:
        blocks.append(figure(charts.chart(*draws, size=(3 * len(draws), 3), title=list(rows),
                      xlabel="width", ylabel="relative score"),
                      "By width, a line for each depth."))  # fmt: skip
    draws, titles = [], []
    for run in runs:
        along = (run.found["skills"] or {}).get("along")
        if along and len(along) > 2:
            draws.append(charts.draw_lines({
                kind: [(row["tokens"], row["skills"][kind]["right"]["mean"]) for row in along
                       if kind in row["skills"] and row["tokens"]] for kind in SKILLS[:3]
            }))  # fmt: skip
            titles.append(run.name)
    for i in range(0, len(draws), 4):
        some = slice(i, i + 4)
        blocks.append(figure(charts.chart(
            *draws[some], size=(2.6 * len(draws[some]), 2.8), title=titles[some],
            xlabel="training tokens", ylabel="questions told"),
            "Along training, from checkpoints at steps 1, 2, 4, 8, ..."))  # fmt: skip
    points = {
        kind: [
            (run.loss, float(np.mean(run.found["skills"]["told"][kind])))
            for run in runs
            if run.loss and kind in run.found["skills"]["told"]
        ]
        for kind in SKILLS[:3]
    }

    def scatter(axes):
        for colour, (kind, xy) in zip(charts.colours(3), points.items(), strict=True):
            if xy:
                axes.plot(*np.array(xy).T, "o", color=colour, ms=4, label=kind)
        axes.legend()

    if runs:
        labels = {"xlabel": "validation loss", "ylabel": "questions told"}
        blocks.append(figure(charts.chart(scatter, **labels),
                             "Score against loss, a point for each run."))  # fmt: skip
    blocks.append(ages(study))
    return Section("trends", "What comes with size, and when", blocks)


def headline(study):
    """
    The figure that the report opens with: (draws, the rest) of `charts.chart`; None where nothing
    was measured.
    """
    scores, rows = relative(study)
    if not rows:
        return None
    at = {size: size.parameters for size in scores.sizes}
    curves = {name: some[0].curve for name, some in by_size(study.grid).items() if some[0].curve}
    draws = charts.draw_lines(curves, False, "."), charts.draw_intervals(rows, at)
    return draws, {
        "size": (9, 3.6), "xlabel": ["training tokens", "parameters without embeddings"],
        "ylabel": ["validation loss, nats a token", "relative score"],
    }  # fmt: skip


def ages(study):
    """The table of age groups that a judge gave."""
    rows = []
    for run in study.grid:
        said = run.found.get("judge-paper")
        if said and said.get("ages"):
            total = sum(said["ages"].values())
            rows.append([run.name, *(said["ages"].get(age, 0) / total for age in AGES)])
    if not rows:
        return missing("the age groups of the writers, which a judge guesses",
                       "python -m eval.study <config> --judge=<model>")  # fmt: skip
    return table("Age groups that the judge guessed, shares of the stories.",
                 ["model", *AGES.values()], rows)  # fmt: skip


def verdicts(found):
    """The claims, tested."""
    rows = [
        [claim.text, Cell(claim.verdict, claim.verdict, LOOKS.get(claim.verdict, "partial")),
         cell(claim.value) if claim.value else Cell("-", None, "none"), claim.measure,
         claim.note, claim.source] for claim in found
    ]  # fmt: skip
    count = Counter(claim.verdict for claim in found)
    return Section("claims", "The claims, tested", [
        text("Each claim is a difference or slope that is above 0 if the claim holds; it holds if "
             "all of its 95 % interval is, it does not if all of it is below. "
             + ", ".join(f"{n} {verdict}" for verdict, n in count.items()) + "."),
        table("In the paper's order.", ["claim", "verdict", "value", "what was compared", "note",
              "source"], rows,
              "wrap"),
    ])  # fmt: skip


def spread(row):
    """The interval of an exponent in words, "" of one seed."""
    if row["low"] is None:
        return ""
    return f" (95 % interval {row['low']:.3f} to {row['high']:.3f})"


def scaling(study, law):
    """The scaling law."""
    title = "Scaling law"
    if law is None:
        return Section("scaling", title, [missing("it takes two sizes", "more --models")])
    curves = {}
    for name, runs in by_size(study.grid).items():
        curves[name] = [(n * runs[0].multiplied, loss) for n, loss in runs[0].curve]
    curves = {name: points for name, points in curves.items() if points}
    if not law["alpha"]:
        return Section("scaling", title, [missing("no loss falls with FLOPs", "more --models")])
    draw = charts.draw_lines(curves, marks=".")
    flops = np.array([row["flops"] for row in law["budgets"]])

    def all_of_it(axes):
        draw(axes)
        axes.plot(flops, [row["loss"] for row in law["budgets"]], color=charts.INK, lw=2, alpha=0.6)
        axes.plot(
            flops, np.exp(law["log_b"]) * flops ** -law["alpha"]["mean"], ":", color=charts.INK
        )
        axes.set_yscale("log")

    alpha, a = law["alpha"], law["a"]
    rows = [[Cell(f"{row['flops']:.2e}", row["flops"]), row["size"], round(row["tokens"]),
             row["loss"]] for row in law["budgets"]]  # fmt: skip
    said = f"Loss of the best model falls as FLOPs^-{alpha['mean']:.3f}{spread(alpha)}. "
    said += "Too few sizes are best between a smaller and a larger one to say how the best grows. "
    if a:
        said = said.partition("Too")[0] + (
            f"The best size grows as FLOPs^{a['mean']:.2f}{spread(a)}, so the best number of "
            f"tokens as FLOPs^{1 - a['mean']:.2f}. ")  # fmt: skip
    return Section("scaling", title, [
        text(said + "The paper shows the same kind of plot and prints no exponent."),
        figure(charts.chart(all_of_it, xlabel="size x training tokens", ylabel="validation loss"),
               "Loss against FLOPs = size x training tokens, first seeds; the lower envelope (mean "
               "of the seeds) in bold, the power law dotted. A learning rate that falls over the "
               "run makes each curve end better than it would pass."),
        table("The best model at each budget, and how many tokens it has seen by then.",
              ["size x tokens", "best size", "tokens", "loss"], rows),
    ])  # fmt: skip


def heads(study):
    """The table of attention heads."""
    named = {run.size[:2] for run in study.of("") if run not in study.grid}
    rows = []
    for name, runs in sorted(by_size([r for r in study.of("") if r.size[:2] in named]).items()):
        rows.append([name, over_seeds([run.loss for run in runs]), skill(runs, "grammar"),
                     graded(runs[0]).get("creativity"), skill(runs, "consistency")])  # fmt: skip
    theirs = [[f"paper: {name}", *(cell(x, 2) for x in row)]
              for name, row in published.HEADS.items()]  # fmt: skip
    return Section("heads", "Attention heads", [
        table("Heads alone vary. Ours: shares of questions told; the paper's: GPT-4's grades.",
              ["width-layers-heads", "loss", "grammar", "creativity", "consistency"],
              rows + theirs),
    ])  # fmt: skip
