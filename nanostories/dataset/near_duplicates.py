"""Near-duplicates: stories that differ in a few words, or in a name.

The similarity of two stories is the Jaccard index of their shingles, all runs of SHINGLE characters
without white space: |A and B| / |A or B|. The nearest of 3,000 real TinyStories has 0.12 (median),
none over 0.31; a story whose hero has another name keeps about 0.7.

Comparing all pairs would be quadratic, so MinHash finds the pairs to compare (Broder 1997): under a
random hash function, the smallest hash of two sets is the same with a probability of their Jaccard
index. Pairs that agree in ROWS smallest hashes of one of BANDS bands are compared exactly: 80 % of
those with a similarity of 0.6, 98 % with 0.7, and 0.02 % with 0.1.
"""

import functools
import tempfile

import numpy as np

from nanostories.dataset.shards import STORY
from nanostories.dataset.workers import worker_pool

SIMILARITY, SHINGLE, BANDS, ROWS = 0.6, 5, 20, 5
COMPARED = 8  # stories of a band's bucket that a story is compared with
BATCH = 1000  # stories that a worker hashes at a time
_RANDOM = np.random.default_rng(0).integers(2**63, size=(2, BANDS * ROWS), dtype=np.uint64) * 2 + 1


class StoryReader:
    """The texts of the stories that some shards.Writers have written, one after the other."""

    def __init__(self, writers, tokenizer):
        self.paths, self.tokenizer = [writer.spill for writer in writers], tokenizer
        self.first = np.cumsum([0, *(writer.stories for writer in writers)])  # of each Writer
        index = [np.fromfile(writer.index, STORY) for writer in writers]
        self.ends = np.concatenate([np.cumsum(x["tokens"], dtype=np.int64) for x in index])
        index = np.concatenate(index)
        self.starts = self.ends - index["tokens"] + index["answer"]  # after <|endoftext|>, prompt

    def __call__(self, i):
        path = self.paths[np.searchsorted(self.first, i, side="right") - 1]
        start, stop = int(self.starts[i]), int(self.ends[i])
        return self.tokenizer.decode(np.fromfile(path, "<u2", stop - start, offset=2 * start))


def shingles(text):
    """The hashes of a text's shingles, uint64, sorted, each once."""
    letters = "".join(text.casefold().split()).ljust(SHINGLE)
    codes = np.frombuffer(letters.encode("utf-32-le"), "<u4").astype(np.uint64)
    powers = _RANDOM[0, 0] ** np.arange(SHINGLE, dtype=np.uint64)  # all modulo 2^64
    windows = np.lib.stride_tricks.sliding_window_view(codes, SHINGLE)
    return np.unique((windows * powers).sum(axis=1))


def lsh_keys(read, places):
    """uint64 (n, BANDS): of a StoryReader's stories, a hash of each band's smallest hashes."""
    keys = []
    for hashes in (shingles(read(i)) for i in places):
        parts = (hashes[i : i + 4096, None] * _RANDOM[0] for i in range(0, len(hashes), 4096))
        smallest = np.min([part.min(axis=0) for part in parts], axis=0)
        keys.append((smallest * _RANDOM[1]).reshape(BANDS, ROWS).sum(axis=1))
    return np.array(keys)


def find_near_duplicates(read, places, workers=0):
    """Those of the `places` of a StoryReader whose story is similar to that of an earlier one of
    them, which may be among those, too. places: int64 (n,)."""
    batches, done = (places[i : i + BATCH] for i in range(0, len(places), BATCH)), 0
    near = np.zeros(len(places), bool)
    with tempfile.TemporaryFile(dir=read.paths[0].parent) as file:
        # On the disk, band after band: in memory 160 bytes a story.
        keys = np.memmap(file, np.uint64, "w+", shape=(BANDS, len(places)))
        with worker_pool(functools.partial(lsh_keys, read), workers) as run:
            for _, part in run(batches):
                keys[:, done : done + len(part)] = part.T
                done += len(part)
        for column in keys:
            for bucket in equal_groups(column):
                mark_similar(bucket, places, near, read)
    return places[near]


def equal_groups(keys):
    """Yield, for each value that an array has more than once, the places it has it at, in order."""
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order], prepend=~keys[order[:1]]))
    lengths = np.diff(starts, append=len(keys))
    for start, length in zip(starts[lengths > 1], lengths[lengths > 1], strict=True):
        yield order[start : start + length]


def mark_similar(bucket, places, near, read):
    """Set near where a story of a bucket is similar to an earlier one of it that is not near."""
    compared = []  # shingles
    for i in bucket[~near[bucket]]:
        candidate = shingles(read(places[i]))
        near[i] = any(jaccard(candidate, other) >= SIMILARITY for other in compared)
        if not near[i] and len(compared) < COMPARED:
            compared.append(candidate)


def jaccard(one, other):
    """The Jaccard index of two sorted arrays of distinct values."""
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / (len(one) + len(other) - both)
