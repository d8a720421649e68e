"""What a study keeps on disk: one file a trial, written whole or not at all, and a lock.

A record carries a checksum of its own content, so that a file torn by a full disk or a failing one
is never taken for a result.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TextIO

from lightning_depth.errors import ConfigurationError, MisuseError
from lightning_depth.study.spec import fingerprint

__all__ = ["SCHEMA", "Store", "now", "write_text"]

SCHEMA = 1
"""Version of the files' layout."""

_log = logging.getLogger(__name__)
_TRIAL_FILE = re.compile(r"[0-9a-f]{16}\.json")


def now() -> str:
    """Return the time in UTC, to the second, in ISO form."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all, even when the machine stops in the middle.

    Args:
        path: The file; its folder must exist.
        text: What it will hold.

    Raises:
        MisuseError: The disk is full or the folder cannot be written.
    """
    try:
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with part.open("w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise MisuseError(f"{str(path)!r} cannot be written: {error.strerror}.") from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Store:
    """The output folder of one study.

    Args:
        folder: Where it is; created when first written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Store(folder).read_study() is None
        True
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.trials = self.folder / "trials"

    def check_free(self) -> None:
        """Refuse a folder that another process holds, without writing anything.

        Raises:
            ConfigurationError: Another process holds the folder.
        """
        try:
            stream = (self.folder / ".lock").open("r", encoding="utf-8")
        except OSError:
            return  # nobody has written here yet, or `locked` says why not
        with stream:
            self._lock(stream)

    @contextmanager
    def locked(self, command: str) -> Iterator[None]:
        """Hold the folder for this process, or say who does.

        Args:
            command: What this process was asked to do, for the message that others get.

        Raises:
            ConfigurationError: Another process holds the folder, or it cannot be written.
        """
        try:
            self.trials.mkdir(parents=True, exist_ok=True)
            stream = (self.folder / ".lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(
                f"The output folder {str(self.folder)!r} cannot be written: {error.strerror}."
            ) from error
        with stream:
            self._lock(stream)
            stream.truncate(0)
            stream.write(
                f"process {os.getpid()} on {socket.gethostname()} ({command}), since {now()}"
            )
            stream.flush()
            self._remove_parts()
            yield

    def _lock(self, stream: TextIO) -> None:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.seek(0)
            raise ConfigurationError(
                f"The output folder {str(self.folder)!r} is in use by {stream.read().strip()}. "
                f"Wait until that ends, or choose another `--output`."
            ) from error

    def read_study(self) -> dict[str, Any] | None:
        """Return the content of ``study.json``, or None where there is none that can be read."""
        return _read(self.folder / "study.json")

    def write_study(self, content: Mapping[str, Any]) -> None:
        """Write ``study.json``.

        Args:
            content: Plain containers.
        """
        _write(self.folder / "study.json", content)

    def read_trial(self, key: str) -> dict[str, Any] | None:
        """Return the record of a trial, or None where there is none that can be believed.

        Args:
            key: The trial's key.
        """
        record = _read(self.trials / f"{key}.json")
        return record if record is not None and record.get("key") == key else None

    def read_trials(self) -> list[dict[str, Any]]:
        """Return every record that can be believed, in the order of the keys."""
        keys = [path.stem for path in sorted(self.trials.glob("*.json")) if _is_trial(path)]
        found = [self.read_trial(key) for key in keys]
        return [record for record in found if record is not None]

    def write_trial(self, record: Mapping[str, Any]) -> None:
        """Write the record of a trial.

        Args:
            record: Plain containers with the trial's ``key``.
        """
        _write(self.trials / f"{record['key']}.json", record)

    def clear(self) -> None:
        """Remove every stored result of the study, and nothing else that is in the folder."""
        for path in self.trials.glob("*.json"):
            if _is_trial(path):
                path.unlink()
        for name in ("study.json", "results.csv", "report.html"):
            (self.folder / name).unlink(missing_ok=True)

    def _remove_parts(self) -> None:
        for folder in (self.folder, self.trials):
            for part in folder.glob(".*.part"):
                part.unlink(missing_ok=True)


def _is_trial(path: Path) -> bool:
    return _TRIAL_FILE.fullmatch(path.name) is not None


def _write(path: Path, content: Mapping[str, Any]) -> None:
    sealed = dict(content) | {"checksum": _checksum(content)}
    write_text(path, json.dumps(sealed, allow_nan=False, separators=(",", ":")))


def _checksum(content: Mapping[str, Any]) -> str:
    return fingerprint({key: content[key] for key in content if key != "checksum"})


def _read(path: Path) -> dict[str, Any] | None:
    """Return a file's content if it is whole; say so where it is there but cannot be believed."""
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        _log.warning("%s is not believed: %s.", path, error)
        return None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        _log.warning("%s is not believed: it is of another layout.", path)
        return None
    if content.get("checksum") != _checksum(content):
        _log.warning("%s is not believed: its checksum does not fit its content.", path)
        return None
    return content
