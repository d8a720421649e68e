"""Reversible blocks in a row, trained in memory that does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lightning_depth.blocks._checkpoint import frozen_statistics
from lightning_depth.errors import ConfigurationError, MisuseError

__all__ = ["ReversibleSequence"]


class ReversibleSequence(nn.Sequential):
    """Reversible blocks in a row that store one output instead of every activation.

    Gomez et al. 2017 (arXiv 1707.04585): in the backward pass each block's input is computed
    again from its output. Gradients are those of the stored version up to rounding; random
    numbers, autocast and batch statistics are as in the forward pass. Where a graph is being
    captured (TorchScript, FX, ``torch.compile``) the plain forward runs.

    Shape:
        - Input: ``(B, C, ...)``, C even.
        - Output: ``(B, C, ...)``.

    Args:
        *blocks: Modules with two branches ``f`` and ``g`` that keep the shape: `AdditiveCoupling`,
            or `ReversibleBlock` where neither channels nor size change.
        max_drift: Largest relative error of the reconstructed input that is accepted; more raises
            in the backward pass. None, the default, does not look and stores no input.

    Raises:
        ConfigurationError: A module among the blocks is not reversible.

    Example:
        >>> from lightning_depth.blocks import ReversibleBlock
        >>> stack = ReversibleSequence(*(ReversibleBlock(8, 8, dims=0) for _ in range(10)))
        >>> stack(torch.ones(2, 8)).shape
        torch.Size([2, 8])
    """

    def __init__(self, *blocks: nn.Module, max_drift: float | None = None) -> None:
        super().__init__(*blocks)
        self.max_drift = max_drift
        for position, block in enumerate(blocks):
            if not (hasattr(block, "f") and hasattr(block, "g") and _is_reversible(block)):
                raise ConfigurationError(
                    f"Block {position} of a reversible sequence must keep the shape and have two "
                    f"branches `f` and `g`, but {type(block).__name__} does not."
                )

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the last block."""
        # TorchScript leaves out what it does not run only where this stands alone
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            return self._forward_eagerly(x)
        for block in self:
            x = block(x)
        return x

    @torch.jit.unused
    def _forward_eagerly(self, x: Tensor) -> Tensor:
        if _captures_graph(x) or not torch.is_grad_enabled():
            for block in self:
                x = block(x)
            return x
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        output: Tensor = _Reversible.apply(x, self, parameters, *parameters)
        return output


def _is_reversible(block: nn.Module) -> bool:
    return bool(getattr(block, "reversible", True))


def _captures_graph(x: Tensor) -> bool:
    return isinstance(x, torch.fx.Proxy) or torch.compiler.is_compiling()


@dataclass
class _Context:
    """What a recomputation needs to be the same computation."""

    device: str
    autocast: tuple[bool, torch.dtype, bool]
    states: list[tuple[Tensor, Tensor | None] | None] = field(default_factory=list)


def _random_state(device: str) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state() if device == "cuda" else None


def _same_state(first: tuple[Tensor, Tensor | None], second: tuple[Tensor, Tensor | None]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


@contextmanager
def _as_in_forward(context: _Context, index: int) -> Iterator[None]:
    """Recompute under the forward's autocast and random numbers, and leave both as they were."""
    enabled, dtype, cache = context.autocast
    state = context.states[index]
    devices = [torch.cuda.current_device()] if context.device == "cuda" else []
    with (
        torch.random.fork_rng(devices, enabled=state is not None),
        torch.autocast(context.device, dtype=dtype, enabled=enabled, cache_enabled=cache),
        torch.enable_grad(),
    ):
        if state is not None:
            torch.set_rng_state(state[0])
            if state[1] is not None:
                torch.cuda.set_rng_state(state[1])
        yield


def _run_branch(branch: nn.Module, x: Tensor, context: _Context) -> Tensor:
    """Run a branch and keep the random state before it, where the branch draws random numbers."""
    before = _random_state(context.device)
    output: Tensor = branch(x)
    drew = not _same_state(before, _random_state(context.device))
    context.states.append(before if drew else None)
    return output


class _Reversible(torch.autograd.Function):
    """Forward without a graph; backward block by block, from the last to the first."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        sequence: ReversibleSequence,
        parameters: list[nn.Parameter],
        *_: Tensor,
    ) -> Tensor:
        device = x.device.type
        autocast = (
            torch.is_autocast_enabled(device),
            torch.get_autocast_dtype(device),
            torch.is_autocast_cache_enabled(),
        )
        context = _Context(device, autocast)
        x1, x2 = x.chunk(2, dim=1)
        for block in sequence:
            x1 = x1 + _run_branch(block.f, x2, context)  # type: ignore[arg-type]
            x2 = x2 + _run_branch(block.g, x1, context)  # type: ignore[arg-type]
        output = torch.cat((x1, x2), dim=1)
        ctx.sequence, ctx.parameters, ctx.context = sequence, parameters, context
        ctx.save_for_backward(output, *([x] if sequence.max_drift is not None else []))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        output, *inputs = ctx.saved_tensors
        totals: dict[nn.Parameter, Tensor] = {}
        y1, y2 = output.chunk(2, dim=1)
        d1, d2 = gradient.chunk(2, dim=1)
        index = len(ctx.context.states)
        for block in reversed(list(ctx.sequence)):
            y2, d1 = _undo(block.g, y1, y2, d1, d2, ctx.context, index - 1, totals)
            y1, d2 = _undo(block.f, y2, y1, d2, d1, ctx.context, index - 2, totals)
            index -= 2
        if inputs:
            _check_drift(torch.cat((y1, y2), dim=1), inputs[0], ctx.sequence.max_drift)
        d = torch.cat((d1, d2), dim=1) if ctx.needs_input_grad[0] else None
        return (d, None, None, *(totals.get(parameter) for parameter in ctx.parameters))


def _undo(
    branch: nn.Module,
    read: Tensor,
    added_to: Tensor,
    d_read: Tensor,
    d_output: Tensor,
    context: _Context,
    index: int,
    totals: dict[nn.Parameter, Tensor],
) -> tuple[Tensor, Tensor]:
    """Take back ``added_to = before + branch(read)``.

    Returns what was there before, and the whole gradient of ``read``.
    """
    read = read.detach().requires_grad_()
    parameters = [parameter for parameter in branch.parameters() if parameter.requires_grad]
    with _as_in_forward(context, index), frozen_statistics(branch):
        contribution = branch(read)
    gradients = torch.autograd.grad(
        contribution, [read, *parameters], d_output.to(contribution.dtype), allow_unused=True
    )
    for parameter, gradient in zip(parameters, gradients[1:], strict=True):
        if gradient is not None:
            known = totals.get(parameter)
            totals[parameter] = gradient if known is None else known + gradient
    d_read = d_read if gradients[0] is None else d_read + gradients[0]
    return added_to - contribution.detach(), d_read


def _check_drift(reconstructed: Tensor, x: Tensor, max_drift: float) -> None:
    drift = ((reconstructed - x).norm() / x.norm().clamp_min(torch.finfo(x.dtype).tiny)).item()
    if not drift <= max_drift:
        raise MisuseError(
            f"The reconstructed input of a reversible sequence drifted by {drift:.3g}, more than "
            f"`max_drift` (={max_drift:g}); use fewer blocks, smaller weights or more precision."
        )
