"""Naming and ordering the layers of any model, without asking anything of the model."""

from __future__ import annotations

from lightning_depth.layers._names import Granularity, Layer, Role, clean_name
from lightning_depth.layers._select import layer_parameters, order_by_execution, select_layers

__all__ = [
    "Granularity",
    "Layer",
    "Role",
    "clean_name",
    "layer_parameters",
    "order_by_execution",
    "select_layers",
]
