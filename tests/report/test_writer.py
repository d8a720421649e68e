from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lightning_depth.errors import ConfigurationError
from lightning_depth.report import write_report
from tests.report.fake_study import ARMS, HOSTILE, rename_arms, write_study


class Reader(HTMLParser):
    """Collects what a browser would see: tags with attributes, text, and text alternatives."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page in which every text from outside tries to be markup, and runs have failed."""
    folder = tmp_path_factory.mktemp("hostile")
    result = write_study(
        folder,
        failed=[("plain-20", 0)],
        not_finite=[("plain-56", seed) for seed in range(3)],
        text=HOSTILE,
    )
    result = replace(rename_arms(result, HOSTILE), notes=[f"A note.{HOSTILE}"])
    return write_report(result, folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("plain")
    return write_report(write_study(folder), folder / "report.html").read_text(encoding="utf-8")


def test_text_from_outside_never_becomes_markup(hostile: str) -> None:
    page = Reader(hostile)
    assert not page.of("script")
    assert not [name for _, own in page.tags for name in own if name.startswith("on")]
    allowed = {"href", "xlink:href"}
    links = [own[name] for _, own in page.tags for name in allowed & own.keys()]
    assert all(link.startswith(("#", "data:image/png")) for link in links)


@pytest.mark.parametrize(
    "place",
    [
        "Study degradation",
        "do shortcuts mend it?",
        "training error than plain-20",
        "plain-20, seed 0: RuntimeError: The loss of batch 3 is not finite.",
        'File "train.py", line 3',
        "degradation --workers 2",
        "lightning-depth 0.1.0",
        "Linux",
        "A note.",
    ],
)
def test_text_from_outside_is_shown_as_it_is(hostile: str, place: str) -> None:
    if "plain-20, seed" in place:
        place = place.replace("plain-20", f"plain-20{HOSTILE}")
    assert f"{place}{HOSTILE}" in Reader(hostile).text


def test_text_alternatives_are_escaped(hostile: str) -> None:
    labels = [own.get("aria-label", "") for own in Reader(hostile).of("svg")]
    assert any(f"residual-56{HOSTILE}" in label for label in labels)


def test_page_needs_nothing_else(plain: str) -> None:
    page = Reader(plain)
    assert not page.of("link")
    assert not page.of("script")
    assert not page.of("img")
    assert not re.search(r"url\((?!#)|@import", plain)
    assert set(re.findall(r"https?://[^\s\"<]+", plain)) <= {
        "http://www.w3.org/1999/xlink",  # names of the languages, which no browser opens
        "http://www.w3.org/2000/svg",
    }


def test_page_answers_in_the_order_of_the_questions(plain: str) -> None:
    text = Reader(plain).text
    places = [
        "Does a deeper plain network train worse",
        "Of 2 claims: 1 supported and 1 contradicted.",
        "Arms",
        "Error by epoch",
        "Gradient flow by depth and step",
        "Separability of the classes by depth",
        "What the callbacks found",
        "What was run",
    ]
    found = [text.index(place, text.index("Study degradation")) for place in places]
    assert found == sorted(found)


def test_every_picture_has_a_text_alternative(plain: str) -> None:
    pictures = [own for own in Reader(plain).of("svg") if own.get("aria-hidden") != "true"]
    # errors 2, gradient maps 4 and their scale, separability 3 measures twice, claims 2
    assert len(pictures) == 2 + 5 + 6 + 2
    assert all(own["role"] == "img" and len(own["aria-label"]) > 20 for own in pictures)


def test_ids_are_unique_and_references_resolve(plain: str) -> None:
    ids = [own["id"] for _, own in Reader(plain).tags if "id" in own]
    assert len(ids) == len(set(ids))
    wanted = re.findall(r'(?:href="#|url\(#|aria-labelledby=")([^")]+)', plain)
    assert set(wanted) <= set(ids)


def test_numbers_of_the_table_are_those_of_the_study(plain: str, tmp_path: Path) -> None:
    row = write_study(tmp_path).table[0]
    told = f"{100 * row['train_error']:.1f} %"
    low, high = (100 * row[f"train_error_{end}"] for end in ("low", "high"))
    assert f"{told} {low:.1f} % to {high:.1f} %" in Reader(plain).text.replace("  ", " ")


def test_page_says_what_was_run(plain: str) -> None:
    text = Reader(plain).text
    for fact in (
        "lightning-depth study degradation --workers 2",
        "12: 4 arms, seeds 0, 1 and 2",
        "Linux, x86_64, 2 CPUs",
        "cpu, 1 thread a run",
        "2 min 2 s",
        "python 3.12.3",
        "class_path: torch.optim.SGD",
    ):
        assert fact in text


def test_findings_stand_with_their_arm(plain: str) -> None:
    text = Reader(plain).text
    finding = text[text.index("What the callbacks found") :]
    assert re.search(
        r"plain-20 +Nothing\. +plain-56 +Vanishing +warning, in 3 of 3 runs, here seed 0, "
        r"since step 12, blocks\.0, blocks\.1 … blocks\.8 \(9 layers\)",
        finding,
    )


def test_failed_and_diverged_runs_are_said(hostile: str) -> None:
    text = Reader(hostile).text
    assert "1 of 12 runs failed and are left out." in text
    assert "2 (1 failed)" in text
    assert "not finite" in text
    assert f"Not drawn, as no number is finite: plain-56{HOSTILE}." in text


def test_one_seed_and_no_claim(tmp_path: Path) -> None:
    result = write_study(tmp_path, ["only"], [0], with_claims=False)
    text = Reader(write_report(result, tmp_path / "report.html").read_text("utf-8")).text
    assert "This study states no claim; the table and the figures show what was measured." in text
    assert "in the one run" not in text  # the first arm of the fixture has no finding


def test_study_in_which_every_run_failed(tmp_path: Path) -> None:
    arms = list(ARMS[:2])
    result = write_study(tmp_path, arms, [0, 1], failed=[(arm, s) for arm in arms for s in (0, 1)])
    text = Reader(write_report(result, tmp_path / "report.html").read_text("utf-8")).text
    assert "Nothing can be concluded from this study. 4 of 4 runs failed and are left out." in text
    assert text.count("No run finished.") == 2
    assert "Error by epoch" not in text


def test_trial_without_callbacks_is_shown_by_its_errors(tmp_path: Path) -> None:
    result = write_study(tmp_path)
    result = replace(result, trials=[trial | {"callbacks": {}} for trial in result.trials])
    text = Reader(write_report(result, tmp_path / "report.html").read_text("utf-8")).text
    assert "Error by epoch" in text
    assert "Gradient flow" not in text


def test_same_study_gives_the_same_file(tmp_path: Path) -> None:
    result = write_study(tmp_path)
    pages = [write_report(result, tmp_path / name).read_bytes() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]


def test_twelve_trials_fit_into_two_megabytes(plain: str) -> None:
    assert len(plain.encode()) < 2_000_000


def test_folder_is_made_and_nothing_else_is_left(tmp_path: Path) -> None:
    result = write_study(tmp_path / "study", ["only"], [0])
    path = write_report(result, tmp_path / "new" / "report.html")
    assert path == tmp_path / "new" / "report.html"
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]


