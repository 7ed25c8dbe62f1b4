"""Did the reward work? A run of reward.py, the model it started from, and an Instruct model.

    python -m eval.reward out/reward_cat --instruct=out/ts_cpu_instruct

The student report's table 7, with numbers. All models write as many stories to the same prompts,
of at most as many tokens. The Instruct model is also instructed to use the word. A story is what
follows the prompt:

    about         fraction of stories with the word, in any inflection, in at least two sentences
    mentions      mentions of the word per story
    reward        the run's reward
    repetition    fraction of 3-grams of words and marks that repeat an earlier one of the story
    perplexity    of the stories under the reference, the model that the run started from, at
                  temperature 1
    words, ended  words per story, and the fraction of stories that ended
    distinct-2    of 500 words and marks of the stories at a time

Each story gets one of the report's three verdicts, by rule: good if it is about the word, ended,
and is not more repetitive, of a higher perplexity or shorter than 95 % of the reference's own
stories; okay if it is about the word and one of the other conditions fails; else bad. With a judge
(the settings of eval.judge) a strong model gives a verdict too. It sees the stories of all models
shuffled, without their model.

Intervals are 95 % bootstrap intervals over the stories; "x reference" are ratios to the reference.
Results are in eval/reward.json of the run, all stories with their metrics in eval/reward.jsonl.
"""

import math
import random
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from configs import UserError, load, pick, printable, run
from eval import bootstrap, harness
from eval.llm import grading
from eval.llm.rubrics import TOPIC, JudgeItem
from eval.llm.settings import JudgeSettings, check_judge
from nanostories.dataset import instruct
from nanostories.inference.generate import Completion, read_prompts
from nanostories.rl.monitor import DISTINCT_WORDS, is_about, mentions
from nanostories.rl.reference import Reference, read_settings
from nanostories.text.metrics import distinct_n, repeated_ngrams
from nanostories.text.words import split_words, words_and_marks
from nanostories.training import checkpoint
from nanostories.training.device import pick_device

VERDICTS = ("good", "okay", "bad")
PERCENTILE = 95  # of the reference's stories; a good story is within it
METRICS = ("about", "mentions", "reward", "repetition", "perplexity", "words", "ended")
RATIOS = {"repetition": ("repeated_trigrams", "trigrams"), "perplexity": ("nll", "tokens")}


@dataclass(frozen=True)
class Settings(JudgeSettings):
    out_dir: str = ""  # run folder of reward.py
    instruct: str = ""  # a run of Instruct records, or a published model of them, to compare with
    checkpoint: str = "latest"  # latest or best
    word: str = ""  # what the stories should be about; default: the run's
    start: str = ""  # the prompt; FILE:prompts.txt: one in each line; default: the run's
    stories: int = 200  # of each model
    temperature: float = 0.0  # of sampling; 0: the run's
    max_new_tokens: int = 0  # most tokens of a story; 0: the run's
    seed: int = 4242  # of the stories, another than the run's, and of the intervals
    batch_size: int = 64  # stories generated at a time
    shown: int = 2  # stories of each model that are printed
    device: str = "auto"  # cpu, cuda, mps; auto takes the best there is
    weights: str = "float32"  # float32, bfloat16 or, on CPUs, int8; auto: bfloat16 on CUDA
    max_tokens: int = 300  # most tokens of a judge's reply
    beams, top_p = 0, 1.0  # what the harness reads too: sample from all tokens; not settings
    stories_range = 2, 10**6


def complete(settings):
    """(settings with the run's word, prompt and sampling, the run's own with any device's attn)."""
    if not settings.out_dir:
        raise UserError("usage: python -m eval.reward out/<run of reward.py>")
    run_settings = read_settings(settings.out_dir)
    names = ("word", "start", "temperature", "max_new_tokens")
    filled_in = {name: getattr(settings, name) or run_settings[name] for name in names}
    settings = replace(settings, **filled_in)
    if settings.judge or settings.dry_run:
        check_judge(settings)
    return settings, SimpleNamespace(**run_settings | {"word": settings.word, "attn": "auto"})


