"""
Did the reward do it? A model of reward.py, the one it began with, and an Instruct model.

    python -m eval.reward out/reward_cat --instruct=out/ts_cpu_instruct

The student report's table 7, with numbers: all tell as many stories, from the same beginning and of
at most as many tokens, and each story is measured the same. An Instruct model is told to use the
word (instruct.py) and has the beginning as its story's first words. Of what was told, without the
beginning:

    about         share of stories with the word, in any inflection, in two sentences at least
    mentions      how often a story has the word
    reward        how close a story is to the word, as the run rates it
    repetition    share of the 3-grams of words and marks that stood in the story before
    perplexity    of the stories under the reference, the model that the run began with, at
                  temperature 1
    words, ended  how long a story is, and the share that came to an end
    distinct-2    of 500 words of the stories at a time

and of a whole story one of the report's three verdicts, by rule:

    good          about the word, ended, and no more repetitive, no more surprising to the reference
                  and no shorter than 95 % of the reference's own stories
    okay          about the word, but one of the others fails
    bad           any other

With a judge (the settings of eval.judge) a strong model says good, okay or bad of each story too,
blind: it sees the stories of all models shuffled, and not whose they are. Intervals are 95 %
bootstrap intervals over the stories; "x reference" are ratios. Results are in eval/reward.json of
the run, all stories with what was measured of each in eval/reward.jsonl.
"""

import json
import math
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from configs import UserError, load, run
from eval import bootstrap, harness
from eval.llm import grading
from eval.llm.rubrics import TOPIC, JudgeItem
from eval.llm.settings import JudgeSettings, check_judge
from nanostories import storage
from nanostories.dataset import instruct
from nanostories.inference.decoder import open_decoder
from nanostories.inference.generate import (
    Completion,
    check_sampling_settings,
    generate,
    read_prompts,
    request_seeds,
)
from nanostories.rl.monitor import DISTINCT_WORDS, is_about, mentions
from nanostories.rl.reference import Reference, read_settings
from nanostories.text.metrics import distinct_n, repeated_ngrams
from nanostories.text.words import split_words, words_and_marks
from nanostories.training import checkpoint
from nanostories.training.device import pick_device

VERDICTS = ("good", "okay", "bad")
USUAL = 95  # percentile of the reference's stories that a good one does not pass


@dataclass(frozen=True)
class Settings(JudgeSettings):
    out_dir: str = ""  # run folder of reward.py
    instruct: str = ""  # a run of Instruct records, or a published model of them, to compare with
    checkpoint: str = "latest"  # latest or best
    word: str = ""  # what the stories should be about; default: the run's
    start: str = ""  # how they begin; default: the run's prompt
    stories: int = 200  # of each model
    temperature: float = 0.0  # of the stories; 0: the run's
    max_new_tokens: int = 0  # tokens of a story at the most; 0: the run's
    seed: int = 4242  # of the stories, another than the run's, and of the intervals
    batch_size: int = 64  # stories generated at a time
    shown: int = 2  # stories of each model that are printed
    device: str = "auto"  # cpu, cuda, mps; auto takes the best there is
    weights: str = "float32"  # float32, bfloat16 or, on CPUs, int8; auto: bfloat16 on CUDA
    max_tokens: int = 300  # most tokens of a reply


# ----------------------------------------------------------------------------------------------
# the stories


def tell(found, prompts, asked):
    """[(text, whether it ended)] told by a Trained to the prompts, a list of str."""
    decoder = open_decoder(found.model, asked.weights, asked.device)
    how = {
        "max_new_tokens": asked.max_new_tokens,
        "max_length": found.max_length,
        "batch_size": asked.batch_size,
    }
    ids = [found.encode_prompt(text) for text in prompts]
    seeds, eot = request_seeds(asked.seed, len(ids)), found.tokenizer.eot
    stories = generate(decoder, ids, eot, seeds, temperature=asked.temperature, **how)
    told = []
    for story in stories:
        text = found.tokenizer.decode(story.ids)  # with the blank that goes on from the beginning
        rest = instruct.split_story(text)[1]  # a Summary: there the story has ended
        text = text.removesuffix(rest).rstrip() if rest else text
        told.append((text, story.ended or bool(rest)))
    return told


def surprise(reference, starts, told, asked):
    """[(nats, tokens)] of each story under the reference, given its beginning, the end included."""
    prompts = [reference.encode_prompt(start) for start in starts]
    stories = []
    for prompt, (text, ended) in zip(prompts, told, strict=True):
        room = reference.model.config.block_size - len(prompt)
        stories.append(Completion(reference.tokenizer.encode(text)[:room], ended))
    eot = reference.tokenizer.eot
    return harness.completion_nlls(reference.model, prompts, stories, eot, asked.batch_size)


