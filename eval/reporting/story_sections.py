"""The report's sections about what models generate: stories, knowledge, copies, heads and neurons,
Syn, Reward. Each function of a results.Study returns blocks of page.py.
"""

import textwrap
from itertools import pairwise

import numpy as np
from markupsafe import Markup, escape

from eval import published
from eval.memorization.copying import BINS
from eval.memorization.page import highlight
from eval.prompts import knowledge_prompts
from eval.reporting import charts
from eval.reporting.page import Cell, figure, grade_pair, missing, stories, table, text
from nanostories.text.words import ngrams, words_and_marks

MARKS = {"success": "✓ ", "partial": "~ ", "failure": "✗ "}


def evaluated(study, name):
    """{model: its results of an evaluation}, for the first run of each size and the baselines."""
    first = {run.name: run for run in reversed(study.grid)}
    runs = [*reversed(first.values()), *study.of_kind("baseline")]
    return {run.name: run.results[name] for run in runs if run.results.get(name)}


def side_by_side(study):
    """The paper's stories, continued by each model."""
    results, rows = evaluated(study, "side_by_side"), {}
    if not results:
        return [missing("the paper's four beginnings", "python -m eval.side_by_side <run>")]
    baselines = [run.name for run in study.of_kind("baseline")]
    for model, result in results.items():
        for row in result["stories"]:
            rows.setdefault((row["name"], row["beginning"]), {})[model] = row
    blocks = [text("The beginnings that the paper and the report print, and each model's "
                   "completion, at the same temperature and seed. The last column is the training "
                   "story nearest to the completion of our largest model, with the pairs of words "
                   "that they share marked.")]  # fmt: skip
    for (name, beginning), by_model in rows.items():
        columns = [(model, row["completion"].strip(), "") for model, row in by_model.items()]
        ours = [model for model in by_model if model not in baselines]
        last = by_model[ours[-1]] if ours else {"rouge_nearest": None}
        if last["rouge_nearest"] is not None:
            shared = set(ngrams(words_and_marks(last["completion"]), 2))
            shared &= set(ngrams(words_and_marks(last["nearest_text"]), 2))
            nearest = highlight(last["nearest_text"].strip(), shared)
            columns.append((f"training story nearest to that of {ours[-1]}", nearest,
                            f"ROUGE-2 precision {last['rouge_nearest']:.2f}; the paper prints "
                            f"{published.NEAREST} for a model of 28 M and the laser"))  # fmt: skip
        blocks.append(stories(name, beginning, columns))
    return blocks


def knowledge(study):
    """The colored tables of prompts by model."""
    tables = {name: x["models"][0] for name, x in evaluated(study, "judge-prompts").items()}
    if not tables:
        command = "python -m eval.judge <run> --mode=prompts"
        return [missing("the knowledge prompts", command)]
    blocks = [text("Each cell is the model's likeliest completion, up to the end of the sentence. "
                   "✓ green: it gives every right continuation of the prompt more probability than "
                   "the wrong one beside it (or the judge calls it a success); ~ yellow: some; "
                   "✗ red: none.")]  # fmt: skip
    first = next(iter(tables.values()))["completions"]
    tables = {name: x for name, x in tables.items() if len(x["completions"]) == len(first)}
    for kind, title in knowledge_prompts.KINDS.items():
        rows = []
        for same_prompt in zip(*(x["completions"] for x in tables.values()), strict=True):
            if same_prompt[0]["kind"] == kind:
                rows.append([same_prompt[0]["prompt"], *map(completion_cell, same_prompt)])
        if rows:
            rows.append(["accuracy", *(x["scores"][kind]["accuracy"] for x in tables.values())])
            blocks.append(table(f"{kind}: {title}", ["prompt", *tables], rows, "wrap"))
    return blocks


def completion_cell(row):
    """A Cell of a completion of a knowledge prompt, colored by its verdict."""
    verdict = row.get("rating") or row["verdict"]
    short = textwrap.shorten(row["completion"], 140, placeholder=" ...")
    return Cell(MARKS.get(verdict, "") + short, verdict, verdict)