# ---- the stories -------------------------------------------------------------------------------


def generate_stories(loaded, prompts, settings):
    """[(text, whether it ended)] of a LoadedModel's completions of the prompts, a list of str."""
    stories = []
    for [completion] in harness.generate_completions(loaded, prompts, settings, 1):
        text = loaded.tokenizer.decode(completion.ids)  # with the blank after the prompt
        summary = instruct.split_story(text)[1]  # of a model of the raw file: the story has ended
        text = text.removesuffix(summary).rstrip() if summary else text
        stories.append((text, completion.ended or bool(summary)))
    return stories


def reference_nlls(loaded, prompts, stories, batch_size):
    """`completion_nlls` of the stories under the reference, as far as its block_size goes."""
    ids, completions = [loaded.encode_prompt(prompt) for prompt in prompts], []
    for prompt, (text, ended) in zip(ids, stories, strict=True):
        room = loaded.model.config.block_size - len(prompt)
        completions.append(Completion(loaded.tokenizer.encode(text)[:room], ended))
    eot = loaded.tokenizer.eot
    return harness.completion_nlls(loaded.model, ids, completions, eot, batch_size)


def measure_stories(model, prompts, stories, reference, settings):
    """The metrics of each story of a model, a list of dicts. reference: a Reference."""
    texts, word = [text for text, _ in stories], settings.word
    nlls = reference_nlls(reference.loaded, prompts, stories, settings.batch_size)
    values = zip(prompts, stories, reference.reward_function(texts), nlls,
                 map(repeated_ngrams, texts), strict=True)  # fmt: skip
    return [
        {"model": model, "start": prompt, "text": text, "ended": ended,
         "about": is_about(word, text), "mentions": mentions(word, text), "reward": reward,
         "repeated_trigrams": repeated, "trigrams": trigrams, "nll": nll, "tokens": tokens,
         "words": len(split_words(text))}
        for prompt, (text, ended), reward, (nll, tokens), (repeated, trigrams) in values
    ]  # fmt: skip


# ---- the verdicts ------------------------------------------------------------------------------


def thresholds(lines):
    """(highest repetition, highest nll per token, fewest words) of PERCENTILE % of the lines."""
    repetition = [line["repeated_trigrams"] / max(1, line["trigrams"]) for line in lines]
    nll = [line["nll"] / max(1, line["tokens"]) for line in lines]
    highest = [float(np.percentile(values, PERCENTILE)) for values in (repetition, nll)]
    return *highest, float(np.percentile([line["words"] for line in lines], 100 - PERCENTILE))


def verdict(line, limits):
    """good, okay or bad, by the rule at the top of this file. limits: of `thresholds`."""
    fails = [
        not line["ended"],
        line["repeated_trigrams"] > limits[0] * max(1, line["trigrams"]),
        line["nll"] > limits[1] * max(1, line["tokens"]),
        line["words"] < limits[2],
    ]
    if not line["about"] or sum(fails) > 1:
        return "bad"
    return "okay" if any(fails) else "good"


def judge_stories(lines, settings):
    """Add the judge's verdict to each line, None where it is unreadable; False of a dry run."""
    shuffled, topic = list(lines), f"the word '{settings.word}'"
    random.Random(settings.seed).shuffle(shuffled)
    items = [JudgeItem(line["text"], line["start"], topic, (place, 0))
             for place, line in enumerate(shuffled)]  # fmt: skip
    path = Path(settings.out_dir) / "eval" / "judge_replies.jsonl"
    if (graded := grading.grade(settings, TOPIC, items, path)) is None:
        return False
    for line, (_, reply) in zip(shuffled, graded, strict=True):
        line["judge"] = reply and reply["rating"]
    return True


# ---- the table ---------------------------------------------------------------------------------


def columns(lines, *names):
    return [[line[name] for line in lines] for name in names]


def count_verdicts(lines, key):
    counts = Counter(line[key] for line in lines)
    return {name: counts[name] for name in VERDICTS}


