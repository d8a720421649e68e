"""Networks of any depth and width, assembled from blocks."""

from lightning_depth.networks._build import build_convnet, build_mlp
from lightning_depth.networks._convnet import ConvNet
from lightning_depth.networks._mlp import MultilayerPerceptron

__all__ = ["ConvNet", "MultilayerPerceptron", "build_convnet", "build_mlp"]
