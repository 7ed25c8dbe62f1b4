"""The power calculation, on studies whose truth is planted and by hand."""

import sys

import numpy as np
import pytest
from planted_study import KINDS, run, study

from configs import UserError
from eval import bootstrap, study_power
from eval.reporting.claims import ONE_SEED, Claim, evaluate_claims
from eval.reporting.study_jobs import Size


@pytest.fixture(scope="module", autouse=True)
def fewer_rounds():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.bootstrap.ROUNDS", 600)
        yield


def claims(*errors, mean=0.1):
    return [[Claim("a", "", "", bootstrap.normal_interval(mean, error, 9))] for error in errors]


def test_by_hand():
    """A value of 0.1 needs an error of 0.1 / 2.8; the questions' part of it leaves the rest."""
    [row] = study_power.power(*claims(0.05, 0.03, 0.04)).values()
    assert row["detectable"] == pytest.approx(2.8 * 0.05)
    assert row["more_seeds"] == pytest.approx(0.04**2 / ((0.1 / 2.8) ** 2 - 0.03**2))
    assert row["more_questions"] is None  # more seeds alone would do, more questions would not
    [row] = study_power.power(*claims(0.05, 0.04, 0.03, mean=-0.1)).values()
    assert row["more_seeds"] is None and row["more_questions"] > 1
    assert study_power.power(*[[Claim("a", "", "", None)]] * 3) == {}


def test_a_share_has_no_factors():
    one = bootstrap.normal_interval(0.1, 0.05, 9)
    [row] = study_power.power(*[[Claim("a", "", "", one, share=True)]] * 3).values()
    assert row["error"] == pytest.approx(0.05) and row["detectable"] is None
    assert row["more_seeds"] is row["more_questions"] is row["more_of_both"] is None


def test_a_study_as_large_as_it_says_decides():
    """With the detectable difference as the value, as many seeds as there are suffice."""
    [row] = study_power.power(*claims(0.05, 0.0, 0.05, mean=0.14)).values()
    assert row["more_seeds"] == pytest.approx(1.0)


def test_the_parts_make_the_whole():
    """Of a planted study: what questions and seeds change adds up, in squares."""
    planted = study(lambda size: {kind: 0.7 + 0.0005 * size.width for kind in KINDS})
    for one in planted.runs:  # seeds that differ
        answers = one.results["skills"]["correct"]["plot"]
        answers[: 8 * one.seed] = [1.0] * (8 * one.seed)
    row = study_power.power_of(planted, evaluate_claims(planted))["Plot follows width"]
    assert row["questions"] > 0 < row["seeds"]
    whole = (row["questions"] ** 2 + row["seeds"] ** 2) ** 0.5
    assert row["error"] == pytest.approx(whole, rel=0.2)


def test_a_claim_on_losses_rests_on_no_questions():
    [row] = study_power.power(*claims(0.05, 0.05, 0.05)).values()
    assert row["questions"] == 0.0 and row["seeds"] == pytest.approx(0.05)


def test_a_claim_on_the_neurons_of_a_model_rests_on_neither():
    note = f"readable; {ONE_SEED}"
    one = Claim("a", "", "", bootstrap.normal_interval(0.1, 0.05, 9), note=note)
    [row] = study_power.power([one], [one], [one]).values()
    assert row["error"] == pytest.approx(0.05) and row["questions"] is row["seeds"] is None
    assert row["more_seeds"] is row["more_questions"] is row["more_of_both"] is None


def test_beside_a_baseline_the_questions_alone_are_drawn():
    baseline = run(Size(1, 1, 1), 1, dict.fromkeys(KINDS, 0.6), kind="baseline")
    baseline.name, baseline.size = "gpt2-xl", None
    planted = study(lambda size: {kind: 0.7 for kind in KINDS}, more=[baseline])
    rows = study_power.power_of(planted, evaluate_claims(planted))
    row = rows["Small models beat GPT-2 large and XL"]
    assert row["seeds"] == 0.0 and row["questions"] == pytest.approx(row["error"])


def test_the_command(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["eval.study_power"])
    with pytest.raises(UserError, match="usage"):
        study_power.main()
    planted = study(lambda size: {kind: 0.7 for kind in KINDS})
    monkeypatch.setattr(study_power, "read_study", lambda folder: planted)
    monkeypatch.setattr(sys, "argv", ["eval.study_power", str(tmp_path)])
    study_power.main()
    out = capsys.readouterr().out
    assert "Plot follows width" in out and "detectable" in out and "Creativity" not in out


def test_the_ends_of_an_interval_of_two_seeds_do_not_scatter():
    """Of Student's distribution 95 % lie within 12.706 with one degree of freedom, 2.776 with 4."""
    for freedom, end in ((1, 12.706), (4, 2.776)):
        quantiles = bootstrap.student_quantiles(freedom, 2000)
        assert np.percentile(quantiles, (2.5, 97.5)) == pytest.approx((-end, end), rel=0.03)
    for seed in range(5):
        [draws] = bootstrap.resample_seeds([np.array([1.0, 3.0])], np.random.default_rng(seed))
        low, high = np.percentile(draws[1:], (2.5, 97.5))
        assert (low, high) == pytest.approx((2 - 12.706, 2 + 12.706), rel=0.1)


@pytest.mark.parametrize("n, t", [(5, 2.776), (16, 2.131), (100, 1.984)])
def test_an_interval_over_few_questions_is_students(n, t):
    """The bootstrap alone gives five of them an interval a third too short."""
    values = np.arange(n) / n
    [draws] = bootstrap.resample_models([values[None]], np.random.default_rng(0))
    low, high = np.percentile(draws[1:], (2.5, 97.5))
    expected = 2 * t * np.std(values, ddof=1) / np.sqrt(n)
    assert draws[0] == np.mean(values) and high - low == pytest.approx(expected, rel=0.06)