def summarize(lines, seed):
    """{metric: interval} of one model's stories, and the count of each verdict."""
    results = {name: bootstrap.mean(*columns(lines, name), seed)
               for name in METRICS if name not in RATIOS}  # fmt: skip
    for name, pair in RATIOS.items():
        results[name] = bootstrap.ratio(*columns(lines, *pair), seed)
    if nll := results["perplexity"]:
        results["perplexity"] = nll | {
            x: math.exp(min(nll[x], 700)) for x in ("mean", "low", "high")
        }
    distinct_2 = distinct_n([words_and_marks(line["text"]) for line in lines], 2, DISTINCT_WORDS)
    results["distinct_2"] = None if math.isnan(distinct_2) else distinct_2
    results["verdicts"] = count_verdicts(lines, "verdict")
    if "judge" in lines[0]:
        results["judged"] = count_verdicts(lines, "judge")
        results["unreadable"] = sum(line["judge"] is None for line in lines)
    return results


def compare(lines, baseline, seed):
    """{metric: interval} of the ratio of repetition and perplexity to the reference's."""
    return {
        name: bootstrap.quotient(columns(lines, *pair), columns(baseline, *pair), seed, transform)
        for (name, pair), transform in zip(RATIOS.items(), (np.asarray, np.exp), strict=True)
    }


def show(results, lines, shown):
    """Print the table, one column a model, and some stories of each."""
    models = results["models"].values()
    rows = [[name, *(model[name] for model in models)] for name in METRICS]
    for name in RATIOS:
        ratios = (model["relative_to_reference"].get(name) for model in models)
        rows.append([f"{name}, x reference", *ratios])
    rows.append(["distinct-2", *(model["distinct_2"] for model in models)])
    for key, label in (("verdicts", "good, okay, bad"), ("judged", "good, okay, bad by the judge")):
        if all(key in model for model in models):
            rows.append([label, *(", ".join(map(str, model[key].values())) for model in models)])
    print()
    harness.print_table(["", *results["models"]], rows)
    for name in results["models"]:
        for line in [line for line in lines if line["model"] == name][:shown]:
            story = printable(line["start"] + line["text"])
            print(f"\n--- {name}, {line['verdict']}\n{story}")


def main():
    settings, _ = load(Settings, positional="out_dir")
    settings, run_settings = complete(settings)
    device = pick_device(settings.device)

    # ---- the models
    reference = Reference(run_settings, device)
    reference.check_same(settings.out_dir)
    models = {"reference": reference.loaded}
    for name, folder in (("reward", settings.out_dir), ("instruct", settings.instruct)):
        if folder:
            models[name] = checkpoint.load_model(folder, settings.checkpoint, device)

    # ---- their stories; only the Instruct model gets an instruction
    prompts = list(read_prompts(settings.start).values())
    prompts = [prompts[i % len(prompts)] for i in range(settings.stories)]
    instruction, by_model = instruct.make_instruction(words=settings.word).prompt(), {}
    for name, loaded in models.items():
        before = instruction if name == "instruct" else ""
        stories = generate_stories(loaded, [before + prompt for prompt in prompts], settings)
        by_model[name] = measure_stories(name, prompts, stories, reference, settings)

    # ---- the verdicts
    baseline = by_model["reference"]
    limits = thresholds(baseline)
    lines = [line for model_lines in by_model.values() for line in model_lines]
    for line in lines:
        line["verdict"] = verdict(line, limits)
    if (settings.judge or settings.dry_run) and not judge_stories(lines, settings):
        return

    # ---- the results
    results = pick(settings, "word", "start", "stories", "temperature", "max_new_tokens", "seed")
    results["models"] = {}
    for name, model_lines in by_model.items():
        ratios = {} if name == "reference" else compare(model_lines, baseline, settings.seed)
        results["models"][name] = summarize(model_lines, settings.seed) | {
            "relative_to_reference": ratios, "checkpoint": models[name].identity()
        }  # fmt: skip
    if settings.judge:
        results["judge"] = {"model": settings.judge, "base_url": settings.base_url,
                            "version": TOPIC.version}  # fmt: skip
    show(results, lines, settings.shown)
    harness.write_result(settings.out_dir, "reward", results, lines)


if __name__ == "__main__":
    run(main)
