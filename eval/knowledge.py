"""The knowledge tables, prompts x models: greedy completions, scored and, with a judge, rated.

The score needs no judge. Each prompt has pairs of continuations (prompts/knowledge_prompts.py), and
a model answers a pair correctly where its log p(right | prompt) - log p(wrong | prompt) is above 0.
"""

import re
import sys
from pathlib import Path

import numpy as np

from configs import UserError, printable
from eval import bootstrap, harness
from eval.llm import grading
from eval.llm.rubrics import KNOWLEDGE, JudgeItem
from eval.prompts import knowledge_prompts

COLORS = {"success": 42, "partial": 43, "failure": 41}  # green, yellow, red, of a terminal
RATINGS = {"success": 1.0, "partial": 0.5, "failure": 0.0}
MAX_TABLE = 40  # prompts whose completions are printed


def evaluate(models, settings, folder, facts):
    """Mode prompts of judge.py: complete, score, rate, print, write eval/judge-<prompts>.json."""
    tables, replies = make_tables(models, settings, folder), folder / "judge_replies.jsonl"
    if settings.judge and not rate(tables, settings, replies, facts["judge"]):
        return  # a dry run
    for table in tables:
        kinds = dict.fromkeys(row["kind"] for row in table["completions"])
        table["scores"] = {
            kind or "all": scores(table["completions"], settings.seed, kind)
            for kind in [*kinds, None]
        }
    print_tables(tables)
    gaps = differences(tables, settings.seed)
    for name, gap in gaps.items():
        interval = bootstrap.format_interval(gap["accuracy"])
        print(f"accuracy, {models[0].out_dir} less {name}: {interval}")
    results = facts | {"models": tables, "difference": gaps}
    name = "judge-slides" if settings.prompts == "slides" else "judge-prompts"
    harness.write_result(models[0].out_dir, name, results)


def read_prompts(settings):
    """The knowledge_prompts.Prompts that the settings name, a list."""
    if settings.prompts == "storybook":
        return knowledge_prompts.made(settings.num_prompts or 200, settings.seed)
    if settings.prompts not in ("", "paper", "slides"):
        raise UserError("in mode prompts, prompts is paper, slides or storybook")
    name = "slides" if settings.prompts == "slides" else "knowledge"
    return knowledge_prompts.paper(name)[: settings.num_prompts or None]


def make_tables(models, settings, folder):
    """[{"model", "checkpoint", "completions": a row for each prompt}], one of each model."""
    prompts, tables = read_prompts(settings), []
    for model in models:
        texts = [prompt.text for prompt in prompts]
        samples = harness.completions(model, texts, settings, 1, folder)
        margins = harness.log_likelihood_margins(model, prompts)
        rows = [
            {"kind": prompt.kind, "prompt": prompt.text, "completion": first_sentence(text),
             "margins": some, "verdict": verdict_of(some)}
            for prompt, (text,), some in zip(prompts, samples, margins, strict=True)
        ]  # fmt: skip
        tables.append({"model": model.out_dir, "checkpoint": model.identity(), "completions": rows})
    return tables


def first_sentence(text):
    """A completion up to the end of its first sentence, all of it where none ends."""
    match = re.match(r".*?[.!?]+[\"”'’]*(?=\s|$)", text, re.DOTALL)
    return match[0] if match else text


def verdict_of(margins):
    """success where all margins of a prompt are positive, failure where none is, or partial."""
    correct = sum(margin > 0 for margin in margins)
    return "success" if correct == len(margins) else "partial" if correct else "failure"


def rate(tables, settings, path, facts):
    """Put the judge's "rating", None if unreadable, into each row; False of a dry run."""
    rows = [(i, row) for table in tables for i, row in enumerate(table["completions"])]
    # Two models with the same completion of a prompt are rated once.
    items = {
        (i, text := row["completion"]):
            JudgeItem(text, row["prompt"], knowledge_prompts.KINDS[row["kind"]], (i, 0))
        for i, row in rows
    }  # fmt: skip
    graded = grading.grade(settings, KNOWLEDGE, list(items.values()), path, facts)
    if graded is None:
        return False
    verdicts = dict(zip(items, graded, strict=True))
    for i, row in rows:
        _, verdict = verdicts[i, row["completion"]]
        row["rating"] = verdict and verdict["rating"]
    return True


def scores(rows, seed, kind=None):
    """{"accuracy", "margin", if rated "rating"}: intervals over the prompts of a kind, or all."""
    rows = [row for row in rows if kind in (None, row["kind"])]
    means = harness.margin_scores([row["margins"] for row in rows])
    results = {name: bootstrap.mean(values, seed) for name, values in means.items()}
    ratings = [RATINGS.get(row.get("rating"), np.nan) for row in rows]
    if not np.isnan(ratings).all():
        results["rating"] = bootstrap.mean(ratings, seed)
    return results


def differences(tables, seed):
    """{other model: {"accuracy", "margin"}}: intervals of the first model's less the other's."""
    first, *others = [
        harness.margin_scores([row["margins"] for row in table["completions"]]) for table in tables
    ]
    ones, gaps = np.ones(len(first["margin"])), {}
    for table, other in zip(tables[1:], others, strict=True):
        gaps[table["model"]] = {
            name: bootstrap.difference((first[name], ones), (other[name], ones), seed)
            for name in first
        }
    return gaps


def print_tables(tables):
    """Print the colored table of prompts x models, if they are few, and the scores."""
    rows, names = tables[0]["completions"], [Path(table["model"]).name for table in tables]
    for i, prompt in enumerate(rows if len(rows) <= MAX_TABLE else ()):
        print(printable(f"\n{prompt['kind']}: {prompt['prompt']}"))
        for name, table in zip(names, tables, strict=True):
            row = table["completions"][i]
            verdict = row.get("rating", row["verdict"]) or "unreadable"
            # Without a judge nothing is known of the completion, only of the pairs.
            correct = f"{sum(x > 0 for x in row['margins'])} of {len(row['margins'])} pairs"
            cell = f" {verdict if 'rating' in row else correct:12} "
            if sys.stdout.isatty() and verdict in COLORS:
                cell = f"\033[30;{COLORS[verdict]}m{cell}\033[0m"
            completion = printable(" ".join(row["completion"].split()))[:100]
            print(f"  {name:20.20} {cell} {completion}")
    print()
    harness.print_table(["prompts", "model", "accuracy", "margin, nats", "rating"], [
        [kind, name[:22], *map(table["scores"][kind].get, ("accuracy", "margin", "rating"))]
        for kind in tables[0]["scores"] for name, table in zip(names, tables, strict=True)
    ])  # fmt: skip
