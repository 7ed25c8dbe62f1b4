"""What the jobs of a study will take: hours of training, calls to the judge, tokens and cost."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from configs import ROOT, UserError, load
from eval import harness, judge, knowledge, reward
from eval.llm import settings as judge_settings
from eval.llm.rubrics import TOPIC, JudgeItem
from eval.reporting.study_jobs import vocab_size_of
from nanostories.storage import read_json

# Tokens of TinyStories' 1.92 GB and TinyStories-Instruct's 2.66 GB, at 4.05 bytes a token of GPT-2,
# where the data is not made yet. STORY: of a story, for part of TinyStories.
EPOCH, INSTRUCT_EPOCH, STORY = 475e6, 655e6, 224
ITEM = JudgeItem(" a word" * 150, " a word" * 40)  # about as long as a story and its beginning


def print_estimate(jobs, settings, device):
    """Print what these Jobs take. settings: of the study. device: cpu, cuda or mps."""
    graded = [job for job in jobs if f"--judge={settings.judge}" in job.command]
    calls, read, written = judge_calls(graded)
    print(f"judge: {calls:,} calls, {read:,} tokens to read, at most {written:,} to write, cost at "
          f"most about {judge_settings.cost(settings, read, written):,.2f}")  # fmt: skip
    trainings = [job for job in jobs if job.command[0] == "train.py"]
    if trainings:
        try:
            hours = f"about {training_hours(jobs, settings, device):,.1f} hours, one by one"
        except UserError as error:
            hours = str(error)
        print(f"{len(trainings)} trainings: {hours}")


def training_hours(jobs, settings, device):
    """Hours of the trainings among jobs, one after the other: the smallest, the middle and the
    largest model are timed, others take as long as the nearest of these, in proportion to
    Job.weight."""
    trainings = [job for job in jobs if job.command[0] == "train.py"]
    sizes = {job.weight: "{n_embd}-{n_layer}".format(**options(job)) for job in trainings}
    weights = sorted(sizes)
    weights = sorted({weights[0], weights[len(weights) // 2], weights[-1]})
    words = [f"--sizes={','.join(sizes[weight] for weight in weights)}", f"--device={device}",
             f"--vocabs={vocab_size_of(settings)}", "--steps=2",
             "--rounds=5", *(["--tokens=1024"] if device != "cuda" else [])]  # fmt: skip
    print("timing ten steps of each of up to three sizes", flush=True)
    env = os.environ | ({"OMP_NUM_THREADS": "1"} if device == "cpu" else {})  # as a study's jobs
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.training", *words, f"--out={folder}/a.json"]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"no throughput could be measured: {done.stderr.strip()[-200:]}")
        cases = read_json(Path(folder, "a.json"))["cases"]
    speeds = [case["nanoStories"]["tokens_per_second"] for case in cases]
    seconds = 0.0
    for job in trainings:
        given, speed = options(job), dict(zip(weights, speeds, strict=True))
        _, tokens = training_tokens(given, jobs)
        near = min(weights, key=lambda weight: abs(weight - job.weight))
        limit = float(given.get("max_minutes", 0)) or float("inf")
        seconds += min(tokens / speed[near] * job.weight / near, 60 * limit)
    return seconds / 3600


def training_tokens(given, jobs):
    """(tokens of a step, of all steps) of a training with these `options`; jobs: with that which
    makes its data, where that is not there."""
    manifest = ROOT / given["dataset"] / "manifest.json"
    rows = int(given.get("batch_size", 32)) * int(given.get("gradient_accumulation_steps", 1))
    step = rows * int(given.get("row_tokens", 1024))
    made = manifest.exists() and read_json(manifest)["splits"]["train"]["tokens"]
    epoch = INSTRUCT_EPOCH if given["dataset"].endswith("-instruct") else EPOCH
    for maker in map(options, jobs):
        if maker.get("out") == given["dataset"]:
            epoch = STORY * int(maker.get("max_stories", 0)) or epoch
    return step, step * int(given.get("max_iters", 0)) or made or epoch


# ---- minutes on an H100, without one -----------------------------------------------------------

MEASURED = "results/bench/h100.json"
# Nothing but training steps was measured on that card. All else is an allowance, in minutes: to
# download stories and tokenize them on 16 cores; to replace words by synonyms, which took two cores
# 33 s for 35,255 stories; to start a training and compile it. Commands not listed have OTHER.
ALLOWANCES = {"prepare.py": 5.0, "synonyms.py": 5.0, "train.py": 1.0, "reward.py": 8.0,
              "eval.diversity": 3.0, "eval.interpret": 3.0, "eval.vocabulary": 2.0}  # fmt: skip
OTHER = 0.5
PUBLISHED = 0.5  # more for an evaluation of a published model: its download, its size
SMALL_STEP = 0.002  # seconds more for a step of fewer tokens than those measured: its launches
VALIDATION = 1 / 300  # of an epoch's time: a hundredth of its stories, no backward pass


def h100_minutes(jobs, settings):
    """Minutes that these Jobs of a study take on one H100, one after the other, by estimate: tokens
    times the measured seconds a token, and allowances. The judge's time is not counted."""
    cases = read_json(ROOT / MEASURED)["cases"]
    vocab_size, minutes = vocab_size_of(settings), 0.0
    for job in jobs:
        script, given = next(word for word in job.command if word != "-m"), options(job)
        minutes += ALLOWANCES.get(script, OTHER)
        if script.startswith("eval.") and "init_from" in given:
            minutes += PUBLISHED
        if script == "train.py":
            step, tokens = training_tokens(given, jobs)
            steps = tokens / step
            validations = 2 + steps / int(given.get("eval_interval", 1000))
            parameters = matmul_parameters(given["n_embd"], given["n_layer"], vocab_size)
            seconds = tokens * (1 + validations * VALIDATION) * seconds_per_token(cases, parameters)
            seconds += steps * SMALL_STEP if step < cases[0]["tokens"] else 0.0
            minutes += seconds / 60
    return minutes


