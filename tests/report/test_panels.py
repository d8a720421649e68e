from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import combinations

import numpy as np
import pytest

from lightning_depth.report import _canvas, _panels
from lightning_depth.report._series import Grid, band

# Viénot, Brettel and Mollon (1999): what a protanope and a deuteranope see, in linear RGB.
BLINDNESS = {
    "normal": np.eye(3),
    "protan": np.array([[0.1121, 0.8853, -0.0005], [0.1127, 0.8897, -0.0001], [0.0045, 0, 1.0019]]),
    "deutan": np.array([[0.2920, 0.7054, -0.0003], [0.2934, 0.7089, 0], [-0.0210, 0.0256, 1.0]]),
}


def _linear(color: str) -> np.ndarray:
    value = np.array([int(color[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _lab(linear: np.ndarray) -> np.ndarray:
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = to_xyz @ np.clip(linear, 0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("kind", BLINDNESS)
def test_colors_of_neighbouring_arms_differ_for_every_eye(kind: str) -> None:
    seen = [_lab(BLINDNESS[kind] @ _linear(color)) for color in _canvas.ARMS[:4]]
    distances = [float(np.linalg.norm(a - b)) for a, b in combinations(seen, 2)]
    assert min(distances) > 12  # 2.3 is a just noticeable difference


@pytest.mark.parametrize("color", _canvas.ARMS)
def test_lines_stand_out_from_white_paper(color: str) -> None:
    luminance = float(np.array([0.2126, 0.7152, 0.0722]) @ _linear(color))
    assert 1.05 / (luminance + 0.05) >= 3  # WCAG 2.1, success criterion 1.4.11


def test_no_two_arms_look_alike() -> None:
    looks = _panels.styles([f"arm {number}" for number in range(28)])
    assert len({(style.color, str(style.dash)) for style in looks.values()}) == 28


def test_picture_is_well_formed_and_takes_its_colors_from_the_page() -> None:
    style = _panels.styles(["a"])["a"]
    line = _panels.Line(band([([1, 2], [0.5, 0.1]), ([1, 2], [0.6, 0.2])]), style)
    svg = _panels.lines([line], "epoch", str, y_limits=(0, 1))
    root = ET.fromstring(svg)
    assert root.attrib["viewBox"] == "0 0 440 262"
    assert "width" not in root.attrib
    assert "var(--arm-0)" in svg
    assert not re.findall(r"#[0-9a-f]{6}\b", svg)


def test_embedding_twice_keeps_ids_apart() -> None:
    grid = Grid(np.array([0.0, 5.0]), np.array([1.0, 2.0]), np.full((2, 2), 1e-3), 1)
    svg = _panels.gradient_map(grid, (1e-4, 1e-2))
    both = [set(re.findall(r'\bid="([^"]+)"', _canvas.embed(svg, key, "A map."))) for key in "ab"]
    assert both[0]
    assert not both[0] & both[1]


def test_embedded_label_is_escaped() -> None:
    assert 'aria-label="&quot;&gt;&lt;script&gt;"' in _canvas.embed("<svg/>", "a", '"><script>')


def test_gradient_of_zero_takes_the_lowest_color_and_nothing_stays_empty() -> None:
    def drawn(value: float) -> str:
        values = np.array([[value, 1e-3], [1e-4, 1e-2]])
        grid = Grid(np.array([0.0, 1.0]), np.array([1.0, 2.0]), values, 1)
        return _panels.gradient_map(grid, (1e-4, 1e-2))

    assert drawn(0.0) == drawn(1e-4)
    assert drawn(np.nan) not in (drawn(1e-4), drawn(1e-2))


def test_one_step_and_one_layer_make_a_map() -> None:
    grid = Grid(np.array([7.0]), np.array([1.0]), np.array([[1e-3]]), 1)
    assert ET.fromstring(_panels.gradient_map(grid, (1e-4, 1e-2))) is not None


def test_effect_without_spread_is_drawn() -> None:
    assert ET.fromstring(_panels.interval(0.0, 0.0, 0.0)) is not None
