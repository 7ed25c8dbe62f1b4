"""
TinyStories-Syn: stories in a richer vocabulary, half of them with 30 % of their content words
replaced by synonyms.

    python synonyms.py --source=tinystories --out=data/tinystories-syn
    python synonyms.py --source=mine.txt --val_source=val.txt --tokenizer=bpe --mode=context
    python train.py configs/ts_cpu.py --dataset=data/tinystories-syn --out_dir=out/syn

--mode=wordnet is the student report's method, context ours: rewording.py says what they do. What
becomes of a story depends on the seed and its text alone, in whatever order the stories come. Those
left alone, and everything of the others but the words replaced, stay as they are, byte for byte.

The folder is one that train.py takes, as prepare.py makes it, and has the texts besides:
stories.txt and stories_val.txt, `<|endoftext|>` between the stories, replacements.jsonl with every
word replaced, and synonyms.json with what was asked and what was got. A killed command goes on
where it stood.
"""

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import corpus
import hub
import prepare
import thesaurus
from configs import UserError, load, run, show
from encode import hash_of, worker_pool
from rewording import Context, Likelihood, Wordnet, reword
from tokenizer import EOT
from words import tokens

COUNTED = 32  # blocks of about a megabyte whose words say what the corpus uses, in mode context
SEPARATOR = f"\n{EOT}\n"


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

    def __init__(self, settings, counts):
        """counts: {word: how often} of the corpus, for mode context."""
        self.settings, self.counts, self.way = settings, counts, None

    def __call__(self, block):
        """
        The stories of a block of a Source: [(text, swaps or None where it was left alone)], and the
        Counter of the chosen ones, their content words and the words replaced.
        """
        if self.way is None:  # here, in the worker: WordNet is not sent from process to process
            model = self.settings.model
            likelihood = Likelihood(model) if model else None
            plain = self.settings.mode == "wordnet"
            self.way = Wordnet() if plain else Context(self.counts, likelihood)
        found, total = [], Counter()
        for text in corpus.texts(block):
            swaps, settings = None, self.settings
            digest = hash_of(text.encode("utf-8", "surrogatepass"), settings.seed)
            if int.from_bytes(digest[:8], "little") < settings.story_fraction * 2**64:
                rng = random.Random(digest)
                text, swaps, words = reword(text, settings.word_fraction, self.way, rng)
                replaced = sum(bool(swap.pos) for swap in swaps)
                total.update(chosen=1, words=words, replaced=replaced)
            found.append((text, swaps))
        return found, total


def count_words(source):
    """{word: how often} in the first COUNTED blocks of a Source."""
    found = Counter()
    for block in itertools.islice(source.blocks(), COUNTED):
        for text in corpus.texts(block):
            found.update(tokens(text))
    return dict(found)


# ----------------------------------------------------------------------------------------------
# what a killed command left, and going on with it


class Progress:
    """Files that only grow, and a file that says how far they are whole: {split: how far}."""

    def __init__(self, folder, settings):
        self.folder, self.path = Path(folder), Path(folder) / "progress.json"
        self.asked, self.done = asdict(settings) | {"workers": 0}, {}
        with contextlib.suppress(OSError, ValueError, KeyError):
            found = json.loads(self.path.read_text(encoding="utf-8"))
            if found["asked"] == self.asked:
                self.done = found["done"]
        if not self.done:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)

    def files(self, split):
        """The two files of a split, cut to what is whole: stories, and their replacements."""
        found = []
        for name, size in zip(("txt", "jsonl"), self.of(split)["sizes"], strict=True):
            file = open(self.folder / f"{split}.{name}", "ab")  # noqa: SIM115  the caller's
            file.truncate(size)
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
        for found, total in prepare.progress(work(blocks), source):
            for text, swaps in found:
                before = SEPARATOR if stories.tell() else ""
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


def check(settings):
    """Raise UserError for settings that cannot be."""
    if settings.mode not in ("wordnet", "context"):
        raise UserError(f"mode must be wordnet or context, not '{settings.mode}'")
    if settings.model:
        if settings.mode != "context":
            raise UserError("a model is for --mode=context: wordnet takes any synonym")
        Likelihood(settings.model)  # says what is missing before anything is made
    for name in ("story_fraction", "word_fraction"):
        if not 0 <= getattr(settings, name) <= 1:
            raise UserError(f"{name} must lie between 0 and 1, not {getattr(settings, name):g}")
    if corpus.is_instruct(settings.source):
        raise UserError("stories get synonyms, not Instruct records: name a source of stories")
    if not settings.val_source and settings.source not in hub.NAMED:
        # Held out by its hash, a story would be in val here and in train of the plain data.
        raise UserError("name the validation stories with --val_source, so that they stay apart")
    thesaurus.tags(["dog"]), thesaurus.wordnet()  # say what is missing before anything is made


def main():
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    settings, origin = load(Settings)
    show(settings, origin)
    check(settings)
    train = corpus.Source(settings.source).pinned()
    val = corpus.Source(settings.val_source or settings.source, "val").pinned()
    sources = {"val": val, "train": train}
    for source in sources.values():
        source.total()  # downloads it, or says that it is not there, before anything is made
    out = Path(settings.out or f"data/{corpus.slug(settings.source)}-syn")
    progress = Progress(out.with_name(f".{out.name}.work"), settings)
    counts = count_words(train) if settings.mode == "context" else {}
    with worker_pool(Reworder(settings, counts), settings.workers) as work:
        for split, source in sources.items():
            write_split(source, split, progress, work)
    got = rates(settings, {split: progress.of(split)["counts"] for split in sources})
    texts = {split: progress.folder / f"{split}.txt" for split in sources}
    prepare.prepare(prepare.Settings(
        source=str(texts["train"]), val_source=str(texts["val"]), tokenizer=settings.tokenizer,
        vocab_size=settings.vocab_size, out=str(out), workers=settings.workers,
    ))  # fmt: skip
    facts = asdict(settings) | {"got": got}
    (out / "synonyms.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    with open(out / "replacements.jsonl", "wb") as file:
        for split in sources:
            with open(progress.folder / f"{split}.jsonl", "rb") as part:
                shutil.copyfileobj(part, file)
    texts["train"].rename(out / "stories.txt")
    texts["val"].rename(out / "stories_val.txt")
    shutil.rmtree(progress.folder)


if __name__ == "__main__":
    run(main)
