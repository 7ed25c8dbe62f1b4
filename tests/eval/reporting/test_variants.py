"""Single changes beside what they change, and how good the measures are, on planted studies."""

import numpy as np
import pytest
from planted_study import GRID, KINDS, interval, run, study

from eval.reporting import variants
from eval.reporting.study_jobs import ARCHITECTURES, CORPORA, COUNTERPARTS, Size

SIZE = Size(64, 2, 4)
PLAIN = {kind: 0.7 for kind in KINDS}


@pytest.fixture(scope="module", autouse=True)
def fewer_rounds():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.bootstrap.ROUNDS", 300)
        yield


def fluent(one, relative, repeated=0.01):
    """What eval.fluency finds; of real stories 0.02 of the 4-grams are repeated."""
    row = dict.fromkeys(variants.FLUENCY, interval(0.1))
    sets = {"real stories": row | {"repeated": interval(0.02)},
            variants.TEMPERATURE: row | {"relative": interval(relative),
                                         "repeated": interval(repeated)}}  # fmt: skip
    one.results["fluency"] = {"sets": sets, "stories": 9}
    return one


def planted(kinds, seeds=2, jitter=0.01):
    """The grid, all alike, and two runs of each kind: {kind: (loss, accuracy of all kinds)}."""
    of = study(lambda size: PLAIN, seeds=seeds)
    for kind, (loss, accuracy) in kinds.items():
        for seed in range(1, seeds + 1):
            of.runs.append(run(SIZE, seed, dict.fromkeys(KINDS, accuracy), loss, kind))
    for one in of.runs:
        one.curve = [(one.tokens, one.curve[-1][1] + jitter * one.seed)]
        fluent(one, one.loss - 3)
    return of


def values(study_, kind, kinds=ARCHITECTURES, counterparts=None):
    rows = variants.differences(study_, kinds, counterparts or {})
    [row] = [row for row in rows if row["run"][0].kind == kind]
    return row["values"]


def test_a_better_architecture_is_better_in_all():
    found = values(planted({"rope": (2.8, 0.85), "untied": (3.2, 0.6)}), "rope")
    assert found["loss"]["high"] < 0 and found["loss"]["mean"] == pytest.approx(-0.2)
    assert found["relative"]["mean"] == pytest.approx(-0.2)
    assert all(found[kind]["low"] > 0.05 for kind in KINDS)
    assert found["plot"]["mean"] == pytest.approx(0.15, abs=0.03)  # of the accuracy, not of 0 to 1
    found = values(planted({"untied": (3.2, 0.6)}), "untied")
    assert found["loss"]["low"] > 0 > found["facts"]["high"]


def test_the_same_architecture_again_is_no_better():
    found = values(planted({"rope": (3.0, 0.7)}), "rope")
    assert all(one["low"] <= 0 <= one["high"] for one in found.values())


def test_the_spread_of_all_seeds_is_behind_every_interval():
    """Two seeds of one size tell little; those of the grid tell how far any two lie apart."""
    narrow, wide = (
        values(planted({"rope": (2.9, 0.7)}, jitter=jitter), "rope")["loss"]
        for jitter in (0.002, 0.2)
    )
    assert wide["high"] - wide["low"] > 20 * (narrow["high"] - narrow["low"]) > 0


def test_one_seed_gives_a_difference_without_an_interval():
    found = values(planted({"rope": (2.8, 0.7)}, seeds=1), "rope")
    assert found["loss"] == pytest.approx(-0.2) and isinstance(found["loss"], float)


def test_other_stories_are_compared_with_their_counterpart():
    """V1 with V2, twice with once, and none of these with the plain stories; by eval.loss."""
    kinds = {"v1": (2.0, 0.8), "v2": (2.5, 0.7), "once": (2.2, 0.8), "twice": (2.4, 0.7),
             "storybook": (5.0, 0.6)}  # fmt: skip
    of = planted(kinds)
    of.data["data/planted"]["splits"]["train"]["tokens"] = 1_000_000
    for one in of.runs:
        one.results["loss"] = {"loss": one.loss + 1 if one.kind == "v1" else one.loss}
    rows = variants.differences(of, CORPORA, COUNTERPARTS)
    pairs = {(row["run"][0].kind, row["other"][0].kind): row["values"]["loss"]["mean"]
             for row in rows}  # fmt: skip
    expected = {("v1", "v2"): 0.5, ("twice", "once"): 0.2, ("storybook", ""): 2.0}
    assert pairs == {pair: pytest.approx(gap) for pair, gap in expected.items()}
    assert of.epochs(rows[0]["run"][0]) == 2.0
    sections = variants.corpora(of)
    assert [row[0] for row in sections["changes"]][:2] == ["loss, nats per token", "grammar"]


