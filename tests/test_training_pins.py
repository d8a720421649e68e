"""Numbers of optimizers, clipping and dropout that anybody can check with pencil and paper."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn

from lightning_depth.modules import build_optimizer


# one parameter that starts at 1 and meets the gradients .1, -.2, .3; learning rate .1
@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("SGD", {}, 0.98),
        ("SGD", {"momentum": 0.9}, 0.9809),
        ("SGD", {"momentum": 0.9, "nesterov": True}, 0.96281),
        ("Adagrad", {}, 0.909264346608),
        ("RMSprop", {"alpha": 0.9, "eps": 1e-8}, 0.710422721177),
        ("Adam", {}, 0.902286253948),
    ],
    ids=["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam"],
)
def test_three_steps_of_an_optimizer(name: str, options: dict[str, Any], expected: float) -> None:
    theta = nn.Parameter(torch.ones((), dtype=torch.float64))
    optimizer = build_optimizer(name, lr=0.1, **options)([theta])
    for gradient in (0.1, -0.2, 0.3):
        theta.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    assert theta.item() == pytest.approx(expected, rel=0, abs=1e-12)


def test_clipping_by_norm() -> None:
    theta = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    theta.grad = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert nn.utils.clip_grad_norm_([theta], 1.0).item() == 5.0
    # torch divides by the norm plus 1e-6
    expected = (0.599999880000024, 0.799999840000032)
    assert theta.grad.tolist() == pytest.approx(expected, rel=0, abs=1e-14)


WEIGHTS, INPUTS = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0])
MASKS = [torch.tensor(mask) for mask in itertools.product([0.0, 1.0], repeat=2)]


def test_dropout_of_a_linear_unit_averages_to_the_scaled_one() -> None:
    outputs = [float(WEIGHTS @ (mask * INPUTS)) for mask in MASKS]
    assert sorted(outputs) == [-2.0, 0.0, 1.0, 3.0]
    assert sum(outputs) / 4 == 0.5 == float(0.5 * WEIGHTS @ INPUTS)


def test_dropout_of_torch_scales_while_training_instead() -> None:
    dropout = nn.Dropout(0.5)
    torch.manual_seed(0)
    seen = {float(WEIGHTS @ dropout(INPUTS)) for _ in range(100)}
    assert seen == {2 * output for output in (-2.0, 0.0, 1.0, 3.0)}
    assert torch.equal(dropout.eval()(INPUTS), INPUTS)


def test_dropout_of_a_sigmoid_unit_averages_to_something_else() -> None:
    outputs = [torch.sigmoid((WEIGHTS @ (mask * INPUTS)).double()) for mask in MASKS]
    scaled = float(torch.sigmoid((0.5 * WEIGHTS @ INPUTS).double()))
    assert float(sum(outputs)) / 4 == pytest.approx(0.575708906869, rel=0, abs=1e-12)
    assert scaled == pytest.approx(0.622459331202, rel=0, abs=1e-12)
    on = math.prod(float(output) for output in outputs) ** 0.25
    off = math.prod(1 - float(output) for output in outputs) ** 0.25
    assert on / (on + off) == pytest.approx(scaled, rel=0, abs=1e-12)
