"""
What diversity.py found, to look at: plots, and the completions nearest to a training story.

    plot(results, "diversity.png")         # results: what eval/diversity.json holds
    page(lines, results)                   # lines: of diversity.jsonl, of one model; returns HTML
"""

from html import escape

import numpy as np

from eval.memorization.copying import BINS, SHORT
from nanostories.text.words import ngrams, word_spans, words_and_marks

SHOWN = 12  # completions on the page
ORIGINALS, UNSEEN = "the originals", "unseen stories"

_HEAD = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 Georgia, serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fdfcf9 }}
h1 {{ font-size: 1.6rem }} h2 {{ font-size: 1.1rem; margin: 2.5rem 0 .5rem }}
.four {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1rem }}
.four > div {{ background: #fff; border: 1px solid #ddd; border-radius: 6px; padding: .8rem 1rem;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: .95rem }}
b.label {{ display: block; font: bold .8rem sans-serif; color: #666; margin-bottom: .4rem }}
mark {{ background: #ffe9a8; color: inherit }} u {{ text-decoration-thickness: 2px }}
p.note {{ color: #555; margin: .2rem 0 .6rem }}
</style>
"""


def page(lines, results):
    """
    An HTML page of the SHOWN completions nearest to a training story, of one model's lines.

    Those that are long enough to tell. Beside each stand its beginning, the original and that
    story, words of pairs that it shares with the completion marked; in the completion, the most
    words that any one training story has in a row are underlined.
    """
    model, heat = lines[0]["model"], lines[0]["temperature"]
    means = results["sets"][f"{model} at {heat:g}"]
    title = f"What {model} has in common with its training stories"
    out = [_HEAD.format(title=escape(title)), f"<h1>{escape(title)}</h1>"]
    if means["h"]:
        out.append(
            f"<p>{len(lines)} completions at temperature {heat:g}: on average "
            f"{means['h']['mean']:.3f} of a completion's pairs of words stand in the "
            "training story closest to it. These have most in common with one.</p>"
        )
    ranked = sorted(lines, key=lambda line: (line["words"] < SHORT, -(line["h"] or 0)))
    for line in ranked[:SHOWN]:
        out += _entry(line)
    return "\n".join([*out, "</html>"])


def _entry(line):
    text = line["completion"].strip()
    words = words_and_marks(text)
    shared = set(ngrams(words, 2)) & set(ngrams(words_and_marks(line["closest_text"]), 2))
    copied, n = line["copied"].split(" "), line["run"] or 0
    at = next((i for i in range(len(words)) if words[i : i + n] == copied), 0)
    h = "-" if line["h"] is None else f"{line['h']:.2f}"
    own = ", its own original" if line["closest"] == line["story"] else ""
    where = "no story" if line["closest"] is None else f"story {line['closest']:,}{own}"
    yield f"<h2>h = {h}, {where}</h2>"
    level = {"exact": "an exact copy", "template": "a simple template", "rest": "no copy",
             "short": "too short to tell", None: "empty"}  # fmt: skip
    yield (
        f"<p class=note>{level[line['level']]}; longest run {n} of {line['words']} words, "
        f"{line['run_tokens'] or 0} of {line['tokens']} tokens: “{escape(line['copied'])}”</p>"
    )
    columns = {
        "Beginning": escape(line["beginning"]),
        "Original": escape(line["original"]),
        "Completion": marked(text, shared, (at, at + n)),
        "Closest training story": marked(line["closest_text"], shared),
    }
    yield "<div class=four>"
    for label, text in columns.items():
        yield f"<div><b class=label>{label}</b>{text}</div>"
    yield "</div>"


def marked(text, bigrams, run=(0, 0)):
    """
    A text as HTML, the words of these bigrams in <mark>, and its words run[0] to run[1] in <u>.
    """
    words, places = words_and_marks(text), word_spans(text)
    pairs = [pair in bigrams for pair in ngrams(words, 2)]
    hot = [a or b for a, b in zip([False, *pairs], [*pairs, False], strict=True)] if words else []
    # How each character is shown; a blank between two words that are shown alike goes with them.
    look = ["" for _ in text]
    for i, (start, stop) in enumerate(places):
        kind = ("m" if hot[i] else "") + ("u" if run[0] <= i < run[1] else "")
        look[start:stop] = [kind] * (stop - start)
        if i and places[i - 1][1] < start and look[places[i - 1][1] - 1] == kind:
            look[places[i - 1][1] : start] = [kind] * (start - places[i - 1][1])
    tags = {"": "{}", "m": "<mark>{}</mark>", "u": "<u>{}</u>", "mu": "<mark><u>{}</u></mark>"}
    out, start = [], 0
    for i in range(1, len(text) + 1):
        if i == len(text) or look[i] != look[start]:
            out.append(tags[look[start]].format(escape(text[start:i])))
            start = i
    return "".join(out)


# ----------------------------------------------------------------------------------------------
# plots


def plot(results, path):
    """Write a PNG of what eval/diversity.json holds."""
    from matplotlib.figure import Figure  # slow to import, and needed only here

    figure = Figure(figsize=(12, 11), layout="tight")
    axes = figure.subplots(3, 2).flatten()
    sets = results["sets"]
    heat = float(results["temperatures"].split(",")[0])
    first = [f"{model} at {heat:g}" for model in results["models"]]
    colours = dict(zip([*first, ORIGINALS, UNSEEN], _colours(len(first)), strict=True))
    for ax, kind, beside, label in (
        (axes[0], "s", [], "s: how much of the original continuation"),
        (axes[1], "r", [ORIGINALS], "r: how much of the most similar other"),
        (axes[2], "h", [UNSEEN], "h: how much of the closest training story"),
        (axes[3], "run", [UNSEEN], "words in a row that a training story has"),
    ):
        _histograms(ax, sets, [*first, *beside], kind, colours)
        ax.set(xlabel=label, ylabel="completions")
    _occurrences(axes[4], sets[first[0]]["g"])
    axes[4].set_title(first[0], fontsize=10)
    _heats(axes[5], results, colours)
    for ax in axes:
        ax.grid(alpha=0.3)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=8, ncols=2 if ax is axes[5] else 1)
    figure.savefig(path, dpi=110, format="png")


def _colours(models):
    """A colour for each model, and greys for the two sets of real stories."""
    return [*(f"C{i % 10}" for i in range(models)), "0.35", "0.6"]


def _histograms(ax, sets, names, kind, colours):
    """Histograms of the values of some sets over the same bins, and their means as lines."""
    values = {
        name: [x for x in sets[name]["values"].get(kind, []) if x is not None]
        for name in names if name in sets
    }  # fmt: skip
    top = max((max(found) for found in values.values() if found), default=1) or 1
    # Counts get whole bins, as few as tell them apart.
    width = max(1, -(-top // 25)) if kind == "run" else max(top, 0.1) / 25
    bins = np.arange(0, top + 2 * width, width)
    for name, found in values.items():
        if found:
            label = f"{name}: {np.mean(found):.3g}"
            ax.hist(found, bins, histtype="step", lw=1.8, color=colours[name], label=label)
            ax.axvline(np.mean(found), color=colours[name], ls=":", lw=1.2)


def _occurrences(ax, g):
    """How often the k-grams occur in the training stories, a line for each k."""
    middles = BINS[:-1] + 0.25
    for i, (k, found) in enumerate(g.items()):
        counts = np.array(found["histogram"]) / max(1, sum(found["histogram"]))
        never = f", {found['never']['mean']:.0%} never" if found["never"] else ""
        colour = f"C{i}"
        ax.plot(middles[1:], counts[1:], "-", color=colour, label=f"{k}-grams{never}")
        ax.plot([-10], counts[:1], "o", color=colour)
    ax.set(xlabel="log10 of the share of all training k-grams (-10: never)",
           ylabel="share of the completions' k-grams")  # fmt: skip


def _heats(ax, results, colours):
    """h, distinct-3 and self-BLEU of each model against temperature; real stories' as lines."""
    sets = results["sets"]
    heats = sorted({float(x) for x in results["temperatures"].split(",")})
    kinds = {
        "h": ("-o", lambda row: row["h"] and row["h"]["mean"]),
        "distinct-3": ("--s", lambda row: row["distinct"]["3"]),
        "self-BLEU": (":^", lambda row: row["self_bleu"] and row["self_bleu"]["mean"]),
    }
    first = float(results["temperatures"].split(",")[0])
    for model in results["models"]:
        for kind, (style, of) in kinds.items():
            rows = [of(sets[f"{model} at {heat:g}"]) for heat in heats]
            colour = colours[f"{model} at {first:g}"]
            ax.plot(heats, [np.nan if y is None else y for y in rows], style, color=colour, ms=4,
                    label=f"{model}, {kind}")  # fmt: skip
    if UNSEEN in sets:
        for kind, (style, of) in kinds.items():
            ax.axhline(of(sets[UNSEEN]) or np.nan, color=colours[UNSEEN], lw=1,
                       ls=style.rstrip("os^"), label=f"{UNSEEN}, {kind}")  # fmt: skip
    ax.set(xlabel="temperature", ylim=(0, 1.35))  # with room for the legend
