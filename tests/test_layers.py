"""Layers of any model: which, in what order, under which names, with which parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import timm
import torch
import torchmetrics
import torchvision
from omegaconf import ListConfig
from torch import nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel

from lightning_depth.errors import ConfigurationError
from lightning_depth.layers import (
    ExecutionRecorder,
    Layer,
    clean_name,
    is_compiled,
    layer_parameters,
    order_by_execution,
    select_layers,
)


def _names(model: nn.Module, role: str | None = None, **options: Any) -> list[str]:
    layers = select_layers(model, **options)
    return [layer.name for layer in layers if role in (None, layer.role)]


def _meta(build: Callable[..., nn.Module], *arguments: Any) -> nn.Module:
    with torch.device("meta"):
        return build(*arguments)


class Block(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.add(x, self.second(self.first(x).relu()))


class Opener(Block):
    pass


class Attention(nn.Module):
    """A transformer block as many write it: the two linear layers are in a Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.mixing = nn.Linear(4, 4)
        self.mlp = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))


class Stage(nn.Module):
    def __init__(self, num_blocks: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block() for _ in range(num_blocks)))
        self.downsample = nn.Linear(4, 4)


class Net(nn.Module):
    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def _tower() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Block(), Block(), nn.Linear(4, 2))


# The counts are those of design.md and of the papers: He 2015, Dosovitskiy 2020, Liu 2021, Simonyan
# 2014, Huang 2016, Sandler 2018, Tan 2019.
@pytest.mark.parametrize(
    ("name", "count", "first", "last"),
    [
        ("resnet18", 8, "layer1.0", "layer4.1"),
        ("resnet50", 16, "layer1.0", "layer4.2"),
        ("vit_tiny_patch16_224", 12, "blocks.0", "blocks.11"),
        ("swin_tiny_patch4_window7_224", 12, "layers.0.blocks.0", "layers.3.blocks.1"),
        ("vgg19", 16, "features.0", "features.34"),
        (
            *("densenet121", 58, "features.denseblock1.denselayer1"),
            "features.denseblock4.denselayer16",
        ),
        ("mobilenetv2_100", 17, "blocks.0.0", "blocks.6.0"),
        ("efficientnet_b0", 16, "blocks.0.0", "blocks.6.0"),
        ("convnext_tiny", 18, "stages.0.blocks.0", "stages.3.blocks.2"),
    ],
)
def test_blocks_of_timm_models(name: str, count: int, first: str, last: str) -> None:
    blocks = _names(_meta(timm.create_model, name), "block")
    assert (len(blocks), blocks[0], blocks[-1]) == (count, first, last)


@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet18", 8), ("vit_b_16", 12), ("densenet121", 58), ("convnext_tiny", 18)],
)
def test_blocks_of_torchvision_models(name: str, count: int) -> None:
    assert len(_names(_meta(getattr(torchvision.models, name)), "block")) == count


def test_what_precedes_and_follows_the_blocks_is_stem_and_head() -> None:
    model = _meta(timm.create_model, "vit_tiny_patch16_224")
    assert _names(model, "stem") == ["VisionTransformer", "patch_embed"]  # token and positions
    assert _names(model, "head") == ["norm", "head"]


def test_depth_counts_from_one_in_order() -> None:
    layers = select_layers(_tower())
    assert [(layer.name, layer.depth, layer.role) for layer in layers] == [
        ("0", 1, "stem"),
        ("2", 2, "block"),
        ("3", 3, "block"),
        ("4", 4, "head"),
    ]


def test_stage_that_holds_blocks_is_no_block() -> None:
    model = Net(stages=nn.Sequential(Stage(2), Stage(3)))
    assert _names(model, "block") == [
        *("stages.0.blocks.0", "stages.0.blocks.1"),
        *("stages.1.blocks.0", "stages.1.blocks.1", "stages.1.blocks.2"),
    ]


