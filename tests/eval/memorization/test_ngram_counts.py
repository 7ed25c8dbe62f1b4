"""Every run of some texts counted in a corpus, against counting them one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.memorization import ngram_counts
from eval.memorization.ngram_counts import Grams, Table

words = st.lists(st.integers(1, 3), max_size=9)


def counted(text, stories, k):
    runs = [text[i : i + k] for i in range(len(text) - k + 1)]
    return [
        sum(story[j : j + k] == run for story in stories for j in range(len(story) - k + 1))
        for run in runs
    ]


@given(st.lists(words, max_size=4), st.lists(st.lists(st.integers(0, 3), max_size=9), max_size=5),
       st.integers(1, 7), st.booleans(), st.integers(1, 12))  # fmt: skip
def test_counts_and_longest_runs(texts, stories, at_once, whole, counted_up_to):
    """The corpus in one piece or many, looked at a few places at a time; 0 is any other word."""
    known = {word for text in texts for word in text}
    stories = [[word if word in known else 0 for word in story] for story in stories]
    pieces = [np.array([0, *story]) for story in stories]
    if whole and pieces:
        pieces = [np.concatenate(pieces)]
    grams = Grams(texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngram_counts, "AT_ONCE", at_once)
        patch.setattr(ngram_counts, "COUNTED", counted_up_to)
        for piece in pieces:
            grams.add(piece)
    # A 0 inside a story matches nothing, so no run goes through it.
    for k in range(1, counted_up_to + 1):
        expected = [counted(text, stories, k) for text in texts]
        assert [row.tolist() for row in grams.counts(k)] == expected
    for text, (length, at) in zip(texts, grams.longest(), strict=True):
        ks = [k for k in range(1, len(text) + 1) if any(counted(text, stories, k))]
        assert length == max(ks, default=0)
        found = counted(text, stories, length) if length else [1]
        assert found[at] and not any(found[:at])


def test_a_long_copy_and_no_copy():
    text = list(range(1, 400))
    grams = Grams([text, text[::-1], []])
    grams.add(np.array([0, *text]))
    assert grams.longest() == [(399, 0), (1, 0), (0, 0)]
    assert [len(row) for row in grams.counts(8)] == [392, 392, 0]
    assert sum(map(len, grams.numbers)) == 8 * len(grams.flat)  # nothing for longer ones
    assert grams.counts(1)[0].tolist() == [1] * 399


@given(st.sets(st.integers(1, 2**64 - 1), max_size=40), st.lists(st.integers(1, 2**64 - 1)))
def test_table(known, others):
    """Codes that differ in their highest bits alone meet at few places of the table."""
    codes = np.array([*known, *(code << 60 & 2**64 - 1 | 1 << 59 for code in range(9))], np.uint64)
    codes = np.unique(codes)
    table = Table(codes)
    assert table.find(codes).tolist() == list(range(1, len(codes) + 1))
    strangers = np.array([x for x in others if x not in set(codes.tolist())], np.uint64)
    assert not table.find(strangers).any()


def test_table_where_all_meet():
    """Fifty codes that belong at the last place: the others follow it, round the end."""
    inverse = pow(int(ngram_counts._MULTIPLIER), -1, 2**64)
    codes = np.array([(2**64 - 1 - i) * inverse % 2**64 for i in range(50)], np.uint64)
    table = Table(codes)
    assert len(set(table._place(codes).tolist())) == 1
    assert table.find(codes).tolist() == list(range(1, 51))
    more = np.array([(2**64 - 51 - i) * inverse % 2**64 for i in range(9)], np.uint64)
    assert not table.find(more).any()
