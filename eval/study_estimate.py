"""What the jobs of a study will take: hours of training, calls to the judge, tokens and cost."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from configs import ROOT, UserError, load
from eval import harness, judge, knowledge, reward
from eval.llm import settings as judge_settings
from eval.llm.rubrics import TOPIC, JudgeItem
from nanostories.storage import read_json

EPOCH = 400e6  # tokens of TinyStories, 2.1 million stories of 190, where its data is not made yet
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
            hours = f"about {training_hours(trainings, settings, device):,.1f} hours, one by one"
        except UserError as error:
            hours = str(error)
        print(f"{len(trainings)} trainings: {hours}")


def training_hours(jobs, settings, device):
    """Hours of trainings, one after the other: the smallest, the middle and the largest model are
    timed, others take as long as the nearest of these, in proportion to Job.weight.
    """
    sizes = {job.weight: "{n_embd}-{n_layer}".format(**options(job)) for job in jobs}
    weights = sorted(sizes)
    weights = sorted({weights[0], weights[len(weights) // 2], weights[-1]})
    vocab_sizes = {"gpt2": 50_257, "gpt2-10k": 10_000, "bytes": 257}
    words = [f"--sizes={','.join(sizes[weight] for weight in weights)}", f"--device={device}",
             f"--vocabs={vocab_sizes.get(settings.tokenizer, settings.vocab_size)}", "--steps=2",
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
    for job in jobs:
        given, speed = options(job), dict(zip(weights, speeds, strict=True))
        manifest = ROOT / given["dataset"] / "manifest.json"
        rows = int(given.get("batch_size", 32)) * int(given.get("gradient_accumulation_steps", 1))
        tokens = rows * int(given.get("row_tokens", 1024)) * int(given.get("max_iters", 0))
        if not tokens:
            made = manifest.exists() and read_json(manifest)["splits"]["train"]["tokens"]
            tokens = made or EPOCH
        near = min(weights, key=lambda weight: abs(weight - job.weight))
        limit = float(given.get("max_minutes", 0)) or float("inf")
        seconds += min(tokens / speed[near] * job.weight / near, 60 * limit)
    return seconds / 3600


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
