"""GPT-Eval: a strong model grades a model's stories, as a teacher would.

    export JUDGE_API_KEY=...
    python -m eval.judge out/ts_33m --judge=gpt-4o --dry_run      # one prompt, calls, tokens, cost
    python -m eval.judge out/ts_33m --judge=gpt-4o                # the paper's grades
    python -m eval.judge out/instruct --mode=instruct --judge=...
    python -m eval.judge out/a --mode=pairs --beside=out/b --judge=...
    python -m eval.judge out/a --mode=prompts --beside=out/b,out/c    # needs no judge
    python -m eval.judge --init_from=gpt2-large --judge=llama3 --base_url=http://localhost:11434/v1

The judge is on any server with OpenAI's chat completions: OpenAI, Gemini's compatible address,
vLLM, llama.cpp, Ollama. The modes:

    paper      50 beginnings, 10 completions of each at temperature 1: an assessment, then grades
               for grammar, creativity, consistency and plot, and an age group (Eldan & Li 2023)
    report     15 stories, four grades at once (the student report)
    instruct   stories to 50 held-out instructions, with a grade for following them
    synonyms   15 stories with 30 % of the content words marked: a grade for vocabulary too
    prompts    the knowledge tables: 24 prompts completed greedily, each a success, partial or a
               failure; with the log-likelihood of right against wrong continuations
    pairs      two models' completions of the same beginnings, blind, in both orders

Results are in eval/judge-<mode>.json of the run, stories and grades in the .jsonl beside it. Every
reply is cached in eval/judge_replies.jsonl, so it is paid for once.
"""

import random
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from configs import UserError, load, run
from eval import bootstrap, harness, knowledge, published
from eval.llm import grading, rubrics
from eval.llm.rubrics import AGES, JudgeItem
from eval.llm.settings import JudgeSettings, check_judge, request_fields
from nanostories.dataset.instruct import split_story
from nanostories.text import wordnet

MODES = {  # the rubric, prompts (0: all) and completions of each
    "paper": (rubrics.PAPER, 0, 10),
    "report": (rubrics.REPORT, 15, 1),
    "instruct": (rubrics.INSTRUCT, 50, 1),
    "synonyms": (rubrics.SYNONYMS, 15, 1),
    "prompts": (rubrics.KNOWLEDGE, 0, 1),
    "pairs": (rubrics.PAIRS, 0, 2),
}
MARKED = 0.3  # fraction of a story's content words that `mark_words` marks
MAX_SYNONYMS = 8  # of each, that the judge is shown


@dataclass(frozen=True)
class Settings(JudgeSettings, harness.SamplingSettings):
    beside: str = ""  # other runs or models, with commas: for pairs (one) and prompts
    mode: str = "paper"  # paper, report, instruct, synonyms, prompts or pairs
    prompts: str = ""  # ours, paper (the hub's) or a file; mode prompts: paper, slides, storybook
    num_prompts: int = 0  # how many of them; 0: the mode's own number
    num_samples: int = 0  # completions of each, not in mode prompts; 0: the mode's own number
    dataset: str = ""  # for instruct: a data folder with instructions in val; default: the run's
    source: str = ""  # for instruct: instead, any source of Instruct records
    mode_choices = tuple(MODES)


def main():
    settings, origin = load(Settings, positional="out_dir")
    settings = resolve(settings)
    models = harness.open_models(settings, origin)
    names = ("mode", "prompts", "num_samples", "dataset", "source")
    facts = harness.facts_of(models[0], settings, *names)
    if settings.judge:
        facts["judge"] = {
            "model": settings.judge, "base_url": settings.base_url,
            "request": request_fields(settings), "version": MODES[settings.mode][0].version,
        }  # fmt: skip
    evaluate_mode = knowledge.evaluate if settings.mode == "prompts" else evaluate
    evaluate_mode(models, settings, Path(models[0].out_dir) / "eval", facts)


