"""Being recognised by a Trainer of ``pytorch_lightning``, the older name of the same code.

That Trainer runs callbacks that monitor a metric after the user's ``on_train_epoch_end``, and knows
them by its own classes. For as long as such a Trainer runs, a callback is given a class that
inherits from both; it behaves as its first parent does in everything.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

__all__ = ["join_trainer", "leave_trainer"]

_NAME = "pytorch_lightning"


def join_trainer(callback: Any, trainer: Any, known_as: type) -> None:
    """Let a Trainer of ``pytorch_lightning`` recognise a callback; nothing with any other.

    Args:
        callback: The callback.
        trainer: The Trainer that is about to run it.
        known_as: Class of Lightning that it inherits from, whose twin that Trainer looks for.
    """
    ours = any(base.__module__.partition(".")[0] == _NAME for base in type(trainer).__mro__)
    if ours and not hasattr(type(callback), "_joined"):
        twin = getattr(sys.modules[f"{_NAME}.callbacks"], known_as.__name__)
        own: Any = type(callback)
        callback.__class__ = _joined_class(own, twin)


def leave_trainer(callback: Any) -> None:
    """Give a callback its own class back.

    Args:
        callback: The callback.
    """
    callback.__class__ = getattr(type(callback), "_joined", type(callback))


@cache
def _joined_class(own: Any, twin: Any) -> Any:
    names = {
        "__module__": own.__module__,
        "__qualname__": own.__qualname__,
        "__doc__": own.__doc__,
        "__reduce_ex__": _reduce_as_own,
        "_joined": own,
    }
    return type(own.__name__, (own, twin), names)


def _reduce_as_own(self: Any, protocol: Any) -> Any:
    """Pickle as an instance of the class that can be imported."""
    return (object.__new__, (self._joined,), dict(vars(self)))