def instruct(study):
    """How models trained on instructions follow them."""
    rows, names = [], {"joint": None}
    runs = [run for run in study.of_kind("instruct") if run.results.get("instruct")]
    for run in runs:
        names |= run.results["instruct"]["checks"]
    labels = {"model": "model", "shuffled": "given another instruction", "true": "true story"}
    for run in runs:
        checks = run.results["instruct"]["checks"]
        for side in [side for side in labels if side in checks["joint"]]:
            values = [checks.get(name, {}).get(side) for name in names]
            rows.append([run.name, labels[side], *values])
    ours = missing("instructions", "python -m eval.study <config> --instruct=<sizes>")
    if rows:
        ours = table("Fraction of the requests that a story fulfills, checked by program "
                     "(eval.instruct); joint: all of them.", ["model", "story", *names],
                     rows)  # fmt: skip
    paper = [[name, grade_pair(*row["instruct"])]
             for name, row in published.MODELS.items() if "instruct" in row]  # fmt: skip
    return [
        ours,
        table("The paper's grades for instruction following, GPT-4's, grade / relative.",
              ["width-layers", "instruct"], paper),
        missing("combinations of instructions that are not in the training data",
                "python prepare.py --hold_out=words+summary; see README"),
    ]  # fmt: skip


def diversity(study):
    """What models copy."""
    sets, histograms = {}, {}
    for run in study.grid:
        for name, row in (run.results.get("diversity") or {"sets": {}})["sets"].items():
            sets.setdefault(name.replace(run.out_dir, run.name), row)
    if not sets:
        return [missing("copies of training stories", "python -m eval.diversity <run>")]
    rows = [
        [name, *(row.get(f"rouge_{x}") for x in ("original", "other", "nearest", "nearest_unseen")),
         row["ngrams"]["4"]["new"] if "ngrams" in row else None,
         row["copies"]["exact"] if "copies" in row else None, row["mtld"], row["self_bleu"]]
        for name, row in sets.items()
    ]  # fmt: skip
    for key, title in (("rouge_original", "ROUGE-2 with the original"),
                       ("rouge_other", "with the most similar other"),
                       ("rouge_nearest", "with the nearest training story")):  # fmt: skip
        values = {name: row["values"][key] for name, row in sets.items() if key in row["values"]}
        if values:
            histograms[title] = charts.draw_histograms(values, [i / 20 for i in range(21)])
    name, ngram_rows = next((name, row["ngrams"]) for name, row in sets.items() if "ngrams" in row)
    bins, curves = [(a + b) / 2 for a, b in pairwise(BINS)], {}
    for n, row in ngram_rows.items():
        total = max(1, sum(row["histogram"]))
        fractions = [count / total for count in row["histogram"]]
        curves[f"{n}-grams"] = list(zip(bins, fractions, strict=True))
    return [
        text("Training stories cut at 40 % of their words, and each model's completions: ROUGE-2 "
             "precision of bigrams by the paper's formula. Unseen stories, of the validation "
             "split, show how much any such story shares with the training stories."),
        table("Copies (eval.diversity).",
              ["texts", "ROUGE-2 with the original", "with the most similar other text",
               "with the nearest training story", "nearest, unseen stories of the same length",
               "new 4-grams", "exact copies", "MTLD", "self-BLEU"], rows),
        *[figure(svg, "Histograms of the paper's three measures.")
          for svg in charts.panels(histograms, ylabel="completions")],
        figure(charts.lines(curves, log=False, style=".-",
                            xlabel="log10 of the frequency in the training stories; -10: new",
                            ylabel="fraction of the completions' n-grams"),
               f"How often the n-grams of {name} occur in the training stories."),
    ]  # fmt: skip


