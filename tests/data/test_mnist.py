"""MNIST from files: what it holds, and what is said when it does not lie as expected."""

from __future__ import annotations

import gzip
import os
import re
import stat
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_depth.data import MNIST
from lightning_depth.data._files import cache_folder, unpack_gzip
from lightning_depth.errors import ConfigurationError

# the data set's own counts of 0 to 9
TRAIN = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
TEST = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.fixture(scope="module")
def mnist(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> MNIST:
    if not (data_root / "MNIST" / "raw").is_dir():
        pytest.skip("needs MNIST/raw in the folder of LIGHTNING_DEPTH_DATA")
    data = MNIST(data_root, cache=tmp_path_factory.mktemp("cache"))
    data.prepare_data()
    data.setup()
    return data


def original(data_root: Path, name: str, header: int) -> np.ndarray:
    with gzip.open(data_root / "MNIST" / "raw" / f"{name}.gz") as file:
        return np.frombuffer(file.read()[header:], np.uint8)


def test_parts_have_the_counts_of_the_data_set(mnist: MNIST) -> None:
    parts = mnist.splits
    assert parts.test is not None
    train, val, test = (p.tensors[1].bincount() for p in (parts.train, parts.val, parts.test))
    assert (train + val).tolist() == TRAIN
    assert test.tolist() == TEST
    assert len(parts.val) == 5000
    assert ((val / torch.tensor(TRAIN) - 1 / 12).abs() < 1e-3).all()


def test_images_are_those_of_the_files(mnist: MNIST, data_root: Path) -> None:
    pixels = original(data_root, "t10k-images-idx3-ubyte", 16).reshape(-1, 1, 28, 28)
    assert mnist.splits.test is not None
    assert np.array_equal(mnist.splits.test.tensors[0].numpy(), pixels)
    train = original(data_root, "train-images-idx3-ubyte", 16).astype(np.int64).sum()
    kept = sum(int(p.tensors[0].sum()) for p in (mnist.splits.train, mnist.splits.val))
    assert kept == train


def test_training_images_alone_set_the_scale(mnist: MNIST) -> None:
    pixels = mnist.splits.train.tensors[0].numpy().astype(np.float64)
    images, labels = next(iter(mnist.train_eval_dataloader()))
    expected = (pixels[:512] - pixels.mean()) / pixels.std()
    np.testing.assert_allclose(images, expected, rtol=1e-5, atol=1e-6)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)


def test_one_sample_equals_its_row_of_a_batch(mnist: MNIST) -> None:
    image, label = mnist.splits.val[3]
    images, labels = next(iter(mnist.val_dataloader()))
    assert torch.equal(image, images[3])
    assert image.shape == mnist.input_shape
    assert label == labels[3]


def write_gzip(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, 1))
    return path


