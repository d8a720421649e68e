from __future__ import annotations

import pytest

from lightning_depth.report import _format
from lightning_depth.report._panels import power_of_ten, short


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (_format.percent(0.0213), "2.1\N{NO-BREAK SPACE}%"),
        (_format.percent(-0.018), "−1.8\N{NO-BREAK SPACE}%"),
        (_format.percent(None), "–"),
        (_format.percent(float("nan")), "–"),
        (_format.count(269722), "269,722"),
        (_format.short_count(40_813_184), "40.8 M"),
        (_format.short_count(999_960), "1 M"),
        (_format.short_count(12), "12"),
        (_format.scientific(0), "0"),
        (_format.scientific(0.0346), "0.035"),
        (_format.scientific(1234), "1234"),
        (_format.scientific(3.14e-7), "3.1·10⁻⁷"),
        (_format.scientific(-3.14e7), "−3.1·10⁷"),
        (_format.signed(81.04), "+81.0"),
        (_format.signed(-1.1), "−1.10"),
        (_format.signed(0.0012), "+0.0012"),
        (_format.signed(0.0), "+0.00"),
        (_format.signed(None), "–"),
        (_format.duration(0.00958), "9.6 ms"),
        (_format.duration(0.1234), "123 ms"),
        (_format.duration(59.6), "59.6 s"),
        (_format.duration(121.5), "2 min 2 s"),
        (_format.duration(7260), "2 h 1 min"),
        (_format.duration(None), "–"),
        (_format.moment("2026-11-21T03:00:00+00:00"), "2026-11-21 03:00 UTC"),
        (_format.moment("soon"), "soon"),
        (_format.join([]), ""),
        (_format.join(["a", "b", "c"]), "a, b and c"),
        (power_of_ten(1e-9), "10⁻⁹"),
        (power_of_ten(1e3), "10³"),
        (short(0.05), "0.05"),
        (short(1e-5), "10⁻⁵"),
        (short(2e-5), "2·10⁻⁵"),
        (short(-2), "−2"),
    ],
)
def test_numbers_read_well(written: str, expected: str) -> None:
    assert written == expected


@pytest.mark.parametrize("value", [True, "0.5", None, float("inf")])
def test_what_is_no_finite_number_is_none(value: object) -> None:
    assert not _format.is_number(value)
