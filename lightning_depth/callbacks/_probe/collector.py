"""One validation pass: hooks on the layers, labels from the batches, features into the stores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_depth.callbacks._probe.batches import (
    Batch,
    LabelReader,
    NoLabelsError,
    Path,
    as_classes,
    first_tensor,
    pick,
    read_batch,
)
from lightning_depth.callbacks._probe.features import (
    Pool,
    Projection,
    Rows,
    is_channels_last,
    pool_rows,
)
from lightning_depth.callbacks._probe.moments import MomentStore
from lightning_depth.callbacks._probe.samples import Plan, Samples, SampleStore
from lightning_depth.functional.reservoir import content_keys
from lightning_depth.layers import Layer

__all__ = ["INPUT", "Collector", "LayerInfo", "ProbeOptions", "output_module"]

INPUT = "input"
HASHED_FEATURES = 1024  # values of an input that its key is made of
POSITIONS = 1024  # label positions of one sample that are looked at
STREAMING_SAMPLES = 1000  # kept beside the sums when a whole pass is measured


@dataclass(frozen=True)
class ProbeOptions:
    """What the user asked for, as far as collecting is concerned."""

    max_samples: int | None
    max_features: int
    pool: Pool
    labels: str | int | LabelReader | None
    nuisance: str | int | LabelReader | None
    seed: int


class LayerInfo(NamedTuple):
    """How a layer was reduced, and from how many features its rows were projected."""

    pool: str
    width: int


class _Arrival(NamedTuple):
    """The rows of the batch under way that are measured."""

    size: int
    rows: Rows  # of a pass that is measured whole all labelled ones, else those of the plan
    plan: Plan
    cells: Tensor | None


def output_module(layer: Layer, root: nn.Module, watched: set[int]) -> nn.Module:
    """Return the module whose output is the layer's: an activation that follows belongs to it.

    A single module in a Sequential hands on what its activation, normalisation or pooling
    without weights makes of it.
    """
    if any(True for _ in layer.module.children()):
        return layer.module
    for parent in root.modules():
        members = list(parent.children()) if isinstance(parent, nn.Sequential) else []
        if not any(member is layer.module for member in members):
            continue
        start = next(place for place, member in enumerate(members) if member is layer.module)
        last = layer.module
        for member in members[start + 1 :]:
            if id(member) in watched or next(member.parameters(), None) is not None:
                break
            last = member
        return last
    return layer.module


class Collector:
    """Collects the features of one validation pass.

    Args:
        layers: The layers to watch.
        root: The user's module.
        options: What to collect.
        rank: Number of this process.
        num_unique: Samples from the start that no other process has; all by default.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        root: nn.Module,
        options: ProbeOptions,
        rank: int = 0,
        num_unique: int | None = None,
    ) -> None:
        self.options = options
        self.store = SampleStore(options.max_samples or STREAMING_SAMPLES)
        self.moments = MomentStore() if options.max_samples is None else None
        self.infos: dict[str, LayerInfo] = {}
        self.reason: str | None = None
        self.rank = rank
        self._num_unique = num_unique
        self._path: Path = ()
        self._seen = 0
        self._arrival: _Arrival | None = None
        self._done: set[str] = set()
        self.dropped: set[str] = set()
        self._channels_last: dict[str, bool] = {}
        self._projections: dict[int, Projection] = {}
        watched = {id(layer.module) for layer in layers}
        self._taps = [(layer, output_module(layer, root, watched)) for layer in layers]
        self._handles: list[RemovableHandle] = []

    def open(self) -> None:
        """Hang the hooks on the modules."""
        self._handles = [
            tap.register_forward_hook(partial(self._observe, layer)) for layer, tap in self._taps
        ]

    def close(self) -> None:
        """Take the hooks off; nothing happens where there are none."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @torch.no_grad()
    def begin(self, batch: Any) -> None:
        """Read the labels of a batch and choose the rows that are wanted."""
        self._done.clear()
        self._arrival = None
        if self.reason is not None:
            return
        try:
            found = read_batch(batch, self.options.labels, self._path)
            self._path = found.path
            self._arrival = self._arrive(batch, found)
        except NoLabelsError as error:
            self.reason = str(error)
            return
        if found.inputs is not None and found.inputs.is_floating_point():
            grid = found.labels.shape[1:]
            last = len(grid) > 0 and found.inputs.shape[1 : 1 + len(grid)] == grid
            self._take(INPUT, found.inputs, "flatten", channels_last=last)

    def end(self) -> None:
        """Forget the batch."""
        self._arrival = None

    def _arrive(self, batch: Any, found: Batch) -> _Arrival:
        labels = found.labels.cpu()
        size = len(labels)
        grid = labels.shape[1:]
        stride = max(1, -(-grid.numel() // POSITIONS))
        flat = labels.reshape(size, -1)[:, ::stride]
        valid = flat >= 0
        if self._num_unique is not None:
            valid[max(0, self._num_unique - self._seen) :] = False
        keys = self._keys(found.inputs, size)
        sample, column = valid.nonzero(as_tuple=True)
        places = _places(column * stride, grid) if len(grid) else None
        if places is not None:
            keys = content_keys(torch.stack([keys[sample], column], 1), self.options.seed)
        nuisance = self._nuisance(batch, size)[sample]
        arriving = Samples(keys if places is not None else keys[sample], flat[valid], nuisance)
        rows, plan = Rows(sample, places), self.store.plan(arriving)
        if self.moments is None:
            return _Arrival(size, rows.at(plan.rows), plan, None)
        cells = self.moments.index(arriving.labels, arriving.nuisance)
        return _Arrival(size, rows, plan, cells)

    def _keys(self, inputs: Tensor | None, size: int) -> Tensor:
        numbers = torch.arange(self._seen, self._seen + size)
        self._seen += size
        if inputs is None:
            rows = torch.stack([numbers, torch.full_like(numbers, self.rank)], 1)
            return content_keys(rows, self.options.seed)
        flat = inputs.detach().flatten(1)
        stride = max(1, -(-flat.shape[1] // HASHED_FEATURES))
        return content_keys(flat[:, ::stride].cpu(), self.options.seed)

    def _nuisance(self, batch: Any, size: int) -> Tensor:
        if self.options.nuisance is None:
            return torch.full((size,), -1)
        found = as_classes(pick(batch, self.options.nuisance, "nuisance")).cpu()
        if found.shape != (size,):
            raise NoLabelsError("`nuisance` does not give one label a sample")
        return found

    def _observe(self, layer: Layer, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook: keep the rows that are wanted, of the first call in a batch."""
        if self._arrival is None or layer.name in self._done:
            return
        features = first_tensor(output)
        if features is None:
            return
        if hasattr(features, "full_tensor"):
            features = features.full_tensor()
        if features.ndim == 3 and len(features) != self._arrival.size == features.shape[1]:
            features = features.transpose(0, 1)  # recurrent nets put time first
        if len(features) != self._arrival.size:
            return
        if layer.name not in self._channels_last:
            self._channels_last[layer.name] = is_channels_last(features, layer.module)
        last = self._channels_last[layer.name]
        self._take(layer.name, features, self.options.pool, channels_last=last)

    @torch.no_grad()
    def _take(self, name: str, features: Tensor, pool: Pool, *, channels_last: bool) -> None:
        arrival = self._arrival
        if arrival is None or name in self.dropped:
            return
        self._done.add(name)
        if not len(arrival.rows.samples):
            return
        found, how = pool_rows(features, arrival.rows, pool, channels_last=channels_last)
        if name in self.infos and self.infos[name].width != found.shape[1]:
            self._drop(name)  # pictures or sequences of several sizes cannot be compared
            return
        found = self._project(name, found, how)
        if arrival.cells is not None and self.moments is not None:
            self.moments.put(name, found, arrival.cells)
            found = found[arrival.plan.rows.to(found.device)]
        if len(arrival.plan.rows):
            self.store.put(name, found, arrival.plan.slots)

    def _drop(self, name: str) -> None:
        self.dropped.add(name)
        del self.infos[name]
        self.store.forget(name)
        if self.moments is not None:
            self.moments.forget(name)

    def _project(self, name: str, found: Tensor, how: str) -> Tensor:
        width = found.shape[1]
        self.infos.setdefault(name, LayerInfo(how, width))
        if width not in self._projections:
            options = self.options
            self._projections[width] = Projection(width, options.max_features, options.seed)
        return self._projections[width](found)


def _places(column: Tensor, grid: torch.Size) -> Tensor:
    """Positions of a grid as shares of its sizes, in the middle of each cell."""
    places = []
    for size in reversed(grid):
        places.append((column % size + 0.5) / size)
        column = column // size
    return torch.stack(places[::-1], 1)
