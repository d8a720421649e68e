"""A recipe is read whole and checked whole; each refusal says where and what."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_depth.errors import ConfigurationError
from lightning_depth.study import Study
from lightning_depth.study.plan import make_plan

Write = Callable[[Any], Path]


def _refused(path: str | Path, sentence: str, read: Callable[[Any], Any] = Study.from_yaml) -> None:
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        read(path)


def test_defaults_are_filled_in() -> None:
    arm = {"network": {"block": "plain", "hidden_layers": 1, "width": 8}}
    study = Study.from_dict({"name": "one", "epochs": 2, "arms": {"a": arm}})
    assert study.seeds == (0, 1, 2)
    assert study.threads == 1
    assert study.data == {"name": "digits"}
    assert list(study.callbacks) == [
        "GradientFlowMonitor",
        "LayerSeparabilityProbe",
        "TrainingErrorMonitor",
    ]


def test_content_round_trips(tiny: dict[str, Any]) -> None:
    study = Study.from_dict(tiny)
    assert Study.from_dict(study.to_dict()) == study


def test_name_is_the_file_s_when_none_is_given(tiny: dict[str, Any], written: Write) -> None:
    del tiny["name"]
    assert Study.from_yaml(written(tiny)).name == "recipe"


def test_claim_gets_its_words(tiny: dict[str, Any]) -> None:
    tiny["claims"].append({"kind": "faster", "arm": "thin", "than": "deep"})
    words = [claim.text for claim in Study.from_dict(tiny).claims]
    assert words == ["deep has a higher training error than thin", "thin is faster than deep"]


def test_exponent_without_a_point_is_a_number(written: Write) -> None:
    text = (
        "epochs: 1\n"
        "optimizer: {class_path: SGD, init_args: {lr: 1e-3}}\n"
        "arms: {a: {network: {block: plain, hidden_layers: 1, width: 8}}}\n"
    )
    assert Study.from_yaml(written(text)).optimizer["init_args"]["lr"] == 0.001


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"epochs": 2}, id="epochs"),
        pytest.param({"seeds": [0, 2]}, id="seeds"),
        pytest.param({"threads": 2}, id="threads"),
        pytest.param({"data": "digits"}, id="data"),
        pytest.param({"scheduler": {"class_path": "StepLR"}}, id="scheduler"),
        pytest.param({"callbacks": []}, id="callbacks"),
    ],
)
def test_hash_changes_with_what_is_trained(tiny: dict[str, Any], change: dict[str, Any]) -> None:
    assert Study.from_dict(tiny | change).hash != Study.from_dict(tiny).hash


def test_hash_does_not_change_with_words_and_order(tiny: dict[str, Any]) -> None:
    before = Study.from_dict(tiny).hash
    tiny |= {"question": "Otherwise?", "claims": []}
    assert Study.from_dict(dict(reversed(tiny.items()))).hash == before


def _changed(tiny: dict[str, Any], keys: str, value: Any) -> dict[str, Any]:
    *way, last = keys.split(".")
    inner: Any = tiny
    for key in way:
        inner = inner[int(key) if key.isdecimal() else key]
    inner[last] = value
    return tiny


COUNT = "must be a whole number of at least 1, but got"
LIGHT_REFUSALS = {
    "misspelt key": (
        "epoch",
        8,
        "Unknown key 'epoch'. Did you mean 'epochs'? Known: epochs, arms, callbacks, claims, data, "
        "name, optimizer, question, scheduler, seeds, threads.",
        "",
    ),
    "misspelt key in an arm": (
        "arms.deep.netwrok",
        {},
        "Unknown key 'netwrok'. Did you mean 'network'? Known: network, match.",
        "arms.deep",
    ),
    "misspelt key in a network": (
        "arms.deep.network.widht",
        4,
        "Unknown key 'widht'. Did you mean 'width'? Known: width, stem_width, block, "
        "block_options, depth, hidden_layers, stem.",
        "arms.deep.network",
    ),
    "width of zero": ("arms.deep.network.width", 0, f"`width` {COUNT} 0.", None),
    "negative width": ("arms.deep.network.width", -3, f"`width` {COUNT} -3.", None),
    "width that is no number": (
        "arms.deep.network.width",
        "wide",
        f"`width` {COUNT} 'wide'.",
        None,
    ),
    "epochs of zero": ("epochs", 0, f"`epochs` {COUNT} 0.", None),
    "negative epochs": ("epochs", -1, f"`epochs` {COUNT} -1.", None),
    "epochs that are no number": ("epochs", "eight", f"`epochs` {COUNT} 'eight'.", None),
    "epochs that are a bool": ("epochs", True, f"`epochs` {COUNT} True.", None),
    "misspelt arm in a claim": (
        "claims.0.arm",
        "dep",
        "Unknown arm 'dep'. Did you mean 'deep'? Known: deep, thin.",
        None,
    ),
    "misspelt other arm in a claim": (
        "claims.0.than",
        "thn",
        "Unknown arm 'thn'. Did you mean 'thin'? Known: thin, deep.",
        None,
    ),
    "arm against itself": (
        "claims.0.than",
        "deep",
        "An arm is compared with another, not with itself: 'deep'.",
        None,
    ),
    "misspelt metric": (
        "claims.0.metric",
        "train_eror",
        "Unknown metric 'train_eror'. Did you mean 'train_error'? Known: train_error, train_loss, "
        "val_error, val_loss.",
        None,
    ),
    "misspelt kind of claim": (
        "claims.0.kind",
        "fastr",
        "`kind` must be one of 'comparison', 'faster', but got 'fastr'. Did you mean 'faster'?",
        None,
    ),
    "misspelt direction": (
        "claims.0.direction",
        "hihger",
        "`direction` must be one of 'higher', 'lower', but got 'hihger'. Did you mean 'higher'?",
        None,
    ),
    "negative margin": (
        "claims.0.margin",
        -1,
        "`margin` must be a finite number of at least 0, but got -1.",
        None,
    ),
    "no seeds": (
        "seeds",
        [],
        "`seeds` must be a list of different whole numbers, but got [].",
        None,
    ),
    "a seed twice": (
        "seeds",
        [1, 1],
        "`seeds` must be a list of different whole numbers, but got [1, 1].",
        None,
    ),
    "one number as seeds": ("seeds", 3, "`seeds` must be a list, but got 3.", None),
    "negative seed": (
        "seeds",
        [-1],
        "`seeds` must be a whole number of at least 0, but got -1.",
        None,
    ),
    "no arms": ("arms", {}, "A study needs at least one arm, but there is none.", None),
    "arms as a list": (
        "arms",
        ["deep"],
        "`arms` must be a mapping of names to values, but got ['deep'].",
        None,
    ),
    "empty block": (
        "arms.deep.network.block",
        "",
        "`block` must be a text that is not empty, but got ''.",
        None,
    ),
    "network without a size": (
        "arms.deep.network",
        {"block": "plain", "width": 4},
        "A network needs either 'depth' (convolutional) or 'hidden_layers' (MLP).",
        None,
    ),
    "network with a stem and no depth": (
        "arms.deep.network.stem",
        "cifar",
        "'stem' belongs to a network with 'depth', not to an MLP.",
        "arms.deep.network",
    ),
    "network without a width": (
        "arms.deep.network",
        {"block": "plain", "hidden_layers": 4},
        "The key 'width' is missing; give it, or `match` an arm.",
        None,
    ),
    "width given and matched": (
        "arms.deep.match",
        {"arm": "thin"},
        "The width is set by `match`, so it cannot be given here.",
        "arms.deep.network",
    ),
    "name that is a path": (
        "name",
        "../up",
        "A name holds letters, digits, '.', '_' and '-' only, since it names the output folder, "
        "but got '../up'.",
        None,
    ),
    "missing key": (
        "data",
        {"batch_size": 3},
        "The key 'name' is missing. Known: name, batch_size.",
        None,
    ),
}


@pytest.mark.parametrize(
    ("keys", "value", "sentence", "place"), LIGHT_REFUSALS.values(), ids=LIGHT_REFUSALS.keys()
)
def test_refusal_names_file_and_key(
    tiny: dict[str, Any], written: Write, keys: str, value: Any, sentence: str, place: str | None
) -> None:
    path = written(_changed(tiny, keys, value))
    where = ", ".join(part for part in (str(path), keys if place is None else place) if part)
    _refused(path, f"{where}: {sentence}")


def _arms(**matches: str | None) -> dict[str, Any]:
    return {
        name: {"network": {"block": "plain", "hidden_layers": 1} | ({} if other else {"width": 4})}
        | ({"match": {"arm": other}} if other else {})
        for name, other in matches.items()
    }


def test_match_in_a_circle_is_refused(tiny: dict[str, Any], written: Write) -> None:
    path = written(tiny | {"arms": _arms(a="b", b="c", c="a"), "claims": []})
    _refused(
        path,
        f"{path}, arms.a.match.arm: `match` goes in a circle: a -> b -> c -> a. "
        "One arm needs a width.",
    )


def test_match_with_itself_is_refused(tiny: dict[str, Any], written: Write) -> None:
    path = written(tiny | {"arms": _arms(a="a"), "claims": []})
    _refused(
        path,
        f"{path}, arms.a.match.arm: `match` goes in a circle: a -> a. One arm needs a width.",
    )


def test_misspelt_arm_in_match_is_refused(tiny: dict[str, Any], written: Write) -> None:
    path = written(tiny | {"arms": _arms(deep=None, wide="dep"), "claims": []})
    _refused(
        path,
        f"{path}, arms.wide.match.arm: Unknown arm 'dep'. Did you mean 'deep'? Known: deep, wide.",
    )


def test_misspelt_budget_in_match_is_refused(tiny: dict[str, Any], written: Write) -> None:
    arms = _arms(deep=None, wide="deep")
    arms["wide"]["match"]["by"] = "parms"
    path = written(tiny | {"arms": arms, "claims": []})
    _refused(
        path,
        f"{path}, arms.wide.match.by: `by` must be one of 'params', 'multiply_adds', "
        "'activation_bytes', but got 'parms'. Did you mean 'params'?",
    )


def test_count_bias_must_be_a_bool(tiny: dict[str, Any], written: Write) -> None:
    arms = _arms(deep=None, wide="deep")
    arms["wide"]["match"]["count_bias"] = "no way"
    path = written(tiny | {"arms": arms, "claims": []})
    _refused(
        path,
        f"{path}, arms.wide.match.count_bias: `count_bias` must be true or false, "
        "but got 'no way'.",
    )


# Files that are no recipes.


def test_empty_file_is_refused(written: Write) -> None:
    path = written("# nothing but a comment\n")
    _refused(path, f"{path}: The recipe is empty.")


def test_directory_is_refused(tmp_path: Path) -> None:
    _refused(tmp_path, f"{tmp_path}: A recipe must be a file, but this is a directory.")


def test_text_that_is_no_mapping_is_refused(written: Write) -> None:
    path = written("just words")
    _refused(path, f"{path}: `recipe` must be a mapping of names to values, but got 'just words'.")


def test_file_that_is_not_yaml_is_refused(written: Write) -> None:
    path = written("arms: [1, 2\nepochs: }")
    _refused(
        path,
        f"{path}: This is not a YAML recipe: expected ',' or ']', but got ':' (line 2).",
    )


def test_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    _refused(path, f"{path}: A recipe must be UTF-8 text, but this is not.")


def test_control_characters_are_refused(written: Write) -> None:
    path = written("a: \x07")
    with pytest.raises(ConfigurationError, match=r"This is not a YAML recipe: unacceptable char"):
        Study.from_yaml(path)


def test_python_tag_is_refused_and_never_executed(written: Write, tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    path = written(f"arms: !!python/object/apply:os.mkdir ['{trap}']\n")
    _refused(
        path,
        f"{path}: This is not a YAML recipe: the tag "
        "'tag:yaml.org,2002:python/object/apply:os.mkdir' is not allowed, since a recipe is data "
        "and runs nothing (line 1).",
    )
    assert not trap.exists()


def test_key_given_twice_is_refused(written: Write) -> None:
    path = written("epochs: 1\nepochs: 2\n")
    _refused(path, f"{path}: This is not a YAML recipe: the key 'epochs' is given twice (line 2).")


@pytest.mark.parametrize(
    ("value", "got"),
    [(".nan", "nan"), ("-.inf", "-inf"), ("2020-01-01", "datetime.date(2020, 1, 1)")],
)
def test_value_that_is_no_plain_data_is_refused_with_its_key(
    written: Write, value: str, got: str
) -> None:
    path = written(f"arms: {{a: {{network: {{width: {value}}}}}}}\n")
    _refused(
        path,
        f"{path}, arms.a.network.width: `width` must be a text, a finite number, a bool, a list "
        f"or a mapping, but got {got}.",
    )


def test_aliases_of_aliases_are_refused(written: Write) -> None:
    rows = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    path = written("\n".join(["a0: &a0 [1]", *rows]))
    _refused(path, f"{path}: A recipe holds at most 100,000 values.")


def test_anchor_that_holds_itself_is_refused(written: Write) -> None:
    path = written("arms: &a [*a]\n")
    _refused(
        path,
        f"{path}: The recipe is nested too deeply.",
    )


def test_missing_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").touch()
    path = tmp_path / "mime.yaml"
    _refused(
        path,
        f"There is no recipe file {str(path)!r}. Did you mean {str(tmp_path / 'mine.yaml')!r}?",
    )


def test_misspelt_recipe_is_refused() -> None:
    _refused(
        "degradatoin",
        "Unknown recipe 'degradatoin'. Did you mean 'degradation'? "
        "Known: degradation, deep_vs_wide.",
    )


# What a recipe names must exist; found by building every part once.

DEEP_REFUSALS = {
    "misspelt block": (
        "arms.deep.network.block",
        "plian",
        r"arms.deep.network.block: Unknown block 'plian'. Did you mean 'plain'\? Known: plain, .*",
    ),
    "misspelt data set": (
        "data.name",
        "digit",
        r"data.name: Unknown data set 'digit'. Did you mean 'digits'\? Known: digits.*",
    ),
    "misspelt option of the data set": (
        "data.batchsize",
        3,
        r"data: Unknown option of data set 'digits': 'batchsize'. Did you mean 'batch_size'\? .*",
    ),
    "misspelt callback": (
        "callbacks",
        ["TrainingErorMonitor"],
        r"callbacks: Unknown callback 'TrainingErorMonitor'. Did you mean "
        r"'TrainingErrorMonitor'\? .*",
    ),
    "misspelt option of a callback": (
        "callbacks",
        {"TrainingErrorMonitor": {"max_sample": 3}},
        r"callbacks.TrainingErrorMonitor: Unknown key 'max_sample'. Did you mean "
        r"'max_samples'\? .*",
    ),
    "misspelt optimizer": (
        "optimizer.class_path",
        "SDG",
        r"optimizer: Unknown optimizer 'SDG'. Did you mean 'SGD'\? .*",
    ),
    "function as optimizer": (
        "optimizer.class_path",
        "os.system",
        r"optimizer: The optimizer 'os.system' is no subclass of Optimizer.",
    ),
    "misspelt scheduler": (
        "scheduler",
        {"class_path": "StepLr"},
        r"scheduler: Unknown scheduler 'StepLr'. Did you mean 'StepLR'\? .*",
    ),
    "depth that the family lacks": (
        "arms.deep.network",
        {"block": "plain", "depth": 57, "width": 4},
        r"arms.deep.network.depth: `depth` of a plain net must be 6n\+2, but got 57. "
        r"The nearest are 56 and 62.",
    ),
    "unknown option of a block": (
        "arms.deep.network.block_options",
        {"nrom": "batchnorm"},
        r"arms.deep.network.*: .*nrom.*Did you mean 'norm'\?.*",
    ),
    "class that is no network": (
        "arms.deep.network",
        {"class_path": "os.system"},
        r"arms.deep.network.class_path: `class_path` must name a subclass of "
        r"torch.nn.modules.module.Module, but got 'os.system'.",
    ),
    "module that is not there": (
        "arms.deep.network",
        {"class_path": "no_such_module.Net"},
        r"arms.deep.network.class_path: 'no_such_module.Net' cannot be imported: No module named "
        r"'no_such_module'. A class of your own is found when its folder is on PYTHONPATH.",
    ),
    "misspelt class": (
        "arms.deep.network",
        {"class_path": "torch.nn.Linaer"},
        r"arms.deep.network.class_path: Module 'torch.nn' has no class 'Linaer'. "
        r"Did you mean 'Linear'\?",
    ),
    "misspelt argument of a class": (
        "arms.deep.network",
        {"class_path": "torch.nn.Linear", "init_args": {"in_feature": 1}},
        r"arms.deep.network.init_args: Unknown key 'in_feature'. Did you mean 'in_features'\? .*",
    ),
    "missing argument of a class": (
        "arms.deep.network",
        {"class_path": "torch.nn.Linear", "init_args": {"in_features": 1}},
        r"arms.deep.network.init_args: TypeError: .*missing 1 required positional argument: "
        r"'out_features'",
    ),
}


@pytest.mark.parametrize(
    ("keys", "value", "pattern"), DEEP_REFUSALS.values(), ids=DEEP_REFUSALS.keys()
)
def test_what_a_recipe_names_must_exist(
    tiny: dict[str, Any], written: Write, keys: str, value: Any, pattern: str
) -> None:
    path = written(_changed(tiny, keys, value))
    with pytest.raises(ConfigurationError, match=f"^{re.escape(str(path))}, {pattern}$"):
        make_plan(Study.from_yaml(path))


def test_misspelt_block_of_a_matched_arm_is_named_as_such(
    tiny: dict[str, Any], written: Write
) -> None:
    arms = _arms(deep=None, wide="deep")
    arms["wide"]["network"]["block"] = "plian"
    path = written(tiny | {"arms": arms, "claims": []})
    pattern = f"^{re.escape(str(path))}, arms.wide.network.block: Unknown block 'plian'."
    with pytest.raises(ConfigurationError, match=pattern):
        make_plan(Study.from_yaml(path))


def test_match_that_no_width_can_reach_is_refused(tiny: dict[str, Any], written: Write) -> None:
    arms = _arms(deep=None, wide="deep")
    arms["deep"]["network"]["width"] = 1
    arms["wide"]["network"]["hidden_layers"] = 30
    arms["wide"]["match"]["rounding"] = "floor"
    path = written(tiny | {"arms": arms, "claims": []})
    with pytest.raises(ConfigurationError, match=f"^{re.escape(str(path))}, arms.wide.match: "):
        make_plan(Study.from_yaml(path))


def test_reading_a_recipe_imports_no_torch(written: Write, tiny: dict[str, Any]) -> None:
    path = written(tiny)
    code = (
        f"import sys\nfrom lightning_depth.study import Study\nStudy.from_yaml({str(path)!r})\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


BLAMED = {
    "activation": (
        {"block": "residual", "hidden_layers": 2, "block_options": {"activation": "rleu"}},
        "block_options.activation: Unknown activation 'rleu'. Did you mean 'relu'?",
    ),
    "option": (
        {"block": "residual", "hidden_layers": 2, "block_options": {"activatoin": "relu"}},
        "block_options.activatoin: Unknown residual option 'activatoin'. Did you mean "
        "'activation'?",
    ),
    "shortcut": (
        {"block": "residual", "depth": 20, "block_options": {"shortcut": "D"}},
        "block_options.shortcut: `shortcut` must be one of 'A', 'B', 'C', but got 'D'.",
    ),
    "stem": (
        {"block": "residual", "depth": 20, "stem": "cifr"},
        "stem: `stem` must be one of 'cifar',",
    ),
    "depth": (
        {"block": "residual", "depth": 21},
        "depth: `depth` of a residual net must be 6n+2, but got 21. The nearest are 20 and 26.",
    ),
}


@pytest.mark.parametrize(("network", "sentence"), BLAMED.values(), ids=BLAMED)
def test_network_that_cannot_be_built_names_the_key_to_blame(
    tiny: dict[str, Any], network: dict[str, Any], sentence: str
) -> None:
    tiny |= {"arms": {"a": {"network": network | {"width": 8}}}, "claims": []}
    match = f"^recipe, arms.a.network.{re.escape(sentence)}"
    with pytest.raises(ConfigurationError, match=match):
        make_plan(Study.from_dict(tiny))


def test_callbacks_may_be_a_list_of_names_with_options(tiny: dict[str, Any]) -> None:
    tiny["callbacks"] = ["TrainingErrorMonitor", {"GradientFlowMonitor": {"every_n_steps": 5}}]
    assert Study.from_dict(tiny).callbacks == {
        "TrainingErrorMonitor": {},
        "GradientFlowMonitor": {"every_n_steps": 5},
    }


def test_callbacks_that_are_no_names_are_refused(tiny: dict[str, Any]) -> None:
    sentence = (
        "recipe, callbacks: `callbacks` must be a list of names, or of names with options, "
        "but got [3]."
    )
    _refused({**tiny, "callbacks": [3]}, sentence, Study.from_dict)


def test_seed_that_numpy_does_not_take_is_refused(tiny: dict[str, Any]) -> None:
    sentence = (
        "recipe, seeds: `seeds` must be whole numbers from 0 to 4294967295, but got 4294967296."
    )
    _refused({**tiny, "seeds": [2**32]}, sentence, Study.from_dict)
