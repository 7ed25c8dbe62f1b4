"""
Stories in, tokens out: any source to the shards of data/<name>/ (see shards.py for the format).

    python prepare.py --source=storybook --tokenizer=bpe       # no network needed
    python prepare.py --source=tinystories-v2                  # from the hub, with GPT-2's tokens
    python prepare.py --source="my/*.txt" --tokenizer=out/ts_cpu/tokenizer.json   # to fine-tune
    python prepare.py configs/ts_cpu.py                        # what that config trains on

Stories are repaired (encoding only), and those that are empty, cut off, repeated, or in train and
val both are dropped; each rule's count is printed and kept in manifest.json. The folder appears
when it is complete; one of the same name is replaced then, not before.
"""

import contextlib
import functools
import hashlib
import itertools
import math
import multiprocessing
import os
import re
import shutil
import signal
import sys
import time
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import configs
import corpus
import tokenizer as tokenizers
from configs import UserError

SAMPLE_BYTES = 32_000_000  # of text that a tokenizer is made from: enough, and memory is bounded
PART_STORIES = 1 << 20  # of how many stories the hashes are compared at a time
DUPLICATE, IN_VAL = 1, 2  # why a story is dropped after all have been seen; 0 keeps it
DROPPED = ("empty", "truncated", "duplicate", "in_val")
RULES = ("read", "repaired", *DROPPED)
LINE_SECONDS = 10  # between lines of progress, where there is no terminal


@dataclass(frozen=True)
class Settings:
    source: str = "tinystories"  # storybook, a data set's name, hub:owner/name, a file, a glob
    val_source: str = ""  # where val comes from; "": the data set's own, or val_fraction of source
    val_fraction: float = 0.01  # part of the stories held out for val, where it has no source
    tokenizer: str = "gpt2"  # gpt2, gpt2-10k, bpe, bytes, or the path of a tokenizer.json
    vocab_size: int = 4096  # of bpe, <|endoftext|> included
    out: str = ""  # folder to write; "": data/<source>-<tokenizer>
    stories: int = 100_000  # how many stories storybook tells
    seed: int = 0  # of storybook, and of the choice of val stories
    revision: str = ""  # commit of a hub source; "": the pinned one
    workers: int = 0  # processes; 0: one a core


# ----------------------------------------------------------------------------------------------
# the folder, and what stands in it twice


@contextlib.contextmanager
def new_folder(path):
    """
    A temporary folder beside `path`, renamed to `path` when the block ends well, else removed.

    An older data folder at `path` goes away only then; anything else there is a UserError.
    """
    path = Path(path)
    if path.exists() and not (path / "manifest.json").is_file():
        raise UserError(f"'{path}' exists and is no data folder (no manifest.json): not replaced")
    made = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{x}") for x in ("new", "old"))
    try:
        temporary.mkdir()
        yield temporary
        for file in [*temporary.iterdir(), temporary]:
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        # A folder cannot take the place of another in one step, so the old one steps aside.
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(temporary, ignore_errors=True)
        if made:
            with contextlib.suppress(OSError):
                path.parent.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


def repeats(val, train):
    """
    What to drop of two Writers, as uint8 arrays (drop_val, drop_train): 0 keeps a story, DUPLICATE
    drops it for an equal one before it in its split, IN_VAL a train story for one in val.
    """
    drop = np.zeros(val.stories + train.stories, np.uint8)
    # The hashes of a part at a time, so that memory does not grow with the corpus.
    parts = 1 + len(drop) // PART_STORIES
    for part in range(parts):
        hashes, places = [np.empty((0, 2), np.uint64)], [np.empty(0, np.int64)]
        for base, writer in ((0, val), (val.stories, train)):
            for first, rows in writer.rows():
                mine = np.flatnonzero(rows["hash"][:, 0] % np.uint64(parts) == part)
                hashes.append(rows["hash"][mine])
                places.append(base + first + mine)
        hashes, places = np.concatenate(hashes), np.concatenate(places)
        order = np.lexsort((places, hashes[:, 1], hashes[:, 0]))
        hashes, places = hashes[order], places[order]
        again = np.zeros(len(places), bool)
        again[1:] = (hashes[1:] == hashes[:-1]).all(axis=1)
        # The first of each run of equals is the one to keep; val stands before train.
        original = np.maximum.accumulate(np.where(again, 0, np.arange(len(places))))
        leak = (places[original] < val.stories) & (places >= val.stories)
        drop[places[again]] = np.where(leak, IN_VAL, DUPLICATE)[again]
    return drop[: val.stories], drop[val.stories :]


