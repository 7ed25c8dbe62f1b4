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
import itertools
import math
import os
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

import configs
from configs import UserError
from nanostories.dataset import hub, instruct, sources
from nanostories.dataset import tokenizer as tokenizers
from nanostories.dataset.encode import Encoder, cleaned, hash_of, story_of, worker_pool

SAMPLE_BYTES = 32_000_000  # of text that a tokenizer is made from: enough, and memory is bounded
PART_STORIES = 1 << 20  # of how many stories the hashes are compared at a time
DUPLICATE, IN_VAL = 1, 2  # why a story is dropped after all have been seen; 0 keeps it
DROPPED = ("empty", "truncated", "duplicate", "in_val")
RULES = ("read", "repaired", *DROPPED)
OF_RECORDS = (
    "unreadable",
    "trailing",
)  # of Instruct's: no record at all; a Summary after the story
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
    seed: int = 0  # of storybook, of made instructions, and of the choice of val stories
    hold_out: str = ""  # words+summary: fields of Instruct that never meet in train; and a control
    revision: str = ""  # commit of a hub source; "": the pinned one
    workers: int = 0  # processes; 0: one a core


# ----------------------------------------------------------------------------------------------
# the folder, and what stands in it twice


def check_out(path):
    """Raise UserError where a data folder cannot stand: something else is there, or no name."""
    if not path.name:
        raise UserError(f"out must name a folder, not '{path}'")
    if path.exists() and not (path / "manifest.json").is_file():
        raise UserError(f"'{path}' exists and is no data folder (no manifest.json): not replaced")


@contextlib.contextmanager
def new_folder(path):
    """
    A temporary folder beside `path`, renamed to `path` when the block ends well, else removed.

    An older data folder at `path` goes away only then; anything else there is a UserError.
    """
    path = Path(path)
    check_out(path)
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
# the stages


def sample(source, seed, val_limit):
    """
    Yield cleaned train stories of about SAMPLE_BYTES, for a tokenizer to be made from: every k-th
    block, so that each part of the source has its say.
    """
    # Storybook's total is in stories, which are all alike; the hub's is unknown.
    step, size = max(1, math.ceil((source.total() or 0) / SAMPLE_BYTES)), 0
    records = sources.is_instruct(source.name)
    for block in itertools.islice(source.blocks(), 0, None, step):
        for kept in cleaned(sources.texts(block), Counter(), seed if records else None):
            digest = hash_of(story_of(kept).encode(), seed)
            if int.from_bytes(digest[:8], "little") >= val_limit:
                text = kept.text() if records else kept
                yield text
                size += len(text)
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
    if not total["read"] - total["empty"] - total["truncated"] - total["unreadable"]:
        why = f"'{source}' has no story left after cleaning ({described(total)})"
        if total["unreadable"]:
            why += (
                "; an Instruct record is fields such as 'Words:', then a line 'Story:', and a data "
                "set of the hub with a row for each line has none: take tinystories-instruct"
            )
        raise UserError(why)
    return total, least


def described(counts):
    """The cleaning counts of a split in words."""
    rules = [*DROPPED, *(["unreadable"] if counts["unreadable"] else [])]
    dropped = ", ".join(f"{counts[rule]:,} {rule}".replace("_", " ") for rule in rules)
    return f"read {counts['read']:,}, repaired {counts['repaired']:,}, dropped: {dropped}"


