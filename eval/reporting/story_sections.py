"""The report's sections about what models generate: stories, knowledge, copies, heads and neurons,
Syn, Reward. Each function of a results.Study returns what the macro of its name in sections.html
takes.
"""

import textwrap
import tomllib
from collections import Counter
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup

from eval.memorization.copying import MIDDLES
from eval.memorization.page import highlight
from eval.prompts import knowledge_prompts
from eval.reporting import charts
from eval.reporting.model_sections import by_name
from eval.reporting.page import templates
from nanostories.dataset.instruct import parse_record
from nanostories.text.words import ngrams, split_words, words_and_marks

WRITERS = {"model": "model", "shuffled": "given another instruction", "true": "true story"}
ROUGE = {"rouge_original": "ROUGE-2 with the original",
         "rouge_other": "with the most similar other",
         "rouge_nearest": "with the nearest training story"}  # fmt: skip
REWARD_CURVES = {"reward": "reward", "kl": "KL to the reference, nats", "about": "about the word",
                 "repetition": "repeated 3-grams"}  # fmt: skip


def evaluated(study, name):
    """{model: its results of an evaluation}, for the first run of each size and the baselines."""
    runs = [runs[0] for runs in by_name([*study.grid, *study.of_kind("baseline")]).values()]
    return {run.name: run.results[name] for run in runs if run.results.get(name)}


def stories(study):
    """The paper's beginnings, continued by each model."""
    parameters = {run.name: run.size.parameters for run in study.grid}
    rows, beginnings = {}, []
    for model, result in evaluated(study, "side_by_side").items():
        for row in result["stories"]:
            rows.setdefault((row["name"], row["beginning"]), {})[model] = row
    for title, by_model in rows.items():
        completions = [(model, row["completion"].strip(), "") for model, row in by_model.items()]
        ours, nearest = [model for model in by_model if model in parameters], None
        largest = max(ours, key=parameters.get, default=None)
        if largest and (row := by_model[largest])["rouge_nearest"] is not None:
            pairs = [set(ngrams(words_and_marks(row[text]), 2))
                     for text in ("completion", "nearest_text")]  # fmt: skip
            text = highlight(row["nearest_text"].strip(), pairs[0] & pairs[1])
            nearest = {"model": largest, "text": text, "rouge": row["rouge_nearest"]}
        beginnings.append((*title, completions, nearest))
    return {"beginnings": beginnings}


def knowledge(study):
    """The tables of prompts by model: pairs of continuations with their probabilities."""
    tables, slides = {}, {"": "the prompts that open the slides on the paper"}
    for file, kinds in {"knowledge": knowledge_prompts.KINDS, "slides": slides}.items():
        results = evaluated(study, f"judge-{file}".replace("knowledge", "prompts"))
        results = {model: x["models"][0] for model, x in results.items()}
        lengths = [len(x["completions"]) for x in results.values()]
        results = {model: x for model, x in results.items() if len(x["completions"]) == lengths[0]}
        pairs = {one.text: one.pairs for one in knowledge_prompts.paper(file)}
        by_prompt = list(zip(*(x["completions"] for x in results.values()), strict=True))
        for kind, title in kinds.items():
            rows = [(cells[0]["prompt"], pairs.get(cells[0]["prompt"], ()),
                     [completion(row, pairs.get(row["prompt"], ())) for row in cells])
                    for cells in by_prompt if kind in ("", cells[0]["kind"])]  # fmt: skip
            scores = [x["scores"].get(kind or "all", {}) for x in results.values()]
            if rows:
                caption = f"{kind}: {title}".removeprefix(": ")
                tables[caption] = [*results], rows, [x.get("accuracy") for x in scores]
    return {"tables": tables, "slides": slides[""]}


def completion(row, pairs):
    """What the page shows of a model and a prompt. shares: of each pair, the right continuation's
    of the probability of both; right: whether the text contains a right continuation."""
    answers = [f" {' '.join(split_words(right))} " for right, _ in pairs]
    words = f" {' '.join(split_words(row['completion']))} "
    return {"shares": [float(1 / (1 + np.exp(-margin))) for margin in row["margins"]],
            "text": textwrap.shorten(row["completion"], 140, placeholder=" ..."),
            "right": any(x in words for x in answers), "rating": row.get("rating")}  # fmt: skip


