"""The paper's claims as numbers with intervals, each with a verdict.

    for claim in evaluate_claims(study):      # a results.Study
        print(claim.text, claim.verdict)  # "Grammar is learned before consistency", "not decided"

Each claim is a difference or a slope that is above 0 if the claim holds. If all of its 95 %
interval is above 0, it is seen at this scale; if all is below, not; else it is not decided.
scores.py describes the resamples; a claim that rests on one seed per model says so in its note.
claims.toml lists the claims, each with the function of this file that tests it.
"""

import itertools
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval import bootstrap
from eval.reporting.scores import CHANCE, MIN_SIZES, ONE_SEED, Scores, relative_answers

VERDICTS = SEEN, NOT_SEEN, UNDECIDED = "seen at this scale", "not seen at this scale", "not decided"
NOT_MEASURED = "not all of the models to compare have been measured"
LEARNED = 0.6  # accuracy from which a skill counts as learned
LARGE_GPT2 = ("gpt2-large", "gpt2-xl")  # the baselines that the paper names


@dataclass
class Claim:
    """A claim and what was measured of it."""

    text: str
    source: str  # who claims it
    measure: str  # what was compared
    value: dict | None  # an interval, None where it could not be measured
    note: str = ""  # why not, or a caveat

    @property
    def verdict(self):
        if self.value is None or not self.value["low"] * self.value["high"] > 0:
            return UNDECIDED
        return SEEN if self.value["low"] > 0 else NOT_SEEN


def evaluate_claims(study, vary=("questions", "seeds")):
    """[Claim] of a results.Study, in the paper's order. vary: what is resampled for intervals."""
    table = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    scores, claims = Scores(study.grid, vary=vary), []
    for row in table["claim"]:
        test, arguments = globals()[row.pop("test")], row.pop("arguments", ())
        value, note = test(study, scores, *arguments)
        claims.append(Claim(**row, value=value, note=note or NOT_MEASURED * (value is None)))
    return claims


# ---- grammar, consistency, plot. Each test returns (interval or None, note). -------------------


