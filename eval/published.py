"""The published results of the TinyStories paper (Eldan & Li 2023) and of the student report, from
published.toml.

    relative("grammar", 7.72)      # 0.767: between the paper's worst model and GPT-4
    MODELS["256-8"]["grammar"]     # [7.72, 0.77]: the grade, and the relative one as printed

The paper's grades are GPT-4's, out of 10. Grades compare only with those of the same judge;
relative grades compare a little better.
"""

import itertools
import statistics
import tomllib
from pathlib import Path

GRADES = ("creativity", "grammar", "consistency", "instruct", "plot")
_TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
_NAMES = ["models", "heads", "recipe", "table_1", "notes", "report", "errors", "nearest"]
MODELS, HEADS, RECIPE, TABLE_1, NOTES, REPORT, ERRORS, NEAREST = map(_TABLES.get, _NAMES)
WORST, BEST = MODELS["64-2"], MODELS["GPT-4"]  # 0 and 1 of the relative scale


def relative(grade, score):
    """(score - worst) / (GPT-4 - worst), clipped to 0..1; score: out of 10, for one of GRADES."""
    worst, best = WORST[grade][0], BEST[grade][0]
    return min(1.0, max(0.0, (score - worst) / (best - worst)))


def step(grade):
    """The median gain of a grade from one width of the paper's table to the next, same depth."""
    gains = []
    for layers in (2, 4, 8, 12):
        grades = [MODELS[f"{width}-{layers}"][grade][0] for width in (64, 128, 256, 512, 768)]
        gains += [b - a for a, b in itertools.pairwise(grades)]
    return statistics.median(gains)
