"""What a notebook and a prompt show of callbacks, figures and findings."""

from __future__ import annotations

import base64
import copy
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningModule, Trainer
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_depth import _extras
from lightning_depth.callbacks import EarlyStopping, GradientFlowMonitor, LayerSeparabilityProbe
from lightning_depth.callbacks._base import DepthCallback
from lightning_depth.callbacks._history import History
from lightning_depth.callbacks._showing import Plot
from lightning_depth.errors import MisuseError
from lightning_depth.findings import Finding, FindingKind, Severity
from tests.callbacks._runs import NUM_BATCHES, every_callback, fit, make

PNG = b"\x89PNG\r\n"
EVIL = "<script>alert('x')</script>"


class Marked(DepthCallback):
    """Finds what it is told, and draws a title."""

    def __init__(self, finding: Finding | None = None, *, title: str = "") -> None:
        super().__init__("marked", "log", History())
        self.finding, self.title = finding, title

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._history.append(step=trainer.global_step)

    def _conclude(self, trainer: Trainer) -> list[Finding]:
        return [self.finding] if self.finding is not None else []

    def _summary(self) -> str:
        return f"Seen by {EVIL}."

    def plot(self) -> tuple[Figure, Axes]:
        """Draw a title."""
        figure = Figure(figsize=(1, 1))
        axes = figure.subplots()
        axes.set_title(self.title)
        return figure, axes


def _finding(**changes: Any) -> Finding:
    told = {
        "kind": FindingKind.VANISHING,
        "severity": Severity.CRITICAL,
        "layers": ("blocks.0",),
        "value": 0.1,
        "threshold": 0.9,
        "message": "The gradient falls 3.2-fold with every layer toward the input.",
        "suggestion": "Add shortcuts.",
        "step": 3,
    }
    return Finding(**{**told, **changes})


def _shows(thing: Any) -> dict[str, Any]:
    formatter = pytest.importorskip("IPython.core.formatters").DisplayFormatter()
    shown, _ = formatter.format(thing)
    return dict(shown)


def _pictures(html: str) -> list[bytes]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [base64.b64decode(each) for each in found]


# Figures


@every_callback
def test_plot_is_a_pair_that_a_notebook_shows(name: str) -> None:
    callback = make(name)
    fit(callback)
    plot = callback.plot()
    figure, axes = plot
    assert isinstance(plot, tuple)
    assert (plot[0], plot[1]) == (figure, axes)
    assert isinstance(figure, Figure)
    assert _shows(plot)["image/png"].startswith(PNG)


def test_plot_of_a_callback_of_ones_own_shows_itself_and_keeps_its_docstring() -> None:
    plot = Marked().plot()
    assert isinstance(plot, Plot)
    assert _shows(plot)["image/png"].startswith(PNG)
    assert Marked.plot.__doc__ == "Draw a title."
    assert plot.figure is plot[0]


def test_plot_is_made_without_pyplot() -> None:
    import matplotlib.pyplot as plt

    callback = make("GradientFlowMonitor")
    fit(callback)
    callback.plot()._repr_png_()  # type: ignore[attr-defined]
    assert plt.get_fignums() == []


# Callbacks


def test_repr_has_the_options_that_were_given() -> None:
    assert repr(GradientFlowMonitor()) == "GradientFlowMonitor(): not run yet"
    assert (
        repr(GradientFlowMonitor("leaf", include="net.*", patience=3, prefix="flow"))
        == "GradientFlowMonitor(granularity='leaf', include='net.*', prefix='flow'): not run yet"
    )
    assert repr(LayerSeparabilityProbe(class_pairs=[(0, 1)], figures=False)).startswith(
        "LayerSeparabilityProbe(class_pairs="
    )


@pytest.mark.parametrize("mode", ["min", "max"])
def test_repr_of_early_stopping_has_min_delta_as_it_was_given(mode: str) -> None:
    stopping = EarlyStopping("val/loss", 0.25, mode=mode)
    told = "" if mode == "min" else ", mode='max'"
    assert repr(stopping) == f"EarlyStopping(monitor='val/loss', min_delta=0.25{told}): not run yet"


def test_repr_counts_after_a_run() -> None:
    callback = Marked(_finding())
    fit(callback)
    counts = f"1 finding, {2 * NUM_BATCHES} measurements"
    assert repr(callback).endswith(f": {counts}")
    assert "\n" not in repr(callback)


@every_callback
def test_repr_is_one_line_before_and_after_a_run_and_of_copies(name: str) -> None:
    callback = make(name)
    assert repr(callback).startswith(f"{name}(")
    assert repr(callback).endswith("): not run yet")
    fit(callback)
    for each in (callback, copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        assert re.search(r"\): \d+ findings?, \d+ measurements?$", repr(each))
        assert "\n" not in repr(each)


@every_callback
def test_notebook_shows_findings_and_figure_of_a_callback(name: str) -> None:
    callback = make(name)
    fit(callback)
    html = _shows(callback)["text/html"]
    assert name in html
    assert [picture.startswith(PNG) for picture in _pictures(html)] == [True]


def test_notebook_shows_a_callback_that_has_not_run() -> None:
    html = _shows(GradientFlowMonitor())["text/html"]
    assert "not run yet" in html
    assert _pictures(html) == []


def test_what_came_from_outside_is_escaped() -> None:
    finding = _finding(layers=(f"net.{EVIL}",), message=EVIL, suggestion=f"{EVIL} & more")
    callback = Marked(finding, title=EVIL)
    fit(callback)
    for html in (finding._repr_html_(), callback._repr_html_()):
        assert "<script" not in html
        assert "&lt;script&gt;" in html


def test_without_matplotlib_the_summary_stands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    callback = Marked(_finding())
    fit(callback)
    monkeypatch.setattr(_extras, "available", lambda package: package != "matplotlib")
    html = callback._repr_html_()
    assert "VANISHING" in html
    assert _pictures(html) == []


def test_figure_that_cannot_be_drawn_is_left_out() -> None:
    class Empty(Marked):
        def plot(self) -> tuple[Figure, Axes]:
            raise MisuseError("There is nothing to draw.")

    callback = Empty(_finding())
    fit(callback)
    assert _pictures(callback._repr_html_()) == []


# Findings


def test_repr_of_a_finding_is_one_short_line() -> None:
    assert repr(_finding()) == (
        "<Finding VANISHING (critical) in blocks.0 since step 3: "
        "The gradient falls 3.2-fold with every layer toward the input.>"
    )
    assert repr(_finding(layers=(), step=None, message="It falls.")) == (
        "<Finding VANISHING (critical): It falls.>"
    )


def test_repr_of_a_long_finding_is_cut() -> None:
    names = tuple(f"net.{'x' * 30}.{place}" for place in range(50))
    text = repr(_finding(layers=names, message="word " * 200))
    assert len(text) <= 300
    assert text.endswith("...>")


def test_notebook_shows_a_finding_with_its_number_and_advice() -> None:
    html = _shows(_finding())["text/html"]
    for part in ("VANISHING", "critical", "blocks.0", "3.2-fold", "Add shortcuts.", "step 3"):
        assert part in html


def test_findings_stay_a_plain_list(tmp_path: Path) -> None:
    callback = Marked(_finding())
    fit(callback, default_root_dir=tmp_path)
    assert type(callback.findings) is list
    assert str(callback.findings) == f"[{callback.findings[0]!r}]"
