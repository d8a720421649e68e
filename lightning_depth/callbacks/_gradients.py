"""Reading the gradients of one optimizer's parameters, layer by layer, under every strategy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter, is_lazy

from lightning_depth.callbacks._norms import Norms, exact_norms, is_doubtful, local_part
from lightning_depth.callbacks._sharding import Sharding
from lightning_depth.callbacks._sources import PLAIN, Source
from lightning_depth.layers import Layer, clean_name, layer_parameters

__all__ = ["GradientTable", "LayerGradient", "Reading"]


@dataclass(frozen=True)
class LayerGradient:
    """What was read of one layer; not-a-number where there was nothing to read."""

    layer: Layer
    grad_rms: float
    weight_rms: float
    nonfinite: int
    bare: tuple[str, ...]
    """Names of the parameters that want a gradient and got none."""
    is_matrix: bool
    """Whether the layer has weights of two dimensions or more, which set it in the trend."""
    output_rms: float = math.nan
    """RMS of the gradient with respect to the layer's output, where that is measured."""

    @property
    def grad_to_weight(self) -> float:
        """RMS of the gradient over RMS of the weight."""
        return self.grad_rms / self.weight_rms if self.weight_rms else math.nan


@dataclass(frozen=True)
class Reading:
    """What was read of one optimizer's parameters at one step."""

    layers: tuple[LayerGradient, ...]
    norm: float
    nonfinite: int
    peak_rms: float
    """Largest RMS of any parameter's gradient: the scale at which the loss pulls."""
    loss_scale: float
    """Factor of a GradScaler, 1 without one."""
    earlier: tuple[float | None, ...]
    """What was queued by an earlier step, read in the same copy."""


