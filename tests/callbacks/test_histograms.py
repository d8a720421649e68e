"""Histograms of gradients and outputs: what is counted, where it goes, and what it costs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.comet import CometLogger
from torch import Tensor, nn

from lightning_depth.callbacks import ActivationMonitor, GradientFlowMonitor
from lightning_depth.callbacks._histograms import bring_histograms, count_values
from tests.callbacks._wandb_file import history_rows
from tests.callbacks.toy import Block, Toy, fit, make_net

MONITORS: dict[str, tuple[type, str]] = {
    "gradients": (GradientFlowMonitor, "grad_flow/gradients"),
    "outputs": (ActivationMonitor, "activations/outputs"),
}
LAYERS = [f"net.{place}" for place in range(6)]

both = pytest.mark.parametrize("what", MONITORS)


def make(what: str, **options: Any) -> Any:
    kind = MONITORS[what][0]
    return kind(**{"every_n_steps": 1, "log_histograms": True, **options})


class Values(pl.Callback):
    """Keeps what the histograms should be of: gradients before clipping, outputs of the blocks."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []
        self.outputs: dict[str, Tensor] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.handles = [
            part.register_forward_hook(self._keeper(f"net.{place}"))
            for place, part in enumerate(pl_module.net)
        ]

    def _keeper(self, name: str) -> Any:
        def keep(module: Any, args: Any, output: Tensor) -> None:
            self.outputs[name] = output.detach().clone()

        return keep

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        for handle in self.handles:
            handle.remove()
        grads = {
            f"net.{place}": torch.cat([p.grad.flatten() for p in part.parameters()])
            for place, part in enumerate(pl_module.net)
        }
        self.seen.append({f"gradients/{k}": v for k, v in grads.items()})
        self.seen[-1] |= {f"outputs/{k}": v for k, v in self.outputs.items()}


def _sent(logger: TensorBoardLogger) -> dict[str, list[Any]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir, size_guidance={"histograms": 0})
    events.Reload()
    return {tag: events.Histograms(tag) for tag in events.Tags()["histograms"]}


@both
def test_tensorboard_gets_what_numpy_counts(what: str, tmp_path: Path) -> None:
    logger, values = TensorBoardLogger(tmp_path), Values()
    fit(Toy(), make(what), values, logger=logger, gradient_clip_val=0.01)
    sent = _sent(logger)
    assert set(sent) == {f"{MONITORS[what][1]}/{layer}" for layer in LAYERS}
    for layer in LAYERS:
        events = sent[f"{MONITORS[what][1]}/{layer}"]
        assert [event.step for event in events] == [0, 1, 2, 3]
        for event, seen in zip(events, values.seen, strict=True):
            numbers = seen[f"{what}/{layer}"].double().numpy().ravel()
            counts, edges = np.histogram(numbers, bins=64)
            told = event.histogram_value
            assert (told.min, told.max) == pytest.approx((numbers.min(), numbers.max()))
            assert told.num == numbers.size
            wanted = {edge: count for edge, count in zip(edges[1:], counts, strict=True) if count}
            kept = zip(told.bucket_limit, told.bucket, strict=True)
            given = {edge: count for edge, count in kept if count}
            assert list(given) == pytest.approx(list(wanted), rel=1e-4, abs=1e-9)
            assert list(given.values()) == list(wanted.values())


# In a process of its own, because the threads of W&B's service would outlive the test.
WANDB = """
import sys
from lightning.pytorch.loggers import WandbLogger
from tests.callbacks.test_histograms import Toy, fit, make

logger = WandbLogger(save_dir=".", offline=True)
fit(Toy(), make(sys.argv[1]), logger=logger)
logger.experiment.finish()
"""


@both
def test_wandb_gets_one_row_a_measured_step_on_lightnings_axis(what: str, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WANDB, what],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=True,
    )
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    group = MONITORS[what][1]
    own = [row for row in history_rows(folder) if any(key.startswith(group) for key in row)]
    assert [row["trainer/global_step"] for row in own] == [0, 1, 2, 3]
    for row in own:
        counts = {key: row[key] for key in row if key.startswith(group) and key.endswith(".values")}
        assert set(counts) == {f"{group}/{name}.values" for name in LAYERS}
        assert all(len(values) == 64 for values in counts.values())


@both
def test_comet_gets_values_of_the_same_shape(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, str, int]] = []

    class Experiment:
        def log_histogram_3d(self, values: Any, name: str, step: int) -> None:
            calls.append((values, name, step))

    class Comet(CSVLogger):
        """Comet's package is not installed here, so only its one call is known."""

        experiment = Experiment()  # type: ignore[assignment]

        def log_metrics(self, *args: Any, **kwargs: Any) -> None:
            pass

        def save(self) -> None:
            pass

        def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
            pass

    Comet.__name__ = CometLogger.__name__
    values = Values()
    fit(Toy(batches=1), make(what), values, logger=Comet("logs"))
    assert [name for _, name, _ in calls] == [f"{MONITORS[what][1]}/{layer}" for layer in LAYERS]
    given, _, step = calls[0]
    numbers = values.seen[0][f"{what}/net.0"].numpy().ravel()
    width = (numbers.max() - numbers.min()) / 64
    np.testing.assert_allclose(np.sort(given), np.sort(numbers), atol=0.51 * width)
    assert step == 0


