"""A validation pass over training data that leaves the run as it found it.

It is Lightning's own pass in small: batches go through the precision plugin, the transfer hooks
and the strategy's ``validation_step``, the module's hooks are called, and what is logged is
gathered by the same collection of results. What surrounds it is set aside for as long as it
lasts: other callbacks, loggers, the Trainer's metrics, its validation loop, and everything that a
step changes on the module.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import math
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.trainer import call
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import nn

from lightning_depth.callbacks._memory import Memory, own_random_numbers, replaced
from lightning_depth.callbacks._training_samples import Batches
from lightning_depth.errors import LightningDepthError

__all__ = [
    "Entry",
    "Evaluation",
    "WeightsChangedError",
    "add_ranks",
    "evaluate",
    "total",
    "untouched",
]

Kind = Literal["mean", "sum", "max", "min"]


class Entry(NamedTuple):
    """A logged quantity of one rank: how it adds up, its value so far, and its weight."""

    kind: Kind
    value: float
    weight: float


@dataclass
class Evaluation:
    """What one rank saw in a pass.

    Args:
        entries: Logged quantities by key.
        num_samples: Samples that went through.
        num_batches: Batches that went through.
        failure: Why the pass broke off, empty where it did not.
        note: Why the end of the epoch was left out, empty where it was not.
        is_shared: Whether the ranks told each other how the pass ended.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    num_samples: int = 0
    num_batches: int = 0
    failure: str = ""
    note: str = ""
    is_shared: bool = False


class WeightsChangedError(RuntimeError):
    """The step changed parameters, which only the first pass can put back."""


@contextlib.contextmanager
def untouched(
    trainer: pl.Trainer, pl_module: pl.LightningModule, *, weights: bool = False
) -> Iterator[None]:
    """Put back everything that a validation step may change, and let nothing of it out.

    Args:
        trainer: The Trainer.
        pl_module: The user's module.
        weights: Whether parameters are compared and put back too.

    Raises:
        WeightsChangedError: Parameters were found changed.
    """
    model: Any = trainer.model
    modes = [(part, part.training) for part in model.modules()]
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    groups = [optimizer.param_groups for optimizer in trainer.optimizers]
    memory = Memory([pl_module, *schedulers, *groups, *pl_module.parameters()], weights=weights)
    on_cuda = pl_module.device.type == "cuda"
    try:
        with (
            _nothing_gets_out(trainer, pl_module),
            _without_our_hooks(pl_module),
            _wrapper_as_is(trainer.model),
            own_random_numbers(include_cuda=on_cuda),
            torch.no_grad(),
            torch.compiler.set_stance("force_eager"),  # other shapes would compile it again
        ):
            _seed(on_cuda)
            for parameter in pl_module.parameters():
                parameter.grad = None
            yield
    finally:
        try:
            memory.restore()
        finally:
            for part, training in modes:
                part.training = training
    if memory.changed_weights:
        raise WeightsChangedError("it changes the weights")


def evaluate(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    batches: Batches,
    *,
    step: Callable[..., Any] | None = None,
    batch_statistics: Sequence[nn.Module] = (),
    result: Evaluation | None = None,
) -> Evaluation:
    """Run a step over batches, within ``untouched``.

    Args:
        trainer: The Trainer.
        pl_module: The user's module.
        batches: Pairs of a batch and the number of its samples.
        step: Stands in for ``validation_step``; the hooks around validation are then left out.
        batch_statistics: Modules that stay in training mode.
        result: What is filled in, so that it is known after an error.
    """
    result, own = result or Evaluation(), step is None
    if step is not None:
        object.__setattr__(pl_module, "validation_step", step)
    with _in_validation(trainer, batches) as (loop, connector), _averaged(trainer, pl_module):
        try:
            _begin(trainer, pl_module, own=own)
            for part in batch_statistics:
                part.training = True
            for number, (batch, count) in enumerate(batches):
                _advance(trainer, pl_module, batch, number, own=own)
                result.num_samples += count
                result.num_batches += 1
        except Exception as error:  # the user's own code on batches it was not made for
            result.failure = told(error)
        if not is_told_everywhere(trainer, result) and own:
            _finish(trainer, loop, connector, result)
    return result


