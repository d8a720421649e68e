"""The map of gradients shows what the findings beside it are about, and says so."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from lightning_depth.report._figures import gradient_figure
from lightning_depth.report._page import build_page
from tests.report.fake_study import write_study

ROWS: dict[str, list[Any]] = {
    "depth": [1, 2, 3] * 2,
    "step": [0, 0, 0, 9, 9, 9],
    "grad_rms": [3e-7, 1e-6, 1e-6] * 2,
    "grad_to_weight": [1e-4, 1e-3, 1e-2] * 2,
    "output_grad_rms": [None] * 6,
}
TOTALS: dict[str, list[Any]] = {"step": [0, 9], "shrink_per_layer": [8.0, 12.0]}


def _trials(totals: dict[str, list[Any]] | None = None, **columns: list[Any]) -> Any:
    entry: dict[str, Any] = {"history": ROWS | columns}
    if totals is not None:
        entry["totals"] = totals
    return {"plain": [{"callbacks": {"GradientFlowMonitor": entry}}]}


def _told(trials: Any) -> tuple[str, str]:
    figure = gradient_figure(trials)
    assert figure is not None
    return figure.scale_name, figure.panels[0].note


def test_ratio_of_gradient_to_weight_is_drawn_as_findings_judge_it() -> None:
    name, note = _told(_trials(TOTALS))
    assert name == "Gradient over weight, each a root mean square"
    assert note == "falls 10-fold with every layer toward the input, 3 layers"


def test_gradient_of_outputs_is_drawn_where_it_was_judged() -> None:
    trials = _trials(TOTALS, output_grad_rms=[1e-2, 1e-3, 1e-4] * 2)
    name, note = _told(trials)
    assert name == "Gradient of the layers' outputs, root mean square"
    assert note == "falls 10-fold with every layer toward the input, 3 layers"


def test_a_gradient_that_grows_toward_the_input_is_said_to_grow() -> None:
    trials = _trials({"step": [0], "shrink_per_layer": [0.25]})
    assert _told(trials)[1] == "grows 4-fold with every layer toward the input, 3 layers"


@pytest.mark.parametrize(
    "totals", [None, {"step": [0], "shrink_per_layer": [None]}], ids=["not stored", "no number"]
)
def test_without_a_stored_trend_the_ends_of_the_map_are_compared(totals: Any) -> None:
    assert _told(_trials(totals))[1] == "first layer over last 0.01, 3 layers"


def test_studies_that_stored_the_gradient_alone_show_it() -> None:
    trials = _trials()
    history = trials["plain"][0]["callbacks"]["GradientFlowMonitor"]["history"]
    del history["grad_to_weight"], history["output_grad_rms"]
    assert _told(trials)[0] == "Gradient, root mean square"


def test_all_arms_are_drawn_in_one_quantity() -> None:
    trials = _trials(TOTALS, output_grad_rms=[1e-2, 1e-3, 1e-4] * 2)
    trials["deep"] = _trials(TOTALS)["plain"]
    assert _told(trials)[0] == "Gradient over weight, each a root mean square"


def test_a_finding_says_since_which_step(tmp_path: Path) -> None:
    result = write_study(tmp_path)
    found = [each for entry in build_page(result).findings for each in entry.found]
    assert {each.since for each in found} == {"since step 12"}
    bare = [
        trial | {"findings": [finding | {"step": None} for finding in trial.get("findings", ())]}
        for trial in result.trials
    ]
    page = build_page(dataclasses.replace(result, trials=bare))
    assert {each.since for entry in page.findings for each in entry.found} == {""}
