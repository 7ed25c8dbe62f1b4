"""What reward.py monitors while it trains: metrics of the stories, alarms and a plot.

    baseline = story_metrics(texts, ended, token_counts, log_ref, "cat")     # of the reference
    alarms(story_metrics(...) | {...}, baseline)                             # ["repetition"]

A policy can earn a reward without writing stories: "cat cat cat". The reward then rises, and other
metrics leave their normal range.
"""

import math
from pathlib import Path

from nanostories.plotting import plot_to
from nanostories.text.metrics import distinct_n, repeated_ngrams
from nanostories.text.words import contains_word, ngrams, sentences, split_words, words_and_marks

DISTINCT_WORDS = 500  # distinct-2 is measured over so many words and marks at a time
ABOUT_SENTENCES = 2  # a story is about the word if so many of its sentences have it
AVERAGED_STEPS = 5  # alarms compare the mean over the last steps
PANELS = {
    "reward": "reward",
    "kl": "KL(policy || reference), nats per story",
    "loss": "loss",
    "about": "fraction of stories about the word",
    "mentions": "mentions of the word per story",
    "repetition": "fraction of repeated 3-grams",
    "distinct_2": "distinct-2",
    "perplexity": "perplexity under the reference",
    "words": "words per story",
}


def mentions(word, text):
    """How often a text has a word, or several in a row ("ice cream"), in any inflection."""
    parts = ngrams(split_words(text), len(split_words(word)))
    return sum(contains_word(word, part) for part in parts)


def is_about(word, text):
    """Whether ABOUT_SENTENCES sentences of a text have the word in any inflection."""
    count = sum(contains_word(word, split_words(sentence)) for sentence in sentences(text))
    return count >= ABOUT_SENTENCES


def story_metrics(texts, ended, token_counts, log_ref, word):
    """Metrics of completions, {name: float}; distinct_2 is nan where they are too short.

    texts: without their prompts. log_ref: the log-likelihood of each in nats under the reference,
    like the perplexity at the temperature of sampling. word: the word of the reward."""
    n = len(texts)
    repeated, trigrams = zip(*map(repeated_ngrams, texts), strict=True)
    return {
        "about": sum(is_about(word, text) for text in texts) / n,
        "mentions": sum(mentions(word, text) for text in texts) / n,
        "repetition": sum(repeated) / max(1, sum(trigrams)),
        "distinct_2": distinct_n([words_and_marks(text) for text in texts], 2, DISTINCT_WORDS),
        "perplexity": math.exp(min(50.0, -sum(log_ref) / sum(token_counts))),
        "words": sum(len(split_words(text)) for text in texts) / n,
        "ended": sum(ended) / n,
    }


# {metric: (lowest, highest) normal ratio to the reference's}; nan raises no alarm.
NORMAL_RATIOS = {
    "repetition": (0, 1.5),
    "distinct_2": (0.75, math.inf),
    "perplexity": (0.6, 1.5),
    "words": (0.5, 1.6),
}
MIN_BASELINE = 0.01  # a baseline below this counts as this, for the reference may repeat nothing
MAX_MENTIONS = 0.1  # of the words; a story has fewer
MAX_KL_PER_TOKEN = 0.25  # nats


def alarms(metrics, baseline):
    """The names of the metrics outside their normal range.

    metrics: of `story_metrics`, with reward, kl and tokens per story. baseline: the reference's,
    with reward and reward_error."""
    raised = {}
    for name, (lowest, highest) in NORMAL_RATIOS.items():
        ratio = metrics[name] / max(baseline[name], MIN_BASELINE)
        raised[name] = ratio < lowest or ratio > highest
    raised["mentions"] = metrics["mentions"] > MAX_MENTIONS * metrics["words"]
    raised["kl"] = metrics["kl"] > MAX_KL_PER_TOKEN * metrics["tokens"]
    raised["reward"] = metrics["reward"] < baseline["reward"] - 2 * baseline["reward_error"]
    return [name for name, is_raised in raised.items() if is_raised]


def alarms_of_recent(lines, baseline):
    """`alarms` of the mean over the last AVERAGED_STEPS lines of metrics.jsonl, none if there are
    fewer. The last line has all metrics; a metric that another lacks is nan, which is silent."""
    if len(recent := lines[-AVERAGED_STEPS:]) < AVERAGED_STEPS:
        return []
    sums = {name: sum(line.get(name, math.nan) for line in recent) for name in recent[-1]}
    return alarms({name: total / AVERAGED_STEPS for name, total in sums.items()}, baseline)


def plot(settings, baseline, lines):
    """monitor.png in the run folder: the metrics of the steps, lines of metrics.jsonl; dashed is
    the reference's value, red is where an alarm was raised. settings: reward.py's."""
    out = Path(settings.out_dir)
    with plot_to(out / "monitor.png", 3, 3, size=(11, 7.5), dpi=110) as (figure, panels):
        title = f"stories about {settings.word}: {settings.method}"
        figure.suptitle(f"{out.name}, {title}, kl_factor {settings.kl_factor:g}", fontsize=11)
        for axes, (name, label) in zip(panels.flat, PANELS.items(), strict=True):
            points = [(line["step"], line[name]) for line in lines if name in line]
            axes.plot(*zip(*points, strict=True), lw=1)
            if name in baseline:
                axes.axhline(baseline[name], ls="--", lw=1, color="gray")
            for line in lines:
                if f"alarm_{name}" in line:
                    axes.axvspan(line["step"] - 1, line["step"], color="red", alpha=0.2, lw=0)
            axes.set_title(label, fontsize=9)
            axes.tick_params(labelsize=7)
            axes.margins(y=0.2)
