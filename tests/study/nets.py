"""Networks that recipes of the tests name by class_path."""

from __future__ import annotations

import os
import signal
import time

import torch
from torch import Tensor, nn


class Small(nn.Module):
    """One hidden layer on digits."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.hidden = nn.Linear(64, width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.hidden(x.flatten(1)).relu())
        return output


class Raising(Small):
    """Raises in training."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.device.type != "meta":
            raise RuntimeError("the cat sat on the <keyboard>")
        return super().forward(x)


class Dying(Small):
    """Ends its process in training, as the system does when memory runs out."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.device.type != "meta":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


class Slow(Small):
    """Takes its time."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.device.type != "meta":
            time.sleep(0.1)
        return super().forward(x)


class Diverging(Small):
    """Has a loss that is not finite."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.inf


class Unbuildable(Small):
    """Cannot be built."""

    def __init__(self) -> None:
        super().__init__()
        raise OSError("no such file of weights")
