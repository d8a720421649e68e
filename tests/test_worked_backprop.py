"""The worked example of back-propagation: two inputs, two hidden units, two outputs, all sigmoid.

Inputs .05 and .10, targets .01 and .99, learning rate .5, half the squared error. The published
".291027924 after one step" comes from updating the output layer before the hidden gradients are
computed; the gradient descent of everybody else gives .291027774.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_depth.modules import build_optimizer
from lightning_depth.networks import build_mlp

TOLERANCE = 1e-11
INPUTS = torch.tensor([[0.05, 0.10]], dtype=torch.float64)
TARGETS = torch.tensor([[0.01, 0.99]], dtype=torch.float64)


class WorkedExample(nn.Module):
    """Our MLP with one hidden layer, and a sigmoid on what it returns."""

    def __init__(self) -> None:
        super().__init__()
        options = {"activation": "sigmoid", "norm": "none"}
        self.mlp = build_mlp("plain", 1, 2, 2, 2, block_options=options).double()
        self.hidden, self.output = (m for m in self.mlp.modules() if isinstance(m, nn.Linear))
        values = ([0.15, 0.20, 0.25, 0.30], [0.35] * 2, [0.40, 0.45, 0.50, 0.55], [0.60] * 2)
        for parameter, value in zip(self.parameters(), values, strict=True):
            parameter.data = torch.tensor(value, dtype=torch.float64).view_as(parameter)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.sigmoid(self.mlp(inputs))


def errors(network: WorkedExample) -> Tensor:
    return 0.5 * (TARGETS - network(INPUTS)).square().flatten()


def close(actual: Tensor | float, *expected: float) -> None:
    flat = torch.as_tensor(actual).detach().flatten().tolist()
    assert flat == pytest.approx(expected, rel=0, abs=TOLERANCE)


@pytest.fixture
def network() -> WorkedExample:
    return WorkedExample()


def test_forward(network: WorkedExample) -> None:
    hidden = network.hidden(INPUTS)
    close(hidden, 0.3775, 0.3925)
    close(hidden.sigmoid(), 0.593269992107, 0.596884378260)
    close(network.mlp(INPUTS), 1.105905967060, 1.224921404096)
    close(network(INPUTS), 0.751365069552, 0.772928465321)
    close(errors(network), 0.274811083176, 0.023560025584)
    close(errors(network).sum(), 0.298371108760)


def test_every_gradient(network: WorkedExample) -> None:
    errors(network).sum().backward()
    first, second = network.hidden, network.output
    assert first.weight.grad is not None
    close(first.weight.grad, 0.000438567734, 0.000877135469, 0.000497712735, 0.000995425471)
    assert second.weight.grad is not None
    close(second.weight.grad, 0.082167040564, 0.082667627848, -0.022602540477, -0.022740242216)
    assert first.bias.grad is not None
    close(first.bias.grad, 0.008771354689, 0.009954254705)
    close(first.bias.grad.sum(), 0.018725609395)
    assert second.bias.grad is not None
    close(second.bias.grad, 0.138498561629, -0.038098236517)
    close(second.bias.grad.sum(), 0.100400325112)


@pytest.mark.parametrize(
    ("train_biases", "error_after"),
    [(False, 0.291027773693599), (True, 0.28047144679143)],
    ids=["biases frozen", "biases trained"],
)
def test_every_updated_weight(
    network: WorkedExample, train_biases: bool, error_after: float
) -> None:
    if not train_biases:
        network.hidden.bias.requires_grad_(False)
        network.output.bias.requires_grad_(False)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = build_optimizer("SGD", lr=0.5)(trained)
    errors(network).sum().backward()
    optimizer.step()
    close(network.hidden.weight, 0.149780716133, 0.199561432266, 0.249751143632, 0.299502287265)
    close(network.output.weight, 0.358916479718, 0.408666186076, 0.511301270239, 0.561370121108)
    close(errors(network).sum(), error_after)