def resolve(settings):
    """The settings with the mode's own numbers where there are none; UserError for wrong ones."""
    _, num_prompts, num_samples = MODES[settings.mode]
    changes = {"num_samples": settings.num_samples or num_samples,
               "num_prompts": settings.num_prompts or num_prompts}  # fmt: skip
    if settings.mode == "prompts":  # greedy, and the first sentence is enough
        changes |= {"temperature": 0.0, "max_new_tokens": min(60, settings.max_new_tokens)}
    settings = replace(settings, **changes)
    others = len(harness.beside_names(settings))
    if settings.mode == "pairs" and others != 1:
        raise UserError("mode pairs compares two models: name the other with --beside")
    if others and settings.mode not in ("pairs", "prompts"):
        raise UserError("beside is for the modes pairs and prompts")
    if settings.mode == "prompts" and settings.num_samples != num_samples:
        raise UserError("mode prompts completes each prompt once: num_samples is for other modes")
    if settings.beams and settings.mode != "prompts":
        raise UserError("beams is for mode prompts: elsewhere stories are sampled")
    if settings.judge or settings.dry_run or settings.mode != "prompts":
        check_judge(settings)
    return settings


def evaluate(models, settings, folder, facts):
    """All modes but prompts: generate, grade, print and write eval/judge-<mode>.json and .jsonl."""
    rubric, *_ = MODES[settings.mode]
    items, num_prompts = make_items(models, settings, folder)
    graded = grading.grade(settings, rubric, items, folder / "judge_replies.jsonl", facts["judge"])
    if graded is None:  # a dry run
        return
    verdicts = [verdict for _, verdict in graded]
    unreadable = verdicts.count(None)
    print(f"{len(items)} items, {unreadable} replies without a readable verdict")
    results = facts | {"num_prompts": num_prompts, "items": len(items), "unreadable": unreadable}
    if settings.mode == "pairs":
        results |= compare(models, items, verdicts, num_prompts, settings)
    else:
        grades = grade_intervals(rubric, items, verdicts, num_prompts, settings.seed)
        ages = Counter(verdict.get("age group") for verdict in verdicts if verdict)
        results |= {"grades": grades, "age_groups": {age: ages[age] for age in AGES if ages[age]}}
        print_grades(grades, ages)
    lines = [
        vars(item) | {"reply": reply, "verdict": verdict}
        for item, (reply, verdict) in zip(items, graded, strict=True)
    ]
    harness.write_result(models[0].out_dir, f"judge-{settings.mode}", results, lines)


# ---- what is graded ----------------------------------------------------------------------------


def make_items(models, settings, folder):
    """([JudgeItem], number of prompts); of mode pairs each pair of completions in both orders."""
    mode, samples, count = settings.mode, settings.num_samples, settings.num_prompts
    if mode == "instruct":
        records, _ = harness.read_instructions(settings, models, count)
        prompts, shown = [r.prompt() for r in records], [requirements(r) for r in records]
    else:
        prompts = shown = harness.beginnings(settings.prompts)[: count or None]
    texts = [harness.completions(model, prompts, settings, samples, folder) for model in models]
    items = []
    for i, beginning in enumerate(shown):
        for j in range(samples):
            text, other = texts[0][i][j], ""
            if mode == "pairs":
                other = texts[1][i][j]
                items.append(JudgeItem(text, beginning, other, (i, j, 0)))
                items.append(JudgeItem(other, beginning, text, (i, j, 1)))
                continue
            if mode == "instruct":
                text, _ = split_story(text)
            elif mode == "synonyms":
                text, other = mark_words(text, settings.seed)
            items.append(JudgeItem(text, beginning, other, (i, j)))
    return items, len(prompts)


def requirements(record):
    """An instruction in the paper's words: "Write a short story. The story should contain ..." """
    parts = (rubrics.REQUIREMENTS[name].format(value) for name, value in record.fields)
    return " ".join(["Write a short story.", *parts])


def mark_words(text, seed):
    """(the text with MARKED of its content words, of those with synonyms, in < and >; their lines
    "word: synonyms"). The text's own < and > become parentheses, so that they mark nothing."""
    marked = text = text.replace("<", "(").replace(">", ")")
    words = wordnet.content_words(text)
    candidates = [word for word in words if wordnet.synonyms(word.text, word.pos)]
    count = min(len(candidates), max(1, round(MARKED * len(words))))
    chosen, lines = random.Random(f"{seed} {text}").sample(candidates, count), []
    # From the end, so that the places before stay right.
    for word in sorted(chosen, key=lambda word: -word.start):
        marked = f"{marked[: word.start]}<{word.text}>{marked[word.stop :]}"
        synonyms = wordnet.synonyms(word.text, word.pos)[:MAX_SYNONYMS]
        lines.append(f"{word.text}: {', '.join(synonyms)}")
    return marked, "\n".join(dict.fromkeys(lines[::-1])) or "(none)"


