"""One validation pass: hooks on the layers, labels from the batches, features into the stores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence
from torch.utils.hooks import RemovableHandle

from lightning_depth.callbacks._ignored import NO_LABEL
from lightning_depth.callbacks._probe.batches import (
    Batch,
    LabelReader,
    NoLabelsError,
    Path,
    as_classes,
    pick,
    read_batch,
)
from lightning_depth.callbacks._probe.features import (
    Pool,
    Projection,
    Rows,
    pool_rows,
)
from lightning_depth.callbacks._probe.labels import is_plain, walk
from lightning_depth.callbacks._probe.moments import MomentStore
from lightning_depth.callbacks._probe.outputs import Tap, as_plain, describe_output, find_taps
from lightning_depth.callbacks._probe.samples import Plan, Samples, SampleStore
from lightning_depth.functional.reservoir import content_keys
from lightning_depth.layers import (
    Layer,
    feature_axis,
    is_sequence,
    is_time_first,
    main_output,
    unwrap,
)

__all__ = ["INPUT", "NOT_RUN", "Collector", "LayerInfo", "ProbeOptions"]

INPUT = "input"
HASHED_FEATURES = 1024  # values of an input that its key is made of
POSITIONS = 1024  # label positions of one sample that are looked at
WIDTH_CHANGES = "their width changes from batch to batch"
NO_ORDER = "samples and time steps are as many and either may come first (try another batch size)"
NO_AXIS = "channels and positions are as many and either may come first"
SORTED = "samples were sorted by length on the way (pack them with `enforce_sorted=False`)"
NOT_RUN = "the validation step does not run them"
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
    ignore_index: int | None = None


class LayerInfo(NamedTuple):
    """How a layer was reduced, how many features that gave, and how many were kept of them."""

    pool: str
    width: int
    num_features: int


class _Arrival(NamedTuple):
    """The rows of the batch under way that are measured."""

    size: int
    rows: Rows  # of a pass that is measured whole all labelled ones, else those of the plan
    plan: Plan
    cells: Tensor | None


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
        self._counts: list[Tensor] = []  # what may be lengths in the batch under way
        self._is_sorted = False  # otherwise than its labels, from some layer on
        self._done: set[str] = set()
        self._reached: set[str] = set()
        self.dropped: dict[str, str] = {}
        self.mismatch: tuple[int, int] | None = None
        self.negative: set[int] = set()  # labels that are left out without anybody's word
        self._axes: dict[str, int] = {}
        self._unread: dict[str, str] = {}
        self._time_first: dict[str, bool] = {}
        self._projections: dict[int, Projection] = {}
        self._taps = find_taps(layers, root)
        self._has_time_first = any(is_time_first(part) for part in root.modules())
        self._handles: list[RemovableHandle] = []

    def open(self) -> None:
        """Hang the hooks on the modules."""
        for tap in self._taps:
            if tap.is_shared:
                reach = partial(self._reach, tap.layer)
                self._handles.append(tap.layer.module.register_forward_hook(reach))
            self._handles.append(tap.module.register_forward_hook(partial(self._observe, tap)))

    def close(self) -> None:
        """Take the hooks off; nothing happens where there are none."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @torch.no_grad()
    def begin(self, batch: Any) -> None:
        """Read the labels of a batch and choose the rows that are wanted."""
        self._done.clear()
        self._reached.clear()
        self.end()
        if self.reason is not None:
            return
        try:
            found = read_batch(batch, self.options.labels, self._path)
            self._path = found.path
            self._arrival = self._arrive(batch, found)
            self._counts = [tensor for _, tensor in walk(batch) if _may_be_lengths(tensor)]
        except NoLabelsError as error:
            self.reason = str(error)
            return
        if found.inputs is not None and found.inputs.is_floating_point():
            grid = found.labels.shape[1:]
            last = len(grid) > 0 and found.inputs.shape[1 : 1 + len(grid)] == grid
            self._take(INPUT, found.inputs, "flatten", channels_last=last)

    def end(self) -> None:
        """Forget the batch."""
        self._arrival, self._counts, self._is_sorted = None, [], False

    def _arrive(self, batch: Any, found: Batch) -> _Arrival:
        labels = found.labels.cpu()
        size = len(labels)
        grid = labels.shape[1:]
        stride = max(1, -(-grid.numel() // POSITIONS))
        flat = labels.reshape(size, grid.numel())[:, ::stride]
        valid = self._is_class(flat)
        if self._num_unique is not None:
            valid[max(0, self._num_unique - self._seen) :] = False
        keys = self._keys(found.inputs, size)
        sample, column = valid.nonzero(as_tuple=True)
        places = _places(column * stride, grid) if len(grid) else None
        if places is not None:
            keys = content_keys(torch.stack([keys[sample], column], 1), self.options.seed)
        nuisance = self._nuisance(batch, size)[sample]
        arriving = Samples(keys if places is not None else keys[sample], flat[valid], nuisance)
        rows, plan = Rows(sample, places, tuple(grid)), self.store.plan(arriving)
        if self.moments is None:
            return _Arrival(size, rows.at(plan.rows), plan, None)
        cells = self.moments.index(arriving.labels, arriving.nuisance)
        return _Arrival(size, rows, plan, cells)

    def _is_class(self, labels: Tensor) -> Tensor:
        """Whether labels are class numbers; those below zero and the ignored one are none."""
        ignored, valid = self.options.ignore_index, labels >= 0
        if not bool(valid.all()):
            self.negative |= {*labels[~valid].tolist()} - {NO_LABEL, ignored}
        return valid if ignored is None else valid & (labels != ignored)

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

    def _reach(self, layer: Layer, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook: the next call of what the layer shares with others is its own."""
        self._reached.add(layer.name)

    def _observe(self, tap: Tap, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook: keep the rows that are wanted, of the first call in a batch."""
        name = tap.layer.name
        if self._arrival is None or name in self._done:
            return
        if tap.is_shared and name not in self._reached:
            return
        found = main_output(output)
        if self._is_sorted:  # what comes later may be in their order, or in that of the labels
            self._unread[name] = SORTED
        elif found is None:
            self._unread[name] = f"they hand on no tensor of numbers but {describe_output(output)}"
        elif isinstance(found, PackedSequence):
            self._observe_packed(name, found)
        elif found.numel():
            self._observe_tensor(tap, as_plain(found))
        else:
            self._unread[name] = "they hand on an empty tensor"

    def unread(self) -> dict[str, str]:
        """The layers of which nothing was read, each with the reason."""
        names = [tap.layer.name for tap in self._taps]
        return {
            name: self._unread.get(name, NOT_RUN)
            for name in names
            if name not in self.infos and name not in self.dropped
        }

    def _observe_tensor(self, tap: Tap, features: Tensor) -> None:
        name = tap.layer.name
        features = self._batch_first(tap, features if features.ndim > 1 else features[:, None])
        if not self._fits(name, features.size(0)):
            return
        if name not in self._axes:
            axis = -1 if features.is_nested else feature_axis(features, tap.layer.module)
            if axis is None:  # a batch of another length may tell
                self._unread[name] = NO_AXIS
                return
            self._axes[name] = axis
        axis = self._axes[name]
        if features.is_complex():
            features = torch.cat([features.real, features.imag], axis)
        self._take(name, features, self.options.pool, channels_last=axis == -1)

    def _observe_packed(self, name: str, packed: PackedSequence) -> None:
        arrival = self._arrival
        if arrival is not None and self._fits(name, int(packed.batch_sizes[0])):
            steps = arrival.rows.grid[0] if arrival.rows.grid else 0
            longest = max(steps, len(packed.batch_sizes))
            padded, lengths = pad_packed_sequence(packed, batch_first=True, total_length=longest)
            if packed.unsorted_indices is None and self._was_sorted(lengths):
                self._unread[name], self._is_sorted = SORTED, True
                return
            self._take(name, padded, self.options.pool, channels_last=True, lengths=lengths)

    def _was_sorted(self, lengths: Tensor) -> bool:
        """Whether the batch holds the same lengths in another order."""
        known = [counts.cpu().long() for counts in self._counts if len(counts) == len(lengths)]
        alike = [
            counts for counts in known if torch.equal(counts.sort().values, lengths.sort().values)
        ]
        return bool(alike) and not any(torch.equal(counts, lengths) for counts in alike)

    def _fits(self, name: str, size: int) -> bool:
        """Whether a layer hands on as many samples as the batch has labels."""
        labels = -1 if self._arrival is None else self._arrival.size
        if size != labels:
            self.mismatch = size, labels
            self._unread[name] = f"they hand on {size} rows where the batch has {labels} labels"
        return size == labels

    def _batch_first(self, tap: Tap, features: Tensor) -> Tensor:
        """The samples in front; recurrent nets and some transformers put time there."""
        if self._arrival is None or features.is_nested or features.ndim != 3:
            return features
        size = self._arrival.size
        name, square = tap.layer.name, len(features) == size == features.shape[1]
        if square and name not in self._time_first:
            module = unwrap(tap.layer.module)
            if self._has_time_first and not is_sequence(module):
                self._drop(name, NO_ORDER)
            self._time_first[name] = is_time_first(module)
        elif not square:
            self._time_first[name] = len(features) != size == features.shape[1]
        return features.transpose(0, 1) if self._time_first[name] else features

    @torch.no_grad()
    def _take(
        self,
        name: str,
        features: Tensor,
        pool: Pool,
        *,
        channels_last: bool,
        lengths: Tensor | None = None,
    ) -> None:
        arrival = self._arrival
        if arrival is None or name in self.dropped:
            return
        self._done.add(name)
        if not len(arrival.rows.samples):
            return
        found, how = pool_rows(
            features, arrival.rows, pool, channels_last=channels_last, lengths=lengths
        )
        if name in self.infos and self.infos[name].width != found.shape[1]:
            self._drop(name, WIDTH_CHANGES)  # as with pictures of several sizes
            return
        found = self._project(name, found, how)
        if arrival.cells is not None and self.moments is not None:
            self.moments.put(name, found, arrival.cells)
            found = found[arrival.plan.rows.to(found.device)]
        if len(arrival.plan.rows):
            self.store.put(name, found, arrival.plan.slots)

    def _drop(self, name: str, reason: str) -> None:
        self.dropped[name] = reason
        self.infos.pop(name, None)
        self.store.forget(name)
        if self.moments is not None:
            self.moments.forget(name)

    def _project(self, name: str, found: Tensor, how: str) -> Tensor:
        width = found.shape[1]
        if width not in self._projections:
            options = self.options
            self._projections[width] = Projection(width, options.max_features, options.seed)
        projection = self._projections[width]
        self.infos.setdefault(name, LayerInfo(how, width, projection.num_features))
        return projection(found)


def _may_be_lengths(tensor: Tensor) -> bool:
    return tensor.ndim == 1 and is_plain(tensor) and not tensor.is_floating_point()


def _places(column: Tensor, grid: torch.Size) -> Tensor:
    """Positions of a grid as shares of its sizes, in the middle of each cell."""
    places = []
    for size in reversed(grid):
        places.append((column % size + 0.5) / size)
        column = column // size
    return torch.stack(places[::-1], 1)
