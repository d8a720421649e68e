"""One trial from its description to its record: data, network, module, callbacks, Trainer, fit."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor, nn

from lightning_depth import _extras
from lightning_depth.modules import Classifier
from lightning_depth.study._reading import Place
from lightning_depth.study.building import (
    build_callbacks,
    build_data,
    build_network,
    build_optimizer,
    build_scheduler,
)
from lightning_depth.study.jobs import Job
from lightning_depth.study.store import SCHEMA
from lightning_depth.study.versions import installed_versions

__all__ = ["evaluate", "run_trial"]

_LOGGED = {
    "train_error": "train_error/error",
    "train_loss": "train_error/loss",
    "val_error": "val/error",
    "val_loss": "val/loss",
}
"""The columns of a result by the names under which the callbacks and the module log them."""
_WARM_UP_STEPS = 5
_TIMED_BATCHES = 20


def run_trial(job: Job, notify: Callable[[int], None]) -> dict[str, Any]:
    """Train one arm with one seed and return its record.

    Args:
        job: The trial and where its logs go.
        notify: Called with the number of epochs done after each of them.

    Returns:
        The record, in plain containers, with null where a number is not finite.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(job.trial.content["threads"])
    try:
        record: dict[str, Any] = _plain(_train(job, notify))
    finally:
        torch.set_num_threads(threads)
        if job.group is not None:
            _extras.wandb().finish()
    return record


def evaluate(network: nn.Module, loader: Any) -> tuple[float, float, int]:
    """Return error, mean cross-entropy and number of samples, in eval mode.

    Args:
        network: The network; its mode is as before afterwards.
        loader: Batches of inputs and class labels.

    Returns:
        Share of samples classified wrongly, mean loss, and how many there were.

    Example:
        >>> network = nn.Linear(2, 2, bias=False).requires_grad_(False)
        >>> network.weight.copy_(torch.eye(2)).shape
        torch.Size([2, 2])
        >>> evaluate(network, [(torch.eye(2), torch.tensor([0, 0]))])[::2]
        (0.5, 2)
    """
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    wrong, loss, count = 0, 0.0, 0
    with torch.no_grad():
        for inputs, labels in loader:
            logits, labels = network(inputs.to(device)), labels.to(device)
            wrong += int((logits.argmax(1) != labels).sum())
            loss += float(nn.functional.cross_entropy(logits.double(), labels, reduction="sum"))
            count += len(labels)
    network.train(was_training)
    return wrong / count, loss / count, count


class _Recorder(pl.Callback):
    """Keeps the validation curves and the duration of training steps."""

    def __init__(self, notify: Callable[[int], None]) -> None:
        self.curves: dict[str, list[Any]] = {"epoch": [], "val_error": [], "val_loss": []}
        self.steps_s: list[float] = []
        self._notify = notify
        self._begun = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        self._begun = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step > _WARM_UP_STEPS:
            self.steps_s.append(time.perf_counter() - self._begun)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = trainer.callback_metrics
        self.curves["epoch"].append(trainer.current_epoch)
        for name in ("error", "loss"):
            self.curves[f"val_{name}"].append(float(metrics.get(f"val/{name}", math.nan)))
        self._notify(trainer.current_epoch + 1)


