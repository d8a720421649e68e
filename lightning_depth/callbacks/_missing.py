"""What is said of parameters that get no gradient: never, seldom, or in one backward pass."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from lightning_depth.callbacks._flow_findings import listing
from lightning_depth.callbacks._presence import Presence
from lightning_depth.callbacks._reading import Reading
from lightning_depth.findings import Finding, FindingKind, Severity

__all__ = ["judge_pass", "judge_presence", "judge_run"]

_SURE = 50
"""Looks without any gradient after which it is said of a network in which nothing takes turns."""
_RARE = 0.2
"""Share of the looks at which a layer that is seldom used has a gradient, at most."""
_ENOUGH = 20
"""Looks from which on a share is spoken of."""
_ADVICE = (
    "Look for `detach`, `no_grad` or an unused output on their way to the loss, or set "
    "`requires_grad=False` if they are to stay as they are."
)


_UNUSED = (
    "Nothing, if the network is not meant to use them; they take memory and weight decay all the "
    "same, which `requires_grad=False` or removing them ends."
)


def judge_presence(
    presence: Presence, reading: Reading, patience: int, executed: Collection[str]
) -> list[Finding]:
    """Return what is certain during training: parameters that never had a gradient.

    What begins at the input, runs, and is cut off from the loss shows soon; a branch may merely
    be waiting for its turn, and is given more time, or all of the run where turns are taken.

    Args:
        presence: What was seen up to now, this reading included.
        reading: The last reading.
        patience: Looks that are needed at least.
        executed: Layers that are known to have run.
    """
    if presence.has_gone:
        return []
    cut, sure = _cut_from_input(reading) & set(executed), {*presence.never(_SURE)}
    never = tuple(
        name
        for name in presence.never(patience)
        if name in sure or reading.watched.owners.get(name) in cut
    )
    return [_none_at_all(presence, reading, never, executed)] if never else []


def judge_run(
    presence: Presence, reading: Reading, patience: int, executed: Collection[str]
) -> list[Finding]:
    """Return what the whole run shows: what never had a gradient, and what seldom had one.

    Args:
        presence: What was seen in the run.
        reading: Any reading of the same parameters.
        patience: Looks that are needed at least.
        executed: Layers that are known to have run.
    """
    never = presence.never(patience)
    found = [_none_at_all(presence, reading, never, executed)] if never else []
    if rare := presence.rare(_ENOUGH, _RARE):
        found.append(_seldom(rare, reading))
    return found


def judge_pass(reading: Reading) -> list[Finding]:
    """Return what one backward pass shows, of which a branch may have been left out by chance.

    Args:
        reading: What was read after the pass.
    """
    cut = _cut_from_input(reading)
    lost = [name for name in reading.bare if reading.watched.owners.get(name) in cut]
    others = [name for name in reading.bare if name not in set(lost)]
    return [
        Finding(
            FindingKind.NO_GRADIENT,
            severity,
            _layers_of(reading, names),
            float(len(names)),
            0.0,
            f"{_count(names)} no gradient in this backward pass: {listing(names)}.",
            advice,
        )
        for names, severity, advice in (
            (lost, Severity.CRITICAL, _ADVICE),
            (others, Severity.INFO, f"Where they do not merely wait for their turn: {_ADVICE}"),
        )
        if names
    ]


def _none_at_all(
    presence: Presence, reading: Reading, names: Sequence[str], executed: Collection[str]
) -> Finding:
    presence.told += names
    asked = min(presence.parameters[name][0] for name in names)
    whole = {owner for name in names if (owner := _owner(reading, name)) in reading.idle}
    severity = Severity.CRITICAL if whole else Severity.WARNING
    where = ", while other layers take turns" if presence.takes_turns else ""
    unused = not presence.takes_turns and _never_ran(reading, names, executed)
    if unused:
        where = ", as their layers did not run when that was looked at"
    return Finding(
        FindingKind.NO_GRADIENT,
        Severity.INFO if presence.takes_turns or unused else severity,
        _layers_of(reading, names),
        float(len(names)),
        0.0,
        f"{_count(names)} no gradient at all in {asked} steps{where}: {listing(names)}.",
        _UNUSED if unused else _ADVICE,
        step=min(presence.joined.get(name, presence.first_step) for name in names),
    )


def _never_ran(reading: Reading, names: Sequence[str], executed: Collection[str]) -> bool:
    """Whether all that has no gradient belongs to layers that were not called; bare ones aside."""
    owners = {_owner(reading, name) for name in names}
    called = {layer.name for layer in reading.watched.layers if layer.has_output}
    return bool(executed) and bool(owners & called) and not (owners & called & set(executed))


def _seldom(rare: dict[str, tuple[int, int]], reading: Reading) -> Finding:
    places = {name: place for place, name in enumerate(reading.watched.names)}
    names = sorted(rare, key=lambda name: places.get(name, len(places)))
    shares = listing([f"{name} in {rare[name][0]} of {rare[name][1]}" for name in names])
    return Finding(
        FindingKind.NO_GRADIENT,
        Severity.INFO,
        tuple(names),
        float(len(names)),
        0.0,
        f"{len(names)} layer{'s' if len(names) > 1 else ''} had a gradient in few of the measured "
        f"steps: {shares}.",
        "Nothing, if they are meant to be used so seldom; otherwise look at what chooses them.",
    )


def _count(names: Sequence[str]) -> str:
    return f"{len(names)} parameter{'s get' if len(names) > 1 else ' gets'}"


def _owner(reading: Reading, name: str) -> str:
    return reading.watched.owners.get(name, name)


def _layers_of(reading: Reading, names: Sequence[str]) -> tuple[str, ...]:
    """The layers of some parameters by depth, and the parameters that are in none."""
    owners = {_owner(reading, name) for name in names}
    watched = [name for name in reading.watched.names if name in owners]
    return (*watched, *(name for name in names if name in owners - set(watched)))


def _cut_from_input(reading: Reading) -> frozenset[str]:
    """The layers with weights that want a gradient and lie before the first that has one.

    Bare parameters have no place on the way from the input.
    """
    watched = reading.watched
    rows = zip(watched.layers, watched.has_weights, reading.grad_rms.tolist(), strict=True)
    cut = []
    for layer, has_weights, size in rows:
        if not layer.has_output:
            continue
        if layer.name not in reading.idle and not math.isnan(size):
            break
        if layer.name in reading.idle and has_weights:
            cut.append(layer.name)
    return frozenset(cut)
