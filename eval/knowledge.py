"""
The knowledge tables, prompts x models: greedy completions, scored and, with a judge, rated.

The score needs no judge. Each prompt has pairs of continuations (prompts/knowledge_prompts.py), and
a model answers a pair correctly where it gives the right one the higher probability:

    margin = log p(right | prompt) - log p(wrong | prompt), in nats
"""

import re
import sys
from pathlib import Path

import numpy as np

from configs import UserError
from eval import bootstrap
from eval.harness import completions, log_likelihood_margins, write_result
from eval.llm import grading
from eval.llm.rubrics import KNOWLEDGE, JudgeItem
from eval.prompts import knowledge_prompts

COLORS = {"success": 42, "partial": 43, "failure": 41}  # green, yellow, red, of a terminal
RATINGS = {"success": 1.0, "partial": 0.5, "failure": 0.0}
MAX_TABLE = 40  # prompts whose completions are printed


def evaluate(models, settings, folder, facts):
    """Mode prompts of judge.py: complete, score, rate, print and write eval/judge-prompts.json."""
    tables = make_tables(models, settings, folder)
    if settings.judge and not rate(tables, settings, folder / "judge_replies.jsonl"):
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
    write_result(models[0].out_dir, "judge-prompts", results)


def read_prompts(settings):
    """The knowledge_prompts.Prompts that the settings name, a list."""
    if settings.prompts == "storybook":
        return knowledge_prompts.made(settings.num_prompts or 200, settings.seed)
    if settings.prompts not in ("", "paper"):
        raise UserError("in mode prompts, prompts is paper or storybook")
    return knowledge_prompts.paper()[: settings.num_prompts or None]


def make_tables(models, settings, folder):
    """
    A list of {"model", "checkpoint", "completions"}, one of each model. A row of the completions
    has the prompt and its kind, the completion, the margins, and their verdict.
    """
    prompts, tables = read_prompts(settings), []
    for model in models:
        samples = completions(model, [prompt.text for prompt in prompts], settings, 1, folder)
        rows = [
            {"kind": prompt.kind, "prompt": prompt.text, "completion": first_sentence(text),
             "margins": margins, "verdict": verdict_of(margins)}
            for prompt, (text,), margins in zip(
                prompts, samples, log_likelihood_margins(model, prompts), strict=True)
        ]  # fmt: skip
        identity = {"model": model.out_dir, "checkpoint": model.identity()}
        tables.append(identity | {"completions": rows})
    return tables


def first_sentence(text):
    """A completion up to the end of its first sentence, all of it where none ends."""
    match = re.match(r".*?[.!?]+[\"”'’]*(?=\s|$)", text, re.DOTALL)
    return match[0] if match else text


def verdict_of(margins):
    """success where all margins of a prompt are positive, failure where none is, or partial."""
    correct = sum(margin > 0 for margin in margins)
    return "success" if correct == len(margins) else "partial" if correct else "failure"


def rate(tables, settings, path):
    """
    Have the judge rate each completion: "rating" in its row, None if unreadable. Returns whether it
    did: False of a dry run.
    """
    rows = [(i, row) for table in tables for i, row in enumerate(table["completions"])]
    # Two models with the same completion of a prompt are rated once.
    items = {
        (i, row["completion"]): JudgeItem(
            row["completion"], row["prompt"], knowledge_prompts.KINDS[row["kind"]], (i, 0)
        )
        for i, row in rows
    }
    graded = grading.grade(settings, KNOWLEDGE, list(items.values()), path)
    if graded is None:
        return False
    verdicts = dict(zip(items, (verdict for _, verdict in graded), strict=True))
    for i, row in rows:
        verdict = verdicts[i, row["completion"]]
        row["rating"] = verdict and verdict["rating"]
    return True


def measures(rows):
    """{"accuracy", "margin": float64 (prompts,)}: means over the pairs of each prompt."""
    return {
        "accuracy": np.array([np.mean(np.array(row["margins"]) > 0) for row in rows]),
        "margin": np.array([np.mean(row["margins"]) for row in rows]),
    }


def scores(rows, seed, kind=None):
    """{"accuracy", "margin", if rated "rating"}: intervals over the prompts of a kind, or all."""
    rows = [row for row in rows if kind in (None, row["kind"])]
    results = {name: bootstrap.mean(values, seed) for name, values in measures(rows).items()}
    ratings = [RATINGS.get(row.get("rating"), np.nan) for row in rows]
    if not np.isnan(ratings).all():
        results["rating"] = bootstrap.mean(ratings, seed)
    return results


def differences(tables, seed):
    """{other model: {"accuracy", "margin"}}: intervals of the first model's less the other's."""
    ones = np.ones(len(tables[0]["completions"]))
    first, *others = [measures(table["completions"]) for table in tables]
    return {
        table["model"]: {
            name: bootstrap.difference((first[name], ones), (other[name], ones), seed)
            for name in first
        }
        for table, other in zip(tables[1:], others, strict=True)
    }


def print_tables(tables):
    """Print the colored table of prompts x models, if they are few, and the scores."""
    rows, names = tables[0]["completions"], [Path(table["model"]).name for table in tables]
    for kind in knowledge_prompts.KINDS if len(rows) <= MAX_TABLE else ():
        for i in (i for i, row in enumerate(rows) if row["kind"] == kind):
            print(f"\n{kind}: {rows[i]['prompt']}")
            for name, table in zip(names, tables, strict=True):
                row = table["completions"][i]
                verdict = row.get("rating", row["verdict"]) or "unreadable"
                cell = f" {verdict:10} "
                if sys.stdout.isatty() and verdict in COLORS:
                    cell = f"\033[30;{COLORS[verdict]}m{cell}\033[0m"
                print(f"  {name:20.20} {cell} {' '.join(row['completion'].split())[:100]}")
    print(f"\n{'':10}{'model':22}{'accuracy':>24}{'margin, nats':>26}{'rating':>24}")
    for kind in tables[0]["scores"]:
        for name, table in zip(names, tables, strict=True):
            score = table["scores"][kind]
            cells = [bootstrap.format_interval(score["accuracy"]).rjust(24)]
            cells.append(bootstrap.format_interval(score["margin"], 2).rjust(26))
            if "rating" in score:
                cells.append(bootstrap.format_interval(score["rating"]).rjust(24))
            print(f"{kind:10}{name:22.22}{''.join(cells)}")
