"""
TinyStories-Syn: stories in a richer vocabulary, half of them with 30 % of their content words
replaced by synonyms.

    python synonyms.py --source=tinystories --out=data/tinystories-syn
    python synonyms.py --source=mine.txt --val_source=val.txt --mode=context
    python train.py configs/ts_cpu.py --dataset=data/tinystories-syn --out_dir=out/syn

--mode=wordnet is the student report's method, context ours: lexical_substitution.py says what they
do. What becomes of a story depends on the seed and its text alone, in whatever order the stories
come, and in mode context on how the corpus uses words: on its first 32 megabytes. Stories left
alone, and everything of the others but the words replaced, stay as they are, byte for byte.

The folder is one that train.py takes, as prepare.py makes it (which leaves out stories that come
twice or were cut off), and has the texts besides:

    stories.txt, stories_val.txt    all stories, `<|endoftext|>` between them
    replacements.jsonl              a line for each story reworded: {"split", "story": its number
                                    in that file, from 0, "swaps": [[start, old, new, part of
                                    speech], ...]}; from character `start` on it now has `new`
    synonyms.json                   what was asked, and what was got

A killed command goes on where it stood.
"""

import contextlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import sys
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from configs import UserError, load, run, show
from nanostories.dataset import build, readers
from nanostories.dataset import sources as corpus
from nanostories.dataset import tokenizer as tokenizers
from nanostories.dataset.cleaning import story_hash
from nanostories.dataset.tokenizer import EOT
from nanostories.dataset.workers import worker_pool
from nanostories.text import wordnet
from nanostories.text.lexical_substitution import Context, Likelihood, Usage, Wordnet, reword

COUNTED = 32  # blocks of about a megabyte whose words say what the corpus uses, in mode context
SEPARATOR = f"\n{EOT}\n"
_HALVES = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # the others are bytes that are no UTF-8


@dataclass(frozen=True)
class Settings:
    source: str = "tinystories"  # any source of prepare.py
    val_source: str = ""  # where val comes from; "": the data set's own
    out: str = ""  # data folder to write; "": data/<source>-syn
    mode: str = "wordnet"  # wordnet, as the report does; context: synonyms that fit
    story_fraction: float = 0.5  # share of the stories that get synonyms
    word_fraction: float = 0.3  # share of their content words
    model: str = ""  # for context: a run or a published model that says which synonym is likeliest
    tokenizer: str = "gpt2"  # as of prepare.py: gpt2, gpt2-10k, bpe, bytes, or the path of one
    vocab_size: int = 4096  # of bpe, <|endoftext|> included
    seed: int = 0  # of the choice of stories, words and synonyms
    workers: int = 0  # processes; 0: one a core


class Reworder:
    """Rewords the stories of a block, in a worker process."""

    def __init__(self, settings, usage):
        """usage: rewording.Usage of the corpus, for mode context."""
        self.settings, self.usage, self.way = settings, usage, None

    def __call__(self, block):
        """
        The stories of a block of a Source: [(text, swaps or None where it was left alone)], and the
        Counter of the chosen ones, their content words and the words replaced.
        """
        settings = self.settings
        if self.way is None:  # here, in the worker: WordNet is not sent from process to process
            likelihood = Likelihood(settings.model) if settings.model else None
            if likelihood and settings.workers != 1:
                likelihood.use_one_core()  # the other workers use the others
            plain = settings.mode == "wordnet"
            self.way = Wordnet() if plain else Context(self.usage, likelihood)
        found, total = [], Counter()
        for text in stories_of(block):
            swaps = None
            digest = story_hash(text.encode("utf-8", "surrogatepass"), settings.seed)
            if int.from_bytes(digest[:8], "little") < settings.story_fraction * 2**64:
                rng = random.Random(digest)
                text, swaps, words = reword(text, settings.word_fraction, self.way, rng)
                swaps = moved(swaps)
                replaced = sum(bool(swap.pos) for swap in swaps)
                total.update(chosen=1, words=words, replaced=replaced)
            found.append((text, swaps))
        return found, total


