"""Reversible blocks in a row, trained in memory that does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lightning_depth.blocks._checkpoint import frozen_statistics
from lightning_depth.errors import ConfigurationError, MisuseError, check_divisible

__all__ = ["ReversibleSequence"]


class ReversibleSequence(nn.Sequential):
    """Reversible blocks in a row that store one output instead of every activation.

    Gomez et al. 2017 (arXiv 1707.04585): in the backward pass each block's input is computed
    again from its output. Gradients are those of the stored version up to rounding; random
    numbers, autocast and batch statistics are as in the forward pass. Between the blocks both
    halves are carried in double precision, so that a branch reads in the backward pass, to the
    bit, what it read in the forward pass; a last digit would turn a ReLU here and there. Where a
    graph is being captured (TorchScript, FX, ``torch.compile``) the plain forward runs.

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
        check_divisible("channels", x.shape[1], "halves", 2)
        branches = [
            _Branch(branch)
            for block in self
            for branch in (block.get_submodule("f"), block.get_submodule("g"))
        ]
        parameters = dict.fromkeys(p for branch in branches for p in branch.parameters)
        output: Tensor = _Reversible.apply(x, self, branches, *parameters)
        return output


def _is_reversible(block: nn.Module) -> bool:
    return bool(getattr(block, "reversible", True))


def _captures_graph(x: Tensor) -> bool:
    return isinstance(x, torch.fx.Proxy) or torch.compiler.is_compiling()


RandomState = tuple[Tensor, Tensor | None]


class _Branch:
    """A branch, its trainable parameters, and the random state before it if it draws numbers."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.state: RandomState | None = None


def _random_state(device: str) -> RandomState:
    return torch.get_rng_state(), torch.cuda.get_rng_state() if device == "cuda" else None


def _same_state(first: RandomState, second: RandomState) -> bool:
    pairs = zip(first, second, strict=True)
    return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


@contextmanager
def _random_numbers_from(state: RandomState) -> Iterator[None]:
    """Draw the same random numbers again, and leave those that follow as they were."""
    cpu, cuda = state
    with torch.random.fork_rng([] if cuda is None else [torch.cuda.current_device()]):
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)
        yield


def _carry(half: Tensor) -> Tensor:
    """Return a half in the precision in which sums can be undone."""
    if half.device.type == "mps":  # which has no double precision
        return half
    return half.to(torch.promote_types(half.dtype, torch.float64))


class _Reversible(torch.autograd.Function):
    """Forward without a graph; backward branch by branch, from the last to the first."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        sequence: ReversibleSequence,
        branches: list[_Branch],
        *parameters: nn.Parameter,
    ) -> Tensor:
        device = x.device.type
        x1, x2 = (_carry(half) for half in x.chunk(2, dim=1))
        before = _random_state(device)
        for branch in branches:  # f and g in turn: what one adds to is what the other reads
            x1, x2 = x2, x1 + branch.module(x2.to(x.dtype))
            after = _random_state(device)
            branch.state = None if _same_state(before, after) else before
            before = after
        ctx.sequence, ctx.branches, ctx.parameters = sequence, branches, parameters
        ctx.dtype = x.dtype
        ctx.autocast = {
            "device_type": device,
            "enabled": torch.is_autocast_enabled(device),
            "dtype": torch.get_autocast_dtype(device),
            "cache_enabled": torch.is_autocast_cache_enabled(),
        }
        ctx.save_for_backward(x1, x2, *([x] if sequence.max_drift is not None else []))
        return torch.cat((x1, x2), dim=1).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        y1, y2, *inputs = ctx.saved_tensors
        d1, d2 = gradient.chunk(2, dim=1)
        totals: dict[nn.Parameter, Tensor] = {}
        autocast = torch.autocast(**ctx.autocast)
        with frozen_statistics(ctx.sequence):
            for branch in reversed(ctx.branches):
                read = y1.to(ctx.dtype).detach().requires_grad_()
                contribution = _run_again(branch, read, autocast)
                y1, y2 = y2 - contribution.detach(), y1
                d1, d2 = d2, d1 + _differentiate(branch, contribution, read, d2, totals)
        if inputs:
            _check_drift(torch.cat((y1, y2), dim=1), inputs[0], ctx.sequence.max_drift)
        d = torch.cat((d1, d2), dim=1) if ctx.needs_input_grad[0] else None
        return (d, None, None, *(totals.get(parameter) for parameter in ctx.parameters))


def _run_again(branch: _Branch, read: Tensor, autocast: torch.autocast) -> Tensor:
    """Return what the branch contributed, with its graph."""
    random = nullcontext() if branch.state is None else _random_numbers_from(branch.state)
    with random, autocast, torch.enable_grad():
        output: Tensor = branch.module(read)
    return output


def _differentiate(
    branch: _Branch,
    contribution: Tensor,
    read: Tensor,
    d_contribution: Tensor,
    totals: dict[nn.Parameter, Tensor],
) -> Tensor:
    """Return the gradient of what the branch read, and add its parameters' to the totals."""
    d_read, *gradients = torch.autograd.grad(
        contribution,
        [read, *branch.parameters],
        d_contribution.to(contribution.dtype),
        allow_unused=True,
    )
    for parameter, gradient in zip(branch.parameters, gradients, strict=True):
        if gradient is not None:
            known = totals.get(parameter)
            totals[parameter] = gradient if known is None else known + gradient
    return torch.zeros_like(read) if d_read is None else d_read


def _check_drift(reconstructed: Tensor, x: Tensor, max_drift: float) -> None:
    drift = ((reconstructed - x).norm() / x.norm().clamp_min(torch.finfo(x.dtype).tiny)).item()
    if not drift <= max_drift:
        raise MisuseError(
            f"The reconstructed input of a reversible sequence drifted by {drift:.3g}, more than "
            f"`max_drift` (={max_drift:g}); use fewer blocks, smaller weights or more precision."
        )
