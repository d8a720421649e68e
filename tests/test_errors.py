from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest

from lightning_depth import _extras
from lightning_depth.errors import (
    ConfigurationError,
    MissingExtraError,
    check_choice,
    check_count,
    check_divisible,
    check_name,
    check_real,
)

CASES: dict[str, tuple[Callable[[], object], str]] = {
    "misspelt name": (
        lambda: check_name("block", "resnit", ["plain", "residual"]),
        "Unknown block 'resnit'. Did you mean 'residual'? Known: residual, plain.",
    ),
    "unknown name, nothing near": (
        lambda: check_name("block", "zzz", ["plain", "residual"]),
        "Unknown block 'zzz'. Known: plain, residual.",
    ),
    "name that is no string": (
        lambda: check_name("block", 3, ["plain"]),
        "Unknown block 3. Known: plain.",
    ),
    "name where none is known": (
        lambda: check_name("block", "plain", []),
        "Unknown block 'plain'. Known: none.",
    ),
    "choice": (
        lambda: check_choice("by", "param", ["params", "multiply_adds"]),
        "`by` must be one of 'params', 'multiply_adds', but got 'param'. Did you mean 'params'?",
    ),
    "count zero": (
        lambda: check_count("width", 0),
        "`width` must be a whole number of at least 1, but got 0.",
    ),
    "count bool": (
        lambda: check_count("width", True),
        "`width` must be a whole number of at least 1, but got True.",
    ),
    "count fraction": (
        lambda: check_count("width", 2.0),
        "`width` must be a whole number of at least 1, but got 2.0.",
    ),
    "real nan": (
        lambda: check_real("lr", math.nan),
        "`lr` must be a finite number, but got nan.",
    ),
    "real bounds": (
        lambda: check_real("momentum", 1.5, 0.0, 1.0),
        "`momentum` must be a finite number of at least 0 and at most 1, but got 1.5.",
    ),
    "real exclusive bound": (
        lambda: check_real("lr", 0.0, 0.0, exclusive=True),
        "`lr` must be a finite number greater than 0, but got 0.0.",
    ),
    "divisible": (
        lambda: check_divisible("in_channels", 6, "groups", 4),
        "`in_channels` (=6) must be divisible by `groups` (=4).",
    ),
}


@pytest.mark.parametrize(("call", "sentence"), CASES.values(), ids=CASES.keys())
def test_refusal_is_one_full_sentence(call: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        call()


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.pyplot", None)
    monkeypatch.setattr(_extras, "available", lambda package: False)
    sentence = (
        "This needs matplotlib, which is not installed. "
        "Install it with `pip install lightning-depth[plot]`."
    )
    with pytest.raises(MissingExtraError, match=f"^{re.escape(sentence)}$"):
        _extras.pyplot()