# ---- grades ------------------------------------------------------------------------------------


def mean_by_prompt(values, num_prompts, seed):
    """The interval of the mean of [(prompt, value)], resampling whole prompts; None without any."""
    sums, counts = np.zeros((2, num_prompts))
    for prompt, value in values:
        sums[prompt] += value
        counts[prompt] += 1
    return bootstrap.ratio(sums, counts, seed)


def grade_intervals(rubric, items, verdicts, num_prompts, seed):
    """{grade: interval of its mean over the prompts}; the paper's grades have two numbers more."""
    intervals = {}
    for name in (name.lower() for name, choices in rubric.fields.items() if not choices):
        values = [
            (item.number[0], verdict[name])
            for item, verdict in zip(items, verdicts, strict=True) if verdict
        ]  # fmt: skip
        row = intervals[name] = mean_by_prompt(values, num_prompts, seed)
        if row and name in published.GRADES:
            row["relative"] = published.relative(name, row["mean"])
            row["stories_needed"] = stories_needed([x for _, x in values], published.step(name))
    return intervals


def stories_needed(values, step):
    """How many independent stories of each of two models show a difference of `step` in their mean
    grades at 5 % with power 80 %: 2 (1.96 + 0.84)^2 var / step^2. None where no grade differs."""
    if len(set(values)) < 2:
        return None
    return int(np.ceil(2 * (1.96 + 0.84) ** 2 * np.var(values, ddof=1) / step**2))


def print_grades(grades, ages):
    """Print the table of grades, and the age groups, a Counter, where there are any."""
    rows = []
    for name, row in grades.items():
        cells = "", ""
        if row and "relative" in row:
            needed = f"{row['stories_needed'] or '-'} (a step is {published.step(name):.2f})"
            cells = row["relative"], needed
        rows.append([name, row, *cells])
    head = ["grade", "mean", "relative", "independent stories to see a step in size"]
    harness.print_table(head, rows)
    if total := sum(ages[age] for age in AGES):
        shares = (f"{name}: {ages[age] / total:.0%}" for age, name in AGES.items())
        print("age group     " + ", ".join(shares))


# ---- pairs -------------------------------------------------------------------------------------


def pair_scores(items, verdicts):
    """{(prompt, sample): whether the first model wins: 1, 0.5 for a tie or two orders that
    disagree, 0, or None where one has no verdict}."""
    scores, wins = {}, {"1": 1.0, "2": 0.0, "tie": 0.5}
    for item, one, other in zip(items[::2], verdicts[::2], verdicts[1::2], strict=True):
        score = None
        if one and other:
            score = wins[one["better"]]
            score = score if score + wins[other["better"]] == 1 else 0.5
        scores[item.number[:2]] = score
    return scores


def compare(models, items, verdicts, num_prompts, settings):
    """The results of mode pairs, printed too: how often each model wins."""
    scores = pair_scores(items, verdicts)
    counted = [(prompt, score) for (prompt, _), score in scores.items() if score is not None]
    win_rate = mean_by_prompt(counted, num_prompts, settings.seed)
    outcomes = Counter(scores.values())
    counts = {"won": outcomes[1.0], "tie": outcomes[0.5], "lost": outcomes[0.0],
              "unreadable": outcomes[None]}  # fmt: skip
    line = ", ".join(f"{name} {count}" for name, count in counts.items())
    print(f"{models[0].out_dir} against {models[1].out_dir}: {line}")
    print(f"win rate, a tie half a win: {bootstrap.format_interval(win_rate)}")
    return {"beside": {"run": models[1].out_dir, "checkpoint": models[1].identity()},
            "win_rate": win_rate, "counts": counts}  # fmt: skip


if __name__ == "__main__":
    run(main)