def refuses(sentence: str, data: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        data.setup()


def test_root_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIGHTNING_DEPTH_DATA", raising=False)
    refuses(
        "MNIST needs `root`, the folder where its files lie; "
        "give it or set the environment variable LIGHTNING_DEPTH_DATA.",
        MNIST(),
    )


def test_root_can_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LIGHTNING_DEPTH_DATA", str(tmp_path / "nowhere"))
    refuses(f"`root` of MNIST must exist, but there is no '{tmp_path}/nowhere'.", MNIST())


def test_wrong_layout_says_what_is_expected_where(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").touch()
    refuses(
        f"MNIST must have the file '{tmp_path}/MNIST/raw/train-images-idx3-ubyte', with or without "
        "'.gz', but there is none: `root` must be the folder that holds 'MNIST/raw'.",
        MNIST(tmp_path),
    )


def test_truncated_archive_is_named_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    write_gzip(path, np.random.default_rng(0).bytes(5000))
    path.write_bytes(path.read_bytes()[:-100])
    refuses(
        f"The archive '{path}' is truncated or damaged: "
        "Compressed file ended before the end-of-stream marker was reached.",
        MNIST(tmp_path, cache=tmp_path / "cache"),
    )
    assert not (tmp_path / "cache").exists()


def test_archive_of_something_else_is_named(tmp_path: Path) -> None:
    path = write_gzip(tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz", b"short")
    refuses(
        f"The archive '{path}' must hold 47,040,016 bytes, but holds 5.",
        MNIST(tmp_path, cache=tmp_path / "cache"),
    )


def test_archive_that_grows_without_end_is_not_unpacked(tmp_path: Path) -> None:
    path = write_gzip(tmp_path / "huge.gz", bytes(10_000_000))
    sentence = f"The archive '{path}' must hold 100 bytes, but holds more than 100."
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        unpack_gzip(path, tmp_path / "cache", 100)
    assert not (tmp_path / "cache").exists()


def test_damaged_archive_is_named(tmp_path: Path) -> None:
    archive = write_gzip(tmp_path / "a.gz", np.random.default_rng(0).bytes(5000))
    content = bytearray(archive.read_bytes())
    for place in range(10, len(content) - 8, 7):
        content[place : place + 40] = b"\xff" * 40  # an error of zlib, of the checksum or the end
        archive.write_bytes(content)
        start = f"The archive '{archive}' is truncated or damaged: "
        with pytest.raises(ConfigurationError, match=f"^{re.escape(start)}.+"):
            unpack_gzip(archive, tmp_path / "cache", 5000)


@pytest.mark.parametrize("left", [b"cont", b"CONTENT", b""], ids=["half", "wrong", "empty"])
def test_file_of_the_cache_that_is_not_whole_is_unpacked_again(tmp_path: Path, left: bytes) -> None:
    archive = write_gzip(tmp_path / "a.gz", b"content")
    target = unpack_gzip(archive, tmp_path / "cache", 7)
    target.write_bytes(left)
    assert unpack_gzip(archive, tmp_path / "cache", 7) == target
    assert target.read_bytes() == b"content"
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_file_of_the_cache_is_unpacked_once(tmp_path: Path) -> None:
    archive = write_gzip(tmp_path / "a.gz", b"content")
    first = unpack_gzip(archive, tmp_path / "cache", 7).stat()
    second = unpack_gzip(archive, tmp_path / "cache", 7).stat()
    assert (first.st_ino, first.st_mtime_ns) == (second.st_ino, second.st_mtime_ns)


def test_archives_of_one_name_lie_side_by_side_in_the_cache(tmp_path: Path) -> None:
    contents = (b"content", b"another")
    archives = [write_gzip(tmp_path / name.decode() / "a.gz", name) for name in contents]
    targets = [unpack_gzip(archive, tmp_path / "cache", 7) for archive in archives]
    assert [target.read_bytes() for target in targets] == [b"content", b"another"]


def test_cache_can_be_shared_with_those_whom_the_umask_lets_in(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        target = unpack_gzip(write_gzip(tmp_path / "a.gz", b"content"), tmp_path / "cache", 7)
    finally:
        os.umask(before)
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert stat.S_IMODE(target.parent.stat().st_mode) == 0o750


def test_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = write_gzip(tmp_path / "a.gz", b"content")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ConfigurationError, match="No space left on device"):
        unpack_gzip(archive, tmp_path / "cache", 7)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    archive = write_gzip(tmp_path / "a.gz", b"content")
    (tmp_path / "cache").touch()
    start = f"The cache folder '{tmp_path}/cache' cannot be written: "
    end = "Choose another with `cache` or the environment variable LIGHTNING_DEPTH_CACHE."
    with pytest.raises(ConfigurationError, match=f"^{re.escape(start)}.*{re.escape(end)}$"):
        unpack_gzip(archive, tmp_path / "cache", 7)


def idx(*shape: int, fill: int = 0) -> bytes:
    """An IDX file of bytes, by the format's own description (0x08 is a byte, then the rank)."""
    values = np.full(shape, fill, np.uint8) if len(shape) > 1 else np.arange(shape[0]) % 10
    header = struct.pack(f">2x2B{len(shape)}I", 8, len(shape), *shape)
    return header + values.astype(np.uint8).tobytes()


def write_archives(root: Path, fill: int) -> Path:
    """All four files at their full size, every pixel of one grey level."""
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        raw = root / "MNIST" / "raw"
        write_gzip(raw / f"{part}-images-idx3-ubyte.gz", idx(count, 28, 28, fill=fill))
        write_gzip(raw / f"{part}-labels-idx1-ubyte.gz", idx(count))
    return root


def grey_level(data: MNIST) -> int:
    data.setup()
    assert data.splits.test is not None
    return int(data.splits.test.tensors[0].unique())


def test_two_roots_share_one_cache(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    dark, light = (write_archives(tmp_path / name, fill) for name, fill in (("a", 3), ("b", 200)))
    levels = [grey_level(MNIST(root, cache=cache)) for root in (dark, light, dark)]
    assert levels == [3, 200, 3]


def test_wrong_archive_of_the_right_size_is_named_and_leaves_the_cache_good(tmp_path: Path) -> None:
    root, cache = write_archives(tmp_path / "root", 3), tmp_path / "cache"
    archive = root / "MNIST" / "raw" / "t10k-images-idx3-ubyte.gz"
    right = archive.read_bytes()
    write_gzip(archive, bytes(16 + 10_000 * 784))
    refuses(
        f"The file '{archive}' must hold 10,000 x 28 x 28 bytes in IDX format, 7,840,016 in all "
        "that begin with 00000803000027100000001c0000001c, but has 7,840,016 that begin with "
        "00000000000000000000000000000000.",
        MNIST(root, cache=cache),
    )
    archive.write_bytes(right)
    assert grey_level(MNIST(root, cache=cache)) == 3


def test_fraction_that_leaves_a_part_without_a_digit_is_refused(tmp_path: Path) -> None:
    refuses(
        "`val_fraction` must leave at least 10 of the 60,000 samples to train on and as many to "
        "validate on, one of each class, but got 1e-05.",
        MNIST(write_archives(tmp_path, 3), cache=tmp_path / "cache", val_fraction=1e-5),
    )


def test_seed_beyond_32_bits_is_refused() -> None:
    sentence = "`seed` must be at most 4,294,967,295, but got 1099511627776."
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        MNIST("somewhere", seed=2**40)


def test_files_may_be_unpacked_one_by_one(tmp_path: Path) -> None:
    root = write_archives(tmp_path / "root", 3)
    archive = root / "MNIST" / "raw" / "train-labels-idx1-ubyte.gz"
    archive.with_suffix("").write_bytes(gzip.decompress(archive.read_bytes()))
    archive.unlink()
    assert grey_level(MNIST(root, cache=tmp_path / "cache")) == 3


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (idx(20, 28, 28), "15,696 that begin with 00000803000000140000001c0000001c"),
        (idx(60_000, 28, 28)[:5000], "5,000 that begin with 000008030000ea600000001c0000001c"),
        (idx(60_000, 14, 56), "47,040,016 that begin with 000008030000ea600000000e00000038"),
        (b"", "0 that begin with "),
    ],
    ids=["too few", "truncated", "other shape", "empty"],
)
def test_file_of_another_kind_is_named(tmp_path: Path, content: bytes, found: str) -> None:
    path = write_archives(tmp_path, 3) / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(content)
    refuses(
        f"The file '{path}' must hold 60,000 x 28 x 28 bytes in IDX format, 47,040,016 in all "
        f"that begin with 000008030000ea600000001c0000001c, but has {found}.",
        MNIST(tmp_path, cache=tmp_path / "cache"),
    )


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (np.full(10_000, 77), "too few of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and also 77"),
        (np.arange(10_000) % 9, "too few of 9"),
        (np.arange(10_000) % 256, "also 10, 11, 12, 13, 14, 15, 16, 17, 18, 19"),
    ],
    ids=["all wrong", "one missing", "bytes"],
)
def test_labels_must_be_the_ten_digits(tmp_path: Path, labels: np.ndarray, found: str) -> None:
    path = write_archives(tmp_path, 3) / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    path.write_bytes(idx(10_000)[:8] + labels.astype(np.uint8).tobytes())
    refuses(
        f"The labels in '{path}' must be the digits 0 to 9, each of them at least twice, "
        f"but there are {found}.",
        MNIST(tmp_path, cache=tmp_path / "cache"),
    )


def test_cache_follows_the_usual_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIGHTNING_DEPTH_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder(None) == Path("~/.cache/lightning-depth").expanduser()
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder(None) == Path("/caches/lightning-depth")
    monkeypatch.setenv("LIGHTNING_DEPTH_CACHE", "/mine")
    assert cache_folder(None) == Path("/mine")
    assert cache_folder("~/chosen") == Path("~/chosen").expanduser()