def stories_of(block):
    """
    The stories of a block as they can stand in a text file: without <|endoftext|> inside, and with
    no half of a surrogate pair, which .jsonl may have.
    """
    for text in readers.texts(block):
        for story in _HALVES.sub("\N{REPLACEMENT CHARACTER}", text).split(EOT):
            if story.strip():
                yield story


def moved(swaps):
    """The Swaps of a text, where they stand once all of them are made."""
    found, shift = [], 0
    for swap in swaps:
        found.append(replace(swap, start=swap.start + shift))
        shift += len(swap.new) - len(swap.old)
    return found


def usage_of(source):
    """The Usage of the first COUNTED blocks of a Source, for mode context."""
    found = Usage()
    for block in itertools.islice(source.blocks(), COUNTED):
        for text in stories_of(block):
            found.add(text)
    return found


# ----------------------------------------------------------------------------------------------
# what a killed command left, and going on with it


class Progress:
    """Files that only grow, and a file that says how far they are whole: {split: how far}."""

    def __init__(self, folder, asked):
        """asked: what else must be the same for a killed command to go on, JSON-able."""
        self.folder, self.path = Path(folder), Path(folder) / "progress.json"
        self.asked, self.done = asked, {}
        with contextlib.suppress(OSError, ValueError, KeyError):
            found = json.loads(self.path.read_text(encoding="utf-8"))
            if found["asked"] == self.asked:
                self.done = found["done"]
        self.folder.mkdir(parents=True, exist_ok=True)

    def files(self, split):
        """The two files of a split, cut to what is whole: stories, and their replacements."""
        found = []
        for name, size in zip(("txt", "jsonl"), self.of(split)["sizes"], strict=True):
            file = open(self.folder / f"{split}.{name}", "ab")  # noqa: SIM115  the caller's
            file.truncate(size)
            file.seek(size)
            found.append(file)
        return found

    def of(self, split):
        """How far a split is: blocks read, sizes of the two files, counts, whether it is done."""
        return self.done.setdefault(
            split, {"blocks": 0, "sizes": [0, 0], "counts": {}, "all": False}
        )

    def save(self, split, files, blocks, counts, finished=False):
        """Say that all that was written so far is whole."""
        for file in files:
            file.flush()
            os.fsync(file.fileno())
        self.done[split] = {"blocks": blocks, "sizes": [file.tell() for file in files],
                            "counts": dict(counts), "all": finished}  # fmt: skip
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps({"asked": self.asked, "done": self.done}), encoding="utf-8")
        os.replace(part, self.path)

    def end(self):
        """Remove it all, first what says that there is something to go on with."""
        self.path.unlink()
        shutil.rmtree(self.folder)


def write_split(source, split, progress, work):
    """Reword a Source into the files of its split, on from where they are whole."""
    state = progress.of(split)
    if state["all"]:
        return
    counts, number = Counter(state["counts"]), state["blocks"]
    blocks = itertools.islice(source.blocks(), number, None)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(file) for file in progress.files(split)]
        stories, replacements = files
        for found, total in build.progress(work(blocks), source):
            for text, swaps in found:
                before = SEPARATOR if counts["stories"] else ""
                stories.write(f"{before}{text}".encode("utf-8", "surrogateescape"))
                if swaps:
                    made = [[swap.start, swap.old, swap.new, swap.pos] for swap in swaps]
                    line = {"split": split, "story": counts["stories"], "swaps": made}
                    replacements.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                counts["stories"] += 1
            counts.update(total)
            number += 1
            progress.save(split, files, number, counts)
        progress.save(split, files, number, counts, finished=True)


# ----------------------------------------------------------------------------------------------
# the command


def rates(settings, splits):
    """What was asked for and what was got, of each split."""
    found = {}
    for split, counts in splits.items():
        stories, words = counts.get("stories", 0), counts.get("words", 0)
        found[split] = {
            "stories": stories,
            "story_fraction": counts.get("chosen", 0) / max(1, stories),
            "content_words": words,
            "word_fraction": counts.get("replaced", 0) / max(1, words),
        }
        print(f"{split}: {found[split]['story_fraction']:.4f} of {stories:,} stories "
              f"(asked: {settings.story_fraction:g}), in them {found[split]['word_fraction']:.4f} "
              f"of {words:,} content words (asked: {settings.word_fraction:g})")  # fmt: skip
    return found