def grammar_plateaus(study, scores):
    order = np.argsort([size.parameters for size in scores.sizes])
    larger, kinds = np.sort(order[len(order) // 2 :]), ("grammar", "consistency", "plot")
    slopes = [(scores.slope(kind, larger), scores.slope(kind, np.sort(order))) for kind in kinds]
    if flat := [kind for kind, pair in zip(kinds, slopes, strict=True) if not rises(pair[1])]:
        return None, f"{' and '.join(flat)} cannot be told to grow with the parameters"
    grammar, *others = (among_larger / among_all for among_larger, among_all in slopes)
    return bootstrap.interval(np.mean(others, axis=0) - grammar, len(larger)), scores.seed_note


def rises(draws):
    """Whether an estimate is above 0 with all of its interval."""
    value = bootstrap.interval(draws, 1)
    return value is not None and value["low"] > 0


def grammar_is_first(study, scores):
    gaps = []
    for run in study.grid:
        rows = (run.results.get("skills") or {}).get("checkpoints") or []
        points = [halfway(rows, kind) for kind in ("grammar", "consistency")]
        if None not in points:
            gaps.append(points[1] - points[0])
    if len(gaps) < MIN_SIZES:
        return None, f"{len(gaps)} of the runs have learned both" * bool(gaps)
    [draws] = bootstrap.resample_seeds([np.array(gaps)], np.random.default_rng(0))
    note = f"one run each of {len(gaps)} sizes: the interval is over sizes, not questions or seeds"
    return bootstrap.interval(draws, len(gaps)), note


def halfway(rows, kind):
    """log2 of the tokens at which the accuracy of a kind is first halfway from chance to its last
    value; None if that is no better than LEARNED."""
    points = [(np.log2(row["tokens"]), row["skills"][kind]["accuracy"]["mean"])
              for row in rows if row["tokens"] and kind in row["skills"]]  # fmt: skip
    if not points or points[-1][1] < LEARNED:
        return None
    half = (CHANCE + points[-1][1]) / 2
    i = next(i for i, (_, accuracy) in enumerate(points) if accuracy >= half)
    if i == 0:
        return points[0][0]
    (before, low), (after, high) = points[i - 1 : i + 1]
    return before + (half - low) / (high - low) * (after - before)


def consistency_threshold(study, scores):
    draws, gains = scores.by_size("consistency"), {}
    for one, two in itertools.permutations(draws, 2):
        # The same depth, and either as many heads or heads of the same size.
        heads = two.heads in (one.heads, 2 * one.heads)
        if two.width == 2 * one.width and two.layers == one.layers and heads:
            gains.setdefault(one.width, []).append(draws[two] - draws[one])
    means = {width: np.mean(x, axis=0) for width, x in gains.items()}
    if 64 not in means or len(means) < 2:
        return None, scores.seed_note
    others = np.max([gain for width, gain in means.items() if width != 64], axis=0)
    return bootstrap.interval(means[64] - others, len(means)), scores.seed_note


# ---- instructions ------------------------------------------------------------------------------


def instructed(study, vary):
    """{size: (1 + ROUNDS,)} of how much better than chance models find a true story's own
    instruction (eval.instruct's "own"), 0 chance and 1 all right; and a note."""
    runs = [run for run in study.of_kind("instruct") if (run.results.get("instruct") or {})
            .get("by_instruction", {}).get("own")]  # fmt: skip
    answers = {}
    for run in runs:
        own = run.results["instruct"]["by_instruction"]["own"]["model"]
        answers.setdefault(run.size, []).append((np.array(own, float) - CHANCE) / (1 - CHANCE))
    if not answers:
        return {}, "no model was trained on instructions"
    groups = [np.array(rows) for rows in answers.values()]
    draws = bootstrap.resample_models(groups, np.random.default_rng(0), vary)
    note = ONE_SEED * any(len(rows) == 1 for rows in groups)
    return dict(zip(answers, draws, strict=True)), note


def two_layers(study, scores):
    draws, note = instructed(study, scores.vary)
    gains = [draws[two] - draws[one] for one, two in itertools.permutations(draws, 2)
             if (one.width, one.layers, two.layers) == (two.width, 1, 2)]  # fmt: skip
    if not gains:
        return None, note * (not draws)
    return bootstrap.interval(np.mean(gains, axis=0), len(gains)), note


def instructions_follow_depth(study, scores):
    draws, note = instructed(study, scores.vary)
    x = np.array([[1, np.log2(size.width), np.log2(size.layers)] for size in draws])
    if len(draws) < MIN_SIZES or np.linalg.matrix_rank(x) < 3:
        return None, f"it takes {MIN_SIZES} models trained on instructions that differ in both"
    _, width, layers = np.linalg.lstsq(x, np.array(list(draws.values())), rcond=None)[0]
    return bootstrap.interval(layers - width, len(draws)), note


# ---- depth and width ---------------------------------------------------------------------------


def gains_more(study, scores, kind, more, less):
    """A skill gains more from twice the `more` than from twice the `less`: width and layers."""
    slopes, notes = scores.slopes(kind), [scores.seed_note]
    value = bootstrap.interval(slopes[more] - slopes[less], len(scores.sizes))
    if value and scores.counts[kind] < 30:
        notes.insert(0, f"only {scores.counts[kind]} prompts")
    return value, "; ".join(filter(None, notes))


def shallow_models(study, scores):
    shares = []
    for kind in ("consistency", "grammar"):
        slopes = scores.slopes(kind)
        if not rises(slopes["width"] + slopes["layers"]):
            return None, f"{kind} cannot be told to grow with width and depth"
        shares.append(slopes["layers"] / (slopes["width"] + slopes["layers"]))
    return bootstrap.interval(shares[0] - shares[1], len(scores.sizes)), scores.seed_note


def creativity_is_last(study, scores):
    if not scores.judge:
        return None, "only a judge can grade creativity, and there was none"
    largest = int(np.argmax([size.parameters for size in scores.sizes]))
    others = [scores.draws[kind][largest] for kind in ("grammar", "consistency")]
    gap = np.mean(others, axis=0) - scores.draws["creativity"][largest]
    return bootstrap.interval(gap, 1), ONE_SEED


# ---- baselines, the loss, heads, neurons -------------------------------------------------------


def small_models_win(study, scores):
    baselines = [run for run in study.of_kind("baseline")
                 if run.name in LARGE_GPT2 and relative_answers(run)]  # fmt: skip
    grid = [run for run in study.grid if relative_answers(run)]
    if not baselines or not grid:
        return None, "neither was evaluated (setting baselines)"
    ours = max(grid, key=lambda run: run.parameters)
    hashes = {run.results["skills"]["questions_sha256"] for run in (ours, *baselines)}
    if len(hashes) > 1:
        return None, "they were evaluated on other questions"
    gaps, answers = [], relative_answers(ours)
    for run in baselines:
        kinds = [kind for kind in ("grammar", "consistency", "plot") if kind in answers]
        sides = [answers[kind] - relative_answers(run)[kind] for kind in kinds]
        draws = [bootstrap.resample_models([x[None]], np.random.default_rng(0))[0] for x in sides]
        gaps.append(np.mean(draws, axis=0))
    return bootstrap.interval(min(gaps, key=lambda gap: gap[0]), len(baselines)), ONE_SEED


def loss_flattens(study, scores):
    values, longest = [], 0
    for run in [run for run in study.runs if run.curve and run.kind in ("", "once")]:
        epochs = study.epochs(run)
        longest = max(longest, epochs or 0)
        if not epochs or epochs < 0.99:
            continue
        epoch = run.tokens / epochs
        first = np.interp(epoch / 100, *np.array(run.train_curve).T)
        middle, last = np.interp([epoch / 2, epoch], *np.array(run.curve).T)
        values.append(0.1 - (middle - last) / max(first - last, 1e-9))
    if not values:
        return None, f"the longest run is {longest:.2f} epochs" if longest else ""
    draws = bootstrap.resample_seeds([np.array(values)], np.random.default_rng(0))
    note = "a learning rate that falls to its end makes the end steeper"
    return draws and bootstrap.interval(draws[0], len(values)), note


def more_heads_help(study, scores):
    losses = {}
    for run in study.of_kind(""):
        if run.loss is not None:
            losses.setdefault(run.size[:2], {}).setdefault(run.size.heads, []).append(run.loss)
    groups = [np.array(by_heads[n]) for by_heads in losses.values() if len(by_heads) > 1
              for n in (min(by_heads), max(by_heads))]  # fmt: skip
    if not groups:
        return None, "no two models differ only in their heads"
    draws = bootstrap.resample_seeds(groups, np.random.default_rng(0))
    if not draws:
        return None, "one seed per model cannot tell chance from the effect of heads"
    gaps = [few - many for few, many in zip(draws[::2], draws[1::2], strict=True)]
    return bootstrap.interval(np.mean(gaps, axis=0), len(gaps)), ""


def neuron_coherence(runs):
    """The neuron results of the first run that eval.interpret has evaluated, or None."""
    results = [run.results["interpret"]["neurons"] for run in runs if run.results.get("interpret")]
    return results[0] if results else None


def neurons_are_readable(study, scores):
    ours = neuron_coherence(study.grid)
    if not ours:
        return None, "no model was interpreted"
    random = ours["mean_coherence_random_weights"]
    return bootstrap.independent_difference(ours["mean_coherence"], random), ONE_SEED


def gpt2_neurons_are_less_readable(study, scores):
    ours = neuron_coherence(study.grid)
    gpt2 = neuron_coherence([run for run in study.of_kind("baseline") if "gpt2" in run.name])
    if not ours or not gpt2:
        return None, "no GPT-2 was interpreted"
    gap = bootstrap.independent_difference(ours["mean_coherence"], gpt2["mean_coherence"])
    return gap, "each with its own tokens"
