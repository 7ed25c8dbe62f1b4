"""How fast the nearest training story is found, among 30 thousand stories and among millions.

    python -m benchmarks.memorization_index "stories/*.txt" --val_source=unseen.txt

Size 0 is the stories as they are. Larger sizes recombine their paragraphs: a new story has as many
as one of the real ones, its first paragraph from among the first, its second from among the second,
and so on. The queries are the last 60 % of held-out stories; with --storybook=N also those of N
stories of storybook.py, which share so much that pruning helps little. At every size the index must
agree with adding up the posting lists of all bigrams one by one and, for a few texts and up to a
million stories, with reading every story. rouge_score is timed on pairs of the same texts. Writes
results/bench/diversity_cpu.json and assets/diversity_speed.png.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rouge_score.rouge_scorer import RougeScorer

from configs import ROOT, UserError, load, run
from eval.diversity import split_story
from eval.memorization import nearest_story
from eval.memorization.inverted_index import index_folder, story_text
from eval.memorization.nearest_story import StoryIndex
from nanostories.dataset import sources
from nanostories.dataset.shards import Dataset
from nanostories.dataset.tokenizer import Tokenizer
from nanostories.dataset.workers import cpu_count
from nanostories.plotting import plot_to
from nanostories.text.words import ngrams, words_and_marks
from nanostories.training import device


@dataclass(frozen=True)
class Settings:
    source: str = ""  # training stories, any source of prepare.py
    val_source: str = ""  # held-out stories, whose ends are the queries
    sizes: str = "0,300000,2700000"  # stories, comma-separated; 0: as they are
    storybook: int = 0  # also among so many stories of storybook.py; 0: not
    texts: int = 100  # queries
    folder: str = ""  # keep the data here, made once; default: a temporary one

    storybook_range, texts_range = (0, 10**9), (1, 10**6)


ROUNDS = 3
BUILD = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
import eval.diversity  # as the command does: its workers import it too
from eval.memorization.inverted_index import open_index
from nanostories.dataset.shards import Dataset

if __name__ == "__main__":
    start = time.perf_counter()
    open_index(Dataset(sys.argv[1], "train"), int(sys.argv[2]))
    print(time.perf_counter() - start)
"""


def recombined(stories, count, path, seed=0):
    """Write `count` stories of paragraphs of real ones."""
    stories = [[part for part in story.split("\n") if part.strip()] for story in stories]
    places, choice = defaultdict(list), random.Random(seed).choice
    for story in stories:
        for i, part in enumerate(story):
            places[i].append(part)
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(count):
            parts = (choice(places[i]) for i in range(len(choice(stories))))
            file.write("\n\n".join(parts) + "\n<|endoftext|>\n")


