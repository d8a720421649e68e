"""Histograms of gradients and outputs, counted where the tensors are and sent to loggers.

A histogram travels as its two ends and its counts, so that all layers come to the host in one copy.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parameter import Parameter
from torch.utils.hooks import RemovableHandle

from lightning_depth.callbacks._logging import is_quiet
from lightning_depth.callbacks._norms import local_part
from lightning_depth.layers import Layer, layer_parameters, main_tensor

__all__ = [
    "Histogram",
    "OutputHistograms",
    "bring_histograms",
    "count_gradients",
    "count_values",
    "send_histograms",
    "wants_histograms",
]

NUM_BINS = 64
_MOST_COUNTED = 2**24
"""Float32 counts no further."""
_FEW = 4096
"""Values that stand for a histogram where a logger counts them itself."""


class Histogram(NamedTuple):
    """How many values lie between each edge and the next."""

    counts: NDArray[np.float64]
    edges: NDArray[np.float64]


def wants_histograms(trainer: pl.Trainer, callback: object, *, asked: bool) -> bool:
    """Return whether this process counts values; says so where no logger would take them.

    Args:
        trainer: It has the loggers.
        callback: Who was asked.
        asked: Whether it was.
    """
    if not asked or not trainer.is_global_zero or is_quiet(trainer):
        return False
    if any(_taker(logger) is not None for logger in trainer.loggers):
        return True
    names = " and ".join(type(logger).__name__ for logger in trainer.loggers) or "no logger"
    rank_zero_warn(
        f"{type(callback).__name__} sends no histograms, for which `log_histograms` asks, because "
        f"the run has {names}: TensorBoardLogger, WandbLogger and CometLogger take them."
    )
    return False


@torch.no_grad()
def count_values(tensors: Sequence[Tensor]) -> Tensor | None:
    """Return the ends of the range of some tensors and their counts in 64 bins of equal width.

    Nothing comes to the host. Values that are not finite are left out.

    Args:
        tensors: Plain real numbers; they are counted together.

    Returns:
        Ends and counts in one vector, on the device of the first tensor; None without a number.

    Example:
        >>> counted = count_values([torch.tensor([0.0, 1.0]), torch.tensor([1.0])])
        >>> counted[[0, 1, 2, -1]].tolist()
        [0.0, 1.0, 1.0, 2.0]
    """
    parts = [_finite(tensor) for tensor in tensors if tensor.numel()]
    if not parts:
        return None
    home = parts[0].device
    low = torch.stack([part.nan_to_num(nan=math.inf).amin().to(home) for part in parts]).amin()
    high = torch.stack([part.nan_to_num(nan=-math.inf).amax().to(home) for part in parts]).amax()
    half = torch.where(high > low, 0.0, 0.5)  # a constant has a bin of its own width
    low, high = low - half, high + half
    counts = torch.zeros(NUM_BINS, device=home)
    wide = counts if home.type == "mps" else counts.double()  # which has no float64
    with _in_any_order():
        for part in parts:
            start, width = low.to(part.device), (high - low).to(part.device)
            placed = ((part - start) / width).clamp_(0.0, 1.0)
            for lot in torch.split(placed, _MOST_COUNTED):
                wide += torch.histc(lot, NUM_BINS, 0.0, 1.0).to(home)
    return torch.cat([torch.stack([low, high]).to(wide.dtype), wide])


def bring_histograms(
    counted: Mapping[str, Tensor | None], scale: float = 1.0
) -> dict[str, Histogram]:
    """Return histograms on the host, all in one copy.

    Args:
        counted: What ``count_values`` returned, by name.
        scale: Factor that the values still carry.
    """
    present = {name: vector for name, vector in counted.items() if vector is not None}
    if not present:
        return {}
    home = next(iter(present.values())).device
    rows = torch.stack([vector.to(home) for vector in present.values()]).cpu().double().numpy()
    return {
        name: Histogram(row[2:], np.linspace(row[0], row[1], NUM_BINS + 1) / scale)
        for name, row in zip(present, rows, strict=True)
        if np.isfinite(row[:2]).all()
    }


def count_gradients(
    layers: Sequence[Layer],
    parameters: Sequence[Parameter],
    read: Callable[[Parameter], Tensor | None],
    *,
    here: bool,
) -> dict[str, Tensor | None]:
    """Return counts of the gradient of each layer; reading may take part of every rank.

    Args:
        layers: The layers of the model.
        parameters: Those of one optimizer.
        read: Returns a parameter's gradient.
        here: Whether this rank counts what it holds.
    """
    own = set(map(id, parameters))
    held = {
        name: [local_part(read(parameter)) for _, parameter in members if id(parameter) in own]
        for name, members in layer_parameters(layers).items()
    }
    if not here:
        return {}
    return {
        name: count_values([part for part in parts if part is not None])
        for name, parts in held.items()
    }


class OutputHistograms:
    """Counts the outputs of layers, from ``attach`` until ``take``; of several runs the first.

    Args:
        layers: The layers that are watched.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = layers
        self._handles: list[RemovableHandle] = []
        self._counted: dict[str, Tensor | None] = {}

    def attach(self) -> None:
        """Begin to count."""
        self.take()
        for layer in self._layers:
            count = partial(self._count, layer.name)
            self._handles.append(layer.module.register_forward_hook(count))

    def pause(self) -> None:
        """Take the hooks off, and keep what was counted."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def take(self) -> dict[str, Tensor | None]:
        """Stop counting, and return what was counted."""
        self.pause()
        counted, self._counted = self._counted, {}
        return counted

    def _count(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        tensor = main_tensor(output)
        if name not in self._counted and tensor is not None and tensor.is_floating_point():
            part = local_part(tensor.detach())
            self._counted[name] = None if part is None else count_values([part])


def send_histograms(
    trainer: pl.Trainer, prefix: str, histograms: Mapping[str, Histogram], step: int
) -> None:
    """Hand histograms to the loggers that take them.

    Args:
        trainer: It has the loggers.
        prefix: First parts of the keys.
        histograms: By layer.
        step: Step on the axis on which Lightning logs.
    """
    keyed = {f"{prefix}/{name}": histogram for name, histogram in histograms.items()}
    for logger in trainer.loggers if keyed else ():
        if (send := _taker(logger)) is not None:
            send(keyed, step)


def _taker(logger: Any) -> Callable[[Mapping[str, Histogram], int], None] | None:
    """How histograms get into a logger, of whichever Lightning package; None where they do not."""
    experiment = getattr(logger, "experiment", None)
    for kind in type(logger).__mro__:
        if kind.__name__ in _SENDERS:
            return partial(_SENDERS[kind.__name__], experiment)
    return None


def _to_tensorboard(experiment: Any, histograms: Mapping[str, Histogram], step: int) -> None:
    for key, (counts, edges) in histograms.items():
        middles = (edges[1:] + edges[:-1]) / 2
        experiment.add_histogram_raw(
            key,
            min=edges[0],
            max=edges[-1],
            num=counts.sum(),
            sum=(counts * middles).sum(),
            sum_squares=(counts * middles**2).sum(),
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.tolist(),
            global_step=step,
        )


def _to_wandb(experiment: Any, histograms: Mapping[str, Histogram], step: int) -> None:
    """One row for all layers, on the axis that Lightning gives to W&B's own rows."""
    make = sys.modules["wandb"].Histogram  # the logger has imported it
    rows = {key: make(np_histogram=tuple(histogram)) for key, histogram in histograms.items()}
    experiment.log({**rows, "trainer/global_step": step})


def _to_comet(experiment: Any, histograms: Mapping[str, Histogram], step: int) -> None:
    """Comet counts values itself: it gets middles of bins, as often as their share says."""
    for key, (counts, edges) in histograms.items():
        times = np.ceil(counts * min(1.0, _FEW / max(counts.sum(), 1.0))).astype(int)
        values = np.repeat((edges[1:] + edges[:-1]) / 2, times)
        experiment.log_histogram_3d(values, name=key, step=step)


_SENDERS = {
    "TensorBoardLogger": _to_tensorboard,
    "WandbLogger": _to_wandb,
    "CometLogger": _to_comet,
}


def _finite(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1)
    flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
    return torch.where(flat.isfinite(), flat, math.nan)


@contextmanager
def _in_any_order() -> Iterator[None]:
    """Counts are the same in whichever order they are added, which PyTorch cannot know."""
    strict = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    if strict:
        torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        if strict:
            torch.use_deterministic_algorithms(True, warn_only=warns)
