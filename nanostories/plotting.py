"""One way to draw: a matplotlib figure with its axes, saved atomically as a PNG file."""

import contextlib

from nanostories.storage import atomic_file


@contextlib.contextmanager
def plot_to(path, rows=1, columns=1, size=(7, 4), dpi=120):
    """Give (figure, axes) to draw on; when the block ends well, save the figure to `path`.

    rows, columns: of panels. size: inches. axes: one matplotlib Axes, or an array of them (rows,
    columns) where there are several panels.
    """
    from matplotlib.figure import Figure  # slow to import, and needed only here

    figure = Figure(figsize=size, layout="tight")
    axes = figure.subplots(rows, columns)
    yield figure, axes
    for panel in figure.axes:
        panel.grid(alpha=0.3)
    with atomic_file(path) as part:
        figure.savefig(part, dpi=dpi, format="png")
