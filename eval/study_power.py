"""What a study could tell, and what it would take to tell more: a power calculation for each claim.

    python -m eval.study_power out/study_small

    error       the standard error of the claim's value; of it, what other questions and what other
                seeds would change
    detectable  the least value that this study would decide in 80 % of repetitions:
                (1.96 + 0.84) x error
    seeds x     times as many seeds with which the value that was seen would be decided in 80 % of
                repetitions, all else equal; questions x, as many questions; both x, as many of both

For a value that is really 0 no number is enough. Shares have no such numbers: their intervals are
lopsided, and their error does not fall as that of a mean. The others are upper bounds, for with few
seeds a part of the error is that their own spread is hardly known (Student's t), and more seeds
tell it better. With more tokens the values change, too, and how much the seeds differ: of that a
study says nothing.
"""

from dataclasses import dataclass

from configs import UserError, load, run
from eval import bootstrap, harness
from eval.reporting.claims import evaluate_claims
from eval.reporting.results import read_study
from eval.reporting.scores import ONE_SEED

POWER = 1.96 + 0.84  # normal quantiles of a 95 % interval and of 80 % power


@dataclass(frozen=True)
class Settings:
    out_dir: str = ""  # folder of the study


def power(claims, of_questions, of_seeds):
    """{claim: a row} of the claims that were measured, from the same Claims evaluated three times:
    with questions and seeds resampled, and with each of them alone. Of a row, more_seeds is None
    where the questions alone leave the claim open, more_questions where the seeds do, all three for
    a share, and they and both parts where neither is resampled, but the neurons of a model are."""
    rows = {}
    for claim, *parts in zip(claims, of_questions, of_seeds, strict=True):
        if claim.value is None:
            continue
        value, error = claim.value["mean"], bootstrap.standard_error(claim.value)
        questions, seeds = (bootstrap.standard_error(part.value) for part in parts)
        if questions == seeds == error:  # it rests on no questions, but on losses or on neurons
            questions, seeds = (None, None) if ONE_SEED in claim.note else (0.0, seeds)
        known = seeds is not None and not claim.share
        rows[claim.text] = {
            "value": value, "error": error, "questions": questions, "seeds": seeds,
            "detectable": None if claim.share else POWER * error,
            "more_seeds": times(seeds, questions, value) if known else None,
            "more_questions": times(questions, seeds, value) if known else None,
            "more_of_both": times(error, 0.0, value) if known else None,
        }  # fmt: skip
    return rows


def power_of(study, claims):
    """`power` of a results.Study and its Claims."""
    parts = (evaluate_claims(study, vary=(part,)) for part in ("questions", "seeds"))
    return power(claims, *parts)


def times(part, rest, value):
    """How many times as many samples behind one part of the error a value needs; None where the
    rest of the error is too large already."""
    room = (value / POWER) ** 2 - rest**2
    return float(part**2 / room) if room > 0 else None


def main():
    settings, _ = load(Settings, positional="out_dir")
    if not settings.out_dir:
        raise UserError("usage: python -m eval.study_power out/<study>")
    study = read_study(settings.out_dir)
    rows = power_of(study, evaluate_claims(study))
    head = ["claim", "value", "error", "questions", "seeds", "detectable", "seeds x", "questions x"]
    cells = [[text, *map(_rounded, row.values())] for text, row in rows.items()]
    harness.print_table([*head, "both x"], cells)


def _rounded(value):
    return value if value is None else f"{value:.3f}" if value < 10 else f"{value:,.0f}"


if __name__ == "__main__":
    run(main)
