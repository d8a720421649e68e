"""A copy of a network's weights and buffers, on the device, on the host or on disk.

The copy is made tensor by tensor, each parameter once: tied weights stay tied, frozen ones stay
frozen, hooks and overridden `state_dict` methods of the user's module are not run, and of a
sharded parameter (DTensor) this process copies its own shard, without a collective.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.tensor import distribute_tensor
from torch.nn.parameter import is_lazy

from lightning_depth.errors import MisuseError
from lightning_depth.layers import clean_name

__all__ = ["BestWeights", "Place", "named_tensors"]

Place = Literal["device", "cpu", "disk"]


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer of a module once, by its clean name.

    Buffers that a ``state_dict`` leaves out are among them.

    Args:
        module: Any module.

    Example:
        >>> sorted(named_tensors(nn.BatchNorm1d(3, affine=False)))
        ['num_batches_tracked', 'running_mean', 'running_var']
    """
    named = [*module.named_parameters(), *module.named_buffers()]
    return {clean_name(name): tensor for name, tensor in named if not is_lazy(tensor)}


@dataclass
class BestWeights:
    """The weights and buffers that scored best so far, if any.

    An earlier copy is let go before the next is made, so that there is one at a time. Files are
    written under a new name each time: those that the last two checkpoints name are kept.

    Args:
        place: Where the copy is held.
        tensors: The copy by name, where it is held in memory.
        sharded: Whether these are shards of this process rather than whole tensors.
        step: Optimizer step of the copy.
        path: File of the copy without the ending, where it is held on disk.
        named: Files that checkpoints name, oldest first.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> best = BestWeights("cpu")
        >>> best.capture(net)
        >>> kept = net.weight.detach().clone()
        >>> _ = nn.init.zeros_(net.weight)
        >>> best.apply(net)
        >>> torch.equal(net.weight, kept)
        True
    """

    place: Place
    tensors: dict[str, Tensor] | None = None
    sharded: bool = False
    step: int = 0
    path: str | None = None
    named: list[str] = field(default_factory=list)

    @property
    def held(self) -> bool:
        """Whether there is a copy."""
        return self.tensors is not None or self.path is not None

    def capture(self, module: nn.Module, step: int = 0, path: Path | None = None) -> None:
        """Copy a module as it is now.

        Args:
            module: The module, on every rank.
            step: Optimizer step that it has reached.
            path: File without its ending, for copies on disk; not yet there.
        """
        current = {name: _local(tensor) for name, tensor in named_tensors(module).items()}
        self.sharded = any(map(_is_sharded, module.parameters()))
        self.tensors, self.step = None, step
        if self.place != "disk":
            self.tensors = {name: _copy(tensor, self.place) for name, tensor in current.items()}
            return
        assert path is not None
        old, self.path = self.path, str(path)
        if self.sharded or _rank() == 0:
            _write(self._file(self.path), current)
        if old is not None and old not in self.named:
            self._remove(old)

    def apply(self, *modules: nn.Module) -> None:
        """Write the copy into modules of the same tensors, on every rank.

        A buffer whose shape has changed since is a cache and keeps its content.

        Args:
            *modules: Modules with the names and shapes of the one that was copied.

        Raises:
            MisuseError: There is no copy, its file is gone, or it does not fit.
        """
        shared = self.path is not None and not self.sharded and _world_size() > 1
        saved: Mapping[str, Tensor] = {}
        trouble = None
        try:
            if not shared or _rank() == 0:
                saved = self._read()
                for module in modules:
                    _check_fit(saved, module)
        except MisuseError as error:
            trouble = str(error)
        if trouble := _first_of_ranks(trouble):
            raise MisuseError(trouble)
        for module in modules:
            _write_into(module, saved, whole=not self.sharded)
            if shared:
                _broadcast(module)

    def discard(self) -> None:
        """Let go of the copy."""
        if self.path is not None and self.path not in self.named:
            self._remove(self.path)
        self.tensors = self.path = None

    def follow(self, earlier: BestWeights) -> None:
        """Take the place of an earlier copy.

        Args:
            earlier: The copy that is no longer the best.
        """
        self.named = earlier.named + self.named
        earlier.discard()

    def to_state(self, module: nn.Module) -> dict[str, Any]:
        """Return what a checkpoint keeps: whole tensors, or the path of the file.

        Args:
            module: The module that was copied; a collective where it is sharded.
        """
        if self.path is not None:
            self._name_in_checkpoint(self.path)
            return {"path": self.path, "sharded": self.sharded}
        if self.tensors is None:
            return {}
        if not self.sharded:
            return {"tensors": self.tensors}
        current = named_tensors(module)
        return {"tensors": {name: _whole(t, current[name]) for name, t in self.tensors.items()}}

    def from_state(self, state: Mapping[str, Any]) -> None:
        """Take over what ``to_state`` returned.

        Args:
            state: Part of a checkpoint.
        """
        path = state.get("path")
        if self.path not in (None, path):
            self.discard()
        self.tensors, self.path = state.get("tensors"), path
        self.sharded = state.get("sharded", False)
        self.named = [name for name in self.named if name != path]
        if path is not None:
            self.named.append(path)

    def _file(self, path: str) -> Path:
        return Path(f"{path}-rank{_rank()}.pt" if self.sharded else f"{path}.pt")

    def _remove(self, path: str) -> None:
        if self.sharded or _rank() == 0:
            self._file(path).unlink(missing_ok=True)

    def _name_in_checkpoint(self, path: str) -> None:
        if path in self.named:
            return
        self.named.append(path)
        for old in self.named[:-2]:
            self._remove(old)
        del self.named[:-2]

    def _read(self) -> dict[str, Tensor]:
        if self.tensors is not None:
            return self.tensors
        if self.path is None:
            raise MisuseError("There are no best weights: no check has kept any.")
        file = self._file(self.path)
        if not file.exists():
            raise MisuseError(f"The best weights are gone: there is no file '{file}' any more.")
        loaded: dict[str, Tensor] = torch.load(file, weights_only=True, mmap=True)
        return loaded


