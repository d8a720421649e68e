"""What the package's metrics share: a state that learns its width, merges, and stays float64.

torchmetrics reduces one state tensor at a time, which cannot know that a process without a batch
has not learnt the number of features, nor keep a bounded sample. Its three ways of combining two
states (``forward``, ``merge_state``, synchronisation) therefore meet here in one function,
``_merge``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import rank_zero_warn
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_depth.errors import ConfigurationError, check_count

__all__ = ["LabelledFeaturesMetric", "State"]

State = Mapping[str, Tensor]


class LabelledFeaturesMetric(Metric, ABC):
    """Base of metrics over ``(N, D)`` features and their labels."""

    __jit_unused_properties__: ClassVar[list[str]] = [
        *Metric.__jit_unused_properties__,
        "_num_labels",
        "num_kept",
    ]

    full_state_update: bool = False
    is_differentiable: bool = False
    plot_lower_bound: float = 0.0

    options: Tensor

    def __init__(
        self, num_classes: int | None, *, num_features: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.num_classes = None if num_classes is None else check_count("num_classes", num_classes)
        self.num_features = (
            None if num_features is None else check_count("num_features", num_features)
        )
        self._said: set[str] = set()
        for name, value in self._empty(self.num_features or 0).items():
            self.add_state(name, value, dist_reduce_fx=None)
        # A collection updates once all metrics whose states are equal after the first batch, when
        # they may not have come to differ yet. It compares within a hundred-thousandth, so the
        # options stand digit by digit.
        text = ", ".join(f"{name}={value}" for name, value in self._options().items())
        digits = torch.tensor(list(text.encode()), dtype=torch.uint8)
        self.add_state("options", digits, dist_reduce_fx=None)

    @property
    def _num_labels(self) -> int:
        return self.num_classes or 0

    def _options(self) -> dict[str, int | None]:
        """What decides which states can be merged."""
        return {"num_classes": self.num_classes}

    @abstractmethod
    def _empty(self, num_features: int) -> dict[str, Tensor]:
        """The state of a stream without samples; of width 0 until the width is known."""

    @abstractmethod
    def _observe(self, features: Tensor, target: Tensor) -> State:
        """The state of a stream that holds one batch and nothing else."""

    @abstractmethod
    def _merge(self, first: State, second: State) -> State:
        """The state of one stream after the other, both of one width."""

    def update(self, features: Tensor, target: Tensor) -> None:
        """Add a batch; one without samples changes nothing.

        Args:
            features: ``(N, D)``, or ``(N, ...)``, which is flattened; any floating type.
            target: Labels: ``(N,)`` or ``(N, 1)`` of any integer type or whole floats, or one-hot
                ``(N, C)``. Samples with a negative label are left out.

        Raises:
            ConfigurationError: Features and labels differ in number, or the width is zero or not
                the one that was given or learnt.
        """
        if len(features) != len(target):
            raise ConfigurationError(
                f"`features` and `target` must hold as many samples, "
                f"but got {len(features)} and {len(target)}."
            )
        if not len(features):
            return
        features = features.detach().reshape(len(features), math.prod(features.shape[1:]))
        self._check_width(features.shape[1])
        self._assign(self._join(self._state(), self._observe(features, target.detach())))

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw one value, or several in the order of their steps.

        Args:
            val: What ``compute`` or ``forward`` returned, or a list of it; ``compute()`` by
                default.
            ax: Axes of matplotlib to draw in; new ones by default.

        Returns:
            The figure and the axes.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        return self._plot(val, ax)

    def _state(self) -> State:
        return {name: getattr(self, name) for name in self._empty(0)}

    def _assign(self, state: State) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    def _width(self, state: State) -> int:
        """Number of features of a state, 0 where it is not known."""
        return max(value.shape[-1] for name, value in state.items() if value.ndim == 2)

    def _join(self, first: State, second: State) -> State:
        if not self._width(first):
            return second
        if not self._width(second):
            return first
        return self._merge(first, second)

    def _check_width(self, width: int) -> None:
        if not width:
            raise ConfigurationError("`features` must have at least 1 feature a sample, but got 0.")
        known = self._width(self._state())
        if known and width != known:
            raise ConfigurationError(
                f"`features` must have {known} features a sample, as before, but got {width}."
            )

    def _not_a_number(self, reason: str) -> Tensor:
        """NaN, with one warning of each reason, as ``forward`` would repeat it for every batch."""
        if reason not in self._said:
            self._said.add(reason)
            rank_zero_warn(f"{type(self).__name__} is NaN: {reason}", UserWarning)
        return torch.tensor(float("nan"), dtype=torch.float64, device=self.device)

    # the three ways in which torchmetrics combines states

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the samples of another metric of the same class.

        Args:
            incoming_state: The metric, or its ``metric_state``.

        Raises:
            ConfigurationError: The two do not have the same classes, features, ``max_samples`` or
                ``seed``.
        """
        super().merge_state(incoming_state)
        self._computed = None
        self._update_count = max(1, self._update_count)

    def _reduce_states(self, incoming_state: dict[str, Any]) -> None:
        current = self._state()
        if missing := sorted({*current, "options"} - set(incoming_state)):
            raise ConfigurationError(f"`incoming_state` must hold {missing[0]!r}, but does not.")
        if not torch.equal(self.options, incoming_state["options"]):
            mine, other = map(_text, (self.options, incoming_state["options"]))
            raise ConfigurationError(
                f"`incoming_state` must be of a metric with {mine}, but got {other}."
            )
        incoming = {name: incoming_state[name] for name in current}
        if self._width(incoming):
            self._check_width(self._width(incoming))
        self._assign(self._join(incoming, current))

    def _sync_dist(
        self,
        dist_sync_fn: Callable[..., list[Tensor]] = gather_all_tensors,
        process_group: Any | None = None,
    ) -> None:
        group = process_group or self.process_group
        gathered = {name: dist_sync_fn(value, group=group) for name, value in self._state().items()}
        ranks = [
            dict(zip(gathered, values, strict=True))
            for values in zip(*gathered.values(), strict=True)
        ]
        self._assign(reduce(self._join, ranks))

    def _apply(self, fn: Callable[..., Any], exclude_state: Any = "") -> nn.Module:
        """Move the state, but never cast it: sums in half precision would be wrong in silence."""
        states = {name: value.clone() for name, value in self._state().items()}
        width = self.num_features or 0
        defaults = self._empty(width)
        super()._apply(fn, exclude_state)
        for name, value in states.items():
            device = getattr(self, name).device
            setattr(self, name, value.to(device))
            self._defaults[name] = defaults[name].to(device)
        self._computed = None  # it was cast
        return self


def _text(digits: Tensor) -> str:
    return bytes(digits.tolist()).decode()
