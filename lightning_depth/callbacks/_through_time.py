"""The gradient through time: how much of it comes back to the first steps of a sequence.

A recurrent layer is one layer, so no trend over depth shows what its two hundred steps do. Here
the gradient is taken where every step can be told from the others: at the input sequence of a
recurrent module, and at the outputs of a module that runs many times in one pass. A sequence goes
into the module as a view of itself, so that nothing but this module sends a gradient to the view.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from lightning_depth.callbacks._flow_findings import listing
from lightning_depth.callbacks._norms import Norms
from lightning_depth.callbacks._order import is_compiled
from lightning_depth.findings import Finding, FindingKind, Severity
from lightning_depth.layers import clean_name, main_tensor

__all__ = ["PROFILE", "ThroughTime", "judge_time"]

FEWEST_STEPS = 64
"""Steps before the one that gets most, from which on a fall through time is spoken of."""
LOST_DECADES = 7.0
"""The gradient of the first step, against that of the step that gets most, falls so far."""
_FLOOR = 1e-45
"""What float32 can hold."""
PROFILE = 10
"""Numbers that are brought of each module: the steps, and the points."""
_POINTS = PROFILE - 1
"""Places along a sequence at which its gradient is read."""
_RIPPLE = 0.3
"""Powers of ten by which it may rise on its way, and still fall like a contraction."""
_UNGATED = (nn.RNN, nn.RNNCell)


class ThroughTime:
    """Hooks on what runs over time, from ``attach`` until ``release``.

    Which modules run many times in a pass is counted at the first one.

    Args:
        model: The model; nothing of one that is compiled is watched.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = dict(model.named_modules())
        self._is_counted = any(map(is_compiled, modules.values()))
        kept = {n: m for n, m in modules.items() if not isinstance(m, torch.jit.ScriptModule)}
        kept = {} if self._is_counted else kept
        self._sequences = {n: m for n, m in kept.items() if isinstance(m, nn.RNNBase)}
        self._steps = {n: m for n, m in kept.items() if n not in self._sequences and _is_leaf(m)}
        self._handles: list[RemovableHandle] = []
        self._runs: dict[str, int] = {}
        self._norms: dict[str, dict[int, Tensor]] = {}

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What is watched, by name."""
        return {**self._sequences, **self._steps}

    @property
    def watches(self) -> bool:
        """Whether there is anything to watch, or it is not yet known."""
        return bool(self._sequences or self._steps)

    def attach(self) -> None:
        """Begin to record; of several micro-batches the last is kept."""
        self._runs, self._norms = {}, {}
        if self._handles:
            return
        for name, module in self._sequences.items():
            hook = partial(self._take_sequence, name)
            self._handles.append(module.register_forward_pre_hook(hook))
        for name, module in self._steps.items():
            after = partial(self._take_step, name)
            self._handles.append(module.register_forward_hook(after))

    def release(self) -> None:
        """Take the hooks off, and forget what was recorded."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._runs and not self._is_counted:
            self._is_counted = True
            often = {name for name, runs in self._runs.items() if runs > FEWEST_STEPS}
            self._steps = {n: m for n, m in self._steps.items() if n in often}
        self._runs, self._norms = {}, {}

    def take(self, device: torch.device, own: Collection[str]) -> tuple[list[str], Norms]:
        """Return the modules that were recorded, and what is known of each on its way to the host.

        Args:
            device: Where the numbers are joined.
            own: Parameters of the optimizer that is about to step.
        """
        norms, names = Norms(device), []
        for name in list(self._norms):
            prefix = f"{clean_name(name)}."
            if not any(parameter.startswith(prefix) for parameter in own):
                continue
            profile = self._profile(name, self._norms.pop(name))
            if profile is not None:
                names.append(name)
                norms.add(list(profile.unbind()))
        return names, norms

    def _profile(self, name: str, calls: dict[int, Tensor]) -> Tensor | None:
        sizes = [calls[place] for place in sorted(calls)]
        if sum(map(len, sizes)) <= FEWEST_STEPS or len({size.shape[1] for size in sizes}) > 1:
            return None
        joined = torch.cat(sizes)
        if getattr(self._sequences.get(name), "bidirectional", False):
            joined = joined[len(joined) // 2 :]  # what is lost is lost in the middle
        return _profile_of(joined)

    def _take_sequence(self, name: str, module: Any, args: Any) -> Any:
        place = self._runs[name] = self._runs.get(name, 0) + 1
        if not args or not _is_recording(module):
            return None
        first = args[0]
        if isinstance(first, PackedSequence):
            view = _as_view(first.data)
            note = partial(self._note_packed, name, place, first.batch_sizes.tolist())
            taken: Any = PackedSequence(
                view, first.batch_sizes, first.sorted_indices, first.unsorted_indices
            )
        elif isinstance(first, Tensor) and first.ndim in (2, 3) and first.is_floating_point():
            view = taken = _as_view(first)
            swaps = module.batch_first and first.ndim == 3
            note = partial(self._note_sequence, name, place, swaps)
        else:
            return None
        view.register_hook(note)  # type: ignore[no-untyped-call]
        return (taken, *args[1:])

    def _take_step(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        place = self._runs[name] = self._runs.get(name, 0) + 1
        if not self._is_counted:
            return
        tensor = output[1] if isinstance(module, nn.LSTMCell) else main_tensor(output)
        if tensor is not None and tensor.requires_grad and tensor.ndim:
            note = partial(self._note_step, name, place)
            tensor.register_hook(note)

    def _note_sequence(self, name: str, place: int, swaps: bool, gradient: Tensor) -> None:
        sizes = _sizes(gradient, keep=gradient.ndim - 1)  # (T, B), (B, T) or (T,)
        if sizes.ndim == 1:
            sizes = sizes[:, None]
        self._norms.setdefault(name, {})[place] = sizes.T if swaps else sizes

    def _note_packed(self, name: str, place: int, batches: list[int], gradient: Tensor) -> None:
        rows = _sizes(gradient, keep=1)
        blank = rows.new_zeros(len(batches), batches[0])
        for step, part in enumerate(torch.split(rows, batches)):
            blank[step, : len(part)] = part
        self._norms.setdefault(name, {})[place] = blank

    def _note_step(self, name: str, place: int, gradient: Tensor) -> None:
        self._norms.setdefault(name, {})[place] = _sizes(gradient, keep=1)[None]


def _is_leaf(module: nn.Module) -> bool:
    return bool(module._parameters) and next(module.children(), None) is None


def _is_recording(module: nn.Module) -> bool:
    """Whether a gradient will come back anyway, so that asking for that of the input adds none."""
    return (
        torch.is_grad_enabled()
        and torch._C._functorch.maybe_current_level() is None
        and any(parameter.requires_grad for parameter in module.parameters())
    )


def _as_view(tensor: Tensor) -> Tensor:
    return tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_()


def _sizes(gradient: Tensor, keep: int) -> Tensor:
    """Return the norms over all axes but the first ones, in float64, which small numbers need."""
    gradient = gradient.detach()
    if gradient.device.type == "mps":  # has no float64
        gradient = gradient.cpu()
    flat = gradient.reshape(*gradient.shape[:keep], -1)
    sizes: Tensor = torch.linalg.vector_norm(flat, dim=-1, dtype=torch.float64)
    return sizes


def _profile_of(sizes: Tensor) -> Tensor:
    """Return how many steps lie before the largest, and sizes at even places up to it, over it.

    Sequences end at different steps, so each is read up to the step that gets most of it; the
    median over the samples is taken.
    """
    most, peak = sizes.max(0)  # (B,)
    fractions = torch.linspace(0, 1, _POINTS, dtype=torch.float64, device=sizes.device)
    places = (fractions[:, None] * peak).round().long()
    shares = sizes.gather(0, places) / most.clamp_min(1e-300)
    return torch.cat([peak.double().median()[None], shares.median(1).values])


def judge_time(
    profiles: Mapping[str, Sequence[float]], modules: Mapping[str, nn.Module]
) -> list[Finding]:
    """Return what one measurement says of what runs over time, as if it were to last.

    Args:
        profiles: For each module what ``ThroughTime`` recorded.
        modules: The modules by name.
    """
    lost: dict[str, tuple[float, int]] = {}
    for name, (steps, *shares) in profiles.items():
        logs = [math.log10(max(share, _FLOOR)) for share in shares if not math.isnan(share)]
        if steps >= FEWEST_STEPS and len(logs) == _POINTS and _contracts(logs):
            lost[name] = -logs[0], round(steps) + 1
    if not lost:
        return []
    decades, steps = min(lost.values())
    gated = not any(isinstance(modules.get(name), _UNGATED) for name in lost)
    names = tuple(map(clean_name, lost))
    return [
        Finding(
            FindingKind.VANISHING,
            Severity.WARNING if gated else Severity.CRITICAL,  # gates can learn to open
            names,
            decades,
            LOST_DECADES,
            f"The gradient through time falls by {decades:.1f} powers of ten or more over {steps} "
            f"steps, from the one that gets most to the first, in {listing(names)}.",
            "Use an LSTM or GRU whose gates begin open, orthogonal recurrent weights, shorter "
            "sequences, or attention over the states.",
        )
    ]


def _contracts(logs: Sequence[float]) -> bool:
    """Whether a gradient falls far, and step by step: where it breaks off, somebody cut it."""
    on_the_way = [log for log in logs if math.log10(_FLOOR) < log < -1.0]
    return (
        logs[0] <= -LOST_DECADES
        and logs[_POINTS // 2] <= logs[0] / 4
        and bool(on_the_way)
        and all(after >= before - _RIPPLE for before, after in pairwise(logs))
    )
