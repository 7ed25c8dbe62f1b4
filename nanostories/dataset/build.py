"""Build a data folder from sources of stories: tokenizer, cleaned and encoded stories, duplicates,
shards and manifest. prepare.py and synonyms.py call it.

    tokenizer = make_tokenizer("bpe", 4096, Source("train.txt"))
    build_dataset("data/mine", Source("train.txt"), Source("val.txt"), tokenizer)
"""

import functools
import itertools
import math
import time
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from configs import UserError, explained
from nanostories.dataset import instruct, readers, sources
from nanostories.dataset import tokenizer as tokenizers
from nanostories.dataset.cleaning import bare_hash, clean, ends_hash, story_hash
from nanostories.dataset.near_duplicates import StoryReader, equal_groups, find_near_duplicates
from nanostories.dataset.shards import STORY, Writer, read_manifest, write_manifest
from nanostories.dataset.workers import worker_pool
from nanostories.storage import atomic_folder

SAMPLE_BYTES = 32_000_000  # of text that a tokenizer is made from
DROPPED = {  # rule: what the user may do about it
    "empty": "they hold no text",
    "truncated": "--keep_unfinished keeps stories that do not end as a story does",
    "duplicate": "equal stories count once",
    "in_val": "they are validation stories, too: name another --val_source",
    "short": "--min_length=0 keeps them",
    "near_duplicate": "--near_duplicates=keep keeps them",
    "unreadable": "an Instruct record is fields such as 'Words:', then 'Story:', and data with a "
    "row for each line has none: take tinystories-instruct; plain stories want another file name",
}
LATE = {"duplicate": 1, "in_val": 2, "near_duplicate": 3}  # known once all stories are encoded
RULES = ("read", "repaired", *list(DROPPED)[:4])  # and the others where they drop something
RECORD_RULES = ("unreadable", "trailing")  # Instruct: no record at all; a Summary after the story
LOG_SECONDS = 10  # between lines of progress, where there is no terminal


def check_out(path):
    """Raise UserError where a data folder cannot be written: it has no name, or replaces others."""
    if not path.name:
        raise UserError(f"out must name a folder, not '{path}'")
    if path.exists():
        made = {"manifest.json", "inverted_index", ".inverted_index.lock"}  # beside its files
        with explained(f"'{path}' exists and is not replaced: ", UserError):
            made |= read_manifest(path)["files"].keys()
        for name in {file.name for file in path.iterdir()} - made:
            not_ours = f"'{name}' is none of the files in its manifest.json"
            raise UserError(f"'{path}' is not replaced: {not_ours}; move it, or name another --out")


def make_tokenizer(name, vocab_size, source, seed=0, val_fraction=0.0):
    """The Tokenizer called `name`; one that is made reads train stories only (build_dataset's)."""
    if name in ("bpe", "gpt2-10k"):
        print(f"making the {name} tokenizer from {SAMPLE_BYTES // 10**6} MB of text at most ...")
    tokenizer = tokenizers.build(name, vocab_size, sample_texts(source, seed, val_fraction))
    print(f"tokenizer {tokenizer.name}, {tokenizer.vocab_size:,} tokens")
    if name == "bpe" and tokenizer.vocab_size < vocab_size:
        print(f"the text has no more pairs to merge for {vocab_size:,}")
    return tokenizer


def sample_texts(source, seed, val_fraction):
    """Yield about SAMPLE_BYTES of cleaned train texts, from every part of the source."""
    # Every k-th block. Storybook's total counts stories, which are all alike; the hub's is unknown.
    total = 0 if source.max_stories else source.total() or 0
    counts, step, size = Counter(), max(1, math.ceil(total / SAMPLE_BYTES)), 0
    record_seed = seed if sources.is_instruct(source.name) else None
    val_limit = round(val_fraction * 2**64)
    for block in itertools.islice(source.blocks(), 0, None, step):
        for text in readers.texts(block):
            text = clean(text, counts, record_seed, block.rules)
            if text and int.from_bytes(story_hash(text, seed)[:8], "little") >= val_limit:
                text = text if isinstance(text, str) else text.text()
                yield text
                size += len(text)
        if size >= SAMPLE_BYTES:
            return


