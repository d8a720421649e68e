"""Is depth helping, and if not, why not: callbacks, blocks and studies for PyTorch Lightning.

The package's face hands its names on lazily (PEP 562), so that ``import lightning_depth`` costs
nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_depth.callbacks import (
        ActivationMonitor,
        EarlyStopping,
        GradientFlowMonitor,
        LayerSeparabilityProbe,
        TrainingErrorMonitor,
    )

__version__ = "0.1.0"

__all__ = [
    "ActivationMonitor",
    "EarlyStopping",
    "GradientFlowMonitor",
    "LayerSeparabilityProbe",
    "TrainingErrorMonitor",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("lightning_depth.callbacks"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
