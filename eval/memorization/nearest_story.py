"""The training story nearest to a text, exactly, among millions in milliseconds.

    index = StoryIndex(Dataset("data/tinystories-bpe", "train"))
    index.nearest(words_and_marks(text))      # NearestStory(matched=31, bigrams=120, story=20413)

Nearest is the training story S with the largest ROUGE-2 precision R_2,p(T, S): the fraction of the
text's bigrams T, each counted as often as it occurs, that S holds (Eldan & Li 2023, section 4.3).

The posting lists of the text's bigrams (inverted_index.py) are added up, the shortest first. Once
the remaining bigrams cannot lift a new story above the best so far, only the stories counted by
then can still win, and most of these drop out as the rest is looked up. A segment starts with the
best score of the segments before it, so the more stories there are, the sooner each one drops out.
"""

from typing import NamedTuple

import numpy as np

from eval.memorization.inverted_index import open_index, story_text
from nanostories.dataset.tokenizer import Tokenizer

# Posting lists are added up until the remaining bigrams weigh this fraction of the best score. A
# larger one leaves more stories to look up one by one, a smaller one more lists to add up.
PRUNING = 0.7


class NearestStory(NamedTuple):
    """`matched` of a text's `bigrams` occur in training story number `story`, or in none."""

    matched: int
    bigrams: int
    story: int | None

    @property
    def precision(self):
        """The ROUGE-2 precision, 0 to 1; nan of a text without a bigram."""
        return self.matched / self.bigrams if self.bigrams else float("nan")


class StoryIndex:
    """The training stories of a Dataset, searchable by their words; the index is built if missing.

    numbers: {word: 1, 2, ...} over all segments. local: (segments, words + 1), the number that a
    word with this number has in each segment, or 0."""

    def __init__(self, data, workers=0):
        self.data, self.segments = data, open_index(data, workers)
        self.tokenizer = Tokenizer.load(data.folder)
        words = dict.fromkeys(word for segment in self.segments for word in segment.words)
        self.numbers = {word: i for i, word in enumerate(words, 1)}
        self.local = np.zeros((len(self.segments), len(words) + 1), np.int64)
        for local, segment in zip(self.local, self.segments, strict=True):
            local[[self.numbers[word] for word in segment.words]] = np.arange(1, segment.size)

    def text(self, i):
        """Training story number i; "" of None."""
        return "" if i is None else story_text(self.data, self.tokenizer, i)

    def nearest(self, words):
        """The NearestStory to a text of these words_and_marks: of several the first; (0, n, None)
        where no story holds a bigram of it."""
        ids = np.array([self.numbers.get(word, 0) for word in words], np.int64)
        pairs = np.stack([ids[:-1], ids[1:]])
        bigrams, weights = np.unique(pairs, axis=1, return_counts=True)  # (2, bigrams), (bigrams,)
        matched, story, first = 0, None, 0
        for segment, local in zip(self.segments, self.local, strict=True):
            if better := nearest_in_segment(segment, *local[bigrams], weights, matched):
                matched, story = better[0], first + better[1]
            first += segment.stories
        return NearestStory(matched, max(0, len(words) - 1), story)


def nearest_in_segment(segment, first, second, weights, best):
    """(matched bigrams, story) of the first story of a segment that holds most of these bigrams;
    None unless it holds more than `best`.

    first, second: (bigrams,) int64, the segment's numbers of their words. weights: occurrences."""
    if not len(segment.bigrams):
        return None
    at, known = _find(first * segment.size + second, segment.bigrams)  # none has word 0
    at, weights = at[known], weights[known]
    ends = segment.posting_ends[at].astype(np.int64)
    starts = np.where(at > 0, segment.posting_ends[at - 1], 0).astype(np.int64)
    order = np.argsort(ends - starts, kind="stable")  # rarest first
    weights = weights[order]
    spans = zip(starts[order].tolist(), ends[order].tolist(), strict=True)
    lists = [segment.postings[i:j] for i, j in spans]
    rest = weights.sum() - np.cumsum(weights)  # after each list, the weight of the others
    count = int(np.searchsorted(-rest, -PRUNING * best)) + 1
    added = lists[:count]
    if not added:
        return None
    matched = np.bincount(np.concatenate(added), minlength=segment.stories)
    for postings, more in zip(added, (weights - 1).tolist(), strict=False):
        if more:
            matched[postings] += more
    left = rest[len(added) - 1]
    stories = np.flatnonzero(matched > best - left)
    matched = matched[stories]
    for i in sorted(range(count, len(lists)), key=lambda i: -weights[i]):
        if not len(stories):
            break
        left -= weights[i]
        matched += weights[i] * _find(stories, lists[i])[1]
        can_win = matched + left > best
        stories, matched = stories[can_win], matched[can_win]
    if not len(stories):
        return None
    top = int(np.argmax(matched))
    return int(matched[top]), int(stories[top])


def _find(queries, values):
    """(where each query stands in ascending values, whether it does): (queries,) each."""
    queries = queries.astype(values.dtype)  # of another type, all values would be converted
    at = np.searchsorted(values, queries)
    at[at == len(values)] = 0
    return at, values[at] == queries