def build_dataset(
    out, train, val, tokenizer, held_out=(), workers=0, seed=0, val_fraction=0.0,
    near_duplicates="keep", add_files=None, manifest=None,
):  # fmt: skip
    """Write the data folder `out`, see shards.py; it replaces an older one when it is complete.
    train, val: Sources; without val, val_fraction of train's stories are held out, by their hashes.
    near_duplicates: "keep" or "drop". held_out: names of Instruct fields that never occur together
    in one train instruction. seed: of the hashes and of the instructions made. add_files: called
    with the folder before it is complete. manifest: {name: value}, in place of manifest.json's."""
    started, out = time.monotonic(), Path(out)
    check_out(out)
    if out.exists():
        print(f"{out} exists: it is replaced when the new one is complete")
    records, source_files = sources.is_instruct(train.name), train.fingerprint()
    with atomic_folder(out) as folder:
        if add_files:
            add_files(folder)
        tokenizer.save(folder / "tokenizer.json")
        limit = round(val_fraction * 2**64)
        function = functools.partial(encode_block, tokenizer, seed, records)
        with worker_pool(function, workers) as encode:
            writers, counts = encode_splits(folder, encode, train, val, held_out, limit)
        splits, read = {}, StoryReader(writers, tokenizer)
        drops = find_duplicates(*writers, read)
        if near_duplicates == "drop":
            near = find_near_duplicates(read, np.flatnonzero(drops == 0), workers)
            drops[near] = LATE["near_duplicate"]
        drops = np.split(drops, [writers[0].stories])
        for writer, drop, count in zip(writers, drops, counts, strict=True):
            count.update({rule: int((drop == number).sum()) for rule, number in LATE.items()})
            if drop.all():
                left = f"no {writer.split} story is left ({describe_cleaning(count)})"
                hint = "name another --source or --val_source, with <|endoftext|> between stories"
                raise UserError(f"{left}; {hint}{explain(count)}")
            rules = [*RULES, *(RECORD_RULES if records else ()), *filter(count.get, DROPPED)]
            cleaning = {"cleaning": {rule: count[rule] for rule in rules}}
            splits[writer.split] = writer.finish(drop, answers=records) | cleaning
        entries = {
            "tokenizer": tokenizer.name, "vocab_size": tokenizer.vocab_size, "dtype": "uint16",
            "source": str(train), "source_files": source_files,
            "val_source": str(val) if val else f"{val_fraction:g} of source", "seed": seed,
            "hold_out": "+".join(held_out), "near_duplicates": near_duplicates,
            "max_stories": train.max_stories, "splits": splits,
        }  # fmt: skip
        write_manifest(folder, entries | (manifest or {}))
        check_out(out)  # nobody has put anything else there meanwhile
    print_splits(splits)
    print(f"{out} is ready, written in {time.monotonic() - started:.1f} s")


def encode_block(tokenizer, seed, records, block, held_out, val_limit):
    """What a worker process does: (tokens, index, counts) of a block, the first two as of
    Writer.add. A story is in val if the first 8 bytes of its hash are below val_limit."""
    texts, counts = readers.texts(block), Counter()
    cleaned = (clean(text, counts, seed if records else None, block.rules) for text in texts)
    kept, counts["read"] = [text for text in cleaned if text], len(texts)
    index = np.ones(len(kept), STORY)
    hashes = b"".join(story_hash(text, seed) for text in kept)
    index["hash"] = np.frombuffer(hashes, "<u8").reshape(-1, 2)
    index["ends"] = [ends_hash(text) for text in kept]
    if records:
        for i in np.flatnonzero(index["hash"][:, 0] >= val_limit) if held_out else ():
            kept[i] = instruct.drop_one_field(kept[i], held_out, seed)
        prompts = [tokenizer.encode_prompt(record.prompt()) for record in kept]
        index["answer"] = [1 + len(ids) for ids in prompts]  # <|endoftext|> is in front
        kept = [record.text() for record in kept]
    tokens, index["tokens"] = tokenizer.encode_stories(kept)
    index["bytes"] = [len(text.encode()) for text in kept]
    return tokens, index, counts


