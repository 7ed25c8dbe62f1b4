"""
The training stories of a data folder turned around: which of them hold a pair of words.

    segments = open_all(Dataset("data/tinystories-bpe", "train"))    # makes those that are missing

Stories are cut into words and marks (words.words_and_marks) and kept in segments of 65,536. One is
a folder, data/<name>/overlap/train-<hash of the data>/<number>:

    words.txt       its different words, one a line; the first has number 1
    stream.npy      all its words in order by their numbers, a 0 before each story
    tally.npy       (words + 1, 3): how often each occurs; of these, how often inside a sentence,
                    after a blank; and of these, how often with a capital letter
    keys.npy        its different bigrams, ascending: first * (words + 1) + second
    ends.npy        where its list of stories ends
    stories.npy     the lists, one after the other: the stories that hold it, ascending, each once

A segment is built in memory, written under another name, flushed and renamed: after a kill, those
that are there are whole, and the next command makes the others. The folder's name holds the sha256
of the shards, so that an index can never be one of other data.
"""

import contextlib
import errno
import fcntl
import hashlib
import itertools
import os
import secrets
import shutil

import numpy as np
from tqdm import tqdm

from configs import UserError
from eval.memorization.ngram_counts import Table
from nanostories.dataset.shards import Dataset
from nanostories.dataset.tokenizer import Tokenizer
from nanostories.dataset.workers import cpu_count, worker_pool
from nanostories.storage import fsync
from nanostories.text.words import words_and_marks

VERSION = 2  # of the files above and of what a word is
STORIES = 1 << 16  # of a segment: their numbers in it are uint16
TOKENS = 1 << 25  # of a segment at the most, unless a single story has more: 0.5 GB to build
WORKERS = 4  # at the most, if not told otherwise: together they stay under 4 GB
AT_ONCE = 1 << 19  # tokens looked at together: what is held for them fits a cache
_END = tuple(".!?…:\"“”'’")  # after these a capital letter means nothing


def folder_of(data):
    """Where the segments of a Dataset belong."""
    names = [*data.manifest["splits"][data.split]["shards"], f"{data.split}_stories.npy"]
    names += ["tokenizer.json", *([f"{data.split}_answer.npy"] if data.answers is not None else [])]
    facts = [VERSION, STORIES, TOKENS, *(data.manifest["files"][name]["sha256"] for name in names)]
    name = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    return data.folder / "overlap" / f"{data.split}-{name}"


def cuts(data):
    """The first story of each segment of a Dataset, and the number of all: a list of int."""
    found = [0]
    while found[-1] < data.stories:
        full = np.searchsorted(data.starts, data.starts[found[-1]] + TOKENS, side="right") - 1
        found.append(int(min(max(full, found[-1] + 1), found[-1] + STORIES, data.stories)))
    return found


def text_of(data, tokenizer, i):
    """Story number i of a Dataset as text; of an Instruct record, its story."""
    ids = data.story(i)[data.answers[i] if data.answers is not None else 1 :]
    return tokenizer.decode(ids.tolist())


# ----------------------------------------------------------------------------------------------
# building one


class _Numbers(dict):
    """Numbers whatever it is asked for, from 0, in the order in which it comes."""

    def __missing__(self, key):
        self[key] = len(self)
        return self[key]


class _Chunks:
    """
    Numbers of chunks, the pieces of text between blanks, straight from their tokens: a chunk is
    decoded and cut into words once, and not for each of its occurrences. `texts` has them by their
    numbers; 0 is <|endoftext|>, "".
    """

    def __init__(self, tokenizer):
        self.tokenizer, self.texts = tokenizer, [""]
        blank = np.zeros((2, tokenizer.vocab_size), bool)  # whether a token begins, ends with one
        blank[:, tokenizer.eot] = True
        for token, i in tokenizer.ranks.items():
            blank[:, i] = token[:1].isspace(), token[-1:].isspace()
        self.begins, self.ends = blank
        # Up to four tokens are one integer, and found by it; longer chunks by their bytes.
        self.codes, self.places = np.array([tokenizer.eot + 1], np.uint64), np.array([0])
        self.table, self.long = Table(self.codes), _Numbers()

    def numbers(self, ids):
        """
        The numbers of the chunks of stories, int64, in order. ids: uint16, their tokens. A chunk
        may have blanks, even inside: only what stands between two must not be cut.
        """
        starts = np.flatnonzero(self.begins[ids] | np.append(True, self.ends[ids[:-1]]))
        lengths = np.diff(starts, append=len(ids))
        padded = np.append(ids, [0] * 4).astype(np.uint64) + np.uint64(1)
        codes = np.zeros(len(starts), np.uint64)
        for i in range(4):
            codes |= (padded[starts + i] << np.uint64(16 * i)) * (lengths > i)
        long = np.flatnonzero(lengths > 4)
        codes[long] = self.codes[0]
        found = self.table.find(codes)
        new = np.unique(codes[found == 0])
        if len(new):
            self.places = np.append(self.places, len(self.texts) + np.arange(len(new)))
            self.codes = np.append(self.codes, new)
            self.table = Table(self.codes)
            tokens = new[:, None] >> np.arange(0, 64, 16, dtype=np.uint64) & np.uint64(0xFFFF)
            decode = self.tokenizer.decode
            self.texts += [decode([i - 1 for i in row if i]) for row in tokens.tolist()]
            found = self.table.find(codes)
        numbers = self.places[found - 1]
        for i in long.tolist():
            tokens = ids[starts[i] : starts[i] + lengths[i]]
            if (key := tokens.tobytes()) not in self.long:
                self.long[key] = len(self.texts)
                self.texts.append(self.tokenizer.decode(tokens.tolist()))
            numbers[i] = self.long[key]
        return numbers


