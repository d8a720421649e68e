"""A bounded table of measurements: records of many rows, stored by column."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from lightning_depth.errors import check_count

__all__ = ["History"]


_LOT = 32
"""Records made at once: the code that makes them is then in the processor's cache."""


class _Record(NamedTuple):
    number: int
    """How many records of its optimizer came before it, the dropped ones included."""
    rows: int
    cells: dict[str, Any]
    floats: array[float]
    """The columns of floats, one after the other."""


class History:
    """Measurements of a run, one record a measured step, at most ``capacity`` of them.

    A record has one row a layer. When the history is full, the older three quarters are thinned
    evenly over the run and the newest quarter is kept whole, so memory and checkpoints stay
    small however long the run is.

    Args:
        floats: Names of columns kept in single precision, for those with a number a layer and
            step; 1,000 records of 100 layers and 8 such columns take 3.2 MB.
        capacity: Largest number of records kept.

    Example:
        >>> history = History(floats=("norm",))
        >>> history.append(step=0, layer=("a", "b"), norm=(0.5, 0.25))
        >>> history.table()
        {'step': [0, 0], 'layer': ['a', 'b'], 'norm': [0.5, 0.25]}
    """

    def __init__(self, floats: Sequence[str] = (), capacity: int = 1000) -> None:
        self._floats = tuple(floats)
        self._capacity = check_count("capacity", capacity, minimum=4)
        self._records: list[_Record] = []
        self._appended: dict[str, int] = {}
        self._stride = 1
        self._waiting: list[Callable[[], Mapping[str, Any]]] = []

    def __getstate__(self) -> dict[str, Any]:
        """What waits belongs to a run that copies know nothing of."""
        self.settle()
        return vars(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, History) and self.__getstate__() == other.__getstate__()

    __hash__ = None  # type: ignore[assignment] # it changes

    def __len__(self) -> int:
        self.settle()
        return len(self._records)

    def append(self, **columns: Any) -> None:
        """Add one record.

        Args:
            **columns: A sequence (tuple, list or tensor) holds one value a row; anything else
                holds for all rows.
        """
        self.settle()
        cells = {name: _frozen(value) for name, value in columns.items()}
        rows = max((len(cell) for cell in cells.values() if isinstance(cell, tuple)), default=1)
        floats = array("f")
        for name in self._floats:
            floats.extend(_spread(cells.pop(name), rows))
        if self._records:
            cells = _shared(cells, self._records[-1].cells)
        series = str(cells.get("optimizer", ""))
        number = self._appended.get(series, 0)
        self._appended[series] = number + 1
        self._records.append(_Record(number, rows, cells, floats))
        if len(self._records) > self._capacity:
            self._thin()

    def defer(self, columns: Callable[[], Mapping[str, Any]]) -> None:
        """Add one record whose columns are made when the history is read, or a few at a time.

        Args:
            columns: Returns what ``append`` takes.
        """
        self._waiting.append(columns)
        if len(self._waiting) == _LOT:
            self.settle()

    def settle(self) -> None:
        """Make the records that wait, and let go of what they are made from."""
        waiting, self._waiting = self._waiting, []
        for columns in waiting:
            self.append(**columns())

    def table(self) -> dict[str, list[Any]]:
        """Return the columns, all of one length; ``pandas.DataFrame`` accepts them."""
        self.settle()
        rows = [record.rows for record in self._records]
        columns: dict[str, list[Any]] = {
            name: [value for cell, n in zip(cells, rows, strict=True) for value in _spread(cell, n)]
            for name, cells in self._cells().items()
        }
        return columns | {name: values.tolist() for name, values in self._numbers().items()}

    def clear(self) -> None:
        """Forget everything."""
        self._waiting.clear()
        self._records.clear()
        self._appended = {}
        self._stride = 1

    def state_dict(self) -> dict[str, Any]:
        """Return plain containers and a tensor for each column of floats."""
        self.settle()
        return {
            "appended": dict(self._appended),
            "stride": self._stride,
            "numbers": [record.number for record in self._records],
            "rows": [record.rows for record in self._records],
            "cells": self._cells(),
            "floats": {name: torch.tensor(values) for name, values in self._numbers().items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` returned.

        Args:
            state: The state of a history; columns of floats that it lacks become NaN.
        """
        self.clear()
        self._appended = dict(state["appended"])
        self._stride = state["stride"]
        missing = torch.full((sum(state["rows"]),), torch.nan)
        columns = [state["floats"].get(name, missing).tolist() for name in self._floats]
        start = 0
        for place, (number, rows) in enumerate(zip(state["numbers"], state["rows"], strict=True)):
            cells = {name: column[place] for name, column in state["cells"].items()}
            floats = array("f", [v for column in columns for v in column[start : start + rows]])
            self._records.append(_Record(number, rows, cells, floats))
            start += rows

    def _cells(self) -> dict[str, list[Any]]:
        """Columns of everything but floats, an entry a record; None where a record lacks one."""
        names = dict.fromkeys(name for record in self._records for name in record.cells)
        return {name: [record.cells.get(name) for record in self._records] for name in names}

    def _numbers(self) -> dict[str, array[float]]:
        """Columns of floats, an entry a row."""
        columns: dict[str, array[float]] = {}
        for place, name in enumerate(self._floats if self._records else ()):
            columns[name] = array("f")
            for record in self._records:
                start = place * record.rows
                columns[name].extend(record.floats[start : start + record.rows])
        return columns

    def _thin(self) -> None:
        """Leave every n-th of the older records of each optimizer.

        The number n doubles when they fill half the capacity.
        """
        newest = self._capacity // 4
        old, new = self._records[:-newest], self._records[-newest:]
        old = [record for record in old if record.number % self._stride == 0]
        while len(old) > self._capacity // 2:
            self._stride *= 2
            old = [record for record in old if record.number % self._stride == 0]
        self._records = old + new


def _frozen(value: Any) -> Any:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        value = value.tolist()
    return tuple(value) if isinstance(value, (list, tuple)) else value


def _spread(cell: Any, rows: int) -> Sequence[Any]:
    return cell if isinstance(cell, tuple) else (cell,) * rows


def _shared(cells: dict[str, Any], previous: dict[str, Any]) -> dict[str, Any]:
    """Replace cells by equal ones of the record before, so that names of layers are kept once."""
    return {
        name: previous[name] if isinstance(cell, tuple) and previous.get(name) == cell else cell
        for name, cell in cells.items()
    }
