"""
What the paper claims, as a number with an interval and a verdict in plain words.

    for claim in claims(study):           # a gather.Study
        print(claim.text, claim.verdict)  # "grammar is learned before consistency", "holds"

Each claim is a difference or a slope that is above 0 if the claim holds. Its 95 % interval is a
bootstrap interval over the questions, which are the same for all models, and over the seeds. All of
it above 0: it holds; all of it below: it does not; or else this study cannot tell.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from eval.scores import (
    CHANCE,
    FEW,
    ROUNDS,
    Scores,
    answers,
    apart,
    interval,
    resampled,
    spread_of,
)

HOLDS, FAILS, OPEN = "holds", "does not", "cannot tell"


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


# ----------------------------------------------------------------------------------------------
# the claims


def claims(study):
    """[Claim] of a gather.Study, in the paper's order."""
    scores = Scores([run for run in study.grid if run.found.get("skills")])
    found = [
        plateau(scores), before(study), threshold(scores), two_layers(study),
        *depth_and_width(study, scores), shallow(scores), creativity(scores),
        rivals(study), flattens(study), heads(study), *readable(study),
    ]  # fmt: skip
    return found


def plateau(scores):
    """Grammar gains less by size than consistency and plot do, among the larger half of models."""
    order = np.argsort([size.parameters for size in scores.sizes])
    upper = np.sort(order[len(order) // 2 :])
    slopes, value = [scores.slope(kind, upper) for kind in ("grammar", "consistency", "plot")], None
    if not any(slope is None for slope in slopes):
        value = interval((slopes[1] + slopes[2]) / 2 - slopes[0], len(upper))
    return Claim("Grammar plateaus first", "paper, section 4.1",
                 "what consistency and plot gain by twice the parameters, less what grammar does, "
                 "among the larger half of the models", value)  # fmt: skip


def before(study):
    """Along training grammar gets halfway earlier than consistency."""
    gaps = []
    for run in study.grid:
        rows = (run.found.get("skills") or {}).get("along") or []
        at = [reached(rows, kind) for kind in ("grammar", "consistency")]
        if None not in at:
            gaps.append(at[1] - at[0])
    value = None
    if len(gaps) >= 2:
        rng = np.random.default_rng(0)
        drawn = rng.choice(gaps, (ROUNDS, len(gaps))).mean(1)
        value = interval(np.concatenate([[np.mean(gaps)], drawn]), len(gaps))
    return Claim("Grammar is learned before consistency", "paper, section 4.1",
                 "doublings of the training tokens between the two being halfway from chance to "
                 "all right", value)  # fmt: skip


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
    table, value = scores.of("consistency"), None
    if table is not None:
        depths = Counter(layers for _, layers in {size[:2] for size in scores.sizes})
        layers = depths.most_common(1)[0][0]  # with most widths to compare
        at = {size.width: i for i, size in enumerate(scores.sizes) if size.layers == layers}
        gains = {w: table[at[2 * w]] - table[at[w]] for w in at if 2 * w in at}
        if 64 in gains and len(gains) > 1:
            others = np.max([gain for width, gain in gains.items() if width != 64], axis=0)
            value = interval(gains[64] - others, len(gains))
    return Claim("Consistency appears between hidden size 64 and 128", "paper, section 4.1",
                 "what consistency gains from width 64 to 128, less the most it gains by another "
                 "doubling", value)  # fmt: skip


def obeyed(run):
    """{"model", "shuffled": intervals} of what eval.instruct found of all checks, or None."""
    found = run.found.get("instruct")
    return found["checks"]["joint"] if found else None


def two_layers(study):
    """Instructions are followed with two layers, and not with one."""
    runs = [run for run in study.of("instruct") if obeyed(run)]
    gains = {}
    for run in runs:
        row = obeyed(run)
        if row.get("shuffled"):
            gain = row["model"]["mean"] - row["shuffled"]["mean"]
            error = np.hypot(spread_of(row["model"]), spread_of(row["shuffled"]))
            gains.setdefault(run.size.layers, []).append((gain, error))
    value = None
    if 1 in gains and 2 in gains:
        pair = [np.mean([gain for gain, _ in gains[n]]) for n in (2, 1)]
        error = np.hypot(*(np.sqrt(sum(e**2 for _, e in gains[n])) / len(gains[n]) for n in (2, 1)))
        middle = pair[0] - pair[1]
        value = {"mean": float(middle), "low": float(middle - 1.96 * error),
                 "high": float(middle + 1.96 * error), "n": len(runs)}  # fmt: skip
    note = "" if runs else "no model was trained on instructions"
    return Claim("Instructions need two layers", "paper, section 4.1",
                 "instructions followed whole, above what a model that reads none would get: two "
                 "layers less one", value, note)  # fmt: skip


def depth_and_width(study, scores):
    """Which skills follow depth, and which width."""
    found = []
    rows = (
        ("Plot follows width", "plot", "width", "layers", "paper, section 4.1"),
        ("Facts follow width", "facts", "width", "layers", "paper, section 4.2"),
        ("Context follows depth", "context", "layers", "width", "paper, section 4.2"),
        ("Consistency follows depth", "consistency", "layers", "width", "paper, section 4.1"),
    )
    for text, kind, more, less, source in rows:
        slopes = scores.slopes(kind)
        value = slopes and interval(slopes[more] - slopes[less], len(scores.sizes))
        found.append(Claim(text, source, f"what {kind} gains by twice the {more}, less by twice "
                           f"the {less}", value))  # fmt: skip
    runs = [run for run in study.of("instruct") if obeyed(run)]
    shapes = np.array([[1, np.log2(run.size.width), np.log2(run.size.layers)] for run in runs])
    value = None
    if len(runs) >= FEW and np.linalg.matrix_rank(shapes) == 3:
        rng, drawn = np.random.default_rng(0), []
        means, errors = zip(*((obeyed(run)["model"]["mean"], spread_of(obeyed(run)["model"]))
                              for run in runs), strict=True)  # fmt: skip
        noise = np.concatenate([np.zeros((1, len(runs))), rng.normal(size=(ROUNDS, len(runs)))])
        drawn = np.array(means) + noise * np.array(errors)
        _, width, layers = np.linalg.lstsq(shapes, drawn.T, rcond=None)[0]
        value = interval(layers - width, len(runs))
    note = (
        "" if value else f"needs {FEW} models of instructions that differ in both; {len(runs)} do"
    )
    found.insert(0, Claim("Instructions follow depth", "paper, section 4.1",
                          "instructions followed whole: by twice the layers, less by twice the "
                          "width", value, note))  # fmt: skip
    return found


def shallow(scores):
    """Depth does more for consistency than for grammar."""
    pair, value = [scores.slopes(kind) for kind in ("consistency", "grammar")], None
    if None not in pair:
        value = interval(pair[0]["layers"] - pair[1]["layers"], len(scores.sizes))
    return Claim("Shallow models are better in grammar than in consistency", "paper, section 4.1",
                 "what consistency gains by twice the layers, less what grammar does",
                 value)  # fmt: skip


def creativity(scores):
    """Creativity is what the largest model lacks most."""
    text, source = "Creativity comes last", "paper, section 4.1"
    measure = "grammar's and consistency's relative grades of the largest model, less creativity's"
    if not scores.judged:
        return Claim(text, source, measure, None, "only a judge can grade it, and none did")
    top = int(np.argmax([size.parameters for size in scores.sizes]))
    made, known = scores.of("creativity")[top], ("grammar", "consistency")
    value = interval(np.mean([scores.of(kind)[top] for kind in known], axis=0) - made, 1)
    return Claim(text, source, measure, value)


def rivals(study):
    """A model of the grid beats GPT-2 large and XL."""
    text, source = "Small models beat GPT-2 large and XL", "paper, section 1"
    measure = "grammar, consistency and plot of the largest model of ours, less the best rival's"
    them = [run for run in study.of("rival") if "gpt2" in run.name and answers(run)]
    us = max((run for run in study.grid if answers(run)), key=lambda run: run.parameters,
             default=None)  # fmt: skip
    if not them or not us:
        return Claim(text, source, measure, None, "no GPT-2 was asked (setting rivals)")
    kinds, gaps = ("grammar", "consistency", "plot"), []
    for run in them:
        if run.found["skills"]["questions_sha256"] == us.found["skills"]["questions_sha256"]:
            gap = [answers(us)[kind] - answers(run)[kind] for kind in kinds]
            rows = [resampled([one[None]], np.random.default_rng(0))[0] for one in gap]
            gaps.append(np.mean(rows, axis=0))
    value = interval(min(gaps, key=lambda gap: gap[0]), len(them)) if gaps else None
    return Claim(text, source, measure, value)


def flattens(study):
    """By the end of the first epoch the loss hardly falls any more."""
    text, source = "The loss flattens within the first epoch", "student report, section 4"
    measure = "a tenth, less the share of the first half epoch's gain that the second half brings"
    epoch = (study.data.get("splits") or {}).get("train", {}).get("tokens")
    runs = [run for run in study.grid if run.curve and epoch and run.tokens >= 0.99 * epoch]
    if not runs:
        seen = max((run.tokens for run in study.grid), default=0)
        why = f"the longest run saw {seen / epoch:.2f} epochs" if epoch else "no data folder"
        return Claim(text, source, measure, None, why)
    shares = []
    for run in runs:
        tokens, losses = np.array(run.curve).T
        first, middle, last = np.interp([tokens[0], epoch / 2, epoch], tokens, losses)
        shares.append(0.1 - (middle - last) / max(first - middle, 1e-9))
    drawn = np.random.default_rng(0).choice(shares, (ROUNDS, len(shares))).mean(1)
    value = interval(np.concatenate([[np.mean(shares)], drawn]), len(runs))
    return Claim(text, source, measure, value)


def heads(study):
    """With few heads, more of them lower the loss."""
    losses = {}
    for run in study.of(""):
        if run.loss is not None:
            losses.setdefault(run.size[:2], {}).setdefault(run.size.heads, []).append(run.loss)
    pairs, rng = [], np.random.default_rng(0)
    for by_heads in losses.values():
        if len(by_heads) > 1:
            few, many = min(by_heads), max(by_heads)
            sides = [np.array(by_heads[n]) for n in (few, many)]
            drawn = [rng.choice(side, (ROUNDS, len(side))).mean(1) for side in sides]
            pairs.append(np.concatenate([[sides[0].mean() - sides[1].mean()], drawn[0] - drawn[1]]))
    value = interval(np.mean(pairs, axis=0), len(pairs)) if pairs else None
    note = "" if pairs else "no two models differ in their heads alone"
    return Claim("More heads help when there are few", "paper, section 6",
                 "loss with the fewest heads, less with the most, nats a token", value,
                 note)  # fmt: skip


def readable(study):
    """Neurons of TinyStories models mean something, those of GPT-2 do not."""
    ours = [run for run in study.grid if run.found.get("interpret")]
    theirs = [run for run in study.of("rival") if run.found.get("interpret")]
    source, found = "paper, section 5.2", []
    value = None
    if ours:
        facts = ours[0].found["interpret"]["neurons"]
        one, other = facts["mean"], facts["mean_of_random_weights"]
        value = apart(one, other)
    found.append(Claim("Neurons of TinyStories models are readable", source,
                       "how alike the tokens are that a neuron fires at (coherence), less with "
                       "random weights", value,
                       "" if ours else "no model was looked into"))  # fmt: skip
    value = None
    if ours and theirs:
        pair = [run.found["interpret"]["neurons"]["mean"] for run in (ours[0], theirs[0])]
        value = apart(*pair)
    found.append(Claim("Neurons of GPT-2 are less so", source, "coherence, ours less GPT-2's",
                       value, "" if theirs else "no GPT-2 was looked into"))  # fmt: skip
    return found
