"""The optimizers of a run: met one by one, and met anew when they or the layers have changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import lightning.pytorch as pl

from lightning_depth.callbacks._presence import is_part_of
from lightning_depth.callbacks._record import Counts, Record
from lightning_depth.callbacks._scope import Scope, name_of, open_scope

__all__ = ["Scopes"]


class Scopes:
    """What is measured of each optimizer, and what was counted under its name.

    Records that methods return are complete; they are to be kept.
    """

    def __init__(self) -> None:
        self._met: dict[int, Scope] = {}
        self._counts: dict[str, Counts] = {}
        self._names: dict[str, frozenset[str]] = {}

    def __iter__(self) -> Iterator[Scope]:
        return iter(self._met.values())

    def __getstate__(self) -> dict[str, Any]:
        """Leave the model's parameters out of copies."""
        return {"_met": {}, "_counts": self._counts, "_names": {}}

    def find(self, optimizer: Any) -> Scope | None:
        """Return the scope of an optimizer, which may have changed since it was met."""
        return self._met.get(id(optimizer))

    def enter(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        optimizer: Any,
        **options: Any,
    ) -> tuple[Scope, list[Record]]:
        """Meet an optimizer; what was met before under its name is parted from.

        Args:
            trainer: It steps the optimizer.
            pl_module: The module whose layers are watched.
            optimizer: The optimizer.
            **options: What else ``open_scope`` takes.
        """
        name = name_of(trainer, pl_module, optimizer)
        before = self._met.get(id(optimizer))
        records = self.part(scope for scope in list(self) if scope is before or scope.name == name)
        counts = self._counts.setdefault(name, Counts())
        scope = open_scope(trainer, pl_module, optimizer, counts, name=name, **options)
        self._met[id(optimizer)] = scope
        if (known := self._names.get(name)) is not None:
            counts.presence.meet(own for own in scope.table.names if own not in known)
        self._names[name] = frozenset(scope.table.names)
        return scope, records

    def part(self, scopes: Iterable[Scope] | None = None) -> list[Record]:
        """Part from optimizers, by default from all; every rank must be here."""
        leaving = list(self if scopes is None else scopes)
        records = [record for scope in leaving if (record := scope.finish(collective=True))]
        for scope in leaving:
            scope.watcher.release()
            scope.counts.forget_weights()
        self._met = {
            key: scope
            for key, scope in self._met.items()
            if not any(scope is other for other in leaving)
        }
        return records

    def part_from_strangers(self, known: Iterable[Any]) -> list[Record]:
        """Part from optimizers that the run had and no longer has."""
        optimizers = list(known)
        return self.part(
            scope
            for scope in list(self)
            if scope.is_listed and not any(scope.optimizer() is one for one in optimizers)
        )

    def finish(self, *, collective: bool) -> list[Record]:
        """Complete every record now, in copies of their own."""
        return [record for scope in self if (record := scope.finish(collective=collective))]

    def bring_forward(self, deadline: int) -> None:
        """Measure every optimizer at its first step from the deadline on, or before."""
        for counts in self._counts.values():
            counts.due = min(counts.due, deadline)

    @property
    def due(self) -> int:
        """The earliest step at which an optimizer is due; any step where none was met."""
        counts = [scope.counts for scope in self] or self._counts.values()
        return min((each.due for each in counts), default=0)

    def drop(self, layers: Iterable[str]) -> None:
        """Forget when layers that are gone, or that were replaced, had a gradient."""
        gone = tuple(layers)
        for counts in self._counts.values():
            counts.presence.forget(gone)
        self._names = {
            name: frozenset(own for own in known if not is_part_of(own, gone))
            for name, known in self._names.items()
        }

    def forget(self) -> None:
        """Forget the optimizers, and keep what was counted."""
        for scope in self:
            scope.watcher.release()
        self._met.clear()
        self._names.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.forget()
        self._counts = {}

    def state_dict(self) -> dict[str, Any]:
        """Return plain containers."""
        return {name: asdict(counts) for name, counts in self._counts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` returned; optimizers are met anew."""
        self.clear()
        self._counts = {name: Counts(**counts) for name, counts in state.items()}
