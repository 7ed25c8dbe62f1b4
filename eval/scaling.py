"""
The scaling law of a grid: loss against what it cost, the best model for each budget, a power law.

    law(curves)     # {size: (weights, [[(tokens, loss)], ...])}: a curve for each seed

FLOPs are counted as the paper does, size x training tokens (Eldan & Li 2023, section 6; the size is
that of the weights which a token is multiplied with, blocks and head). At each budget the best
model's loss is the lower envelope, and

    loss = b FLOPs^-alpha,    best size ~ FLOPs^a,    best number of tokens ~ FLOPs^(1 - a)

are fitted to it as lines in logarithms. A loss that cannot be trained away would bend the first
one; over a range as small as a study's that cannot be told from a smaller alpha. Intervals are
95 % bootstrap intervals over the seeds.
"""

import numpy as np

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
    (the lowest loss of any model at each budget or a smaller one, float64 (budgets,); which model
    has the lowest at this one, int (budgets,), -1 where none has any).

    losses: (models, budgets), nan where there is none.
    """
    filled = np.where(np.isnan(losses), np.inf, losses)
    best = np.where(np.isinf(filled.min(0)), -1, filled.argmin(0))
    return np.minimum.accumulate(filled.min(0)), best


def line(x, y):
    """(slope, intercept) of the least squares line; nan of fewer than two different x."""
    if len(set(x)) < 2:
        return np.nan, np.nan
    return tuple(np.polyfit(x, y, 1))


def fitted(losses, weights, budgets):
    """
    {"alpha", "log_b", "a"}: floats, of a grid's losses (models, budgets) and its weights
    (models,).
    """
    lowest, best = envelope(losses)
    some = np.isfinite(lowest) & (best >= 0)
    alpha, log_b = line(np.log(budgets[some]), np.log(lowest[some]))
    # Where the smallest or the largest model is best, another one beyond it might be better.
    inner = some & ~np.isin(best, (weights.argmin(), weights.argmax()))
    several = len(set(best[inner])) > 1
    a = line(np.log(budgets[inner]), np.log(weights[best[inner]]))[0] if several else np.nan
    return {"alpha": -alpha, "log_b": log_b, "a": a}


def law(curves, seed=0):
    """
    {"alpha", "a": intervals, a None of fewer than four sizes that are best at some budget;
    "log_b": float; "budgets": [{"flops", "loss",
    "size", "tokens"}]}, or None of fewer than two sizes. curves: see above.
    """
    names = [name for name, (_, runs) in curves.items() if any(len(run) > 1 for run in runs)]
    if len(names) < 2:
        return None
    weights = np.array([curves[name][0] for name in names], np.float64)
    flops = [
        [[(n * w, loss) for n, loss in run] for run in curves[name][1] if len(run) > 1]
        for name, w in zip(names, weights, strict=True)
    ]
    ends = [[curve[i][0] for runs in flops for curve in runs] for i in (0, -1)]
    budgets = np.geomspace(min(ends[0]), max(ends[1]), BUDGETS)
    tables = [on_budgets(runs, budgets) for runs in flops]  # of each size (seeds, budgets)
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(ROUNDS):
        chosen = [table[rng.integers(len(table), size=len(table))].mean(0) for table in tables]
        drawn.append(fitted(np.array(chosen), weights, budgets))
    means = np.array([table.mean(0) for table in tables])
    point = fitted(means, weights, budgets)
    lowest, best = envelope(means)
    found = {"log_b": float(point["log_b"]), "n": sum(map(len, flops))}
    for key in ("alpha", "a"):
        if np.isnan(point[key]):
            found[key] = None
            continue
        low, high = np.nanpercentile([one[key] for one in drawn], (2.5, 97.5))
        found[key] = {"mean": float(point[key]), "low": float(low), "high": float(high),
                      "n": found["n"]}  # fmt: skip
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
