"""
How much of some texts stands in the training stories, and how much of it in a row.

    found, totals = copies(index, ["and they were happy.", ...])
    found[0].closest, found[0].run, found[0].level()
    summary(found, totals)          # h, g, runs and levels of all of them

Three levels, after Eldan & Li 2023, section 4.3: an exact copy stands in a training story word for
word and mark for mark, capitals and blanks aside; a simple template does once names and nouns are
masked (masking.py); the rest does neither, and its longest runs say how near it comes. A text of
less than SHORT words and marks is no evidence of anything, and counted apart.
"""

from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from configs import UserError
from eval import bootstrap
from eval.memorization import masking
from eval.memorization.inverted_index import pieces
from eval.memorization.nearest_story import Closest
from eval.memorization.ngram_counts import Grams
from nanostories.text.words import ngrams, words_and_marks

LEVELS = ("exact", "template", "rest", "short")
SHORT = 12  # words: what is shorter than that real stories share by chance, too
K = (1, 2, 3, 4, 5)  # k-grams whose occurrences are counted
BINS = np.arange(-10, 0.25, 0.5)  # of log10 of how often one occurs; the first holds "never"
_TOKENS = 1 << 22  # of the training stories looked at together


@dataclass(frozen=True)
class Copy:
    """
    What of a text the training stories have. words: its words and marks. closest: the story with
    most of its bigrams. counts: {k: how often they have each of its k-grams, int64}. run, masked,
    tokens: the longest run that stands in one of them and where in the text it begins, in words, in
    words with names and nouns masked (None without WordNet) and in tokens of the data's tokenizer.
    length: of the text in those tokens.
    """

    words: list
    closest: Closest
    counts: dict
    run: tuple
    masked: tuple | None
    tokens: tuple
    length: int

    def level(self):
        """One of LEVELS; None of an empty text."""
        n = len(self.words)
        if n < SHORT:
            return "short" if n else None
        template = self.masked is not None and self.masked[0] == n
        return "exact" if self.run[0] == n else "template" if template else "rest"


def copies(index, texts):
    """
    (a Copy of each of the texts, {k: k-grams of the training stories}) for an overlap.Index. Prints
    a line where templates are left out because WordNet is not there.
    """
    texts_words = [words_and_marks(text) for text in texts]
    closest = [
        index.closest(words) for words in tqdm(texts_words, desc="closest stories", disable=None)
    ]
    plain, totals = _words_seen(index, texts_words, np.zeros(len(index.numbers) + 1, bool), set())
    masked = [None] * len(texts)
    try:
        nouns = masking.nouns(index)
    except UserError as error:
        print(f"simple templates are not looked for: {error}")
    else:
        new = {word for words in texts_words for word in words if word not in index.numbers}
        new = {word for word in new if masking.is_noun(word)}
        masked = _words_seen(index, texts_words, nouns, new)[0].longest()
    tokens = _tokens_seen(index, texts)
    counts = {k: plain.counts(k) for k in K}
    found = [
        Copy(words, near, {k: counts[k][i] for k in K}, run, mask, row, int(length))
        for i, (words, near, run, mask, row, length) in enumerate(
            zip(texts_words, closest, plain.longest(), masked, tokens.longest(), tokens.lengths,
                strict=True)
        )
    ]  # fmt: skip
    return found, totals


def _words_seen(index, texts, masked, new):
    """
    (the Grams of texts, lists of words, after all training stories; {k: k-grams of these}).

    masked: bool (words + 1,) of the index, those that count as one and the same; new: the words of
    the texts alone that do too.
    """
    numbers, rows, known = {}, [], np.zeros(len(index.numbers) + 1, np.int64)
    for words in texts:
        rows.append([])
        for word in words:
            i = index.numbers.get(word, 0)
            same = masked[i] or word in new
            number = numbers.setdefault(masking.MASK if same else word, len(numbers) + 1)
            known[i] = number if i else 0
            rows[-1].append(number)
    known[masked] = numbers.get(masking.MASK, 0)
    grams, totals = Grams(rows), dict.fromkeys(K, 0)
    segments = zip(index.segments, index.local, strict=True)
    for segment, local in tqdm(segments, "words", len(index.segments), disable=None):
        have = np.flatnonzero(local)
        lookup = np.zeros(segment.size, np.int64)
        lookup[local[have]] = known[have]
        grams.add(lookup[segment.stream])
        lengths = np.diff(np.flatnonzero(segment.stream == 0), append=len(segment.stream)) - 1
        for k in K:
            totals[k] += int(np.maximum(0, lengths - k + 1).sum())
    return grams, totals


def _tokens_seen(index, texts):
    """The Grams of texts, lists of str, by the data's tokenizer, after all training stories."""
    rows = [index.tokenizer.encode(text) for text in texts]
    lookup, data = np.zeros(index.tokenizer.vocab_size, np.int64), index.data
    for i, token in enumerate(sorted({token for row in rows for token in row}), 1):
        lookup[token] = i
    grams = Grams([lookup[row].tolist() for row in rows])
    with tqdm(total=data.tokens, desc="tokens", disable=None) as bar:
        for ids in pieces(data, 0, data.stories, _TOKENS):
            grams.add(lookup[ids])
            bar.update(len(ids))
    return grams


# ----------------------------------------------------------------------------------------------
# of many texts


def summary(found, totals, seed=0):
    """
    What the Copies of some texts come to, for a JSON file: h, an interval; g, see `occurrences`;
    run, {words, tokens, words_masked: median, 90 % and max}; levels, how many texts are at each;
    empty, how many have no word and count in none of these.

    totals: as `copies` returns them.
    """
    full = [copy for copy in found if copy.words]
    runs = {
        "words": [copy.run[0] for copy in full],
        "tokens": [copy.tokens[0] for copy in full],
        "words_masked": [copy.masked[0] for copy in full if copy.masked is not None],
    }
    levels = [copy.level() for copy in full]
    return {
        "h": bootstrap.mean([copy.closest.share for copy in found], seed),
        "g": {str(k): occurrences(found, k, totals[k], seed) for k in K},
        "run": {name: _spread(values) for name, values in runs.items()},
        "levels": {level: levels.count(level) for level in LEVELS},
        "empty": len(found) - len(full),
    }


def occurrences(found, k, total, seed=0):
    """
    g_r of the k-grams of Copies, {"never": the share of them that never occur, an interval over the
    texts; "never_different": of the different ones, or None; "histogram": how many have which
    log10 of their share of the training stories' `total` k-grams, counts by BINS, -10 for never}.
    """
    counts = [copy.counts[k] for copy in found]
    different = {}
    for copy, row in zip(found, counts, strict=True):
        different |= zip(ngrams(copy.words, k), row.tolist(), strict=True)
    return {
        "never": bootstrap.ratio([(row == 0).sum() for row in counts], [*map(len, counts)], seed),
        "never_different": (
            sum(not n for n in different.values()) / len(different) if different else None
        ),
        "histogram": np.histogram(log_shares(np.concatenate(counts), total), BINS)[0].tolist(),
    }


def log_shares(counts, total):
    """log10 of counts / total, float64; -10 where the count is 0."""
    logs = np.full(len(counts), -10.0)
    return np.log10(counts / max(1, total), where=counts > 0, out=logs)


def _spread(values):
    """Median, 90th percentile and largest of some counts; None where there are none."""
    if not values:
        return None
    middle, high = np.percentile(values, (50, 90)).tolist()
    return {"median": middle, "90%": high, "max": max(values)}
