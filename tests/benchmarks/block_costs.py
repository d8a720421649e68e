"""What recomputation, reversibility and concatenated ReLU save, and what they cost in time.

Run from the checkout::

    python -m tests.benchmarks.block_costs [--cpu-time] [--only dense reversible crelu]

The reversible stack stands beside those of memcnn and RevTorch where Python finds them.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_depth.blocks import ReversibleBlock, ReversibleSequence, block_factory
from lightning_depth.networks import build_convnet
from tests.benchmarks._paired import HEADER, compare

Stack = Callable[[list[nn.Module]], nn.Module]


class Storages(TorchDispatchMode):
    """Notes every storage that an operation returns, without keeping it alive."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):  # type: ignore[no-untyped-def]
        output = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                reference = StorageWeakRef(leaf.untyped_storage())
                self.seen[reference.cdata] = reference
        return output

    def alive(self) -> dict[int, int]:
        """Return the bytes of each storage that something still holds."""
        storages = {
            key: torch.UntypedStorage._new_with_weak_ptr(reference.cdata)
            for key, reference in self.seen.items()
        }
        return {key: storage.nbytes() for key, storage in storages.items() if storage is not None}


def kept_bytes(network: nn.Module, x: Tensor) -> int:
    """Return the bytes that a forward pass allocates and does not free, output included.

    It does not ask autograd, since some libraries keep tensors where autograd does not know them.
    """
    tensors = [x, *network.parameters(), *network.buffers()]
    own = {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in tensors}
    with Storages() as storages:
        output = network(x)
    total = sum(size for key, size in storages.alive().items() if key not in own)
    del output
    return total


def step(network: nn.Module, x: Tensor) -> Callable[[], None]:
    """Return forward and backward; the input is copied, since memcnn empties it."""
    x = x.clone().requires_grad_()

    def run() -> None:
        network(x.clone()).square().mean().backward()

    return run


def peers() -> dict[str, Stack]:
    """Return the reversible stacks of other libraries, by their names, as far as installed."""
    found: dict[str, Stack] = {}
    try:
        memcnn = import_module("memcnn")
        found["memcnn"] = lambda blocks: nn.Sequential(
            *(memcnn.InvertibleModuleWrapper(memcnn.AdditiveCoupling(b.f, b.g)) for b in blocks)
        )
    except ImportError as error:
        print(f"\nmemcnn is left out: {error}")
    try:
        revtorch = import_module("revtorch.revtorch")
        found["RevTorch"] = lambda blocks: revtorch.ReversibleSequence(
            nn.ModuleList(revtorch.ReversibleBlock(b.f, b.g) for b in blocks)
        )
    except ImportError as error:
        print(f"\nRevTorch is left out: {error}")
    return found


def gradient(stack: Stack, blocks: list[nn.Module], x: Tensor) -> tuple[Tensor, int]:
    """Return the gradient of all parameters, and how often a batch was counted."""
    blocks = copy.deepcopy(blocks)
    step(stack(blocks), x)()
    parameters = [parameter for block in blocks for parameter in block.parameters()]
    counts = [b for block in blocks for b in block.buffers() if b.dtype == torch.int64]
    return torch.cat([p.grad.flatten().double() for p in parameters]), int(counts[0])  # type: ignore[union-attr]


def reversible(options: dict[str, Any]) -> None:
    """Print the time of a step over stored, memory at depths 10 to 200, and what is lost."""
    x = torch.randn(8, 64, 16, 16)
    stored: Stack = lambda blocks: nn.Sequential(*blocks)  # noqa: E731
    stacks = {"ours": lambda blocks: ReversibleSequence(*blocks), **peers()}
    blocks: list[nn.Module] = [ReversibleBlock(64, 64) for _ in range(10)]
    lines = compare(
        step(stored(blocks), x),
        {name: step(stack(blocks), x) for name, stack in stacks.items()},
        **options,
    )
    print(f"\nstep of 10 reversible blocks, stored = 1\n\n{HEADER}", *lines, sep="\n")
    print("\nreversible stack, 64 channels, 16 x 16, batch 8: bytes kept\n")
    print(
        "| blocks |", " | ".join(["stored", *stacks]), "|\n" + "| ---: " * (len(stacks) + 2) + "|"
    )
    for depth in (10, 50, 100, 200):
        blocks = [ReversibleBlock(64, 64) for _ in range(depth)]
        kept = [
            f"{kept_bytes(stack(blocks), x.clone().requires_grad_()):,}"
            for stack in (stored, *stacks.values())
        ]
        print(f"| {depth} |", " | ".join(kept), "|")
    accuracy(stored, stacks, x)


def accuracy(stored: Stack, stacks: dict[str, Stack], x: Tensor) -> None:
    """Print how far gradients are from stored ones; SiLU, since a turned ReLU hides digits."""
    blocks: list[nn.Module] = [ReversibleBlock(64, 64, activation="silu") for _ in range(50)]
    expected, _ = gradient(stored, blocks, x)
    print("\n| 50 blocks, SiLU | gradient's relative distance from stored | a batch is counted |")
    print("| --- | ---: | ---: |")
    for name, stack in stacks.items():
        found, counted = gradient(stack, blocks, x)
        error = ((found - expected).norm() / expected.norm()).item()
        print(f"| {name} | {error:.1e} | {counted} |")


def dense(_: dict[str, Any]) -> None:
    """Print the memory of DenseNet-<depth>-12, stored and memory-efficient."""
    x = torch.randn(2, 3, 32, 32)
    print("\nDenseNet, growth rate 12, 32 x 32, batch 2\n")
    print("| depth | bytes kept, stored | bytes kept, recomputed |\n| ---: | ---: | ---: |")
    for depth in (40, 70, 100):
        network = build_convnet("dense", depth=depth, width=12, num_classes=10)
        stored = kept_bytes(network, x)
        network.set_grad_checkpointing()
        print(f"| {depth} | {stored:,} | {kept_bytes(network, x):,} |")


def crelu(options: dict[str, Any]) -> None:
    """Print the time of concatenated ReLU against the full-width net of the same output width."""
    x = torch.randn(8, 256, 28, 28)
    full = nn.Sequential(*(block_factory("plain")(256, 256) for _ in range(2)))
    half = nn.Sequential(*(block_factory("crelu")(256, 256) for _ in range(2)))
    lines = compare(step(full, x), {"crelu": step(half, x)}, **options)
    print(f"\nconcatenated ReLU, 256 channels, 28 x 28, batch 8, plain = 1\n\n{HEADER}")
    print(*lines, sep="\n")


TABLES = {"dense": dense, "reversible": reversible, "crelu": crelu}


def main() -> None:
    """Print the tables that were asked for, by default every one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0, help="at most, a comparison")
    parser.add_argument("--cpu-time", action="store_true", help="for a machine that others use too")
    parser.add_argument("--only", nargs="*", default=list(TABLES), choices=list(TABLES))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    options = {"precision": 0.02, "max_seconds": arguments.seconds, "clock": clock}
    for name in arguments.only:
        torch.manual_seed(0)
        TABLES[name](options)


if __name__ == "__main__":
    main()
