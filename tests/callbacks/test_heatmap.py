"""Maps by depth and step can be read: fixed colors, whole steps, names that leave room."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from lightning_depth.callbacks._curves_figure import draw_curves
from lightning_depth.callbacks._heatmap import draw_heatmap, draw_map, shorten_name

LONG = [
    f"model.text_model.encoder.layer.{block}.{part}"
    for block in range(6)
    for part in ("attention.self.query_key_value_projection", "intermediate_dense_act_fn")
]
WIDE = [f"{'WM' * 40}.{place}" for place in range(4)]
SHORT = ["0", "1", "2"]


def _table(
    values: dict[int, list[float]], names: list[str] | None = None, column: str = "rms"
) -> dict[str, list[Any]]:
    """One list of values a step, in order of depth."""
    count = len(next(iter(values.values())))
    names = names or [f"layer{place}" for place in range(count)]
    return {
        "step": [step for step in values for _ in range(count)],
        "depth": [place + 1 for _ in values for place in range(count)],
        "layer": [name for _ in values for name in names],
        column: [value for row in values.values() for value in row],
    }


def _mesh(figure: Figure) -> QuadMesh:
    return next(item for item in figure.axes[0].collections if isinstance(item, QuadMesh))


def _drawn(figure: Figure) -> Figure:
    FigureCanvasAgg(figure).draw()
    return figure


def _cells(figure: Figure) -> np.ndarray:
    return np.ma.filled(_mesh(figure).get_array().astype(float), math.nan)


# Colors


@pytest.mark.parametrize("column", ["rms", "grad_to_weight", "grad_rms", "update_to_weight"])
def test_colors_mean_the_same_in_every_figure_of_a_run(column: str) -> None:
    early = _table({0: [0.9, 1.1]}, column=column)
    late = _table({0: [0.9, 1.1], 1: [1e-6, 300.0]}, column=column)
    limits = [_mesh(draw_heatmap(table, column, "", "")[0]).get_clim() for table in (early, late)]
    assert limits[0] == limits[1]


@pytest.mark.parametrize("column", ["dead", "saturated", "dormant"])
def test_shares_run_from_zero_to_one(column: str) -> None:
    mesh = _mesh(draw_heatmap(_table({0: [0.0, 0.2]}, column=column), column, "", "")[0])
    assert mesh.get_clim() == (0.0, 1.0)
    assert mesh.norm(0.25) == pytest.approx(0.25)


def test_signal_that_keeps_its_size_has_the_middle_color() -> None:
    mesh = _mesh(draw_heatmap(_table({0: [0.1, 1.0, 10.0]}), "rms", "", "")[0])
    below, middle, above = (float(mesh.norm(value)) for value in (0.1, 1.0, 10.0))
    assert middle == pytest.approx(0.5)
    assert above - middle == pytest.approx(middle - below)


def test_relative_map_holds_each_step_against_its_own_median() -> None:
    table = _table({0: [1e-4, 1e-2, 1.0], 1: [2.0, 8.0, 4.0]}, column="grad_to_weight")
    figure, _ = draw_heatmap(table, "grad_to_weight", "", "", relative=True)
    by_hand = [[0.01, 0.5], [1.0, 2.0], [100.0, 1.0]]  # medians 0.01 and 4
    np.testing.assert_allclose(_cells(figure), by_hand)
    assert float(_mesh(figure).norm(1.0)) == pytest.approx(0.5)


def test_relative_map_holds_each_optimizer_against_its_own_median() -> None:
    table = _table({0: [1.0, 2.0, 3.0, 100.0, 200.0, 300.0]}, column="grad_to_weight")
    table["optimizer"] = [0, 0, 0, 1, 1, 1]
    figure, _ = draw_heatmap(table, "grad_to_weight", "", "", relative=True)
    np.testing.assert_allclose(_cells(figure)[:, 0], [0.5, 1.0, 1.5, 0.5, 1.0, 1.5])


def test_zero_and_infinity_take_the_end_colors_and_what_is_not_a_number_none() -> None:
    table = _table({0: [0.0, math.inf, math.nan, 1.0]})
    figure = _drawn(draw_heatmap(table, "rms", "", "")[0])
    mesh = _mesh(figure)
    low, high, none, middle = mesh.get_facecolors().reshape(-1, 4)
    np.testing.assert_allclose(low, mesh.cmap(0.0))
    np.testing.assert_allclose(high, mesh.cmap(1.0))
    assert none[3] == 0.0
    np.testing.assert_allclose(middle, mesh.cmap(mesh.norm(1.0)))


def test_column_without_a_scale_of_its_own_spans_whole_decades() -> None:
    table = _table({0: [3e-3, 20.0]}, column="something")
    low, high = _mesh(draw_heatmap(table, "something", "", "")[0]).get_clim()
    assert (low, high) == pytest.approx((1e-3, 1e2))


@pytest.mark.parametrize("values", [{0: [math.nan, math.nan]}, {}])
def test_map_without_numbers_can_be_drawn(values: dict[int, list[float]]) -> None:
    table = _table(values) if values else {}
    _drawn(draw_heatmap(table, "rms", "Nothing", "")[0])


# Axes


@pytest.mark.parametrize("steps", [[0], [0, 1], [0, 1, 2, 3], [3, 50, 100, 150], [7, 1000]])
def test_ticks_stand_at_whole_steps(steps: list[int]) -> None:
    figure, axes = draw_heatmap(_table({step: [1.0, 2.0] for step in steps}), "rms", "", "")
    _drawn(figure)
    shown = [label.get_text() for label in axes.get_xticklabels() if label.get_text()]
    assert shown
    assert all("." not in text for text in shown)


def test_layers_that_come_later_and_go_have_rows_of_their_own() -> None:
    table = {
        "step": [0, 0, 1, 1, 1],
        "depth": [1, 2, 1, 2, 3],
        "layer": ["stem", "head", "stem", "block", "new_head"],
        "rms": [1.0, 2.0, 3.0, 4.0, 5.0],
    }
    figure, axes = draw_heatmap(table, "rms", "", "")
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        *("stem", "head", "block", "new_head")
    ]
    np.testing.assert_allclose(
        _cells(figure), [[1, 3], [2, math.nan], [math.nan, 4], [math.nan, 5]]
    )


# Names


@pytest.mark.parametrize("names", [SHORT, LONG, WIDE], ids=["short", "long", "wide"])
def test_map_keeps_half_of_the_width_and_names_stay_inside(names: list[str]) -> None:
    table = _table({0: [1.0] * len(names), 1: [2.0] * len(names)}, names)
    figure, axes = draw_heatmap(table, "rms", "Activations by depth", "RMS of the output")
    _drawn(figure)
    assert axes.get_position().width >= 0.5
    for label in axes.get_yticklabels():
        assert label.get_window_extent().x0 >= 0


def test_names_keep_their_end() -> None:
    table = _table({0: [1.0] * len(LONG)}, LONG)
    _, axes = draw_heatmap(table, "rms", "", "")
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert shown[0].startswith("…layer.0…")
    assert shown[0].endswith("projection")
    assert len(set(shown)) == len(LONG)


@pytest.mark.parametrize(
    ("name", "points", "expected"),
    [
        ("layer.1", 500.0, "layer.1"),
        ("encoder.layer.11.attention", 114.0, "…layer.11.attention"),
        ("encoder.layer.11.attention", 96.0, "…11.attention"),
        ("encoder", 36.0, "…coder"),
        ("net.stage.3.block.17.branch.conv.weight", 126.0, "…block.17…conv.weight"),
        ("net.stage.3.block.17.branch.conv.weight", 102.0, "…block.17…weight"),
        ("net.stage.3.block.17.branch.conv.weight", 78.0, "…block.17…ght"),
        ("net.stage.3.block.17.branch.conv.weight", 30.0, "…ight"),
    ],
)
def test_name_is_shortened_from_the_left_and_keeps_its_number(
    name: str, points: float, expected: str
) -> None:
    def six_points_a_letter(text: str) -> float:
        return 6.0 * len(text)

    assert shorten_name(name, points, six_points_a_letter) == expected


def test_120_layers_have_at_most_24_names() -> None:
    names = [f"net.blocks.{place}" for place in range(120)]
    _, axes = draw_heatmap(_table({0: [1.0] * 120}, names), "rms", "", "")
    assert len(axes.get_yticklabels()) <= 24


# Panels


def test_maps_can_be_panels_of_one_figure() -> None:
    figure = Figure(figsize=(7, 9), layout="constrained")
    names = LONG[:4]
    table = _table({0: [0.1, 0.2, 0.3, 0.4], 5: [0.2] * 4}, names, column="dead")
    table["rms"] = table["dead"]
    upper, lower = figure.subplots(2, sharex=True)
    draw_map(upper, table, "dead", title="Dead units", label="share")
    draw_map(lower, table, "rms", title="RMS", label="RMS of the output")
    _drawn(figure)
    assert [axes.get_title() for axes in (upper, lower)] == ["Dead units", "RMS"]
    assert min(axes.get_position().width for axes in (upper, lower)) >= 0.5


def test_panels_side_by_side_name_the_layers_once_and_share_the_room() -> None:
    figure = Figure(figsize=(12, 4), layout="constrained")
    columns = figure.subplots(1, 3)
    table = _table({0: [0.1] * len(LONG), 5: [0.2] * len(LONG)}, LONG)
    for place, axes in enumerate(columns):
        draw_map(axes, table, "rms", names=place == 0)
    _drawn(figure)
    assert [len(axes.get_yticklabels()) > 0 for axes in columns] == [True, False, False]
    assert sum(axes.get_position().width for axes in columns) >= 0.5


# Curves


@pytest.mark.parametrize("counts", [[0], [0, 1], [0, 1, 2]])
def test_curves_have_ticks_at_whole_epochs(counts: list[int]) -> None:
    figure = Figure()
    axes = figure.subplots()
    draw_curves(axes, counts, {"loss": [0.5 + count for count in counts]})
    _drawn(figure)
    shown = [label.get_text() for label in axes.get_xticklabels() if label.get_text()]
    assert shown
    assert all("." not in text for text in shown)
