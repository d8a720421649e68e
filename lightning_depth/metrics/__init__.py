"""Metrics of class separability: torchmetrics, streaming, right with any number of processes."""

from __future__ import annotations

from lightning_depth.metrics.linear_probe import LinearProbeAccuracy
from lightning_depth.metrics.neighbors import EffectiveRank, KNNAccuracy
from lightning_depth.metrics.separability import DataSeparation, FisherRatio, NeuralCollapse

__all__ = [
    "DataSeparation",
    "EffectiveRank",
    "FisherRatio",
    "KNNAccuracy",
    "LinearProbeAccuracy",
    "NeuralCollapse",
]
