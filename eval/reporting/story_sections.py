"""The report's sections about what models generate: stories, knowledge, copies, heads and neurons,
Syn, Reward. Each function of a results.Study returns what the macro of its name in sections.html
takes.
"""

import textwrap
from collections import Counter

import numpy as np
from markupsafe import Markup

from eval import published
from eval.memorization.copying import MIDDLES
from eval.memorization.page import highlight
from eval.prompts import knowledge_prompts
from eval.reporting import charts
from eval.reporting.page import Cell, grade_pair
from nanostories.text.words import ngrams, words_and_marks

MARKS = {"success": "✓ ", "partial": "~ ", "failure": "✗ "}
WRITERS = {"model": "model", "shuffled": "given another instruction", "true": "true story"}
ROUGE = {"rouge_original": "ROUGE-2 with the original",
         "rouge_other": "with the most similar other",
         "rouge_nearest": "with the nearest training story"}  # fmt: skip
REWARD_CURVES = {"reward": "reward", "kl": "KL to the reference", "loss": "loss"}


def evaluated(study, name):
    """{model: its results of an evaluation}, for the first run of each size and the baselines."""
    first = {run.name: run for run in reversed(study.grid)}
    runs = [*reversed(first.values()), *study.of_kind("baseline")]
    return {run.name: run.results[name] for run in runs if run.results.get(name)}


def stories(study):
    """The paper's beginnings, continued by each model."""
    baselines = {run.name for run in study.of_kind("baseline")}
    rows, beginnings = {}, []
    for model, result in evaluated(study, "side_by_side").items():
        for row in result["stories"]:
            rows.setdefault((row["name"], row["beginning"]), {})[model] = row
    for title, by_model in rows.items():
        completions = [(model, row["completion"].strip(), "") for model, row in by_model.items()]
        nearest, ours = None, [model for model in by_model if model not in baselines]
        if ours and (largest := by_model[ours[-1]])["rouge_nearest"] is not None:
            pairs = [set(ngrams(words_and_marks(largest[text]), 2))
                     for text in ("completion", "nearest_text")]  # fmt: skip
            text = highlight(largest["nearest_text"].strip(), pairs[0] & pairs[1])
            nearest = {"model": ours[-1], "text": text, "rouge": largest["rouge_nearest"]}
        beginnings.append((*title, completions, nearest))
    return {"beginnings": beginnings}


def knowledge(study):
    """The colored tables of prompts by model."""
    results = {name: x["models"][0] for name, x in evaluated(study, "judge-prompts").items()}
    lengths = [len(x["completions"]) for x in results.values()]
    results = {name: x for name, x in results.items() if len(x["completions"]) == lengths[0]}
    by_prompt = list(zip(*(x["completions"] for x in results.values()), strict=True))
    tables = {}
    for kind, title in knowledge_prompts.KINDS.items():
        rows = [[cells[0]["prompt"], *map(completion_cell, cells)]
                for cells in by_prompt if cells[0]["kind"] == kind]  # fmt: skip
        if rows:
            rows.append(["accuracy", *(x["scores"][kind]["accuracy"] for x in results.values())])
            tables[f"{kind}: {title}"] = rows
    return {"models": [*results], "tables": tables}


def completion_cell(row):
    """A Cell of a completion of a knowledge prompt, colored by its verdict."""
    verdict = row.get("rating") or row["verdict"]
    short = textwrap.shorten(row["completion"], 140, placeholder=" ...")
    return Cell(MARKS.get(verdict, "") + short, verdict, verdict)


def instruct(study):
    """How models trained on instructions follow them."""
    results = [(run.name, run.results["instruct"]["checks"]) for run in study.of_kind("instruct")
               if run.results.get("instruct")]  # fmt: skip
    names = list(dict.fromkeys(["joint", *(name for _, checks in results for name in checks)]))
    ours = [
        [model, label, *(checks.get(name, {}).get(writer) for name in names)]
        for model, checks in results
        for writer, label in WRITERS.items() if writer in checks["joint"]
    ]  # fmt: skip
    return {"checks": names, "ours": ours}


def diversity(study):
    """What models copy."""
    sets, histograms, curves = {}, {}, {}
    for run in study.grid:
        for name, row in (run.results.get("diversity") or {"sets": {}})["sets"].items():
            sets.setdefault(name.replace(run.out_dir, run.name), row)
    if not sets:
        return {"sets": {}}
    for key, title in ROUGE.items():
        values = {name: row["values"][key] for name, row in sets.items() if key in row["values"]}
        if values:
            histograms[title] = charts.draw_histograms(values, [i / 20 for i in range(21)])
    name, ngram_rows = next((name, row["ngrams"]) for name, row in sets.items() if "ngrams" in row)
    for n, row in ngram_rows.items():
        fractions = np.array(row["histogram"]) / max(1, sum(row["histogram"]))
        curves[f"{n}-grams"] = list(zip(MIDDLES, fractions, strict=True))
    labels = {"xlabel": "log10 of the frequency in the training stories; -10: new",
              "ylabel": "fraction of the completions' n-grams"}  # fmt: skip
    return {"sets": sets, "histograms": charts.panels(histograms, ylabel="completions"),
            "ngrams": charts.lines(curves, log=False, style=".-", **labels),
            "ngrams_of": name}  # fmt: skip


def interpret(study):
    """Heads and neurons."""
    runs = []
    for run in [run for run in study.runs if run.results.get("interpret")]:
        result = run.results["interpret"]
        heads = Counter(row["kind"] for row in result["heads"])
        by_layer = enumerate(result["neurons"]["coherence_held_out"])
        rows = {f"layer {i}": row for i, row in by_layer}
        draw = charts.draw_histograms(rows, np.linspace(-0.2, 1, 25))
        svg = charts.chart(draw, xlabel="coherence", ylabel="neurons")
        shown = sorted(result["shown_neurons"], key=lambda row: -row["coherence_held_out"])[:4]
        examples = [(row, [("", mark_token(x), "") for x in row["examples"][:6]]) for row in shown]
        runs.append((run, heads, svg, examples))
    return {"runs": runs}


def mark_token(example):
    """A neuron's example as HTML, the token at which it fires marked."""
    tokens, i = example["tokens"], example["peak"]
    parts = "".join(tokens[:i]), tokens[i], "".join(tokens[i + 1 :])
    return Markup("{}<mark>{}</mark>{}").format(*parts)  # escapes them


def syn(study):
    """Models of plain stories and of stories with synonyms."""
    runs = []
    for run in study.of_kind("syn"):
        plain, result = study.first(run.size), run.results.get("vocabulary")
        pair = {f"{run.name} plain": plain.curve if plain else [],
                f"{run.name} with synonyms": run.curve}  # fmt: skip
        curves = charts.lines(pair, False, "o-", xlabel="training tokens", ylabel="validation loss")
        runs.append({"name": run.name, "curves": curves, "result": result})
    student = [[name, *map(grade_pair, plain, other)] for name, plain, other in published.REPORT]
    return {"runs": runs, "student": student}


def reward(study):
    """What fine-tuning with a reward changes."""
    runs = []
    for run in study.of_kind("reward"):
        curves = {}
        for key, title in REWARD_CURVES.items():
            points = [(line["step"], line[key]) for line in run.steps if key in line]
            curves[title] = charts.draw_lines({key: points}, log=False)
        runs.append({"name": run.name, "curves": charts.panels(curves, xlabel="step"),
                     "result": run.results.get("reward")})  # fmt: skip
    return {"runs": runs}


SECTIONS = (stories, knowledge, instruct, diversity, interpret, syn, reward)
