"""What the copy of the best weights costs: time beside an epoch of ResNet-18, and memory.

    python tests/benchmarks/best_weights_cost.py [threads]

An epoch is that of CIFAR-10: 391 steps of batch 128 at 32 pixels, from the median of measured
steps. Prints a Markdown table: median seconds of a copy and of a restore, the copy's share of an
epoch, by how many state dicts seven copies, and then a restore, raise the peak of the memory of a
new process (a mapped file counts while it is read), and what is left of the restore afterwards.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from torch import nn

from lightning_depth.callbacks._best_weights import BestWeights, Place, named_tensors

STEPS_OF_AN_EPOCH, BATCH, REPEATS = 391, 128, 7


def peak() -> int:
    """Return the most bytes that this process has had in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()  # getrusage counts the parent's too
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def resident() -> int:
    """Return the bytes that this process has in memory now, mapped files included."""
    return resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[1])


def build() -> tuple[nn.Module, int]:
    """Return a ResNet-18 and the bytes of its parameters and buffers."""
    net = timm.create_model("resnet18", num_classes=10)
    tensors = named_tensors(net).values()
    return net, sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def grown_by(place: Place, folder: str, pipe: Any) -> None:
    """Send by how many state dicts copies, and then restoring, raise the peak of a new process."""
    net, size = build()
    first = BestWeights("disk")  # what the first copy and restore load and start is not counted
    first.capture(nn.Linear(2, 2), path=Path(folder) / "first")
    first.apply(nn.Linear(2, 2))
    best, start = BestWeights(place), peak()
    for number in range(REPEATS):
        best.capture(net, number, Path(folder) / f"best{number}")
    copied, before = peak(), resident()
    best.apply(net)
    kept = resident() - before
    pipe.send(((copied - start) / size, (peak() - copied) / size, kept / size))


def memory(place: Place) -> tuple[float, float, float]:
    """Return what ``grown_by`` finds."""
    here, there = multiprocessing.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=grown_by, args=(place, folder, there))
        process.start()
        grown: tuple[float, float, float] = here.recv()
        process.join()
    return grown


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
    net, size = build()
    epoch = STEPS_OF_AN_EPOCH * step_time(net)
    print(f"ResNet-18: {size / 2**20:.1f} MiB; an epoch takes {epoch:.0f} s\n")
    print("| place | copy, s | of an epoch | restore, s | memory, copying | restoring | after |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    places: tuple[Place, ...] = ("device", "cpu", "disk")
    for place in places:
        with tempfile.TemporaryDirectory() as folder:
            best, copies = BestWeights(place), []
            for number in range(REPEATS):
                path = Path(folder) / f"best{number}"
                copies.append(seconds(partial(best.capture, net, number, path)))
            restores = [seconds(partial(best.apply, net)) for _ in range(REPEATS)]
        copying, restoring, after = memory(place)
        print(
            f"| {place} | {median(copies):.3f} | {median(copies) / epoch:.3%} | "
            f"{median(restores):.3f} | {copying:.2f} state dicts | {restoring:.2f} | {after:.2f} |"
        )


if __name__ == "__main__":
    main()
