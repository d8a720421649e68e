"""Prechelt's criteria against patience: epochs spent and test error, on 20 seeds of digits.

    python tests/benchmarks/stopping_criteria.py [--figure docs/_static/stopping_criteria.svg]

Each seed is trained once to the end; every rule is then asked, check by check, where it would
have stopped, so that all rules see the same curves. The weights taken are those of the lowest
validation loss up to there (`restore_best_weights`). Prints a Markdown table.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from statistics import mean, stdev

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lightning_depth import _extras
from lightning_depth.callbacks import GL, PQ, UP, StoppingCriterion

SEEDS, EPOCHS = 20, 150


@dataclass
class Curves:
    """One run: training loss, validation loss, test error after each epoch."""

    train: list[float]
    validation: list[float]
    test: list[float]


@dataclass
class Patience(StoppingCriterion):
    """Lightning's rule: stop after so many checks without an improvement."""

    patience: int

    def should_stop(self, scores: list[float], train_losses: list[float]) -> str | None:  # type: ignore[override]
        """Return why training should stop, None where it should go on."""
        since = len(scores) - 1 - scores.index(min(scores))
        return f"{since} checks" if since >= self.patience else None


RULES: dict[str, StoppingCriterion | None] = {
    "patience 3": Patience(3),
    "patience 10": Patience(10),
    "patience 20": Patience(20),
    "GL(1)": GL(1),
    "GL(5)": GL(5),
    "PQ(0.5, 5)": PQ(0.5, 5),
    "PQ(1, 5)": PQ(1.0, 5),
    "UP(2, 5)": UP(2, 5),
    "UP(3, 5)": UP(3, 5),
    "all epochs": None,
}


def run(seed: int) -> Curves:
    """Train an MLP on 300 digits, a tenth of them with a wrong label."""
    torch.manual_seed(seed)
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels))
    inputs, targets = torch.tensor(images / 16).float()[order], torch.tensor(labels)[order]
    train, validation, test = slice(0, 300), slice(300, 600), slice(600, None)
    noisy = targets[train].clone()
    wrong = torch.rand(300) < 0.1
    noisy[wrong] = torch.randint(0, 10, (int(wrong.sum()),))
    net = nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    curves = Curves([], [], [])
    for _ in range(EPOCHS):
        losses = []
        for batch in torch.randperm(300).split(50):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(inputs[train][batch]), noisy[batch])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        with torch.no_grad():
            curves.train.append(mean(losses))
            curves.validation.append(_loss(net, inputs[validation], targets[validation]))
            answers = net(inputs[test]).argmax(1)
            curves.test.append(float((answers != targets[test]).float().mean()))
    return curves


def _loss(net: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    return float(nn.functional.cross_entropy(net(inputs), targets))


def stop(rule: StoppingCriterion | None, curves: Curves) -> tuple[int, float]:
    """Return the epochs that a rule spends and the test error of the weights it gives back."""
    spent = EPOCHS
    for epochs in range(1, EPOCHS + 1):
        told = rule and rule.should_stop(curves.validation[:epochs], curves.train[:epochs])
        if told:
            spent = epochs
            break
    seen = curves.validation[:spent]
    return spent, curves.test[seen.index(min(seen))]


def draw(results: dict[str, list[tuple[int, float]]], path: str) -> None:
    """Draw mean epochs against mean test error, with standard errors."""
    figure = _extras.matplotlib_figure().Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, points) in enumerate(results.items()):
        epochs, errors = zip(*points, strict=True)
        axes.errorbar(
            mean(epochs), 100 * mean(errors),
            xerr=stdev(epochs) / SEEDS**0.5, yerr=100 * stdev(errors) / SEEDS**0.5,
            fmt="osD^v"[number % 5], color=f"C{number}", label=name,
        )  # fmt: skip
    axes.set(xlabel="epochs spent", ylabel="test error of the weights given back, %")
    axes.set_title(f"Stopping rules on digits, {SEEDS} seeds, mean and standard error")
    axes.legend(ncols=2, fontsize="small")
    figure.savefig(path)


def main() -> None:
    """Print the table, and draw the figure where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figure", help="file to draw into")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = [run(seed) for seed in range(SEEDS)]
    results = {name: [stop(rule, curves) for curves in runs] for name, rule in RULES.items()}
    print("| rule | epochs spent | test error, % | against all epochs, paired, points |")
    print("| --- | --- | --- | --- |")
    for name, points in results.items():
        epochs, errors = zip(*points, strict=True)
        paired = [
            100 * (error - last)
            for error, (_, last) in zip(errors, results["all epochs"], strict=True)
        ]
        print(
            f"| {name} | {mean(epochs):.0f} ± {stdev(epochs):.0f} | {100 * mean(errors):.2f} ± "
            f"{100 * stdev(errors):.2f} | {mean(paired):+.2f} ± {stdev(paired) / SEEDS**0.5:.2f} |"
        )
    if options.figure:
        draw(results, options.figure)


if __name__ == "__main__":
    main()