# ----------------------------------------------------------------------------------------------
# what a worker does


class Stories(NamedTuple):
    """Encoded stories, as shards.Writer.add takes them."""

    tokens: np.ndarray  # uint16, of all of them, each with <|endoftext|> in front
    lengths: np.ndarray  # int64 (n,), tokens of each
    sizes: np.ndarray  # int64 (n,), UTF-8 bytes of each
    answers: np.ndarray  # int64 (n,), the token of each where its answer starts
    hashes: np.ndarray  # uint64 (n, 2), equal for equal texts only

    def where(self, mask):
        """Those stories whose `mask`, bool (n,), is true."""
        return Stories(self.tokens[np.repeat(mask, self.lengths)], *(x[mask] for x in self[1:]))


def hash_of(text, seed):
    """16 bytes that stand for a story's UTF-8 `text`, salted with `seed`."""
    salt = seed.to_bytes(8, "little", signed=True)
    return hashlib.blake2b(text, digest_size=16, salt=salt).digest()


class Encoder:
    """
    Cleans and tokenizes a block, in a worker process. seed: of the hashes, whose first half says
    which stories go to val. answers: the records are Instruct's, their answer follows "Story:".
    """

    def __init__(self, tokenizer, seed=0, answers=False):
        self.tokenizer, self.seed, self.answers = tokenizer, seed, answers

    def __call__(self, block):
        """(Stories, Counter of the cleaning) of a block."""
        found, counts = corpus.texts(block), Counter()
        stories = [story for text in found if (story := corpus.clean(text, counts)) is not None]
        counts["read"] = len(found)
        tokens, lengths = self.tokenizer.encode_stories(stories)
        answers = np.ones(len(stories), np.int64)
        if self.answers:
            ends = np.cumsum(lengths)
            for i, story in enumerate(stories):
                ids = tokens[ends[i] - lengths[i] + 1 : ends[i]]
                answers[i] += answer_start(self.tokenizer, story, ids)
        utf8 = [story.encode() for story in stories]
        sizes = np.array([len(text) for text in utf8], np.int64)
        hashes = np.frombuffer(b"".join(hash_of(text, self.seed) for text in utf8), "<u8")
        return Stories(tokens, lengths, sizes, answers, hashes.reshape(-1, 2)), counts


def answer_start(tokenizer, record, ids):
    """
    The index in `ids`, the tokens of an Instruct `record`, of the one that its story begins in; 0
    for a record without a line "Story:", all of which is then the answer.
    """
    found = re.search(r"^Story:\s*", record, re.MULTILINE)
    if not found:
        return 0
    start = len(record[: found.end()].encode())
    ends = np.cumsum([len(token) for token in tokenizer.encoding.decode_tokens_bytes(ids.tolist())])
    return int(np.searchsorted(ends, start, side="right"))


_encode = None  # the Encoder of a worker process


def _start_worker(encoder):
    global _encode
    _encode = encoder


def _work(block):
    return _encode(block)