def tokenize(folder, settings, train, val, tokenizer, apart=(), said=None):
    """
    Fill the data folder `folder` from the Sources; val is None to hold out val_fraction. apart:
    names of fields that are not to meet in the instructions of train; those of val stay. said: what
    the manifest is to say instead, {name: value}.
    """
    limit = 0 if val else round(settings.val_fraction * 2**64)
    answers = sources.is_instruct(settings.source)
    counts = [Counter(), Counter()]
    encoder = Encoder(tokenizer, settings.seed, answers)
    with worker_pool(encoder, settings.workers) as encode:
        results = encode(val.blocks()) if val else encode(train.blocks(), apart, limit)
        # The workers are at it by now, while we import torch, which shards.py brings with it.
        from nanostories.dataset.shards import Writer, write_manifest

        tokenizer.save(folder / "tokenizer.json")
        writers = [Writer(folder, "val"), Writer(folder, "train")]
        if val:
            counts[0], _ = fill(writers[0], val, results)
            results = encode(train.blocks(), apart, limit)
        counts[1], least = fill(writers[1], train, results, writers[0], limit)
        if not writers[0].stories:
            # So few stories that none fell to val: once more, for the one with the least hash.
            writers = [Writer(folder, "val"), Writer(folder, "train")]
            results = encode(train.blocks(), apart, least + 1)
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
        rules = RULES + OF_RECORDS if answers else RULES
        splits[writer.split]["cleaning"] = {rule: int(count[rule]) for rule in rules}
    facts = {
        "tokenizer": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "dtype": "uint16",
        "source": str(train),
        "val_source": str(val) if val else f"{settings.val_fraction:g} of source",
        "seed": settings.seed,
        "hold_out": "+".join(apart),
        "splits": splits,
    }
    write_manifest(folder, facts | (said or {}))
    return splits


def prepare(settings, add=None, said=None):
    """
    Make the data folder that the settings describe; returns its path.

    add: a function that puts more files into the folder before it appears. said: see `tokenize`.
    """
    if settings.vocab_size > tokenizers.MAX_VOCAB:
        raise UserError(f"vocab_size may be at most {tokenizers.MAX_VOCAB:,}: ids are uint16")
    if not 0 < settings.val_fraction < 1:
        raise UserError(f"val_fraction must lie between 0 and 1, not {settings.val_fraction}")
    apart = fields_of(settings)
    started = time.monotonic()
    more = {"stories": settings.stories, "seed": settings.seed, "revision": settings.revision}
    train, val = sources.Source(settings.source, **more).pinned(), None
    train.total()  # downloads it, or says that it is not there, before anything is made
    if settings.val_source or train.base in hub.NAMED:
        val = sources.Source(settings.val_source or train.name, "val", **more).pinned()
        val.total()
    out = Path(settings.out or sources.dataset_folder(settings.source, settings.tokenizer))
    made = {out: ()}
    if apart:
        made[out.with_name(f"{out.name}-without-{settings.hold_out}")] = apart
    tokenizer = make_tokenizer(settings, train, 0 if val else round(settings.val_fraction * 2**64))
    for path, names in made.items():
        if path.exists():
            print(f"{path} exists: it is replaced when the new one is complete")
        with new_folder(path) as folder:
            if add:
                add(folder)
            splits = tokenize(folder, settings, train, val, tokenizer, names, said)
        for split, facts in splits.items():
            stories, tokens = facts["stories"], facts["tokens"]
            density = f"{facts['bytes'] / (tokens - stories):.2f} bytes/token"
            print(f"{split}: {described(Counter(facts['cleaning']))}")
            print(f"{split}: {stories:,} stories, {tokens:,} tokens, {density}")
        print(f"{path} is ready, after {time.monotonic() - started:.1f} s")
    return out


def fields_of(settings):
    """The fields of Instruct that hold_out keeps apart, a list of names; [] without it."""
    names = settings.hold_out.split("+") if settings.hold_out else []
    if names and not sources.is_instruct(settings.source):
        raise UserError(
            f"hold_out is for Instruct records, which '{settings.source}' has none of; "
            f"--source={sources.MADE}{settings.source} makes some"
        )
    if names and (len(set(names)) < 2 or not set(names) <= set(instruct.LABELS)):
        fields = ", ".join(instruct.LABELS)
        raise UserError(f"hold_out takes two or more of {fields}, as in words+summary")
    return names


def main():
    # A plain `kill` then cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    settings, origin = configs.load(Settings)
    configs.show(settings, origin)
    prepare(settings)


if __name__ == "__main__":
    configs.run(main)
