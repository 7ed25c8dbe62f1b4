"""What width and depth give each measure, where it is planted."""

import numpy as np
import pytest
from planted_study import KINDS, study

from eval.reporting.width_and_depth import width_and_depth


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
    assert loss["share"]["mean"] == pytest.approx(0.06 / 0.16) and loss["beside_loss"] is None
    beside = rows["context"]["beside_loss"]["mean"]
    assert beside == pytest.approx(rows["context"]["share"]["mean"] - 0.06 / 0.16)
    facts = rows["facts"]  # scores: twice the accuracy
    assert facts["width"]["mean"] == pytest.approx(0.1, abs=0.02)
    assert facts["layers"]["low"] < 0 < facts["layers"]["high"]


def test_shares_only_of_what_grows():
    found = planted()
    rows = {row["measure"]: row for row in found["rows"]}
    assert rows["grammar"]["share"] is None  # the same for all sizes
    assert rows["context"]["share"]["mean"] == pytest.approx(2 / 3, abs=0.1)
    [(one, other, value)] = found["compared"]  # there is no own instruction
    assert (one, other) == ("context", "facts") and value["low"] > 0.3  # facts lean on width
    nothing = width_and_depth(study(lambda size: {}, seeds=0))
    assert not nothing["compared"]
    assert all(row["difference"] is None for row in nothing["rows"])
