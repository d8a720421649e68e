"""The list of planted faults, each with the finding that should come first and the reason.

Every kind has two variants that differ in architecture, size or optimizer: thresholds were set on
the first ones, the second ones are judged. The expectations were written down before any run. Three
kinds have a third variant, which is judged in place of the second: their second one showed a
mistake, and could not judge its mend.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lightning_depth.networks import build_convnet, build_mlp
from tests.benchmarks._faults import (
    Fault,
    Forgotten,
    PixelRNN,
    SelfDivision,
    cnn,
    flatten_layer,
    insert,
    mlp,
    rescale,
    residual,
    silence,
    stretch,
    wrap,
)
from tests.benchmarks._planted_missed import missed_faults

SGD = {"optimizer": "sgd", "learning_rate": 0.05}


def planted_faults() -> list[Fault]:
    """Return every kind twice, the variant that sets thresholds first."""
    found: list[Fault] = []

    def plant(kind: str, expected: str, reason: str, *variants: dict[str, Any]) -> None:
        for name, options in zip("ABC", variants, strict=False):
            found.append(Fault(kind, name, tuple(expected.split("|")), reason, **options))

    plant(
        "20 sigmoid layers",
        "VANISHING",
        "the slope of a sigmoid is at most 1/4, so every layer takes a factor of at least 4",
        {"build": lambda: mlp(20, nn.Sigmoid)},
        {"build": lambda: cnn(14, nn.Sigmoid), **SGD},
    )
    plant(
        "ReLU, init too small",
        "VANISHING|COLLAPSED",
        "the signal shrinks with every layer on its way forward, so no gradient of a weight is "
        "left although the bias of the head gets one; the outputs hardly depend on the input",
        {"build": lambda: rescale(mlp(16), 0.2)},
        {"build": lambda: rescale(cnn(14), 0.25)},
    )
    plant(
        "ReLU, init too large",
        "EXPLODING",
        "the signal and with it the gradient of every weight grow with every layer",
        {"build": lambda: rescale(mlp(16), 4.0)},
        {"build": lambda: rescale(cnn(14), 3.0), "optimizer": "sgd", "learning_rate": 1e-4},
        {"build": lambda: rescale(mlp(24, width=32), 3.0), "learning_rate": 1e-2},
    )
    plant(
        "learning rate x100, SGD",
        "EXPLODING|NON_FINITE",
        "a step is larger than the weights; soon after, numbers overflow",
        {"build": lambda: mlp(4), "optimizer": "sgd", "learning_rate": 10.0},
        {"build": lambda: cnn(4), "optimizer": "sgd", "learning_rate": 10.0},
    )
    plant(
        "learning rate x100, Adam",
        "EXPLODING",
        "Adam moves every weight by about the learning rate, which is more than the weights",
        {"build": lambda: mlp(4), "learning_rate": 0.3},
        {"build": lambda: residual(6), "learning_rate": 0.3},
    )
    plant(
        "half of the units dead",
        "DEAD",
        "units with a bias far below zero are above zero for no sample",
        {"build": lambda: silence(mlp(4), [3], 0.5)},
        {"build": lambda: silence(cnn(4), [2, 4], 0.5)},
    )
    plant(
        "a dead layer",
        "DEAD",
        "a layer whose units are all dead passes nothing on and nothing back",
        {"build": lambda: silence(mlp(5), [3], 1.0)},
        {"build": lambda: silence(cnn(5), [4], 1.0)},
    )
    plant(
        "biases start too low",
        "DEAD",
        "every unit starts far below zero",
        {"build": lambda: silence(mlp(5), [1, 3, 5, 7], 0.8, -20.0)},
        {"build": lambda: silence(cnn(5), [2, 4, 6], 0.8, -20.0)},
    )
    plant(
        "a detached block",
        "NO_GRADIENT",
        "what lies before a detach gets no gradient",
        {"build": lambda: insert(mlp(5), 5, torch.Tensor.detach)},
        {"build": lambda: insert(residual(5), 4, torch.Tensor.detach)},
    )
    plant(
        "a block frozen by no_grad",
        "NO_GRADIENT",
        "the block's own parameters want a gradient and get none",
        {"build": lambda: wrap(mlp(5), 5)},
        {"build": lambda: wrap(residual(5), 4)},
    )
    plant(
        "a branch that is never called",
        "NO_GRADIENT",
        "its parameters are in the optimizer and in no loss",
        {"build": lambda: Forgotten(mlp(4), nn.Linear(8, 8))},
        {"build": lambda: Forgotten(cnn(4), nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()))},
    )
    plant(
        "saturated tanh",
        "SATURATED",
        "weights ten times too large drive every unit to its bounds",
        {"build": lambda: stretch(mlp(4, nn.Tanh), 12.0)},
        {"build": lambda: stretch(cnn(4, nn.Tanh), 12.0)},
    )
    plant(
        "saturated sigmoid",
        "SATURATED",
        "weights far too large drive every unit to its bounds",
        {"build": lambda: stretch(mlp(3, nn.Sigmoid), 40.0)},
        {"build": lambda: stretch(cnn(3, nn.Sigmoid), 40.0)},
    )
    plant(
        "inputs not scaled, bounded units",
        "SATURATED",
        "inputs a hundred times too large saturate the first layer",
        {"build": lambda: mlp(4, nn.Tanh), "input_scale": 100.0},
        {"build": lambda: mlp(3, nn.Hardtanh), "input_scale": 100.0},
    )
    plant(
        "half precision overflows",
        "NON_FINITE",
        "no loss scale helps a forward pass that overflows",
        {"build": lambda: insert(mlp(4), 3, lambda h: h * 1e6), "half": True},
        {"build": lambda: insert(cnn(4), 2, lambda h: h.square() * 1e6), "half": True},
    )
    plant(
        "NaN in the backward pass",
        "NON_FINITE",
        "the square root has no finite slope at zero",
        {"build": lambda: insert(mlp(4), 3, SelfDivision())},
        {"build": lambda: insert(residual(4), 3, SelfDivision())},
    )
    plant(
        "NaN in the forward pass",
        "NON_FINITE",
        "a logarithm of zero makes the loss itself NaN",
        {"build": lambda: insert(mlp(4), 3, lambda h: h * torch.log(h * 0))},
        {"build": lambda: insert(cnn(4), 2, lambda h: h / (h * 0))},
    )
    plant(
        "a layer that is constant",
        "COLLAPSED",
        "its output is the same for every sample",
        {"build": lambda: flatten_layer(mlp(5), 5, constant=True)},
        {"build": lambda: flatten_layer(cnn(5), 4, constant=True)},
    )
    plant(
        "a layer of one direction",
        "COLLAPSED",
        "its outputs differ between samples along one direction only",
        {"build": lambda: flatten_layer(mlp(5), 5, constant=False)},
        {"build": lambda: flatten_layer(mlp(7, nn.GELU), 7, constant=False)},
    )
    plant(
        "plain-56 with BatchNorm",
        "EXPLODING",
        "without shortcuts, normalisation makes the gradient grow toward the input at "
        "initialisation, by about 10^3 against 10 in the residual twin",
        {"build": lambda: build_convnet("plain", 56, 8, 10, 1), **SGD},
        {"build": lambda: build_mlp("plain", 60, 32, 64, 10, {"norm": "batchnorm"}), **SGD},
    )
    plant(
        "40 residual blocks without normalisation, He init",
        "EXPLODING",
        "every block doubles the variance, so the gradients of all weights start huge",
        {"build": lambda: rescale(residual(40), 1.0)},
        {
            "build": lambda: rescale(residual(50, 32), 1.0),
            "optimizer": "sgd",
            "learning_rate": 1e-6,
        },
        {
            "build": lambda: rescale(residual(45, 48), 1.0),
            "optimizer": "sgd",
            "learning_rate": 1e-8,
        },
    )
    plant(
        "deep tanh, init too small",
        "VANISHING",
        "every layer is linear with a gain far below one, forward and backward",
        {"build": lambda: rescale(mlp(20, nn.Tanh), 0.15)},
        {"build": lambda: rescale(cnn(14, nn.Tanh), 0.15)},
    )
    plant(
        "loss far too large",
        "EXPLODING|NON_FINITE",
        "a loss in the wrong unit makes steps of plain SGD larger than the weights",
        {"build": lambda: mlp(4), **SGD, "loss_scale": 1e5},
        {"build": lambda: residual(4), **SGD, "loss_scale": 1e6},
    )
    plant(
        "a recurrent net over hundreds of contracting steps",
        "VANISHING",
        "every step of time takes a factor, so that nothing of the first steps reaches the loss",
        {"build": lambda: PixelRNN(nn.RNN(1, 32, batch_first=True), 0.5), "size": 16},
        {"build": lambda: PixelRNN(nn.RNNCell(1, 24), 0.7), "size": 14, **SGD},
    )
    for planting in missed_faults():
        plant(*planting)
    return found
