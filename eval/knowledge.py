"""
The knowledge tables, prompts x models: completed without chance, scored and, with a judge, rated.

The score needs no judge. Each prompt has pairs of continuations (knowledge_prompts.py), and a pair
is told where the model gives the right one the higher probability:

    margin = log p(right | prompt) - log p(wrong | prompt), in nats
"""

import re
import sys
from pathlib import Path

import numpy as np

from configs import UserError
from eval import bootstrap
from eval.harness import completions, log_likelihood_margins
from eval.llm import grading
from eval.llm.rubrics import KNOWLEDGE, Exercise
from eval.prompts import knowledge_prompts as questions
from nanostories import storage


def verdict_of(margins):
    """success where all margins of a prompt are positive, failure where none is, or partial."""
    told = sum(margin > 0 for margin in margins)
    return "success" if told == len(margins) else "partial" if told else "failure"


def knowledge_prompts(settings):
    """The questions.Prompts that the settings name."""
    if settings.prompts == "storybook":
        return questions.made(settings.num_prompts or 200, settings.seed)
    if settings.prompts not in ("", "paper"):
        raise UserError("in mode prompts, prompts is paper or storybook")
    return questions.paper()[: settings.num_prompts or None]


def first_sentence(text):
    """A completion up to where a sentence ends, all of it where none does."""
    found = re.match(r".*?[.!?]+[\"”'’]*(?=\s|$)", text, re.DOTALL)
    return found[0] if found else text


def know(models, settings, folder):
    """
    What each of the models knows: a list of {"model", "checkpoint", "rows"}; a row has the prompt,
    its kind, the completion, the margins with their verdict and, with a judge, its rating.
    """
    prompts = knowledge_prompts(settings)
    texts = [prompt.text for prompt in prompts]
    found = []
    for model in models:
        told = completions(model, texts, settings, 1, folder)
        rows = [
            {"kind": prompt.kind, "prompt": prompt.text, "completion": first_sentence(one)}
            | {"margins": margins, "verdict": verdict_of(margins)}
            for prompt, (one,), margins in zip(
                prompts, told, log_likelihood_margins(model, prompts), strict=True
            )
        ]
        found.append({"model": model.out_dir, "checkpoint": model.identity(), "rows": rows})
    return found


def rate(tables, settings, path):
    """Have the judge rate each completion of `know`: "rating" in its row, None if unreadable."""
    rows = [(i, row) for table in tables for i, row in enumerate(table["rows"])]
    # Two models that go on alike are rated once.
    asked = {
        (i, row["completion"]): Exercise(
            row["completion"], row["prompt"], questions.KINDS[row["kind"]], (i, 0)
        )
        for i, row in rows
    }
    if settings.dry_run:
        grading.plan(settings, KNOWLEDGE, list(asked.values()), path)
        return
    graded = grading.grade(settings, KNOWLEDGE, list(asked.values()), path)
    ratings = dict(zip(asked, (verdict for _, verdict in graded), strict=True))
    for i, row in rows:
        verdict = ratings[i, row["completion"]]
        row["rating"] = verdict and verdict["rating"]


def known(rows, seed, kind=None):
    """{"right", "margin", and where rated "rating"}: intervals over prompts of a kind, or all."""
    rows = [row for row in rows if kind in (None, row["kind"])]
    sides = {
        "right": [np.mean([margin > 0 for margin in row["margins"]]) for row in rows],
        "margin": [np.mean(row["margins"]) for row in rows],
    }
    found = {name: bootstrap.ratio(x, np.ones(len(x)), seed) for name, x in sides.items()}
    points = {"success": 1.0, "partial": 0.5, "failure": 0.0}
    rated = [points.get(row.get("rating")) for row in rows]
    if any(point is not None for point in rated):
        tops = [point or 0.0 for point in rated]
        found["rating"] = bootstrap.ratio(tops, [p is not None for p in rated], seed)
    return found


_COLOURS = {"success": 42, "partial": 43, "failure": 41}  # green, yellow, red, of a terminal


def show_known(tables, settings):
    """Print the coloured table of prompts x models (if they are few), and the scores."""
    rows, names = tables[0]["rows"], [Path(table["model"]).name for table in tables]
    for kind in questions.KINDS if len(rows) <= 40 else ():
        for i in (i for i, row in enumerate(rows) if row["kind"] == kind):
            print(f"\n{kind}: {rows[i]['prompt']}")
            for name, table in zip(names, tables, strict=True):
                row = table["rows"][i]
                verdict = row.get("rating", row["verdict"]) or "unreadable"
                cell = f" {verdict:10} "
                if sys.stdout.isatty() and verdict in _COLOURS:
                    cell = f"\033[30;{_COLOURS[verdict]}m{cell}\033[0m"
                said = " ".join(row["completion"].split())
                print(f"  {name:20.20} {cell} {said[:100]}")
    print(f"\n{'':10}{'model':22}{'right pairs':>24}{'margin, nats':>26}{'rated':>24}")
    for kind in [*dict.fromkeys(row["kind"] for row in rows), None]:
        for name, table in zip(names, tables, strict=True):
            found = known(table["rows"], settings.seed, kind)
            cells = [bootstrap.format_interval(found["right"]).rjust(24)]
            cells.append(bootstrap.format_interval(found["margin"], 2).rjust(26))
            cells += [bootstrap.format_interval(found[x]).rjust(24) for x in found if x == "rating"]
            print(f"{kind or 'all':10}{name:22.22}{''.join(cells)}")


def apart(tables, seed):
    """{other model: {"right", "margin"}}: intervals of the first model's less the other's."""
    first, found = tables[0]["rows"], {}
    for table in tables[1:]:
        sides = {
            "right": lambda row: np.mean([margin > 0 for margin in row["margins"]]),
            "margin": lambda row: np.mean(row["margins"]),
        }
        ones = np.ones(len(first))
        found[table["model"]] = {
            name: bootstrap.difference(
                (list(map(of, first)), ones), (list(map(of, table["rows"])), ones), seed
            )
            for name, of in sides.items()
        }
    return found


def evaluate(models, settings, folder, facts):
    """Mode prompts of judge.py: complete, score, rate, print and write eval/judge-prompts.json."""
    tables = know(models, settings, folder)
    if settings.judge:
        rate(tables, settings, folder / "judge_replies.jsonl")
    if settings.dry_run:
        return
    show_known(tables, settings)
    results = facts | {"models": tables}
    for table in tables:
        kinds = dict.fromkeys(row["kind"] for row in table["rows"])
        table["scores"] = {
            kind or "all": known(table["rows"], settings.seed, kind) for kind in [*kinds, None]
        }
    results["difference"] = apart(tables, settings.seed)
    for name, gap in results["difference"].items():
        right = bootstrap.format_interval(gap["right"])
        print(f"right pairs, {models[0].out_dir} less {name}: {right}")
    storage.write_json(folder / "judge-prompts.json", results)
