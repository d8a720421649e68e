"""Callbacks for any Trainer and any LightningModule.

Each keeps what it measured (``history``), what it concluded (``findings``), draws it (``plot``),
and logs a handful of scalars and now and then a figure. At the end of ``fit`` one box tells the
verdict of all of them, and ``findings.json`` beside the logs holds the same.
"""

from lightning_depth.callbacks._actions import FindingError, FindingWarning
from lightning_depth.callbacks._criteria import GL, PQ, UP, AllOf, AnyOf, StoppingCriterion
from lightning_depth.callbacks._guard import ObserverWarning
from lightning_depth.callbacks.activations import ActivationMonitor
from lightning_depth.callbacks.early_stopping import EarlyStopping
from lightning_depth.callbacks.gradient_flow import GradientFlowMonitor
from lightning_depth.callbacks.separability import LayerSeparabilityProbe
from lightning_depth.callbacks.snapshots import (
    ActivationSnapshot,
    GradientSnapshot,
    measure_activations,
    measure_gradients,
)
from lightning_depth.callbacks.training_error import TrainingErrorMonitor

__all__ = [
    "GL",
    "PQ",
    "UP",
    "ActivationMonitor",
    "ActivationSnapshot",
    "AllOf",
    "AnyOf",
    "EarlyStopping",
    "FindingError",
    "FindingWarning",
    "GradientFlowMonitor",
    "GradientSnapshot",
    "LayerSeparabilityProbe",
    "ObserverWarning",
    "StoppingCriterion",
    "TrainingErrorMonitor",
    "measure_activations",
    "measure_gradients",
]
