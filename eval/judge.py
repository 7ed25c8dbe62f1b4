"""
GPT-Eval: a strong model grades a model's stories, as a teacher would.

    export JUDGE_API_KEY=...
    python -m eval.judge out/ts_33m --judge=gpt-4o --dry_run      # one prompt, calls, tokens, cost
    python -m eval.judge out/ts_33m --judge=gpt-4o                # the paper's grades
    python -m eval.judge out/instruct --mode=instruct --judge=...
    python -m eval.judge out/a --mode=pairs --beside=out/b --judge=...
    python -m eval.judge out/a --mode=prompts --beside=out/b,out/c    # needs no judge
    python -m eval.judge --init_from=gpt2-large --judge=llama3 --base_url=http://localhost:11434/v1

Any server will do that speaks OpenAI's protocol: OpenAI, Gemini's compatible address, vLLM,
llama.cpp, Ollama. The modes:

    paper      50 beginnings, 10 completions of each at temperature 1: an assessment, then grades
               for grammar, creativity, consistency and plot, and an age group (Eldan & Li 2023)
    report     15 stories, four grades at once (the student report)
    instruct   stories to 50 held-out instructions, with a grade for following them
    synonyms   15 stories with 30 % of the content words marked: a grade for vocabulary too
    prompts    the knowledge tables: 24 prompts completed without chance, each a success, partial or
               a failure; with the log-probability of right against wrong continuations
    pairs      two models' completions of the same beginnings, blind, in both orders

Results are in eval/judge-<mode>.json of the run, stories and grades in the .jsonl beside it. Every
reply is kept in eval/judge_replies.jsonl, and asked and paid for once.
"""

import json
import random
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from configs import UserError, load, run
from eval import bootstrap, knowledge, published
from eval.harness import (
    SamplingSettings,
    beginnings,
    beside_names,
    choose_records,
    completions,
    open_models,
    read_records,
)
from eval.llm import endpoint, grading
from eval.llm.client import JudgeSettings
from eval.llm.rubrics import AGES, INSTRUCT, KNOWLEDGE, PAIRS, PAPER, REPORT, SYNONYMS, Exercise
from nanostories import storage
from nanostories.dataset.instruct import split_story
from nanostories.inference.generate import check_sampling_settings
from nanostories.text import wordnet


@dataclass(frozen=True)
class Settings(JudgeSettings, SamplingSettings):
    beside: str = ""  # other runs or models, with commas: for pairs (one) and prompts
    mode: str = "paper"  # paper, report, instruct, synonyms, prompts or pairs
    prompts: str = ""  # beginnings: ours, paper (from the hub) or a file; of prompts: storybook too
    num_prompts: int = 0  # how many of them; 0: the mode's own number
    num_samples: int = 0  # completions of each; 0: the mode's own number
    dataset: str = ""  # for instruct: a data folder with instructions in val; default: the run's
    source: str = ""  # for instruct: instead, any source of Instruct records


@dataclass(frozen=True)
class Mode:
    """How many prompts (0: all) and completions of each a mode has, and how they are graded."""

    protocol: object
    prompts: int
    samples: int


MARKED = 0.3  # share of a story's content words that `marked` marks
MODES = {
    "paper": Mode(PAPER, 0, 10),
    "report": Mode(REPORT, 15, 1),
    "instruct": Mode(INSTRUCT, 50, 1),
    "synonyms": Mode(SYNONYMS, 15, 1),
    "prompts": Mode(KNOWLEDGE, 0, 1),
    "pairs": Mode(PAIRS, 0, 2),
}


# ----------------------------------------------------------------------------------------------
# what is graded


def exercises(models, settings, folder):
    """
    ([Exercise], how many prompts) of all modes but prompts. In mode pairs each pair of completions
    comes twice, the second time the other way round.
    """
    mode, samples, count = settings.mode, settings.num_samples, settings.num_prompts
    if mode == "instruct":
        records = choose_records(read_records(settings, models[0])[0], models, count, settings.seed)
        texts, shown = [r.prompt() for r in records], [requirements(r) for r in records]
    else:
        texts = shown = beginnings(settings.prompts)[: count or None]
    told = [completions(found, texts, settings, samples, folder) for found in models]
    found = []
    for i, beginning in enumerate(shown):
        for j in range(samples):
            work, other = (row[i][j] for row in (told[0], told[-1]))
            if mode == "pairs":
                found.append(Exercise(work, beginning, other, (i, j, 0)))
                found.append(Exercise(other, beginning, work, (i, j, 1)))
            elif mode == "instruct":
                found.append(Exercise(split_story(work)[0], beginning, "", (i, j)))
            elif mode == "synonyms":
                work, lists = marked(work, settings.seed)
                found.append(Exercise(work, beginning, lists, (i, j)))
            else:
                found.append(Exercise(work, beginning, "", (i, j)))
    return found, len(texts)


