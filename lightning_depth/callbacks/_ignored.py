"""Which label does not count, as the module's own loss says."""

from __future__ import annotations

from torch import nn

__all__ = ["find_ignore_index"]


def find_ignore_index(module: nn.Module) -> int | None:
    """Return the label that a module's cross-entropy ignores, None where no loss says it.

    Args:
        module: The user's module.

    Returns:
        ``ignore_index`` of its first loss over classes that names one other than torch's default.

    Example:
        >>> find_ignore_index(nn.ModuleDict({"loss": nn.CrossEntropyLoss(ignore_index=255)}))
        255
    """
    named = [
        part.ignore_index
        for part in module.modules()
        if isinstance(part, (nn.CrossEntropyLoss, nn.NLLLoss, nn.NLLLoss2d))
    ]
    return next((index for index in named if index != -100), named[0] if named else None)
