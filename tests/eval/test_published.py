"""The paper's table, recomputed from its raw grades."""

import pytest

from eval import published
from eval.published import GRADES, MODELS, relative


def test_every_row_of_the_table_recomputes():
    """(grade - worst) / (GPT-4 - worst), to the two digits that are printed."""
    cells = 0
    for name, row in MODELS.items():
        for grade in GRADES:
            if grade in row:
                raw, printed = row[grade]
                assert abs(relative(grade, raw) - printed) <= 0.00501, (name, grade)
                cells += 1
    assert len(MODELS) == 31 and cells == 27 * 5 + 4 * 3
    # The paper's 26 models, each with its loss; and the ends of the scale as STUDY.md has them.
    assert sum("loss" in row for row in MODELS.values()) == 26
    assert [published.WORST[g][0] for g in GRADES] == [2.94, 4.33, 2.41, 2.86, 3.40]
    assert [published.BEST[g][0] for g in GRADES] == [8.21, 8.75, 9.93, 9.31, 8.26]


def test_relative_is_clipped():
    assert relative("grammar", 1.0) == 0 and relative("grammar", 10.0) == 1
    assert relative("plot", (3.40 + 8.26) / 2) == pytest.approx(0.5)


def test_a_step_in_size():
    """Worked by hand: the widths 64 to 768 at 2, 4, 8, 12 layers have sixteen gains in plot."""
    gains = [1.49, 1.61, 0.63, 0.21, 1.82, 1.65, 0.18, 0.16, 1.76, 1.07, 0.03, 0.08, 2.19, 0.60,
             0.19, 0.10]  # fmt: skip
    assert published.step("plot") == pytest.approx(sum(sorted(gains)[7:9]) / 2)
