"""The report's section about width and depth: what as many parameters give in each.

    rows = width_and_depth(study)["rows"]     # a results.Study
    rows[0]["measure"], rows[0]["difference"]["mean"]  # "validation loss, its fall", -0.02

The loss is the control: a skill that only follows the loss has its share of layers.
"""

from operator import attrgetter

import numpy as np

from eval.reporting.claims import instructed, rises
from eval.reporting.model_sections import SKILLS
from eval.reporting.scores import Scores, slopes
from eval.reporting.variants import as_value, draws_by_seed, fluency_draws

LOSS, OWN = "validation loss, its fall, nats", "finding a story's own instruction"
COMPARED = (("context", "facts"), (OWN, "plot"))  # the paper: depth, and width


def width_and_depth(study):
    """A row for each measure: what twice the parameters of the blocks give it in width and in
    layers, the difference, and the layers' share of both where their sum is above 0, and that less
    the share of the loss; and of COMPARED how much larger the first one's share is."""
    scores, runs = Scores(study.grid), study.grid
    own, _ = instructed(study, scores.vary)
    losses = draws_by_seed(runs, attrgetter("loss"), attrgetter("size"))
    measures = {LOSS: negated(losses),
                "fluency: the referee's nats per byte, their fall":
                negated(fluency_draws(runs, "relative"))}  # fmt: skip
    measures |= {skill: scores.by_size(skill) for skill in SKILLS}
    measures[OWN] = own
    rows, shares = [], {}
    for measure, draws in measures.items():
        gains = slopes(draws, np.array([*draws.values()]))
        width, layers = gains["width"], gains["layers"]
        if len(width) > 1 and rises(width + layers):
            shares[measure] = layers / (width + layers)
        beside = {measure, LOSS} <= shares.keys() and measure != LOSS
        rows.append(
            {"measure": measure, "width": as_value(width), "layers": as_value(layers),
             "difference": as_value(layers - width), "share": as_value(shares.get(measure)),
             "beside_loss": as_value(shares[measure] - shares[LOSS]) if beside else None}
        )  # fmt: skip
    compared = [(one, other, as_value(shares[one] - shares[other])) for one, other in COMPARED
                if {one, other} <= shares.keys()]  # fmt: skip
    return {"rows": rows, "compared": compared, "unit": scores.unit}


def negated(draws):
    return {size: -one for size, one in draws.items()}
