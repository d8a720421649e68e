"""Where data lies, and archives unpacked without trusting them."""

from __future__ import annotations

import gzip
import hashlib
import os
import uuid
import zlib
from pathlib import Path

from lightning_depth.errors import ConfigurationError

__all__ = ["cache_folder", "data_folder", "unpack_gzip"]

DATA_VARIABLE = "LIGHTNING_DEPTH_DATA"
CACHE_VARIABLE = "LIGHTNING_DEPTH_CACHE"
_BLOCK = 2**20  # bytes of a file that are in memory at once


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


def unpack_gzip(archive: Path, cache: Path, num_bytes: int) -> Path:
    """Unpack a file of known size into a cache, completely or not at all.

    Never more than the known size is read, so an archive that grows without end does no harm, and
    a second process that unpacks the same file at the same time neither. The file is named by the
    digest of its archive, so archives of one name never answer for each other; what lies there is
    taken only where its checksum is the one that the archive ends with.

    Args:
        archive: The compressed file.
        cache: Folder of the unpacked files.
        num_bytes: Size of the unpacked file.

    Returns:
        The unpacked file.

    Raises:
        ConfigurationError: The archive is damaged or holds something else, or the cache cannot be
            written.
    """
    try:
        digest, checksum = _fingerprint(archive)
        target = cache / f"{archive.stem}-{digest}"
        if _is_whole(target, checksum, num_bytes):
            return target
        with gzip.open(archive) as file:
            content = file.read(num_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
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
            f"The cache folder {str(cache)!r} cannot be written: {error}. "
            f"Choose another with `cache` or the environment variable {CACHE_VARIABLE}."
        ) from error
    return target


def _fingerprint(archive: Path) -> tuple[str, int]:
    """Return a digest of the archive's bytes, and the checksum of its content that it ends with."""
    digest, end = hashlib.sha256(), b""
    with archive.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            end = (end + block)[-8:]  # checksum and size, four bytes each
    return digest.hexdigest()[:16], int.from_bytes(end[:4], "little")


def _is_whole(target: Path, checksum: int, num_bytes: int) -> bool:
    try:
        if target.stat().st_size != num_bytes:
            return False
        found = 0
        with target.open("rb") as file:
            while block := file.read(_BLOCK):
                found = zlib.crc32(block, found)
    except OSError:  # not there, or of somebody who lets nobody read it
        return False
    return found == checksum


def _write(target: Path, content: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # opened as any file, so that the umask and not `tempfile` says who may read it
    half = target.with_name(f"{target.name}.{uuid.uuid4().hex}")
    try:
        half.write_bytes(content)
        half.replace(target)
    finally:
        half.unlink(missing_ok=True)
