"""Time of the whole of prepare.py, compared with tiktoken's encode_ordinary_batch on the same text.

    python -m benchmarks.prepare "stories/*.txt" --mb=160    # files of stories, as prepare.py reads

The stories are repeated up to that size, each copy with a sentence of its own, so that none counts
as a duplicate. prepare.py runs as a command, from start-up to the last hash; tiktoken has the texts
in memory already. Both use the same cores and take turns.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tiktoken

from nanostories.dataset import sources
from nanostories.dataset.cleaning import ENDINGS
from nanostories.dataset.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent


def write_text(source, path, size):
    """Write `size` bytes of distinct stories; returns them."""
    stories = [story for story in sources.read(source) if story.endswith(ENDINGS)]
    texts, written = [], 0
    while written < size:
        story = f"{stories[len(texts) % len(stories)]} It was day {len(texts)}."
        texts.append(story)
        written += len(story.encode()) + 15
    path.write_text("\n<|endoftext|>\n".join(texts), encoding="utf-8")
    return texts


def seconds():
    """(2,): wall-clock seconds, and CPU seconds of this process and its children."""
    return np.array([time.perf_counter(), sum(os.times()[:4])])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("--mb", type=float, default=160)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokenizers", default="gpt2,bpe")
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        texts = write_text(args.source, folder / "text.txt", args.mb * 1e6)
        print(f"{(folder / 'text.txt').stat().st_size / 1e6:.1f} MB, {len(texts):,} stories")
        for name in args.tokenizers.split(","):
            for _ in range(args.rounds):
                command = [sys.executable, ROOT / "prepare.py", f"--source={folder / 'text.txt'}"]
                command += [f"--tokenizer={name}", f"--out={folder / name}"]
                start = seconds()
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                wall, cpu = seconds() - start
                if name == "gpt2":
                    encoding = tiktoken.get_encoding("gpt2")
                else:
                    encoding = Tokenizer.load(folder / name).encoding
                start = seconds()
                encoding.encode_ordinary_batch(texts, num_threads=cores)
                tiktoken_wall, tiktoken_cpu = seconds() - start
                print(
                    f"{name}: prepare.py {wall:.1f} s ({cpu:.1f} of CPU), tiktoken "
                    f"{tiktoken_wall:.1f} s ({tiktoken_cpu:.1f}): {wall / tiktoken_wall:.2f}x",
                    flush=True,
                )


if __name__ == "__main__":
    main()
