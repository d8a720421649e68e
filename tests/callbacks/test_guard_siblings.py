"""What public projects and a reviewer met beside the first list: each was seen to fail before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from torch import nn

from lightning_depth.callbacks import (
    ActivationMonitor,
    EarlyStopping,
    GradientFlowMonitor,
    LayerSeparabilityProbe,
    TrainingErrorMonitor,
)
from lightning_depth.callbacks._ending import find_ending
from lightning_depth.findings import FindingKind, Severity
from tests.callbacks._runs import Toy, fit, loader, network, trainer


class Awkward(Toy):
    """Holds what cannot be written to, and counts in an object without a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.read_only = np.broadcast_to(np.zeros(3), (2, 3))
        self.register_buffer("positions", torch.arange(6.0).expand(3, 6))
        self.meter = Meter()
        self.modes: set[bool] = set()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.meter.steps += 1
        super().validation_step(batch, batch_idx)

    def on_train_batch_end(self, *args: Any) -> None:
        self.modes.add(self.training)


@dataclass
class Meter:
    __slots__ = ("steps",)

    steps: int

    def __init__(self) -> None:
        self.steps = 0


def _trained(*callbacks: Any) -> tuple[Awkward, torch.Tensor]:
    torch.manual_seed(5)
    module = Awkward()
    fit(*callbacks, module=module)
    return module, torch.rand(1)


def test_what_cannot_be_written_to_leaves_mode_and_random_numbers_alone() -> None:
    bare, drawn = _trained()
    module, drawn_beside = _trained(TrainingErrorMonitor())
    assert module.modes == {True}
    assert torch.equal(drawn, drawn_beside)
    pairs = zip(bare.state_dict().values(), module.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert module.meter.steps == bare.meter.steps


class Looking(Callback):
    """Looks for the progress bar from within the pass, as Rich's thread does at any moment."""

    seen: list[bool]

    def __init__(self) -> None:
        self.seen = []


def test_progress_bar_is_found_during_the_pass() -> None:
    looking = Looking()

    class Asking(Toy):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            looking.seen.append(isinstance(self.trainer.progress_bar_callback, RichProgressBar))

    bar = RichProgressBar()
    fit(TrainingErrorMonitor(), bar, module=Asking(), enable_progress_bar=True)
    assert looking.seen
    assert all(looking.seen)


def test_activations_of_the_first_step_are_those_of_training() -> None:
    def rms(*others: Any) -> list[float]:
        torch.manual_seed(3)
        monitor = ActivationMonitor(every_n_steps=1)
        fit(monitor, *others, module=Toy(network()), max_epochs=1)
        return [float(value) for value in monitor.history["rms"]]

    assert rms(TrainingErrorMonitor()) == rms()


def test_sequential_with_a_gap_is_probed() -> None:
    class Gapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.Sequential(nn.Linear(6, 8), None, nn.ReLU(), nn.Linear(8, 3))  # type: ignore[arg-type]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for part in self.parts:
                x = x if part is None else part(x)
            return x

    probe = LayerSeparabilityProbe()
    fit(probe, module=Toy(Gapped()))
    assert {"net.parts.0", "net.parts.3"} <= set(probe.history["layer"])


def test_layers_that_are_never_called_are_worth_knowing_only() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.unused, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x).relu())  # type: ignore[no-any-return]

    monitor = GradientFlowMonitor(every_n_steps=1, on_finding="raise")
    fit(monitor, module=Toy(Unused()))
    (finding,) = monitor.findings
    assert (finding.kind, finding.severity) == (FindingKind.NO_GRADIENT, Severity.INFO)
    assert finding.layers == ("net.unused",)
    assert "did not run" in finding.message


def test_word_for_half_of_chance_is_not_that_of_chance() -> None:
    from lightning_depth.callbacks._training_curve import TrainingCurve

    falling = [1.35, 1.2, 1.0, 0.9, 0.85, 0.8, 0.79, 0.78]
    curve = TrainingCurve("train_error/loss", falling, comparable=True, chance=1.38)
    (finding,) = find_ending("val_loss", "min", range(8), falling, curve, stopped=True)
    assert finding.kind is FindingKind.UNDERFITTING
    assert "better than chance" not in finding.message
    assert "0.57 of chance" in finding.message


@pytest.mark.filterwarnings("ignore::lightning_depth.callbacks.FindingWarning")
def test_gap_between_the_modes_is_the_only_explanation() -> None:
    class Still(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Linear(6, 16), nn.BatchNorm1d(16, momentum=0.0), nn.ReLU(), nn.Linear(16, 3)
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(20 * x + 30)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    monitor, stopping = TrainingErrorMonitor(), EarlyStopping("val/loss", patience=99)
    run: Trainer = trainer(monitor, stopping, max_epochs=14)
    run.fit(Toy(Still()), loader(), loader())
    kinds = [finding.kind for finding in [*monitor.findings, *stopping.findings]]
    assert kinds == [FindingKind.MODE_GAP]


def test_samples_are_those_that_the_step_counts() -> None:
    class Graphs(Toy):
        def _loss(self, batch: dict[str, Any]) -> torch.Tensor:
            pooled = torch.stack([part.mean(0) for part in batch["x"].split(batch["sizes"])])
            return nn.functional.cross_entropy(self.net(pooled), batch["y"])

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self._loss(batch)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val/loss", self._loss(batch), batch_size=len(batch["y"]))

    def collate(graphs: list[int]) -> dict[str, Any]:
        sizes = [2 + graph % 5 for graph in graphs]
        return {"x": torch.rand(sum(sizes), 6), "sizes": sizes, "y": torch.tensor(graphs) % 3}

    data = torch.utils.data.DataLoader(range(10), batch_size=4, collate_fn=collate)  # type: ignore[arg-type]
    monitor = TrainingErrorMonitor()
    trainer(monitor, max_epochs=1).fit(Graphs(), data, data)
    assert monitor.history["num_samples"] == [10]
