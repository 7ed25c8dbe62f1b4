"""
The training story closest to a text, exactly, among millions in milliseconds.

    index = Index(Dataset("data/tinystories-bpe", "train"))
    index.closest(words_and_marks(text))        # Closest(hits=31, of=120, story=20413)

Closest is the story S that most of the text's bigrams T occur in: h = max over S of R_2,p(T, S),
the share of T's bigrams, each as often as it occurs, that S holds (Eldan & Li 2023, section 4.3).

Bigrams are looked up in lists of the stories that hold them (inverted_index.py), the rarest first.
Once those that are left cannot lift a story above the best one so far, only the stories found by
then can still win; once they can make up less than what a story still lacks, most of those cannot
either. A segment begins with the best of the segments before it, so the more stories there are, the
sooner each is left.
"""

from typing import NamedTuple

import numpy as np

from eval.memorization.inverted_index import open_all, text_of
from nanostories.dataset.tokenizer import Tokenizer

# Lists are added up until the rest weighs this share of the best: a larger one leaves more stories
# to look at one by one, a smaller one more lists to add up.
REST = 0.7


class Closest(NamedTuple):
    """`hits` of the `of` bigrams of a text stand in training story number `story`, or in none."""

    hits: int
    of: int
    story: int | None

    @property
    def share(self):
        """h, 0 to 1; nan of a text without a bigram."""
        return self.hits / self.of if self.of else float("nan")


class Index:
    """
    The training stories of a Dataset, asked by their words; built where it is not there yet.

    Attributes: data, segments, firsts (the number of each segment's first story), numbers ({word:
    1, 2, ...} over all segments), local (segments, words + 1): the number of a word in a segment,
    0 where it has none.
    """

    def __init__(self, data, workers=0):
        self.data, self.segments = data, open_all(data, workers)
        self.tokenizer = Tokenizer.load(data.folder)
        self.firsts = np.cumsum([0, *(segment.stories_in for segment in self.segments)])
        self.numbers = {}
        for segment in self.segments:
            for word in segment.words:
                self.numbers.setdefault(word, len(self.numbers) + 1)
        self.local = np.zeros((len(self.segments), len(self.numbers) + 1), np.int64)
        for row, segment in zip(self.local, self.segments, strict=True):
            row[[self.numbers[word] for word in segment.words]] = np.arange(1, segment.size)

    def text(self, i):
        """Training story number i; "" of None."""
        return "" if i is None else text_of(self.data, self.tokenizer, i)

    def closest(self, words):
        """
        The Closest training story to a text of these words (words_and_marks), of several as close
        the first; (0, n, None) where none has a bigram of it.
        """
        ids = np.array([self.numbers.get(word, 0) for word in words], np.int64)
        bigrams, weights = np.unique(
            np.stack([ids[:-1], ids[1:]]), axis=1, return_counts=True
        )  # (2, bigrams), (bigrams,)
        hits, story = 0, None
        for segment, local, first in zip(self.segments, self.local, self.firsts, strict=False):
            if better := segment_closest(segment, *local[bigrams], weights, hits):
                hits, story = better[0], int(first) + better[1]
        return Closest(hits, max(0, len(words) - 1), story)


def segment_closest(segment, first, second, weights, best):
    """
    (hits, story) of the story of a segment that holds most of these bigrams, if it has more hits
    than `best`; or None. Of several, the first.

    first, second: (bigrams,) int64, their words by the segment's numbers. weights: how often each
    counts.
    """
    if not len(segment.keys):
        return None
    keys = first * segment.size + second
    at = np.searchsorted(segment.keys, keys.astype(segment.keys.dtype))
    at[at == len(segment.keys)] = 0
    known = segment.keys[at] == keys  # of words that it has: no key has a 0 in it
    at, weights = at[known], weights[known]
    ends = segment.ends[at].astype(np.int64)
    starts = np.where(at > 0, segment.ends[at - 1], 0).astype(np.int64)
    order = np.argsort(ends - starts, kind="stable")  # rarest first
    weights = weights[order]
    lists = [
        segment.stories[i:j]
        for i, j in zip(starts[order].tolist(), ends[order].tolist(), strict=True)
    ]
    rest = weights.sum() - np.cumsum(weights)  # after each list, what the others weigh
    count = int(np.searchsorted(-rest, -REST * best)) + 1
    added = lists[:count]
    if not added:
        return None
    hits = np.bincount(np.concatenate(added), minlength=segment.stories_in)
    for one, more in zip(added, (weights - 1).tolist(), strict=False):
        if more:
            hits[one] += more
    left = int(rest[min(count, len(rest)) - 1])
    stories = np.flatnonzero(hits > best - left)
    hits = hits[stories]
    for i in sorted(range(count, len(lists)), key=lambda i: -weights[i]):
        if not len(stories):
            return None
        left -= weights[i]
        hits += weights[i] * holds(lists[i], stories)
        able = hits + left > best
        stories, hits = stories[able], hits[able]
    if not len(stories):
        return None
    top = int(np.argmax(hits))
    return int(hits[top]), int(stories[top])


def holds(numbers, stories):
    """bool (stories,): which of the stories are among the ascending numbers, uint16."""
    stories = stories.astype(np.uint16)  # of another type, all the numbers would be converted
    at = np.searchsorted(numbers, stories)
    at[at == len(numbers)] = 0
    return numbers[at] == stories
