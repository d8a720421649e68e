"""Networks of any depth and width, assembled from blocks; named ones are models of timm.

After ``import lightning_depth.networks`` every preset is there by name:
``timm.create_model("depth_cifar_resnet56")``.
"""

from lightning_depth.networks import cifar_presets, imagenet_presets
from lightning_depth.networks._build import build_convnet, build_mlp
from lightning_depth.networks._convnet import ConvNet
from lightning_depth.networks._imagenet import build_imagenet
from lightning_depth.networks._key_maps import (
    dense_keys,
    mobile_v2_keys,
    preactivated_keys,
    residual_keys,
)
from lightning_depth.networks._mlp import MultilayerPerceptron

__all__ = [
    "ConvNet",
    "MultilayerPerceptron",
    "build_convnet",
    "build_imagenet",
    "build_mlp",
    "cifar_presets",
    "dense_keys",
    "imagenet_presets",
    "mobile_v2_keys",
    "preactivated_keys",
    "residual_keys",
]
