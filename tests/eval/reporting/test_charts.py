"""The report's figures: no legend covers data, and a heat map shows what a head attends to."""

import numpy as np
import pytest

from eval.reporting import charts


def placed(draw, size=(4.4, 2.8), **labels):
    """(figure, axes) as `charts.chart` draws them, laid out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    rows = charts._draw_panel(axes, draw, labels)
    figure.set_figheight(size[1] + 0.19 * rows)
    FigureCanvasAgg(figure).draw()
    return figure, axes


@pytest.mark.parametrize("size", [(4.4, 2.8), (3.6, 2.6)])
@pytest.mark.parametrize("n", [2, 8, 14])
def test_a_legend_stands_below_the_axes_and_within_the_figure(n, size):
    series = {f"{2**i}-{i}-4 of some kind": [(1, i), (2, 3 - i)] for i in range(n)}
    draw = charts.draw_lines(series, log=False)
    figure, axes = placed(draw, size, xlabel="training tokens", ylabel="loss")
    legend = axes.get_legend().get_window_extent()
    assert legend.y1 < axes.xaxis.get_tightbbox().y0  # below the label, too
    assert legend.x0 >= 0 and legend.y0 >= 0 and legend.x1 <= figure.bbox.width


def test_one_line_needs_no_legend():
    _, axes = placed(charts.draw_lines({"a": [(1, 2), (3, 4)]}))
    assert axes.get_legend() is None


def test_a_panel_is_a_figure_of_its_own():
    """So that they stand beside each other on a wide page and below each other on a narrow one."""
    svgs = charts.panels({name: charts.draw_lines({name: [(1, 2)]}) for name in "abcde"})
    assert len(svgs) == 5 and all(svg.count("<svg") == 1 for svg in svgs)


def test_a_heat_map_shows_the_keys_before_each_query():
    pattern = np.tril(np.full((3, 3), 0.5))
    _, axes = placed(charts.draw_heat_map(pattern, ["Once", " upon", " $a$ \ud800"]), (3.6, 3.6))
    [mesh] = axes.collections
    assert np.ma.getmaskarray(mesh.get_array()).reshape(3, 3).tolist() == [
        [False, True, True],
        [False, False, True],
        [False, False, False],
    ]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["Once", "upon", r"\$a\$ ?"]
    svg = charts.chart(charts.draw_heat_map(pattern, ["a", "b", "c"]))
    assert "<image" not in svg  # the page's policy loads none
