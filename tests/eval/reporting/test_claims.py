"""The claims' verdicts on studies whose truth is planted."""

import re

import numpy as np
import pytest
from planted_study import GRID, KINDS, answers, instructed, interval, run, study

from eval.reporting.claims import (
    MISSING,
    NOT_MEASURED,
    OPPOSITE,
    SEEN,
    UNDECIDED,
    Claim,
    evaluate_claims,
    grammar_is_first,
    halfway,
    learned_at,
)  # fmt: skip
from eval.reporting.scores import ONE_SEED, Scores
from eval.reporting.study_jobs import Size


@pytest.fixture(scope="module", autouse=True)
def fewer_rounds():
    """Enough for verdicts that are planted well apart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.bootstrap.ROUNDS", 300)
        yield


def verdict(text, study_):
    [claim] = [claim for claim in evaluate_claims(study_) if claim.text.startswith(text)]
    return claim.verdict


def accuracies(size, **formulas):
    """{kind: accuracy}: 0.75 but for formulas of (log2 width / 32, log2 layers)."""
    at = np.log2(size.width / 32), np.log2(size.layers)
    return {kind: formulas[kind](*at) if kind in formulas else 0.75 for kind in KINDS}


def of(**formulas):
    return study(lambda size: accuracies(size, **formulas))


def steep(w, d):
    return 0.55 + 0.09 * w + 0.05 * d


def wide(w, d):
    return 0.6 + 0.1 * w


def early(w, d):
    """Rises with the small models, and no more with the large ones."""
    return 0.55 + 0.3 * min(1, 0.6 * w + 0.4 * d)


@pytest.mark.parametrize("text, holds, fails", [
    ("Grammar plateaus", {"grammar": early, "consistency": steep, "plot": steep},
     {"grammar": steep, "consistency": early, "plot": early}),
    ("Consistency appears", {"consistency": lambda w, d: 0.6 + 0.3 * (w > 1) + 0.02 * w},
     {"consistency": lambda w, d: 0.6 + 0.3 * (w > 0)}),
    ("Plot follows width", {"plot": lambda w, d: 0.6 + 0.1 * w},
     {"plot": lambda w, d: 0.6 + 0.12 * d}),
    ("Facts follow width", {"facts": lambda w, d: 0.6 + 0.1 * w},
     {"facts": lambda w, d: 0.6 + 0.12 * d}),
    ("Context follows depth", {"context": lambda w, d: 0.6 + 0.12 * d},
     {"context": lambda w, d: 0.6 + 0.1 * w}),
    ("Shallow models", {"consistency": lambda w, d: 0.6 + 0.12 * d, "grammar": wide},
     {"grammar": lambda w, d: 0.6 + 0.12 * d, "consistency": wide}),
    ("Context leans", {"context": lambda w, d: 0.6 + 0.12 * d, "facts": wide},
     {"facts": lambda w, d: 0.6 + 0.12 * d, "context": wide}),
])  # fmt: skip
def test_claims_about_scores(text, holds, fails):
    """Planted true, planted the other way round, and with nothing that differs."""
    assert verdict(text, of(**holds)) == SEEN
    assert verdict(text, of(**fails)) == OPPOSITE
    assert verdict(text, of()) == UNDECIDED


def test_of_width_and_depth_the_other_way_of_counting_is_noted():
    planted = of(facts=wide, context=lambda w, d: 0.6 + 0.12 * d)
    for text in ("Facts follow", "Context follows"):
        [claim] = [claim for claim in evaluate_claims(planted) if claim.text.startswith(text)]
        other = re.fullmatch(r"with the embeddings' parameters: (\S+) \((\S+) to \S+\)", claim.note)
        assert float(other[1]) > float(other[2]) > 0 < claim.value["low"]


def test_skills_of_other_ranges_are_compared_by_shares():
    """Grammar gains half as much everywhere: it plateaus no earlier, and needs no less depth."""

    def half(w, d):
        return 0.55 + (steep(w, d) - 0.55) / 2

    planted = of(grammar=half, consistency=steep, plot=steep)
    for text in ("Grammar plateaus", "Shallow models"):
        [claim] = [claim for claim in evaluate_claims(planted) if claim.text.startswith(text)]
        assert claim.verdict == UNDECIDED and abs(claim.value["mean"]) < 0.15


def test_a_skill_that_does_not_grow_has_no_plateau():
    for text in ("Grammar plateaus", "Shallow models"):
        [claim] = [c for c in evaluate_claims(of(consistency=steep, plot=steep))
                   if c.text.startswith(text)]  # fmt: skip
        assert claim.value is None and "grammar cannot be told to grow" in claim.note


def test_scores_are_relative_and_few_questions_leave_much_open():
    """0.75 is halfway from chance to all right; a quarter of the questions, twice as wide."""
    few = of()
    for one in few.runs:
        answers = one.results["skills"]["correct"]
        answers |= {"plot": answers["plot"][::4]}
    scores = Scores(few.grid)
    assert scores.draws["grammar"][:, 0] == pytest.approx(0.5, abs=0.03)
    spread = [np.ptp(np.percentile(scores.draws[kind][0, 1:], (2.5, 97.5)))
              for kind in ("plot", "grammar")]  # fmt: skip
    assert 1.5 < spread[0] / spread[1] < 2.6 and spread[1] > 0.1


def along(first, second, height=0.5):
    """Checkpoints at which grammar rises from chance to all right, and consistency by `height`."""

    def at(n, middle, top):
        return 0.5 + top / (1 + (middle / n) ** 2)

    return [(n, {"grammar": at(n, first, 0.5), "consistency": at(n, second, height)})
            for n in 2000 * 2 ** np.arange(11)]  # fmt: skip


@pytest.mark.parametrize("first, second, expected", [
    (2e4, 2e5, SEEN), (2e5, 2e4, OPPOSITE), (5e4, 5e4, UNDECIDED),
])  # fmt: skip
def test_what_is_learned_first(first, second, expected):
    planted = study(lambda size: accuracies(size), along=along(first, second))
    assert verdict("Grammar is learned before", planted) == expected
    if first != second:  # else rounding would decide
        lower = study(lambda size: accuracies(size), along=along(first, second, height=0.25))
        assert verdict("Grammar is learned before", lower) == expected  # of harder questions


def test_sizes_and_questions_both_widen_what_is_learned_first():
    planted = study(lambda size: accuracies(size))
    for one in planted.runs:
        one.results["skills"]["checkpoints"] = study(
            lambda size: accuracies(size), along=along(2e4, 2e4 * one.size.width)
        ).runs[0].results["skills"]["checkpoints"]  # fmt: skip
    both, questions, sizes = (
        grammar_is_first(planted, Scores(planted.grid, vary=vary))[0]
        for vary in (("questions", "seeds"), ("questions",), ("seeds",))
    )
    widths = [one["high"] - one["low"] for one in (both, questions, sizes)]
    assert widths[0] > max(widths[1:]) and min(widths[1:]) > 0.1
    means = [one["mean"] for one in (both, questions, sizes)]
    assert means == pytest.approx([means[0]] * 3, rel=0.05)  # each less its own bias


def test_halfway_by_hand():
    """Between 1,000 tokens at 0.6 and 4,000 at 0.7 lies 0.65, halfway to 0.8, in the middle; and of
    what starts above it, the first checkpoint."""
    accuracies = np.array([[0.6, 0.9], [0.7, 0.7], [0.8, 0.8]])
    found = halfway(np.log2([1000, 4000, 16000]), accuracies)
    assert found == pytest.approx(np.log2([2000, 1000]))


def test_what_is_not_learned_or_not_measured_has_no_halfway():
    rows = [{"tokens": n, "correct": {"plot": answers(x, 0)}}
            for n, x in [(0, 0.5), (1000, 0.6), (4000, 0.7), (16000, 0.8)]]  # fmt: skip
    one = run(GRID[0], 1, {"plot": 0.8})
    assert learned_at(one, "plot", ("questions",)) is None  # no checkpoints
    one.results["skills"]["checkpoints"] = rows
    draws = learned_at(one, "plot", ("questions",))
    assert 1000 < 2 ** draws[0] < 4000 and np.std(draws) > 0
    assert np.std(learned_at(one, "plot", ("seeds",))) == 0
    assert learned_at(one, "grammar", ("questions",)) is None
    rows[-1]["correct"]["plot"] = answers(0.55, 0)
    assert learned_at(one, "plot", ("questions",)) is None


def test_runs_that_do_not_learn_one_of_the_two_do_not_count():
    rows = [(n, {"grammar": one["grammar"], "consistency": 0.5}) for n, one in along(2e4, 2e4)]
    assert (
        verdict("Grammar is learned before", study(lambda size: accuracies(size), along=rows))
        == NOT_MEASURED
    )
    few = study(lambda size: accuracies(size), along=along(2e4, 2e5))
    few.runs = few.runs[:3]
    [claim] = [c for c in evaluate_claims(few) if c.text.startswith("Grammar is learned before")]
    assert claim.value is None and claim.note == "3 of the runs have learned both"


def test_other_heads_are_no_other_width():
    """A wider model with another size and number of heads is not compared with a narrower one."""
    planted = of(consistency=lambda w, d: 0.6 + 0.3 * (w > 1) + 0.02 * w)
    for one in planted.runs:
        if one.size.width == 128:
            one.size = one.size._replace(heads=32)
    planted.settings["models"] = ", ".join(dict.fromkeys(str(x.size) for x in planted.runs))
    assert len(planted.grid) == len(planted.runs)
    assert verdict("Consistency appears", planted) == NOT_MEASURED


def test_instructions_at_the_same_width():
    """A wider model that follows them says nothing about a narrower one's layers."""
    one, two = Size(64, 1, 4), Size(128, 2, 4)
    more = instructed(lambda size: 0.5 + 0.1 * size.layers, [one, two])
    planted = study(lambda size: accuracies(size), more=more)
    assert verdict("Two layers", planted) == NOT_MEASURED


