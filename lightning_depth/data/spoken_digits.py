"""Spoken digits of six speakers, as log-mel bands, MFCC or waveform."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lightning_depth.data._files import data_folder
from lightning_depth.data._memory import InMemoryDataModule, Splits, TensorSamples
from lightning_depth.data._speech import (
    SAMPLE_RATE,
    Recording,
    log_mel,
    mfcc,
    read_recordings,
    to_waveforms,
)
from lightning_depth.errors import (
    ConfigurationError,
    check_choice,
    check_count,
    check_name,
    check_real,
)

__all__ = ["SpokenDigits"]

Features = Literal["log_mel", "mfcc", "waveform"]
_NUM_COEFFICIENTS = 13
_TEST_TAKES = range(5)
_NUM_VAL_TAKES = 5


class SpokenDigits(InMemoryDataModule):
    """3,000 spoken digits by six speakers, the Free Spoken Digit Dataset (CC BY-SA 4.0).

    Every recording is brought to the same loudness and length; features are normalised by the mean
    and the standard deviation of each band over the training recordings. Nothing is downloaded.

    Shape:
        - Batch: ``(B, 1, bands, frames)``, or ``(B, 1, samples)`` as waveform, and digits ``(B,)``;
          with `speaker_label` also speakers ``(B,)``, numbered in alphabetical order.

    Args:
        root: Folder that holds `recordings` or `fsdd_recordings.zip`, or a zip itself; None takes
            the environment variable `LIGHTNING_DEPTH_DATA`.
        features: `log_mel` (32 bands every 10 ms), `mfcc` (13 coefficients of them) or `waveform`
            (8,000 numbers a second).
        batch_size: Samples of one training step.
        split: `official` tests on takes 0 to 4 of every speaker and validates on five of the other
            takes; `speaker` tests on one speaker and validates on another.
        seed: Seed that draws the takes, or the speaker, that are kept for validation.
        val_speaker: Who is kept for validation where `split` is `speaker`; None draws one.
        test_speaker: Who is kept for testing where `split` is `speaker`.
        seconds: Length to which recordings are cut or padded.
        num_bands: Number of mel bands.
        speaker_label: Whether a batch also holds the speakers, a label that a good network forgets.

    Raises:
        ConfigurationError: An argument is out of bounds; on loading, a file is wrong or missing.
        MissingExtraError: librosa is not installed, and `features` is not `waveform`.

    Example:
        >>> SpokenDigits("somewhere", features="mfcc").input_shape
        (1, 13, 101)
    """

    num_classes = 10

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        features: Features = "log_mel",
        batch_size: int = 64,
        *,
        split: Literal["official", "speaker"] = "official",
        seed: int = 0,
        val_speaker: str | None = None,
        test_speaker: str = "theo",
        seconds: float = 1.0,
        num_bands: int = 32,
        speaker_label: bool = False,
    ) -> None:
        super().__init__(batch_size)
        self.root = root
        self.features = check_choice("features", features, ("log_mel", "mfcc", "waveform"))
        self.split = check_choice("split", split, ("official", "speaker"))
        self.seed = check_count("seed", seed, minimum=0)
        self.val_speaker = val_speaker
        self.test_speaker = test_speaker
        self.seconds = check_real("seconds", seconds, 0.1, 60.0)
        minimum = _NUM_COEFFICIENTS if features == "mfcc" else 1
        self.num_bands = check_count("num_bands", num_bands, minimum)
        self.speaker_label = speaker_label
        if split == "speaker" and val_speaker == test_speaker:
            raise ConfigurationError(
                f"`val_speaker` and `test_speaker` must differ, but both are {val_speaker!r}."
            )

    @property
    def input_shape(self) -> tuple[int, ...]:  # type: ignore[override]  # depends on the features
        """Shape of one sample."""
        if self.features == "waveform":
            return (1, round(self.seconds * SAMPLE_RATE))
        height = _NUM_COEFFICIENTS if self.features == "mfcc" else self.num_bands
        return (1, height, round(self.seconds * SAMPLE_RATE) // 80 + 1)

    def load(self) -> Splits:
        """Read the recordings, compute their features, split and normalise them."""
        root = data_folder("SpokenDigits", self.root)
        recordings = read_recordings(root)
        digit = torch.tensor([recording.digit for recording in recordings])
        parts = self._parts(recordings, root)
        self._check_parts(parts, digit, root)
        inputs = torch.from_numpy(self._features(recordings))
        mean, std = _statistics(inputs[parts == 0])
        inputs = ((inputs - mean) / std).float().unsqueeze(1)
        speakers = sorted({recording.speaker for recording in recordings})
        speaker = torch.tensor([speakers.index(recording.speaker) for recording in recordings])
        labels = [digit, speaker] if self.speaker_label else [digit]
        return Splits(
            *(
                TensorSamples(inputs[parts == part], *(label[parts == part] for label in labels))
                for part in range(3)
            )
        )

    def _features(self, recordings: list[Recording]) -> np.ndarray:
        waveforms = to_waveforms(recordings, self.seconds)
        if self.features == "waveform":
            return waveforms
        bands = log_mel(waveforms, self.num_bands)
        return bands if self.features == "log_mel" else mfcc(bands, _NUM_COEFFICIENTS)

    def _parts(self, recordings: list[Recording], root: Path) -> Tensor:
        """Return 0 for recordings to train on, 1 to validate on, 2 to test on."""
        draw = np.random.default_rng(self.seed).permutation
        if self.split == "speaker":
            known = sorted({recording.speaker for recording in recordings})
            if len(known) < 3:
                raise ConfigurationError(
                    f"The speaker split of SpokenDigits needs recordings of at least 3 speakers, "
                    f"but {str(root)!r} has only those of {', '.join(known)}."
                )
            test = check_name("speaker", self.test_speaker, known)
            drawn = str(draw([name for name in known if name != test])[0])
            val = check_name("speaker", self.val_speaker or drawn, known)
            chosen = [{val: 1, test: 2}.get(recording.speaker, 0) for recording in recordings]
        else:
            others = sorted({recording.take for recording in recordings} - set(_TEST_TAKES))
            takes = dict.fromkeys(_TEST_TAKES, 2)
            takes.update(dict.fromkeys(draw(others)[:_NUM_VAL_TAKES].tolist(), 1))
            chosen = [takes.get(recording.take, 0) for recording in recordings]
        return torch.tensor(chosen)

    def _check_parts(self, parts: Tensor, digits: Tensor, root: Path) -> None:
        """Refuse recordings that leave a digit out of a part: most likely, some are missing."""
        for part, use in enumerate(("train", "validate", "test")):
            missing = sorted(set(range(10)) - set(digits[parts == part].tolist()))
            if missing:
                raise ConfigurationError(
                    f"SpokenDigits must have every digit in every part of its {self.split} split, "
                    f"but of the {len(digits):,} recordings in {str(root)!r} none to {use} on "
                    f"says {', '.join(map(str, missing))}."
                )


def _statistics(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each band, or of all samples of a waveform."""
    axes = (0, 2) if inputs.ndim == 3 else (0, 1)
    std, mean = torch.std_mean(inputs.double(), axes, correction=0, keepdim=True)
    return mean, std.clamp_min(1e-8)
