"""The figure of the training error shows every point that it draws."""

from __future__ import annotations

import pytest

from lightning_depth.callbacks._error_figure import draw_errors


@pytest.mark.parametrize(
    "training", [[3.0, 0.4, 0.01], [3.0, 2.0, 1.0], [0.0, 0.0, 0.0]], ids=["wide", "near", "zero"]
)
@pytest.mark.parametrize("validation", [[3.1, 0.6, 0.08], [0.5, 0.4, 0.3]], ids=["high", "low"])
def test_every_point_lies_within_the_axes(training: list[float], validation: list[float]) -> None:
    table = {"epoch": [0, 1, 2], "loss": training, "val/loss": validation}
    _, axes = draw_errors(table, ["loss"], {"loss": 2.3})
    low, high = axes.get_ylim()
    assert low <= min(*training, *validation)
    assert high >= max(*training, *validation)
    assert len(axes.get_lines()) == 3