@pytest.mark.parametrize("one, two, expected", [(0.6, 0.8, SEEN), (0.8, 0.6, OPPOSITE),
                                                (0.7, 0.7, UNDECIDED)])  # fmt: skip
def test_two_layers(one, two, expected):
    more = instructed(lambda size: one if size.layers == 1 else two,
                      [Size(64, 1, 4), Size(64, 2, 4)])  # fmt: skip
    assert verdict("Two layers", study(lambda size: accuracies(size), more=more)) == expected


@pytest.mark.parametrize("width, depth, expected", [(0.02, 0.1, SEEN), (0.1, 0.02, OPPOSITE),
                                                    (0.1, 0.05, UNDECIDED)])  # fmt: skip
def test_instructions_follow_depth(width, depth, expected):
    more = instructed(
        lambda size: 0.55 + width * np.log2(size.width / 32) + depth * np.log2(size.layers), GRID
    )
    half = {"plot": lambda w, d: 0.55 + 0.06 * w + 0.03 * d}  # by layers
    planted = study(lambda size: accuracies(size, **half), more=more)
    assert verdict("Instructions follow", planted) == expected
    assert verdict("Instructions lean", planted) == expected
    few = study(lambda size: accuracies(size), more=more[:4])
    assert verdict("Instructions follow", few) == NOT_MEASURED


