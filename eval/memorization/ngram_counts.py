"""How often each n-gram of some texts occurs in a corpus, and each text's longest match in it.

    counter = NgramCounter([[5, 3, 5], [3, 5, 7]])  # texts; words are numbers from 1
    counter.add(np.array([0, 3, 5, 7, 0, 5, 3]))    # a corpus, a 0 before each story; or in parts
    counter.counts(2)                               # [[1, 1], [1, 1]]: 5 3 and 3 5; 3 5 and 5 7
    counter.longest_matches()                       # [(2, 0), (3, 0)]: words in a row, first word

The corpus is read once for all lengths. The n-grams of the texts are numbered, for n = 1 to 8: an
n-gram is the number of the (n - 1)-gram it begins with, and its last word, so two integers stand
for a sequence of any length, exactly. The corpus takes the same steps, and after each step only the
positions that still match go on; few are left at n = 5. The positions that match 8 words are
compared with the texts word by word.
"""

import numpy as np

MAX_N = 8  # words of the longest n-grams that are numbered and counted
POSITIONS = 1 << 19  # positions of the corpus in one step: their arrays fit a cache


def look_up(queries, values):
    """Which of the different values each query is, from 1; 0: none; (queries,) uint64 -> int64."""
    import pyarrow  # half a second to import
    import pyarrow.compute

    index = pyarrow.compute.index_in(pyarrow.array(queries), value_set=pyarrow.array(values))
    return pyarrow.compute.fill_null(index, -1).to_numpy().astype(np.int64) + 1


class NgramCounter:
    """Counts the n-grams of `texts` in a corpus. texts: lists of int, each above 0."""

    def __init__(self, texts):
        self.lengths = np.array([len(text) for text in texts], np.int64)
        self.words = np.array([word for text in texts for word in (*text, 0)], np.int64)
        self.starts = np.cumsum(self.lengths + 1) - self.lengths - 1
        self.base = int(self.words.max(initial=0)) + 1
        # Lists, with n-grams at n - 1: the number of the n-gram at each position of the texts, 0
        # where there is none; the code of each number from 1; occurrences by number.
        self.numbers, self.codes = [self.words], [None]
        for n in range(1, MAX_N):
            prefixes, last = self.numbers[-1][:-n], self.words[n:]
            at = np.flatnonzero((prefixes > 0) & (last > 0))
            codes, inverse = np.unique(self._encode(prefixes[at], last[at]), return_inverse=True)
            self.numbers.append(np.zeros(len(self.words), np.int64))
            self.numbers[-1][at] = inverse + 1
            self.codes.append(codes)
        self.occurrences = [np.zeros(1 + x.max(initial=0), np.int64) for x in self.numbers]
        self.matched = np.zeros(len(self.words), np.int64)  # words of matches of MAX_N or more
        # Positions of the texts by their MAX_N-gram, and where those of each number begin.
        self.order = np.argsort(self.numbers[-1], kind="stable")
        numbers = np.arange(len(self.occurrences[-1]) + 1)
        self.begins = np.searchsorted(self.numbers[-1][self.order], numbers)

    def _encode(self, numbers, words):
        return numbers.astype(np.uint64) * np.uint64(self.base) + words.astype(np.uint64)

    def add(self, corpus):
        """Count the n-grams of a corpus, or of a part that ends with a story: an int array of the
        texts' word numbers, 0 between stories and for words that no text has."""
        for first in range(0, len(corpus), POSITIONS):
            at = np.flatnonzero(corpus[first : first + POSITIONS]) + first
            numbers = corpus[at]
            for n, counts in enumerate(self.occurrences, 1):
                counts += np.bincount(numbers, minlength=len(counts))
                if n == len(self.occurrences):
                    self._extend(corpus, at, numbers)
                    break
                room = np.searchsorted(at, len(corpus) - n)
                at, numbers = at[:room], numbers[:room]
                numbers = look_up(self._encode(numbers, corpus[at + n]), self.codes[n])
                # A code with word 0 has no number: no text has a 0 inside.
                at, numbers = at[numbers > 0], numbers[numbers > 0]
                if not len(at):
                    break

    def _extend(self, corpus, at, numbers):
        """Measure how long the matches are that begin at these positions with MAX_N-grams."""
        # Every pair of a position in the corpus and one in the texts with the same MAX_N-gram.
        first, count = self.begins[numbers], self.begins[numbers + 1] - self.begins[numbers]
        offsets = np.cumsum(count) - count
        text_at = self.order[np.arange(count.sum()) + np.repeat(first - offsets, count)]
        at, n = np.repeat(at, count), len(self.numbers)
        while len(text_at):
            self.matched[text_at] = np.maximum(self.matched[text_at], n)
            in_corpus = at + n < len(corpus)
            text_at, at = text_at[in_corpus], at[in_corpus]
            word = self.words[text_at + n]
            same = (word > 0) & (word == corpus[at + n])
            text_at, at, n = text_at[same], at[same], n + 1

    def counts(self, n):
        """The occurrences of each text's n-grams, n <= MAX_N: a list of int64 (length - n + 1,)."""
        counts = self.occurrences[n - 1][self.numbers[n - 1]]
        ends = self.starts + np.maximum(0, self.lengths - n + 1)
        return [counts[i:j] for i, j in zip(self.starts, ends, strict=True)]

    def longest_matches(self):
        """Of each text, (words of the longest sequence of its words that occurs in the corpus,
        first word of the first such sequence); (0, 0) where no word does."""
        matched = self.matched
        for n, (numbers, counts) in enumerate(zip(self.numbers, self.occurrences, strict=True), 1):
            matched = np.maximum(matched, n * (counts[numbers] > 0))  # counts[0] is 0
        matches = []
        for start, length in zip(self.starts, self.lengths, strict=True):
            at = int(np.argmax(matched[start : start + length + 1]))  # a text ends in a 0
            matches.append((int(matched[start + at]), at))
        return matches
