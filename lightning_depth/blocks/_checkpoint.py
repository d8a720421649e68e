"""Compute again instead of storing, without counting the same batch twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

__all__ = ["checkpoint_once", "frozen_statistics"]


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Let batch normalisation use the batch's statistics without recording them.

    A momentum of zero leaves the recorded values as they are, to the bit; they are still passed,
    since a checkpoint must save as many tensors in the recomputation as in the forward pass.
    """
    norms = [
        norm
        for norm in module.modules()
        if isinstance(norm, _BatchNorm) and norm.training and norm.track_running_stats
    ]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def checkpoint_once(module: nn.Module, run: Callable[..., Any], *inputs: Any) -> Any:
    """Return ``run(module, *inputs)``, to be computed again in the backward pass.

    Under ``torch.compile`` the compiler recomputes inside its own graph, in which the statistics
    are updated once in any case.
    """
    if torch.compiler.is_compiling():
        return checkpoint(run, module, *inputs, use_reentrant=False)
    return checkpoint(
        run,
        module,
        *inputs,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), frozen_statistics(module)),
    )
