"""What a child process measured is read back in the script's own process."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import pickle
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_depth.callbacks._handover import Handover


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # also for children
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def _state() -> dict[str, Any]:
    return {"step": 3}


def _in_child(handover: Handover, method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    process = context.Process(target=handover.leave, args=(_state,))
    process.start()
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_state_of_a_child_is_collected_once(method: str, folder: Path) -> None:
    handover = Handover()
    _in_child(handover, method)
    assert handover.collect() == {"step": 3}
    assert handover.collect() is None
    assert list(folder.iterdir()) == []


def test_latest_state_counts() -> None:
    handover = Handover()
    _in_child(handover, "fork")
    _in_child(handover, "fork")
    assert handover.collect() == {"step": 3}


def test_nothing_is_left_in_the_process_of_the_original(folder: Path) -> None:
    Handover().leave(_state)
    assert list(folder.iterdir()) == []


def test_nothing_is_left_by_a_child_of_a_stranger(folder: Path) -> None:
    handover = Handover()
    handover._home = -1
    _in_child(handover, "fork")
    assert list(folder.iterdir()) == []


def test_state_is_dropped_when_the_original_runs_itself(folder: Path) -> None:
    handover = Handover()
    _in_child(handover, "fork")
    handover.discard()
    assert handover.collect() is None


def test_state_that_nobody_reads_is_removed_with_the_object(folder: Path) -> None:
    handover = Handover()
    _in_child(handover, "fork")
    assert len(list(folder.iterdir())) == 1
    del handover
    gc.collect()
    assert list(folder.iterdir()) == []


def test_copy_in_the_same_process_is_an_object_of_its_own() -> None:
    handover = Handover()
    for other in (copy.deepcopy(handover), pickle.loads(pickle.dumps(handover))):
        assert other == handover
        _in_child(handover, "fork")
        assert other.collect() is None
        assert handover.collect() == {"step": 3}


def test_state_that_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    handover = Handover()
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: SimpleNamespace(pid=os.getpid()))
    sentence = r"^lightning-depth could not write /nowhere/lightning-depth-.*: .*No such file"
    with pytest.warns(UserWarning, match=sentence):
        handover.leave(_state)
