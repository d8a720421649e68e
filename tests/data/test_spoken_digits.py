"""Spoken digits: splits, loudness, features against NumPy and SciPy, and damaged files."""

from __future__ import annotations

import io
import re
import wave
import zipfile
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest
import scipy.fft
import torch

from lightning_depth.data import SpokenDigits
from lightning_depth.data._speech import log_mel, mfcc, read_recordings, to_waveforms
from lightning_depth.errors import ConfigurationError

SPEAKERS = ("ann", "bob", "cleo")


def recording(samples: np.ndarray, rate: int = 8000, channels: int = 1) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return buffer.getvalue()


def tone(digit: int, speaker: int, take: int) -> np.ndarray:
    times = np.arange(800 + 4000 * (take == 0)) / 8000
    return 100 * 10**speaker / 3 * np.sin(2 * np.pi * (200 + 150 * digit + 7 * take) * times)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten digits, three speakers, eleven takes, at very different loudness."""
    (tmp_path / "recordings").mkdir()
    for number in range(10 * 3 * 11):
        digit, rest = divmod(number, 33)
        speaker, take = divmod(rest, 11)
        path = tmp_path / "recordings" / f"{digit}_{SPEAKERS[speaker]}_{take}.wav"
        path.write_bytes(recording(tone(digit, speaker, take)))
    return tmp_path


@pytest.fixture
def archive(folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "fsdd_recordings.zip"
    with zipfile.ZipFile(path, "w") as file:
        for source in sorted((folder / "recordings").iterdir()):
            file.write(source, f"recordings/{source.name}")
        file.writestr("../recordings/../../9_mallory_0.wav", b"not a recording")
    return path


def ready(root: Path, **options: Any) -> SpokenDigits:
    data = SpokenDigits(root, **options)
    data.setup()
    return data


def test_zip_and_folder_hold_the_same(folder: Path, archive: Path) -> None:
    from_zip = ready(archive, features="waveform").splits.train.tensors[0]
    archive.rename(archive.with_name("elsewhere.zip"))
    from_folder = ready(folder, features="waveform").splits.train.tensors[0]
    assert torch.equal(from_zip, from_folder)
    assert from_zip.shape == (10 * 3 * 1, 1, 8000)


def test_official_split_goes_by_take(folder: Path) -> None:
    splits = ready(folder, speaker_label=True).splits
    assert splits.test is not None
    for samples, takes in ((splits.train, 1), (splits.val, 5), (splits.test, 5)):
        assert samples.tensors[1].bincount().tolist() == [3 * takes] * 10
        assert samples.tensors[2].bincount().tolist() == [10 * takes] * 3


def test_speaker_split_keeps_speakers_apart(folder: Path) -> None:
    options: dict[str, Any] = {"split": "speaker", "val_speaker": "bob", "test_speaker": "ann"}
    splits = ready(folder, speaker_label=True, **options).splits
    assert splits.test is not None
    speakers = [set(p.tensors[2].tolist()) for p in (splits.train, splits.val, splits.test)]
    assert speakers == [{2}, {1}, {0}]


def test_seed_draws_who_and_what_validates(folder: Path) -> None:
    kept = set()
    for seed in range(8):
        splits = ready(folder, split="speaker", test_speaker="bob", seed=seed, speaker_label=True)
        kept.add(int(splits.splits.val.tensors[2][0]))
    assert kept == {0, 2}
    first, again, other = (
        ready(folder, features="waveform", seed=seed).splits.val.tensors[0] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_second_label_comes_only_when_asked_for(folder: Path) -> None:
    assert len(next(iter(ready(folder).train_dataloader()))) == 2
    assert len(next(iter(ready(folder, speaker_label=True).train_dataloader()))) == 3


def test_loudness_does_not_tell_the_speaker(folder: Path) -> None:
    waveforms = to_waveforms(read_recordings(folder), seconds=1.0)
    samples = [np.count_nonzero(row) for row in waveforms]
    power = np.square(waveforms).sum(1) / [800 if n < 1000 else 4800 for n in samples]
    np.testing.assert_allclose(power, 1.0, rtol=1e-3)


def test_recordings_are_cut_and_padded_around_their_middle(folder: Path) -> None:
    recordings = [r for r in read_recordings(folder) if r.digit == 3 and r.take < 2]
    long, short = to_waveforms(recordings, seconds=0.2)[:2]
    original = recordings[0].samples
    middle = original[(len(original) - 1600) // 2 :][:1600]
    np.testing.assert_allclose(long / long.std(), middle / middle.std(), rtol=1e-2, atol=1e-2)
    assert not short[:400].any()
    assert not short[1200:].any()
    assert short[400:1200].any()


def test_silence_stays_silent(tmp_path: Path) -> None:
    (tmp_path / "recordings").mkdir()
    (tmp_path / "recordings" / "0_ann_0.wav").write_bytes(recording(np.zeros(900)))
    assert not to_waveforms(read_recordings(tmp_path), seconds=0.5).any()


def slow_log_mel(waveform: np.ndarray, num_bands: int) -> np.ndarray:
    """Frames, window, Fourier transform and filters one after the other, in float64."""
    padded = np.pad(waveform.astype(np.float64), 128)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(256) / 256)
    filters = librosa.filters.mel(sr=8000, n_fft=256, n_mels=num_bands, dtype=np.float64)
    frames = [padded[start : start + 256] for start in range(0, len(waveform) + 1, 80)]
    powers = [filters @ np.abs(np.fft.rfft(window * frame)) ** 2 for frame in frames]
    return np.log(np.stack(powers, axis=1) + 1e-6)


def test_features_equal_a_slow_computation(folder: Path) -> None:
    waveforms = to_waveforms(read_recordings(folder)[::40], seconds=0.3)
    expected = np.stack([slow_log_mel(waveform, 20) for waveform in waveforms])
    bands = log_mel(waveforms, 20)
    np.testing.assert_allclose(bands, expected, rtol=1e-3, atol=2e-3)
    cepstra = scipy.fft.dct(expected, axis=1, norm="ortho")[:, :13]
    np.testing.assert_allclose(mfcc(bands, 13), cepstra, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("features", ["log_mel", "mfcc", "waveform"])
def test_shape_and_scale_are_as_announced(folder: Path, features: Any) -> None:
    data = SpokenDigits(folder, features, seconds=0.5)
    shape = data.input_shape
    data.setup()
    train = data.splits.train.tensors[0]
    assert train.shape[1:] == shape
    assert train.dtype == torch.float32
    axes = (0, 1, 3) if features != "waveform" else (0, 1, 2)
    assert train.double().mean(axes).abs().max() < 1e-4
    assert (train.double().std(axes, correction=0) - 1).abs().max() < 1e-4


def test_real_recordings(data_root: Path) -> None:
    if not (data_root / "fsdd_recordings.zip").is_file():
        pytest.skip("needs fsdd_recordings.zip in the folder of LIGHTNING_DEPTH_DATA")
    splits = ready(data_root, speaker_label=True).splits
    assert splits.test is not None
    parts = (splits.train, splits.val, splits.test)
    assert [len(part) for part in parts] == [2400, 300, 300]
    assert splits.test.tensors[1].bincount().tolist() == [30] * 10
    assert splits.test.tensors[2].bincount().tolist() == [50] * 6


def refuses(sentence: str, root: Path, **options: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        ready(root, **options)


def test_wrong_layout_says_what_is_expected_where(tmp_path: Path) -> None:
    (tmp_path / "7_theo_0.wav").write_bytes(recording(np.ones(10)))
    refuses(
        "SpokenDigits must have files such as 'recordings/7_theo_0.wav', but there are none in "
        f"'{tmp_path}': `root` must be the folder that holds 'recordings', "
        "or 'fsdd_recordings.zip', or such a zip itself.",
        tmp_path,
    )


def test_truncated_zip_is_named(archive: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-400])
    start = f"The archive '{archive}' is truncated, damaged or no zip: "
    with pytest.raises(ConfigurationError, match=f"^{re.escape(start)}"):
        ready(archive)


def test_damaged_member_is_noticed(archive: Path) -> None:
    content = bytearray(archive.read_bytes())
    content[5000] ^= 255
    archive.write_bytes(content)
    start = f"The archive '{archive}' is truncated, damaged or no zip: "
    with pytest.raises(ConfigurationError, match=f"^{re.escape(start)}"):
        ready(archive)


def test_truncated_recording_is_named(folder: Path) -> None:
    path = folder / "recordings" / "4_bob_2.wav"
    path.write_bytes(path.read_bytes()[:-100])
    refuses(
        f"The recording '{folder}/recordings/4_bob_2.wav' is truncated: "
        "its header says 800 samples, but it has 750.",
        folder,
    )


def test_recording_that_is_none_is_named(folder: Path) -> None:
    (folder / "recordings" / "4_bob_2.wav").write_bytes(b"nothing of the kind")
    start = f"The recording '{folder}/recordings/4_bob_2.wav' cannot be read: "
    with pytest.raises(ConfigurationError, match=f"^{re.escape(start)}"):
        ready(folder)


def test_recording_of_another_format_is_named(folder: Path) -> None:
    content = recording(np.ones(100), rate=16000, channels=2)
    (folder / "recordings" / "4_bob_2.wav").write_bytes(content)
    refuses(
        f"The recording '{folder}/recordings/4_bob_2.wav' must have 1 channel, 16 bits "
        "and 8000 Hz, but has 2, 16 and 16000.",
        folder,
    )


def test_unknown_speaker_is_named(folder: Path) -> None:
    refuses(
        "Unknown speaker 'bop'. Did you mean 'bob'? Known: bob, ann, cleo.",
        folder,
        split="speaker",
        val_speaker="bop",
        test_speaker="ann",
    )


def test_split_without_training_recordings_is_refused(folder: Path) -> None:
    for path in (folder / "recordings").glob("*_10.wav"):
        path.unlink()
    refuses(
        "The official split of SpokenDigits leaves a part empty: there are only 300 recordings.",
        folder,
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"features": "mel"},
            "`features` must be one of 'log_mel', 'mfcc', 'waveform', but got 'mel'. "
            "Did you mean 'log_mel'?",
        ),
        (
            {"split": "speaker", "val_speaker": "theo"},
            "`val_speaker` and `test_speaker` must differ, but both are 'theo'.",
        ),
        (
            {"features": "mfcc", "num_bands": 12},
            "`num_bands` must be a whole number of at least 13, but got 12.",
        ),
        (
            {"seconds": 0},
            "`seconds` must be a finite number of at least 0.1 and at most 60, but got 0.",
        ),
    ],
    ids=str,
)
def test_option_out_of_bounds_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        SpokenDigits("somewhere", **options)