def test_block_whose_branch_is_a_sequential_stays_whole() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.add(x, self.branch(x))

    model = nn.Sequential(nn.Linear(4, 4), Residual(), Residual(), nn.Linear(4, 2))
    assert _names(model, "block") == ["1", "2"]


def test_block_with_attention_beside_its_sequential_stays_whole() -> None:
    assert _names(nn.Sequential(Attention(), Attention()), "block") == ["0", "1"]


def test_first_stage_of_another_class_belongs_with_the_blocks() -> None:
    stages = nn.Sequential(nn.Sequential(Opener()), nn.Sequential(Block(), Block()))
    model = Net(stem=nn.Linear(4, 4), stages=stages)
    assert _names(model, "stem") == ["stem"]
    assert _names(model, "block") == ["stages.0.0", "stages.1.0", "stages.1.1"]


def test_single_module_between_blocks_in_their_container_is_watched() -> None:
    assert _names(nn.Sequential(Block(), nn.Linear(4, 4), Block()), "block") == ["0", "1", "2"]


def test_leaves_where_nothing_repeats() -> None:
    layers = select_layers(Net(first=nn.Linear(2, 2), second=nn.Conv1d(2, 2, 1)))
    assert [(layer.name, layer.role) for layer in layers] == [("first", "leaf"), ("second", "leaf")]


def test_leaf_granularity_takes_every_owner_of_weights() -> None:
    model = nn.Sequential(nn.TransformerEncoderLayer(4, 2), nn.Dropout(), nn.LSTM(4, 4))
    assert _names(model, granularity="leaf") == [
        *("0.self_attn", "0.self_attn.out_proj", "0.linear1", "0.linear2", "0.norm1", "0.norm2"),
        "2",
    ]


def test_model_that_is_one_module_has_its_name() -> None:
    assert _names(nn.Linear(2, 2)) == ["Linear"]


def test_model_without_weights_has_no_layers() -> None:
    assert select_layers(nn.Sequential(nn.ReLU(), nn.Flatten())) == []


def test_module_used_twice_is_one_layer() -> None:
    shared = Block()
    assert _names(Net(a=nn.Sequential(shared, shared), b=nn.Sequential(Block(), shared))) == [
        *("a.0", "b.0"),
    ]


def test_metrics_and_losses_that_train_nothing_are_no_layers() -> None:
    class PerceptualLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = _tower().requires_grad_(False)

    class NetMetric(torchmetrics.MeanMetric):
        def __init__(self) -> None:
            super().__init__()
            self.features = _tower()

    model = Net(
        net=_tower(),
        accuracy=torchmetrics.MetricCollection([NetMetric()]),
        loss=nn.CrossEntropyLoss(torch.ones(3)),
        perceptual=PerceptualLoss(),
    )
    assert _names(model) == ["net.0", "net.2", "net.3", "net.4"]


@pytest.mark.parametrize("wrap", [lambda net: net, AveragedModel, lambda net: Net(inner=net)])
def test_frozen_copy_of_a_trained_network_is_left_out(
    wrap: Callable[[nn.Module], nn.Module],
) -> None:
    student = _tower()
    teacher = wrap(copy.deepcopy(student).requires_grad_(False))
    expected = ["student.0", "student.2", "student.3", "student.4"]
    assert _names(Net(student=student, teacher=teacher)) == expected
    assert _names(Net(student=student, teacher=teacher), granularity="leaf")[0] == "student.0"


def test_frozen_copy_in_a_module_dict_is_left_out() -> None:
    student = _tower()
    pair = nn.ModuleDict({"s": student, "t": copy.deepcopy(student).requires_grad_(False)})
    assert _names(Net(pair=pair)) == ["pair.s.0", "pair.s.2", "pair.s.3", "pair.s.4"]


def test_frozen_blocks_of_a_trained_network_stay() -> None:
    model = _tower()
    next(islice(model.children(), 2, None)).requires_grad_(False)
    assert _names(model, "block") == ["2", "3"]