@contextlib.contextmanager
def worker_pool(encoder, workers):
    """A function from blocks to (block, encoder(block)), in order, on so many processes; 0: all."""
    free = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count())
    workers = workers or len(free)
    if workers == 1:
        yield lambda blocks: ((block, encoder(block)) for block in blocks)
        return
    # Spawned, as the threads that rustbpe leaves behind do not survive a fork.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (encoder,))
    try:
        # Ctrl-C is ours to handle: started while it is ignored, the workers never see it.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        for _ in range(workers):
            pool.submit(os.getpid)  # each starts a process, as none is idle yet
        signal.signal(signal.SIGINT, handler)
        yield functools.partial(_in_order, pool, 2 * workers + 64)
    except BrokenProcessPool:
        raise UserError("a worker died, probably of too little memory: lower --workers") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(pool, ahead, blocks):
    """Set the workers to `ahead` blocks at once; each result that is taken lets one more in."""
    blocks = iter(blocks)

    def submitted(n):
        return [(block, pool.submit(_work, block)) for block in itertools.islice(blocks, n)]

    def results(waiting):
        while waiting:
            block, result = waiting.popleft()
            waiting.extend(submitted(1))
            yield block, result.result()

    return results(deque(submitted(ahead)))


# ----------------------------------------------------------------------------------------------
# the stages


def sample(source, seed, val_limit):
    """
    Yield cleaned train stories of about SAMPLE_BYTES, for a tokenizer to be made from: every k-th
    block, so that each part of the source has its say.
    """
    # Storybook's total is in stories, which are all alike; the hub's is unknown.
    step, size = max(1, math.ceil((source.total() or 0) / SAMPLE_BYTES)), 0
    for block in itertools.islice(source.blocks(), 0, None, step):
        stories = (corpus.clean(story, Counter()) for story in corpus.texts(block))
        for story in filter(None, stories):
            if int.from_bytes(hash_of(story.encode(), seed)[:8], "little") >= val_limit:
                yield story
                size += len(story)
        if size >= SAMPLE_BYTES:
            return


def make_tokenizer(settings, source, val_limit):
    """The tokenizer that the settings name, made from a sample of `source` where it needs one."""
    name = settings.tokenizer
    if name in ("bpe", "gpt2-10k"):
        print(f"making the {name} tokenizer from {SAMPLE_BYTES // 10**6} MB of text at most ...")
    made = tokenizers.build(name, settings.vocab_size, sample(source, settings.seed, val_limit))
    print(f"tokenizer {made.name}, {made.vocab_size:,} tokens")
    if name == "bpe" and made.vocab_size < settings.vocab_size:
        print(f"the text has no more pairs to merge for {settings.vocab_size:,}")
    return made


def progress(results, source):
    """Pass on each block's result; show how far it is, as a bar on a terminal, lines elsewhere."""
    done, shown = 0, time.monotonic()
    label, total = f"reading {source.name}", source.total()
    with tqdm(total=total, desc=label, unit_scale=True, disable=None) as bar:
        for block, result in results:
            yield result
            bar.update(block.weight)
            done += block.weight
            if bar.disable and time.monotonic() - shown > LINE_SECONDS:
                shown = time.monotonic()
                print(f"{label}: {done / total:.0%}" if total else f"{label}: {done:,}")


def fill(writer, source, results, val_writer=None, val_limit=0):
    """
    Write `source` to `writer`, the stories whose hash is below val_limit to val_writer.

    results: of its blocks, from worker_pool. Returns the Counter of the cleaning and the least
    hash. Raises UserError where no story is left.
    """
    total, least = Counter(), 2**64
    for stories, counts in progress(results, source):
        total += counts
        least = min(least, int(stories.hashes[:, 0].min(initial=2**64 - 1)))
        in_val = stories.hashes[:, 0] < val_limit
        if in_val.any():
            val_writer.add(*stories.where(in_val))
            stories = stories.where(~in_val)
        writer.add(*stories)
    if not total["read"] - total["empty"] - total["truncated"]:
        raise UserError(f"'{source}' has no story left after cleaning ({described(total)})")
    return total, least


