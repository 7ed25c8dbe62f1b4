"""
What a model is watched on while reward.py trains it, the alarms, and the plot.

    base = measures(texts, tokens, log_ref, "cat")       # {"word": 0.2, "repetition": 0.01, ...}
    alarms(measures(...), base)                          # ["repetition", "perplexity"]

A reward can be had without telling stories: "cat cat cat". What then changes is not the reward,
which rises, but everything here. Each measure is compared with the reference's own stories.
"""

import math
from pathlib import Path

from nanostories.storage import atomic_file
from nanostories.text.metrics import distinct_n, repeated_ngrams
from nanostories.text.words import contains_word, ngrams, sentences, split_words, words_and_marks

DISTINCT = 500  # distinct-2 is of so many words and marks at a time
ABOUT = 2  # sentences with the word make a story one about it
RECENT = 5  # steps whose mean the alarms go by
PANELS = {
    "reward": "reward",
    "kl": "KL(policy || reference), nats a story",
    "loss": "loss",
    "about": "stories about the word",
    "mentions": "times a story has the word",
    "repetition": "share of repeated 3-grams",
    "distinct_2": "distinct-2",
    "perplexity": "perplexity under the reference",
    "words": "words of a story",
}


def mentions(word, text):
    """How often a word, in any inflection, or several in a row stand in a text."""
    return sum(
        contains_word(word, part) for part in ngrams(split_words(text), len(split_words(word)))
    )


def is_about(word, text):
    """Whether ABOUT sentences of a text have the word in any inflection."""
    return sum(contains_word(word, split_words(sentence)) for sentence in sentences(text)) >= ABOUT


def story_metrics(texts, ends, counts, log_ref, word):
    """
    What some stories are like, {name: float}; nan where they are too short to say.

    texts: the stories, without their beginning. ends: whether each came to its end. counts: tokens
    of each. log_ref: each one's log-probability under the reference, at the temperature they were
    told at; perplexity is theirs. word: what they should be about.
    """
    words = [split_words(text) for text in texts]
    repeated = [repeated_ngrams(text) for text in texts]
    n = len(texts)
    return {
        "about": sum(is_about(word, text) for text in texts) / n,
        "mentions": sum(mentions(word, text) for text in texts) / n,
        "repetition": sum(a for a, _ in repeated) / max(1, sum(b for _, b in repeated)),
        "distinct_2": distinct_n([words_and_marks(text) for text in texts], 2, DISTINCT),
        "perplexity": math.exp(min(50.0, -sum(log_ref) / sum(counts))),
        "words": sum(map(len, words)) / n,
        "ended": sum(ends) / n,
    }


# {measure: (the least, the most) of the reference's value that is no cause for alarm}. distinct_2
# is nan, and silent, where the stories are too few and short for it.
NORMAL = {
    "repetition": (0, 1.5),
    "distinct_2": (0.75, math.inf),
    "perplexity": (0.6, 1.5),
    "words": (0.5, 1.6),
}
FLOOR = 0.01  # what counts for a measure of the reference's that is less, as no repetition at all
CROWDED = 0.1  # share of words that are the word: more is no story
FAR = 0.25  # nats of KL a token


def alarms(now, base):
    """
    The names of what is wrong, a list of str. now: measures of stories, with what a step adds;
    base: the reference's.
    """
    found = []
    for name, (least, most) in NORMAL.items():
        ratio = now[name] / max(base[name], FLOOR)
        if ratio < least or ratio > most:
            found.append(name)
    if now["mentions"] > CROWDED * now["words"]:
        found.append("mentions")
    if now["kl"] > FAR * now["tokens"]:
        found.append("kl")
    if now["reward"] < base["reward"] - 2 * base["reward_error"]:
        found.append("reward")
    return found


class Monitor:
    """The alarms and the plot of a run."""

    def __init__(self, settings, base, lines):
        """base: the reference's measures. lines: those of metrics.jsonl so far."""
        self.settings, self.base, self.recent = settings, base, lines[-RECENT:]

    def add(self, line):
        """
        What sounds after a step with these measures, a list of names: alarms go by the mean of the
        last RECENT steps, and not before there are so many.
        """
        self.recent = [*self.recent, line][-RECENT:]
        if len(self.recent) < RECENT:
            return []
        return alarms(
            {name: sum(x.get(name, math.nan) for x in self.recent) / RECENT for name in line},
            self.base,
        )

    def plot(self, lines):
        """watch.png: each measure over the steps, dashed the reference's, red where it alarmed."""
        from matplotlib.figure import Figure  # slow to import, and needed only here

        figure = Figure(figsize=(11, 7.5), layout="tight")
        asked = self.settings
        title = f"stories about {asked.word}: {asked.method}, kl_factor {asked.kl_factor:g}"
        figure.suptitle(f"{Path(asked.out_dir).name}, {title}", fontsize=11)
        for axes, (name, label) in zip(figure.subplots(3, 3).flat, PANELS.items(), strict=True):
            points = [(line["step"], line[name]) for line in lines if name in line]
            axes.plot(*zip(*points, strict=True), lw=1)
            if name in self.base:
                axes.axhline(self.base[name], ls="--", lw=1, color="gray")
            for line in lines:
                if f"alarm_{name}" in line:
                    axes.axvspan(line["step"] - 1, line["step"], color="red", alpha=0.2, lw=0)
            axes.set_title(label, fontsize=9)
            axes.tick_params(labelsize=7)
            axes.grid(alpha=0.3)
            axes.margins(y=0.2)
        with atomic_file(Path(asked.out_dir) / "watch.png") as part:
            figure.savefig(part, dpi=110, format="png")
