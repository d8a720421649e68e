"""Running compiled modules uncompiled while anybody watches them.

Hooks hung on a model that has already been compiled and run would never fire.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["enter_eager", "leave_eager"]


class _Stance:
    """torch's stance belongs to the process: the first to come sets it, the last restores it."""

    def __init__(self) -> None:
        self.holders = 0
        self.context: Any = None


_STANCE = _Stance()


def enter_eager() -> None:
    """Have compiled modules run as they were written; leave it as often as it is entered."""
    if _STANCE.holders == 0:
        _STANCE.context = torch.compiler.set_stance("force_eager")
    _STANCE.holders += 1


def leave_eager() -> None:
    """Restore what was before the first entered."""
    _STANCE.holders -= 1
    if _STANCE.holders == 0:
        _STANCE.context.__exit__(None, None, None)
        _STANCE.context = None