def described(counts):
    """The cleaning counts of a split in words."""
    dropped = ", ".join(f"{counts[rule]:,} {rule}".replace("_", " ") for rule in DROPPED)
    return f"read {counts['read']:,}, repaired {counts['repaired']:,}, dropped: {dropped}"


def tokenize(folder, settings, train, val):
    """Fill the data folder `folder` from the Sources; val is None to hold out val_fraction."""
    limit = 0 if val else round(settings.val_fraction * 2**64)
    answers = corpus.is_instruct(settings.source)
    tokenizer = make_tokenizer(settings, train, limit)
    counts = [Counter(), Counter()]
    with worker_pool(Encoder(tokenizer, settings.seed, answers), settings.workers) as encode:
        results = encode((val or train).blocks())
        # The workers are at it by now, while we import torch, which shards.py brings with it.
        from shards import Writer, write_manifest

        tokenizer.save(folder / "tokenizer.json")
        writers = [Writer(folder, "val"), Writer(folder, "train")]
        if val:
            counts[0], _ = fill(writers[0], val, results)
            results = encode(train.blocks())
        counts[1], least = fill(writers[1], train, results, writers[0], limit)
        if not writers[0].stories:
            # So few stories that none fell to val: once more, for the one with the least hash.
            writers = [Writer(folder, "val"), Writer(folder, "train")]
            results = encode(train.blocks())
            counts[1], _ = fill(writers[1], train, results, writers[0], least + 1)
    splits = {}
    for writer, drop, count in zip(writers, repeats(*writers), counts, strict=True):
        count["duplicate"], count["in_val"] = ((drop == why).sum() for why in (DUPLICATE, IN_VAL))
        if drop.all():
            raise UserError(
                f"no {writer.split} story is left ({described(count)}); name another --source or "
                "--val_source, with <|endoftext|> between the stories"
            )
        splits[writer.split] = writer.finish(drop, answers=answers)
        splits[writer.split]["cleaning"] = {rule: int(count[rule]) for rule in RULES}
    facts = {
        "tokenizer": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "dtype": "uint16",
        "source": str(train),
        "val_source": str(val) if val else f"{settings.val_fraction:g} of source",
        "seed": settings.seed,
        "splits": splits,
    }
    write_manifest(folder, facts)
    return splits


def prepare(settings):
    """Make the data folder that the settings describe; returns its path."""
    if settings.vocab_size > tokenizers.MAX_VOCAB:
        raise UserError(f"vocab_size may be at most {tokenizers.MAX_VOCAB:,}: ids are uint16")
    if not 0 < settings.val_fraction < 1:
        raise UserError(f"val_fraction must lie between 0 and 1, not {settings.val_fraction}")
    started = time.monotonic()
    more = {"stories": settings.stories, "seed": settings.seed, "revision": settings.revision}
    train, val = corpus.Source(settings.source, **more).pinned(), None
    train.total()  # downloads it, or says that it is not there, before anything is made
    if settings.val_source or train.name in corpus.HUB:
        val = corpus.Source(settings.val_source or train.name, "val", **more).pinned()
        val.total()
    out = Path(settings.out or corpus.dataset_folder(settings.source, settings.tokenizer))
    if out.exists():
        print(f"{out} exists: it is replaced when the new one is complete")
    with new_folder(out) as folder:
        splits = tokenize(folder, settings, train, val)
    for split, facts in splits.items():
        stories, tokens = facts["stories"], facts["tokens"]
        density = f"{facts['bytes'] / (tokens - stories):.2f} bytes/token"
        print(f"{split}: {described(Counter(facts['cleaning']))}")
        print(f"{split}: {stories:,} stories, {tokens:,} tokens, {density}")
    print(f"{out} is ready, in {time.monotonic() - started:.1f} s")
    return out


def main():
    # A plain `kill` then cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    settings, origin = configs.load(Settings)
    configs.show(settings, origin)
    prepare(settings)


if __name__ == "__main__":
    configs.run(main)
