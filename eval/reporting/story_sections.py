"""The report's sections about what models tell: stories, knowledge, copies, Syn, Reward."""

import textwrap
from itertools import pairwise

import numpy as np
from markupsafe import Markup, escape

from eval import published
from eval.memorization.copying import BINS
from eval.memorization.page import highlight
from eval.prompts import knowledge_prompts
from eval.reporting import charts
from eval.reporting.page import Cell, Section, figure, missing, stories, table, text
from nanostories.text.words import ngrams, words_and_marks

MARKS = {"success": "✓ ", "partial": "~ ", "failure": "✗ "}


def firsts(study):
    """The first run of each size of the grid, and the rivals."""
    grid = list({run.name: run for run in reversed(study.grid)}.values())[::-1]
    return grid + study.of("rival")


def command(script, run="<run>"):
    """How a thing would be measured."""
    return f"python -m {script} {run}"


def side_by_side(study):
    """The paper's stories, told by each model."""
    told = {run.name: run.found["side_by_side"] for run in firsts(study)
            if run.found.get("side_by_side")}  # fmt: skip
    title = "Stories side by side"
    if not told:
        how = command("eval.side_by_side")
        return Section("stories", title, [missing("the paper's four beginnings", how)])
    blocks = [text("The beginnings that the paper and the report print, and how each model goes "
                   "on, at the same temperature and seed. Beside the last one stands the training "
                   "story closest to it, with the pairs of words they share marked.")]  # fmt: skip
    rows, rivals = {}, [run.name for run in study.of("rival")]
    for model, found in told.items():
        for row in found["stories"]:
            rows.setdefault((row["name"], row["beginning"]), []).append((model, row))
    for (name, beginning), models in rows.items():
        columns = [(model, row["completion"].strip(), "") for model, row in models]
        ours = [(model, row) for model, row in models if model not in rivals]
        model, last = ours[-1] if ours else ("", {"h": None})
        if last["h"] is not None:
            shared = set(ngrams(words_and_marks(last["completion"]), 2))
            shared &= set(ngrams(words_and_marks(last["closest_text"]), 2))
            columns.append((f"closest training story to that of {model}",
                            highlight(last["closest_text"].strip(), shared),
                            f"Rouge precision {last['h']:.2f}; the paper prints "
                            f"{published.CLOSEST} for a model of 28 M and the laser"))  # fmt: skip
        blocks.append(stories(name, beginning, columns))
    return Section("stories", title, blocks)


def knowledge(study):
    """The coloured tables of prompts by model."""
    found = {}
    for run in firsts(study):
        tables = run.found.get("judge-prompts")
        if tables:
            found[run.name] = tables["models"][0]
    title = "Facts, reasoning, context"
    if not found:
        how = command("eval.judge", "<run> --mode=prompts")
        return Section("knowledge", title, [missing("the knowledge prompts", how)])
    blocks = [text("Each cell is how the model goes on, without chance, up to the end of the "
                   "sentence. ✓ green: it gives every right continuation of the prompt more "
                   "probability than the wrong one beside it (or the judge calls it a success); "
                   "~ yellow: some; ✗ red: none.")]  # fmt: skip
    first = next(iter(found.values()))["rows"]
    found = {name: one for name, one in found.items() if len(one["rows"]) == len(first)}
    for kind in knowledge_prompts.KINDS:
        rows = []
        for i, row in enumerate(first):
            if row["kind"] != kind:
                continue
            cells = [row["prompt"]]
            for one in found.values():
                here = one["rows"][i]
                verdict = here.get("rating") or here["verdict"]
                said = textwrap.shorten(here["completion"], 140, placeholder=" ...")
                cells.append(Cell(MARKS.get(verdict, "") + said, verdict, verdict))
            rows.append(cells)
        if not rows:
            continue
        shares = ["pairs told", *(one["scores"][kind]["right"] for one in found.values())]
        blocks.append(table(f"{kind}: {knowledge_prompts.KINDS[kind]}", ["prompt", *found],
                            [*rows, shares], "wrap"))  # fmt: skip
    return Section("knowledge", title, blocks)


