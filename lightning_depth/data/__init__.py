"""LightningDataModules on real data, ready for comparing networks."""

from lightning_depth.data.digits import Digits
from lightning_depth.data.registry import build_data, list_datasets

__all__ = ["Digits", "build_data", "list_datasets"]
