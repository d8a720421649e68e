"""What recomputation, reversibility and concatenated ReLU save, and what they cost in time.

Run from the checkout::

    python -m tests.benchmarks.block_costs [--cpu-time]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_depth.blocks import ReversibleBlock, ReversibleSequence, block_factory
from lightning_depth.networks import build_convnet
from tests.benchmarks._paired import HEADER, compare


class Stored(nn.Sequential):
    """The same blocks, every activation stored."""


def saved_bytes(network: nn.Module, x: Tensor) -> int:
    """Return the bytes that autograd keeps, parameters apart, each storage counted once."""
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = network(x)
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del output
    return total


def step(network: nn.Module, x: Tensor) -> Callable[[], None]:
    """Return forward and backward."""

    def run() -> None:
        network(x).square().mean().backward()

    return run


def reversible(options: dict[str, object]) -> None:
    """Print memory at depths 10 to 200 and the time of a step, reversible over stored."""
    x = torch.randn(8, 64, 16, 16)
    print("\nreversible stack, 64 channels, 16 x 16, batch 8\n")
    print("| blocks | bytes kept, stored | bytes kept, reversible |\n| ---: | ---: | ---: |")
    for depth in (10, 50, 100, 200):
        blocks = [ReversibleBlock(64, 64) for _ in range(depth)]
        stored, ours = Stored(*blocks), ReversibleSequence(*blocks)
        print(f"| {depth} | {saved_bytes(stored, x):,} | {saved_bytes(ours, x):,} |")
    blocks = [ReversibleBlock(64, 64) for _ in range(10)]
    base, ours = step(Stored(*blocks), x), step(ReversibleSequence(*blocks), x)
    lines = compare(base, {"reversible": ours}, **options)  # type: ignore[arg-type]
    print(f"\nstep of 10 blocks, stored = 1\n\n{HEADER}", *lines, sep="\n")


def dense() -> None:
    """Print the memory of DenseNet-<depth>-12, stored and memory-efficient."""
    x = torch.randn(2, 3, 32, 32)
    print("\nDenseNet, growth rate 12, 32 x 32, batch 2\n")
    print("| depth | bytes kept, stored | bytes kept, recomputed |\n| ---: | ---: | ---: |")
    for depth in (40, 70, 100):
        network = build_convnet("dense", depth=depth, width=12, num_classes=10)
        stored = saved_bytes(network, x)
        network.set_grad_checkpointing()
        print(f"| {depth} | {stored:,} | {saved_bytes(network, x):,} |")


def crelu(options: dict[str, object]) -> None:
    """Print the time of concatenated ReLU against the full-width net of the same output width."""
    x = torch.randn(8, 256, 28, 28)
    full = nn.Sequential(*(block_factory("plain")(256, 256) for _ in range(2)))
    half = nn.Sequential(*(block_factory("crelu")(256, 256) for _ in range(2)))
    lines = compare(step(full, x), {"crelu": step(half, x)}, **options)  # type: ignore[arg-type]
    print(f"\nconcatenated ReLU, 256 channels, 28 x 28, batch 8, plain = 1\n\n{HEADER}")
    print(*lines, sep="\n")


def main() -> None:
    """Print every table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0, help="at most, a comparison")
    parser.add_argument("--cpu-time", action="store_true", help="for a machine that others use too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    options = {"precision": 0.02, "max_seconds": arguments.seconds, "clock": clock}
    dense()
    reversible(options)
    crelu(options)


if __name__ == "__main__":
    main()
