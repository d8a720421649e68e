"""Callbacks for any Trainer and any LightningModule."""

from lightning_depth.callbacks.training_error import TrainingErrorMonitor

__all__ = ["TrainingErrorMonitor"]