def is_told_everywhere(trainer: pl.Trainer, result: Evaluation) -> bool:
    """Return whether a pass failed on any rank, and have it failed on all; called on all."""
    result.is_shared = True
    if trainer.strategy.reduce_boolean_decision(bool(result.failure), all=False):
        result.failure = result.failure or "it failed in another process"
    return bool(result.failure)


def told(error: BaseException) -> str:
    """Return an error in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, LightningDepthError):  # our own sentence
        return text
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def total(trainer: pl.Trainer, evaluation: Evaluation) -> tuple[dict[str, float], int]:
    """Add what every rank saw; called on all of them.

    Args:
        trainer: The Trainer.
        evaluation: What this rank saw.

    Returns:
        The quantities that rank zero has, and the number of samples.
    """
    kinds = {key: entry.kind for key, entry in evaluation.entries.items()}
    if trainer.world_size > 1:
        kinds = trainer.strategy.broadcast(kinds)
    missing = {"max": -math.inf, "min": math.inf}
    entries = [
        evaluation.entries.get(key, Entry(kind, missing.get(kind, 0.0), 0.0))
        for key, kind in kinds.items()
    ]
    added = [(entry.value, entry.weight) for entry in entries if entry.kind in ("mean", "sum")]
    highest = [
        -entry.value if entry.kind == "min" else entry.value
        for entry in entries
        if entry.kind in missing
    ]
    flat = [number for pair in added for number in pair]
    *flat, num_samples = add_ranks(trainer, [*flat, float(evaluation.num_samples)])
    pairs, tops = (
        iter(zip(flat[::2], flat[1::2], strict=True)),
        iter(add_ranks(trainer, highest, "max") if highest else []),
    )
    values: dict[str, float] = {}
    weights: set[float] = set()
    for key, kind in kinds.items():
        if kind in missing:
            values[key] = next(tops) * (-1 if kind == "min" else 1)
        else:
            value, weight = next(pairs)
            values[key] = value if kind == "sum" else value / weight if weight else math.nan
            weights.add(weight if kind == "mean" else 0.0)
    told_by_step = weights - {0.0}  # `batch_size` of `log`: of graphs the rows do not tell
    if len(told_by_step) == 1 and evaluation.num_batches < max(told_by_step) < num_samples:
        num_samples = max(told_by_step)
    return values, int(num_samples)


def add_ranks(trainer: pl.Trainer, numbers: Sequence[float], how: str = "sum") -> list[float]:
    """Return numbers added over ranks, or their highest ones."""
    if trainer.world_size == 1:
        return list(numbers)
    device = trainer.strategy.root_device
    kind = torch.float32 if device.type == "mps" else torch.float64
    tensor = torch.tensor(numbers, dtype=kind, device=device)
    reduced: list[float] = trainer.strategy.reduce(tensor, reduce_op=how).tolist()
    return reduced


# One pass.


def _begin(trainer: pl.Trainer, pl_module: pl.LightningModule, *, own: bool) -> None:
    for part in pl_module.modules():
        if callable(reset := getattr(part, "reset", None)) and hasattr(part, "_defaults"):
            reset()  # a metric of torchmetrics: what it holds belongs to another pass
    if not own:
        pl_module.eval()
        return
    for hook in ("model_eval", "start", "epoch_start"):
        call._call_lightning_module_hook(trainer, f"on_validation_{hook}")


def _advance(
    trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, number: int, *, own: bool
) -> None:
    """Send one batch down the path that `_EvaluationLoop._evaluation_step` describes."""
    connector: Any = trainer._logger_connector
    batch = trainer.precision_plugin.convert_input(batch)
    batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
    batch = call._call_strategy_hook(trainer, "batch_to_device", batch, dataloader_idx=0)
    connector.on_batch_start(batch, None)
    arguments = [batch]
    if is_param_in_hook_signature(pl_module.validation_step, "batch_idx", min_args=2):
        arguments.append(number)
    if own:
        _call_batch_hook(trainer, "on_validation_batch_start", batch, number)
        arguments += _loader_number(pl_module.validation_step)
    output = call._call_strategy_hook(trainer, "validation_step", *arguments)
    if own:
        _call_batch_hook(trainer, "on_validation_batch_end", output, batch, number)
    connector.on_batch_end()


def _call_batch_hook(trainer: pl.Trainer, name: str, *arguments: Any) -> None:
    number = _loader_number(getattr(trainer.lightning_module, name))
    call._call_lightning_module_hook(trainer, name, *arguments, *number)


def _loader_number(function: Callable[..., Any]) -> list[int]:
    """The number of the loader for functions that ask for it by name."""
    wanted = is_param_in_hook_signature(function, "dataloader_idx", explicit=True)
    return [0] if wanted else []


def _finish(trainer: pl.Trainer, loop: Any, connector: Any, result: Evaluation) -> None:
    """Gather what the steps logged, then what the end of the epoch makes of it."""
    _gather(loop, result, metrics=False)
    try:
        connector.epoch_end_reached()
        connector.update_eval_epoch_metrics()  # into `trainer.callback_metrics`
        _gather(loop, result, metrics=True)
        before = set(loop._results)
        call._call_lightning_module_hook(trainer, "on_validation_epoch_end")
        _gather(loop, result, metrics=False, beside=before)
        connector.on_epoch_end()
        _gather(loop, result, metrics=True, beside=before)
        call._call_lightning_module_hook(trainer, "on_validation_end")
    except Exception as error:  # of batches that are not those of validation
        result.note = told(error)


def _gather(
    loop: Any,
    result: Evaluation,
    *,
    metrics: bool,
    beside: set[str] = frozenset(),  # type: ignore[assignment]
) -> None:
    """Take over sums before any rank adds them, and metrics once they are computed."""
    for key, logged in loop._results.items():
        meta = logged.meta
        if key in beside or not meta.on_epoch or logged.is_tensor is metrics:
            continue
        if metrics:
            value = logged._computed
            if isinstance(value, torch.Tensor) and value.numel() == 1:
                result.entries[meta.name] = Entry("mean", float(value), 1.0)
        elif meta.is_mean_reduction:
            entry = Entry("mean", float(logged.value), float(logged.cumulated_batch_size))
            result.entries[meta.name] = entry
        else:
            kind: Kind = (
                "sum" if meta.is_sum_reduction else "max" if meta.is_max_reduction else "min"
            )
            result.entries[meta.name] = Entry(kind, float(logged.value), 1.0)


# What is set aside.


class _Silent(DummyLogger):
    """Takes everything and keeps nothing; it only knows where the run's files lie."""

    def __init__(self, logger: Any) -> None:
        super().__init__()
        self._logger = logger

    @property
    def name(self) -> str:
        return self._logger.name  # type: ignore[no-any-return]

    @property
    def version(self) -> str:
        return self._logger.version  # type: ignore[no-any-return]

    @property
    def save_dir(self) -> str | None:
        return self._logger.save_dir  # type: ignore[no-any-return]

    @property
    def log_dir(self) -> str | None:
        return getattr(self._logger, "log_dir", self.save_dir)


