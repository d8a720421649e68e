"""How often LayerSeparabilityProbe calls blocks idle, and whether the network needs them.

Every network in which it does is trained again from the same seed without the blocks it named, each
replaced by the identity, or by zeros where its output joins that of all before it, as in a dense
net. The finding counts as right where the error on held-out data then rises by no more than twice
the standard error of a difference of two such errors. Of labels that belong to other pictures it
must say nothing: no law, no pairs that are hard to tell apart, no block that is idle. Run in
parts, each of which appends one line a run to a file, then render the tables::

    python -m tests.benchmarks.calibrate_idle healthy --seeds 0 1 2 --out idle.jsonl
    python -m tests.benchmarks.calibrate_idle planted --seeds 0 1 2 --out idle.jsonl
    python -m tests.benchmarks.calibrate_idle shuffled --seeds 0 1 2 --out idle.jsonl
    python -m tests.benchmarks.calibrate_idle render --out idle.jsonl
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from lightning_depth.callbacks import LayerSeparabilityProbe
from lightning_depth.findings import Finding
from lightning_depth.networks import build_convnet
from tests.benchmarks._zoo import Case, classifiers, digits_loaders, fit
from tests.benchmarks._zoo_modules import Digit
from tests.benchmarks._zoo_nets import PreNormBlock, block_stack, dense_stack


@dataclass(frozen=True)
class Planted:
    """A network with blocks that do nothing, and their names."""

    case: Case
    idle: tuple[str, ...]


class Bypass(nn.Module):
    """The identity, whatever else a block is called with."""

    def forward(self, features: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return features


class Nothing(nn.Module):
    """Zeros of a shape, for a layer whose output joins that of all before it."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, features: list[Tensor]) -> Tensor:
        return features[0].new_zeros(len(features[0]), *self.shape)


def silence_block(block: nn.Module) -> None:
    """Make a residual branch return zero for good."""
    for module in block.modules():
        for parameter in module.parameters(recurse=False):
            parameter.data.zero_()
    block.requires_grad_(False)


def planted_cases() -> list[Planted]:
    """Networks with known idle blocks. Blocks of `block_stack` are named from net.2 on."""

    def mlp(blocks: int, idle: Collection[int]) -> Planted:
        def build() -> L.LightningModule:
            parts = [PreNormBlock(48) for _ in range(blocks)]
            for place in idle:
                silence_block(parts[place])
            return Digit(block_stack(parts))

        first, last = min(idle, default=0) + 1, max(idle, default=0) + 1
        name = f"{blocks} pre-norm blocks" + (f", {first} to {last} zeroed" if idle else "")
        return Planted(Case(name, build), tuple(f"net.{2 + place}" for place in idle))

    def convnet() -> L.LightningModule:
        net = build_convnet("residual", 20, 8, 10, 1)
        for name in ("stages.1.1", "stages.1.2"):
            silence_block(net.get_submodule(name))
        return Digit(net, learning_rate=0.05, optimizer="sgd")

    return [
        mlp(8, (3, 4, 5)),
        mlp(12, (6, 7, 8, 9, 10, 11)),
        Planted(
            Case("residual-20, last two blocks of stage 2 zeroed", convnet),
            ("net.stages.1.1", "net.stages.1.2"),
        ),
        mlp(20, ()),
    ]


def shuffled_cases() -> list[Case]:
    """Networks with the labels of other pictures, as they start and after training."""

    def untrained() -> L.LightningModule:
        return Digit(build_convnet("residual", 20, 8, 10, 1), learning_rate=0.0, optimizer="sgd")

    cases = [
        Case("residual-20, untrained", untrained, epochs=1),
        Case("relu-mlp-6", lambda: Digit(dense_stack(nn.ReLU, 6))),
        Case(
            "8 pre-norm blocks",
            lambda: Digit(block_stack([PreNormBlock(48) for _ in range(8)])),
            epochs=30,
        ),
    ]
    return [replace(case, shuffles=True) for case in cases]


def without(build: Callable[[], L.LightningModule], stand_ins: Mapping[str, nn.Module]) -> Any:
    """Return a builder of the same module with other modules in the place of some blocks."""

    def smaller() -> L.LightningModule:
        module = build()
        for name, stand_in in stand_ins.items():
            parent, _, child = name.rpartition(".")
            setattr(module.get_submodule(parent), child, stand_in)
        return module

    return smaller


def stand_ins(case: Case, names: Collection[str]) -> dict[str, nn.Module]:
    """Return what takes the place of blocks that do nothing; of those that have none, nothing."""
    module, found = case.build(), dict[str, nn.Module]()
    for name in names:

        def note(block: nn.Module, args: Any, output: Any, name: str = name) -> None:
            if isinstance(args[0], list):  # of a dense net: what it returns is added to the list
                found[name] = Nothing(output.shape[1:])
            elif isinstance(output, Tensor) and args[0].shape == output.shape:
                found[name] = Bypass()

        module.get_submodule(name).register_forward_hook(note)
    module(next(iter(digits_loaders(case.size, 0)[0]))[0])
    return found


