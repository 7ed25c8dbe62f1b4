"""
How fast the closest training story is found, among 30 thousand stories and among millions.

    python -m benchmarks.memorization_index "../shared/data/tinystories/train_v[12]_*[adl].txt" \\
        --val_source=../shared/data/tinystories/valid_v2.txt --sizes=0,300000,2700000

Size 0 is the stories as they are; larger ones are their paragraphs dealt anew: each new story has
as many as one of the real ones, its first paragraph from among the first, its second from among the
second, and so on. The texts asked about are the last 60 % of held-out stories; with --storybook=N
also those of N stories of storybook.py, which have so much in common that little can be left early.
At every size the index must agree with adding up the lists of all bigrams one by one and, for a few
texts and up to a million stories, with reading every story. rouge_score is timed on pairs of the
same texts. Writes results/bench/diversity_cpu.json and assets/diversity_speed.png.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from rouge_score.rouge_scorer import RougeScorer

ROOT = Path(__file__).resolve().parent.parent

from eval.diversity import cut_at  # noqa: E402
from eval.memorization import nearest_story  # noqa: E402
from eval.memorization.inverted_index import folder_of, text_of  # noqa: E402
from eval.memorization.nearest_story import Index  # noqa: E402
from nanostories.dataset import sources  # noqa: E402
from nanostories.dataset.shards import Dataset  # noqa: E402
from nanostories.dataset.tokenizer import Tokenizer  # noqa: E402
from nanostories.text.words import ngrams, words_and_marks  # noqa: E402
from nanostories.training import device  # noqa: E402

ROUNDS = 3
BUILD = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
import eval.diversity  # as the command does: its workers import it too
from eval.segments import open_all
from shards import Dataset

if __name__ == "__main__":
    start = time.perf_counter()
    open_all(Dataset(sys.argv[1], "train"), int(sys.argv[2]))
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
    """(hits, story) by adding up all lists of every segment, one after the other."""
    grams, best = ngrams(words, 2), (0, None)
    for segment, first in zip(index.segments, index.firsts, strict=False):
        numbers = {word: i for i, word in enumerate(segment.words, 1)}
        hits = np.zeros(segment.stories_in, np.int64)
        for a, b in grams:
            key = numbers.get(a, 0) * segment.size + numbers.get(b, 0)
            i = int(np.searchsorted(segment.keys, segment.keys.dtype.type(key)))
            if a in numbers and b in numbers and i < len(segment.keys) and segment.keys[i] == key:
                hits[segment.stories[segment.ends[i - 1] if i else 0 : segment.ends[i]]] += 1
        if hits.max() > best[0]:
            best = (int(hits.max()), int(first + hits.argmax()))
    return best


def by_reading(index, texts):
    """[(hits, story)] by the definition, reading every story once."""
    grams, best = [ngrams(words, 2) for words in texts], [(0, None)] * len(texts)
    for i in range(index.data.stories):
        story = set(ngrams(words_and_marks(index.text(i)), 2))
        for j, mine in enumerate(grams):
            hits = sum(gram in story for gram in mine)
            if hits > best[j][0]:
                best[j] = (hits, i)
    return best


def asked(index, texts):
    """Seconds of each text: (texts,), the medians of some rounds; and what was found."""
    seconds = np.empty((ROUNDS, len(texts)))
    for times in seconds:
        for i, words in enumerate(texts):
            start = time.perf_counter()
            index.closest(words)
            times[i] = time.perf_counter() - start
    return np.median(seconds, axis=0), [index.closest(words) for words in texts]


def seconds_of_rouge(texts, stories):
    """Seconds a pair of rouge_score."""
    scorer, start = RougeScorer(["rouge2"]), time.perf_counter()
    for text, story in zip(texts, stories, strict=True):
        scorer.score(story, text)
    return (time.perf_counter() - start) / len(texts)


def measure(folder, texts, code, cores):
    """All that is measured of one data folder."""
    data = Dataset(folder, "train")
    result = {"stories": data.stories, "bytes": data.bytes}
    for workers in sorted({1, cores} if data.stories < 10**6 else {cores}):
        subprocess.run(["rm", "-rf", folder / "overlap"], check=True)
        seconds, most = build(folder, workers, code)
        speed = data.bytes / 1e6 / seconds / workers
        result[f"build_{workers}"] = {"seconds": seconds, "MB_s_core": speed, "memory": most}
        print(f"{data.stories:,} stories, {workers} worker(s): {seconds:.1f} s, "
              f"{speed:.1f} MB/s a core, {most / 1e9:.2f} GB", flush=True)  # fmt: skip
    files = [path for path in folder_of(data).glob("*/*")]
    result["index_bytes"] = sum(path.stat().st_size for path in files)
    start = time.perf_counter()
    index = Index(data)
    result["open"] = time.perf_counter() - start
    words = [words_and_marks(text) for text in texts]
    asked(index, words[:10])  # the index comes from the disk once
    times, found = asked(index, words)
    assert [one_by_one(index, one) for one in words] == [(x.hits, x.story) for x in found]
    nearest_story.REST, rest = 0.0, nearest_story.REST
    result["without_pruning"] = float(np.median(asked(index, words[:30])[0]))
    nearest_story.REST = rest
    if data.stories < 10**6:
        assert by_reading(index, words[:5]) == [(x.hits, x.story) for x in found[:5]]
    pair = seconds_of_rouge(texts, [index.text(one.story) for one in found])
    middle, high, most = np.percentile(times, (50, 90, 100)).tolist()
    result |= {"texts": len(words), "words": sum(map(len, words)) / len(words)}
    result |= {"h": float(np.mean([one.share for one in found]))}
    result |= {"median": middle, "90%": high, "max": most, "rouge_score_pair": pair}
    result |= {"times_rouge_score": pair * data.stories / middle}
    print(f"    {middle * 1e3:.1f} ms a text (90 % {high * 1e3:.1f}, longest {most * 1e3:.1f}), "
          f"{result['without_pruning'] * 1e3:.0f} without pruning, h {result['h']:.3f}, "
          f"{result['times_rouge_score']:,.0f} times rouge_score", flush=True)  # fmt: skip
    return result


def plot(rows, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4), layout="tight")
    ax = figure.subplots()
    n = [row["stories"] for row in rows]
    for name, label in (("median", "the index, median text"), ("max", "the index, longest of 100"),
                        ("without_pruning", "without leaving any early")):  # fmt: skip
        ax.loglog(n, [row[name] * 1e3 for row in rows], "o-", label=label)
    linear = [rows[0]["median"] * stories / n[0] * 1e3 for stories in n]
    ax.loglog(n, linear, ":", color="0.5", label="growing with the stories")
    ax.axhline(50, color="C3", lw=1, ls="--", label="50 ms")
    ax.set(xlabel="training stories", ylabel="milliseconds a text, one core")
    ax.grid(alpha=0.3, which="both")
    ax.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("--val_source", required=True)
    parser.add_argument("--sizes", default="0,300000,2700000")
    parser.add_argument("--storybook", type=int, default=0)
    parser.add_argument("--texts", type=int, default=100)
    parser.add_argument("--folder", help="keep the data here: made once")
    args = parser.parse_args()
    held = [cut_at(text, 0.4)[1] for text in sources.read(args.val_source)]
    texts = [text for text in held if text][: args.texts]
    cores, rows = len(os.sched_getaffinity(0)), []
    with tempfile.TemporaryDirectory() as temporary:
        top = Path(args.folder or temporary)
        code = Path(temporary) / "build.py"
        code.write_text(BUILD)
        stories = list(sources.read(args.source))
        for size in map(int, args.sizes.split(",")):
            folder, source = top / f"data-{size}", args.source
            if not (folder / "manifest.json").exists():
                if size:
                    source = top / f"{size}.txt"
                    recombined(stories, size, source, seed=size)
                command = [sys.executable, ROOT / "prepare.py", f"--source={source}"]
                command += [f"--out={folder}", "--tokenizer=bpe", "--vocab_size=4096"]
                command += ["--val_fraction=0.0005"]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            rows.append(measure(folder, texts, code, cores))
        result = {"machine": device.environment("cpu"), "cores": cores, "rows": rows}
        if args.storybook:
            folder = top / "storybook"
            command = [sys.executable, ROOT / "prepare.py", "--source=storybook", f"--out={folder}"]
            command += [f"--stories={args.storybook}", "--tokenizer=bpe", "--vocab_size=1024"]
            if not folder.exists():
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            held = Dataset(folder, "val")
            texts = [text_of(held, Tokenizer.load(folder), i) for i in range(args.texts)]
            texts = [cut_at(text, 0.4)[1] for text in texts]
            result["storybook"] = measure(folder, texts, code, cores)
    path = ROOT / "results" / "bench" / "diversity_cpu.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    plot(rows, ROOT / "assets" / "diversity_speed.png")


if __name__ == "__main__":
    main()