@contextlib.contextmanager
def _in_validation(trainer: pl.Trainer, batches: Any) -> Iterator[tuple[Any, Any]]:
    """Have the Trainer validate these batches, with a loop and metrics of its own for it."""
    epoch_loop = trainer.fit_loop.epoch_loop
    before, real = trainer._logger_connector, epoch_loop.val_loop
    loop = copy.copy(real)
    loop._results = type(real._results)(training=False)
    loop._combined_loader = _as_loader(real._combined_loader, batches)
    loop._max_batches = [len(batches)]
    connector = copy.copy(before)
    for name in ("_callback_metrics", "_progress_bar_metrics", "_logged_metrics"):
        setattr(connector, name, dict(getattr(before, name)))
    connector._first_loop_iter = connector._current_fx = None
    stage = type(trainer.state.stage)("validate")  # type: ignore[misc]
    with (
        replaced(trainer.state, stage=stage),
        replaced(epoch_loop, val_loop=loop),
        replaced(trainer, _logger_connector=connector),
    ):
        yield loop, connector


class _Loader:
    """The share as the loader that a step finds in the Trainer."""

    def __init__(self, batches: Any) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        return (batch for batch, _ in self._batches)


class _Combined:
    """What the Trainer asks of a combined loader."""

    def __init__(self, iterables: Any) -> None:
        self.iterables = iterables


def _as_loader(real: Any, batches: Any) -> Any:
    given = getattr(real, "iterables", None)
    loader = _Loader(batches)
    if isinstance(given, Mapping):
        return _Combined(dict.fromkeys(list(given)[:1], loader))
    return _Combined([loader] if isinstance(given, list) else loader)


