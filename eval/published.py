"""The published results of the TinyStories paper (Eldan & Li 2023) and of the student report.

    relative("grammar", 7.72)      # 0.767: between the paper's worst model and GPT-4
    MODELS["256-8"]["grammar"]     # (7.72, 0.77): the grade, and the relative one as printed

The paper's grades are GPT-4's, out of 10. Grades compare only with those of the same judge;
relative grades compare a little better.
"""

import itertools
import statistics

GRADES = ("creativity", "grammar", "consistency", "instruct", "plot")

# The paper's large table: width-layers, validation loss, then grade/relative for each of GRADES.
_TABLE = """
64-12 2.02 4.84/0.36 6.19/0.42 4.75/0.31 4.34/0.23 4.39/0.20
64-8 2.08 4.68/0.33 6.14/0.41 4.45/0.27 4.34/0.23 4.40/0.21
64-4 2.26 3.97/0.20 5.31/0.22 3.77/0.18 3.79/0.14 3.71/0.06
64-2 2.38 2.94/0.00 4.33/0.00 2.41/0.00 2.86/0.00 3.40/0.00
128-12 1.62 6.02/0.58 7.25/0.66 7.20/0.64 6.94/0.63 6.58/0.65
128-8 1.65 5.97/0.57 7.23/0.66 7.10/0.62 6.87/0.62 6.16/0.57
128-4 1.78 5.70/0.52 6.91/0.58 6.60/0.56 6.00/0.49 5.53/0.44
128-2 1.92 4.90/0.37 6.43/0.48 4.75/0.31 5.23/0.37 4.89/0.31
256-12 1.34 6.66/0.71 7.80/0.79 8.38/0.79 7.68/0.75 7.18/0.78
256-8 1.38 6.54/0.68 7.72/0.77 8.02/0.75 7.92/0.78 7.23/0.79
256-4 1.47 6.32/0.64 7.64/0.75 7.76/0.71 8.07/0.81 7.18/0.78
256-2 1.60 6.23/0.62 7.50/0.72 7.20/0.64 7.23/0.68 6.50/0.64
512-12 1.19 6.90/0.75 8.46/0.93 9.11/0.89 8.21/0.83 7.37/0.82
512-8 1.20 6.85/0.74 8.34/0.91 8.95/0.87 8.05/0.80 7.26/0.79
512-4 1.27 6.75/0.72 8.35/0.91 8.50/0.81 8.34/0.85 7.36/0.81
512-2 1.39 6.40/0.66 7.72/0.77 7.90/0.73 7.76/0.76 7.13/0.77
768-12 1.18 7.00/0.77 8.30/0.90 9.20/0.90 8.23/0.83 7.47/0.84
768-8 1.18 7.02/0.77 8.62/0.97 9.34/0.92 8.36/0.85 7.34/0.81
768-4 1.20 6.89/0.75 8.43/0.93 9.01/0.88 8.44/0.87 7.52/0.85
768-2 1.31 6.68/0.71 8.01/0.83 8.42/0.80 7.97/0.79 7.34/0.81
768-1 1.54 6.00/0.58 7.35/0.68 7.25/0.64 5.81/0.46 6.44/0.63
1024-12 1.22 7.05/0.78 8.43/0.93 8.98/0.87 8.18/0.82 7.29/0.80
1024-8 1.20 7.13/0.80 8.25/0.89 8.92/0.87 8.47/0.87 7.47/0.84
1024-4 1.21 7.04/0.78 8.32/0.90 8.93/0.87 8.34/0.85 7.47/0.84
1024-2 1.27 6.68/0.71 8.22/0.88 8.52/0.81 8.04/0.80 7.24/0.79
1024-1 1.49 6.36/0.65 7.77/0.78 7.47/0.67 6.09/0.50 6.42/0.62
GPT-Neo-125M - 3.34/0.08 5.27/0.21 4.22/0.24 - -
GPT-2-small - 3.70/0.14 5.40/0.24 4.32/0.25 - -
GPT-2-medium - 4.22/0.24 6.27/0.44 5.34/0.39 - -
GPT-2-large - 4.30/0.26 6.43/0.48 6.04/0.48 - -
GPT-4 - 8.21/1.00 8.75/1.00 9.93/1.00 9.31/1.00 8.26/1.00
"""


def _parse(line):
    name, loss, *cells = line.split()
    grades = {
        grade: tuple(map(float, cell.split("/")))
        for grade, cell in zip(GRADES, cells, strict=True) if cell != "-"
    }  # fmt: skip
    return name, grades | ({} if loss == "-" else {"loss": float(loss)})


MODELS = dict(map(_parse, _TABLE.strip().splitlines()))
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


# The paper's table of attention heads: width-layers-heads: loss, grammar, creativity, consistency.
HEADS = {
    "768-2-2": (1.38, 7.77, 6.50, 7.78), "768-2-4": (1.34, 8.05, 6.57, 8.16),
    "768-2-8": (1.33, 8.25, 6.53, 8.16), "768-1-2": (1.58, 7.13, 5.83, 6.38),
    "768-1-4": (1.56, 7.43, 5.90, 6.75), "768-1-8": (1.54, 7.45, 6.28, 7.02),
}  # fmt: skip

# The student report's table 6: grades of a model of plain stories, then of one of stories with
# synonyms, for grammar, creativity, consistency, plot, vocabulary. Its table 2 has the first four
# of the plain ones. 512-12-4 is printed twice, with different values.
REPORT = (
    ("64-4-2", (1.87, 1.53, 1.93, 1.07, 0.79), (1.85, 1.60, 1.85, 1.10, 1.15)),
    ("128-8-4", (2.93, 1.73, 2.13, 2.33, 1.67), (3.00, 1.80, 2.10, 2.31, 2.82)),
    ("128-12-4", (3.33, 1.93, 2.67, 2.40, 1.89), (3.30, 2.00, 2.80, 2.44, 3.02)),
    ("256-8-4", (4.07, 2.07, 3.47, 2.60, 2.07), (4.10, 2.05, 3.40, 2.56, 2.83)),
    ("256-12-4", (5.13, 2.20, 4.07, 2.87, 2.36), (5.05, 2.24, 4.10, 2.85, 3.40)),
    ("512-8-4", (5.80, 2.73, 4.60, 3.60, 2.47), (5.57, 2.80, 4.55, 3.55, 3.54)),
    ("512-12-4", (5.93, 2.87, 5.73, 4.33, 3.14), (6.10, 2.75, 5.70, 4.41, 4.10)),
    ("512-12-4", (5.93, 2.87, 5.73, 4.33, 3.07), (5.95, 2.98, 5.91, 4.52, 4.25)),
)
# Its recipe, from its table 1.
RECIPE = {
    "batch": "32 stories", "block_size": "512", "learning_rate": "1e-4", "epochs": "1",
    "warmup_iters": "1000", "weight_decay": "0.01", "optimizer": "Adam",
}  # fmt: skip
NEAREST = 0.29  # ROUGE precision of the paper's laser story and its nearest training story
ERRORS = (
    "The report names GPT-3 as its judge where it used Gemini.",
    "It gives a story 70 words on average; the stories have about 175.",
    "It prints 512-12-4 twice, with different values; both are shown here.",
    "GPT-2 has more parameters than its models by “a factor of 500”: its largest have 41 and 81 "
    "million, GPT-2 124 million to 1.5 billion, so it is a factor of 1.5 to 37.",
    "Its 8.3, 41 and 81 million parameters fit none of the models it lists.",
    "It calls both 512-8-4 and 512-12-4 its largest model.",
    "Consistency with synonyms is “worse” in its table 6 and “similar” in its text.",
)
