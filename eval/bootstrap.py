"""Means with their bootstrap confidence intervals (Efron 1979), resampling whole prompts."""

import numpy as np

ROUNDS = 2000  # resamples: the ends of a 95 % interval then scatter by a sixtieth of its width


def resampled(tops, bottoms, seed=0):
    """
    sum(tops) / sum(bottoms) of ROUNDS resamples, float64 (ROUNDS,).

    tops, bottoms: (prompts,) float, each prompt's points and how many it could have; what depends
    on one prompt is drawn together. Resamples that could have no points are nan.
    """
    tops, bottoms = (np.asarray(x, np.float64) for x in (tops, bottoms))
    n = len(tops)
    times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), ROUNDS)  # (ROUNDS, n)
    tops, bottoms = times @ tops, times @ bottoms
    return np.divide(tops, bottoms, where=bottoms > 0, out=np.full(ROUNDS, np.nan))


def ratio(tops, bottoms, seed=0):
    """
    {"mean", "low", "high", "n"} of sum(tops) / sum(bottoms) with its 95 % percentile interval, n
    the prompts that count in it; or None where none does. See `resampled`.
    """
    counted = int(np.count_nonzero(bottoms))
    if not counted:
        return None
    low, high = np.nanpercentile(resampled(tops, bottoms, seed), (2.5, 97.5))
    mean = float(np.sum(tops) / np.sum(bottoms))
    return {"mean": mean, "low": float(low), "high": float(high), "n": counted}


def mean(values, seed=0):
    """The same of a mean, of those values that are not nan."""
    values = np.asarray(values, np.float64)
    counts = ~np.isnan(values)
    return ratio(np.where(counts, values, 0), counts, seed)


def difference(one, other, seed=0):
    """
    The same of one ratio less another: two pairs (tops, bottoms) over the same prompts, which are
    resampled together.
    """
    pair = [ratio(*side, seed) for side in (one, other)]
    if None in pair:
        return None
    spread = resampled(*one, seed) - resampled(*other, seed)
    low, high = np.nanpercentile(spread, (2.5, 97.5))
    mean = pair[0]["mean"] - pair[1]["mean"]
    return {"mean": mean, "low": float(low), "high": float(high), "n": pair[0]["n"]}


def quotient(one, other, seed=0, of=np.asarray):
    """
    The same of one ratio over another: two pairs (tops, bottoms) of different prompts, which are
    resampled apart. of: makes what is compared of both ratios, as np.exp perplexities of nats.
    """
    pair = [ratio(*side, seed) for side in (one, other)]
    if None in pair or not of(pair[1]["mean"]):
        return None
    top, bottom = (of(resampled(*side, seed + i)) for i, side in enumerate((one, other)))
    spread = np.divide(top, bottom, where=bottom > 0, out=np.full(ROUNDS, np.nan))
    low, high = np.nanpercentile(spread, (2.5, 97.5))
    mean = float(of(pair[0]["mean"]) / of(pair[1]["mean"]))
    return {"mean": mean, "low": float(low), "high": float(high), "n": pair[0]["n"]}


def described(interval, digits=3):
    """An interval in a few characters: "0.867 (0.827 to 0.903)", and "-" for None."""
    if interval is None:
        return "-"
    mean, low, high = (f"{interval[name]:.{digits}f}" for name in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"
