"""The paper's claims as numbers with intervals, each with a verdict.

    for claim in evaluate_claims(study):      # a results.Study
        print(claim.text, claim.verdict)  # "Grammar is learned before consistency", "not decided"

Each claim is a difference or a slope that is above 0 if the claim holds. If all of its 95 %
interval is above 0, it is seen at this scale; if all is below, the opposite is; else it is not
decided. scores.py describes the resamples; a claim that rests on one seed per model says so in its
note. claims.toml lists the claims, each with the function of this file that tests it.
"""

import itertools
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval import bootstrap
from eval.reporting.scores import CHANCE, MIN_SIZES, ONE_SEED, Scores, answers_of, deeper, slopes

VERDICTS = SEEN, OPPOSITE, UNDECIDED, NOT_MEASURED = (
    "seen at this scale", "the opposite is seen", "not decided", "not measured",
)  # fmt: skip
MISSING = "not all of the models to compare have been measured"
FLAT = "cannot be told to grow with the parameters"  # so that a share of its gain says nothing
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
    share: bool = False  # a difference of shares, whose error may not fall as that of a mean

    @property
    def verdict(self):
        if self.value is None:
            return UNDECIDED if self.note.endswith(FLAT) else NOT_MEASURED
        if not self.value["low"] * self.value["high"] > 0:
            return UNDECIDED
        return SEEN if self.value["low"] > 0 else OPPOSITE


def evaluate_claims(study, vary=("questions", "seeds")):
    """[Claim] of a results.Study, as claims.toml lists them. vary: what intervals resample."""
    table = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    scores, claims = Scores(study.grid, vary=vary), []
    for row in table["claim"]:
        test, arguments = globals()[row.pop("test")], row.pop("arguments", ())
        value, note = test(study, scores, *arguments)
        if value is None and note in ("", ONE_SEED):  # one seed would have been no hindrance
            note = MISSING
        claims.append(Claim(**row, value=value, note=note))
    return claims


# ---- grammar, consistency, plot. Each test returns (interval or None, note). -------------------


