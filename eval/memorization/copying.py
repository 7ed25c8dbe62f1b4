"""How much of some texts occurs in the training stories, and how much of it in a row.

    reports, training_ngrams = find_copies(index, ["and they were happy.", ...])
    reports[0].nearest, reports[0].longest, reports[0].kind()
    summarize(reports, training_ngrams)

The kinds of a text follow Eldan & Li 2023, section 4.3: an exact copy occurs in a training story
word for word, capitals and blanks aside; a simple template does once names and nouns are masked
(masking.py); any other text is no copy, and its longest match says how near it comes to one. A text
of fewer than MIN_WORDS words is evidence of nothing and counted apart.
"""

import itertools
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from configs import UserError
from eval import bootstrap
from eval.memorization import masking
from eval.memorization.inverted_index import token_blocks
from eval.memorization.nearest_story import NearestStory
from eval.memorization.ngram_counts import NgramCounter
from nanostories.text.words import ngrams, words_and_marks

KINDS = ("exact", "template", "no_copy", "short")
MIN_WORDS = 12  # shorter texts occur in real stories by chance, too
N = (1, 2, 3, 4, 5)  # n-grams that are counted
BINS = np.arange(-10, 0.25, 0.5)  # of log10 of an n-gram's frequency; the first holds new n-grams
MIDDLES = BINS[:-1] + 0.25
_TOKENS = 1 << 22  # training tokens processed together


@dataclass(frozen=True)
class CopyReport:
    """What a text shares with the training stories. A match is (length, start)."""

    words: list  # of the text
    nearest: NearestStory  # the story with most of its bigrams
    occurrences: dict  # {n: how often each of its n-grams occurs in the stories, int64}
    longest: tuple  # its longest match in one story, in words
    longest_masked: tuple | None  # with names and nouns masked; None without WordNet
    longest_tokens: tuple  # in tokens of the data's tokenizer
    num_tokens: int  # of the text

    def kind(self):
        """One of KINDS; None of an empty text."""
        n = len(self.words)
        if n < MIN_WORDS:
            return "short" if n else None
        if self.longest[0] == n:
            return "exact"
        return "template" if self.longest_masked and self.longest_masked[0] == n else "no_copy"


def find_copies(index, texts):
    """(CopyReport of each text, {n: n-grams of the training stories})."""
    words = [words_and_marks(text) for text in texts]
    nearest = [index.nearest(one) for one in tqdm(words, "nearest stories", disable=None)]
    plain, tokens = _count_words(index, words, str), _count_tokens(index, texts)
    masked_matches = [None] * len(texts)
    try:
        masked_matches = _count_words(index, words, masking.masker(index)).longest_matches()
    except UserError as error:
        print(f"simple templates are left out: {error}")
    counts = zip(*(plain.counts(n) for n in N), strict=True)
    rows = zip(words, nearest, (dict(zip(N, row, strict=True)) for row in counts),
               plain.longest_matches(), masked_matches, tokens.longest_matches(),
               tokens.lengths.tolist(), strict=True)  # fmt: skip
    return [CopyReport(*row) for row in rows], _training_ngrams(index)


def _count_words(index, texts, key):
    """The NgramCounter of texts, lists of words; words with the same key count as the same."""
    segments = tqdm(index.segments, "words", disable=None)
    corpus = ((["", *map(key, one.words)], one.stream) for one in segments)
    return _count([[key(word) for word in words] for words in texts], corpus)


def _count_tokens(index, texts):
    """The NgramCounter of texts, lists of str, in tokens."""
    blocks = token_blocks(index.data, 0, index.data.stories, _TOKENS)
    blocks = tqdm(blocks, "tokens", index.data.tokens // _TOKENS + 1, disable=None)
    tokens = range(index.tokenizer.vocab_size)
    return _count([*map(index.tokenizer.encode, texts)], ((tokens, ids) for ids in blocks))


def _count(rows, corpus):
    """The NgramCounter of rows of keys after the corpus: blocks of (keys by number, numbers)."""
    numbers = defaultdict(itertools.count(1).__next__)
    counter = NgramCounter([[numbers[key] for key in row] for row in rows])
    for keys, block in corpus:
        lookup = np.array([numbers.get(key, 0) for key in keys])
        counter.add(lookup[block])
    return counter


def _training_ngrams(index):
    """{n: n-grams of the training stories}."""
    streams = [segment.stream for segment in index.segments]
    rows = [np.diff(np.flatnonzero(x == 0), append=len(x)) - 1 for x in streams]
    lengths = np.concatenate(rows)  # of the stories, in words
    return {n: int(np.maximum(0, lengths - n + 1).sum()) for n in N}


def summarize(reports, training_ngrams, seed=0):
    """The results of `find_copies` summed up for a JSON file: "copies" counts texts by kind,
    "empty" those without a word, which count in nothing else."""
    full = [report for report in reports if report.words]
    lengths = {
        "words": [report.longest[0] for report in full],
        "tokens": [report.longest_tokens[0] for report in full],
        "words_masked": [report.longest_masked[0] for report in full if report.longest_masked],
    }
    kinds = [report.kind() for report in full]
    return {
        "rouge_nearest": bootstrap.mean([report.nearest.precision for report in reports], seed),
        "ngrams": {str(n): novelty(reports, n, training_ngrams[n], seed) for n in N},
        "longest_match": {unit: _spread(values) for unit, values in lengths.items()},
        "copies": {kind: kinds.count(kind) for kind in KINDS},
        "empty": len(reports) - len(full),
    }


def novelty(reports, n, total, seed=0):
    """{"new": the fraction of n-grams that occur in no training story, an interval over the texts;
    "new_distinct": of the distinct ones, or None; "histogram": n-grams by log10 of their frequency
    among all `total` n-grams of the stories, counts by BINS, -10 for new}."""
    counts = [report.occurrences[n] for report in reports]
    distinct = {}
    for report, row in zip(reports, counts, strict=True):
        distinct |= zip(ngrams(report.words, n), (row == 0).tolist(), strict=True)
    return {
        "new": bootstrap.ratio([(row == 0).sum() for row in counts], [*map(len, counts)], seed),
        "new_distinct": sum(distinct.values()) / len(distinct) if distinct else None,
        "histogram": np.histogram(log_frequencies(np.concatenate(counts), total), BINS)[0].tolist(),
    }


def log_frequencies(counts, total):
    """log10 of counts / total, float64; -10 where the count is 0."""
    logs = np.full(len(counts), -10.0)
    return np.log10(counts / max(1, total), where=counts > 0, out=logs)


def _spread(values):
    """Median, 90th percentile and maximum of some counts; None where there are none."""
    if not values:
        return None
    median, high = np.percentile(values, (50, 90)).tolist()
    return {"median": median, "90%": high, "max": max(values)}