def instruct(study):
    """How models trained on instructions follow them, also combinations that they never saw."""
    runs = [run for run in study.of_kind("instruct") if run.results.get("instruct")]
    joint = {label: {run.size: run.results["instruct"]["checks"]["joint"].get(writer)
                     for run in reversed(runs)} for writer, label in WRITERS.items()}  # fmt: skip
    draw = charts.draw_intervals(joint, {run.size: run.size.parameters for run in runs})
    labels = {"xlabel": "parameters without embeddings", "ylabel": "followed completely, fraction"}
    pair = study.settings["hold_out"].split("+")
    held_out = [
        (run, next((x for x in run.results.get("instructed", ()) if requires(x, pair)), None))
        for run in study.of_kind("ood") if run.results.get("instruct")
    ]  # fmt: skip
    return {"runs": runs, "writers": WRITERS, "held_out": held_out, "pair": pair,
            "by_size": charts.chart(draw, **labels) if len(runs) > 1 else None}  # fmt: skip


def requires(line, fields):
    """Whether the instruction of a line of eval.instruct has all of the fields."""
    record = parse_record(line["prompt"])
    return record is not None and record.has_fields(fields)


def diversity(study):
    """What models copy."""
    sets, histograms, curves, nearest = {}, {}, {}, None
    for run in sorted(study.grid, key=lambda run: run.size.parameters):
        if copies := run.results.get("copies"):  # at last the largest model's
            nearest = run.name, max(copies, key=lambda line: line["rouge_nearest"] or 0)
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
            "ngrams_of": name, "nearest": nearest}  # fmt: skip


def interpret(study):
    """Heads and neurons."""
    runs = []
    for run in [run for run in study.runs if run.results.get("interpret")]:
        result, patterns, maps = run.results["interpret"], run.results.get("patterns"), {}
        heads = Counter(row["kind"] for row in result["heads"])
        by_layer = enumerate(result["neurons"]["coherence_held_out"])
        draw = charts.draw_histograms({f"layer {i}": row for i, row in by_layer},
                                      np.linspace(-0.2, 1, 25))  # fmt: skip
        svg = charts.chart(draw, xlabel="coherence", ylabel="neurons")
        first = {row["kind"]: row for row in reversed(result["heads"])}  # head of each kind
        for kind, row in first.items() if patterns else ():
            pattern, tokens = patterns[row["layer"]][row["head"]], result["text"]["tokens"]
            title = f"{kind}: layer {row['layer']}, head {row['head']}"
            maps[title] = charts.draw_heat_map(pattern, tokens[:26])
        shown = sorted(result["shown_neurons"], key=lambda row: -row["coherence_held_out"])[:4]
        runs.append((run, heads, svg, charts.panels(maps, (3.6, 3.6)), shown))
    return {"runs": runs}


def syn(study):
    """Models of plain stories and of stories with synonyms."""
    runs, labels = [], {"xlabel": "training tokens", "ylabel": "validation loss"}
    for run in study.of_kind("syn"):
        plain = study.first(run.size)
        pair = {"plain": plain.curve if plain else [], "with synonyms": run.curve}
        runs.append((run, charts.lines(pair, False, "o-", **labels)))
    return {"runs": runs}


def reward(study):
    """What fine-tuning changes: with a KL penalty, and by the report's first method without."""
    runs, labels = [], {"reward": "with a KL penalty", "naive": "without (naive)"}
    for run in study.of_kind("reward") or study.of_kind("naive"):
        pair = {labels[kind]: one for kind in labels if (one := study.first(run.size, kind))}
        curves = {}
        for key, title in REWARD_CURVES.items():
            lines = {label: [(line["step"], line[key]) for line in one.steps if key in line]
                     for label, one in pair.items()}  # fmt: skip
            curves[title] = charts.draw_lines(lines, log=False)
        runs.append((run.name, charts.panels(curves, xlabel="step"), pair))
    return {"runs": runs}


def questions(study, claims, law):
    """[(question, answer, [Claim])] of questions.toml; "" if what the answer quotes is missing."""
    values, rows, by_text = {"law": law}, [], {claim.text: claim for claim in claims}
    for run in study.runs:
        if run.kind == "" and (sets := (run.results.get("diversity") or {}).get("sets")):
            values["copied"] = next((row for row in sets.values() if "copies" in row), None)
        if run.kind == "" and run.results.get("interpret"):
            values["neurons"] = run.results["interpret"]["neurons"]
        if run.kind == "ood" and run.results.get("instruct"):
            gaps = run.results["instruct"]["beside"]["difference"]
            values["held_out"] = gaps.get(f"met, {study.settings['hold_out']}")
    table = tomllib.loads(Path(__file__).with_name("questions.toml").read_text(encoding="utf-8"))
    for row in table["question"]:
        try:
            answer = Markup(templates().from_string(row.get("answer", "")).render(values))
        except jinja2.UndefinedError:
            answer = ""
        rows.append((row["question"], answer, [by_text[text] for text in row.get("claims", ())]))
    return {"answers": rows}


SECTIONS = (stories, knowledge, instruct, diversity, interpret, syn, reward)
