"""The page of logged keys holds every key that is logged, and no other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from lightning_depth.modules import Classifier, build_optimizer
from tests.callbacks._runs import (
    BATCH_SIZE,
    Toy,
    fit,
    loader,
    make,
    network,
    public_callbacks,
    trainer,
)

PAGE = Path(__file__).parents[2] / "docs" / "logged_keys.md"
GROUPS = ("grad_flow", "activations", "separability", "train_error", "early_stopping")
STAGES = ("train", "val", "test")
MEASURES = ("separation", "fisher", "linear_probe", "collapse", "knn", "effective_rank")


class Keys(Logger):
    """A logger that keeps the keys of scalars, figures and texts."""

    name = "keys"
    version = "one"
    save_dir = ""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.save_dir = str(folder)
        self.seen: set[str] = set()
        self._experiment = SimpleNamespace(
            add_figure=lambda key, *_, **__: self.seen.add(key), add_text=lambda *_, **__: None
        )

    @property
    def experiment(self) -> Any:
        return self._experiment

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.seen |= set(metrics)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


class Judged(Toy):
    """Logs its validation error as well."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits, labels = self.predict_batch(batch)
        error = (logits.argmax(1) != labels).float().mean()
        loss = nn.functional.cross_entropy(logits, labels)
        self.log_dict({"val/loss": loss, "val/error": error}, batch_size=BATCH_SIZE)


class Divided(Judged):
    """Trains its two halves with optimizers of their own."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(network()[:3], network()[3:]))
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        loss = nn.functional.cross_entropy(*self.predict_batch(batch))
        optimizers: Any = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.SGD(self.net[0].parameters(), lr=0.1),
            torch.optim.Adam(self.net[1].parameters(), lr=0.01),
        ]


class Bounded(nn.Module):
    """A block whose activation can saturate."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.activation = nn.Linear(8, 8), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.linear(x))  # type: ignore[no-any-return]


class Rectified(nn.Module):
    """A block whose units can die."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.activation = nn.Linear(8, 8), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.linear(x))  # type: ignore[no-any-return]


def _mixed() -> nn.Sequential:
    blocks = [Bounded(), Bounded(), Rectified(), Rectified()]
    return nn.Sequential(nn.Linear(6, 8), *blocks, nn.Linear(8, 3))


def _observers(**options: Any) -> list[Any]:
    return [make(name, **options.get(name, {})) for name in public_callbacks()]


def _runs(folder: Path) -> Iterator[set[str]]:
    """Keys of runs that differ in what they log."""
    each_layer: dict[str, Any] = {
        "GradientFlowMonitor": {"log_layers": True},
        "ActivationMonitor": {"log_layers": True, "min_samples": BATCH_SIZE},
        "LayerSeparabilityProbe": {"log_layers": True, "measures": MEASURES},
    }
    fit(*_observers(), module=Judged(_mixed()), logger=(keys := Keys(folder)))
    yield keys.seen
    half = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))  # type: ignore[arg-type]
    options: dict[str, Any] = {"gradient_clip_val": 0.1, "plugins": half}
    fit(
        *_observers(**each_layer), module=Judged(_mixed()), logger=(keys := Keys(folder)), **options
    )
    yield keys.seen
    fit(*_observers(), module=Divided(), logger=(keys := Keys(folder)))
    yield keys.seen
    classifier = Classifier(network(), build_optimizer("SGD", lr=0.1))
    run = trainer(logger=(keys := Keys(folder)))
    run.fit(classifier, loader(), loader())
    run.test(classifier, loader(), verbose=False)
    yield keys.seen


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    keys = set().union(*_runs(tmp_path_factory.mktemp("keys")))
    return {key for key in keys if key.split("/")[0] in (*GROUPS, *STAGES)}


@pytest.fixture(scope="module")
def told() -> dict[str, re.Pattern[str]]:
    """Keys of the page, with what a key must look like to be meant."""
    keys = re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {key: re.compile(re.sub(r"<\w+>", "[^/]+", re.escape(key))) for key in keys}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_key_that_is_logged_is_on_the_page(
    logged: set[str], told: dict[str, re.Pattern[str]]
) -> None:
    assert [key for key in sorted(logged) if not _matches(key, told)] == []


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_key_of_the_page_is_logged(
    logged: set[str], told: dict[str, re.Pattern[str]]
) -> None:
    assert len(told) > 20
    assert [key for key, looks in told.items() if not any(map(looks.fullmatch, logged))] == []


def test_every_key_of_ours_is_in_slashes(logged: set[str]) -> None:
    assert all(re.fullmatch(r"[a-z_]+(/[^/]+){1,2}", key) for key in logged)


def test_page_gives_every_key_a_unit_and_a_time() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:3] == "| `"]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert all(len(row) == 4 and row[1] and row[2] for row in cells)


def _matches(key: str, told: dict[str, re.Pattern[str]]) -> bool:
    return any(looks.fullmatch(key) for looks in told.values())