def test_shares_are_compared_among_the_same_sizes():
    """Where both gain the same from layers, plot's gain at other sizes is no difference."""

    def gain(size, more=0.0):
        return 0.55 + 0.08 * np.log2(size.width / 32) + 0.06 * np.log2(size.layers) + more

    some = [size for size in GRID if size.width in (64, 128)][:5]
    planted = study(lambda size: accuracies(size) | {"plot": gain(size, 0.1 * (size not in some))},
                    more=instructed(gain, some))  # fmt: skip
    [claim] = [one for one in evaluate_claims(planted) if one.text.startswith("Instructions lean")]
    assert abs(claim.value["mean"]) < 0.03 and claim.value["n"] == len(some)


def test_one_seed_is_not_why_a_claim_is_not_measured():
    planted = of()
    planted.runs = [one for one in planted.runs if one.seed == 1][:2]
    notes = {one.text: one.note for one in evaluate_claims(planted)}
    for text in (
        "Plot follows width",
        "Context follows depth",
        "Context leans on depth more than facts do",
    ):
        assert notes[text] == MISSING


@pytest.mark.parametrize("gain, expected", [(0.2, SEEN), (-0.2, OPPOSITE), (0.0, UNDECIDED)])
def test_heads(gain, expected):
    more = [run(Size(64, 2, 8), seed, {}, loss=3.0 - gain + 0.01 * seed) for seed in (1, 2, 3)]
    few = [run(Size(64, 2, 2), seed, {}, loss=3.0 + 0.01 * seed) for seed in (1, 2, 3)]
    assert verdict("More heads", study(lambda size: accuracies(size), more=more + few)) == expected


