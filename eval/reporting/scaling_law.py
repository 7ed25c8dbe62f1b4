"""
The scaling law of a grid: loss against what it cost, the best model for each budget, a power law.

    law(curves)     # {size: (weights, [[(tokens, loss)], ...])}: a curve for each seed

FLOPs are counted as the paper does, size x training tokens (Eldan & Li 2023, section 6; the size is
that of the weights which a token is multiplied with, blocks and head). At each budget the best
model's loss is the lower envelope, and

    loss = b FLOPs^-alpha,    best size ~ FLOPs^a,    best number of tokens ~ FLOPs^(1 - a)

are fitted to it as lines in logarithms. A loss that cannot be trained away would bend the first
one; over a range as small as a study's that cannot be told from a smaller alpha. The best size
counts where a smaller and a larger model have a loss at that budget, too. Intervals are 95 %
bootstrap intervals over the seeds.
"""

import numpy as np

from eval.bootstrap import resample_mean

ROUNDS, BUDGETS = 500, 32


def on_budgets(curves, budgets):
    """
    The loss of each curve at each budget of FLOPs, float64 (curves, budgets): between two
    evaluations by a line in log FLOPs, nan where a curve has none.

    curves: [(FLOPs, loss), ...] each, ascending.
    """
    found = []
    for curve in curves:
        x, y = np.log(np.array(curve, np.float64)[:, 0]), np.array(curve, np.float64)[:, 1]
        found.append(np.interp(np.log(budgets), x, y, left=np.nan, right=np.nan))
    return np.array(found)


def envelope(losses):
    """
    (the lowest loss of any model at each budget, float64 (budgets,), inf where none has any; which
    model that is, int (budgets,), -1 where it is no lower than at a smaller budget).

    losses: (models, budgets), nan where there is none.
    """
    filled = np.where(np.isnan(losses), np.inf, losses)
    lowest = filled.min(0)
    before = np.r_[np.inf, np.minimum.accumulate(lowest)[:-1]]
    return lowest, np.where(lowest < before, filled.argmin(0), -1)


def line(x, y):
    """(slope, intercept) of the least squares line; nan of fewer than two different x or y."""
    if len(set(x)) < 2 or len(set(y)) < 2:
        return np.nan, np.nan
    return tuple(np.polyfit(x, y, 1))


def fitted(losses, weights, budgets):
    """{"alpha", "log_b", "a"}: floats, of a grid's losses (models, budgets), weights (models,)."""
    lowest, best = envelope(losses)
    some = best >= 0
    alpha, log_b = line(np.log(budgets[some]), np.log(lowest[some]))
    # Where the best is the smallest or the largest that has a loss there, another might be better.
    ends = [np.where(np.isnan(losses), far, weights[:, None]) for far in (np.inf, -np.inf)]
    inner = some & (weights[best] > ends[0].min(0)) & (weights[best] < ends[1].max(0))
    a, _ = line(np.log(budgets[inner]), np.log(weights[best[inner]]))
    return {"alpha": -alpha, "log_b": log_b, "a": a}


def law(curves, seed=0):
    """
    {"alpha", "a": intervals, None where nothing can be fitted; "log_b": float; "budgets":
    [{"flops", "loss", "size", "tokens"}]}, or None of fewer than two sizes. curves: see above. Of
    one seed each, "low" and "high" of an interval are None.
    """
    names = [name for name, (_, runs) in curves.items() if any(len(run) > 1 for run in runs)]
    if len(names) < 2:
        return None
    weights = np.array([curves[name][0] for name in names], np.float64)
    flops = [
        [[(n * w, loss) for n, loss in run] for run in curves[name][1] if len(run) > 1]
        for name, w in zip(names, weights, strict=True)
    ]
    first = min(curve[0][0] for runs in flops for curve in runs)
    ends = [min(curve[-1][0] for curve in runs) for runs in flops]  # where a size is at its best
    budgets = np.geomspace(first * (1 + 1e-9), max(ends) * (1 - 1e-9), BUDGETS)
    budgets = np.unique(np.r_[budgets, np.array(ends) * (1 - 1e-9)])
    tables = [on_budgets(runs, budgets) for runs in flops]  # of each size (seeds, budgets)
    means = np.array([table.mean(0) for table in tables])
    lowest, best = envelope(means)
    point, rng, drawn = fitted(means, weights, budgets), np.random.default_rng(seed), []
    for _ in range(ROUNDS if any(len(table) > 1 for table in tables) else 0):
        resampled = np.array([resample_mean(table, rng) for table in tables])
        drawn.append(fitted(resampled, weights, budgets))
    found = {"log_b": float(point["log_b"]), "n": sum(map(len, flops))}
    for key in ("alpha", "a"):
        low = high = None
        if drawn and np.isfinite(point[key]):
            low, high = np.nanpercentile([one[key] for one in drawn], (2.5, 97.5)).tolist()
        row = {"mean": float(point[key]), "low": low, "high": high, "n": found["n"]}
        found[key] = row if np.isfinite(point[key]) else None
    found["budgets"] = [
        {"flops": float(c), "loss": float(loss), "size": names[i], "tokens": float(c / weights[i])}
        for c, loss, i in zip(budgets, lowest, best, strict=True) if i >= 0
    ]  # fmt: skip
    return found


def curves_of(study):
    """The curves of a gather.Study's grid, as `law` takes them."""
    found = {}
    for run in study.grid:
        if run.curve:
            found.setdefault(run.name, (run.multiplied, []))[1].append(run.curve)
    return found
