"""Reading a model once into a tree of its weighted parts.

Wrappers (compile, DDP, FSDP, checkpoint) are looked through; metrics, losses without trained
weights and frozen copies of a network are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from torch import nn
from torch.nn.modules.loss import _Loss
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import Parameter, is_lazy
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations
from torch.optim.swa_utils import AveragedModel

from lightning_depth.layers._names import WRAPPERS, clean_name

__all__ = ["Part", "own_parameters", "read_parts", "trained_parameters", "unwrap"]

_LISTS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
_CONTAINERS = (nn.Sequential, *_LISTS)


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
    has_output: bool = True
    """Whether it stands for a module that runs, or for the parameters of one only."""

    @property
    def container(self) -> bool:
        return issubclass(self.kind, _CONTAINERS)

    @property
    def hands_on(self) -> bool:
        """Whether it may have an output for the next layer: a list has no forward, a loss ends."""
        return not issubclass(self.kind, _LISTS) and not _is_loss(self.kind)

    def own(self) -> Part:
        """Return what it owns itself, without its parts."""
        return replace(self, member=False, parts=[], has_output=False)

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


def own_parameters(module: nn.Module) -> Iterator[tuple[str, Parameter]]:
    """The parameters that a module owns itself, the parts of parametrized ones included."""
    inner = unwrap(module)
    yield from inner.named_parameters(recurse=False)
    if is_parametrized(inner):
        for name, parameter in inner.get_submodule("parametrizations").named_parameters():
            yield f"parametrizations.{name}", parameter


def trained_parameters(model: nn.Module) -> dict[str, Parameter]:
    """Return what is trained, by clean name, without metrics and copies of a network."""
    left_out = _frozen_copies(model) | {id(part) for part in model.modules() if _is_metric(part)}
    return {
        clean_name(f"{path}.{name}" if path else name): parameter
        for path, module in _walk("", model, left_out)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.requires_grad
    }


def _walk(path: str, module: nn.Module, left_out: set[int]) -> Iterator[tuple[str, nn.Module]]:
    yield path, module
    for name, child in module.named_children():
        if id(child) not in left_out:
            yield from _walk(f"{path}.{name}" if path else name, child, left_out)


class _Reader:
    """Reads a model into a tree of parts; a module registered twice counts where it is first."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._seen: set[int] = set()
        self._copies = _frozen_copies(model)

    def read(self) -> Part:
        return self._read("", self._model, member=False, in_loss=False)

    def _read(self, path: str, module: nn.Module, *, member: bool, in_loss: bool) -> Part:
        path, inner = _look_through(path, module)
        parametrized = is_parametrized(inner)
        children = []
        # a loss comes last, where it runs: it may hold the network that it judges
        for name, child in sorted(inner.named_children(), key=lambda named: _ends(named[1])):
            of_loss = in_loss or _ends(child)
            if self._wanted(child, of_loss) and not (parametrized and name == "parametrizations"):
                below = f"{path}.{name}" if path else name
                children.append(
                    self._read(below, child, member=_is_container(inner), in_loss=of_loss)
                )
        return Part(
            path=path,
            module=module,
            kind=type_before_parametrizations(inner),
            member=member,
            owns_weights=parametrized or next(inner.parameters(recurse=False), None) is not None,
            parts=[part for part in children if part.owns_weights or part.parts],
        )

    def _wanted(self, module: nn.Module, in_loss: bool) -> bool:
        if id(module) in self._seen or id(module) in self._copies or _is_metric(module):
            return False
        if in_loss and not _is_trained(module):
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


def _ends(module: nn.Module) -> bool:
    return _is_loss(type(unwrap(module)))


def _is_loss(kind: type[nn.Module]) -> bool:
    return issubclass(kind, _Loss) or any(base.__name__.endswith("Loss") for base in kind.__mro__)


def _is_metric(module: nn.Module) -> bool:
    """Whether a module is a metric; torchmetrics is not imported for the answer."""
    return any(
        base.__name__ == "Metric" and base.__module__.startswith("torchmetrics.")
        for base in type(module).__mro__
    )


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _frozen_copies(model: nn.Module) -> set[int]:
    """Ids of momentum copies: averaged models, and frozen networks with a trained twin beside them.

    A network is looked for among attributes only: equal members of one Sequential or ModuleList,
    some of them frozen, are the layers of one network.
    """
    networks = list(_attributes(model))
    trained = {_shape(net) for net in networks if _is_trained(net)}
    return {
        id(net)
        for net in networks
        if isinstance(net, AveragedModel) or (not _is_trained(net) and _shape(net) in trained)
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
