"""Plots of eval.diversity's results, and a page of the completions nearest to a training story.

plot(results, "diversity.png")         # results: what eval/diversity.json holds
html = render(lines, results)          # lines: of diversity.jsonl, of one model
"""

import itertools
from pathlib import Path

import numpy as np
from jinja2 import Template
from markupsafe import Markup, escape

from eval.memorization.copying import MIDDLES, MIN_WORDS
from nanostories.plotting import plot_to
from nanostories.text.words import ngrams, word_spans, words_and_marks

SHOWN = 12  # completions on the page
ORIGINALS, UNSEEN = "original continuations", "unseen stories"
_KINDS = {"exact": "an exact copy", "template": "a simple template", "no_copy": "no copy",
          "short": "too short to judge", None: "empty"}  # fmt: skip


def render(lines, results):
    """The HTML page of one model's SHOWN completions nearest to a training story, those too short
    to judge last, each beside its beginning, the original continuation and that story."""
    model, temperature = lines[0]["model"], f"{lines[0]['temperature']:g}"
    nearest = results["sets"][f"{model} at {temperature}"]["rouge_nearest"]
    ranked = sorted(lines, key=lambda x: (x["words"] < MIN_WORDS, -(x["rouge_nearest"] or 0)))
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return Template(template, autoescape=True, trim_blocks=True).render(
        title=f"What {model} shares with its training stories", kinds=_KINDS,
        mean=nearest and nearest["mean"], total=len(lines), temperature=temperature,
        entries=[(line, _columns(line)) for line in ranked[:SHOWN]],
    )  # fmt: skip


def _columns(line):
    """The texts that stand side by side, by their titles."""
    text = line["completion"].strip()
    words = words_and_marks(text)
    shared = set(ngrams(words, 2)) & set(ngrams(words_and_marks(line["nearest_text"]), 2))
    match, n = line["longest_match_text"].split(" "), line["longest_match"] or 0
    start = next((i for i in range(len(words)) if words[i : i + n] == match), 0)
    return {
        "Beginning": line["beginning"],
        "Original": line["original"],
        "Completion": highlight(text, shared, (start, start + n)),
        "Nearest training story": highlight(line["nearest_text"], shared),
    }


def highlight(text, bigrams, match=(0, 0)):
    """A text as HTML: words of these bigrams in <mark>, words match[0] to match[1] in <u>."""
    words, places = words_and_marks(text), word_spans(text)
    pairs = [pair in bigrams for pair in ngrams(words, 2)]
    marked = [a or b for a, b in zip([False, *pairs], [*pairs, False], strict=True)]
    # The format of each character; a blank between two words of the same format has it too.
    formats = ["{}"] * len(text)
    for i, (start, stop) in enumerate(places):
        inner = "<u>{}</u>" if match[0] <= i < match[1] else "{}"
        formats[start:stop] = [f"<mark>{inner}</mark>" if marked[i] else inner] * (stop - start)
        if i and places[i - 1][1] < start and formats[places[i - 1][1] - 1] == formats[start]:
            formats[places[i - 1][1] : start] = [formats[start]] * (start - places[i - 1][1])
    runs = itertools.groupby(zip(formats, text, strict=True), lambda pair: pair[0])
    runs = ((look, "".join(char for _, char in run)) for look, run in runs)
    return Markup("".join(look.format(escape(run)) for look, run in runs))


# Of each set's values: (key, sets beside those of the models, title).
HISTOGRAMS = (
    ("rouge_original", [], "ROUGE-2 precision with the original continuation"),
    ("rouge_other", [ORIGINALS], "ROUGE-2 F1 with the most similar other text"),
    ("rouge_nearest", [UNSEEN], "ROUGE-2 precision with the nearest training story"),
    ("longest_match", [UNSEEN], "longest match in a training story, words"),
)


def plot(results, path):
    """Write a PNG of what eval/diversity.json holds."""
    sets = results["sets"]
    temperature = float(results["temperatures"].split(",")[0])
    first = [f"{model} at {temperature:g}" for model in results["models"]]
    colors = {name: f"C{i % 10}" for i, name in enumerate(first)}
    colors |= {UNSEEN: "0.6", ORIGINALS: "0.35"}
    with plot_to(path, 3, 2, size=(12, 11), dpi=110) as (_, grid):
        axes = grid.flatten()
        for ax, (key, others, title) in zip(axes, HISTOGRAMS, strict=False):
            values = {name: sets[name]["values"] for name in [*first, *others] if name in sets}
            _histograms(ax, {name: row.get(key, []) for name, row in values.items()}, key, colors)
            ax.set(xlabel=title, ylabel="completions")
        _ngrams(axes[4], sets[first[0]]["ngrams"])
        axes[4].set_title(first[0], fontsize=10)
        _by_temperature(axes[5], results, colors)
        for ax in axes:
            if ax.get_legend_handles_labels()[0]:
                ax.legend(fontsize=8, ncols=2 if ax is axes[5] else 1)


def _histograms(ax, values, key, colors):
    """Histograms of {set: values, None where there is none}, their means as vertical lines."""
    values = {name: [x for x in row if x is not None] for name, row in values.items()}
    top = max(itertools.chain(*values.values()), default=1) or 1
    # Bins of counts are whole numbers wide.
    width = max(1, -(-top // 25)) if key == "longest_match" else max(top, 0.1) / 25
    bins = np.arange(0, top + 2 * width, width)
    for name, row in values.items():
        if row:
            label = f"{name}: {np.mean(row):.3g}"
            ax.hist(row, bins, histtype="step", lw=1.8, color=colors[name], label=label)
            ax.axvline(np.mean(row), color=colors[name], ls=":", lw=1.2)


def _ngrams(ax, ngram_results):
    """How often a model's n-grams occur in the training stories, a line for each n."""
    for i, (n, row) in enumerate(ngram_results.items()):
        fractions = np.array(row["histogram"]) / max(1, sum(row["histogram"]))
        new = f", {row['new']['mean']:.0%} new" if row["new"] else ""
        ax.plot(MIDDLES[1:], fractions[1:], "-", color=f"C{i}", label=f"{n}-grams{new}")
        ax.plot([-10], fractions[:1], "o", color=f"C{i}")
    ax.set(xlabel="log10 of the frequency among all training n-grams (-10: new)",
           ylabel="fraction of the completions' n-grams")  # fmt: skip


def _by_temperature(ax, results, colors):
    """Three measures of each model against temperature; unseen stories' as horizontal lines."""
    sets = results["sets"]
    temperatures = sorted({float(x) for x in results["temperatures"].split(",")})
    measures = (
        ("ROUGE-2 nearest", "o-", lambda row: (row["rouge_nearest"] or {}).get("mean")),
        ("distinct-3", "s--", lambda row: row["distinct"]["3"]),
        ("self-BLEU", "^:", lambda row: (row["self_bleu"] or {}).get("mean")),
    )
    rows = {model: [sets[f"{model} at {x:g}"] for x in temperatures] for model in results["models"]}
    if UNSEEN in sets:
        rows[UNSEEN] = [sets[UNSEEN]] * len(temperatures)
    for (name, row), color in zip(rows.items(), colors.values(), strict=False):
        for measure, style, value in measures:
            values = np.array([value(one) for one in row], np.float64)
            ax.plot(temperatures, values, style, color=color, ms=4, label=f"{name}, {measure}")
    ax.set(xlabel="temperature", ylim=(0, 1.35))  # with room for the legend