def lines_of(name, starts, told, word, topic, reference, asked):
    """What was measured of each story of a model, a list of dicts."""
    rewards = topic([text for text, _ in told])
    nats = surprise(reference, starts, told, asked)
    found = []
    for start, (text, ended), reward, (sum_, count) in zip(
        starts, told, rewards, nats, strict=True
    ):
        again, grams = repeated_ngrams(text)
        found.append(
            {"model": name, "start": start, "text": text, "ended": ended,
             "about": is_about(word, text), "mentions": mentions(word, text), "reward": reward,
             "repeated": again, "grams": grams, "nats": sum_, "tokens": count,
             "words": len(split_words(text))}
        )  # fmt: skip
    return found


def usual_of(lines):
    """(repetition, nats a token, words) that USUAL of 100 of the reference's stories keep to."""
    repeated = [line["repeated"] / max(1, line["grams"]) for line in lines]
    surprised = [line["nats"] / max(1, line["tokens"]) for line in lines]
    most = [float(np.percentile(values, USUAL)) for values in (repeated, surprised)]
    return *most, float(np.percentile([line["words"] for line in lines], 100 - USUAL))


def verdict(line, usual):
    """good, okay or bad, by the rule at the top of this file."""
    fails = [
        not line["ended"],
        line["repeated"] > usual[0] * max(1, line["grams"]),
        line["nats"] > usual[1] * max(1, line["tokens"]),
        line["words"] < usual[2],
    ]
    if not line["about"] or sum(fails) > 1:
        return "bad"
    return "okay" if any(fails) else "good"


# ----------------------------------------------------------------------------------------------
# the table


def exponent(interval):
    """The perplexity of an interval of nats a token."""
    keys = ("mean", "low", "high")
    return interval and interval | {key: math.exp(interval[key]) for key in keys}


def summary(lines, seed):
    """{measure: interval} of one model's stories, and its verdicts, {name: count}."""
    column = {name: [line[name] for line in lines] for name in lines[0]}
    found = {name: bootstrap.mean(column[name], seed)
             for name in ("about", "mentions", "reward", "words", "ended")}  # fmt: skip
    found["repetition"] = bootstrap.ratio(column["repeated"], column["grams"], seed)
    found["perplexity"] = exponent(bootstrap.ratio(column["nats"], column["tokens"], seed))
    marked = [words_and_marks(text) for text in column["text"]]
    value = distinct_n(marked, 2, DISTINCT_WORDS)
    found["distinct_2"] = None if math.isnan(value) else value
    counts = Counter(column["verdict"])
    return found | {"verdicts": {name: counts[name] for name in VERDICTS}}


def against(lines, base, seed):
    """{measure: interval} of a model's repetition and perplexity over the reference's."""
    columns = {"repetition": ("repeated", "grams"), "perplexity": ("nats", "tokens")}
    found = {}
    for name, column in columns.items():
        sides = [[[line[key] for line in one] for key in column] for one in (lines, base)]
        of = np.exp if name == "perplexity" else np.asarray
        found[name] = bootstrap.quotient(*sides, seed, of)
    return found


def show(results, lines, shown):
    """Print the table, a model a column, and some stories of each."""
    models = results["models"]
    rows = [(name, [bootstrap.format_interval(x[name], digits) for x in models.values()])
            for name, digits in (("about", 3), ("mentions", 2), ("reward", 3), ("repetition", 4),
                                 ("perplexity", 2), ("words", 0), ("ended", 3))]  # fmt: skip
    for name in ("repetition", "perplexity"):
        ratios = (x["relative_to_reference"].get(name) for x in models.values())
        rows.append((f"{name}, x reference", [bootstrap.format_interval(x, 2) for x in ratios]))
    rows.append(("distinct-2", ["-" if x["distinct_2"] is None else f"{x['distinct_2']:.3f}"
                                for x in models.values()]))  # fmt: skip
    for key, label in (("verdicts", "good, okay, bad"), ("judged", "the judge")):
        if all(key in x for x in models.values()):
            cells = [", ".join(str(x[key][name]) for name in VERDICTS) for x in models.values()]
            rows.append((label, cells))
    wide = max(len(label) for label, _ in rows)
    print(f"\n{'':{wide}}  " + "".join(f"{name:<26}" for name in models))
    for label, cells in rows:
        print(f"{label:{wide}}  " + "".join(f"{cell:<26}" for cell in cells))
    for name in models:
        for line in [line for line in lines if line["model"] == name][:shown]:
            print(f"\n--- {name}, {line['verdict']}\n{line['start']}{line['text']}")


