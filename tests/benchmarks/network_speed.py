"""Forward and backward of our networks beside timm's and torchvision's of the same architecture.

Run from the checkout::

    python -m tests.benchmarks.network_speed [--device cuda --amp] [--channels-last] [--compile]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import timm
import torch
import torchvision
from torch import nn

import lightning_depth.networks  # noqa: F401 - registers the presets
from tests.benchmarks._paired import HEADER, compare

PEERS = {
    "resnet18": "resnet18",
    "resnet50": "resnet50",
    "densenet121": "densenet121",
    "mobilenetv2_100": "mobilenet_v2",
}


def step(network: nn.Module, arguments: argparse.Namespace) -> Callable[[], None]:
    """Return one training step without an optimizer: forward, loss, backward."""
    layout = torch.channels_last if arguments.channels_last else torch.contiguous_format
    network = network.to(arguments.device, memory_format=layout).train()
    if arguments.compile:
        network = torch.compile(network)
    size = (arguments.batch, 3, arguments.size, arguments.size)
    x = torch.randn(size, device=arguments.device).to(memory_format=layout)

    def run() -> None:
        with torch.autocast(arguments.device, enabled=arguments.amp):
            loss = network(x).float().square().mean()
        loss.backward()
        for parameter in network.parameters():
            parameter.grad = None
        if arguments.device == "cuda":
            torch.cuda.synchronize()

    return run


def main() -> None:
    """Print one table for each architecture: torchvision's is the base."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", action="store_true")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=120.0, help="at most, an architecture")
    parser.add_argument("--cpu-time", action="store_true", help="for a machine that others use too")
    parser.add_argument("--only", nargs="*", default=list(PEERS), choices=list(PEERS))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.only:
        theirs = torchvision.models.get_model(PEERS[name])
        lines = compare(
            step(theirs, arguments),
            {
                "timm": step(timm.create_model(name, drop_rate=0.0), arguments),
                "ours": step(timm.create_model(f"depth_{name}"), arguments),
            },
            precision=0.01,
            max_seconds=arguments.seconds,
            clock=time.process_time if arguments.cpu_time else time.perf_counter,
        )
        print(f"\n{name}, torchvision = 1\n\n{HEADER}", *lines, sep="\n")


if __name__ == "__main__":
    main()