def grammar_plateaus(study, scores):
    order = np.argsort([size.parameters for size in scores.sizes])
    larger, kinds = np.sort(order[len(order) // 2 :]), ("grammar", "consistency", "plot")
    note = scores.seed_note(*kinds)
    pairs = [(scores.slope(kind, larger), scores.slope(kind, np.sort(order))) for kind in kinds]
    if any(rises(among_all) is None for _, among_all in pairs):
        return None, note
    if flat := [kind for kind, pair in zip(kinds, pairs, strict=True) if not rises(pair[1])]:
        return None, f"{' and '.join(flat)} {FLAT}"
    grammar, *others = (among_larger / among_all for among_larger, among_all in pairs)
    return bootstrap.interval(np.mean(others, axis=0) - grammar, len(larger)), note


def rises(draws):
    """Whether an estimate is above 0 with all of its interval; None where there is none."""
    value = bootstrap.interval(draws, 1)
    return value and value["low"] > 0


def grammar_is_first(study, scores):
    gaps = []
    for run in study.grid:
        one, other = (learned_at(run, kind, scores.vary) for kind in ("grammar", "consistency"))
        if one is not None and other is not None:
            gaps.append(other - one)
    if len(gaps) < MIN_SIZES:
        return None, f"{len(gaps)} of the runs have learned both" * bool(gaps)
    draws, note = np.mean(gaps, axis=0), f"one run each of {len(gaps)} sizes: they stand for seeds"
    if "seeds" in scores.vary:
        sizes = np.array([gap[0] for gap in gaps])
        draws = draws + bootstrap.resample_seeds([sizes], np.random.default_rng(0))[0] - draws[0]
    # A resample of the questions is halfway too early: it takes chance for a rise.
    return bootstrap.basic_interval(draws, len(gaps)), note


def learned_at(run, kind, vary):
    """(1 + ROUNDS,): log2 of the tokens at which a kind is halfway to its last accuracy; None if
    that is no better than LEARNED. The questions that are drawn are the same for all runs."""
    rows = (run.results.get("skills") or {}).get("checkpoints") or []
    rows = [row for row in rows if row["tokens"] and kind in row.get("correct", ())]
    answers = [np.array([row["correct"][kind]]) for row in rows]  # (1, questions) each
    if not answers or np.mean(answers[-1]) < LEARNED:
        return None
    rng = np.random.default_rng(len(kind))  # others of another kind
    accuracies = bootstrap.resample_models(answers, rng, [x for x in vary if x == "questions"])
    return halfway(np.log2([row["tokens"] for row in rows]), accuracies)


def halfway(x, accuracies):
    """Where accuracies, (checkpoints, n), are first halfway from chance to their last; (n,), on the
    lines between the checkpoints' x."""
    half, columns = (CHANCE + accuracies[-1]) / 2, np.arange(accuracies.shape[1])
    after = (accuracies >= half).argmax(0)
    before = np.maximum(after - 1, 0)
    low, high = accuracies[before, columns], accuracies[after, columns]
    share = np.divide(half - low, high - low, where=after > 0, out=np.zeros(len(columns)))
    return x[before] + share * (x[after] - x[before])


def consistency_threshold(study, scores):
    draws, gains = scores.by_size("consistency"), {}
    for one, two in itertools.permutations(draws, 2):
        # The same depth, and either as many heads or heads of the same size.
        heads = two.heads in (one.heads, 2 * one.heads)
        if two.width == 2 * one.width and two.layers == one.layers and heads:
            by_depth = gains.setdefault(one.width, {})
            by_depth.setdefault(one.layers, []).append(draws[two] - draws[one])
    shared = sorted(set.intersection(*map(set, gains.values()))) if gains else []
    if 64 not in gains or len(gains) < 2 or not shared:
        return None, scores.seed_note("consistency")
    means = {width: np.mean([np.mean(by_depth[n], axis=0) for n in shared], axis=0)
             for width, by_depth in gains.items()}  # fmt: skip
    others = np.max([gain for width, gain in means.items() if width != 64], axis=0)
    note = f"at {' and '.join(map(str, shared))} layers, which all these widths have"
    notes = filter(None, (note, scores.seed_note("consistency")))
    return bootstrap.interval(means[64] - others, len(means)), "; ".join(notes)


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
    gains = slopes(draws)
    value = bootstrap.interval(gains["layers"] - gains["width"], len(draws))
    missing = f"it takes {MIN_SIZES} models trained on instructions that differ in both"
    return value, note if value else missing


# ---- depth and width ---------------------------------------------------------------------------


def gains_more(study, scores, kind, more, less):
    """A skill gains more from parameters in the `more` than in the `less`: width, layers."""
    draws, notes, n = scores.by_size(kind), [scores.seed_note(kind)], len(scores.sizes)
    gains = slopes(draws)
    if value := bootstrap.interval(gains[more] - gains[less], n):
        sign, parameters = 1 if more == "layers" else -1, {x.size: x.parameters for x in study.grid}
        in_all = bootstrap.interval(sign * deeper(draws, parameters), n)
        notes.append(f"with the embeddings' parameters: {bootstrap.format_interval(in_all)}")
    return value, "; ".join(filter(None, notes))


def share_of_layers(gains):
    """(whether `slopes` rise in sum, as `rises` says; the layers' share of that sum)."""
    total = gains["width"] + gains["layers"]
    return rises(total) if len(total) > 1 else None, gains["layers"] / total


def leans_on_layers(study, scores, more, less):
    """Layers are a larger share of what `more` gains than of what `less` does: kinds of questions,
    or "instructions" as of `instructed`; both among the sizes that have both."""
    own, note = instructed(study, scores.vary) if "instructions" in (more, less) else ({}, "")
    note = note or scores.seed_note(more, less)
    draws = [own if kind == "instructions" else scores.by_size(kind) for kind in (more, less)]
    shares, common = [], [size for size in draws[0] if size in draws[1]]
    for kind, by_size in zip((more, less), draws, strict=True):
        grows, share = share_of_layers(slopes({size: by_size[size] for size in common}))
        if not grows:
            return None, note if grows is None else f"{kind} {FLAT}"
        shares.append(share)
    return bootstrap.interval(shares[0] - shares[1], len(common)), note


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
                 if run.name in LARGE_GPT2 and answers_of(run)]  # fmt: skip
    grid = [run for run in study.grid if answers_of(run)]
    if not baselines or not grid:
        return None, "neither was evaluated (setting baselines)"
    ours = max(grid, key=lambda run: run.parameters)
    hashes = {run.results["skills"]["questions_sha256"] for run in (ours, *baselines)}
    if len(hashes) > 1:
        return None, "they were evaluated on other questions"
    gaps, answers = [], answers_of(ours)
    for run in baselines:
        kinds = [kind for kind in ("grammar", "consistency", "plot") if kind in answers]
        sides = [answers[kind] - answers_of(run)[kind] for kind in kinds]
        rng = np.random.default_rng(0)
        draws = [bootstrap.resample_models([x[None]], rng, scores.vary)[0] for x in sides]
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
    if not draws:
        return None, "one run has no spread of seeds"
    note = "a learning rate that falls to its end makes the end steeper"
    return bootstrap.interval(draws[0], len(values)), note


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


def neurons_are_coherent(study, scores):
    ours = neuron_coherence(study.grid)
    if not ours:
        return None, "no model was interpreted"
    random = ours["mean_coherence_random_weights"]
    readable = [ours[f"readable{which}"]["mean"] for which in ("", "_random_weights")]
    note = "readable, more coherent than 99 % of random tokens: {:.3f}, {:.3f} with random weights"
    note = f"{note.format(*readable)}; {ONE_SEED}"
    return bootstrap.independent_difference(ours["mean_coherence"], random), note


def gpt2_neurons_are_less_readable(study, scores):
    ours = neuron_coherence(study.grid)
    gpt2 = neuron_coherence([run for run in study.of_kind("baseline") if "gpt2" in run.name])
    if not ours or not gpt2:
        return None, "no GPT-2 was interpreted"
    gap = bootstrap.independent_difference(ours["mean_coherence"], gpt2["mean_coherence"])
    return gap, "each with its own tokens"
