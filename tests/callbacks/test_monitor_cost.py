"""What the monitors do to the host between measured steps, and what they keep."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_depth.callbacks import ActivationMonitor, GradientFlowMonitor
from tests.callbacks.toy import Block, Toy, fit, make_net

READS = ("tolist", "item", "cpu", "numpy", "__bool__", "__float__", "__int__")


class HostReads(TorchDispatchMode):
    """Counts what brings a number to the host: named methods, and what they call inside."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@contextmanager
def counted(monitor: pl.Callback, hooks: tuple[str, ...]) -> Iterator[Counter[int]]:
    """Count host reads and calls of a monitor's own hooks by step."""
    reads: Counter[int] = Counter()
    inside = False
    patch = pytest.MonkeyPatch()

    def watch(name: str) -> None:
        original = getattr(torch.Tensor, name)

        def read(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if inside:
                reads[watching.step] += 1
            return original(tensor, *args, **kwargs)

        patch.setattr(torch.Tensor, name, read)

    def wrap(name: str) -> None:
        original = getattr(monitor, name)

        def hook(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            watching.step = trainer.fit_loop.epoch_loop._batches_that_stepped
            inside = True
            with HostReads() as dispatched:
                result = original(trainer, *args, **kwargs)
            inside = False
            reads[watching.step] += dispatched.count
            return result

        patch.setattr(monitor, name, hook, raising=False)

    class watching:  # noqa: N801 - a place for one number
        step = 0

    for name in READS:
        watch(name)
    for name in hooks:
        wrap(name)
    yield reads
    patch.undo()


def test_one_host_read_on_measured_steps_and_none_between() -> None:
    monitor = GradientFlowMonitor(every_n_steps=5, patience=1)
    with counted(monitor, ("on_before_optimizer_step", "on_train_batch_end")) as reads:
        fit(Toy(batches=16), monitor, gradient_clip_val=1.0)
    measured = monitor.totals["step"]
    assert measured == [0, 1, 4, 9, 14, 15]
    assert {step: count for step, count in reads.items() if count} == dict.fromkeys(measured, 1)


def test_a_doubtful_norm_costs_a_second_read() -> None:
    net = make_net()
    with torch.no_grad():
        net[-1].weight.zero_()  # type: ignore[union-attr,operator]
    monitor = GradientFlowMonitor(every_n_steps=1)
    with counted(monitor, ("on_before_optimizer_step",)) as reads:
        fit(Toy(net, batches=1), monitor)
    assert reads[0] == 2


def test_no_hook_of_the_gradient_monitor_is_on_the_optimizer_between_measured_steps() -> None:
    seen: list[bool] = []

    class Look(pl.Callback):
        def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            seen.append(bool(optimizer._optimizer_step_post_hooks))

    fit(Toy(batches=8), GradientFlowMonitor(every_n_steps=4, patience=1), Look())
    assert not any(seen)


def test_the_activation_monitor_hooks_only_measured_steps() -> None:
    hooked: list[int] = []

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            if any(module._forward_hooks for module in pl_module.modules()):
                hooked.append(trainer.global_step)

    monitor = ActivationMonitor(every_n_steps=5, patience=1)
    module = Toy(batches=12)
    fit(module, monitor, Look())
    assert hooked == sorted(set(monitor.history["step"])) == [0, 1, 4, 9, 11]
    assert not any(module._forward_hooks for module in module.modules())


def test_the_activation_monitor_reads_once() -> None:
    monitor = ActivationMonitor(every_n_steps=5, patience=1)
    transfers: list[int] = []
    bring = "lightning_depth.callbacks._activity_host._gather"

    def gather(vector: torch.Tensor, ranks: int) -> torch.Tensor:
        transfers.append(vector.ndim)
        return vector[None]

    with pytest.MonkeyPatch.context() as patch, counted(monitor, ("on_train_batch_end",)) as reads:
        patch.setattr(bring, gather)
        fit(Toy(batches=8), monitor)
    measured = sorted(set(monitor.history["step"]))
    assert transfers == [1] * len(measured)
    assert all(reads[step] == 0 for step in range(8) if step not in measured)


class Sums(Toy):
    """A hundred blocks, each of which gets a gradient without a forward pass through the others."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return torch.stack([parameter.sum() for parameter in self.parameters()]).sum()


@pytest.mark.slow
def test_two_thousand_measured_steps_of_a_hundred_blocks_stay_under_five_megabytes() -> None:
    grown: list[int] = []

    class Measure(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step in (20, 2000):
                gc.collect()
                grown.append(tracemalloc.get_traced_memory()[0])

    net = nn.Sequential(*(Block(4, nn.Tanh()) for _ in range(100)))
    monitor = GradientFlowMonitor(every_n_steps=1, on_finding="log")
    tracemalloc.start()
    fit(Sums(net, batches=2000), monitor, Measure())
    tracemalloc.stop()
    assert len(monitor.totals["step"]) <= 1000
    assert (grown[1] - grown[0]) / 2**20 < 5


def test_nothing_of_the_run_is_kept() -> None:
    monitor, activation = GradientFlowMonitor(every_n_steps=1), ActivationMonitor(every_n_steps=1)
    module = Toy()
    fit(module, monitor, activation)
    reachable = gc.get_referents(monitor.__dict__, activation.__dict__)
    kept = [thing for thing in reachable if isinstance(thing, (torch.Tensor, nn.Module))]
    assert kept == []
    weight = weakref.ref(module.net[0].weight)  # type: ignore[index]
    for callback in (monitor, activation):  # Lightning ties them to the module by these
        vars(callback).pop("log", None), vars(callback).pop("log_dict", None)
    del module, reachable
    gc.collect()
    assert weight() is None


@pytest.mark.gpu
def test_no_synchronisation_between_measured_steps_on_an_accelerator() -> None:
    class Strict(pl.Callback):
        def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
            between = trainer.global_step in (6, 7, 8)
            torch.cuda.set_sync_debug_mode("error" if between else "default")

        def on_train_batch_end(self, *args: Any) -> None:
            torch.cuda.set_sync_debug_mode("default")

    monitors = (GradientFlowMonitor(every_n_steps=10), ActivationMonitor(every_n_steps=10))
    fit(Toy(batches=12), *monitors, Strict(), accelerator="gpu", devices=1)
    assert monitors[0].totals["step"][-1] == 9
