"""`inspect` shows of one batch what autograd says."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from lightning_depth.cli import main
from lightning_depth.networks import build_mlp

Capture = pytest.CaptureFixture[str]


def broken() -> nn.Module:
    """Return a net whose first layers get no gradient to speak of."""
    layers = [layer for _ in range(12) for layer in (nn.Linear(16, 16), nn.Sigmoid())]
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), *layers, nn.Linear(16, 10))


def two_outputs() -> nn.Module:
    """Return a net that returns no logits."""
    return nn.Unflatten(1, (8, 8))


def _row(told: str, layer: str) -> list[str]:
    (line,) = re.findall(rf"^ *{re.escape(layer)} +(.*)$", told, re.MULTILINE)
    return str(line).split()


def test_costs_and_gradient_of_a_layer_are_autograd_s(capsys: Capture) -> None:
    assert main(["inspect", "plain:hidden_layers=3,width=16", "--input", "64"]) == 0
    told = capsys.readouterr().out
    params, multiply_adds, *_, grad_rms, _ = _row(told, "head")
    assert (params, multiply_adds) == (f"{16 * 10 + 10}", f"{16 * 10}")

    torch.manual_seed(0)
    model = build_mlp("plain", 3, 16, 64, 10)
    batch = torch.randn(32, 64)
    logits = model(batch)
    loss = nn.functional.cross_entropy(logits, torch.randint(10, (32,)))
    (weight,) = [weight for weight in model.head.parameters() if weight.ndim == 2]
    (gradient,) = torch.autograd.grad(loss, [weight])
    assert float(grad_rms) == pytest.approx(float(gradient.square().mean().sqrt()), rel=5e-3)


def test_healthy_network_has_no_findings(capsys: Capture) -> None:
    assert main(["inspect", "residual:depth=20,width=8", "--input", "3,16,16"]) == 0
    assert "Nothing was found at initialisation." in capsys.readouterr().out


def test_vanishing_gradient_is_found_at_initialisation(capsys: Capture) -> None:
    assert main(["inspect", "tests.cli.test_inspect:broken", "--input", "64"]) == 0
    assert "VANISHING" in capsys.readouterr().out


def test_column_trend_and_finding_are_one_quantity(capsys: Capture) -> None:
    """A line fitted anew through the printed column has the numbers that are told."""
    assert main(["inspect", "tests.cli.test_inspect:broken", "--input", "64"]) == 0
    told = " ".join(capsys.readouterr().out.replace("|", " ").split())
    line = re.search(
        r"Gradient over weight falls (\S+)-fold over the 14 layers from (\S+) back to (\S+), "
        r"(\S+)-fold with every layer \(95 % interval (\S+) to (\S+)\)\.",
        told,
    )
    assert line is not None
    whole, last, first, each, low, high = line.groups()
    main(["inspect", "tests.cli.test_inspect:broken", "--input", "64"])
    rows = re.findall(r"^ +(\d+) +[\d,]+ .* (\S+) *$", capsys.readouterr().out, re.MULTILINE)
    assert (rows[0][0], rows[-1][0], len(rows)) == (first, last, 14)
    slope, _ = np.polyfit(range(14), [math.log(float(ratio)) for _, ratio in rows], 1)
    assert float(each) == pytest.approx(math.exp(slope), rel=5e-3)
    assert float(whole) == pytest.approx(math.exp(13 * slope), rel=2e-2)
    assert (
        f"{each}-fold with every layer (95 % interval {low} to {high})" in told.split("VANISH")[1]
    )


def test_timm_model_is_inspected_by_its_blocks(capsys: Capture) -> None:
    words = ["inspect", "resnet18", "--input", "3,32,32", "--batch-size", "2", "--classes", "5"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert _row(told, "layer1.0")[0] == "73,984"
    assert _row(told, "fc")[0] == f"{512 * 5 + 5:,}"


def test_rows_hold_every_parameter_of_a_model_with_tokens(capsys: Capture) -> None:
    assert main(["inspect", "test_vit", "--input", "3,160,160", "--batch-size", "2"]) == 0
    told = capsys.readouterr().out
    total = int(re.findall(r"^([\d,]+) parameters", told, re.MULTILINE)[0].replace(",", ""))
    table = told[told.index("─") :]  # below the rule under the heads of the columns
    counts = re.findall(r"^ *[\w.]+ +([\d,]+) +[\d,]+ ", table, re.MULTILINE)
    assert sum(int(count.replace(",", "")) for count in counts) == total


def test_same_seed_same_output(capsys: Capture) -> None:
    words = ["inspect", "plain:hidden_layers=2,width=8", "--input", "64"]
    main(words)
    first = capsys.readouterr().out
    main([*words, "--seed", "1"])
    other = capsys.readouterr().out
    main(words)
    assert capsys.readouterr().out == first
    assert other != first


def test_input_that_does_not_fit_is_refused(capsys: Capture) -> None:
    assert main(["inspect", "resnet18", "--input", "4,32,32"]) == 2
    assert capsys.readouterr().err.startswith(
        "lightning-depth: MODEL does not take `--input` 4,32,32: RuntimeError: "
    )


def test_model_that_returns_no_logits_is_refused(capsys: Capture) -> None:
    assert main(["inspect", "tests.cli.test_inspect:two_outputs", "--input", "64"]) == 2
    assert capsys.readouterr().err == (
        "lightning-depth: MODEL must return a tensor of shape (batch, classes), "
        "but returned [32, 8, 8].\n"
    )


def test_branches_that_timm_starts_at_zero_are_no_finding(capsys: Capture) -> None:
    assert main(["inspect", "resnet18", "--input", "3,64,64"]) == 0
    assert "Nothing was found at initialisation." in capsys.readouterr().out
