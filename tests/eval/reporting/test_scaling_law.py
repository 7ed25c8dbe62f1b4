"""The scaling law: planted exponents, the envelope by hand, and what cannot be fitted."""

import numpy as np
import pytest

from eval.reporting import scaling_law
from nanostories.storage import to_json


def planted(alpha=0.08, a=0.5, seeds=3, noise=0.0):
    """{size: (weights, curves)} whose envelope is 20 C^-alpha, the size w touching it at
    C = w^(1/a).
    """
    rng, curves = np.random.default_rng(0), {}
    for w in np.geomspace(1e5, 1e7, 9):
        best = np.log(w) / a
        runs = []
        for _ in range(seeds):
            c = np.exp(np.linspace(best - 2, best + 2, 21))
            loss = 20 * c**-alpha * (1 + 0.02 * (np.log(c) - best) ** 2) + rng.normal(0, noise)
            runs.append(list(zip(c / w, loss, strict=True)))
        curves[f"{w:.0f}"] = (w, runs)
    return curves


@pytest.mark.parametrize("alpha, a", [(0.08, 0.5), (0.2, 0.7)])
def test_planted_exponents_are_found(alpha, a):
    law = scaling_law.fit(planted(alpha, a, noise=0.002))
    assert law["alpha"]["mean"] == pytest.approx(alpha, abs=0.01)
    assert law["a"]["mean"] == pytest.approx(a, abs=0.07)
    assert law["alpha"]["low"] <= law["alpha"]["mean"] <= law["alpha"]["high"]
    assert law["alpha"]["high"] - law["alpha"]["low"] < 0.02


def test_seeds_that_differ_make_wide_intervals():
    def width(noise):
        row = scaling_law.fit(planted(noise=noise))["alpha"]
        return row["high"] - row["low"]

    assert width(0.3) > 3 * width(0.01)


def test_few_seeds_spread_as_far_as_they_should():
    """Losses of two seeds e apart shift all of log loss by N(0, e^2 / 4): that is the interval."""
    curves, shift = planted(seeds=1), 0.01
    for name, (w, [run]) in curves.items():
        curves[name] = w, [[(n, x * f) for n, x in run] for f in (1 - shift, 1 + shift)]
    draws = []
    for seed in range(3):
        row = scaling_law.fit(curves, seed, over_models=False)["alpha"]
        draws.append(row["high"] - row["low"])
    one = {name: (w, runs * 2) for name, (w, runs) in curves.items()}  # twice as many seeds
    more = scaling_law.fit(one, over_models=False)["alpha"]
    assert np.mean(draws) / (more["high"] - more["low"]) == pytest.approx(1.73, abs=0.2)


def test_the_envelope_by_hand():
    """Of three models at four budgets; none is best where all are worse than one was before."""
    nan = np.nan
    losses = np.array([[4.0, 3.5, 3.6, nan], [nan, 3.7, 3.2, 3.4], [nan, nan, nan, nan]])
    lowest, best = scaling_law.envelope(losses)
    assert lowest.tolist() == [4.0, 3.5, 3.2, 3.4] and best.tolist() == [0, 0, 1, -1]


def test_a_budget_that_no_model_has():
    lowest, best = scaling_law.envelope(np.array([[np.nan, 2.0]]))
    assert lowest.tolist() == [np.inf, 2.0] and best.tolist() == [-1, 0]


@pytest.mark.parametrize("shape", [(400, 0.34, 1800, 0.28), (40, 0.4, 400, 0.4)])
def test_equal_numbers_of_tokens_make_no_exponent(shape):
    """Losses as Hoffmann et al. 2022 have them, all sizes on the same tokens: the best size is
    found only where a smaller and a larger one have been as costly, and nothing else is fitted.
    """
    A, alpha, B, beta = shape
    true, curves = beta / (alpha + beta), {}
    for w in np.geomspace(1e5, 1e7, 16):
        n = np.geomspace(2e4, 2e7, 40)
        curves[f"{w:.0f}"] = (w, [list(zip(n, 1.5 + A / w**alpha + B / n**beta, strict=True))])
    row = scaling_law.fit(curves)["a"]
    assert row is None or row["mean"] == pytest.approx(true, abs=0.15)