class GradientTable:
    """The parameters of one optimizer and the layers that they belong to.

    A layer is judged by its weights, the parameters of two dimensions or more: the scales and
    shifts of a normalisation have an RMS of their own, which would cover that of the weights. A
    layer that has no others is judged by these.

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
        names = {id(parameter): clean_name(name) for name, parameter in model.named_parameters()}
        self._names = [names.get(id(parameter), "unnamed") for parameter in self._parameters]
        owners = _owners(layers)
        owner = [owners.get(id(parameter)) for parameter in self._parameters]
        self.layers = [layer for layer in layers if layer.name in owner]
        shapes = [sharding.shape(parameter) for parameter in self._parameters]
        self._numel = [max(math.prod(shape), 1) for shape in shapes]
        self._members = {
            layer.name: [place for place, name in enumerate(owner) if name == layer.name]
            for layer in self.layers
        }
        self._weights = {
            name: [place for place in places if len(shapes[place]) > 1] or places
            for name, places in self._members.items()
        }
        self._matrix = {
            name for name, places in self._weights.items() if len(shapes[places[0]]) > 1
        }
        self._watched = sorted(place for places in self._weights.values() for place in places)
        self._shares = [sharding.shares.get(id(p), 1.0) for p in self._parameters]
        self._group = sharding.group
        self._device = device
        self._source = source
        self._last_weights: dict[int, float | None] = {}

    @property
    def is_sharded(self) -> bool:
        """Whether reading takes part of every rank."""
        return self._group is not None

    def gradients(self) -> list[Tensor | None]:
        """Return what this rank holds of every gradient."""
        return [local_part(self._source.gradient(parameter)) for parameter in self._parameters]

    def weights(self) -> list[Tensor | None]:
        """Return what this rank holds of the weights by which layers are judged."""
        read = self._source.weight
        return [local_part(read(self._parameters[place])) for place in self._watched]

    def queue_gradients(self, gradients: Sequence[Tensor | None]) -> Norms:
        """Return the norms of gradients, on their way to the host."""
        return self._queue(gradients, self._shares)

    def queue_weights(self, weights: Sequence[Tensor | None]) -> Norms:
        """Return the norms of weights, or of changes of weights, on their way to the host."""
        return self._queue(weights, [self._shares[place] for place in self._watched])

    def read(
        self,
        scale: Tensor | None = None,
        earlier: Norms | None = None,
        *,
        unscale: bool = False,
        reuse_weights: bool = False,
    ) -> Reading | None:
        """Return gradients and weights as they are now.

        Args:
            scale: Loss scale of a GradScaler, on its device.
            earlier: Norms of an earlier step, to be brought along in the same copy.
            unscale: Whether the gradients still carry the loss scale.
            reuse_weights: Whether the norms of the weights are those of the last reading.

        Returns:
            None where no parameter has a gradient on any rank.
        """
        reuse = reuse_weights and bool(self._last_weights)
        gradients, weights = self.gradients(), [] if reuse else self.weights()
        queued = self.queue_gradients(gradients)
        weight_slots = queued.absorb(Norms(self._device) if reuse else self.queue_weights(weights))
        scale_slots = queued.absorb(self._queue([scale], [1.0 / self._ranks()]))
        earlier_slots = queued.absorb(earlier) if earlier is not None else range(0)
        values = queued.read(self._group)
        norms = values[: scale_slots.start]  # of gradients, then of weights
        if all(norm is None for norm in norms[: weight_slots.start]):
            return None
        bad = self._repeat([*gradients, *weights], norms)
        if not reuse:
            self._last_weights = dict(zip(self._watched, norms[weight_slots.start :], strict=True))
        loss_scale = values[scale_slots.start] or 1.0
        factor = 1.0 / loss_scale if unscale else 1.0
        return self._assemble(
            [norm and norm * factor for norm in norms[: weight_slots.start]],
            self._last_weights,
            bad,
            loss_scale,
            tuple(values[slot] for slot in earlier_slots),
        )

    @property
    def device(self) -> torch.device:
        """Where the numbers of all layers are joined."""
        return self._device

    def with_outputs(
        self,
        reading: Reading,
        names: Sequence[str],
        norms: Sequence[float | None],
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
            for name, norm in zip(names, norms, strict=True)
            if norm is not None and numels.get(name)
        }
        layers = tuple(
            replace(layer, output_rms=rms.get(layer.layer.name, math.nan))
            for layer in reading.layers
        )
        return replace(reading, layers=layers)

    def read_queued(self, queued: Norms) -> list[float | None]:
        """Return norms that were queued, in a copy of their own."""
        return queued.read(self._group)

    def layer_norms(self, norms: Sequence[float | None]) -> list[float]:
        """Return the RMS of each layer from what ``queue_weights`` read."""
        squares = dict(zip(self._watched, norms, strict=True))
        return [self._rms(squares, self._weights[layer.name]) for layer in self.layers]

    def _queue(self, tensors: Sequence[Tensor | None], shares: Sequence[float]) -> Norms:
        norms = Norms(self._device)
        norms.add(tensors, shares)
        return norms

    def _ranks(self) -> int:
        return 1 if self._group is None else self._group.size()

    def _repeat(
        self, tensors: Sequence[Tensor | None], norms: list[float | None]
    ) -> dict[int, int]:
        """Replace norms that float32 cannot hold, in place; return counts of bad elements."""
        places = [
            place for place, norm in enumerate(norms) if norm is not None and is_doubtful(norm)
        ]
        if not places:
            return {}
        shares = [*self._shares, *(self._shares[place] for place in self._watched)]
        values = exact_norms(
            self._device, [tensors[place] for place in places], [shares[place] for place in places]
        ).read(self._group)
        for place, norm in zip(places, values, strict=False):
            norms[place] = norm
        roots = values[len(places) :]
        counts = {place: round(root**2) for place, root in zip(places, roots, strict=True) if root}
        return {place: count for place, count in counts.items() if place < len(self._parameters)}

    def _assemble(
        self,
        norms: Sequence[float | None],
        weights: Mapping[int, float | None],
        bad: dict[int, int],
        loss_scale: float,
        earlier: tuple[float | None, ...],
    ) -> Reading:
        gradients = dict(enumerate(norms))
        return Reading(
            layers=tuple(
                self._assemble_layer(layer, gradients, weights, bad) for layer in self.layers
            ),
            norm=math.hypot(*(norm for norm in norms if norm is not None)),
            nonfinite=sum(bad.values()),
            peak_rms=max(
                norm / math.sqrt(numel)
                for norm, numel in zip(norms, self._numel, strict=True)
                if norm is not None
            ),
            loss_scale=loss_scale,
            earlier=earlier,
        )

    def _assemble_layer(
        self,
        layer: Layer,
        gradients: Mapping[int, float | None],
        weights: Mapping[int, float | None],
        bad: dict[int, int],
    ) -> LayerGradient:
        judged, members = self._weights[layer.name], self._members[layer.name]
        bare = [place for place in members if gradients[place] is None]
        moved = [place for place in judged if place not in bare] if bare else judged
        return LayerGradient(
            layer=layer,
            grad_rms=self._rms(gradients, moved),
            weight_rms=self._rms(weights, moved or judged),
            nonfinite=sum(bad.get(place, 0) for place in members) if bad else 0,
            bare=tuple(self._names[place] for place in bare if self._wants_gradient(place)),
            is_matrix=layer.name in self._matrix,
        )

    def _wants_gradient(self, place: int) -> bool:
        return self._parameters[place].requires_grad

    def _rms(self, norms: Mapping[int, float | None], places: Sequence[int]) -> float:
        """The RMS over several parameters, not-a-number where none was read."""
        if len(places) == 1:  # most layers have one matrix, and there may be hundreds of layers
            norm = norms[places[0]]
            return math.nan if norm is None else norm / math.sqrt(self._numel[places[0]])
        known = [norm for place in places if (norm := norms[place]) is not None]
        if not places or len(known) < len(places):
            return math.nan
        return math.hypot(*known) / math.sqrt(sum(self._numel[place] for place in places))


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
