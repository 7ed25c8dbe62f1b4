"""N-grams of some texts counted in a corpus, against counting them one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.memorization import ngram_counts
from eval.memorization.ngram_counts import NgramCounter, look_up

words = st.lists(st.integers(1, 3), max_size=9)


def count_by_hand(text, stories, n):
    grams = [text[i : i + n] for i in range(len(text) - n + 1)]
    return [
        sum(story[j : j + n] == gram for story in stories for j in range(len(story) - n + 1))
        for gram in grams
    ]


@settings(deadline=None)  # the first call imports pyarrow
@given(st.lists(words, max_size=4), st.lists(st.lists(st.integers(0, 3), max_size=9), max_size=5),
       st.integers(1, 7), st.booleans(), st.integers(1, 12))  # fmt: skip
def test_counts_and_longest_matches(texts, stories, positions, whole, max_n):
    """The corpus whole or in parts, a few positions at a time; 0 is any other word."""
    known = {word for text in texts for word in text}
    stories = [[word if word in known else 0 for word in story] for story in stories]
    parts = [np.array([0, *story]) for story in stories]
    if whole and parts:
        parts = [np.concatenate(parts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngram_counts, "POSITIONS", positions)
        patch.setattr(ngram_counts, "MAX_N", max_n)
        counter = NgramCounter(texts)
        for part in parts:
            counter.add(part)
    # A 0 inside a story matches nothing, so no n-gram holds it.
    for n in range(1, max_n + 1):
        expected = [count_by_hand(text, stories, n) for text in texts]
        assert [row.tolist() for row in counter.counts(n)] == expected
    for text, (length, at) in zip(texts, counter.longest_matches(), strict=True):
        ns = [n for n in range(1, len(text) + 1) if any(count_by_hand(text, stories, n))]
        assert length == max(ns, default=0)
        counts = count_by_hand(text, stories, length) if length else [1]
        assert counts[at] and not any(counts[:at])


def test_a_long_copy_and_no_copy():
    text = list(range(1, 400))
    counter = NgramCounter([text, text[::-1], []])
    counter.add(np.array([0, *text]))
    assert counter.longest_matches() == [(399, 0), (1, 0), (0, 0)]
    assert [len(row) for row in counter.counts(8)] == [392, 392, 0]
    assert sum(map(len, counter.numbers)) == 8 * len(counter.words)  # nothing for longer ones
    assert counter.counts(1)[0].tolist() == [1] * 399


@settings(deadline=None)
@given(
    st.sets(st.integers(0, 2**64 - 1), min_size=1, max_size=40), st.lists(st.integers(0, 2**64 - 1))
)
def test_look_up(known, others):
    """Each value's own place, from 1; 0 for any other; also of those that need all 64 bits."""
    values = np.array([*known], np.uint64)
    assert look_up(values, values).tolist() == list(range(1, len(values) + 1))
    strangers = np.array([x for x in others if x not in known], np.uint64)
    assert not look_up(strangers, values).any()
