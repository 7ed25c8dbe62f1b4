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


def _draw_panel(axes, draw, labels):
    """Draw on axes, with the legend below them, where it covers no data; returns its rows."""
    from matplotlib.transforms import ScaledTranslation

    draw(axes)
    axes.set(**labels)
    axes.tick_params(which="minor", labelsize=6)  # 3 x 10^5, 4 x 10^5 of a logarithm
    names = axes.get_legend_handles_labels()[1]
    if len(names) < 2:
        return 0
    width = axes.figure.get_figwidth() / len(axes.figure.axes) - 0.5  # inches, of 13 letters
    columns = min(len(names), max(1, int(13 * width / (7 + max(map(len, names))))))
    below = axes.transAxes + ScaledTranslation(0, -0.5, axes.figure.dpi_scale_trans)
    axes.legend(ncols=columns, loc="upper center", bbox_to_anchor=(0.5, 0),
                bbox_transform=below, borderaxespad=0)  # fmt: skip
    return -(-len(names) // columns)


def chart(draw, size=(4.4, 2.8), **labels):
    """An SVG, a str, of what draw(axes) draws. labels: of axes.set."""
    import matplotlib
    from matplotlib.figure import Figure

    out = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        rows = _draw_panel(figure.subplots(), draw, labels)
        figure.set_figheight(size[1] + 0.19 * rows)
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor").replace(LINE, "var(--line)")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # As wide as the page, but no wider than its letters are made for.
    width = f' style="max-width: {7 * size[0]:g}rem"'
    return re.sub(r' width="[^"]*" height="[^"]*"', width, svg, count=1)


def panels(draws, size=(3.6, 2.6), **labels):
    """A list with a `chart` for each of {title: draw}."""
    return [chart(draw, size=size, title=title, **labels) for title, draw in draws.items()]


def picture(path, *panels, size):
    """Two panels or more, (draw, labels), side by side in a PNG file, black on white."""
    with plot_to(path, columns=len(panels), size=size, dpi=130) as (_, axes):
        for one, panel in zip(axes, panels, strict=True):
            _draw_panel(one, *panel)


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

    return draw


def draw_intervals(rows, positions, ticks=()):
    """Draw {name: {key: interval}} as lines with error bars at positions, {key: x}, on a
    logarithmic scale with ticks at the widths, if given."""

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

    return draw


def draw_histograms(rows, bins):
    """Draw {name: values} as outlined histograms; a value that is None does not count."""

    def draw(axes):
        for color, (name, values) in zip(colors(len(rows)), rows.items(), strict=True):
            values = [x for x in values if x is not None]
            axes.hist(values, bins, histtype="step", color=color, lw=1.3, label=name)

    return draw


def draw_heat_map(pattern, tokens):
    """Draw a head's attention, (T, T): row i is how much query i attends to each key j <= i."""
    from matplotlib.colors import LinearSegmentedColormap

    def draw(axes):
        n = len(tokens)
        # Attention of 0 is the page itself, light or dark.
        shades = LinearSegmentedColormap.from_list("", [(0.75, 0.35, 0.1, x) for x in (0, 1)])
        hidden = np.triu(np.ones((n, n), bool), 1)
        axes.pcolormesh(np.ma.array(pattern[:n, :n], mask=hidden), cmap=shades, vmin=0, vmax=1)
        # matplotlib refuses half a surrogate pair, and reads $ as the start of a formula.
        text = "\0".join(tokens).encode("utf-8", "replace").decode().replace("$", r"\$")
        names = [name.strip()[:14] for name in text.split("\0")]
        axes.set_xticks(np.arange(n) + 0.5, names, rotation=90, fontsize=6)
        axes.set_yticks(np.arange(n) + 0.5, names, fontsize=6)
        axes.set_ylim(n, 0)
        axes.grid(False)

    return draw