def test_frozen_network_without_a_trained_twin_stays() -> None:
    model = Net(backbone=_tower().requires_grad_(False), head=nn.Linear(2, 2))
    assert _names(model, "block") == ["backbone.2", "backbone.3"]


def _compiled(module: nn.Module) -> nn.Module:
    wrapped: Any = torch.compile(module, backend="eager")
    return wrapped  # type: ignore[no-any-return]


def _checkpointed(module: nn.Module) -> nn.Module:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    return checkpoint_wrapper(module)


@pytest.mark.parametrize("wrap", [_compiled, _checkpointed, nn.DataParallel])
def test_wrappers_are_looked_through(wrap: Callable[[nn.Module], nn.Module]) -> None:
    blocks = nn.Sequential(wrap(Block()), wrap(Block()))
    layers = select_layers(Net(stem=wrap(nn.Linear(4, 4)), net=wrap(blocks)))
    assert [layer.name for layer in layers] == ["stem", "net.0", "net.1"]
    assert [layer.role for layer in layers] == ["stem", "block", "block"]
    assert layers[1].module is blocks[0]


def test_parametrised_modules_are_of_one_class() -> None:
    linears = [parametrizations.weight_norm(nn.Linear(4, 4)) for _ in range(3)]
    model = nn.Sequential(*linears)
    assert _names(model, "block") == ["0", "1", "2"]
    assert _names(model, granularity="leaf") == ["0", "1", "2"]
    assert len(layer_parameters(select_layers(model))["0"]) == 3


def test_lazy_modules_are_layers() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(4))
    assert _names(Net(net=model, copy=copy.deepcopy(model)), "block")[:2] == ["net.0", "net.2"]


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("module.net.0.weight", "net.0.weight"),
        ("net._orig_mod.0.weight", "net.0.weight"),
        ("_fsdp_wrapped_module.net._fsdp_wrapped_module.0", "net.0"),
        ("net.0._checkpoint_wrapped_module.fc.weight", "net.0.fc.weight"),
        ("modules.submodule.weight", "modules.submodule.weight"),
    ],
)
def test_clean_name(name: str, clean: str) -> None:
    assert clean_name(name) == clean


def test_names_that_would_collide_keep_their_prefix() -> None:
    model = Net(module=nn.Linear(2, 2), net=nn.Conv1d(2, 2, 1))
    model.module.add_module("net", nn.Conv1d(2, 2, 1))  # type: ignore[union-attr]
    assert _names(model, granularity="leaf") == ["module", "module.net", "net"]


@pytest.mark.parametrize("patterns", ["layer*", ["layer1", "layer2"], ListConfig(["layer?"])])
def test_include_keeps_what_matches(patterns: Any) -> None:
    model = Net(layer1=nn.Linear(2, 2), layer2=nn.Conv1d(2, 2, 1), fc=nn.Bilinear(2, 2, 2))
    assert _names(model, include=patterns) == ["layer1", "layer2"]


def test_exclude_drops_what_matches_and_depth_is_counted_anew() -> None:
    layers = select_layers(_tower(), include="*", exclude=["0"])
    assert [(layer.name, layer.depth) for layer in layers] == [("2", 1), ("3", 2), ("4", 3)]


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_pattern_that_matches_nothing_names_the_nearest(argument: str) -> None:
    model = Net(layer1=nn.Linear(2, 2), fc=nn.Conv1d(2, 2, 1))
    sentence = (
        f"^`{argument}` must hold patterns that match a layer, but 'layr1' matches none; "
        r"nearest: layer1\.$"
    )
    options: dict[str, Any] = {argument: ["layr1"]}
    with pytest.raises(ConfigurationError, match=sentence):
        select_layers(model, **options)


def test_pattern_unlike_any_name_is_answered_with_the_first_names() -> None:
    sentence = "but 'zzzzzzzz' matches none; nearest: 0, 2, 3.$"
    with pytest.raises(ConfigurationError, match=sentence):
        select_layers(_tower(), include="zzzzzzzz")


