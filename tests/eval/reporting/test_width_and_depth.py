"""What width and depth give each measure, where it is planted."""

import numpy as np
import pytest
from planted_study import KINDS, instructed, interval, study

from eval.reporting import variants
from eval.reporting.study_jobs import Size
from eval.reporting.width_and_depth import width_and_depth, without_one


def planted(loss_of=lambda size: 3 - 0.2 * np.log2(size.width) - 0.06 * np.log2(size.layers)):
    def accuracies(size):
        wide, deep = np.log2(size.width / 32), np.log2(size.layers)
        skills = dict.fromkeys(KINDS, 0.7)
        return skills | {"facts": 0.6 + 0.1 * wide, "context": 0.6 + 0.05 * (wide + deep)}

    return width_and_depth(study(accuracies, loss_of))


def test_gains_by_as_many_parameters():
    """Twice as wide is four times the parameters: 0.2 for those is 0.1 for twice as many."""
    rows = {row["measure"]: row for row in planted()["rows"]}
    loss = rows["validation loss, its fall, nats"]
    assert loss["width"]["mean"] == pytest.approx(0.1)
    assert loss["layers"]["mean"] == pytest.approx(0.06)
    assert loss["difference"]["mean"] == pytest.approx(-0.04)
    assert loss["without_one"] == pytest.approx((-0.04, -0.04))  # straight in the logarithms
    assert loss["share"]["mean"] == pytest.approx(0.06 / 0.16) and loss["beside_loss"] is None
    beside = rows["context"]["beside_loss"]["mean"]
    assert beside == pytest.approx(rows["context"]["share"]["mean"] - 0.06 / 0.16)
    facts = rows["facts"]  # scores: twice the accuracy
    assert facts["width"]["mean"] == pytest.approx(0.1, abs=0.02)
    assert facts["layers"]["low"] < 0 < facts["layers"]["high"]


def test_what_follows_all_parameters_prefers_neither_at_as_many():
    """With the embeddings counted. Of the blocks' parameters layers give more: they add none."""
    rows = planted(lambda size: 5 - 0.1 * np.log2(size.parameters + 200_000))["rows"]
    assert rows[0]["in_all"]["mean"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("which, off", [(0, 32), (0, 128), (1, 1), (1, 4)])
def test_the_differences_without_one_width_or_depth(which, off):
    """Twice the parameters give 0.1 in width and 0.06 in layers, but at one end of the grid there
    is 1 more: the difference is that of the line only without it."""
    sizes = [Size(width, layers, 2) for width in (32, 64, 128) for layers in (1, 2, 4)]
    draws = {size: np.array([0.2 * np.log2(size.width) + 0.06 * np.log2(size.layers)
                             + (size[which] == off)] * 2) for size in sizes}  # fmt: skip
    # Without the other outer one, the line is through two points, of which one is off by 1: twice
    # the parameters are half a doubling of the width.
    wrong = {32: 0.5, 128: -0.5, 1: -1, 4: 1}[off]
    assert without_one(draws) == pytest.approx((min(-0.04, wrong - 0.04), max(-0.04, wrong - 0.04)))


def test_the_losss_share_is_that_of_the_same_sizes():
    """Instructions are followed by some models; the losses of others are no part of the control."""
    some = [Size(64, 1, 4), Size(64, 2, 4), Size(64, 4, 4), Size(128, 1, 4), Size(128, 2, 4)]

    def loss(size):
        return 3 - 0.2 * np.log2(size.width) - 0.06 * np.log2(size.layers) - (size not in some)

    more = instructed(lambda size: 0.5 + 0.06 * np.log2(size.width / 32 * size.layers), some)
    rows = width_and_depth(study(lambda size: dict.fromkeys(KINDS, 0.7), loss, more=more))["rows"]
    of_loss = rows[-1]["share"]["mean"] - rows[-1]["beside_loss"]["mean"]
    assert of_loss == pytest.approx(0.06 / 0.16)
    assert abs(rows[0]["share"]["mean"] - of_loss) > 0.05


def test_seeds_of_fluency_and_of_the_loss_are_drawn_apart():
    """Else the difference of their shares would be known better than either."""
    of = study(lambda size: dict.fromkeys(KINDS, 0.7), lambda size: 5 - 0.2 * np.log2(size.width))
    for one in of.runs:
        one.curve = [(one.tokens, one.curve[-1][1] + 0.01 * one.seed)]
        row = dict.fromkeys(variants.FLUENCY, interval(one.loss - 3))
        one.results["fluency"] = {"sets": {variants.TEMPERATURE: row}, "stories": 9}
    losses = variants.draws_by_seed(of.grid, lambda run: run.loss, lambda run: run.size)
    written = variants.fluency_draws(of.grid, "relative")
    for size in losses:
        assert np.ptp(losses[size]) == pytest.approx(np.ptp(written[size]))
        assert abs(np.corrcoef(losses[size], written[size])[0, 1]) < 0.3


def test_shares_only_of_what_grows():
    found = planted()
    rows = {row["measure"]: row for row in found["rows"]}
    assert rows["grammar"]["share"] is None  # the same for all sizes
    assert rows["context"]["share"]["mean"] == pytest.approx(2 / 3, abs=0.1)
    nothing = width_and_depth(study(lambda size: {}, seeds=0))
    assert all(row["difference"] is None for row in nothing["rows"])
