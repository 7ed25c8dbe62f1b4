"""
How often every run of words of some texts stands in a corpus: all lengths, in one reading of it.

    grams = Grams([[5, 3, 5], [3, 5, 7]])       # texts, their words as numbers from 1
    grams.add(np.array([0, 3, 5, 7, 0, 5, 3]))  # a corpus, 0 before its stories; or piece by piece
    grams.counts(2)                             # [[1, 1], [1, 1]]: of 5 3 and 3 5; of 3 5 and 5 7
    grams.longest()                             # [(2, 0), (3, 0)]: words in a row, and from where

The texts' k-grams are numbered, for k = 1 to 8, each by the number of the (k - 1)-gram that it
begins with and its last word; so two integers stand for a run of any length, exactly. The corpus
takes the same steps, and after each only the places that still match something go on: most are out
by k = 5. The few that are left after 8 words are laid beside the texts and compared word by word.
"""

import numpy as np

COUNTED = 8  # words of the longest k-grams that are numbered and counted
AT_ONCE = 1 << 19  # places of a corpus looked at together: what is held for them fits a cache
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: Knuth, TAOCP 3, 6.4


class Table:
    """
    Numbers of integers, by hashing with open addresses.

    codes: (n,) uint64, above 0 and all different; codes[i] gets number i + 1.
    """

    def __init__(self, codes):
        bits = max(4, (8 * len(codes)).bit_length())  # an eighth full: most are found at once
        self.shift, self.mask = np.uint64(64 - bits), (1 << bits) - 1
        self.codes, self.numbers = np.zeros(1 << bits, np.uint64), np.zeros(1 << bits, np.int64)
        left, at = np.arange(len(codes)), self._place(codes)
        while len(left):
            free = self.codes[at] == 0
            self.codes[at[free]] = codes[left[free]]  # of several for one place, one stays
            stays = self.codes[at] == codes[left]
            self.numbers[at[stays]] = left[stays] + 1
            left, at = left[~stays], (at[~stays] + 1) & self.mask

    def _place(self, codes):
        return (codes * _MULTIPLIER >> self.shift).astype(np.int64)

    def find(self, codes):
        """The numbers of codes, int64 (n,); 0 for one that has none."""
        at = self._place(codes)
        here = self.codes[at]
        numbers = np.where(here == codes, self.numbers[at], 0)
        left = np.flatnonzero((here != codes) & (here != 0))
        at = at[left]
        while len(left):
            at = (at + 1) & self.mask
            here = self.codes[at]
            same = here == codes[left]
            numbers[left[same]] = self.numbers[at[same]]
            further = ~same & (here != 0)
            left, at = left[further], at[further]
        return numbers


class Grams:
    """The runs of words of some texts, and how often they have been seen. texts: lists of int."""

    def __init__(self, texts):
        self.lengths = np.array([len(text) for text in texts], np.int64)
        self.flat = np.array([word for text in texts for word in (*text, 0)], np.int64)
        self.starts = np.cumsum(self.lengths + 1) - self.lengths - 1
        self.base = int(self.flat.max(initial=0)) + 1
        # Of k-grams, at k - 1: the number of the one at each place of flat, 0 where there is none;
        # how often each number was seen; from codes to numbers.
        self.numbers, self.seen = [self.flat], [np.zeros(self.base, np.int64)]
        self.tables = [None]
        self.reach = np.zeros(len(self.flat), np.int64)  # of runs of COUNTED words and more
        self.order = None  # see _follow

    def _codes(self, numbers, words):
        return numbers.astype(np.uint64) * np.uint64(self.base) + words.astype(np.uint64)

    def _reach(self, k):
        """Number the k-grams, and all shorter ones, that have no numbers yet."""
        for n in range(len(self.tables), k):
            before, last = self.numbers[-1][: max(0, len(self.flat) - n)], self.flat[n:]
            at = np.flatnonzero((before > 0) & (last > 0))
            codes, inverse = np.unique(self._codes(before[at], last[at]), return_inverse=True)
            numbers = np.zeros(len(self.flat), np.int64)
            numbers[at] = inverse + 1
            self.numbers.append(numbers)
            self.seen.append(np.zeros(len(codes) + 1, np.int64))
            self.tables.append(Table(codes))

    def add(self, corpus):
        """
        Count what stands in a corpus, or in a piece of one that ends where a story does: an array
        of words by the texts' numbers, 0 for any that no text has and between stories.
        """
        most = min(COUNTED, int(self.lengths.max(initial=0)))
        for first in range(0, len(corpus), AT_ONCE):
            places = np.flatnonzero(corpus[first : first + AT_ONCE]) + first
            numbers = corpus[places]
            for k in range(1, most + 1):
                self._reach(k)
                self.seen[k - 1] += np.bincount(numbers, minlength=len(self.seen[k - 1]))
                if k == most:
                    if k == COUNTED:
                        self._follow(corpus, places, numbers)
                    break
                self._reach(k + 1)
                inside = np.searchsorted(places, len(corpus) - k)
                places, numbers = places[:inside], numbers[:inside]
                numbers = self.tables[k].find(self._codes(numbers, corpus[places + k]))
                # A code with word 0 has no number, as no text has a 0 inside.
                places, numbers = places[numbers > 0], numbers[numbers > 0]
                if not len(places):
                    break

    def _follow(self, corpus, places, numbers):
        """See how long the runs go on that begin at these places as COUNTED-grams do."""
        if self.order is None:  # the places in the texts, by their COUNTED-gram
            self.order = np.argsort(self.numbers[COUNTED - 1], kind="stable")
            ascending = self.numbers[COUNTED - 1][self.order]
            self.ends = np.searchsorted(ascending, np.arange(ascending[-1] + 2))
        first, count = self.ends[numbers], self.ends[numbers + 1] - self.ends[numbers]
        before = np.cumsum(count) - count
        at = self.order[np.arange(count.sum()) + np.repeat(first - before, count)]
        places, k = np.repeat(places, count), COUNTED
        while len(at):
            self.reach[at] = np.maximum(self.reach[at], k)
            inside = places + k < len(corpus)
            at, places = at[inside], places[inside]
            word = self.flat[at + k]
            same = (word > 0) & (word == corpus[places + k])
            at, places, k = at[same], places[same], k + 1

    def counts(self, k):
        """
        How often the corpus has the k-grams of each text, a list of int64 (n - k + 1,); k is at
        most COUNTED.
        """
        self._reach(k)
        counts = self.seen[k - 1][self.numbers[k - 1]]
        ends = self.starts + np.maximum(0, self.lengths - k + 1)
        return [counts[i:j] for i, j in zip(self.starts, ends, strict=True)]

    def longest(self):
        """
        Of each text, (words of the longest run that stands in the corpus, the first place in the
        text where such a run begins): a list of pairs of int, (0, 0) where no word does.
        """
        reach = self.reach.copy()
        for k, (numbers, seen) in enumerate(zip(self.numbers, self.seen, strict=True), 1):
            at = np.flatnonzero((numbers > 0) & (seen[numbers] > 0))
            reach[at] = np.maximum(reach[at], k)
        found = []
        for start, length in zip(self.starts, self.lengths, strict=True):
            at = int(np.argmax(reach[start : start + length + 1]))  # there is a 0 at the end
            found.append((int(reach[start + at]), at))
        return found
