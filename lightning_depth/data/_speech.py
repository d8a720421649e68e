"""Recordings from a folder or a zip, brought to one loudness and length, and their features."""

from __future__ import annotations

import io
import re
import wave
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from lightning_depth import _extras
from lightning_depth.errors import ConfigurationError

__all__ = ["SAMPLE_RATE", "Recording", "log_mel", "mfcc", "read_recordings", "to_waveforms"]

SAMPLE_RATE = 8000
_NAME = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav")
_ARCHIVE = "fsdd_recordings.zip"
_WINDOW, _HOP = 256, 80  # 32 ms, moved by 10 ms
_QUIETEST = 1e-6  # of a power; a recording has power 1
_MOST_BYTES = 60 * SAMPLE_RATE * 2  # a minute
_CHUNK = 250  # recordings whose spectra are in memory at once

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Recording:
    """One spoken digit.

    Args:
        digit: What was said.
        speaker: Who said it.
        take: Number of the take, from 0.
        samples: Sound pressure between -1 and 1.
    """

    digit: int
    speaker: str
    take: int
    samples: Array


def read_recordings(root: Path) -> list[Recording]:
    """Read the recordings of the Free Spoken Digit Dataset, sorted by digit, speaker and take.

    A zip is read where it lies: nothing is unpacked, and names inside it lead nowhere.

    Args:
        root: A zip, a folder with the zip `fsdd_recordings.zip`, or one with a folder `recordings`.

    Returns:
        The recordings.

    Raises:
        ConfigurationError: There are none, or a file is damaged or of another format.
    """
    path = root / _ARCHIVE if (root / _ARCHIVE).is_file() else root
    found = _from_zip(path) if path.is_file() else _from_folder(path / "recordings")
    if not found:
        raise ConfigurationError(
            f"SpokenDigits must have files such as 'recordings/7_theo_0.wav', but there are none "
            f"in {str(root)!r}: `root` must be the folder that holds 'recordings', "
            f"or {_ARCHIVE!r}, or such a zip itself."
        )
    return sorted(found, key=lambda recording: (recording.digit, recording.speaker, recording.take))


def _from_folder(folder: Path) -> list[Recording]:
    found = []
    for path in sorted(folder.glob("*.wav")):
        if match := _NAME.fullmatch(path.name):
            try:
                _check_size(path, path.stat().st_size)
                content = path.read_bytes()
            except OSError as error:
                raise _unreadable(path, error) from error
            found.append(_recording(match, path, content))
    return found


def _from_zip(path: Path) -> list[Recording]:
    found = []
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = PurePosixPath(member.filename)
                match = _NAME.fullmatch(name.name)
                if match and name.parent.name == "recordings":
                    _check_size(path / name, member.file_size)
                    _check_password(path, member)
                    found.append(_recording(match, path / name, archive.read(member)))
    except ConfigurationError:
        raise
    except Exception as error:  # each way to compress has an error of its own for damaged bytes
        raise ConfigurationError(
            f"The archive {str(path)!r} is truncated, damaged or no zip: {_reason(error)}."
        ) from error
    return found


def _check_size(path: Path, num_bytes: int) -> None:
    if num_bytes > _MOST_BYTES:
        raise ConfigurationError(
            f"The recording '{path}' must be one spoken digit of at most {_MOST_BYTES:,} bytes, "
            f"but has {num_bytes:,}."
        )


def _check_password(path: Path, member: zipfile.ZipInfo) -> None:
    if member.flag_bits & 1:
        raise ConfigurationError(
            f"The archive {str(path)!r} must be a zip without a password, "
            f"but {member.filename!r} in it needs one."
        )


def _reason(error: Exception) -> str:
    """Return what an error says; where a file ends too early, `wave` says nothing."""
    return getattr(error, "strerror", None) or str(error) or "it ends too early"


def _unreadable(path: Path, error: Exception) -> ConfigurationError:
    return ConfigurationError(f"The recording '{path}' cannot be read: {_reason(error)}.")


def _recording(match: re.Match[str], path: Path, content: bytes) -> Recording:
    return Recording(int(match[1]), match[2], int(match[3]), _decode(path, content))


def _decode(path: Path, content: bytes) -> Array:
    try:
        with wave.open(io.BytesIO(content)) as file:
            form = (file.getnchannels(), file.getsampwidth() * 8, file.getframerate())
            expected = file.getnframes()
            frames = file.readframes(expected)
    except (wave.Error, EOFError, RuntimeError) as error:
        raise _unreadable(path, error) from error
    if form != (1, 16, SAMPLE_RATE):
        raise ConfigurationError(
            f"The recording '{path}' must have 1 channel, 16 bits and {SAMPLE_RATE} Hz, "
            f"but has {form[0]}, {form[1]} and {form[2]}."
        )
    if len(frames) != 2 * expected or not expected:
        raise ConfigurationError(
            f"The recording '{path}' is truncated: its header says {expected} samples, "
            f"but it has {len(frames) // 2}."
        )
    return np.frombuffer(frames, "<i2").astype(np.float32) / 32768.0


def to_waveforms(recordings: list[Recording], seconds: float) -> Array:
    """Bring recordings to equal power and length.

    Speakers differ by a factor of 16 in loudness, so that the level alone would tell who speaks.

    Args:
        recordings: The recordings.
        seconds: Length; longer ones lose both ends equally, shorter ones are surrounded by silence.

    Returns:
        Waveforms of power 1 before padding, shape ``(N, seconds * SAMPLE_RATE)``.
    """
    length = round(seconds * SAMPLE_RATE)
    waveforms = np.zeros((len(recordings), length), np.float32)
    for row, recording in zip(waveforms, recordings, strict=True):
        power = np.sqrt(np.square(recording.samples, dtype=np.float64).mean())
        samples = recording.samples / max(power, _QUIETEST)
        cut = max(len(samples) - length, 0) // 2
        samples = samples[cut : cut + length]
        start = (length - len(samples)) // 2
        row[start : start + len(samples)] = samples
    return waveforms


def log_mel(waveforms: Array, num_bands: int) -> Array:
    """Return logarithms of the power in mel bands, one frame every 10 ms.

    Args:
        waveforms: Sound, shape ``(N, T)``.
        num_bands: Number of mel bands.

    Returns:
        Shape ``(N, num_bands, T // 80 + 1)``.
    """
    melspectrogram = _extras.librosa().feature.melspectrogram
    options = {"sr": SAMPLE_RATE, "n_fft": _WINDOW, "hop_length": _HOP, "n_mels": num_bands}
    chunks = (waveforms[i : i + _CHUNK] for i in range(0, len(waveforms), _CHUNK))
    powers = np.concatenate([melspectrogram(y=chunk, **options) for chunk in chunks])
    logarithms: Array = np.log(powers + np.float32(_QUIETEST))
    return logarithms


def mfcc(log_powers: Array, num_coefficients: int) -> Array:
    """Return mel-frequency cepstral coefficients: an orthonormal cosine transform over the bands.

    Args:
        log_powers: Logarithmic mel powers, shape ``(N, bands, frames)``.
        num_coefficients: How many coefficients are kept, the first ones.

    Returns:
        Shape ``(N, num_coefficients, frames)``.
    """
    coefficients: Array = _extras.librosa().feature.mfcc(S=log_powers, n_mfcc=num_coefficients)
    return coefficients
