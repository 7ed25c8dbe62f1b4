"""The report's figures, as SVG that takes the colors of the page: dark on light, or light on dark.

    svg = chart(lambda axes: axes.plot([1, 2], [3, 4]), xlabel="tokens", ylabel="loss")
    svg = lines({"64-2-4": [(1e6, 3.1), (2e6, 2.9)]}, xlabel="tokens", ylabel="loss")

Words in a figure stay text, not paths, so that a page can be searched and read aloud.
"""

import io
import re

import numpy as np

from nanostories.plotting import plot_to

INK, LINE = "#123456", "#654321"  # placeholders for the colors of the page's style
_STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "study", "font.family": "sans-serif", "font.size": 9,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK,
    "ytick.color": INK, "grid.color": LINE, "axes.facecolor": "none", "figure.facecolor": "none",
    "legend.facecolor": "none", "legend.edgecolor": LINE, "legend.fontsize": 8,
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.alpha": 0.4, "grid.linewidth": 0.5,
}  # fmt: skip


def colors(n):
    """n colors from cold to warm, readable on white and on black, float (n, 3)."""
    import matplotlib

    rgb = matplotlib.colormaps["turbo"](np.linspace(0.08, 0.92, max(2, n))[:n])[:, :3]
    luminance = rgb**2.2 @ (0.2126, 0.7152, 0.0722)  # WCAG's relative luminance, nearly
    brighter = (np.clip(luminance, 0.12, 0.26) / luminance) ** (1 / 2.2)
    return np.clip(rgb * brighter[:, None], 0, 1)


def _draw_panels(panels, draws, labels):
    for i, (axes, draw) in enumerate(zip(np.ravel(panels), draws, strict=True)):
        draw(axes)
        axes.set(**{k: v[i] if isinstance(v, list) else v for k, v in labels.items()})


def chart(*draws, size=(7, 3.6), **labels):
    """One SVG, a str, with a panel for each function draw(axes). labels: of axes.set, the same for
    all panels, or a list with one for each.
    """
    import matplotlib
    from matplotlib.figure import Figure

    out = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        _draw_panels(figure.subplots(1, len(draws)), draws, labels)
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor").replace(LINE, "var(--line)")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # As wide as the page, but no wider than its letters are made for.
    width = f' style="max-width: {7 * size[0]:g}rem"'
    return re.sub(r' width="[^"]*" height="[^"]*"', width, svg, count=1)


def panels(draws, **labels):
    """`chart`s of {title: draw}, a list, with up to four panels each."""
    rows = [list(draws.items())[i : i + 4] for i in range(0, len(draws), 4)]
    return [
        chart(*dict(row).values(), size=(2.8 * len(row), 2.8), title=[*dict(row)], **labels)
        for row in rows
    ]


def picture(path, *draws, size, **labels):
    """`chart` as a PNG file, black on white."""
    with plot_to(path, columns=len(draws), size=size, dpi=130) as (_, axes):
        _draw_panels(axes, draws, labels)


def lines(series, log=True, style="-", **labels):
    """A `chart` of one panel with `draw_lines`, None where there are no points."""
    series = {name: points for name, points in series.items() if len(points)}
    return chart(draw_lines(series, log, style), **labels) if series else None


def smooth(points, fraction=0.05):
    """[(x, y)] of the running means of a curve over a fraction of its points."""
    width = max(1, round(fraction * len(points)))
    if len(points) < 2 * width:
        return points
    x, y = np.array(points, np.float64).T
    means = np.convolve(y, np.ones(width) / width, "valid")
    return list(zip(x[width - 1 :], means, strict=True))


# ---- functions that draw on matplotlib Axes ----------------------------------------------------


def draw_lines(series, log=True, style="-"):
    """Draw {name: [(x, y)]}, x on a logarithmic scale or not. style: matplotlib's, as ".-"."""

    def draw(axes):
        for color, (name, points) in zip(colors(len(series)), series.items(), strict=True):
            x, y = np.array(points, np.float64).reshape(-1, 2).T
            axes.plot(x, y, style, color=color, lw=1.2, ms=3.5, label=name)
        if log:
            axes.set_xscale("log")
        if len(series) > 1:
            axes.legend(ncols=1 + len(series) // 9, fontsize=8 if len(series) < 13 else 5)

    return draw


def draw_intervals(rows, positions, ticks=()):
    """Draw {name: {key: interval}} as lines with error bars at positions, {key: x}, on a
    logarithmic scale with ticks at the widths, if given.
    """

    def draw(axes):
        style = {"fmt": "o-", "lw": 1.2, "ms": 3.5, "elinewidth": 0.8}
        for i, (name, cells) in enumerate(rows.items()):
            keys = sorted((key for key in cells if cells[key]), key=positions.get)
            x = np.array([positions[key] for key in keys]) * 1.02**i  # beside each other
            ends = [[cells[key][end] for end in ("mean", "low", "high")] for key in keys]
            y, low, high = np.array(ends).reshape(-1, 3).T
            errors, color = np.abs([low - y, high - y]), colors(len(rows))[i]
            axes.errorbar(x, y, errors, color=color, label=name, **style)
        axes.set_xscale("log")
        if ticks:
            axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
            axes.set_xticks([], minor=True)
        axes.legend()

    return draw


def draw_histograms(rows, bins):
    """Draw {name: values} as outlined histograms; a value that is None does not count."""

    def draw(axes):
        for color, (name, values) in zip(colors(len(rows)), rows.items(), strict=True):
            values = [x for x in values if x is not None]
            axes.hist(values, bins, histtype="step", color=color, lw=1.3, label=name)
        axes.legend()

    return draw