# ----------------------------------------------------------------------------------------------
# what the judge is shown


def requirements(record):
    """An instruction in the paper's words: "Write a short story. The story should contain ..." """
    said = {
        "words": "The story should contain the words: {}.",
        "sentence": 'The story should contain the following sentence: "{}"',
        "features": "The story should have the following features: {}.",
        "summary": "The general plot of the story should be: {} (feel free to expand beyond this "
        "general plot).",
    }
    parts = (said[name].format(value) for name, value in record.fields)
    return " ".join(["Write a short story.", *parts])


def marked(text, seed, most=8):
    """
    (the text with MARKED of its content words, of those that have synonyms, in < and >; the lines
    "word: synonyms", at most `most` each). The text's own < and > become parentheses: they mark
    nothing.
    """
    text = text.replace("<", "(").replace(">", ")")
    words = wordnet.content_words(text)
    known = [word for word in words if wordnet.synonyms(word.text, word.pos)]
    count = min(len(known), max(1, round(MARKED * len(words))))
    chosen = sorted(random.Random(f"{seed} {text}").sample(known, count), key=lambda w: w.start)
    pieces, last = [], 0
    for word in chosen:
        pieces += [text[last : word.start], f"<{word.text}>"]
        last = word.stop
    lines = dict.fromkeys(
        f"{word.text}: {', '.join(wordnet.synonyms(word.text, word.pos)[:most])}" for word in chosen
    )
    return "".join([*pieces, text[last:]]), "\n".join(lines) or "(none)"


# ----------------------------------------------------------------------------------------------
# grades


def grades_of(protocol, asked, verdicts, prompts, seed):
    """
    {grade: interval} of the means over stories, with 95 % intervals over the prompts; with
    "relative", the paper's, and "stories", how many it takes to see a step in size (`enough`).
    """
    found = {}
    for name, choices in protocol.fields:
        if choices:
            continue
        name = name.lower()
        tops, bottoms = np.zeros((2, prompts))
        for exercise, verdict in zip(asked, verdicts, strict=True):
            if verdict:
                tops[exercise.number[0]] += verdict[name]
                bottoms[exercise.number[0]] += 1
        found[name] = bootstrap.ratio(tops, bottoms, seed)
        if found[name] and name in published.GRADES:
            values = [verdict[name] for verdict in verdicts if verdict]
            found[name]["relative"] = published.relative(name, found[name]["mean"])
            found[name]["stories"] = enough(values, published.step(name))
    return found


def enough(values, step):
    """
    How many stories of each of two models it takes to tell grades that lie `step` apart, at 5 % and
    with power 80 %: 2 (1.96 + 0.84)^2 var / step^2, of independent stories; None where the grades
    do not vary, as those of fewer than two.
    """
    if len(set(values)) < 2:
        return None
    return int(np.ceil(2 * (1.96 + 0.84) ** 2 * np.var(values, ddof=1) / step**2))


def show_grades(grades, ages):
    """Print the table of grades, and the age groups where there are any."""
    print(f"{'grade':14}{'mean':>22}{'relative':>10}   independent stories to see a step in size")
    for name, row in grades.items():
        cells = ""
        if row and "relative" in row:
            need = "-" if row["stories"] is None else row["stories"]
            cells = f"{row['relative']:>10.2f}   {need} (a step is {published.step(name):.2f})"
        print(f"{name:14}{bootstrap.format_interval(row, 2):>22}{cells}")
    if total := sum(ages.values()):
        shares = (f"{AGES[age]}: {ages[age] / total:.0%}" for age in AGES)
        print("age group     " + ", ".join(shares))


def pair_up(asked, verdicts):
    """
    {(prompt, sample): 1, 0.5 or 0, or None}: whether the first model wins. Two orders that do not
    agree are a tie; None where one of them has no verdict.
    """
    found = {}
    for exercise, verdict in zip(asked, verdicts, strict=True):
        *pair, turned = exercise.number
        said = {"1": 1.0, "2": 0.0, "tie": 0.5}[verdict["better"]] if verdict else None
        found.setdefault(tuple(pair), []).append(said if said is None or not turned else 1.0 - said)
    return {
        pair: None if None in both else both[0] if both[0] == both[1] else 0.5
        for pair, both in found.items()
    }


# ----------------------------------------------------------------------------------------------
# the command