def test_pattern_for_a_model_without_layers() -> None:
    with pytest.raises(ConfigurationError, match=r"nearest: the model has no layers\.$"):
        select_layers(nn.ReLU(), include="net")


def test_excluding_everything_is_refused() -> None:
    sentence = r"^`exclude` must be a choice that leaves at least one layer, but got '\*'\.$"
    with pytest.raises(ConfigurationError, match=sentence):
        select_layers(_tower(), exclude="*")


def test_including_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"^`include` must be at least one pattern, but "):
        select_layers(_tower(), include=[])


def test_unknown_granularity_is_refused() -> None:
    sentence = "^`granularity` must be one of 'block', 'leaf', but got 'blok'. Did you mean 'block'"
    with pytest.raises(ConfigurationError, match=sentence):
        select_layers(_tower(), granularity="blok")  # type: ignore[arg-type]


def test_every_parameter_belongs_to_one_layer() -> None:
    model = _tower()
    owned = layer_parameters(select_layers(model))
    assert [name for rows in owned.values() for name, _ in rows] == [
        name for name, _ in model.named_parameters()
    ]


def test_parameter_of_nested_layers_belongs_to_the_innermost() -> None:
    model = nn.TransformerEncoderLayer(4, 2)
    owned = layer_parameters(select_layers(model, "leaf"))
    assert [name for name, _ in owned["self_attn"]] == [
        "self_attn.in_proj_weight",
        "self_attn.in_proj_bias",
    ]
    assert len([name for rows in owned.values() for name in rows]) == len(list(model.parameters()))


def test_tied_parameter_belongs_to_the_first_layer() -> None:
    embedding, head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
    head.weight = embedding.weight
    model = Net(embedding=embedding, head=head)
    owned = layer_parameters(select_layers(model))
    assert [name for name, _ in owned["embedding"]] == ["embedding.weight"]
    assert owned["head"] == []


def test_names_of_parameters_are_clean() -> None:
    model = Net(net=_compiled(nn.Sequential(_compiled(Block()), Block())))
    assert layer_parameters(select_layers(model))["net.0"][0][0] == "net.0.first.weight"


class Crossed(nn.Module):
    """Registered in one order, run in another; the middle one never runs as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.unused = nn.Conv1d(4, 4, 1)
        self.body = nn.Bilinear(4, 4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.head(self.body(x, x)))  # type: ignore[no-any-return]


def test_layers_are_ordered_by_execution_and_hooks_are_gone() -> None:
    model = Crossed()
    recorder = ExecutionRecorder(model, select_layers(model))
    model(torch.ones(1, 4))
    layers = recorder.close()
    assert [(layer.name, layer.depth) for layer in layers] == [
        ("body", 1),
        ("head", 2),
        ("unused", 3),
    ]
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_layers_that_ran_not_at_all_keep_their_order() -> None:
    layers = select_layers(_tower())
    assert order_by_execution(layers, []) == layers


@pytest.mark.parametrize("how", ["wrapped", "in place", "by Lightning"])
def test_compiled_model_gets_no_hooks(how: str) -> None:
    model: Any = Crossed()
    if how == "wrapped":
        model = Net(net=_compiled(model))
    elif how == "in place":
        model.compile(backend="eager")
    else:
        model._compiler_ctx = {"compiler": "dynamo"}
    assert is_compiled(model)
    layers = select_layers(model)
    recorder = ExecutionRecorder(model, layers)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert recorder.close() == layers


def test_model_is_not_touched() -> None:
    model = _tower()
    before = {name: id(module) for name, module in model.named_modules()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    select_layers(model)
    assert before == {name: id(module) for name, module in model.named_modules()}
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_layer_is_a_value() -> None:
    module = nn.Linear(2, 2)
    assert Layer("fc", 1, module, "leaf") == Layer("fc", 1, module, "leaf")