def test_losses_of_quite_other_stories_do_not_widen_the_rest():
    """storybook.py's two seeds lie 1 nat apart on real stories; V1's and V2's do not."""
    kinds = {"v1": (2.0, 0.8), "v2": (2.5, 0.7), "storybook": (12.0, 0.6)}
    of = planted(kinds)
    for one in of.runs:
        if one.kind:
            spread = 1 if one.kind == "storybook" else 0.01
            one.results["loss"] = {"loss": one.loss + spread * one.seed}
    found = {kind: values(of, kind, CORPORA, COUNTERPARTS)["loss"] for kind in ("v1", "storybook")}
    widths = {kind: one["high"] - one["low"] for kind, one in found.items()}
    assert widths["v1"] < 0.1 < widths["storybook"]


def test_the_loss_on_other_stories_is_not_compared():
    """A model of other stories that eval.loss has not tried on the plain ones has no such loss."""
    of = planted({"syn": (2.0, 0.8)})
    assert "loss" not in values(of, "syn", CORPORA, COUNTERPARTS)
    assert "loss" in values(planted({"rope": (2.0, 0.8)}), "rope")
    for one in of.runs:
        one.results = {} if one.kind else one.results
    assert variants.differences(of, CORPORA, COUNTERPARTS) == []


def test_a_kind_without_its_counterpart_is_left_out():
    assert variants.differences(planted({"v1": (2.0, 0.8)}), CORPORA, COUNTERPARTS) == []


def test_what_the_width_alone_is_worth_comes_from_the_grid():
    """Planted: 0.3 nats for twice the width, and 0.1 for twice the layers."""
    of = planted({"rope": (2.8, 0.7), "swiglu": (3.0, 0.7), "untied": (3.1, 0.7)})
    for one in of.runs:
        width, layers = np.log2([one.size.width, one.size.layers])
        one.curve = [(one.tokens, 5 - 0.3 * width - 0.1 * layers + 0.01 * one.seed)]
        one.recipe["n_embd"] = {"rope": 128, "untied": 32}.get(one.kind, one.size.width)
    found = {row["run"][0].kind: row["by_width"] for row in variants.architectures(of)["rows"]}
    assert found == pytest.approx({"rope": -0.3, "swiglu": 0.0, "untied": 0.3})
    assert str(found["swiglu"]) == "0.0"  # not -0.0


@pytest.mark.parametrize("kept", [GRID[:3], [size for size in GRID if size.layers == 2]])
def test_a_grid_that_gives_no_slope_gives_no_part_of_the_width(kept):
    """Fewer than four sizes, or sizes of one depth."""
    of = planted({"rope": (2.8, 0.7)})
    assert np.isnan(variants.loss_per_doubling([one for one in of.grid if one.size in kept]))
    of.settings["models"] = ", ".join(map(str, kept))
    of.runs[-1].recipe["n_embd"] = of.runs[-2].recipe["n_embd"] = 72
    assert [row["by_width"] for row in variants.architectures(of)["rows"]] == [None]


def test_where_width_and_depth_grow_together_neither_has_a_slope():
    runs = [run(Size(32 * 2**n, 2**n, 4), 1, {}, 4 - 0.1 * n) for n in range(4)]
    assert np.isnan(variants.loss_per_doubling(runs))


# ---- what the measures are worth ---------------------------------------------------------------


def by_parameters(low, high):
    """A formula that goes from `low` for the smallest to `high` for the largest size."""
    parameters = np.log([size.parameters for size in GRID])
    return lambda size: (
        low + (high - low) * ((np.log(size.parameters) - parameters.min()) / np.ptp(parameters))
    )


def measured(accuracy, relative):
    of = study(lambda size: PLAIN | {"plot": accuracy(size)}, by_parameters(3.0, 2.0))
    for one in of.runs:
        one.curve = [(one.tokens, one.curve[-1][1] + 0.005 * one.seed)]
        fluent(one, relative(one.size) + 0.005 * one.seed)
    return {row["measure"]: row for row in variants.validity(of)["rows"]}


def test_a_measure_that_follows_the_loss_and_one_that_runs_against_it():
    rows = measured(by_parameters(0.6, 0.95), by_parameters(0.5, 0.1))
    relative = rows[variants.FLUENCY["relative"][0]]  # less is better
    for row in (rows["plot"], relative):
        assert row["alike"] == row["pairs"] > 20 and row["otherwise"] == 0
    rows = measured(by_parameters(0.95, 0.6), by_parameters(0.1, 0.5))
    relative = rows[variants.FLUENCY["relative"][0]]
    for row in (rows["plot"], relative):
        assert row["alike"] < 3 and row["otherwise"] > 15
    assert rows["facts"]["otherwise"] == 0  # the same for all