def _ignore(finding: Finding) -> None:
    """Findings are read after the run."""


def run(case: Case, seed: int) -> dict[str, Any]:
    """Train a network under the probe, and again without the blocks it calls idle."""
    probe = LayerSeparabilityProbe(every_n_epochs=case.epochs, on_finding=_ignore)
    error = fit(case, seed, [probe])
    blocks = len(set(probe.history["layer"]))
    told = bool(probe.laws and probe.laws[-1]["stated"])
    found = {"idle": (), "why": ""}
    again = math.nan
    for finding in probe.findings:
        found = {"idle": finding.layers, "why": finding.message}
        others = stand_ins(case, finding.layers)
        if len(others) == len(finding.layers):
            smaller = replace(case, build=without(case.build, others))
            again = fit(smaller, seed, [])
    return {
        "name": case.name, "seed": seed, "layers": blocks, "error": error, "again": again,
        "law": told, "pairs": len(probe.hardest_pairs), **found
    }  # fmt: skip


def is_right(run: dict[str, Any]) -> bool | None:
    """Whether the network does as well without the blocks; None where that was not tried."""
    if math.isnan(run["again"]):
        return None
    mean = (run["error"] + run["again"]) / 2
    samples = 1797 - 1280
    return bool(run["again"] - run["error"] <= 2 * math.sqrt(2 * mean * (1 - mean) / samples))


def _told(run: dict[str, Any]) -> str:
    if not run["idle"]:
        return "nothing"
    right = is_right(run)
    if right is None:
        return f"{len(run['idle'])} idle, not tried without"
    answer = "stays" if right else "**rises**"
    return f"{len(run['idle'])} idle; without {run['again']:.3f}, {answer}"


def _claimed(run: dict[str, Any]) -> str:
    claims = ("a law", run["law"]), ("hard pairs", run["pairs"]), ("idle blocks", run["idle"])
    return ", ".join(claim for claim, made in claims if made) or "nothing"


def render(runs: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the tables of docs/calibration.md."""
    healthy = [run for run in runs if run["part"] == "healthy"]
    told = [run for run in healthy if run["idle"]]
    tried = [run for run in told if is_right(run) is not None]
    stays = sum(bool(is_right(run)) for run in tried)
    yield (
        f"{len(healthy)} healthy runs, {len(told)} with IDLE; of {len(tried)} that could be "
        f"trained without the blocks named, the error stays in {stays}."
    )
    yield ""
    yield "| network | layers | seed: error, and what was told |"
    yield "| --- | ---: | --- |"
    for name in dict.fromkeys(run["name"] for run in healthy):
        own = [run for run in healthy if run["name"] == name]
        words = "; ".join(f"{r['seed']}: {r['error']:.3f}, {_told(r)}" for r in own)
        yield f"| {name} | {own[0]['layers']} | {words} |"
    yield ""
    yield "| planted | seed | planted named | others named | error, and without what was named |"
    yield "| --- | ---: | ---: | ---: | --- |"
    for run in runs:
        if run["part"] == "planted":
            planted, named = set(run["planted"]), set(run["idle"])
            hits = f"{len(planted & named)} of {len(planted)}"
            yield (
                f"| {run['name']} | {run['seed']} | {hits} | {len(named - planted)} | "
                f"{run['error']:.3f}; {_told(run)} |"
            )
    yield ""
    yield "| labels of other pictures | seed: error, and what was told |"
    yield "| --- | --- |"
    shuffled = [run for run in runs if run["part"] == "shuffled"]
    for name in dict.fromkeys(run["name"] for run in shuffled):
        own = [run for run in shuffled if run["name"] == name]
        words = "; ".join(f"{r['seed']}: {r['error']:.3f}, {_claimed(r)}" for r in own)
        yield f"| {name} | {words} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["healthy", "planted", "shuffled", "render"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--names", nargs="*", default=[], help="healthy networks, default all")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.part == "render":
        runs = [json.loads(line) for line in options.out.read_text().splitlines()]
        print("\n".join(render(runs)))
        return
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    cases = shuffled_cases() if options.part == "shuffled" else classifiers()
    plain = [Planted(case, ()) for case in cases]
    chosen = planted_cases() if options.part == "planted" else plain
    with options.out.open("a") as file:
        for seed in options.seeds:
            for each in chosen:
                if not options.names or each.case.name in options.names:
                    done = run(each.case, seed)
                    done |= {"part": options.part, "planted": each.idle}
                    file.write(json.dumps(done) + "\n")
                    file.flush()
                    print(f"{each.case.name}, seed {seed}: {_told(done)}", flush=True)


if __name__ == "__main__":
    main()
