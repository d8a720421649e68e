"""The words that each command understands; imports nothing heavy, so that --help comes at once."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn, TypeAlias

import lightning_depth
from lightning_depth.errors import closest

__all__ = ["make_parser"]

_BUDGETS = ("params", "multiply_adds", "activation_bytes")


class _Parser(argparse.ArgumentParser):
    """A parser that names the closest command for a misspelt one."""

    def error(self, message: str) -> NoReturn:
        wrong = re.search(
            r"argument (\S+): invalid choice: '([^']*)' \(choose from (.*)\)", message
        )
        if wrong:
            known = [word.strip("' ") for word in wrong[3].split(",")]
            near = closest(wrong[2], known, count=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            message = f"Unknown {wrong[1]} {wrong[2]!r}.{hint} Known: {', '.join(known)}."
        super().error(message)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = _Parser(
        prog="lightning-depth",
        description="Is depth helping, and if not, why not: studies on real data.",
    )
    version = f"lightning-depth {lightning_depth.__version__}"
    parser.add_argument("--version", action="version", version=version, help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    adders = (_add_study, _add_report, _add_budget, _add_inspect, _add_recipes)
    for add in adders:
        add(commands)
    return parser


_Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"


def _add_study(commands: _Commands) -> None:
    parser = commands.add_parser(
        "study",
        help="run or resume a study, print the verdicts, write report.html",
        description="Train every arm of a recipe with every seed, print one table and the verdict "
        "on each claim, and write report.html. Typed again, the command shows the stored result; "
        "after an interruption it goes on, with every finished trial kept. Trials that failed run "
        "again. A class that a recipe names by class_path is imported and run. Exit status: 0, "
        "1 where a trial failed, 2 for bad input, 130 after Ctrl-C.",
    )
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        help="a recipe file (YAML), or the name of a recipe that ships with the package "
        "(see `lightning-depth recipes`)",
    )
    parser.add_argument(
        "--workers",
        type=_count,
        metavar="N",
        help="trials that run at a time, each in a process of its own (a count; default: processor "
        "cores of this machine divided by the recipe's `threads`, at most the number of trials); "
        "the results do not depend on it",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="folder for results and report (default: lightning-depth-runs/NAME-HASH, HASH being "
        "8 characters that change with anything that is trained)",
    )
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="remove the study's stored results first and run every trial again (default: keep "
        "finished trials)",
    )
    parser.add_argument(
        "--wandb",
        action="store_true",
        help="log each trial as a run of Weights & Biases, grouped by study, in the project "
        "lightning-depth; without a key the runs stay offline in the output folder (default: off)",
    )


def _add_report(commands: _Commands) -> None:
    parser = commands.add_parser(
        "report",
        help="rebuild a report from stored results",
        description="Read the results stored in a study's folder, print table and verdicts, and "
        "write the report anew. Nothing is trained, imported or run.",
    )
    parser.add_argument("folder", metavar="DIR", help="output folder of a study")
    parser.add_argument(
        "--output", metavar="FILE", help="the HTML file to write (default: DIR/report.html)"
    )


def _add_budget(commands: _Commands) -> None:
    parser = commands.add_parser(
        "budget",
        help="what a network costs, or what width matches a budget",
        description="Print what a network costs for one sample, or find the width at which it "
        "costs as much as another. Nothing is trained and no weights are allocated. Example: "
        "lightning-depth budget plain:hidden_layers=1 --like plain:hidden_layers=5,width=2048 "
        "--input 429 --classes 9304",
    )
    _add_network(parser, "the network whose cost or width is wanted")
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "--like",
        metavar="MODEL",
        help="network whose cost is to be matched, written like MODEL (default: none; the cost of "
        "MODEL is printed)",
    )
    target.add_argument(
        "--target",
        type=_count,
        metavar="N",
        help="cost to be matched: a count of what --by names, for one sample (default: none)",
    )
    parser.add_argument(
        "--by",
        choices=_BUDGETS,
        default="params",
        help="what is matched: parameters (a count), multiply-adds of a forward pass (a count), or "
        "activations kept for the backward pass (bytes, float32) (default: %(default)s)",
    )
    parser.add_argument(
        "--rounding",
        choices=("nearest", "floor", "ceil"),
        default="nearest",
        help="which whole width is taken: the nearest in cost, the largest not above the target, "
        "or the smallest not below it (default: %(default)s)",
    )
    parser.add_argument(
        "--no-bias",
        action="store_true",
        help="leave biases of linear and convolution layers out of the count (default: counted)",
    )
    parser.add_argument(
        "--multiple-of",
        type=_count,
        default=1,
        metavar="N",
        help="consider only widths that are a multiple of this (channels or units; "
        "default: %(default)s)",
    )


def _add_inspect(commands: _Commands) -> None:
    parser = commands.add_parser(
        "inspect",
        help="one batch: cost and signal per layer, findings at initialisation",
        description="Send one seeded standard-normal batch with random labels through a new "
        "network, forward and backward with cross-entropy, and print for each layer its cost and "
        "the size of activations and gradients, and what is found at initialisation.",
    )
    _add_network(parser, "the network to look at")
    parser.add_argument(
        "--batch-size",
        type=_count,
        default=32,
        metavar="N",
        help="samples in the batch (a count; default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="random seed of weights, batch and labels (default: %(default)s)",
    )
    parser.add_argument(
        "--granularity",
        choices=("block", "leaf"),
        default="block",
        help="what a layer is: a repeated block, or every module that owns weights "
        "(default: %(default)s)",
    )


def _add_network(parser: argparse.ArgumentParser, purpose: str) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        help=f"{purpose}: a timm name (resnet18), a callable of your own without arguments "
        "(module:callable, which is imported and called), or a block with its options "
        "(plain:depth=20,width=16 for images, plain:hidden_layers=5,width=64 for vectors; other "
        "keys are options of the block)",
    )
    parser.add_argument(
        "--input",
        type=_shape,
        required=True,
        metavar="SHAPE",
        help="shape of one sample without the batch, channels first: 3,224,224 for an image in "
        "pixels, 429 for a vector",
    )
    parser.add_argument(
        "--classes",
        type=_count,
        default=None,
        metavar="N",
        help="number of classes (default: 10 for a block with its options, what the model has "
        "otherwise)",
    )


def _add_recipes(commands: _Commands) -> None:
    parser = commands.add_parser(
        "recipes",
        help="list the recipes, copy one to edit",
        description="List the recipes that ship with the package, each with its question, or copy "
        "one into the current folder to edit.",
    )
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="recipe to copy (default: none; list them)"
    )
    parser.add_argument(
        "--output", metavar="FILE", help="file to write the copy to (default: NAME.yaml)"
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, but got {text!r}.")
    return int(text)


def _shape(text: str) -> tuple[int, ...]:
    sizes = text.split(",")
    if not all(size.strip().isdecimal() and int(size) > 0 for size in sizes):
        raise argparse.ArgumentTypeError(
            f"must be whole numbers of at least 1 with commas between, but got {text!r}."
        )
    return tuple(int(size) for size in sizes)
