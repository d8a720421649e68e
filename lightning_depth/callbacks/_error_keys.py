"""Names of what a validation step logs, when it is measured on training data."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

__all__ = ["name_columns", "own_key", "strip_validation"]

_WORD = r"(?:validation|validate|valid|val|eval|dev)"
_TOKEN = re.compile(rf"(?i)(?<![a-z0-9]){_WORD}(?![a-z0-9])")
_CAMEL = re.compile(r"^(?:val|valid|validation)(?=[A-Z])")
_BEFORE = re.compile(r"(?i)^(?:avg|average|mean|epoch|ptl)$")
_TITLE = re.compile(r"(?<![A-Za-z])[A-Z](?=[a-z]+(?![A-Za-z]))")
_SEPARATORS = "/_-. :"


def strip_validation(key: str) -> str:
    """Return a key without its word for validation; without one it stays as it is.

    Args:
        key: As the step logs it.

    Example:
        >>> [strip_validation(key) for key in ("val_loss", "loss/val", "ptl/val_loss", "Val Acc")]
        ['loss', 'loss', 'loss', 'acc']
    """
    if found := _CAMEL.match(key):
        rest = key[found.end() :]
        return rest[:1].lower() + rest[1:]
    found = _TOKEN.search(key)
    if found is None:
        return key
    before, after = key[: found.start()], key[found.end() :].lstrip(_SEPARATORS)
    before = before.rstrip(_SEPARATORS)
    if _BEFORE.match(before):
        before = ""
    joint = found.string[found.end() : found.end() + 1] or "/"
    stripped = joint.join(part for part in (before, after) if part).replace(" ", "_")
    return _TITLE.sub(lambda word: word[0].lower(), stripped) or key


def name_columns(keys: Iterable[str]) -> dict[str, str]:
    """Return a column for each key; keys that would share one keep their own names.

    Args:
        keys: As the step logs them.

    Example:
        >>> name_columns(["val_loss", "valid/loss", "val_acc"])
        {'val_loss': 'val_loss', 'valid/loss': 'valid/loss', 'val_acc': 'acc'}
    """
    stripped = {key: strip_validation(key) for key in keys}
    taken = Counter(stripped.values())
    reserved = {"epoch", "step", "num_samples"}
    return {
        key: key if taken[short] > 1 or short in reserved else short
        for key, short in stripped.items()
    }


def own_key(monitor: str) -> list[str]:
    """Return the keys under which a step may log what a callback monitors, likeliest first.

    Lightning adds the number of the loader, and a word where a value is also logged by steps.

    Args:
        monitor: Key of a metric, as in ``trainer.callback_metrics``.

    Example:
        >>> own_key("val_loss_epoch/dataloader_idx_0")
        ['val_loss_epoch/dataloader_idx_0', 'val_loss_epoch', 'val_loss']
    """
    single = re.sub(r"/dataloader_idx_\d+$", "", monitor)
    return list(dict.fromkeys([monitor, single, single.removesuffix("_epoch")]))
