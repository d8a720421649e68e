"""Reading a model once into a tree of its weighted parts.

Wrappers (compile, DDP, FSDP, checkpoint) are looked through; metrics, losses and frozen copies of
a network are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn
from torch.nn.modules.loss import _Loss
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations
from torch.optim.swa_utils import AveragedModel

from lightning_depth.layers._names import WRAPPERS

__all__ = ["Part", "read_parts", "unwrap"]

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(eq=False)
class Part:
    """A weighted module, its wrappers looked through, with the weighted parts in it."""

    path: str
    module: nn.Module
    kind: type[nn.Module]
    member: bool
    """Whether it sits directly in a container."""
    owns_weights: bool
    parts: list[Part] = field(default_factory=list)

    @property
    def container(self) -> bool:
        return issubclass(self.kind, _CONTAINERS)

    def walk(self) -> Iterator[Part]:
        yield self
        for part in self.parts:
            yield from part.walk()

    def containers(self) -> Iterator[Part]:
        """The containers that it holds itself, those within containers included."""
        for part in self.parts:
            if part.container:
                yield part
                yield from part.containers()


def read_parts(model: nn.Module) -> Part:
    """Return the tree of a model's weighted parts."""
    return _Reader(model).read()


class _Reader:
    """Reads a model into a tree of parts; a module registered twice counts where it is first."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._seen: set[int] = set()
        self._copies = _frozen_copies(model)

    def read(self) -> Part:
        return self._read("", self._model, member=False)

    def _read(self, path: str, module: nn.Module, *, member: bool) -> Part:
        path, inner = _look_through(path, module)
        parametrized = is_parametrized(inner)
        children = [
            self._read(f"{path}.{name}" if path else name, child, member=_is_container(inner))
            for name, child in inner.named_children()
            if self._wanted(child) and not (parametrized and name == "parametrizations")
        ]
        return Part(
            path=path,
            module=module,
            kind=type_before_parametrizations(inner),
            member=member,
            owns_weights=parametrized or next(inner.parameters(recurse=False), None) is not None,
            parts=[part for part in children if part.owns_weights or part.parts],
        )

    def _wanted(self, module: nn.Module) -> bool:
        if id(module) in self._seen or id(module) in self._copies or _is_measure(module):
            return False
        self._seen.add(id(module))
        return True


def unwrap(module: nn.Module) -> nn.Module:
    """Return what is inside torch's wrappers: compile, data parallel, FSDP, checkpoint.

    Args:
        module: Any module.

    Returns:
        The module within, or the module itself where it is no wrapper.

    Example:
        >>> linear = nn.Linear(2, 2)
        >>> unwrap(linear) is linear
        True
    """
    return _look_through("", module)[1]


def _look_through(path: str, module: nn.Module) -> tuple[str, nn.Module]:
    parallel = isinstance(module, (DataParallel, DistributedDataParallel))
    for name in ("module",) if parallel else WRAPPERS:
        if isinstance(inner := module._modules.get(name), nn.Module):
            return _look_through(f"{path}.{name}" if path else name, inner)
    return path, module


def _is_container(module: nn.Module) -> bool:
    return isinstance(module, _CONTAINERS)


def _is_measure(module: nn.Module) -> bool:
    """Whether a module is a metric or a loss; torchmetrics is not imported for the answer."""
    return isinstance(module, _Loss) or any(
        base.__name__.endswith("Loss")
        or (base.__name__ == "Metric" and base.__module__.startswith("torchmetrics."))
        for base in type(module).__mro__
    )


def _frozen_copies(model: nn.Module) -> set[int]:
    """Ids of momentum copies: averaged models, and frozen networks with a trained twin beside them.

    A network is looked for among attributes only: equal members of one Sequential or ModuleList,
    some of them frozen, are the layers of one network.
    """
    networks = list(_attributes(model))
    trained = {_shape(net) for net in networks if any(p.requires_grad for p in net.parameters())}
    return {
        id(net)
        for net in networks
        if isinstance(net, AveragedModel)
        or (not any(p.requires_grad for p in net.parameters()) and _shape(net) in trained)
    }


def _attributes(model: nn.Module) -> Iterator[nn.Module]:
    """Modules of at least two weighted parts, those within a Sequential or ModuleList left out."""
    if isinstance(model, (nn.Sequential, nn.ModuleList)):
        return
    for child in model.children():
        if sum(1 for part in child.modules() if part._parameters) > 1:
            yield child
            yield from _attributes(child)


def _shape(network: nn.Module) -> tuple[object, ...]:
    return (
        type(network),
        *(
            (name, None if is_lazy(parameter) else tuple(parameter.shape))
            for name, parameter in network.named_parameters()
        ),
    )