def test_repetition_is_best_as_in_real_stories():
    """Gibberish repeats nothing: the nearer to the 0.02 of real stories, from either side, the
    better."""
    label = "repeated 4-grams, fraction: distance from that of real stories"
    for first, last in ((0.0, 0.015), (0.04, 0.025)):
        of = study(lambda size: PLAIN, by_parameters(3.0, 2.0))
        repeated = by_parameters(first, last)
        for one in of.runs:
            one.curve = [(one.tokens, one.curve[-1][1] + 0.005 * one.seed)]
            fluent(one, 0.1, repeated(one.size) + 1e-5 * one.seed)
        [row] = [row for row in variants.validity(of)["rows"] if row["measure"] == label]
        assert row["alike"] == row["pairs"] > 20 and row["otherwise"] == 0
        steps = {str(n): {"repeated": interval(x, 0.002)} for n, x in ((1, first), (9, last))}
        of.runs[0].results["fluency-steps"] = of.runs[0].results["fluency"] | {"checkpoints": steps}
        ends, _ = variants.along(of.runs[0], "repeated")
        assert [one["mean"] for one in ends] == pytest.approx([0.02, 0.005])
        assert all(0 < one["low"] < one["mean"] < one["high"] for one in ends)


def test_a_distance_from_real_stories_may_be_none():
    found = fluent(run(SIZE, 1, {}), 0.1, 0.025).results["fluency"]
    one = variants.distance(found["sets"][variants.TEMPERATURE]["repeated"], found, "repeated")
    assert one["low"] == 0 and one["high"] == pytest.approx(0.015)  # 0.015 to 0.035, around 0.02


def test_pairs_whose_losses_do_not_differ_do_not_count():
    of = study(lambda size: PLAIN, lambda size: 3.0)
    assert {row["pairs"] for row in variants.validity(of)["rows"]} == {0}


def test_rise():
    up = [interval(0.5), interval(0.6), interval(0.55), interval(0.9)]
    found, down = variants.rise(up, [], 1), variants.rise(up, [], -1)
    assert found["gain"]["mean"] == pytest.approx(0.4) and found["better"] == 2
    assert down["gain"]["mean"] == pytest.approx(-0.4) and down["better"] == 1
    assert found["steps"] == down["steps"] == 3
    assert variants.rise(up[:1], [], 1)["gain"] is None


def test_the_rise_of_the_same_questions_is_paired():
    """One more of a hundred is right, and none less: a change that independent ones would hide."""
    first = np.arange(100) % 2.0
    ends, last = [interval(0.5, 0.1), interval(0.52, 0.1)], np.where(np.arange(100) < 4, 1, first)
    paired = variants.rise(ends, [first, last], 1)["gain"]
    assert paired["mean"] == pytest.approx(0.02)
    assert paired["low"] > -0.01 > variants.rise(ends, [], 1)["gain"]["low"]
    assert variants.rise(ends, [first, last], -1)["gain"]["mean"] == pytest.approx(-0.02)


def test_along_training_comes_from_the_checkpoints_in_their_order():
    one = run(SIZE, 1, PLAIN, along=[(n, {"plot": 0.5 + n / 100}) for n in (1, 2, 16)])
    intervals, answers = variants.along(one, "plot")
    assert [x["mean"] for x in intervals] == [0.51, 0.52, 0.66] and len(answers) == 3
    assert variants.along(one, "facts") == ([], [])
    steps = {str(n): {"relative": interval(n)} for n in (16, 2, 128)}
    one.results["fluency-steps"] = {"checkpoints": steps}
    assert [x["mean"] for x in variants.along(one, "relative")[0]] == [2, 16, 128]


def test_fractions_end_at_1():
    """Also what other seeds might have made of them; nats may be any number."""
    runs = [fluent(run(SIZE, seed, {}), 1.5) for seed in (1, 2)]
    for one, ended in zip(runs, (0.99, 0.95), strict=True):
        one.results["fluency"]["sets"][variants.TEMPERATURE]["ended"] = interval(ended)
    [draws] = variants.fluency_draws(runs, "ended").values()
    assert draws[0] == pytest.approx(0.97) and draws.max() == 1
    assert variants.fluency_draws(runs, "relative")[SIZE][0] == 1.5