def memory(pid):
    """Bytes of memory of a process and its children, shared pages counted in each."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(stat.parent.name) == pid or int(fields[1]) == pid:
            total += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    return total


def build(folder, workers, code):
    """Build the index by a command of its own: seconds after its start, and its most memory."""
    most, command = 0, [sys.executable, code, folder, str(workers)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while process.poll() is None:
        most = max(most, memory(process.pid))
        time.sleep(0.1)
    return float(process.stdout.read().split()[-1]), most


def one_by_one(index, words):
    """(matched, story) by adding up all posting lists of every segment, one after the other."""
    best, first = (0, None), 0
    for segment in index.segments:
        numbers = {word: i for i, word in enumerate(segment.words, 1)}
        matched = np.zeros(segment.stories, np.int64)
        for a, b in ngrams(words, 2):
            key = numbers.get(a, 0) * segment.size + numbers.get(b, 0)
            i = int(np.searchsorted(segment.bigrams, segment.bigrams.dtype.type(key)))
            known = a in numbers and b in numbers and i < len(segment.bigrams)
            if known and segment.bigrams[i] == key:
                start, end = segment.posting_ends[i - 1] if i else 0, segment.posting_ends[i]
                matched[segment.postings[start:end]] += 1
        if matched.max() > best[0]:
            best = (int(matched.max()), int(first + matched.argmax()))
        first += segment.stories
    return best


def by_reading(index, texts):
    """[(matched, story)] by the definition, reading every story once."""
    grams, best = [ngrams(words, 2) for words in texts], [(0, None)] * len(texts)
    for i in range(index.data.stories):
        story = set(ngrams(words_and_marks(index.text(i)), 2))
        for j, text in enumerate(grams):
            matched = sum(gram in story for gram in text)
            if matched > best[j][0]:
                best[j] = (matched, i)
    return best


def time_queries(index, texts):
    """Seconds of each query: (texts,), the medians of some rounds; and the nearest stories."""
    seconds = np.empty((ROUNDS, len(texts)))
    for times in seconds:
        for i, words in enumerate(texts):
            start = time.perf_counter()
            index.nearest(words)
            times[i] = time.perf_counter() - start
    return np.median(seconds, axis=0), [index.nearest(words) for words in texts]


def seconds_of_rouge(texts, stories):
    """Seconds a pair of rouge_score."""
    scorer, start = RougeScorer(["rouge2"]), time.perf_counter()
    for text, story in zip(texts, stories, strict=True):
        scorer.score(story, text)
    return (time.perf_counter() - start) / len(texts)


def measure(folder, texts, code, cores):
    """Measure everything on one data folder."""
    data = Dataset(folder, "train")
    result = {"stories": data.stories, "bytes": data.bytes}
    for workers in sorted({1, cores} if data.stories < 10**6 else {cores}):
        subprocess.run(["rm", "-rf", folder / "inverted_index"], check=True)
        seconds, most = build(folder, workers, code)
        speed = data.bytes / 1e6 / seconds / workers
        result[f"build_{workers}"] = {"seconds": seconds, "MB_s_core": speed, "memory": most}
        print(f"{data.stories:,} stories, {workers} worker(s): {seconds:.1f} s, "
              f"{speed:.1f} MB/s a core, {most / 1e9:.2f} GB", flush=True)  # fmt: skip
    files = [path for path in index_folder(data).glob("*/*")]
    result["index_bytes"] = sum(path.stat().st_size for path in files)
    start = time.perf_counter()
    index = StoryIndex(data)
    result["open"] = time.perf_counter() - start
    words = [words_and_marks(text) for text in texts]
    time_queries(index, words[:10])  # the index comes from the disk once
    times, nearest = time_queries(index, words)
    assert [one_by_one(index, one) for one in words] == [(x.matched, x.story) for x in nearest]
    nearest_story.PRUNING, pruning = 0.0, nearest_story.PRUNING
    result["without_pruning"] = float(np.median(time_queries(index, words[:30])[0]))
    nearest_story.PRUNING = pruning
    if data.stories < 10**6:
        assert by_reading(index, words[:5]) == [(x.matched, x.story) for x in nearest[:5]]
    pair = seconds_of_rouge(texts, [index.text(one.story) for one in nearest])
    middle, high, most = np.percentile(times, (50, 90, 100)).tolist()
    result |= {"texts": len(words), "words": sum(map(len, words)) / len(words)}
    result |= {"rouge_nearest": float(np.mean([one.precision for one in nearest]))}
    result |= {"median": middle, "90%": high, "max": most, "rouge_score_pair": pair}
    result |= {"times_rouge_score": pair * data.stories / middle}
    print(f"    {middle * 1e3:.1f} ms a text (90 % {high * 1e3:.1f}, longest {most * 1e3:.1f}), "
          f"{result['without_pruning'] * 1e3:.0f} without pruning, ROUGE-2 "
          f"{result['rouge_nearest']:.3f}, {result['times_rouge_score']:,.0f} times "
          "rouge_score", flush=True)  # fmt: skip
    return result


def plot(rows, path):
    """Milliseconds a text over the number of training stories, as a PNG file."""
    n = [row["stories"] for row in rows]
    with plot_to(path, size=(6.5, 4)) as (_, ax):
        for name, label in (("median", "the index, median text"),
                            ("max", "the index, longest of 100"),
                            ("without_pruning", "without pruning")):  # fmt: skip
            ax.loglog(n, [row[name] * 1e3 for row in rows], "o-", label=label)
        linear = [rows[0]["median"] * stories / n[0] * 1e3 for stories in n]
        ax.loglog(n, linear, ":", color="0.5", label="proportional to the stories")
        ax.axhline(50, color="C3", lw=1, ls="--", label="50 ms")
        ax.set(xlabel="training stories", ylabel="milliseconds a text, one core")
        ax.legend(fontsize=8)


def main():
    settings, _ = load(Settings, positional="source")
    if not (settings.source and settings.val_source):
        raise UserError("name the stories, and held-out ones with --val_source; see --help")
    held = [split_story(text, 0.4)[1] for text in sources.read(settings.val_source)]
    texts = [text for text in held if text][: settings.texts]
    cores, rows = cpu_count(), []
    with tempfile.TemporaryDirectory() as temporary:
        top = Path(settings.folder or temporary)
        code = Path(temporary) / "build.py"
        code.write_text(BUILD)
        stories = list(sources.read(settings.source))
        for size in map(int, settings.sizes.split(",")):
            folder, source = top / f"data-{size}", settings.source
            if not (folder / "manifest.json").exists():
                if size:
                    source = top / f"{size}.txt"
                    recombined(stories, size, source, seed=size)
                command = [sys.executable, ROOT / "prepare.py", f"--source={source}"]
                command += [f"--out={folder}", "--tokenizer=bpe", "--vocab_size=4096"]
                command += ["--val_fraction=0.0005"]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            rows.append(measure(folder, texts, code, cores))
        result = {"environment": device.environment("cpu"), "cores": cores, "rows": rows}
        if settings.storybook:
            folder = top / "storybook"
            command = [sys.executable, ROOT / "prepare.py", "--source=storybook", f"--out={folder}"]
            command += [f"--stories={settings.storybook}", "--tokenizer=bpe", "--vocab_size=1024"]
            if not folder.exists():
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            held, tokenizer = Dataset(folder, "val"), Tokenizer.load(folder)
            count = min(settings.texts, held.stories)
            texts = [split_story(story_text(held, tokenizer, i), 0.4)[1] for i in range(count)]
            result["storybook"] = measure(folder, texts, code, cores)
    path = ROOT / "results" / "bench" / "diversity_cpu.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    plot(rows, ROOT / "assets" / "diversity_speed.png")


if __name__ == "__main__":
    run(main)