def resolved(settings):
    """The settings with the mode's own numbers where there are none; UserError for wrong ones."""
    if settings.mode not in MODES:
        raise UserError(f"mode must be one of {', '.join(MODES)}, not '{settings.mode}'")
    mode = MODES[settings.mode]
    settings = replace(
        settings,
        num_samples=settings.num_samples or mode.samples,
        num_prompts=settings.num_prompts or mode.prompts,
    )
    if settings.mode == "prompts":  # decoded without chance, and a sentence is enough
        most = min(60, settings.max_new_tokens)
        settings = replace(settings, temperature=0.0, max_new_tokens=most)
    check_sampling_settings(settings)
    if settings.num_prompts < 0:
        raise UserError("num_prompts must not be negative")
    others = beside_names(settings)
    if settings.mode == "pairs" and len(others) != 1:
        raise UserError("mode pairs compares two models: name the other with --beside")
    if others and settings.mode not in ("pairs", "prompts"):
        raise UserError("beside is for the modes pairs and prompts")
    if settings.beams and settings.mode != "prompts":
        raise UserError("beams is for mode prompts: elsewhere stories are drawn")
    if settings.judge or settings.dry_run or settings.mode != "prompts":
        endpoint.check(settings)
    return settings


def main():
    settings, origin = load(Settings, positional="out_dir")
    settings = resolved(settings)
    models = open_models(settings, origin)
    folder = Path(models[0].out_dir) / "eval"
    folder.mkdir(parents=True, exist_ok=True)
    if settings.mode == "prompts":
        knowledge.evaluate(models, settings, folder, facts_of(models, settings))
    else:
        evaluate(models, settings, folder)


def facts_of(models, settings):
    """What was asked, of which model and judge, and how."""
    names = (
        "mode",
        "prompts",
        "num_samples",
        "dataset",
        "source",
        "seed",
        "temperature",
        "top_p",
        "beams",
        "max_new_tokens",
        "weights",
    )
    facts = {"checkpoint": models[0].identity()}
    facts |= {name: getattr(settings, name) for name in names}
    if settings.judge:
        facts["judge"] = {"model": settings.judge, "base_url": settings.base_url}
        facts["judge"] |= {"request": endpoint.body_of(settings)}
        facts["judge"] |= {"version": MODES[settings.mode].protocol.version}
    return facts


def evaluate(models, settings, folder):
    """All modes but prompts."""
    mode, path = settings.mode, folder / "judge_replies.jsonl"
    protocol = MODES[mode].protocol
    asked, prompts = exercises(models, settings, folder)
    if settings.dry_run:
        grading.plan(settings, protocol, asked, path)
        return
    graded = grading.grade(settings, protocol, asked, path)
    verdicts = [verdict for _, verdict in graded]
    results = facts_of(models, settings)
    results |= {"num_prompts": prompts, "exercises": len(asked), "unreadable": verdicts.count(None)}
    print(f"{len(asked)} exercises, {verdicts.count(None)} replies without a readable verdict")
    if mode == "pairs":
        results |= compared(models, asked, verdicts, prompts, settings)
    else:
        ages = Counter(verdict.get("age group") for verdict in verdicts if verdict)
        ages = {age: ages[age] for age in AGES if ages[age]}
        results |= {"grades": grades_of(protocol, asked, verdicts, prompts, settings.seed)}
        results |= {"ages": ages}
        show_grades(results["grades"], Counter(ages))
    lines = [
        {"number": one.number, "beginning": one.beginning, "work": one.work, "other": one.other}
        | {"reply": reply, "verdict": verdict}
        for one, (reply, verdict) in zip(asked, graded, strict=True)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    storage.write_text(folder / f"judge-{mode}.jsonl", text)
    storage.write_json(folder / f"judge-{mode}.json", results)


def compared(models, asked, verdicts, prompts, settings):
    """The results of mode pairs, printed too: who won how often."""
    won = pair_up(asked, verdicts)
    tops, bottoms = np.zeros((2, prompts))
    for (prompt, _), points in won.items():
        if points is not None:
            tops[prompt] += points
            bottoms[prompt] += 1
    counts = Counter(won.values())
    counts = {
        "won": counts[1.0],
        "tie": counts[0.5],
        "lost": counts[0.0],
        "unreadable": counts[None],
    }
    rate_ = bootstrap.ratio(tops, bottoms, settings.seed)
    print(f"{models[0].out_dir} against {models[1].out_dir}: " + ", ".join(
        f"{name} {count}" for name, count in counts.items()))  # fmt: skip
    print(f"win rate, a tie half a win: {bootstrap.format_interval(rate_)}")
    return {"beside": {"run": models[1].out_dir, "checkpoint": models[1].identity()},
            "win_rate": rate_, "counts": counts}  # fmt: skip


if __name__ == "__main__":
    run(main)