@contextlib.contextmanager
def _wrapper_as_is(model: Any) -> Iterator[None]:
    """DDP notes a pass without gradients, and then leaves out its next broadcast of buffers."""
    name = "require_forward_param_sync"
    kept = {name: getattr(model, name)} if hasattr(model, name) else {}
    with replaced(model, **kept):
        yield


@contextlib.contextmanager
def _nothing_gets_out(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Iterator[None]:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined] # set by a connector
    with contextlib.ExitStack() as stack:
        trainer_wide: dict[str, Any] = {
            "loggers": [_Silent(logger) for logger in trainer.loggers],
            "callbacks": [
                *(each for each in callbacks if hasattr(each, "_average_model")),
                *(_still(each) for each in callbacks if isinstance(each, pl.callbacks.ProgressBar)),
            ],
            "should_stop": trainer.should_stop,
            "barebones": False,  # where `log` would only warn
        }
        stack.enter_context(replaced(trainer, **trainer_wide))
        for name, value in list(vars(pl_module).items()):
            if hasattr(type(value), "add_scalar") or hasattr(type(value), "log_metrics"):
                stack.enter_context(replaced(pl_module, **{name: _Silent(value)}))
        stack.enter_context(_without_wandb())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # validation gives the same ones
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        yield


_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


@contextlib.contextmanager
def _without_our_hooks(pl_module: pl.LightningModule) -> Iterator[None]:
    """Set the package's own hooks aside: this pass is not the training step that they wait for."""
    aside: list[tuple[nn.Module, str, Any]] = []
    for part in pl_module.modules():
        for name in _HOOKS:
            hooks = getattr(part, name)
            if hooks and any(map(_is_ours, hooks.values())):
                aside.append((part, name, hooks))
    try:
        for part, name, hooks in aside:
            others = {key: hook for key, hook in hooks.items() if not _is_ours(hook)}
            setattr(part, name, type(hooks)(others))
        yield
    finally:
        for part, name, hooks in aside:
            setattr(part, name, hooks)


def _is_ours(hook: Any) -> bool:
    while isinstance(hook, functools.partial):
        hook = hook.func
    owner = getattr(hook, "__self__", hook)
    module = getattr(hook, "__module__", None) or type(owner).__module__
    names = (module, type(owner).__module__)
    return any(str(name).startswith("lightning_depth.callbacks.") for name in names)


def _still(bar: Any) -> Any:
    """A progress bar that does not move: Rich's thread looks for it at any moment."""
    copied = copy.copy(bar)
    hooks = [name for name in dir(pl.Callback) if name.startswith("on_")]
    nothing = dict.fromkeys(["setup", "teardown", *hooks], _ignore)
    copied.__class__ = type(type(bar).__name__, (type(bar),), nothing)
    return copied


@contextlib.contextmanager
def _without_wandb() -> Iterator[None]:
    """A step may speak to W&B itself."""
    wandb: Any = sys.modules.get("wandb")
    run = getattr(wandb, "run", None)
    with contextlib.ExitStack() as stack:
        for owner in (wandb, run) if run is not None else ():
            names = ("log", "save", "log_artifact", "alert")
            silent = {name: _ignore for name in names if hasattr(owner, name)}
            stack.enter_context(replaced(owner, **silent))
        yield


def _ignore(*arguments: Any, **options: Any) -> None:
    """Do nothing."""


@contextlib.contextmanager
def _averaged(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Iterator[None]:
    """Measure the averaged weights where Lightning's callback has validation measure them."""
    averaging: list[Any] = trainer.callbacks  # type: ignore[attr-defined] # the others are aside
    for callback in averaging:
        callback.on_validation_epoch_start(trainer, pl_module)
    averages = Memory(pl_module.buffers()) if averaging else None
    try:
        yield
    finally:
        if averages is not None:
            averages.restore()
        for callback in averaging:
            callback.on_validation_epoch_end(trainer, pl_module)


def _seed(on_cuda: bool) -> None:
    """Steps that draw (a latent, a noise level) draw the same at each measurement."""
    torch.default_generator.manual_seed(0)
    if on_cuda:
        torch.cuda.manual_seed_all(0)
    np.random.seed(0)
    random.seed(0)