def test_of_one_seed_there_is_no_interval():
    row = scaling_law.fit(planted(seeds=1))["alpha"]
    assert row["mean"] == pytest.approx(0.08, abs=0.01) and row["low"] is None is row["high"]


def test_between_two_evaluations_lies_a_line_in_log_flops():
    [row] = scaling_law.losses_at(
        [[(100, 4.0), (10_000, 2.0)]], np.array([50, 100, 1000, 10_000, 2e4])
    )
    assert np.isnan(row[[0, 4]]).all() and row[1:4] == pytest.approx([4, 3, 2])


def test_the_best_model_at_each_budget():
    rows = scaling_law.fit(planted())["budgets"]
    sizes = [float(row["size"]) for row in rows]
    assert sizes == sorted(sizes) and len(set(sizes)) == 9
    assert all(row["tokens"] * float(row["size"]) == pytest.approx(row["flops"], rel=0.01)
               for row in rows)  # fmt: skip
    losses = [row["loss"] for row in rows]
    assert losses == sorted(losses, reverse=True)


def test_with_three_sizes_none_but_the_middle_one_is_sure_to_be_best():
    few = dict(list(planted().items())[2:5])
    law = scaling_law.fit(few)
    assert law["a"] is None and law["alpha"]["mean"] == pytest.approx(0.08, abs=0.02)


def test_one_size_has_no_law():
    one = dict(list(planted().items())[:1])
    assert scaling_law.fit(one) is None and scaling_law.fit({}) is None
    assert scaling_law.fit({"a": (1.0, [[(1, 2.0)]]), "b": (2.0, [[]])}) is None


def test_the_interval_covers_the_choice_of_models():
    """One curve far below the others decides the envelope: models with and without it differ."""
    curves = planted(noise=0.001)
    few = scaling_law.fit(curves)["alpha"]
    name = list(curves)[4]
    w, runs = curves[name]
    curves[name] = w, [[(n, 0.8 * loss) for n, loss in run] for run in runs]
    seeds = scaling_law.fit(curves, over_models=False)["alpha"]
    both = scaling_law.fit(curves)["alpha"]
    assert both["high"] - both["low"] > 3 * (seeds["high"] - seeds["low"])
    assert both["high"] - both["low"] > 3 * (few["high"] - few["low"])


def test_the_smallest_model_is_left_out():
    """It is no part of the line through the others, and without it the fit finds theirs."""
    curves = planted(noise=0.002)
    name = min(curves, key=lambda name: curves[name][0])
    w, runs = curves[name]
    curves[name] = w, [[(n, 1.3 * loss) for n, loss in run] for run in runs]
    law = scaling_law.fit_twice(curves)
    assert law["alpha"]["mean"] > 0.085
    assert law["without_smallest"]["alpha"]["mean"] == pytest.approx(0.08, abs=0.005)
    two = dict(list(curves.items())[:2])
    assert scaling_law.fit_twice(two)["without_smallest"] is None
    assert scaling_law.fit_twice({}) is None


def test_how_far_the_line_misses():
    """A power law is missed at its ends alone, where there is no model of the best size."""
    law = scaling_law.fit(planted())
    assert 0.01 < law["misfit"] < 0.07 and not law["misses"]
    bent = {name: (w, [[(n, loss + 5e3 / (n * w) ** 0.4) for n, loss in run] for run in runs])
            for name, (w, runs) in planted().items()}  # fmt: skip
    law = scaling_law.fit(bent)
    assert law["misfit"] > 0.1 and law["misses"] is True  # as JSON has it


def test_losses_that_rise_have_no_law_and_can_be_written():
    """As of runs that diverged: what cannot be fitted is None, for JSON has no nan."""
    curves = {str(w): (w, [[(n * 1000, 2.0 + n / 10) for n in range(1, 9)]]) for w in (1e5, 1e6)}
    law = scaling_law.fit_twice(curves)
    assert law["alpha"] is law["log_b"] is law["misfit"] is None
    assert to_json(law, "report.json")
