"""The accuracies in the report's tables: how wide their intervals are."""

import pytest
from planted_study import GRID, KINDS, run

from eval.reporting.model_sections import accuracies


@pytest.fixture(scope="module", autouse=True)
def fewer_rounds():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.bootstrap.ROUNDS", 300)
        yield


def groups(accuracy, gap, sizes=GRID):
    """{size: two runs}, whose accuracies differ by `gap`."""
    return {
        str(size): [run(size, seed, dict.fromkeys(KINDS, accuracy - gap * seed)) for seed in (0, 1)]
        for size in sizes
    }


def width(one):
    return one["high"] - one["low"]


def test_the_spread_of_the_seeds_is_that_of_all_sizes():
    """Alone, two seeds that differ by 0.1 have t-distributed errors of one degree of freedom."""
    [alone] = accuracies(groups(0.75, 0.1, GRID[:1]), ["plot"]).values()
    pooled = accuracies(groups(0.75, 0.1), ["plot"])
    assert width(alone[0]) > 0.7 and all(0.1 < width(row[0]) < 0.35 for row in pooled.values())
    mixed = groups(0.75, 0.0, GRID[1:]) | groups(0.75, 0.1, GRID[:1])
    assert width(accuracies(mixed, ["plot"])[str(GRID[0])][0]) < 0.3


def test_a_size_with_one_seed_has_the_spread_of_the_others():
    few = groups(0.75, 0.15)
    few[str(GRID[0])].pop()
    rows = accuracies(few, ["plot"])
    assert width(rows[str(GRID[0])][0]) > 1.2 * width(rows[str(GRID[1])][0])


def test_an_accuracy_is_between_0_and_1():
    for accuracy in (0.98, 0.12):
        for [one] in accuracies(groups(accuracy, 0.1, GRID[:1]), ["plot"]).values():
            assert 0 <= one["low"] < one["mean"] < one["high"] <= 1


def test_what_was_not_asked_or_asked_otherwise_has_no_accuracy():
    planted = groups(0.75, 0.1)
    first, second, third = (planted[str(size)] for size in GRID[:3])
    first[0].results = first[1].results = {}
    del second[0].results["skills"]["correct"]["plot"]
    rows = accuracies(planted, ["plot", "facts"])
    assert rows[str(GRID[0])] == [None, None]
    assert rows[str(GRID[1])][0] is None and rows[str(GRID[1])][1] is not None
    third[0].results["skills"]["correct"]["facts"].pop()
    assert {row[1] for row in accuracies(planted, ["plot", "facts"]).values()} == {None}
    assert accuracies({}) == {}