def pieces(data, first, last, tokens=TOKENS):
    """
    The tokens of stories first to last of a Dataset, uint16, in pieces of about so many tokens that
    end where a story does; of Instruct's records, <|endoftext|> and the story.
    """
    while first < last:
        start = data.starts[first]
        shard = data.shard_ends[np.searchsorted(data.shard_ends, start, side="right")]
        stop = np.searchsorted(data.starts, min(start + tokens, shard), side="right") - 1
        stop = min(max(first + 1, int(stop)), last)  # a longer story: alone
        ids = np.asarray(data.read(start, data.starts[stop] - start))
        if data.answers is not None:
            edges = np.zeros(len(ids) + 1, np.int64)
            starts = data.starts[first:stop] - start
            edges[starts + 1] += 1
            edges[starts + data.answers[first:stop]] -= 1
            ids = ids[np.cumsum(edges)[:-1] == 0]
        yield ids
        first = stop


def _stream(numbers, texts):
    """
    (stream, tally, words) of stories, see the head of this file. numbers: of their chunks in order,
    a list of arrays, each of whole stories; texts: the chunks by their numbers.
    """
    vocabulary = _Numbers({"": 0})
    cut = [[0], *([vocabulary[w] for w in words_and_marks(text)] for text in texts[1:])]
    sizes = np.array([len(one) for one in cut])
    flat = np.fromiter(itertools.chain.from_iterable(cut), np.int64, sizes.sum())
    starts = np.cumsum(sizes) - sizes
    texts = [text.strip() for text in texts]
    ended = np.array([not i or text.endswith(_END) for i, text in enumerate(texts)])
    capital = np.array([text[:1].isupper() for text in texts])
    opens = np.append(flat, 0)[starts]  # the first word of each
    kind = np.uint16 if len(vocabulary) <= 1 << 16 else np.uint32
    stream, tally = [], np.zeros((len(vocabulary), 3), np.int64)
    for part in numbers:
        part = part[sizes[part] > 0]  # without those that are but blanks
        lengths = sizes[part]
        at = np.cumsum(lengths) - lengths  # of each one's words in the stream
        words = flat[np.arange(lengths.sum()) + np.repeat(starts[part] - at, lengths)]
        inside = part[1:][~ended[part[:-1]] & (part[1:] > 0)]
        for i, some in enumerate((words, opens[inside], opens[inside[capital[inside]]])):
            tally[:, i] += np.bincount(some, minlength=len(tally))
        stream.append(words.astype(kind))
    return np.concatenate(stream), tally, list(vocabulary)[1:]


def _postings(stream, size):
    """(keys, ends, stories) of a stream of numbers below `size`."""
    # A bigram and its story are one integer: so numpy sorts them several times as fast.
    pairs, filled, story = np.empty(len(stream), np.uint64), 0, -1
    for i in range(0, len(stream), AT_ONCE):
        part = stream[i : i + AT_ONCE + 1].astype(np.uint64)
        first, second = part[:-1], part[1:]
        stories = story + np.cumsum(first == 0)
        some = ((first * np.uint64(size) + second) << np.uint64(16)) | stories.astype(np.uint64)
        some = some[(first > 0) & (second > 0)]
        pairs[filled : filled + len(some)] = some
        filled, story = filled + len(some), int(stories[-1]) if len(stories) else story
    pairs = pairs[:filled]
    pairs.sort()
    new = np.diff(pairs, prepend=~pairs[:1]) != 0
    stories = pairs.astype(np.uint16)[new]  # the lower 16 bits
    pairs >>= np.uint64(16)
    starts = np.flatnonzero(np.diff(pairs, prepend=~pairs[:1]))
    keys = pairs[starts].astype(np.uint32 if size**2 <= 1 << 32 else np.uint64)
    ends = np.cumsum(np.add.reduceat(new, starts, dtype=np.uint32)) if filled else starts
    return keys, ends.astype(np.uint32), stories


