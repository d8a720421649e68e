"""Naming and ordering the layers of any model, without asking anything of the model."""

from __future__ import annotations

from lightning_depth.layers._names import Granularity, Layer, Role, clean_name
from lightning_depth.layers._order import ExecutionRecorder, is_compiled, order_by_execution
from lightning_depth.layers._outputs import (
    feature_axis,
    is_channels_last,
    is_sequence,
    is_time_first,
    main_output,
    main_tensor,
)
from lightning_depth.layers._select import (
    layer_parameters,
    select_layers,
    unwatched_parameters,
    watched_share,
)
from lightning_depth.layers._tree import unwrap
from lightning_depth.layers._weights import is_scale, is_weight, weight_parameters

__all__ = [
    "ExecutionRecorder",
    "Granularity",
    "Layer",
    "Role",
    "clean_name",
    "feature_axis",
    "is_channels_last",
    "is_compiled",
    "is_scale",
    "is_sequence",
    "is_time_first",
    "is_weight",
    "layer_parameters",
    "main_output",
    "main_tensor",
    "order_by_execution",
    "select_layers",
    "unwatched_parameters",
    "unwrap",
    "watched_share",
    "weight_parameters",
]
