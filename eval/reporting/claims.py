"""
What the paper claims, as a number with an interval and a verdict in plain words.

    for claim in claims(study):           # a gather.Study
        print(claim.text, claim.verdict)  # "grammar is learned before consistency", "holds"

Each claim is a difference or a slope that is above 0 if the claim holds. All of its 95 % interval
above 0: it holds; all of it below: it does not; or else this study cannot tell. scores.py says what
is drawn for an interval; what rests on one seed alone says so in its note.
"""

from dataclasses import dataclass

import numpy as np

from eval.bootstrap import (
    independent_difference,
    interval,
    normal_draws,
    normal_interval,
    resample_models,
    resample_seeds,
    standard_error,
)
from eval.reporting.scores import CHANCE, FEW, answers, of_grid

HOLDS, FAILS, OPEN = "holds", "does not", "cannot tell"
MEASURED = "the models that it compares have not all been measured"
ONE_SEED = "one seed of each: what another would change is not in the interval"
BIG = ("gpt2-large", "gpt2-xl")  # the rivals that the paper names


@dataclass
class Claim:
    """
    text: what is claimed; source: who says so; measure: what was compared; value: an interval, or
    None where nothing could be; note: why it cannot tell, or what to mind.
    """

    text: str
    source: str
    measure: str
    value: dict | None
    note: str = ""

    @property
    def verdict(self):
        if self.value is None or not self.value["low"] * self.value["high"] > 0:
            return OPEN
        return HOLDS if self.value["low"] > 0 else FAILS


def claims(study):
    """[Claim] of a gather.Study, in the paper's order."""
    scores = of_grid(study)
    found = [
        plateau(scores), before(study), threshold(scores), two_layers(study), follow(study),
        *depth_and_width(scores), shallow(scores), creativity(scores),
        rivals(study), flattens(study), heads(study), *readable(study),
    ]  # fmt: skip
    for claim in found:
        claim.note = claim.note or ("" if claim.value else MEASURED)
    return found


def one_seed_note(scores):
    """The note of a claim about scores."""
    return ONE_SEED if scores.seeds == 1 else ""


# ----------------------------------------------------------------------------------------------
# grammar, consistency, plot


