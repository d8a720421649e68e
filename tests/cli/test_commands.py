"""The commands besides `study`: what they print, what they refuse, and that help is complete."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_depth.cli import main
from lightning_depth.cli._parser import make_parser
from lightning_depth.study import Study

Capture = pytest.CaptureFixture[str]


def _commands() -> dict[str, argparse.ArgumentParser]:
    (choices,) = (
        action.choices
        for action in make_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    return dict(choices)


@pytest.mark.parametrize("name", ["study", "report", "budget", "inspect", "recipes"])
def test_help_explains_every_option_and_its_default(name: str) -> None:
    for action in _commands()[name]._actions:
        assert action.help, action.dest
        if action.option_strings and action.dest != "help" and not action.required:
            assert "default" in action.help, action.dest


def test_no_command_is_there_before_it_works() -> None:
    assert list(_commands()) == ["study", "report", "budget", "inspect", "recipes"]


def test_help_brings_in_nothing_heavy() -> None:
    code = (
        "import sys\nfrom lightning_depth.cli import main\n"
        "try:\n    main(['study', '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'rich', 'yaml', 'scipy', 'numpy', 'timm'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        pytest.param(
            ["studdy"],
            "Unknown COMMAND 'studdy'. Did you mean 'study'? "
            "Known: study, report, budget, inspect, recipes.",
            id="command",
        ),
        pytest.param(
            ["study", "x", "--workers", "0"],
            "argument --workers: must be a whole number of at least 1, but got '0'.",
            id="workers",
        ),
        pytest.param(
            ["inspect", "x", "--input", "3,big"],
            "argument --input: must be whole numbers of at least 1 with commas between, "
            "but got '3,big'.",
            id="shape",
        ),
    ],
)
def test_misused_words_are_told(words: list[str], sentence: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert capsys.readouterr().err.endswith(f"error: {sentence}\n")


def test_recipes_are_listed_with_their_questions(capsys: Capture) -> None:
    assert main(["recipes"]) == 0
    told = capsys.readouterr().out
    assert (
        "degradation   Does a deeper plain network train worse, and do shortcuts mend it?" in told
    )
    assert "deep_vs_wide  " in told


def test_recipe_is_copied_to_edit_and_never_over_a_file(capsys: Capture) -> None:
    assert main(["recipes", "degradation"]) == 0
    assert Study.from_yaml("degradation.yaml") == Study.from_yaml("degradation")
    assert main(["recipes", "degradation"]) == 2
    assert capsys.readouterr().err == (
        "lightning-depth: The file 'degradation.yaml' is there already; "
        "choose another with `--output`.\n"
    )
    assert main(["recipes", "degradation", "--output", "no/such.yaml"]) == 2
    assert capsys.readouterr().err == (
        "lightning-depth: The file 'no/such.yaml' cannot be written: No such file or directory.\n"
    )


def test_misspelt_recipe_to_copy_is_refused(capsys: Capture) -> None:
    assert main(["recipes", "degradashun"]) == 2
    assert capsys.readouterr().err == (
        "lightning-depth: Unknown recipe 'degradashun'. Did you mean 'degradation'? "
        "Known: degradation, deep_vs_wide.\n"
    )


@pytest.mark.parametrize(
    ("layers", "options", "width"),
    [
        pytest.param(5, ["--no-bias"], 3772, id="5 layers, weights only, nearest"),
        pytest.param(7, ["--no-bias"], 4634, id="7 layers, weights only, nearest"),
        pytest.param(5, ["--rounding", "floor"], 3772, id="5 layers, with biases, floor"),
        pytest.param(7, ["--rounding", "floor"], 4634, id="7 layers, with biases, floor"),
        pytest.param(5, [], 3772, id="5 layers, with biases, nearest"),
        pytest.param(7, [], 4635, id="7 layers, with biases, nearest"),
    ],
)
def test_budget_finds_the_widths_of_the_speech_table(
    layers: int, options: list[str], width: int, capsys: Capture
) -> None:
    like = f"plain:hidden_layers={layers},width=2048"
    words = ["budget", "plain:hidden_layers=1", "--like", like, "--input", "429"]
    assert main([*words, "--classes", "9304", *options]) == 0
    assert capsys.readouterr().out.startswith(f"width {width}: ")


def test_budget_prints_what_a_network_costs(capsys: Capture) -> None:
    assert main(["budget", "plain:depth=20,width=16", "--input", "3,32,32"]) == 0
    assert "269,722" in capsys.readouterr().out
    assert main(["budget", "resnet18", "--input", "3,224,224"]) == 0
    assert "11,689,512" in capsys.readouterr().out


def test_budget_takes_a_number_as_target(capsys: Capture) -> None:
    words = ["budget", "plain:hidden_layers=1", "--input", "64", "--target", "7510"]
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("width 100: 7,510 params against 7,510 wanted")


MODEL_REFUSALS = {
    "misspelt timm model": (
        ["budget", "resnit18", "--input", "3,32,32"],
        r"Unknown model 'resnit18'\. Did you mean 'resnet18'\? Known: resnet18, .*",
    ),
    "misspelt block": (
        ["budget", "plian:depth=20,width=16", "--input", "3,32,32"],
        r"Unknown block 'plian'\. Did you mean 'plain'\? Known: plain, .*",
    ),
    "no size": (
        ["budget", "plain:width=16", "--input", "3,32,32"],
        r"MODEL needs either depth \(convolutional\) or hidden_layers \(MLP\), as in "
        r"'plain:depth=20,width=16'\.",
    ),
    "no width": (
        ["budget", "plain:depth=20", "--input", "3,32,32"],
        r"MODEL needs a width, or give --like or --target to find one\.",
    ),
    "width that is no number": (
        ["budget", "plain:depth=20,width=wide", "--input", "3,32,32"],
        r"`width` must be a whole number of at least 1, but got 'wide'\.",
    ),
    "key without a value": (
        ["budget", "plain:depth=20,width=", "--input", "3,32,32"],
        r"`MODEL` must be block:key=value,key=value, but got 'depth=20,width='\.",
    ),
    "stem of an MLP": (
        ["budget", "plain:hidden_layers=2,width=4,stem=cifar", "--input", "8"],
        r"'stem' belongs to a network with depth, not to an MLP\.",
    ),
    "module that is not there": (
        ["budget", "no_module:Net", "--input", "8"],
        r"The module of 'no_module:Net' cannot be imported: No module named 'no_module'\.",
    ),
    "misspelt callable": (
        ["budget", "tests.study.nets:Smal", "--input", "1,8,8"],
        r"Module 'tests.study.nets' has no callable 'Smal'\. Did you mean 'Small'\?",
    ),
    "callable that returns no model": (
        ["budget", "builtins:dict", "--input", "8"],
        r"'builtins:dict' must return a torch.nn.Module, but returned dict\.",
    ),
    "width of a model that has none": (
        ["budget", "resnet18", "--input", "3,32,32", "--target", "1000"],
        r"'resnet18' has no width to search; write MODEL as a block with its options, as in "
        r"'plain:depth=20'\.",
    ),
}


@pytest.mark.parametrize(("words", "pattern"), MODEL_REFUSALS.values(), ids=MODEL_REFUSALS.keys())
def test_model_that_cannot_be_had_is_refused(
    words: list[str], pattern: str, capsys: Capture
) -> None:
    assert main(words) == 2
    assert re.fullmatch(f"lightning-depth: {pattern}\n", capsys.readouterr().err)


def test_model_of_the_current_folder_is_found(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("my_own_net.py").write_text("import torch\ndef build(): return torch.nn.Linear(64, 10)\n")
    assert main(["budget", "my_own_net:build", "--input", "64"]) == 0
    assert "650" in capsys.readouterr().out


def test_ctrl_c_is_status_130(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning_depth.cli.recipes.run", interrupt)
    assert main(["recipes"]) == 130
    assert capsys.readouterr().err == "lightning-depth: stopped.\n"
