"""Reading the gradients of one optimizer's parameters, layer by layer, under every strategy."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parameter import Parameter, is_lazy

from lightning_depth.callbacks._norms import (
    HostNorms,
    Norms,
    exact_norm,
    exact_norms,
    is_doubtful,
    local_part,
    lots,
)
from lightning_depth.callbacks._reading import Column, Reading, Watched, ratio
from lightning_depth.callbacks._sharding import Sharding
from lightning_depth.callbacks._sources import PLAIN, Source
from lightning_depth.callbacks._starts import UNNAMED, Starts, hold_parameters
from lightning_depth.layers import Layer, layer_parameters

__all__ = ["GradientTable"]


@dataclass(frozen=True)
class _Segments:
    """Which parameters each layer is judged by, as places that lie next to each other."""

    places: NDArray[np.intp]
    starts: NDArray[np.intp]
    numel: Column
    layer: NDArray[np.intp]
    """For each place its layer."""

    def rms(self, norms: Column, counted: NDArray[np.bool_] | None = None) -> Column:
        """Return the RMS of each layer over those of its parameters that count."""
        if not len(self.places):
            return np.empty(0)
        values, numel = norms[self.places], self.numel
        if counted is not None:
            values, numel = np.where(counted, values, 0.0), np.where(counted, numel, 0.0)
        total = np.hypot.reduceat(values, self.starts)
        return ratio(total, np.sqrt(np.add.reduceat(numel, self.starts)))


class GradientTable:
    """The parameters of one optimizer and the layers that they belong to.

    A layer is judged by its weights: gains, scales, gates, tokens and biases have an RMS of their
    own, which would cover that of the weights. A layer that has no weights is judged by these.

    Args:
        model: The module whose layers are watched.
        layers: Its layers.
        parameters: Parameters of one optimizer.
        sharding: How they are spread over ranks.
        device: Where the numbers of all layers are joined.
        source: Where gradients and weights are found.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        parameters: Iterable[Parameter],
        sharding: Sharding,
        device: torch.device,
        source: Source = PLAIN,
    ) -> None:
        self._parameters = [parameter for parameter in parameters if _is_readable(parameter)]
        shapes = [sharding.shape(parameter) for parameter in self._parameters]
        self._root_numel = np.sqrt([max(math.prod(shape), 1) for shape in shapes])
        held = hold_parameters(model, self._parameters, shapes)
        self._names = [each.name for each in held]
        owners = _owners(layers)
        owner = [owners.get(id(parameter)) for parameter in self._parameters]
        own = tuple(layer for layer in layers if layer.name in owner)
        self._members = [
            [place for place, name in enumerate(owner) if name == layer.name] for layer in own
        ]
        judged = [[p for p in places if held[p].is_weight] or places for places in self._members]
        self._groups = dict(zip([layer.name for layer in own], self._members, strict=True))
        self._groups |= {self._names[p]: [p] for p, name in enumerate(owner) if name is None}
        self.layers = Watched(
            own,
            tuple(held[places[0]].is_weight for places in judged),
            {self._names[p]: name for p, name in enumerate(owner) if name is not None},
        )
        self._compared = sorted(place for places in judged for place in places)
        self._judged = _segments(judged, self._root_numel**2)
        places = {layer.name: place for place, layer in enumerate(own)}
        self._starts = Starts(
            held, [places.get(name or "") for name in owner], self._compared, self._root_numel
        )
        self._judged_members = judged
        self._shares = [sharding.shares.get(id(p), 1.0) for p in self._parameters]
        self._compared_shares = [self._shares[place] for place in self._compared]
        self._group = sharding.group
        self._device = device
        self._source = source
        self._last_weights: Column | None = None

    @property
    def last_weights(self) -> list[float] | None:
        """Norms of the weights when they were last read; they survive a resumption."""
        return None if self._last_weights is None else self._last_weights.tolist()

    @last_weights.setter
    def last_weights(self, norms: list[float] | None) -> None:
        fits = norms is not None and len(norms) == len(self._parameters)
        self._last_weights = np.array(norms) if fits else None

    @property
    def is_sharded(self) -> bool:
        """Whether reading takes part of every rank."""
        return self._group is not None

    @property
    def names(self) -> list[str]:
        """The parameters."""
        return self._names

    def find(self, names: Collection[str]) -> list[tuple[str, Parameter]]:
        """Return some parameters whose gradient is where PyTorch keeps it, with their names."""
        if self._source is not PLAIN:
            return []
        wanted = set(names)
        pairs = zip(self._names, self._parameters, strict=True)
        return [(name, parameter) for name, parameter in pairs if name in wanted]

    def gradients(self) -> list[Tensor | None]:
        """Return every gradient, as the strategy keeps it."""
        return list(map(self._source.gradient, self._parameters))

    def weights(self) -> list[Tensor | None]:
        """Return what this rank holds of the weights by which layers are judged."""
        read = self._source.weight
        return [local_part(read(self._parameters[place])) for place in self._compared]

    def queue_gradients(self, gradients: Sequence[Tensor | None]) -> Norms:
        """Return the norms of gradients, on their way to the host."""
        return self._queue(gradients, self._shares)

    def queue_exact_gradients(self) -> Norms:
        """Return the norms of the gradients as they are now, in float64."""
        parts = [local_part(gradient) for gradient in self.gradients()]
        return self._queue(
            [None if part is None else exact_norm(part) for part in parts], self._shares
        )

    def queue_weights(self, weights: Sequence[Tensor | None]) -> Norms:
        """Return the norms of weights, or of changes of weights, on their way to the host."""
        return self._queue(weights, self._compared_shares)

    def queue_in_lots(
        self,
        weights: Sequence[Tensor | None],
        prepare: Callable[[slice], Sequence[Tensor | None]],
    ) -> Norms:
        """Return norms of what is made of weights, lot by lot while these are in the cache.

        Args:
            weights: They say how large a lot is.
            prepare: Takes the places of a lot, and returns a tensor for each.
        """
        norms = Norms(self._device)
        for lot in lots(weights):
            norms.add(prepare(lot), self._compared_shares[lot])
        return norms

    @torch.no_grad()
    def read(
        self,
        keep: Callable[[], Norms] | None = None,
        *,
        scale: Tensor | None = None,
        earlier: Norms | None = None,
        unscale: bool = False,
    ) -> Reading | None:
        """Return gradients and weights as they are now.

        Args:
            keep: Returns what ``queue_weights`` does; without it, the weights are those of the
                last reading. The gradients, which were written last, are read before.
            scale: Loss scale of a GradScaler, on its device.
            earlier: Norms of an earlier step, to be brought along in the same copy.
            unscale: Whether the gradients still carry the loss scale.

        Returns:
            None where no parameter has a gradient on any rank.
        """
        gradients = self.gradients()
        queued = self.queue_gradients(gradients)
        if keep is None and self._last_weights is None:
            keep = partial(self.queue_weights, self.weights())
        weight_slots = queued.absorb(keep()) if keep is not None else range(0)
        scale_slots = queued.add([scale], [1.0 / self._ranks()]) if scale is not None else range(0)
        earlier_slots = queued.absorb(earlier) if earlier is not None else range(0)
        start_slots = queued.absorb(self._queue_starts())
        values = queued.read(self._group)
        norms = values[range(len(gradients))]
        if not norms.present.any():
            return None
        bad = self._repeat(gradients, values[range(len(gradients) + len(weight_slots))])
        if weight_slots or self._last_weights is None:
            self._last_weights = self._by_place(values[weight_slots].values)
        if first := not self._starts.noted:
            self._starts.note(values[start_slots].values, self._last_weights)
        loss_scale = float(values[scale_slots].values[0]) if scale is not None else 1.0
        if unscale:
            norms = HostNorms(norms.values / loss_scale, norms.present)
        reading = self._assemble(norms, self._last_weights, bad, loss_scale, values[earlier_slots])
        return replace(reading, is_first=first)

    def _queue_starts(self) -> Norms:
        wanted = self._starts.wanted
        read = self._source.weight
        return self._queue(
            [local_part(read(self._parameters[place])) for place in wanted],
            [self._shares[place] for place in wanted],
        )

    @property
    def device(self) -> torch.device:
        """Where the numbers of all layers are joined."""
        return self._device

    def with_outputs(
        self,
        reading: Reading,
        names: Sequence[str],
        norms: HostNorms,
        numels: Mapping[str, int],
    ) -> Reading:
        """Return a reading with the gradients of the layers' outputs.

        They still carry the loss scale, and belong to the loss of this rank, of which the whole
        loss takes its share.

        Args:
            reading: What was read of the parameters.
            names: The layers whose outputs were watched.
            norms: Norm of the gradient of each.
            numels: How many elements this rank's norm goes over.
        """
        ranks = self._ranks()
        rms = {
            name: norm / math.sqrt(numels[name] * ranks) / (reading.loss_scale * ranks)
            for name, norm in zip(names, norms.to_list(), strict=True)
            if norm is not None and numels.get(name)
        }
        column = np.array([rms.get(layer.name, math.nan) for layer in reading.watched.layers])
        return replace(reading, output_rms=column)

    def read_queued(self, queued: Norms) -> HostNorms:
        """Return norms that were queued, in a copy of their own."""
        return queued.read(self._group)

    def layer_norms(self, norms: HostNorms) -> Column:
        """Return the RMS of each layer from what ``queue_weights`` read."""
        return self._judged.rms(self._by_place(norms.values))

    def _by_place(self, norms: Column) -> Column:
        """Spread what belongs to the weights that layers are judged by over all parameters."""
        column = np.full(len(self._parameters), np.nan)
        column[self._compared] = norms
        return column

    def _queue(self, tensors: Sequence[Tensor | None], shares: Sequence[float]) -> Norms:
        norms = Norms(self._device)
        norms.add(tensors, shares)
        return norms

    def _ranks(self) -> int:
        return 1 if self._group is None else self._group.size()

    def _repeat(self, gradients: Sequence[Tensor | None], norms: HostNorms) -> dict[int, int]:
        """Replace norms that float32 cannot hold, in place; return counts of bad elements."""
        places = np.flatnonzero(is_doubtful(norms)).tolist()
        if not places:
            return {}
        tensors = [*gradients, *self.weights()]
        shares = [*self._shares, *self._compared_shares]
        exact = exact_norms(
            self._device,
            [local_part(tensors[place]) for place in places],
            [shares[place] for place in places],
        ).read(self._group)
        norms.values[places] = exact.values[: len(places)]
        counts = np.rint(exact.values[len(places) :] ** 2).astype(int).tolist()
        return {
            place: count
            for place, count in zip(places, counts, strict=True)
            if count and place < len(self._parameters)
        }

    def _assemble(
        self,
        norms: HostNorms,
        weights: Column,
        bad: Mapping[int, int],
        loss_scale: float,
        earlier: HostNorms,
    ) -> Reading:
        counted, wanting = None, norms.present
        if not norms.present.all():
            counted = norms.present[self._judged.places]
            wanting = norms.present | self._can_want()
        absent = ~norms.present
        return Reading(
            watched=self.layers,
            grad_rms=self._judged.rms(norms.values, counted),
            weight_rms=self._judged.rms(weights, self._held_against(counted)),
            output_rms=None,
            bad_by_layer=self._bad_by_layer(bad),
            bare=self._named(absent & wanting),
            frozen=self._named(absent & ~wanting),
            idle=self._idle(norms, wanting),
            silent=self._silent(norms),
            starts=self._starts.moving(norms.values),
            unborn=self._starts.unborn(self._judged_members),
            growing=self._starts.are_growing(weights, norms.values),
            norm=norms.total(),
            nonfinite=sum(bad.values()),
            peak_rms=float((norms.values / self._root_numel)[norms.present].max()),
            loss_scale=loss_scale,
            earlier=earlier,
        )

    def _can_want(self) -> list[bool]:
        """Whether each parameter is trained and still held by the model."""
        pairs = zip(self._parameters, self._names, strict=True)
        return [parameter.requires_grad and name != UNNAMED for parameter, name in pairs]

    def _held_against(self, counted: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
        """Weights that a gradient is held against; all of a layer that has no gradient."""
        if counted is None:
            return None
        moved = np.logical_or.reduceat(counted, self._judged.starts)
        return counted | ~moved[self._judged.layer]

    def _named(self, chosen: NDArray[np.bool_]) -> tuple[str, ...]:
        return tuple(self._names[place] for place in np.flatnonzero(chosen).tolist())

    def _idle(self, norms: HostNorms, wanting: NDArray[np.bool_]) -> frozenset[str]:
        moving = norms.present & (norms.values != 0.0)
        if moving.all():
            return frozenset()
        return frozenset(
            name
            for name, members in self._groups.items()
            if wanting[members].any() and not moving[members].any()
        )

    def _silent(self, norms: HostNorms) -> frozenset[int]:
        if norms.values.all():
            return frozenset()
        zero = (norms.values == 0.0).tolist()
        moving = (norms.present & ~(norms.values == 0.0)).tolist()
        return frozenset(
            place
            for place, members in enumerate(self._members)
            if any(zero[member] for member in members)
            and not any(moving[member] for member in members)
        )

    def _bad_by_layer(self, bad: Mapping[int, int]) -> dict[int, int]:
        if not bad:
            return {}
        return {
            place: sum(bad.get(member, 0) for member in members)
            for place, members in enumerate(self._members)
        }


def _segments(judged: Sequence[Sequence[int]], numel: Column) -> _Segments:
    places = np.array([place for members in judged for place in members], dtype=np.intp)
    starts = np.cumsum([0, *map(len, judged)])[:-1]
    layer = np.repeat(np.arange(len(judged)), [len(members) for members in judged])
    return _Segments(places, starts, numel[places], layer)


def _owners(layers: Sequence[Layer]) -> dict[int, str]:
    """The name of the layer that each parameter belongs to, by the parameter's id."""
    return {
        id(parameter): name
        for name, owned in layer_parameters(layers).items()
        for _, parameter in owned
    }


def _is_readable(parameter: Parameter) -> bool:
    """Whether a parameter can have a gradient that can be read: integers and lazy ones cannot."""
    return not is_lazy(parameter) and (parameter.is_floating_point() or parameter.is_complex())