def interpret(study):
    """Heads and neurons."""
    blocks = []
    for run in [run for run in study.runs if run.results.get("interpret")]:
        result = run.results["interpret"]
        kinds, neurons = [row["kind"] for row in result["heads"]], result["neurons"]
        layers = {f"layer {i}": row for i, row in enumerate(neurons["coherence_held_out"])}
        blocks += [
            text(f"{run.name}: {result['summary']}. To explore all of it: "
                 f"{run.out_dir}/eval/interpret.html"),
            table(f"{run.name}: what its {len(kinds)} heads attend to.", ["kind", "heads"],
                  [[kind, kinds.count(kind)] for kind in sorted(set(kinds))]),
            table(f"{run.name}: how similar the tokens are at which a neuron fires (1: always the "
                  "same).", ["weights", "coherence", "readable"],
                  [["trained", neurons["mean_coherence"], neurons["readable"]],
                   ["random", neurons["mean_coherence_random_weights"],
                    neurons["readable_random_weights"]]]),
            figure(charts.chart(charts.draw_histograms(layers, np.linspace(-0.2, 1, 25)),
                                xlabel="coherence", ylabel="neurons"),
                   f"{run.name}: coherence of the tokens at which its neurons fire."),
        ]  # fmt: skip
        for row in sorted(result["shown_neurons"], key=lambda row: -row["coherence_held_out"])[:4]:
            columns = [("", mark_token(example), "") for example in row["examples"][:6]]
            title = f"{run.name}, layer {row['layer']}, neuron {row['neuron']}"
            blocks.append(stories(title, "", columns))
    return blocks or [missing("heads and neurons", "python -m eval.interpret <run>")]


def mark_token(example):
    """A neuron's example as HTML, the token at which it fires marked."""
    tokens, i = example["tokens"], example["peak"]
    parts = "".join(tokens[:i]), tokens[i], "".join(tokens[i + 1 :])
    return Markup("{}<mark>{}</mark>{}").format(*map(escape, parts))


def syn(study):
    """Models of plain stories and of stories with synonyms."""
    runs, blocks = study.of_kind("syn"), []
    for run in runs:
        plain = study.first(run.size)
        pair = {f"{run.name} plain": plain.curve if plain else [],
                f"{run.name} with synonyms": run.curve}  # fmt: skip
        curves = charts.lines(pair, False, "o-", xlabel="training tokens", ylabel="validation loss")
        blocks.append(figure(curves, "Each on the validation stories of its own data."))
        if result := run.results.get("vocabulary"):
            models = list(result["models"].values())
            rows = [[key, *(x[key] for x in models)] for key in
                    ("mtld", "synonym_entropy", "rare", "non_words", "distinct_1", "distinct_2",
                     "distinct_3")]  # fmt: skip
            rows += [[f"loss on {k}", *(x["loss"][k] for x in models)] for k in models[0]["loss"]]
            for grade in models[0]["judge"] | models[1]["judge"]:
                rows.append([f"judge: {grade}", *(x["judge"].get(grade) for x in models)])
            blocks.append(table(f"{run.name}: vocabulary (eval.vocabulary).",
                                ["measure", "plain", "with synonyms"], rows))  # fmt: skip
    if not runs:
        command = "python -m eval.study <config> --syn=<sizes>"
        blocks.append(missing("stories with synonyms", command))
    student = [[name, *map(grade_pair, plain, other)] for name, plain, other in published.REPORT]
    blocks.append(table("The student report's table 6: its judge's grades, plain / with synonyms.",
                        ["model", "grammar", "creativity", "consistency", "plot", "vocabulary"],
                        student))  # fmt: skip
    return blocks


def reward(study):
    """What fine-tuning with a reward changes."""
    blocks = []
    for run in study.of_kind("reward"):
        draws = {
            title: charts.draw_lines({key: [(x["step"], x[key]) for x in run.steps if key in x]},
                                     log=False)
            for key, title in (("reward", "reward"), ("kl", "KL to the reference"),
                               ("loss", "loss"))
        }  # fmt: skip
        blocks += [figure(svg, f"{run.name}, fine-tuned with a reward.")
                   for svg in charts.panels(draws, xlabel="step")]  # fmt: skip
        if result := run.results.get("reward"):
            models = result["models"]
            rows = [[key, *(row[key] for row in models.values())] for key in
                    ("about", "mentions", "reward", "repetition", "perplexity", "words",
                     "ended")]  # fmt: skip
            for key, label in (("verdicts", "good, okay, bad, by rule"), ("judged", "by a judge")):
                if all(key in row for row in models.values()):
                    counts = (", ".join(map(str, row[key].values())) for row in models.values())
                    rows.append([label, *counts])
            caption = f"{run.name} and the word “{result['word']}”: report table 7 in numbers."
            blocks.append(table(caption, ["measure", *models], rows))
    command = "python -m eval.study <config> --reward=<size>"
    return blocks or [missing("a model fine-tuned with a reward", command)]
