"""The report's section about width and depth: what as many parameters give in each.

    rows = width_and_depth(study)["rows"]     # a results.Study
    rows[0]["measure"], rows[0]["difference"]["mean"]  # "validation loss, its fall", -0.02

The loss is the control: a skill that only follows the loss has its share of layers.
"""

from operator import attrgetter

import numpy as np

from eval.reporting.claims import instructed, share_of_layers
from eval.reporting.model_sections import SKILLS
from eval.reporting.scores import Scores, deeper, slopes
from eval.reporting.variants import as_value, draws_by_seed, fluency_draws

LOSS = "validation loss, its fall, nats"


def width_and_depth(study):
    """A row for each measure: what twice the parameters of the blocks give it in width and in
    layers, the difference, at as many parameters in all instead, and without one width or number of
    layers; the layers' share of both where their sum is above 0, and less the loss's at these."""
    scores, runs = Scores(study.grid), study.grid
    own, _ = instructed(study, scores.vary)
    losses = draws_by_seed(runs, attrgetter("loss"), attrgetter("size"))
    measures = {LOSS: negated(losses),
                "fluency: the referee's nats per byte, their fall":
                negated(fluency_draws(runs, "relative"))}  # fmt: skip
    measures |= {skill: scores.by_size(skill) for skill in SKILLS}
    measures["finding a story's own instruction"] = own
    rows, parameters = [], {run.size: run.parameters for run in runs}
    for measure, draws in measures.items():
        same = {size: one for size, one in measures[LOSS].items() if size in draws}
        gains = slopes(draws)
        (grows, share), (falls, of_loss) = share_of_layers(gains), share_of_layers(slopes(same))
        width, layers = gains["width"], gains["layers"]
        beside = grows and falls and measure != LOSS
        rows.append(
            {"measure": measure, "width": as_value(width), "layers": as_value(layers),
             "difference": as_value(layers - width), "without_one": without_one(draws),
             "in_all": as_value(deeper(draws, parameters)),
             "share": as_value(share) if grows else None,
             "beside_loss": as_value(share - of_loss) if beside else None}
        )  # fmt: skip
    return {"rows": rows, "unit": scores.unit}


def without_one(draws):
    """(lowest, highest) difference between layers and width in a grid without one of its widths or
    numbers of layers; None where there is none."""
    differences = []
    for i, left_out in {(i, size[i]) for size in draws for i in (0, 1)}:
        some = {size: one[:1] for size, one in draws.items() if size[i] != left_out}
        differences.append(deeper(some, {size: size.parameters for size in some})[0])
    finite = [float(x) for x in differences if np.isfinite(x)]
    return (min(finite), max(finite)) if finite else None


def negated(draws):
    return {size: -one for size, one in draws.items()}