def instruct(study):
    """What models trained on instructions do of what they are told."""
    runs = [run for run in study.of("instruct") if run.found.get("instruct")]
    title = "Instructions"
    blocks = []
    if runs:
        every = [run.found["instruct"]["checks"] for run in runs]
        names = list(dict.fromkeys(["joint", *(name for one in every for name in one)]))
        rows = []
        for run in runs:
            checks = run.found["instruct"]["checks"]
            for side, label in (("model", "model"), ("shuffled", "given another instruction"),
                                ("true", "the true story")):  # fmt: skip
                if side in checks["joint"]:
                    rows.append([run.name, label, *(checks[n].get(side) if n in checks else None
                                                    for n in names)])  # fmt: skip
        blocks.append(table(
            "Share of what is asked that a story does, checked by program (eval.instruct); joint: "
            "all of it.", ["model", "story", *names], rows))  # fmt: skip
    else:
        blocks.append(missing("instructions", "python -m eval.study <config> --instructed=<sizes>"))
    theirs = [[name, Cell("{:.2f} / {:.2f}".format(*row["instruct"]), row["instruct"][0])]
              for name, row in published.MODELS.items() if "instruct" in row]  # fmt: skip
    blocks.append(table("The paper's grades for following instructions, GPT-4's, grade / relative.",
                        ["width-layers", "instruct"], theirs))  # fmt: skip
    blocks.append(missing("combinations of instructions that training has never shown",
                          "python prepare.py --hold_out=words+summary, and README “Stories told to "
                          "order”"))  # fmt: skip
    return Section("instruct", title, blocks)


def diversity(study):
    """What models copy."""
    found = [(run, run.found["diversity"]) for run in study.grid if run.found.get("diversity")]
    title = "Do they copy?"
    if not found:
        return Section("diversity", title, [missing("it", command("eval.diversity"))])
    sets = {}
    for run, results in found:
        for name, row in results["sets"].items():
            sets.setdefault(name.replace(run.out_dir, run.name), row)
    rows = [
        [name, *(row.get(f"rouge_{x}") for x in ("original", "other", "nearest", "nearest_unseen")),
         row["ngrams"]["4"]["new"] if "ngrams" in row else None,
         row["copies"]["exact"] if "copies" in row else None, row["mtld"], row["self_bleu"]]
        for name, row in sets.items()
    ]  # fmt: skip
    head = ["texts", "ROUGE-2 with the original", "with the most similar other text",
            "with the nearest training story", "nearest, unseen stories of the same length",
            "new 4-grams", "exact copies", "MTLD", "self-BLEU"]  # fmt: skip
    draws, titles = [], []
    for key, what in (("rouge_original", "ROUGE-2 with the original"),
                      ("rouge_other", "with the most similar other"),
                      ("rouge_nearest", "with the nearest training story")):  # fmt: skip
        values = {name: row["values"][key] for name, row in sets.items() if key in row["values"]}
        if values:
            draws.append(charts.draw_histograms(values, [i / 20 for i in range(21)]))
            titles.append(what)
    grams = {name: {k: one["histogram"] for k, one in row["ngrams"].items()}
             for name, row in sets.items() if "ngrams" in row}  # fmt: skip
    middles = [(a + b) / 2 for a, b in pairwise(BINS)]
    name, first = next(iter(grams.items()))
    g = {f"{k}-grams": [(x, n / max(1, sum(counts))) for x, n in zip(middles, counts, strict=True)]
         for k, counts in first.items()}  # fmt: skip
    return Section("diversity", title, [
        text("Training stories cut at 40 %, and each model's completions: Rouge precision of "
             "bigrams by the paper's formula. Stories that no model has seen stand beside: so much "
             "has any such story in common with the training stories."),
        table("Copies (eval.diversity).", head, rows),
        figure(charts.chart(*draws, size=(3 * len(draws), 3), title=titles, ylabel="completions"),
               "Histograms of the paper's three measures."),
        figure(charts.lines(g, log=False, marks=".", xlabel="log10 of the share of the training "
                            "n-grams; -10: new", ylabel="fraction of the completions' n-grams"),
               f"How often the n-grams of {name} occur in the training stories."),
    ])  # fmt: skip


def fired(example):
    """A neuron's example as HTML, the token at which it fires marked."""
    tokens, at = example["tokens"], example["peak"]
    parts = ("".join(tokens[:at]), tokens[at], "".join(tokens[at + 1 :]))
    before, here, after = (escape(part) for part in parts)
    return Markup("{}<mark>{}</mark>{}").format(before, here, after)