def encode_splits(folder, encode, train, val, held_out, val_limit):
    """[Writer of val, Writer of train] with all their stories, and [Counter, Counter] of both."""
    writers, lowest = [Writer(folder, "val"), Writer(folder, "train")], 2**64
    counts = [Counter(), Counter()]
    for source, limit, count in zip((val, train), (2**64, val_limit), counts, strict=True):
        if not source:
            continue
        for tokens, index, more in progress(encode(source.blocks(), held_out, limit), source):
            count.update(more)
            first = index["hash"][:, 0]
            lowest = min([lowest, *first.tolist()])
            for writer, mask in zip(writers, (first < limit, first >= limit), strict=True):
                writer.add(tokens[np.repeat(mask, index["tokens"])], index[mask])
        if count["read"] == sum(count[rule] for rule in DROPPED):
            reason = f"'{source}' has no story left after cleaning ({describe_cleaning(count)})"
            raise UserError(f"{reason}{explain(count)}")
    if not writers[0].stories:
        # Of so few stories none fell to val: once more, for the one with the lowest hash.
        return encode_splits(folder, encode, train, val, held_out, lowest + 1)
    return writers, counts


def progress(results, source):
    """Yield the result of each (block, result), with a bar or lines of progress."""
    done, shown = 0, time.monotonic()
    label, total = f"reading {source.name}", source.total()
    with tqdm(total=total, desc=label, unit_scale=True, disable=None) as bar:
        for block, result in results:
            yield result
            bar.update(block.weight)
            done += block.weight
            if bar.disable and time.monotonic() - shown > LOG_SECONDS:
                shown = time.monotonic()
                print(f"{label}: {done / total:.0%}" if total else f"{label}: {done:,}")


def find_duplicates(val, train, read):
    """What to drop of the stories of two Writers, and of a StoryReader of both, uint8 (stories,): 0
    keeps a story, in_val is a train story that is in val too, duplicate any other that an equal one
    precedes. Stories are equal, too, that differ in white space alone."""
    index = np.concatenate([np.fromfile(writer.index, STORY) for writer in (val, train)])
    hashes, place = np.ascontiguousarray(index["hash"]).view("S16")[:, 0], np.arange(len(index))
    _, first, which = np.unique(hashes, return_index=True, return_inverse=True)
    same_bare, ordered = place.copy(), np.sort(first)
    for group in equal_groups(index["ends"][ordered]):
        seen = {}
        for i in ordered[group].tolist():
            same_bare[i] = seen.setdefault(bare_hash(read(i)), i)
    original = same_bare[first[which]]
    drop = np.where(original == place, 0, LATE["duplicate"]).astype(np.uint8)
    drop[(original < val.stories) & (place >= val.stories)] = LATE["in_val"]
    return drop


def print_splits(splits):
    """Print what became of the stories. splits: of the manifest."""
    for split, info in splits.items():
        stories, tokens = info["stories"], info["tokens"]
        density = f"{info['bytes'] / (tokens - stories):.2f} bytes/token"
        if (count := Counter(info["cleaning"]))["read"]:  # val may be a part of what train read
            print(f"{split}: {describe_cleaning(count)}{explain(count)}")
        print(f"{split}: {stories:,} stories, {tokens:,} tokens, {density}")
    if (stories := splits["val"]["stories"]) < 20:
        held = "stories in val tell little of a model: raise val_fraction or name a val_source"
        print(f"note: {stories} {held}")


def describe_cleaning(counts):
    rules = [rule for rule in DROPPED if rule in RULES or counts[rule]]
    dropped = ", ".join(f"{counts[rule]:,} {rule}".replace("_", " ") for rule in rules)
    return f"read {counts['read']:,}, repaired {counts['repaired']:,}, dropped: {dropped}"


def explain(counts):
    """Where hardly a story is left: which rule dropped most, and how to turn it off."""
    rule = max(DROPPED, key=counts.__getitem__)
    few = sum(counts[rule] for rule in DROPPED) > 0.9 * counts["read"]
    return f"; most are {rule.replace('_', ' ')}: {DROPPED[rule]}" if few else ""
