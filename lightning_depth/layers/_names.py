"""What a layer is, and its name without the prefixes of wrappers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

__all__ = ["WRAPPERS", "Granularity", "Layer", "Role", "clean_name"]

Granularity = Literal["block", "leaf"]
Role = Literal["stem", "block", "between", "head", "leaf"]

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Attributes under which torch's wrappers keep the module that they wrap."""


@dataclass(frozen=True)
class Layer:
    """A part of a model that the tools watch.

    Args:
        name: Dotted name within the model, without the prefixes of wrappers.
        depth: Place in the network, 1 being nearest the input.
        module: The module, with its wrapper if it has one.
        role: Whether the layer is one of the blocks, comes before the first (stem), between them
            or after the last of them (head), or is a single module that owns weights (leaf).
        has_output: Whether it runs as a module and hands something on. A layer that does not is
            made of parameters only: those that its module holds beside the layers in it, such as
            class tokens, position embeddings and scales.

    Example:
        >>> Layer("fc", 1, nn.Linear(2, 2), "leaf").name
        'fc'
    """

    name: str
    depth: int
    module: nn.Module
    role: Role
    has_output: bool = True


def clean_name(name: str) -> str:
    """Return a dotted name without the prefixes that compile, DDP, FSDP and checkpoint add.

    Args:
        name: Name of a module or parameter.

    Returns:
        The name as the user's code has it.

    Example:
        >>> clean_name("module.net._orig_mod.0.weight")
        'net.0.weight'
    """
    hidden = {*WRAPPERS, "module"}
    return ".".join(segment for segment in name.split(".") if segment not in hidden)