# ----------------------------------------------------------------------------------------------
# the command


def judged(lines, word, settings, path):
    """The judge's verdict on each line, in their order; None for one that cannot be read."""
    order = list(range(len(lines)))
    random.Random(settings.seed).shuffle(order)
    asked = [
        JudgeItem(lines[i]["text"], lines[i]["start"], f"the word '{word}'", (place, 0))
        for place, i in enumerate(order)
    ]  # fmt: skip
    graded = grading.grade(settings, TOPIC, asked, path)
    if graded is None:  # a dry run
        return None
    found = [None] * len(lines)
    for i, (_, said) in zip(order, graded, strict=True):
        found[i] = said and said["rating"]
    return found


def asked_of(settings):
    """(the run's own settings, what is asked of all models): both as namespaces; or UserError."""
    if not settings.out_dir:
        raise UserError("usage: python -m eval.reward out/<run of reward.py>")
    run_ = read_settings(settings.out_dir)
    if settings.stories < 2 or settings.shown < 0:
        raise UserError("stories must be at least 2, shown at least 0")
    asked = {name: getattr(settings, name) for name in ("seed", "batch_size", "weights")}
    for name in ("word", "start", "temperature"):
        asked[name] = getattr(settings, name) or run_[name]
    asked["max_new_tokens"] = settings.max_new_tokens or run_["max_new_tokens"]
    check_sampling_settings(SimpleNamespace(**asked, top_p=1.0))
    asked["device"] = pick_device(settings.device)
    return SimpleNamespace(**run_), SimpleNamespace(**asked)


def main():
    settings, _ = load(Settings, positional="out_dir")
    ran, asked = asked_of(settings)
    if settings.judge or settings.dry_run:
        check_judge(settings)
    own = Reference(SimpleNamespace(**vars(ran) | {"word": asked.word}), asked.device)
    own.check_same(settings.out_dir)
    reference = own.loaded
    load_ = checkpoint.load_model
    models = {"reference": reference,
              "reward": load_(settings.out_dir, settings.checkpoint, asked.device)}  # fmt: skip
    if settings.instruct:
        models["instruct"] = load_(settings.instruct, settings.checkpoint, asked.device)
    beginnings = read_prompts(asked.start)
    starts = [beginnings[i % len(beginnings)] for i in range(settings.stories)]
    order = instruct.make_instruction(words=asked.word).prompt()
    told = {name: tell(found, [order + s for s in starts] if name == "instruct" else starts, asked)
            for name, found in models.items()}  # fmt: skip
    lines = {name: lines_of(name, starts, some, asked.word, own.reward_function, reference, asked)
             for name, some in told.items()}  # fmt: skip
    usual = usual_of(lines["reference"])
    every = [line for some in lines.values() for line in some]
    for line in every:
        line["verdict"] = verdict(line, usual)
    folder = Path(settings.out_dir) / "eval"
    folder.mkdir(parents=True, exist_ok=True)
    if settings.judge or settings.dry_run:
        said = judged(every, asked.word, settings, folder / "judge_replies.jsonl")
        if said is None:
            return
        for line, one in zip(every, said, strict=True):
            line["judge"] = one
    results = {"word": asked.word, "start": asked.start, "stories": settings.stories,
               "temperature": asked.temperature, "max_new_tokens": asked.max_new_tokens,
               "seed": asked.seed, "models": {}}  # fmt: skip
    for name, some in lines.items():
        row = summary(some, asked.seed)
        row["relative_to_reference"] = {} if name == "reference" else against(
            some, lines["reference"], asked.seed)  # fmt: skip
        if settings.judge:
            counts = Counter(line["judge"] for line in some)
            row["judged"] = {name: counts[name] for name in VERDICTS}
            row["unreadable"] = counts[None]
        row["checkpoint"] = models[name].identity()
        results["models"][name] = row
    if settings.judge:
        results["judge"] = {"model": settings.judge, "base_url": settings.base_url,
                            "version": TOPIC.version}  # fmt: skip
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in every)
    storage.write_text(folder / "reward.jsonl", text)
    storage.write_json(folder / "reward.json", results)
    show(results, every, settings.shown)
    print(f"\n{folder / 'reward.json'}")


if __name__ == "__main__":
    run(main)
