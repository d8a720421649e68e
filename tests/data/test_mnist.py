"""MNIST from files: what it holds, and what is said when it does not lie as expected."""

from __future__ import annotations

import gzip
import re
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


def test_cache_holds_what_was_unpacked_and_serves_as_root(mnist: MNIST) -> None:
    assert mnist.cache is not None
    again = MNIST(mnist.cache)
    again.setup()
    assert torch.equal(again.splits.val.tensors[0], mnist.splits.val.tensors[0])


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
        unpack_gzip(path, tmp_path / "huge", 100)
    assert not (tmp_path / "huge").exists()


def test_file_that_is_half_written_is_unpacked_again(tmp_path: Path) -> None:
    archive, target = write_gzip(tmp_path / "a.gz", b"content"), tmp_path / "cache" / "a"
    target.parent.mkdir()
    target.write_bytes(b"cont")
    unpack_gzip(archive, target, 7)
    assert target.read_bytes() == b"content"
    assert [path.name for path in target.parent.iterdir()] == ["a"]


def test_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    archive = write_gzip(tmp_path / "a.gz", b"content")
    (tmp_path / "cache").touch()
    start = f"The cache folder '{tmp_path}/cache' cannot be written: "
    end = "Choose another with `cache` or the environment variable LIGHTNING_DEPTH_CACHE."
    with pytest.raises(ConfigurationError, match=f"^{re.escape(start)}.*{re.escape(end)}$"):
        unpack_gzip(archive, tmp_path / "cache" / "a", 7)


def write_unpacked(root: Path, num_images: int, magic: int = 2051) -> None:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        images = struct.pack(">4i", magic, num_images, 28, 28) + bytes(num_images * 784)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(images)
        labels = struct.pack(">2i", 2049, num_images) + bytes(num_images)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)


def test_files_with_too_few_images_are_refused(tmp_path: Path) -> None:
    write_unpacked(tmp_path, num_images=20)
    refuses(
        "MNIST must have 60,000 training images with labels, "
        f"but '{tmp_path}/MNIST/raw' has 20 images and 20 labels.",
        MNIST(tmp_path),
    )


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    write_unpacked(tmp_path, num_images=20, magic=7)
    start = f"The files in '{tmp_path}/MNIST/raw' cannot be read as MNIST: "
    with pytest.raises(ConfigurationError, match=f"^{re.escape(start)}"):
        MNIST(tmp_path).setup()


def test_cache_follows_the_usual_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIGHTNING_DEPTH_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder(None) == Path("~/.cache/lightning-depth").expanduser()
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder(None) == Path("/caches/lightning-depth")
    monkeypatch.setenv("LIGHTNING_DEPTH_CACHE", "/mine")
    assert cache_folder(None) == Path("/mine")
    assert cache_folder("~/chosen") == Path("~/chosen").expanduser()