def test_one_seed_cannot_tell_chance_from_heads():
    more = [run(Size(64, 2, n), 1, {}, loss=3.0 + n / 100) for n in (2, 8)]
    assert (
        verdict("More heads", study(lambda size: accuracies(size), seeds=1, more=more))
        == NOT_MEASURED
    )


def test_what_another_seed_would_change_widens_an_interval():
    """Seeds that differ a lot leave open what those that agree decide."""

    def planted(spread):
        planted_ = of(plot=lambda w, d: 0.6 + 0.02 * w)
        for one in planted_.runs:
            answers = one.results["skills"]["correct"]["plot"]
            shift = int(spread * (one.seed - 2) * (-1) ** one.size.layers)
            moved = answers[shift:] + [1.0] * shift
            if shift <= 0:
                moved = [0.0] * -shift + answers[: shift or None]
            one.results["skills"]["correct"]["plot"] = moved
        [claim] = [c for c in evaluate_claims(planted_) if c.text == "Plot follows width"]
        return claim.value["high"] - claim.value["low"]

    assert planted(40) > 1.5 * planted(0)


@pytest.mark.parametrize("tokens, last, expected", [
    (6_000_000, 3.19, SEEN), (6_000_000, 2.2, OPPOSITE), (2_000_000, 3.19, NOT_MEASURED),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["", "once"])
def test_the_loss_flattens(tokens, last, expected, kind):
    """In runs of an epoch or more, of the grid or of the stories that are seen once."""
    planted = study(lambda size: accuracies(size), tokens=tokens)
    for i, one in enumerate(planted.runs):
        one.curve = [(tokens / 2, 3.2), (tokens, last + 0.001 * i)]
        one.train_curve = [(0.01e6, 9.0), (0.06e6, 5.0), (tokens, 3.0)]
        one.kind = kind
    assert verdict("The loss flattens", planted) == expected


def test_one_run_of_an_epoch_cannot_say_that_the_loss_flattens():
    planted = study(lambda size: accuracies(size), tokens=2_000_000)
    planted.runs[0].tokens = 6_000_000
    [claim] = [c for c in evaluate_claims(planted) if c.text.startswith("The loss flattens")]
    assert claim.verdict == NOT_MEASURED and claim.note == "one run has no spread of seeds"


@pytest.mark.parametrize("theirs, expected", [(0.6, SEEN), (0.95, OPPOSITE), (0.75, UNDECIDED)])
def test_baselines(theirs, expected):
    baseline = run(Size(1, 1, 1), 1, dict.fromkeys(KINDS, theirs), kind="baseline")
    baseline.name, baseline.size = "gpt2-xl", None
    planted = study(lambda size: accuracies(size), more=[baseline])
    assert verdict("Small models beat", planted) == expected
    baseline.name = "gpt2"
    assert verdict("Small models beat", planted) == NOT_MEASURED  # neither large nor XL
    baseline.name = "gpt2-xl"
    baseline.results["skills"]["questions_sha256"] = "other"
    assert verdict("Small models beat", planted) == NOT_MEASURED


def test_neurons():
    planted = study(lambda size: accuracies(size))
    facts = {"mean_coherence": interval(0.5), "mean_coherence_random_weights": interval(0.3),
             "readable": interval(0.9), "readable_random_weights": interval(0.8)}  # fmt: skip
    planted.runs[0].results["interpret"] = {"neurons": facts}
    assert verdict("Neurons are more coherent", planted) == SEEN
    facts["mean_coherence_random_weights"] = interval(0.5)
    assert verdict("Neurons are more coherent", planted) == UNDECIDED
    assert verdict("Neurons of GPT-2", planted) == NOT_MEASURED


def graded(creative, plain, seed):
    """Lines of judge-paper.jsonl: the verdicts on 60 stories; one reply cannot be read."""
    rng = np.random.default_rng(seed)
    lines = [
        {"number": [i // 3, i % 3],
         "verdict": {"creativity": creative + x, "grammar": plain + x, "consistency": plain + x,
                     "plot": plain + x}} for i, x in enumerate(rng.normal(0, 0.3, 60))
    ]  # fmt: skip
    return [*lines, {"number": [0, 3], "verdict": None}]


@pytest.mark.parametrize("creative, plain, expected", [(3.5, 8.0, SEEN), (8.0, 4.5, OPPOSITE)])
def test_creativity_takes_a_judge(creative, plain, expected):
    planted = study(lambda size: accuracies(size))
    assert verdict("Creativity", planted) == NOT_MEASURED
    for one in planted.runs:
        if one.seed == 1:
            one.results["judge-paper"] = {"judge": {"model": "a teacher"}}
            one.results["grades"] = graded(creative, plain, one.size.width)
    assert verdict("Creativity", planted) == expected


def test_a_judge_stands_in_for_the_scores():
    """Where it has graded every size: its plot rises with width, the accuracy does not."""
    planted = of(plot=lambda w, d: 0.6 + 0.12 * d)
    for one in planted.runs:
        if one.seed == 1:
            grade = 4 + np.log2(one.size.width / 32)
            one.results["judge-paper"] = {"judge": {"model": "a teacher"}}
            one.results["grades"] = graded(grade, grade, 0)
    assert verdict("Plot follows width", planted) == SEEN
    planted.runs[0].results.pop("judge-paper")
    assert verdict("Plot follows width", planted) == OPPOSITE


def test_what_only_one_seed_was_graded_for_says_so():
    """A judge grades the first seed of each size; facts have all of them."""
    planted = of(plot=lambda w, d: 0.6 + 0.12 * d)
    for one in planted.runs:
        if one.seed == 1:
            one.results["judge-paper"] = {"judge": {"model": "a teacher"}}
            one.results["grades"] = graded(5, 5, one.size.width)
    notes = {claim.text: claim.note for claim in evaluate_claims(planted)}
    for text in ("Grammar plateaus first", "Plot follows width", "Consistency follows depth"):
        assert ONE_SEED in notes[text] or "grow with" in notes[text], text
    assert ONE_SEED in notes["Plot follows width"] and ONE_SEED not in notes["Facts follow width"]


def test_verdicts_by_hand():
    for value, expected in ((interval(0.5), SEEN), (interval(-0.5), OPPOSITE), (None, NOT_MEASURED),
                            (interval(0.005), UNDECIDED),
                            (interval(0.0, 0.0), UNDECIDED)):  # fmt: skip
        assert Claim("", "", "", value).verdict == expected


def test_with_nothing_measured_nothing_is_claimed():
    empty = study(lambda size: {}, seeds=0)
    assert all(
        claim.verdict == NOT_MEASURED and claim.value is None for claim in evaluate_claims(empty)
    )
