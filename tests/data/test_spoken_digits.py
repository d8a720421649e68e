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


@pytest.mark.parametrize("method", ["deflated", "bzip2", "lzma"])
def test_zip_with_overwritten_bytes_is_named(tmp_path: Path, method: str) -> None:
    path = tmp_path / "recordings.zip"
    with zipfile.ZipFile(path, "w", getattr(zipfile, f"ZIP_{method.upper()}")) as file:
        noise = np.random.default_rng(0).integers(-9000, 9000, 4000)
        file.writestr("recordings/0_ann_0.wav", recording(noise))
    whole = path.read_bytes()
    start = f"The archive '{path}' is truncated, damaged or no zip: "
    for place in range(52, len(whole) - 150, len(whole) // 20):
        path.write_bytes(whole[:place] + b"\xff" * 40 + whole[place + 40 :])
        with pytest.raises(ConfigurationError, match=f"^{re.escape(start)}.+"):
            ready(path)


def write_zip(path: Path, flags: int = 0, method: int = 0) -> Path:
    """A zip of one stored recording, whose flags and compression its two headers then say."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("recordings/0_ann_0.wav", recording(np.ones(50)))
    content = bytearray(path.read_bytes())
    for header, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = content.index(header) + at
        content[place : place + 4] = bytes([flags, 0, method, 0])
    path.write_bytes(content)
    return path


def test_zip_with_a_password_is_named(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", flags=1)
    refuses(
        f"The archive '{path}' must be a zip without a password, but 'recordings/0_ann_0.wav' in "
        "it needs one.",
        path,
    )


def test_zip_of_unknown_compression_is_named(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", method=97)
    refuses(
        f"The archive '{path}' is truncated, damaged or no zip: "
        "That compression method is not supported.",
        path,
    )


@pytest.mark.parametrize("length", [0, 3, 11, 20, 35, 43])
def test_recording_cut_in_its_header_is_named(folder: Path, length: int) -> None:
    path = folder / "recordings" / "4_bob_2.wav"
    path.write_bytes(path.read_bytes()[:length])
    start = f"The recording '{path}' cannot be read: "
    with pytest.raises(ConfigurationError, match=rf"^{re.escape(start)}\w.*\w\.$"):
        ready(folder)


@pytest.mark.parametrize("place", [0, 8, 12, 16, 17, 18, 19, 36], ids="byte {}".format)
def test_recording_with_a_damaged_header_is_named(tmp_path: Path, place: int) -> None:
    path = tmp_path / "recordings" / "4_bob_2.wav"
    path.parent.mkdir()
    content = recording(np.ones(100))
    path.write_bytes(content[:place] + b"\xff" + content[place + 1 :])
    start = f"The recording '{path}' cannot be read: "
    with pytest.raises(ConfigurationError, match=rf"^{re.escape(start)}\w.*\w\.$"):
        read_recordings(tmp_path)


def test_folder_named_like_a_recording_is_named(folder: Path) -> None:
    path = folder / "recordings" / "4_bob_99.wav"
    path.mkdir()
    refuses(f"The recording '{path}' cannot be read: Is a directory.", folder)


@pytest.mark.parametrize("source", ["folder", "zip"])
def test_recording_of_hours_is_named(folder: Path, archive: Path, source: str) -> None:
    content = recording(np.zeros(8000 * 61))
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("recordings/4_bob_99.wav", content)
    if source == "folder":
        archive.unlink()
        (folder / "recordings" / "4_bob_99.wav").write_bytes(content)
    place = folder if source == "folder" else archive
    refuses(
        f"The recording '{place}/recordings/4_bob_99.wav' must be one spoken digit of at most "
        "960,000 bytes, but has 976,044.",
        folder,
    )


def test_other_things_beside_the_recordings_are_ignored(folder: Path) -> None:
    expected = len(read_recordings(folder))
    (folder / "recordings" / "old takes.wav").mkdir()
    (folder / "recordings" / "readme.wav").write_bytes(b"nothing of the kind")
    assert len(read_recordings(folder)) == expected


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
        "SpokenDigits must have every digit in every part of its official split, but of the 300 "
        f"recordings in '{folder}' none to train on says 0, 1, 2, 3, 4, 5, 6, 7, 8, 9.",
        folder,
    )


@pytest.mark.parametrize(
    ("missing", "options", "sentence"),
    [
        ("[2-9]_*", {}, "official split, but of the 66 recordings in '{}' none to train on says"
         " 2, 3, 4, 5, 6, 7, 8, 9."),
        ("7_*_[0-4]", {}, "official split, but of the 315 recordings in '{}' none to test on says"
         " 7."),
        ("8_bob_*", {"split": "speaker", "val_speaker": "bob", "test_speaker": "ann"},
         "speaker split, but of the 319 recordings in '{}' none to validate on says 8."),
    ],
    ids=["truncated", "takes", "speaker"],
)  # fmt: skip
def test_every_digit_must_be_in_every_part(
    folder: Path, missing: str, options: dict[str, Any], sentence: str
) -> None:
    for path in (folder / "recordings").glob(f"{missing}.wav"):
        path.unlink()
    start = "SpokenDigits must have every digit in every part of its "
    refuses(start + sentence.format(folder), folder, **options)


@pytest.mark.parametrize("known", [["ann"], ["ann", "bob"]], ids=["one", "two"])
def test_speaker_split_needs_three_speakers(folder: Path, known: list[str]) -> None:
    for path in (folder / "recordings").iterdir():
        if path.name.split("_")[1] not in known:
            path.unlink()
    refuses(
        "The speaker split of SpokenDigits needs recordings of at least 3 speakers, "
        f"but '{folder}' has only those of {', '.join(known)}.",
        folder,
        split="speaker",
        test_speaker="ann",
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