def inside(study):
    """Heads and neurons."""
    runs = [run for run in study.runs if run.found.get("interpret")]
    title = "Inside: heads and neurons"
    if not runs:
        return Section("inside", title, [missing("it", command("eval.interpret"))])
    blocks = []
    for run in runs:
        found = run.found["interpret"]
        kinds = [row["kind"] for row in found["heads"]]
        rows = [[kind, kinds.count(kind)] for kind in sorted(set(kinds))]
        blocks += [
            text(f"{run.name}: {found['summary']}. All of it to explore: "
                 f"{run.out_dir}/eval/interpret.html"),
            table(f"{run.name}: what its {len(kinds)} heads look at.", ["kind", "heads"], rows),
        ]  # fmt: skip
        facts = found["neurons"]
        blocks.append(table(
            f"{run.name}: how alike the tokens are that a neuron fires at (1: always the same).",
            ["", "coherence", "readable"],
            [["trained", facts["mean_coherence"], facts["readable"]],
             ["random weights", facts["mean_coherence_random_weights"],
              facts["readable_random_weights"]]]))  # fmt: skip
        layers = {f"layer {i}": row for i, row in enumerate(facts["coherence_held_out"])}
        blocks.append(figure(
            charts.chart(charts.draw_histograms(layers, np.linspace(-0.2, 1, 25)),
                         xlabel="coherence", ylabel="neurons"),
            f"{run.name}: how alike the tokens are at which its neurons are highest."))  # fmt: skip
        for row in sorted(found["shown_neurons"], key=lambda row: -row["coherence_held_out"])[:4]:
            columns = [("", fired(one), "") for one in row["examples"][:6]]
            blocks.append(stories(f"{run.name}, layer {row['layer']}, neuron {row['neuron']}", "",
                                  columns))  # fmt: skip
    return Section("inside", title, blocks)


def syn(study):
    """Plain stories and stories with synonyms."""
    runs = study.of("syn")
    title = "TinyStories-Syn"
    blocks = []
    for run in runs:
        plain = study.first(run.size)
        pair = {f"{run.name} plain": plain.curve if plain else [],
                f"{run.name} with synonyms": run.curve}  # fmt: skip
        blocks.append(figure(
            charts.lines(pair, False, "o", xlabel="training tokens", ylabel="validation loss"),
            "Each on the validation stories of its own data."))  # fmt: skip
        found = run.found.get("vocabulary")
        if not found:
            continue
        one, other = found["models"].values()
        rows = [[key, one[key], other[key]] for key in
                ("mtld", "synonym_entropy", "rare", "non_words", "distinct_1", "distinct_2",
                 "distinct_3")]  # fmt: skip
        rows += [[f"loss on {where}", one["loss"][where], other["loss"][where]]
                 for where in one["loss"]]  # fmt: skip
        rows += [[f"judge: {x}", one["judge"].get(x), other["judge"].get(x)]
                 for x in dict.fromkeys([*one["judge"], *other["judge"]])]  # fmt: skip
        blocks.append(table(f"{run.name}: vocabulary (eval.vocabulary).",
                            ["measure", "plain", "with synonyms"], rows))  # fmt: skip
    if not runs:
        blocks.append(
            missing("stories with synonyms", "python -m eval.study <config> --syn=<sizes>")
        )
    rows = [[name, *(Cell(f"{a:.2f} / {b:.2f}", b) for a, b in zip(plain, other, strict=True))]
            for name, plain, other in published.REPORT]  # fmt: skip
    blocks.append(table("The student report's table 6: its judge's grades, plain / with synonyms.",
                        ["model", "grammar", "creativity", "consistency", "plot", "vocabulary"],
                        rows))  # fmt: skip
    return Section("syn", title, blocks)


def reward(study):
    """What the reward has taught."""
    runs = study.of("reward")
    title = "TinyStories-Reward"
    if not runs:
        how = "python -m eval.study <config> --rewarded=<size>"
        return Section("reward", title, [missing("a model taught by reward", how)])
    blocks = []
    for run in runs:
        series = {name: [(line["step"], line[name]) for line in run.steps if name in line]
                  for name in ("reward", "kl", "loss")}  # fmt: skip
        draws = [charts.draw_lines({name: xy}, log=False) for name, xy in series.items()]
        blocks.append(figure(charts.chart(*draws, size=(9, 2.8), xlabel="step",
                                          title=["reward", "KL to the reference", "loss"]),
                             f"{run.name}, taught by reward."))  # fmt: skip
        found = run.found.get("reward")
        if not found:
            continue
        models = found["models"]
        rows = [[key, *(row[key] for row in models.values())] for key in
                ("about", "mentions", "reward", "repetition", "perplexity", "words",
                 "ended")]  # fmt: skip
        for key, label in (("verdicts", "good, okay, bad, by rule"), ("judged", "by the judge")):
            if all(key in row for row in models.values()):
                counts = (", ".join(map(str, row[key].values())) for row in models.values())
                rows.append([label, *counts])
        title_ = f"{run.name} and the word “{found['word']}”: the report's table 7, with numbers."
        blocks.append(table(title_, ["measure", *models], rows))
    return Section("reward", title, blocks)
