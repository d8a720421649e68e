"""What part of a parameter each rank holds, under the strategies that shard parameters."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed
from torch import nn
from torch.nn.parameter import Parameter

__all__ = ["Sharding", "is_summed", "read_sharding"]


@dataclass(frozen=True)
class Sharding:
    """How parameters are spread over ranks.

    Args:
        group: Ranks over which squares are summed; None where every rank holds everything.
        shares: For the id of each parameter, the share of this rank's square that counts in the
            sum: 1 where every rank holds another piece, 1/n where n ranks hold the same one.
        shapes: For the id of each parameter that is kept flat, its shape in the user's code.
    """

    group: torch.distributed.ProcessGroup | None = None
    shares: dict[int, float] = field(default_factory=dict)
    shapes: dict[int, torch.Size] = field(default_factory=dict)

    def shape(self, parameter: Parameter) -> torch.Size:
        """Return the shape that a parameter has in the user's code."""
        partitioned: torch.Size | None = getattr(parameter, "ds_shape", None)  # DeepSpeed ZeRO-3
        return partitioned or self.shapes.get(id(parameter), parameter.shape)


def read_sharding(
    model: nn.Module, parameters: Iterable[Parameter], *, always: bool = False
) -> Sharding:
    """Return how a model's parameters are spread over ranks.

    Args:
        model: The model as the strategy wrapped it.
        parameters: The parameters that will be measured.
        always: Whether ranks are summed even where each holds every parameter, because something
            is measured beside them that differs between ranks.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return Sharding()
    world = torch.distributed.get_world_size()
    parameters = list(parameters)
    flat = _flat_handles(model)
    split = [parameter for parameter in parameters if hasattr(parameter, "device_mesh")]
    if not flat and not split and not (always and world > 1):
        return Sharding()
    shares = {id(parameter): 1 / world for parameter in parameters}
    shares.update((id(parameter), _share_of_split(parameter, world)) for parameter in split)
    shapes: dict[int, torch.Size] = {}
    for handle in flat:
        pieces = handle.process_group.size() if handle.uses_sharded_strategy else 1
        for parameter, shape in zip(
            handle.flat_param._params, handle.flat_param._shapes, strict=True
        ):
            shares[id(parameter)] = pieces / world
            shapes[id(parameter)] = torch.Size(shape)
    return Sharding(torch.distributed.group.WORLD, shares, shapes)


def is_summed(model: nn.Module, *, always: bool = False) -> bool:
    """Return whether what is read of a model has to be summed over ranks.

    Args:
        model: The model as the strategy wrapped it.
        always: As in ``read_sharding``.
    """
    return read_sharding(model, model.parameters(), always=always).group is not None


def _share_of_split(parameter: Any, world: int) -> float:
    """One over the number of ranks that hold the same piece of a DTensor."""
    sizes = parameter.device_mesh.shape
    pieces: int = math.prod(
        size for size, place in zip(sizes, parameter.placements, strict=True) if place.is_shard()
    )
    return pieces / world


def _flat_handles(model: nn.Module) -> list[Any]:
    """Handles of the flat parameters of FSDP1, if that has been imported at all."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return []
    handles = [
        module._handle
        for module in fsdp.FullyShardedDataParallel.fsdp_modules(model)
        if module._handle is not None
    ]
    return [handle for handle in handles if handle.flat_param._params is not None]
