"""Time of the whole of prepare.py, compared with tiktoken's encode_ordinary_batch on the same text.

    python -m benchmarks.prepare "stories/*.txt" --mb=160    # files of stories, as prepare.py reads

The stories are repeated up to that size, each copy with a sentence of its own, so that none counts
as a duplicate. prepare.py runs as a command, from start-up to the last hash; tiktoken has the texts
in memory already. Both use the same cores and take turns.
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tiktoken

from configs import ROOT, UserError, load, run
from nanostories.dataset import sources
from nanostories.dataset.cleaning import ENDINGS
from nanostories.dataset.tokenizer import Tokenizer
from nanostories.dataset.workers import cpu_count


@dataclass(frozen=True)
class Settings:
    source: str = ""  # stories, any source of prepare.py
    mb: float = 160  # megabytes of text
    rounds: int = 3  # measurements of each tokenizer
    tokenizers: str = "gpt2,bpe"  # of prepare.py, comma-separated

    mb_range = (0.001, 10**6)


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
    settings, _ = load(Settings, positional="source")
    if not settings.source:
        raise UserError('name a source of stories: python -m benchmarks.prepare "stories/*.txt"')
    cores = cpu_count()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        texts = write_text(settings.source, folder / "text.txt", settings.mb * 1e6)
        print(f"{(folder / 'text.txt').stat().st_size / 1e6:.1f} MB, {len(texts):,} stories")
        for name in settings.tokenizers.split(","):
            for _ in range(settings.rounds):
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
    run(main)
