"""What the copy of the best weights costs: time beside an epoch of ResNet-18, and memory.

    python tests/benchmarks/best_weights_cost.py [threads]

An epoch is that of CIFAR-10: 391 steps of batch 128 at 32 pixels, from the median of measured
steps. Prints a Markdown table: median seconds of a copy and of a restore, the copy's share of an
epoch, and by how many state dicts the resident memory of the process grows, during and after.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import timm
import torch
from torch import nn

from lightning_depth.callbacks._best_weights import BestWeights, named_tensors

STEPS_OF_AN_EPOCH, BATCH, REPEATS = 391, 128, 7


def resident() -> int:
    """Return the bytes of this process that are in memory."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    kilobytes = {line.split(":")[0]: line.split()[1] for line in lines[1:]}
    return 1024 * int(kilobytes["Anonymous"])


def seconds(work: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def step_time(net: nn.Module) -> float:
    """Return the median seconds of a training step."""
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    inputs, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(0, 10, (BATCH,))

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs), labels).backward()
        optimizer.step()

    step()
    return median(seconds(step) for _ in range(REPEATS))


def main() -> None:
    """Print the table."""
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    net = timm.create_model("resnet18", num_classes=10)
    size = sum(tensor.numel() * tensor.element_size() for tensor in named_tensors(net).values())
    epoch = STEPS_OF_AN_EPOCH * step_time(net)
    print(f"ResNet-18: {size / 2**20:.1f} MiB; an epoch takes {epoch:.0f} s\n")
    print("| place | copy, s | share of an epoch | restore, s | memory during | memory after |")
    print("| --- | --- | --- | --- | --- | --- |")
    for place in ("device", "cpu", "disk"):
        with tempfile.TemporaryDirectory() as folder:
            start, best = resident(), BestWeights(place)  # type: ignore[arg-type]
            copies, grown = [], []
            for number in range(REPEATS):
                path = Path(folder) / f"best{number}"
                copies.append(seconds(partial(best.capture, net, number, path)))
                grown.append((resident() - start) / size)
            restores = [seconds(partial(best.apply, net)) for _ in range(REPEATS)]
            during = max(grown)
            best.discard()
            after = (resident() - start) / size
        print(
            f"| {place} | {median(copies):.3f} | {median(copies) / epoch:.2%} | "
            f"{median(restores):.3f} | {during:.2f} state dicts | {after:.2f} |"
        )


if __name__ == "__main__":
    main()
