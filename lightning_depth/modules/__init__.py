"""LightningModules that are handed a network, never build one."""

from lightning_depth.modules.classifier import Classifier
from lightning_depth.modules.factories import (
    OptimizerFactory,
    SchedulerFactory,
    build_optimizer,
    build_scheduler,
)

__all__ = [
    "Classifier",
    "OptimizerFactory",
    "SchedulerFactory",
    "build_optimizer",
    "build_scheduler",
]
