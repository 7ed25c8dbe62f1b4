"""The scaling law of a grid: loss against compute, the best model for each budget, and a power law.

    fit(curves)     # {size: (parameters, [[(tokens, loss)], ...])}: one curve for each seed

FLOPs are counted as the paper does, parameters x training tokens (Eldan & Li 2023, section 6), with
the parameters that each token is multiplied with: the blocks and the head. At each budget the best
model's loss is the lower envelope of all curves, and

    loss = b FLOPs^-alpha,    best size ~ FLOPs^a,    best number of tokens ~ FLOPs^(1 - a)

are fitted to it as lines in logarithms. A loss that training cannot remove would bend the first
one; over the small range of a study it cannot be told from a smaller alpha. A best size counts only
where a smaller and a larger model have a loss at that budget, too. Intervals are 95 % bootstrap
intervals over the models and the seeds, for which models there are decides where the envelope lies.
"""

import numpy as np

from eval.bootstrap import interval, resample_mean

ROUNDS = 500  # bootstrap resamples, each with fits of its own
BUDGETS = 32
VISIBLE = 0.1  # a miss that one can see, as a fraction of the envelope's height in log loss


def losses_at(curves, budgets):
    """The loss of each curve, [(FLOPs, loss)], at each budget of FLOPs, float64 (curves, budgets):
    interpolated in log FLOPs between two evaluations, nan outside of the curve."""
    x, ends = np.log(budgets), {"left": np.nan, "right": np.nan}
    curves = [np.array(curve, np.float64).T for curve in curves]
    return np.array([np.interp(x, np.log(flops), losses, **ends) for flops, losses in curves])


def envelope(losses):
    """(lowest loss of any model at each budget, float64 (budgets,), inf where there is none; index
    of that model, int (budgets,), -1 where the loss is no lower than at a smaller budget).

    losses: (models, budgets), nan where there is none."""
    filled = np.where(np.isnan(losses), np.inf, losses)
    lowest = filled.min(0)
    before = np.r_[np.inf, np.minimum.accumulate(lowest)[:-1]]
    return lowest, np.where(lowest < before, filled.argmin(0), -1)


def line(x, y):
    """(slope, intercept) of the least squares line; nan of fewer than two different x or y."""
    if len(set(x)) < 2 or len(set(y)) < 2:
        return np.nan, np.nan
    return tuple(np.polyfit(x, y, 1))


def exponents(losses, parameters, budgets):
    """{"alpha", "log_b", "a"}: floats, from losses (models, budgets) and parameters (models,)."""
    lowest, best = envelope(losses)
    has_best = best >= 0
    alpha, log_b = line(np.log(budgets[has_best]), np.log(lowest[has_best]))
    # If the best is the smallest or the largest with a loss there, one beyond might be better.
    ends = [np.where(np.isnan(losses), far, parameters[:, None]) for far in (np.inf, -np.inf)]
    above_smallest = parameters[best] > ends[0].min(0)
    inner = has_best & above_smallest & (parameters[best] < ends[1].max(0))
    a, _ = line(np.log(budgets[inner]), np.log(parameters[best[inner]]))
    return {"alpha": -alpha, "log_b": log_b, "a": a}


def fit(curves, seed=0, over_models=True):
    """{"alpha", "a": intervals, "log_b": float, "misfit": how far at most the line misses the
    envelope, as a fraction of the loss, None where nothing can be fitted; "misses": if one can see
    that; "n": curves; "budgets": [{"flops", "loss", "size", "tokens"}]}, None for under two sizes.

    curves: as above. With one seed each, "low" and "high" are None. over_models: so are intervals.
    """
    flops = {}  # {size: curves of (FLOPs, loss)}
    for name, (weights, runs) in curves.items():
        if runs := [run for run in runs if len(run) > 1]:
            flops[name] = [[(tokens * weights, loss) for tokens, loss in run] for run in runs]
    if len(flops) < 2:
        return None
    names, flops = zip(*flops.items(), strict=True)
    parameters = np.array([curves[name][0] for name in names], np.float64)
    first = min(curve[0][0] for runs in flops for curve in runs)
    ends = [min(curve[-1][0] for curve in runs) for runs in flops]  # where a size is at its best
    budgets = np.geomspace(first * (1 + 1e-9), max(ends) * (1 - 1e-9), BUDGETS)
    budgets = np.unique(np.r_[budgets, np.array(ends) * (1 - 1e-9)])
    losses = [losses_at(runs, budgets) for runs in flops]  # (seeds, budgets) for each size
    means = np.array([rows.mean(0) for rows in losses])
    draws, rng = [exponents(means, parameters, budgets)], np.random.default_rng(seed)
    seeds = max(map(len, losses))
    for _ in range(ROUNDS if seeds > 1 else 1):  # all resamples of one seed are equal
        resampled = np.array([resample_mean(rows, rng) for rows in losses])
        some = rng.integers(len(names), size=len(names)) if over_models else slice(None)
        draws.append(exponents(resampled[some], parameters[some], budgets))
    law, log_b = {"n": sum(map(len, flops))}, float(draws[0]["log_b"])
    for key in ("alpha", "a"):
        values = np.array([draw[key] for draw in draws])
        few = seeds == 1 or not np.isfinite(values[1:]).any()
        law[key] = interval(values[:1].repeat(2) if few else values, law["n"])
        if law[key] and few:
            law[key] |= {"low": None, "high": None}
    law["budgets"] = [
        {"flops": float(c), "loss": float(loss), "size": names[i],
         "tokens": float(c / parameters[i])}
        for c, loss, i in zip(budgets, *envelope(means), strict=True) if i >= 0
    ]  # fmt: skip
    x, y = np.log([[row["flops"], row["loss"]] for row in law["budgets"]]).T
    misses = np.abs(np.exp(log_b - draws[0]["alpha"] * x - y) - 1)
    line_fitted = {"log_b": log_b, "misfit": float(misses.max())}
    law |= line_fitted if law["alpha"] else dict.fromkeys(line_fitted)
    law["misses"] = bool(law["alpha"] and law["misfit"] > VISIBLE * np.ptp(y))
    return law


def fit_twice(curves):
    """`fit`, with "without_smallest", the exponents without the curves of the smallest model."""
    law = fit(curves)
    if law:
        smallest = min(curves, key=lambda name: curves[name][0])
        rest = fit({name: curve for name, curve in curves.items() if name != smallest})
        law["without_smallest"] = rest and {key: rest[key] for key in ("alpha", "a")}
    return law


def curves_of(study):
    """The curves of a results.Study's grid, as `fit` takes them."""
    curves = {}
    for run in study.grid:
        curves.setdefault(run.name, (run.matmul_parameters, []))[1].append(run.curve)
    return curves
