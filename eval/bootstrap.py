"""Confidence intervals: the bootstrap (Efron 1979) over prompts and seeds, and the delta method.

    ratio(correct, questions)           # each prompt's right answers and its questions
    {"mean": 0.867, "low": 0.827, "high": 0.903, "n": 200}

An interval is a dict like this one: the estimate, the ends of its 95 % interval, and the number of
samples behind it. What depends on one prompt is resampled together. A ratio is a pair of arrays,
numerators and denominators of the prompts. Draws are float64 arrays (1 + ROUNDS,): an estimate,
then its resamples.
"""

import functools

import numpy as np

ROUNDS = 2000  # resamples: the ends of a 95 % interval then scatter by a sixtieth of its width


def as_interval(mean, low, high, n):
    """An interval of plain numbers, for JSON."""
    return {"mean": float(mean), "low": float(low), "high": float(high), "n": int(n)}


def format_interval(interval, digits=3):
    """An interval as text: "0.867 (0.827 to 0.903)", and "-" for None."""
    if interval is None:
        return "-"
    return "{mean:.{0}f} ({low:.{0}f} to {high:.{0}f})".format(digits, **interval)


def interval(draws, n):
    """The percentile interval of draws; None where there is no finite estimate."""
    if draws is None or not np.isfinite(draws[0]):
        return None
    return as_interval(draws[0], *np.nanpercentile(draws[1:], (2.5, 97.5)), n)


def basic_interval(draws, n):
    """The basic bootstrap interval of draws, mean and ends.

    It takes off the bias of an estimate such as an entropy, which is too low in a sample and lower
    still in a resample, by about as much (Davison & Hinkley 1997, section 5.2)."""
    low, high = np.nanpercentile(draws[1:], (2.5, 97.5))
    return as_interval(*(2 * draws[0] - np.array([np.nanmean(draws[1:]), high, low])), n)


def resample_counts(n, rng):
    """How often each of n prompts is drawn in each resample, int64 (ROUNDS, n)."""
    return rng.multinomial(n, np.full(n, 1 / n), ROUNDS)


def resample_ratio(numerators, denominators, seed=0):
    """Draws of sum(numerators) / sum(denominators) over prompts; nan where that is 0 / 0."""
    pair = np.array([numerators, denominators], np.float64)
    if not pair.size:
        return np.full(1 + ROUNDS, np.nan)
    counts = resample_counts(pair.shape[1], np.random.default_rng(seed))
    # Two products of a matrix and a vector: one of two matrices would round otherwise.
    return _divide(*(np.r_[np.sum(values), counts @ values] for values in pair))


def _divide(numerators, denominators):
    """Their quotient, nan where a denominator is not above 0."""
    nans = np.full(np.shape(numerators), np.nan)
    return np.divide(numerators, denominators, where=denominators > 0, out=nans)


def ratio(numerators, denominators, seed=0):
    """The interval of a `resample_ratio`; n is the number of denominators that are not 0."""
    return interval(resample_ratio(numerators, denominators, seed), np.count_nonzero(denominators))


def mean(values, seed=0):
    """The interval of a mean over the values that are not nan."""
    values = np.asarray(values, np.float64)
    present = ~np.isnan(values)
    return ratio(np.where(present, values, 0), present, seed)


def difference(one, other, seed=0):
    """The interval of one ratio less another; their prompts are the same, and drawn together."""
    draws = resample_ratio(*one, seed) - resample_ratio(*other, seed)
    return interval(draws, np.count_nonzero(one[1]))


def quotient(one, other, seed, transform):
    """The interval of transform(one) / transform(other), ratios over independent prompts."""
    draws = [transform(resample_ratio(*pair, seed + i)) for i, pair in enumerate((one, other))]
    return interval(_divide(*draws), np.count_nonzero(one[1]))


def resample_models(answers, rng, vary=("questions", "seeds")):
    """Draws of the mean score of each model, (models, 1 + ROUNDS); vary: what is resampled.

    answers: float64 (seeds, questions) for each model, nan where there is no answer. All models
    share the resampled questions; `resample_seeds` adds what other seeds would change. Means of few
    questions vary too little (see `resample_mean`), and how much they do is hardly known (Student's
    t): that is made up for."""
    counts = resample_counts(answers[0].shape[1], rng).T  # (questions, ROUNDS)
    if "questions" not in vary:
        counts = np.ones_like(counts)
    errors = resample_seeds([np.nanmean(one, axis=1) for one in answers], rng)
    rows, stretch = [], small_sample(len(counts))
    for i, one in enumerate(answers):
        present = ~np.isnan(one)
        sums, totals = np.where(present, one, 0) @ counts, present @ counts  # (seeds, ROUNDS)
        mean = np.nanmean(one)
        means = mean + stretch * (sums.sum(0) / np.maximum(1, totals.sum(0)) - mean)
        if errors and "seeds" in vary:
            means = means + errors[i][1:] - errors[i][0]
        rows.append(np.r_[mean, means])
    return np.array(rows)


@functools.cache
def student_quantiles(freedom, n):
    """n evenly spaced quantiles of Student's t distribution. Drawn ones would scatter: of two
    runs, with one degree of freedom, the ends of an interval by a fifth of its width."""
    return np.sort(np.random.default_rng(0).standard_t(freedom, 500 * n))[250::500]


def small_sample(n):
    """How much wider Student's 95 % interval of a mean over n is than the bootstrap's, a float."""
    if n < 2:
        return 1.0
    return student_quantiles(n - 1, ROUNDS)[-(ROUNDS // 40)] / 1.96 * np.sqrt(n / (n - 1))


def resample_seeds(groups, rng):
    """Draws of the mean of each group of values, one for each seed; None if no group has two."""
    freedom = sum(len(group) - 1 for group in groups)
    if not freedom:
        return None
    # The standard deviation of the t-distributed errors is pooled over all groups.
    deviation = np.sqrt(sum(np.var(group) * len(group) for group in groups) / freedom)
    errors = [rng.permutation(student_quantiles(freedom, ROUNDS)) for _ in groups]
    return [
        np.mean(group) + np.r_[0, deviation / np.sqrt(len(group)) * error]
        for group, error in zip(groups, errors, strict=True)
    ]


def resample_mean(rows, rng):
    """The mean of one resample of rows, (seeds, n) -> (n,)."""
    # Means of few rows vary too little, by (seeds - 1) / seeds in variance: this makes up for it.
    n, mean = len(rows), rows.mean(0)
    return mean + (rows[rng.integers(n, size=n)].mean(0) - mean) * np.sqrt(n / max(1, n - 1))


def standard_error(interval):
    """The standard error that a 95 % interval stands for."""
    return (interval["high"] - interval["low"]) / (2 * 1.96)


def normal_interval(mean, error, n):
    """The 95 % interval of a normally distributed estimate with this standard error."""
    return as_interval(mean, mean - 1.96 * error, mean + 1.96 * error, n)


def independent_difference(one, other):
    """The interval of one interval's mean less another's, of independent samples."""
    error = np.hypot(standard_error(one), standard_error(other))
    return normal_interval(one["mean"] - other["mean"], error, one["n"])


def delta_ratio(numerators, denominators):
    """sum(numerators) / sum(denominators) over groups, and the half-width of its 95 % interval by
    the delta method, None where there is only one group."""
    mean, n = float(numerators.sum() / denominators.sum()), len(numerators)
    if n == 1:
        return mean, None
    variation = ((numerators - mean * denominators) ** 2).sum()
    return mean, float(1.96 * np.sqrt(variation * n / (n - 1)) / denominators.sum())
