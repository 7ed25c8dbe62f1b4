"""One way to draw: a matplotlib figure with its axes, saved atomically as a PNG file."""

import contextlib
import sys

from nanostories.storage import atomic_file


@contextlib.contextmanager
def plot_to(path, rows=1, columns=1, size=(7, 4), dpi=120):
    """Give (figure, axes) to draw on; when the block ends well, save the figure to `path`. What
    fails is one line on stderr: no run ends for a picture.

    rows, columns: of panels. size: inches. axes: one matplotlib Axes, or an array of them (rows,
    columns) where there are several panels."""
    from matplotlib.figure import Figure  # slow to import, and needed only here
    from matplotlib.text import Text

    figure = Figure(figsize=size, layout="tight")
    axes = figure.subplots(rows, columns)
    try:
        yield figure, axes
        for panel in figure.axes:
            panel.grid(alpha=0.3)
        for text in figure.findobj(Text):  # a $ in a name is a $; ticks have no text yet
            text.set_parse_math(not text.get_text())
        with atomic_file(path) as part:
            figure.savefig(part, dpi=dpi, format="png")
    except Exception as error:
        with contextlib.suppress(OSError):
            print(f"note: no {path}:", *f"{type(error).__name__}: {error}".split(), file=sys.stderr)