def test_old_report_survives_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = write_study(tmp_path / "study", ["only"], [0])
    target = tmp_path / "report.html"
    target.write_text("old", encoding="utf-8")

    def refuse(path: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="No space left on device"):
        write_report(result, target)
    assert target.read_text(encoding="utf-8") == "old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["report.html", "study"]


def test_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    result = write_study(tmp_path / "study", ["only"], [0])
    sentence = f"`path` must be a file, for example report.html, but got {str(tmp_path)!r}."
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        write_report(result, tmp_path)


def test_settings_of_the_user_neither_matter_nor_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    result = write_study(tmp_path / "study", ["only"], [0])
    page = write_report(result, tmp_path / "report.html").read_bytes()
    for name, value in {"font.size": 33.0, "axes.grid": False, "text.usetex": True}.items():
        monkeypatch.setitem(matplotlib.rcParams, name, value)
    before = dict(matplotlib.rcParams)
    assert write_report(result, tmp_path / "report.html").read_bytes() == page
    assert dict(matplotlib.rcParams) == before


def test_report_leaves_pyplot_alone(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from lightning_depth.report import write_report;"
        "from tests.report.fake_study import write_study;"
        f"write_report(write_study(Path({str(tmp_path)!r}), ['only'], [0]), 'report.html');"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=_with(root), check=False)
    assert run.returncode == 0


def _with(root: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(root)}
