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


def evaluate_claims(study):
    """[Claim] of a results.Study, in the paper's order."""
    table = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    scores, claims = Scores(study.grid), []
    for row in table["claim"]:
        test, arguments = globals()[row.pop("test")], row.pop("arguments", ())
        value, note = test(study, scores, *arguments)
        claims.append(Claim(**row, value=value, note=note or NOT_MEASURED * (value is None)))
    return claims


# ---- grammar, consistency, plot. Each test returns (interval or None, note). -------------------


def grammar_plateaus(study, scores):
    order = np.argsort([size.parameters for size in scores.sizes])
    larger = np.sort(order[len(order) // 2 :])
    grammar, *others = (scores.slope(kind, larger) for kind in ("grammar", "consistency", "plot"))
    return bootstrap.interval((others[0] + others[1]) / 2 - grammar, len(larger)), scores.seed_note


def grammar_is_first(study, scores):
    gaps, late = [], 0
    for run in study.grid:
        rows = (run.results.get("skills") or {}).get("checkpoints") or []
        points = [halfway(rows, kind) for kind in ("grammar", "consistency")]
        if points != [None, None]:  # a kind that is not halfway yet counts as reached at the end
            late += None in points
            end = np.log2(rows[-1]["tokens"])
            first, second = (end if x is None else x for x in points)
            gaps.append(second - first)
    if len(gaps) < MIN_SIZES:
        return None, ""
    [draws] = bootstrap.resample_seeds([np.array(gaps)], np.random.default_rng(0))
    note = f"{late} of {len(gaps)} runs ended before one of the two: the end counts for it"
    return bootstrap.interval(draws, len(gaps)), note * (late > 0)


def halfway(rows, kind, half=(1 + CHANCE) / 2):
    """log2 of the tokens at which the accuracy of a kind first reaches `half`; None if never."""
    points = [(np.log2(row["tokens"]), row["skills"][kind]["accuracy"]["mean"])
              for row in rows if row["tokens"] and kind in row["skills"]]  # fmt: skip
    i = next((i for i, (_, accuracy) in enumerate(points) if accuracy >= half), None)
    if not i:
        return None if i is None else points[0][0]
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


def instructed_runs(study):
    """[(Size, {"model", "shuffled": intervals})]: how many instructions are followed completely."""
    runs = [run for run in study.of_kind("instruct") if run.results.get("instruct")]
    return [(run.size, run.results["instruct"]["checks"]["joint"]) for run in runs]


def two_layers(study, scores):
    gains, runs = {}, instructed_runs(study)
    for size, row in runs:
        if row.get("shuffled") and size.layers in (1, 2):
            gain = row["model"]["mean"] - row["shuffled"]["mean"]
            errors = [bootstrap.standard_error(row[side]) for side in ("model", "shuffled")]
            gains.setdefault(size.width, {})[size.layers] = gain, np.hypot(*errors)
    pairs = [(both[2], both[1]) for both in gains.values() if len(both) == 2]
    if not pairs:
        return None, "" if runs else "no model was trained on instructions"
    mean = np.mean([two - one for (two, _), (one, _) in pairs])
    error = np.sqrt(sum(two**2 + one**2 for (_, two), (_, one) in pairs)) / len(pairs)
    return bootstrap.normal_interval(mean, error, len(pairs)), ONE_SEED


def instructions_follow_depth(study, scores):
    runs = instructed_runs(study)
    x = np.array([[1, np.log2(size.width), np.log2(size.layers)] for size, _ in runs])
    if len(runs) < MIN_SIZES or np.linalg.matrix_rank(x) < 3:
        return None, f"it takes {MIN_SIZES} models trained on instructions that differ in both"
    draws = bootstrap.normal_draws([row["model"] for _, row in runs], np.random.default_rng(0))
    _, width, layers = np.linalg.lstsq(x, draws, rcond=None)[0]
    return bootstrap.interval(layers - width, len(runs)), ONE_SEED


# ---- depth and width ---------------------------------------------------------------------------


def gains_more(study, scores, kind, more, less):
    """A skill gains more from twice the `more` than from twice the `less`: width and layers."""
    slopes, notes = scores.slopes(kind), [scores.seed_note]
    value = bootstrap.interval(slopes[more] - slopes[less], len(scores.sizes))
    if value and scores.counts[kind] < 30:
        notes.insert(0, f"only {scores.counts[kind]} prompts")
    return value, "; ".join(filter(None, notes))


def shallow_models(study, scores):
    gap = scores.slopes("consistency")["layers"] - scores.slopes("grammar")["layers"]
    return bootstrap.interval(gap, len(scores.sizes)), scores.seed_note


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
    epoch = study.plain_data.get("splits", {}).get("train", {}).get("tokens")
    runs = [run for run in study.grid if run.curve and epoch and run.tokens >= 0.99 * epoch]
    if not runs:
        longest = max((run.tokens for run in study.grid), default=0)
        return None, f"the longest run is {longest / epoch:.2f} epochs" if epoch else ""
    values = []
    for run in runs:
        first = np.interp(epoch / 100, *np.array(run.train_curve).T)
        middle, last = np.interp([epoch / 2, epoch], *np.array(run.curve).T)
        values.append(0.1 - (middle - last) / max(first - last, 1e-9))
    draws = bootstrap.resample_seeds([np.array(values)], np.random.default_rng(0))
    note = "a learning rate that falls to its end makes the end steeper"
    return draws and bootstrap.interval(draws[0], len(runs)), note


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