def check(settings, out):
    """Raise UserError for settings that cannot be, before anything is read or made."""
    if settings.mode not in ("wordnet", "context"):
        raise UserError(f"mode must be wordnet or context, not '{settings.mode}'")
    if settings.model and settings.mode != "context":
        raise UserError("a model is for --mode=context: wordnet takes any synonym")
    for name in ("story_fraction", "word_fraction"):
        if not 0 <= getattr(settings, name) <= 1:
            raise UserError(f"{name} must lie between 0 and 1, not {getattr(settings, name):g}")
    if settings.workers < 0 or not 0 <= settings.seed < 2**63:
        raise UserError("workers and seed must not be negative, nor the seed above 2^63")
    if any(map(corpus.is_instruct, (settings.source, settings.val_source))):
        raise UserError("stories get synonyms, not Instruct records: name a source of stories")
    if not settings.val_source and settings.source not in readers.NAMED:
        # Held out by its hash, a story would be in val here and in train of the plain data.
        raise UserError("name the validation stories with --val_source, so that they stay apart")
    build.check_out(out)
    if settings.tokenizer not in ("bpe", "gpt2-10k"):  # these are made from the text
        tokenizers.build(settings.tokenizer)
    elif not 256 < settings.vocab_size <= tokenizers.MAX_VOCAB:
        raise UserError(f"vocab_size must be above 256 and at most {tokenizers.MAX_VOCAB:,}")
    wordnet.pos_tags(["dog"]), wordnet.reader()


def asked_of(settings, sources):
    """What decides the texts, JSON-able: settings, how long the sources are, and which model."""
    names = ("source", "val_source", "mode", "story_fraction", "word_fraction", "model", "seed")
    found = {name: getattr(settings, name) for name in names}
    # total() downloads a source, or says that it is not there, before anything is made.
    found["sources"] = {split: [str(one), one.total()] for split, one in sources.items()}
    found["checkpoint"] = Likelihood(settings.model).found.identity() if settings.model else {}
    return found


def main():
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    settings, origin = load(Settings)
    show(settings, origin)
    out = Path(settings.out or f"data/{corpus.slug(settings.source)}-syn")
    check(settings, out)
    train = corpus.Source(settings.source).pinned()
    val = corpus.Source(settings.val_source or settings.source, "val").pinned()
    sources = {"val": val, "train": train}
    progress = Progress(out.with_name(f".{out.name}.work"), asked_of(settings, sources))
    usage = usage_of(train) if settings.mode == "context" else Usage()
    with worker_pool(Reworder(settings, usage), settings.workers) as work:
        for split, source in sources.items():
            write_split(source, split, progress, work)
    got = rates(settings, {split: progress.of(split)["counts"] for split in sources})
    texts = {split: progress.folder / f"{split}.txt" for split in sources}

    def add(folder):
        for split, name in (("train", "stories.txt"), ("val", "stories_val.txt")):
            shutil.copyfile(texts[split], folder / name)
        with open(folder / "replacements.jsonl", "wb") as file:
            for split in sources:
                with open(progress.folder / f"{split}.jsonl", "rb") as part:
                    shutil.copyfileobj(part, file)
        facts = json.dumps(asdict(settings) | {"got": got}, indent=1)
        (folder / "synonyms.json").write_text(facts, encoding="utf-8")

    train_texts, val_texts = corpus.Source(str(texts["train"])), corpus.Source(str(texts["val"]))
    tokenizer = build.make_tokenizer(settings.tokenizer, settings.vocab_size, train_texts)
    build.build_dataset(
        out, train_texts, val_texts, tokenizer, workers=settings.workers, add_files=add,
        manifest={"source": f"{train} (synonyms)", "val_source": f"{val} (synonyms)"},
    )  # fmt: skip
    progress.end()


if __name__ == "__main__":
    run(main)