def _train(job: Job, notify: Callable[[int], None]) -> dict[str, Any]:
    trial, content = job.trial, job.trial.content
    place = Place(f"trial {trial.arm}, seed {trial.seed}")
    pl.seed_everything(trial.seed, verbose=False)
    data = build_data(content["data"], trial.seed, place)
    network = build_network(content["network"], data.input_shape, data.num_classes, place)
    callbacks = build_callbacks(content["callbacks"], place)
    module = Classifier(
        network,
        build_optimizer(content["optimizer"], place),
        build_scheduler(content["scheduler"], place),
    )
    recorder = _Recorder(notify)
    logger = _wandb_logger(job) if job.group is not None else False
    trainer = pl.Trainer(
        max_epochs=trial.epochs,
        accelerator="cpu",
        devices=1,
        logger=logger,
        callbacks=[recorder, *callbacks.values()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    begun = time.perf_counter()
    trainer.fit(module, datamodule=data)
    fit_s = time.perf_counter() - begun
    measured = _measure(network, data)
    if isinstance(logger, WandbLogger):
        final = {f"final/{_LOGGED[name]}": value for name, value in measured["metrics"].items()}
        logger.experiment.summary.update(final)
    return {
        "schema": SCHEMA,
        "key": trial.key,
        "arm": trial.arm,
        "seed": trial.seed,
        "status": "finished",
        "error": None,
        **measured,
        "curves": _curves(recorder.curves, callbacks),
        "callbacks": {name: _measured(each) for name, each in callbacks.items()},
        "findings": _findings(callbacks),
        "timing": {
            "train_step_s": statistics.median(recorder.steps_s) if recorder.steps_s else None,
            "inference_batch_s": _inference_s(network, data.val_dataloader()),
            "fit_s": fit_s,
            "device": "cpu",
            "threads": content["threads"],
        },
        "versions": installed_versions(),
    }


def _measure(network: nn.Module, data: Any) -> dict[str, Any]:
    """Return errors and losses at the end of training, in eval mode."""
    metrics: dict[str, float] = {}
    samples: dict[str, int] = {}
    loaders = {"train": data.train_eval_dataloader(), "val": data.val_dataloader()}
    for part, loader in loaders.items():
        error, loss, samples[part] = evaluate(network, loader)
        metrics |= {f"{part}_error": error, f"{part}_loss": loss}
    return {"metrics": metrics, "samples": samples}


def _findings(callbacks: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        finding.to_dict()
        for callback in callbacks.values()
        for finding in getattr(callback, "findings", [])
    ]


def _wandb_logger(job: Job) -> WandbLogger:
    trial = job.trial
    return WandbLogger(
        name=f"{trial.arm}-seed{trial.seed}",
        project="lightning-depth",
        group=job.group,
        save_dir=job.folder,
        offline=job.offline,
        config={"arm": trial.arm, "seed": trial.seed, "key": trial.key, **trial.content},
    )


def _history(callback: Any) -> Mapping[str, list[Any]]:
    history: Mapping[str, list[Any]] = getattr(callback, "history", {})
    return history


def _measured(callback: Any) -> dict[str, Mapping[str, list[Any]]]:
    """Return what a callback measured of every layer, and of the whole network if it did."""
    totals: Mapping[str, list[Any]] | None = getattr(callback, "totals", None)
    return {"history": _history(callback)} | ({"totals": totals} if totals else {})


def _curves(curves: dict[str, list[Any]], callbacks: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Add the training error in eval mode, where it was monitored, to the validation curves."""
    monitored = _history(callbacks.get("TrainingErrorMonitor"))
    by_epoch = {
        epoch: row
        for epoch, *row in zip(
            *(monitored.get(name, []) for name in ("epoch", "error", "loss")), strict=True
        )
    }
    rows = [by_epoch.get(epoch, [math.nan, math.nan]) for epoch in curves["epoch"]]
    return {
        "epoch": curves["epoch"],
        "train_error": [row[0] for row in rows],
        "train_loss": [row[1] for row in rows],
        "val_error": curves["val_error"],
        "val_loss": curves["val_loss"],
    }


def _inference_s(network: nn.Module, loader: Any) -> float:
    """Return the median time of a forward pass in eval mode."""
    inputs: Tensor = next(iter(loader))[0]
    times = []
    was_training = network.training
    network.eval()
    with torch.no_grad():
        for _ in range(_TIMED_BATCHES):
            begun = time.perf_counter()
            network(inputs)
            times.append(time.perf_counter() - begun)
    network.train(was_training)
    return statistics.median(times[2:])


def _plain(value: Any) -> Any:
    """Return containers fit for JSON: lists, texts, finite numbers, and null for the others."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # a tensor, or anything of NumPy
        return _plain(value.tolist())
    return value