@both
def test_a_logger_that_takes_none_is_told_once(what: str, tmp_path: Path) -> None:
    monitor = make(what)
    sentence = (
        rf"^{type(monitor).__name__} sends no histograms, for which `log_histograms` asks, because "
        r"the run has CSVLogger: TensorBoardLogger, WandbLogger and CometLogger take them\.$"
    )
    with pytest.warns(UserWarning, match=sentence) as caught:
        fit(Toy(), monitor, logger=CSVLogger(tmp_path), max_epochs=2)
    assert sum("sends no histograms" in str(one.message) for one in caught) == 1


@both
def test_nothing_is_counted_unless_asked(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("lightning_depth.callbacks._histograms.count_values", refuse)
    logger = TensorBoardLogger(tmp_path)
    fit(Toy(), make(what, log_histograms=False), logger=logger)
    assert _sent(logger) == {}


@both
def test_measured_steps_alone_are_counted_and_hooks_are_gone(what: str, tmp_path: Path) -> None:
    hooked: list[int] = []

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            if any(part._forward_hooks for part in pl_module.modules()):
                hooked.append(trainer.global_step)

    logger = TensorBoardLogger(tmp_path)
    monitor = make(what, every_n_steps=5, patience=1)
    module = Toy(batches=12)
    fit(module, monitor, Look(), logger=logger)
    measured = sorted(set(monitor.history["step"]))
    assert [event.step for event in _sent(logger)[f"{MONITORS[what][1]}/net.1"]] == measured
    # the gradient monitor hooks the first pass, to see which modules run many times in it
    assert hooked == (measured if what == "outputs" else [0])
    assert not any(part._forward_hooks for part in module.modules())


@both
def test_histograms_under_deterministic_algorithms(what: str, tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    try:
        fit(Toy(), make(what), logger=logger, deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(_sent(logger)) == len(LAYERS)


@both
def test_a_new_block_has_a_histogram_too(what: str, tmp_path: Path) -> None:
    class Growing(Toy):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                block = Block(6, nn.Tanh())
                self.net.insert(3, block)  # type: ignore[operator]
                optimizer: Any = self.optimizers(use_pl_optimizer=False)
                optimizer.add_param_group({"params": list(block.parameters())})

    logger = TensorBoardLogger(tmp_path)
    fit(Growing(make_net()), make(what, on_finding="log"), logger=logger, max_epochs=2)
    assert [event.step for event in _sent(logger)[f"{MONITORS[what][1]}/net.6"]] == [4, 5, 6, 7]


def test_values_that_are_not_finite_are_left_out() -> None:
    values = torch.tensor([1.0, float("nan"), float("inf"), 3.0, 2.0, -float("inf")])
    counts, edges = bring_histograms({"a": count_values([values])})["a"]
    wanted, wanted_edges = np.histogram([1.0, 2.0, 3.0], bins=64)
    np.testing.assert_array_equal(counts, wanted)
    np.testing.assert_allclose(edges, wanted_edges)
    assert bring_histograms({"a": count_values([torch.full((3,), torch.nan)])}) == {}


def test_a_constant_is_counted_as_numpy_does() -> None:
    counts, edges = bring_histograms({"a": count_values([torch.full((5,), 2.0)])})["a"]
    wanted, wanted_edges = np.histogram(np.full(5, 2.0), bins=64)
    np.testing.assert_array_equal(counts, wanted)
    np.testing.assert_allclose(edges, wanted_edges)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_precision_is_counted(dtype: torch.dtype) -> None:
    parts = [torch.linspace(-2, 1, 1000).to(dtype), torch.empty(0, dtype=dtype)]
    counts, edges = bring_histograms({"a": count_values(parts)}, scale=4.0)["a"]
    assert counts.sum() == 1000
    assert (edges[0], edges[-1]) == (-0.5, 0.25)


def test_gradients_that_are_still_scaled_are_divided(tmp_path: Path) -> None:
    from lightning.pytorch.plugins import MixedPrecision

    def fused(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.1, fused=True)

    plain, scaled = TensorBoardLogger(tmp_path, "plain"), TensorBoardLogger(tmp_path, "scaled")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)  # type: ignore[attr-defined]
    fit(Toy(batches=1), make("gradients"), logger=plain)
    precision = MixedPrecision("16-mixed", "cpu", scaler)
    fit(Toy(optimizer=fused, batches=1), make("gradients"), logger=scaled, plugins=[precision])
    key = "grad_flow/gradients/net.1"
    ends = [_sent(each)[key][0].histogram_value.max for each in (plain, scaled)]
    assert ends[1] == pytest.approx(ends[0], rel=0.02)
