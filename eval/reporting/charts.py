"""
The report's figures, as SVG that takes the page's colours: dark on light, or light on dark.

    svg = chart(lambda axes: axes.plot([1, 2], [3, 4]), xlabel="tokens", ylabel="loss")
    svg = lines({"64-2-4": [(1e6, 3.1), (2e6, 2.9)]}, xlabel="tokens", ylabel="loss")

What a figure says in words is text in it, not paths, so a page can search it and a reader hear it.
"""

import io
import re

import numpy as np

from nanostories.storage import atomic_file

INK, LINE = "#123456", "#654321"  # stand for what the page's style decides
_RC = {
    "svg.fonttype": "none", "svg.hashsalt": "study", "font.family": "sans-serif", "font.size": 9,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK,
    "ytick.color": INK, "grid.color": LINE, "axes.facecolor": "none", "figure.facecolor": "none",
    "legend.facecolor": "none", "legend.edgecolor": LINE, "legend.fontsize": 8,
    "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip


def colours(n):
    """n colours from cold to warm, none so light or so dark that white or black would hide it."""
    import matplotlib

    found = []
    for x in np.linspace(0.08, 0.92, max(2, n))[:n]:
        rgb = np.array(matplotlib.colormaps["turbo"](x)[:3])
        light = rgb**2.2 @ (0.2126, 0.7152, 0.0722)  # WCAG's relative luminance, nearly
        rgb = rgb * (np.clip(light, 0.12, 0.26) / light) ** (1 / 2.2)
        found.append(tuple(np.clip(rgb, 0, 1)))
    return found


def saved(out, draws, size, labels, style, **how):
    """Draw a figure and save it to a path or file."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(1, len(draws), squeeze=False)[0]
        for i, (axes, draw) in enumerate(zip(panels, draws, strict=True)):
            axes.grid(alpha=0.4, lw=0.5)
            draw(axes)
            axes.set(**{k: v[i] if isinstance(v, list) else v for k, v in labels.items()})
        figure.savefig(out, **how)


def chart(*draws, size=(7, 3.6), **labels):
    """
    One SVG, a str, with a panel for each draw(axes). labels: of axes.set, the same for all panels,
    or a list with one for each.
    """
    out = io.StringIO()
    saved(out, draws, size, labels, _RC, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor").replace(LINE, "var(--line)")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # As wide as the page allows, up to what its letters are made for.
    return re.sub(
        r' width="[^"]*" height="[^"]*"', f' style="max-width: {7 * size[0]:g}rem"', text, count=1
    )


def picture(path, *draws, size=(7, 3.6), **labels):
    """The same as a PNG file, black on white."""
    style = {k: {INK: "black", LINE: "#cccccc", "none": "white"}.get(v, v) for k, v in _RC.items()}
    with atomic_file(path) as part:
        saved(part, draws, size, labels, style | {"svg.fonttype": "path"}, format="png", dpi=130)


def draw_lines(series, log=True, marks=""):
    """A draw of `chart`: {name: [(x, y)]}, x in logarithms or not."""

    def draw(axes):
        for colour, (name, points) in zip(colours(len(series)), series.items(), strict=True):
            x, y = np.array(points, np.float64).reshape(-1, 2).T
            axes.plot(x, y, marks + "-", color=colour, lw=1.2, ms=3.5, label=name)
        if log:
            axes.set_xscale("log")
        if len(series) > 1:
            axes.legend(ncols=1 + len(series) // 9, fontsize=8 if len(series) < 13 else 5)

    return draw


def lines(series, log=True, marks="", size=(7, 3.6), **labels):
    """One panel of lines, SVG; None of no points."""
    series = {name: points for name, points in series.items() if len(points)}
    return chart(draw_lines(series, log, marks), size=size, **labels) if series else None


def smooth(points, share=0.05):
    """A curve's running means over a share of its points, [(x, y)]."""
    width = max(1, round(share * len(points)))
    x, y = np.array(points, np.float64).T if len(points) else (np.zeros(0), np.zeros(0))
    if len(x) < 2 * width:
        return points
    kernel = np.ones(width) / width
    return list(zip(x[width - 1 :], np.convolve(y, kernel, "valid"), strict=True))


def draw_intervals(rows, at, ticks=()):
    """
    A draw of `chart`: {name: {key: interval}} at the places {key: x}: a line a name, with what the
    intervals reach. ticks: of the x axis, if not matplotlib's own.
    """

    def draw(axes):
        for i, (colour, (name, cells)) in enumerate(
            zip(colours(len(rows)), rows.items(), strict=True)
        ):
            keys = sorted((key for key in cells if cells[key]), key=lambda key: at[key])
            x = np.array([at[key] for key in keys]) * 1.02**i  # beside each other
            y = np.array(
                [[cells[key][end] for end in ("mean", "low", "high")] for key in keys]
            ).reshape(-1, 3)
            error = np.abs(y[:, 1:].T - y[:, 0])
            axes.errorbar(
                x,
                y[:, 0],
                error,
                fmt="o-",
                color=colour,
                lw=1.2,
                ms=3.5,
                label=name,
                elinewidth=0.8,
            )
        axes.set_xscale("log")
        if ticks:
            axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
            axes.set_xticks([], minor=True)
        axes.legend()

    return draw


def draw_histograms(rows, bins):
    """A draw of `chart`: {name: values}, as outlines."""

    def draw(axes):
        for colour, (name, values) in zip(colours(len(rows)), rows.items(), strict=True):
            values = [x for x in values if x is not None]
            axes.hist(values, bins, histtype="step", color=colour, lw=1.3, label=name)
        axes.legend()

    return draw