def matmul_parameters(width, layers, vocab_size):
    """Weights that each token is multiplied with, of the blocks and the output layer."""
    return 12 * int(layers) * int(width) ** 2 + int(width) * vocab_size


def seconds_per_token(cases, parameters):
    """Seconds a token of a model with so many `matmul_parameters`: on the line between the nearest
    two of the measured cases, and of a larger model in proportion to the largest."""
    points = sorted(
        (matmul_parameters(case["n_embd"], case["n_layer"], case["vocab_size"]),
         1 / case["nanoStories"]["tokens_per_second"]) for case in cases
    )  # fmt: skip
    sizes, seconds = zip(*points, strict=True)
    return np.interp(parameters, sizes, seconds) * max(1.0, parameters / sizes[-1])


def options(job):
    """{name: text} of a command's --name=value words."""
    return dict(word[2:].partition("=")[::2] for word in job.command if word.startswith("--"))


def judge_calls(jobs):
    """(calls, tokens to read, most tokens to write) of the judge in these Jobs."""
    calls = read = written = 0
    for job in jobs:
        if job.command[1] == "eval.reward":
            settings, rubric = load(reward.Settings, job.command[2:], "out_dir")[0], TOPIC
            count = settings.stories * (3 if settings.instruct else 2)
        else:
            settings = judge.resolve(load(judge.Settings, job.command[2:], "out_dir")[0])
            rubric, count = judge.MODES[settings.mode][0], settings.num_prompts
            if settings.mode == "prompts":
                count = len(knowledge.read_prompts(settings))
            count = (count or len(harness.beginnings(settings.prompts))) * settings.num_samples
        messages, limit = [], judge_settings.reply_limit(settings) or settings.max_tokens
        for turn in range(len(rubric.turns)):
            messages.append({"role": "user", "content": rubric.prompt(turn, ITEM)})
            read += count * judge_settings.count_tokens(messages)
            messages.append({"role": "assistant", "content": "x" * 4 * limit})
            calls, written = calls + count, written + count * limit
    return calls, read, written


def spent(jobs, settings):
    """What the replies of the study's judge in the folders of these Jobs have cost."""
    files = {ROOT / Path(job.output).with_name("judge_replies.jsonl") for job in jobs}
    texts = [file.read_bytes() for file in files if file.exists()]
    lines = (line for text in texts for line in text.split(b"\n")[:-1])  # no half-written one
    replies = [json.loads(line) for line in lines if line]
    usage = [x["usage"] for x in replies if x["request"].get("model") == settings.judge]
    return sum(judge_settings.cost(settings, **tokens) for tokens in usage)
