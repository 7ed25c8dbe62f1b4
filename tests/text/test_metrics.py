"""R, distinct-n, MTLD and self-BLEU: by hand, and beside rouge_score and NLTK."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_score.rouge_scorer import RougeScorer

from nanostories.text.metrics import (
    distinct_n,
    mtld_factors,
    nearest_texts,
    ngram_precision,
    self_bleu,
)

texts = st.lists(st.text("abcd", max_size=9).map(list), min_size=2, max_size=5)


def test_precision_counts_membership():
    """ "a b a b a b" has the bigrams ab ba ab ba ab, and "a b" only ab: 3 of 5. Words: both a and b
    occur, 6 of 6. Its trigrams aba bab aba bab: none of 4. The other way round ab is 1 of 1.
    """
    one, other = list("ababab"), list("ab")
    assert ngram_precision(one, other) == 3 / 5
    assert ngram_precision(one, other, 1) == 1 and ngram_precision(one, other, 3) == 0
    assert ngram_precision(other, one) == 1
    assert math.isnan(ngram_precision(["a"], one)) and ngram_precision(one, []) == 0


def ngram_f1(one, other, k=2):
    """R_k of two texts by its definition; nan where one has no k-gram."""
    p, q = ngram_precision(one, other, k), ngram_precision(other, one, k)
    return 2 * p * q / (p + q) if p + q else p + q


def test_f1():
    """P = 3/5, Q = 1: 2 * 3/5 / (8/5) = 3/4. Nothing in common is 0, not a division by it."""
    one, other = list("ababab"), list("ab")
    assert ngram_f1(one, other) == ngram_f1(other, one) == pytest.approx(3 / 4)
    assert (
        ngram_f1(one, list("xyz")) == 0
        and ngram_f1(one, one) == 1
        and math.isnan(ngram_f1(one, []))
    )


class Letters:
    def tokenize(self, text):
        return text.split()


@given(texts)
def test_rouge_clips_what_membership_does_not(sample):
    """rouge_score lets each k-gram of the reference match once: the same where none is repeated."""
    one, other = sample[:2]
    scorer = RougeScorer(["rouge2"], tokenizer=Letters())
    clipped = scorer.score(" ".join(other), " ".join(one))["rouge2"]
    mine = ngram_precision(one, other)
    if len(one) < 2:
        assert math.isnan(mine)
        return
    assert mine >= clipped.precision - 1e-12
    pairs = list(pairwise(one))
    if len(set(pairs)) == len(pairs):
        assert mine == pytest.approx(clipped.precision)


def test_nearest():
    """Two are the same, R = 1; the third shares bc with both, of ab bc | bc cd: P = Q = 1/2."""
    assert nearest_texts(["abc", "bcd", "abc", "x"]) == [
        (1.0, 2), (0.5, 0), (1.0, 0), (pytest.approx(math.nan, nan_ok=True), -1),
    ]  # fmt: skip
    assert [j for _, j in nearest_texts(["abc"] * 3)] == [1, 0, 0]  # never oneself
    assert nearest_texts(["abc"])[0][1] == -1


@given(texts)
def test_nearest_is_the_largest_f1(sample):
    for i, (score, j) in enumerate(nearest_texts(sample)):
        every = [(ngram_f1(sample[i], one), k) for k, one in enumerate(sample) if k != i]
        every = [(value, k) for value, k in every if not math.isnan(value)]
        if not every:
            assert math.isnan(score) and j == -1
        else:
            assert score == pytest.approx(max(value for value, _ in every))
            assert ngram_f1(sample[i], sample[j]) == pytest.approx(score)


def test_distinct():
    """abab | ba: words a b a b b a, 2 of 6; bigrams ab ba ab | ba, none across texts: 2 of 4. In
    portions of 3: aba and b | ba, bigrams ab ba and ba, all of them different; words 2/3 and 2/3.
    Of 4: abab, ab ba ab, 2 of 3; ba is left over.
    """
    assert distinct_n(["abab", "ba"], 1, 6) == 2 / 6 and distinct_n(["abab", "ba"], 2, 6) == 2 / 4
    assert distinct_n(["abab", "ba"], 2, 3) == 1 and distinct_n(["abab", "ba"], 1, 3) == 2 / 3
    assert distinct_n(["abab", "ba"], 2, 4) == 2 / 3
    assert math.isnan(distinct_n(["abab", "ba"], 2, 7)) and math.isnan(distinct_n([], 1, 1))


def test_factors():
    """ "a b c a b": the share of different words falls 1, 1, 1, 3/4, 3/5, which is below 0.72: one
    factor forwards. Backwards, b a c b a, too. "a b c a" ends at 3/4, on its way from 1 to 0.72:
    0.25 / 0.28 of a factor, both ways. With marks or without is the same.
    """
    assert mtld_factors(list("abcab")) == 1
    assert mtld_factors(list("abca")) == pytest.approx(0.25 / 0.28)
    assert mtld_factors(list("a,b.c!a")) == pytest.approx(0.25 / 0.28)
    assert mtld_factors([]) == 0 and mtld_factors(["a", "b"]) == 0
    # Forwards a a | b c is 1 + 0; backwards c b a a ends at 3/4.
    assert mtld_factors(list("aabc")) == pytest.approx((1 + 0.25 / 0.28) / 2)


def test_self_bleu_of_equals_is_one():
    assert self_bleu(["abcde", "abcde"]) == [pytest.approx(1), pytest.approx(1)]
    assert self_bleu(["abcde", "vwxyz"]) == [0, 0] and math.isnan(self_bleu(["abc"])[0])
    assert math.isnan(self_bleu(["", "abc"])[0])


@given(texts)
def test_self_bleu_is_nltks(some):
    smooth = SmoothingFunction().method1
    for i, score in enumerate(self_bleu(some)):
        others = some[:i] + some[i + 1 :]
        if some[i]:
            expected = sentence_bleu(others, some[i], smoothing_function=smooth)
            assert score == pytest.approx(float(expected))
        else:
            assert math.isnan(score)


def test_self_bleu_by_hand():
    """ "abcd" against "abce": 3 of 4 words, 2 of 3 pairs, 1 of 2 triples, and 0.1 for 0 of 1."""
    score = (3 / 4 * 2 / 3 * 1 / 2 * 0.1) ** (1 / 4)
    assert self_bleu(["abcd", "abce"]) == pytest.approx([score, score])
    # A k-gram counts at most as often as one reference has it.
    assert self_bleu(["aa", "a"])[0] == pytest.approx((1 / 2 * 0.1 * 0.1 * 0.1) ** (1 / 4))
