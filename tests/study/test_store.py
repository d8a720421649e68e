"""What is stored is stored whole, believed only when whole, and held by one process at a time."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_depth.errors import ConfigurationError, MisuseError
from lightning_depth.study.store import Store, write_text

KEY = "0123456789abcdef"
RECORD: dict[str, Any] = {"schema": 1, "key": KEY, "status": "finished", "numbers": [0.1, None]}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path)
    made.trials.mkdir()
    return made


def test_record_round_trips(store: Store) -> None:
    store.write_trial(RECORD)
    found = store.read_trial(KEY)
    assert found is not None
    assert {key: found[key] for key in RECORD} == RECORD
    assert store.read_trials() == [found]


def test_missing_record_is_none(store: Store) -> None:
    assert store.read_trial(KEY) is None
    assert store.read_study() is None


DAMAGES = {
    "half written": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "one digit flipped": lambda text: text.replace("0.1", "0.2"),
    "no mapping": lambda text: "[]",
    "of another layout": lambda text: text.replace('"schema":1', '"schema":2'),
    "without its checksum": lambda text: re.sub(r',"checksum":"\w+"', "", text),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_file_is_not_believed(
    store: Store, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    store.write_trial(RECORD)
    path = store.trials / f"{KEY}.json"
    path.write_text(damage(path.read_text()))
    with caplog.at_level(logging.WARNING):
        assert store.read_trial(KEY) is None
    assert f"{path} is not believed" in caplog.text


def test_record_under_another_key_is_not_believed(store: Store) -> None:
    store.write_trial(RECORD)
    other = "f" * 16
    (store.trials / f"{KEY}.json").rename(store.trials / f"{other}.json")
    assert store.read_trial(other) is None


def test_full_disk_leaves_the_old_file_and_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kept.json"
    write_text(path, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    sentence = f"{str(path)!r} cannot be written: No space left on device."
    with pytest.raises(MisuseError, match=f"^{re.escape(sentence)}$"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_second_process_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom lightning_depth.study.store import Store\n"
        f"with Store({str(tmp_path)!r}).locked('the first command'):\n"
        "    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    pattern = (
        rf"^The output folder '{re.escape(str(tmp_path))}' is in use by process {holder.pid} on "
        r"\S+ \(the first command\), since [-0-9T:+]+\. Wait until that ends, or choose another "
        r"`--output`\.$"
    )
    with pytest.raises(ConfigurationError, match=pattern):
        Store(tmp_path).check_free()
    with pytest.raises(ConfigurationError, match=pattern), Store(tmp_path).locked("mine"):
        pass
    holder.kill()
    holder.communicate()
    with Store(tmp_path).locked("mine"):  # a killed process holds nothing
        pass


def test_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "out"
    sentence = f"The output folder {str(folder)!r} cannot be written: Not a directory."
    refused = pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$")
    with refused, Store(folder).locked("mine"):
        pass


def test_lock_sweeps_up_what_a_killed_process_left(store: Store) -> None:
    part = store.trials / f".{KEY}.json.1.part"
    part.write_text('{"half')
    with store.locked("mine"):
        assert not part.exists()


def test_clear_removes_results_and_nothing_else(store: Store) -> None:
    store.write_trial(RECORD)
    store.write_study({"schema": 1})
    others = [store.folder / "thesis.txt", store.trials / "notes.json"]
    for path in others:
        path.write_text(json.dumps("mine"))
    store.clear()
    assert sorted(path for path in store.folder.rglob("*") if path.is_file()) == sorted(others)
