"""Where data lies, and archives unpacked without trusting them."""

from __future__ import annotations

import gzip
import os
import tempfile
from pathlib import Path

from lightning_depth.errors import ConfigurationError

__all__ = ["cache_folder", "data_folder", "unpack_gzip"]

DATA_VARIABLE = "LIGHTNING_DEPTH_DATA"
CACHE_VARIABLE = "LIGHTNING_DEPTH_CACHE"


def data_folder(dataset: str, root: str | os.PathLike[str] | None) -> Path:
    """Return the folder or file that data is read from.

    Args:
        dataset: Name of the data set, for the message.
        root: What the user gave; None takes the environment variable `LIGHTNING_DEPTH_DATA`.

    Returns:
        A path that exists.

    Raises:
        ConfigurationError: Nothing was given, or there is nothing at that path.
    """
    given = root if root is not None else os.environ.get(DATA_VARIABLE)
    if not given:
        raise ConfigurationError(
            f"{dataset} needs `root`, the folder where its files lie; "
            f"give it or set the environment variable {DATA_VARIABLE}."
        )
    path = Path(given).expanduser()
    if not path.exists():
        raise ConfigurationError(f"`root` of {dataset} must exist, but there is no {str(path)!r}.")
    return path


def cache_folder(cache: str | os.PathLike[str] | None) -> Path:
    """Return the folder for unpacked files.

    Args:
        cache: What the user gave; None takes the environment variable `LIGHTNING_DEPTH_CACHE`, then
            `XDG_CACHE_HOME`, then `~/.cache`.

    Returns:
        The folder, which need not exist yet.
    """
    given = cache if cache is not None else os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "lightning-depth"


def unpack_gzip(archive: Path, target: Path, num_bytes: int) -> None:
    """Unpack a file of known size, completely or not at all.

    Never more than the known size is read, so an archive that grows without end does no harm, and
    a second process that unpacks the same file at the same time neither.

    Args:
        archive: The compressed file.
        target: The file to write; left alone where it has the right size already.
        num_bytes: Size of the unpacked file.

    Raises:
        ConfigurationError: The archive is damaged or holds something else, or the cache cannot be
            written.
    """
    if target.is_file() and target.stat().st_size == num_bytes:
        return
    try:
        with gzip.open(archive) as file:
            content = file.read(num_bytes + 1)
    except (OSError, EOFError) as error:
        raise ConfigurationError(
            f"The archive {str(archive)!r} is truncated or damaged: {error}."
        ) from error
    if len(content) != num_bytes:
        size = f"{len(content):,}" if len(content) < num_bytes else f"more than {num_bytes:,}"
        raise ConfigurationError(
            f"The archive {str(archive)!r} must hold {num_bytes:,} bytes, but holds {size}."
        )
    try:
        _write(target, content)
    except OSError as error:
        raise ConfigurationError(
            f"The cache folder {str(target.parent)!r} cannot be written: {error}. "
            f"Choose another with `cache` or the environment variable {CACHE_VARIABLE}."
        ) from error


def _write(target: Path, content: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
        file.write(content)
    Path(file.name).replace(target)