def _is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "device_mesh")


def _local(tensor: Any) -> Tensor:
    local: Tensor = (tensor.to_local() if _is_sharded(tensor) else tensor).detach()
    return local


def _copy(tensor: Tensor, place: Place) -> Tensor:
    return tensor.clone() if place == "device" else tensor.to("cpu", copy=True)


def _write(file: Path, tensors: dict[str, Tensor]) -> None:
    """Write a file that is never seen half-written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    torch.save(tensors, part)
    part.replace(file)


def _check_fit(saved: Mapping[str, Tensor], module: nn.Module) -> None:
    own = {clean_name(name) for name, _ in module.named_parameters()}
    current = named_tensors(module)
    odd = [name for name in saved if name not in current]
    odd += [name for name in own if name not in saved]
    odd += [
        name
        for name in own & saved.keys()
        if saved[name].shape not in (current[name].shape, _local(current[name]).shape)
    ]
    if odd:
        raise MisuseError(
            "The best weights do not fit this network: it has changed since in "
            f"{', '.join(map(repr, sorted(odd)[:3]))}."
        )


@torch.no_grad()
def _write_into(module: nn.Module, saved: Mapping[str, Tensor], whole: bool) -> None:
    current: dict[str, Any] = named_tensors(module)
    for name, tensor in saved.items():
        target = current[name]
        if whole and _is_sharded(target):
            tensor = _shard(tensor, target)
        if _local(target).shape == tensor.shape:
            _local(target).copy_(tensor)


def _shard(tensor: Tensor, like: Any) -> Tensor:
    """Return this rank's shard; a collective."""
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements).to_local()


def _whole(tensor: Tensor, like: Any) -> Tensor:
    """Return the whole tensor on the host; a collective for a shard."""
    if not _is_sharded(like):
        return tensor
    shard = type(like).from_local(
        tensor.to(like.device),
        like.device_mesh,
        like.placements,
        shape=like.shape,
        stride=like.stride(),
    )
    whole: Tensor = shard.full_tensor().cpu()
    return whole


@torch.no_grad()
def _broadcast(module: nn.Module) -> None:
    for tensor in named_tensors(module).values():
        buffer = tensor.detach().contiguous()
        torch.distributed.broadcast(buffer, 0)
        tensor.copy_(buffer)


def _first_of_ranks(trouble: str | None) -> str | None:
    """Return what is wrong on any rank; one rank must not wait for another that gave up."""
    if _world_size() == 1:
        return trouble
    told: list[str | None] = [None] * _world_size()
    torch.distributed.all_gather_object(told, trouble)
    return next(filter(None, told), None)


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _rank() -> int:
    return torch.distributed.get_rank() if _distributed() else 0


def _world_size() -> int:
    return torch.distributed.get_world_size() if _distributed() else 1