def plateau(scores):
    """Grammar gains less by size than consistency and plot do, among the larger half of models."""
    order = np.argsort([size.parameters for size in scores.sizes])
    upper = np.sort(order[len(order) // 2 :])
    slopes, value = [scores.slope(kind, upper) for kind in ("grammar", "consistency", "plot")], None
    if not any(slope is None for slope in slopes):
        value = interval((slopes[1] + slopes[2]) / 2 - slopes[0], len(upper))
    return Claim("Grammar plateaus first", "paper, section 4.1",
                 "what consistency and plot gain by twice the parameters, less what grammar does, "
                 "among the larger half of the models", value, one_seed_note(scores))  # fmt: skip


def before(study):
    """Along training grammar gets halfway earlier than consistency."""
    gaps, late = [], 0
    for run in study.grid:
        rows = (run.found.get("skills") or {}).get("along") or []
        at = [reached(rows, kind) for kind in ("grammar", "consistency")]
        if at != [None, None]:  # what the run has not reached comes after its end at the earliest
            late += None in at
            end = np.log2(rows[-1]["tokens"])
            first, second = (end if x is None else x for x in at)
            gaps.append(second - first)
    value, note = None, ""
    if len(gaps) >= FEW:
        value = interval(resample_seeds([np.array(gaps)], np.random.default_rng(0))[0], len(gaps))
        note = f"{late} of {len(gaps)} runs ended before one of the two: counted as then" * (
            late > 0
        )
    return Claim("Grammar is learned before consistency", "paper, section 4.1",
                 "doublings of the training tokens between the two being halfway from chance to "
                 "all right, over the models", value, note)  # fmt: skip


def reached(rows, kind, half=(1 + CHANCE) / 2):
    """log2 of the tokens at which a kind first is above `half`; None where it never is."""
    last = None
    for row in rows:
        if row["tokens"] and kind in row["skills"]:
            now = np.log2(row["tokens"]), row["skills"][kind]["right"]["mean"]
            if now[1] >= half:
                if last is None:
                    return now[0]
                share = (half - last[1]) / (now[1] - last[1])
                return last[0] + share * (now[0] - last[0])
            last = now
    return None


def threshold(scores):
    """From width 64 to 128 consistency gains more than by any other doubling of the width."""
    table, value, gains = scores.of("consistency"), None, {}
    for i, one in enumerate(scores.sizes if table is not None else ()):
        for j, two in enumerate(scores.sizes):
            # Of the same depth, with as many heads or heads as large.
            heads = two.heads in (one.heads, 2 * one.heads)
            if two.width == 2 * one.width and two.layers == one.layers and heads:
                gains.setdefault(one.width, []).append(table[j] - table[i])
    means = {width: np.mean(some, axis=0) for width, some in gains.items()}
    if 64 in means and len(means) > 1:
        others = np.max([gain for width, gain in means.items() if width != 64], axis=0)
        value = interval(means[64] - others, len(means))
    return Claim("Consistency appears between hidden size 64 and 128", "paper, section 4.1",
                 "what consistency gains from width 64 to 128, less the most it gains by another "
                 "doubling, at the same depth", value, one_seed_note(scores))  # fmt: skip


def depth_and_width(scores):
    """Which skills follow depth, and which width."""
    rows = (
        ("Plot follows width", "plot", "width", "layers", "paper, section 4.1"),
        ("Facts follow width", "facts", "width", "layers", "paper, section 4.2"),
        ("Context follows depth", "context", "layers", "width", "paper, section 4.2"),
        ("Consistency follows depth", "consistency", "layers", "width", "paper, section 4.1"),
    )
    for text, kind, more, less, source in rows:
        slopes = scores.slopes(kind)
        value = slopes and interval(slopes[more] - slopes[less], len(scores.sizes))
        note = one_seed_note(scores)
        if value and scores.counts[kind] < 30:
            note = f"{scores.counts[kind]} prompts only" + (note and f"; {note}")
        yield Claim(text, source, f"what {kind} gains by twice the {more}, less by twice the "
                    f"{less}", value, note)  # fmt: skip


def shallow(scores):
    """Depth does more for consistency than for grammar."""
    pair, value = [scores.slopes(kind) for kind in ("consistency", "grammar")], None
    if None not in pair:
        value = interval(pair[0]["layers"] - pair[1]["layers"], len(scores.sizes))
    return Claim("Shallow models are better in grammar than in consistency", "paper, section 4.1",
                 "what consistency gains by twice the layers, less what grammar does",
                 value, one_seed_note(scores))  # fmt: skip


def creativity(scores):
    """Creativity is what the largest model lacks most."""
    text, source = "Creativity comes last", "paper, section 4.1"
    measure = "grammar's and consistency's relative grades of the largest model, less creativity's"
    if not scores.judge:
        return Claim(text, source, measure, None, "only a judge can grade it, and none did")
    top = int(np.argmax([size.parameters for size in scores.sizes]))
    made, known = scores.of("creativity")[top], ("grammar", "consistency")
    value = interval(np.mean([scores.of(kind)[top] for kind in known], axis=0) - made, 1)
    return Claim(text, source, measure, value, ONE_SEED)


# ----------------------------------------------------------------------------------------------
# instructions


def obeyed(run):
    """{"model", "shuffled": intervals} of what eval.instruct found of all checks, or None."""
    found = run.found.get("instruct")
    return found["checks"]["joint"] if found else None


def two_layers(study):
    """Instructions are followed with two layers, and not with one, at the same width."""
    gains, runs = {}, [run for run in study.of("instruct") if obeyed(run)]
    for run in runs:
        row = obeyed(run)
        if row.get("shuffled") and run.size.layers in (1, 2):
            gain = row["model"]["mean"] - row["shuffled"]["mean"]
            error = np.hypot(standard_error(row["model"]), standard_error(row["shuffled"]))
            gains.setdefault(run.size.width, {})[run.size.layers] = gain, error
    pairs = [(both[2], both[1]) for both in gains.values() if len(both) == 2]
    value, note = None, "" if runs else "no model was trained on instructions"
    if pairs:
        middle = float(np.mean([two - one for (two, _), (one, _) in pairs]))
        errors = np.sqrt(sum(a**2 + b**2 for (_, a), (_, b) in pairs)) / len(pairs)
        value = normal_interval(middle, errors, len(pairs))
        note = ONE_SEED
    return Claim("Instructions need two layers", "paper, section 4.1",
                 "instructions followed whole, above what a model that reads none would get: two "
                 "layers less one, at the same width", value, note)  # fmt: skip


def follow(study):
    """Instructions gain more by depth than by width."""
    runs = [run for run in study.of("instruct") if obeyed(run)]
    shapes = np.array([[1, np.log2(run.size.width), np.log2(run.size.layers)] for run in runs])
    value, note = None, f"it takes {FEW} models of instructions that differ in both"
    if len(runs) >= FEW and np.linalg.matrix_rank(shapes) == 3:
        rows = [obeyed(run)["model"] for run in runs]
        drawn = normal_draws(rows, np.random.default_rng(0))
        _, width, layers = np.linalg.lstsq(shapes, drawn, rcond=None)[0]
        value, note = interval(layers - width, len(runs)), ONE_SEED
    return Claim("Instructions follow depth", "paper, section 4.1",
                 "instructions followed whole: by twice the layers, less by twice the width", value,
                 note)  # fmt: skip


# ----------------------------------------------------------------------------------------------
# other models, the loss, heads, neurons


def rivals(study):
    """The largest model of the grid beats GPT-2 large and XL on questions about TinyStories."""
    text, source = "Small models beat GPT-2 large and XL", "paper, section 1"
    measure = ("grammar, consistency and plot of the largest model of ours, less the best of these "
               "two, by questions from TinyStories")  # fmt: skip
    them = [run for run in study.of("rival") if run.name in BIG and answers(run)]
    us = max((run for run in study.grid if answers(run)), key=lambda run: run.parameters,
             default=None)  # fmt: skip
    if not them or not us:
        return Claim(text, source, measure, None, "neither was asked (setting rivals)")
    asked = us.found["skills"]["questions_sha256"]
    if any(run.found["skills"]["questions_sha256"] != asked for run in them):
        return Claim(text, source, measure, None, "they were asked other questions")
    gaps = []
    for run in them:
        kinds = [kind for kind in ("grammar", "consistency", "plot") if kind in answers(us)]
        sides = [answers(us)[kind] - answers(run)[kind] for kind in kinds]
        rows = [resample_models([side[None]], np.random.default_rng(0))[0] for side in sides]
        gaps.append(np.mean(rows, axis=0))
    value = interval(min(gaps, key=lambda gap: gap[0]), len(them))
    return Claim(text, source, measure, value, ONE_SEED)


def flattens(study):
    """In the second half of the first epoch the loss falls little more."""
    text, source = "The loss flattens within the first epoch", "student report, section 4"
    measure = ("a tenth, less the share of the first epoch's fall, from its first hundredth on, "
               "that the second half brings")  # fmt: skip
    epoch = study.plain.get("splits", {}).get("train", {}).get("tokens")
    runs = [run for run in study.grid if run.curve and epoch and run.tokens >= 0.99 * epoch]
    if not runs:
        seen = max((run.tokens for run in study.grid), default=0)
        why = f"the longest run saw {seen / epoch:.2f} epochs" if epoch else ""
        return Claim(text, source, measure, None, why)
    shares = []
    for run in runs:
        first = np.interp(epoch / 100, *np.array(run.train_curve).T)
        middle, last = np.interp([epoch / 2, epoch], *np.array(run.curve).T)
        shares.append(0.1 - (middle - last) / max(first - last, 1e-9))
    drawn = resample_seeds([np.array(shares)], np.random.default_rng(0))
    note = "a learning rate that falls to its end makes the end steeper"
    return Claim(text, source, measure, drawn and interval(drawn[0], len(runs)), note)


def heads(study):
    """With few heads, more of them lower the loss."""
    losses = {}
    for run in study.of(""):
        if run.loss is not None:
            losses.setdefault(run.size[:2], {}).setdefault(run.size.heads, []).append(run.loss)
    groups = [np.array(by_heads[n]) for by_heads in losses.values() if len(by_heads) > 1
              for n in (min(by_heads), max(by_heads))]  # fmt: skip
    drawn = resample_seeds(groups, np.random.default_rng(0))
    value, note = None, "" if groups else "no two models differ in their heads alone"
    if drawn:
        gaps = [few - many for few, many in zip(drawn[::2], drawn[1::2], strict=True)]
        value = interval(np.mean(gaps, axis=0), len(gaps))
    elif groups:
        note = "one seed of each cannot tell chance from heads"
    return Claim("More heads help when there are few", "paper, section 6",
                 "loss with the fewest heads, less with the most, nats a token", value,
                 note)  # fmt: skip


def readable(study):
    """Neurons of TinyStories models mean something, those of GPT-2 do not."""
    ours = [run for run in study.grid if run.found.get("interpret")]
    theirs = [run for run in study.of("rival")
              if "gpt2" in run.name and run.found.get("interpret")]  # fmt: skip
    source, measure = "paper, section 5.2", "how alike the tokens are that a neuron fires at"
    facts = [run.found["interpret"]["neurons"] for run in (*ours[:1], *theirs[:1])]
    trained = [row["mean_coherence"] for row in facts]
    value = None
    if ours:
        value = independent_difference(trained[0], facts[0]["mean_coherence_random_weights"])
    yield Claim("Neurons of TinyStories models are readable", source,
                f"{measure} (coherence), less with random weights", value,
                ONE_SEED if ours else "no model was looked into")  # fmt: skip
    value = independent_difference(*trained) if ours and theirs else None
    yield Claim("Neurons of GPT-2 are less so", source, f"{measure}, ours less GPT-2's", value,
                "each by its own tokens" if value else "no GPT-2 was looked into")  # fmt: skip
