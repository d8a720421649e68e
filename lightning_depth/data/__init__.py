"""LightningDataModules on real data, ready for comparing networks."""

from lightning_depth.data.digits import Digits
from lightning_depth.data.mnist import MNIST
from lightning_depth.data.registry import build_data, list_datasets
from lightning_depth.data.spoken_digits import SpokenDigits

__all__ = ["MNIST", "Digits", "SpokenDigits", "build_data", "list_datasets"]