def build(data, tokenizer, first, last, folder):
    """Make the segment of the stories first to last in a folder, whole or not at all."""
    chunks = _Chunks(tokenizer)
    numbers = [
        chunks.numbers(ids).astype(np.int32) for ids in pieces(data, first, last, AT_ONCE)
    ]  # fmt: skip
    stream, tally, vocabulary = _stream(numbers, chunks.texts)
    del numbers
    keys, ends, stories = _postings(stream, len(tally))
    part = folder.with_name(f"{folder.name}-{os.getpid()}-{secrets.token_hex(4)}.part")
    arrays = {"stream": stream, "tally": tally, "keys": keys, "ends": ends, "stories": stories}
    try:
        part.mkdir()
        for name, array in arrays.items():
            np.save(part / f"{name}.npy", array)
        text = "".join(f"{word}\n" for word in vocabulary)
        (part / "words.txt").write_bytes(text.encode())
        for path in [*part.iterdir(), part]:
            fsync(path)
        part.rename(folder)
        fsync(folder.parent)
    except OSError:
        shutil.rmtree(part, ignore_errors=True)
        if not folder.is_dir():  # else a worker that outlived its killed command was quicker
            raise


class Builder:
    """Builds a segment in a worker process. dataset, split: of the Dataset."""

    def __init__(self, dataset, split):
        self.dataset, self.split = dataset, split

    def __call__(self, block):
        """block: (first story, last story, folder)."""
        data = Dataset(self.dataset, self.split)
        build(data, Tokenizer.load(data.folder), *block)


# ----------------------------------------------------------------------------------------------
# all of them


class Segment:
    """A segment opened: the files of its folder by their names, mapped, and `words`, a list."""

    def __init__(self, folder):
        try:
            # np.memmap's own slices take ten times as long as those of plain arrays.
            self.stream, self.stories = (
                np.load(folder / f"{name}.npy", mmap_mode="r").view(np.ndarray)
                for name in ("stream", "stories")
            )
            self.tally, self.keys, self.ends = (
                np.load(folder / f"{name}.npy") for name in ("tally", "keys", "ends")
            )
            self.words = (folder / "words.txt").read_bytes().decode().split("\n")[:-1]
            whole = (
                len(self.words) + 1 == len(self.tally) and len(self.keys) == len(self.ends)
                and len(self.stories) == (self.ends[-1] if len(self.ends) else 0)
                and len(self.stream) == self.tally[:, 0].sum()
            )  # fmt: skip
        except (FileNotFoundError, ValueError, EOFError):
            whole = False
        if not whole:
            raise UserError(f"{folder} is damaged: remove it, to build it anew")
        self.size = len(self.tally)  # numbers of words, with 0
        self.stories_in = int(self.tally[0, 0])  # a 0 stands before each


def open_all(data, workers=0):
    """
    The Segments of a Dataset in order, a list; those that are missing are built, on so many
    processes, 0: a core each, four at most.
    """
    folder, ends = folder_of(data), cuts(data)
    blocks = [
        (*pair, folder / f"{i:04}") for i, pair in enumerate(itertools.pairwise(ends))
    ]  # fmt: skip
    if not all(block[2].is_dir() for block in blocks):
        try:
            _build_missing(data, folder, blocks, workers)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise  # `run` has the words for it
            raise UserError(f"the index of the stories cannot be written: {error}") from None
    return [Segment(block[2]) for block in blocks]


def _build_missing(data, folder, blocks, workers):
    """Build the blocks (first story, last story, folder) that have no folder yet."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another command that writes to {folder.parent} ...", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        others = [one for one in folder.parent.glob(f"{data.split}-*") if one != folder]
        for rest in [*others, *folder.glob("*.part"), *folder.glob("*.old")]:  # of killed commands
            old = rest.with_name(f"{rest.name}.old")
            with contextlib.suppress(OSError):
                rest.rename(old)  # a worker that still writes it can no longer finish it
            shutil.rmtree(old, ignore_errors=True)
        missing = [block for block in blocks if not block[2].is_dir()]
        stories = sum(block[1] - block[0] for block in missing)
        if not missing:
            return
        print(f"indexing {stories:,} stories in {folder} ...", flush=True)
        workers = min(len(missing), workers or min(WORKERS, cpu_count()))
        bar = tqdm(total=stories, desc="indexing", unit=" stories", disable=None)
        with bar, worker_pool(Builder(data.folder, data.split), workers) as built:
            for block, _ in built(missing):
                bar.update(block[1] - block[0])
