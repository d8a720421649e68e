"""Every trained parameter belongs to exactly one layer, and what is left out is named."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchmetrics
import torchvision
from timm.models import _registry
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.optim.swa_utils import AveragedModel

from lightning_depth.layers import (
    ExecutionRecorder,
    Granularity,
    Layer,
    clean_name,
    layer_parameters,
    order_by_execution,
    select_layers,
    unwatched_parameters,
    watched_share,
)
from tests.kinds_of_nets import (
    KINDS,
    D,
    Diffusion,
    FaceNet,
    Gan,
    NamedBlocks,
    OneBlock,
    ResidualBlock,
)

GRANULARITIES: tuple[Granularity, ...] = ("block", "leaf")


def _build(make: Callable[..., nn.Module], *arguments: Any, **options: Any) -> nn.Module:
    """Make a model without storage, or with it where its constructor computes with values."""
    try:
        with torch.device("meta"):
            return make(*arguments, **options)
    except (NotImplementedError, RuntimeError):
        return make(*arguments, **options)


def _check_all_belong(model: nn.Module) -> None:
    """Hold the layers against the names that torch itself gives the trained parameters."""
    trained = sorted(clean_name(name) for name, p in model.named_parameters() if p.requires_grad)
    for granularity in GRANULARITIES:
        layers = select_layers(model, granularity)
        owned = [pair for pairs in layer_parameters(layers).values() for pair in pairs]
        assert sorted(name for name, weight in owned if weight.requires_grad) == trained
        assert max(Counter(id(weight) for _, weight in owned).values()) == 1
        assert watched_share(model, layers) == 1.0
        assert unwatched_parameters(model, layers) == []
        assert len({layer.name for layer in layers}) == len(layers)


def _summary(model: nn.Module, **options: Any) -> list[tuple[str, str]]:
    return [(layer.name, layer.role) for layer in select_layers(model, **options)]


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_nets_are_watched_whole(kind: str) -> None:
    _check_all_belong(KINDS[kind]())


TIMM = (
    *("beit_base_patch16_224", "cait_xs24_384", "coat_tiny", "convnext_tiny", "crossvit_tiny_240"),
    *("densenet121", "dla34", "efficientnet_b0", "gcvit_tiny", "ghostnet_050", "hiera_tiny_224"),
    *("hrnet_w18_small", "inception_resnet_v2", "inception_v3", "levit_128s", "mambaout_femto"),
    *(
        "mixer_s16_224",
        "mobilenetv3_small_050",
        "mobilevit_xxs",
        "mobilenetv4_conv_small",
        "nest_tiny",
    ),
    *("nfnet_f0", "pit_ti_224", "pvt_v2_b0", "regnetx_002", "resnet18", "samvit_base_patch16"),
    *("swin_tiny_patch4_window7_224", "vgg11", "vit_tiny_patch16_224", "xception41"),
)


@pytest.mark.parametrize("name", TIMM)
def test_families_of_timm_are_watched_whole(name: str) -> None:
    _check_all_belong(_build(timm.create_model, name))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Mapping deprecated model name")
@pytest.mark.parametrize("family", sorted(_registry._module_to_models))
def test_all_families_of_timm_are_watched_whole(family: str) -> None:
    shortest = min(sorted(_registry._module_to_models[family]), key=len)
    _check_all_belong(_build(timm.create_model, shortest))


TORCHVISION = (
    *("alexnet", "convnext_tiny", "deeplabv3_mobilenet_v3_large", "densenet121"),
    *("efficientnet_b0", "fasterrcnn_mobilenet_v3_large_320_fpn"),
    *(
        "fcn_resnet50",
        "fcos_resnet50_fpn",
        "googlenet",
        "inception_v3",
        "keypointrcnn_resnet50_fpn",
    ),
    *("lraspp_mobilenet_v3_large", "maskrcnn_resnet50_fpn_v2", "maxvit_t", "mc3_18", "mnasnet0_5"),
    *("mobilenet_v2", "mobilenet_v3_small", "mvit_v2_s", "r2plus1d_18", "r3d_18", "raft_small"),
    *("regnet_y_400mf", "resnet18", "resnext50_32x4d", "retinanet_resnet50_fpn", "s3d"),
    *("shufflenet_v2_x0_5", "squeezenet1_0", "ssd300_vgg16", "ssdlite320_mobilenet_v3_large"),
    *("swin3d_t", "swin_t", "swin_v2_t", "vgg11_bn", "vit_b_16", "wide_resnet50_2"),
)
WITHOUT_INIT = ("googlenet", "inception_v3")
WITH_BACKBONE = ("deeplab", "rcnn", "fcn", "fcos", "lraspp", "retina", "ssd")


@pytest.mark.parametrize("name", TORCHVISION)
def test_families_of_torchvision_are_watched_whole(name: str) -> None:
    options: dict[str, Any] = {"weights": None}
    if any(part in name for part in WITH_BACKBONE):
        options["weights_backbone"] = None
    if name in WITHOUT_INIT:
        options["init_weights"] = False
    _check_all_belong(_build(torchvision.models.get_model, name, **options))


def test_what_lies_between_the_blocks_is_a_layer() -> None:
    assert ("features.transition1", "between") in _summary(_build(timm.create_model, "densenet121"))
    convnext = _summary(_build(timm.create_model, "convnext_tiny"))
    assert ("stages.2.downsample", "between") in convnext


def test_attention_of_a_single_block_is_a_layer() -> None:
    roles = dict(_summary(OneBlock()))
    assert roles["blocks.0.attention"] == roles["blocks.0.norm"] == "between"


def test_middle_of_a_u_net_is_between_its_halves() -> None:
    roles = dict(_summary(Diffusion()))
    assert [name for name, role in roles.items() if role == "between"] == [
        *("mid_block1", "mid_attn", "mid_block2"),
    ]


def test_stem_and_head_in_a_sequential_stay_whole() -> None:
    assert _summary(OneBlock(3)) == [
        ("embed", "stem"),
        *((f"blocks.{place}", "block") for place in range(3)),
        ("out", "head"),
    ]


def test_long_sequential_beside_the_blocks_is_cut() -> None:
    names = [name for name, _ in _summary(Gan()) if name.startswith("discriminator")]
    assert names == [f"discriminator.main.{place}" for place in (0, 1, 3, 4, 6, 7, 9, 10, 12)]


def test_blocks_under_a_name_each_are_blocks() -> None:
    assert _summary(NamedBlocks()) == [
        ("conv", "stem"),
        *((f"layer{place}", "block") for place in (1, 2, 3)),
        ("fc", "head"),
    ]
    regnet = _summary(_build(timm.create_model, "regnetx_002"))
    # Radosavovic et al. 2020: RegNetX-200MF has stages of 1, 1, 4 and 7 blocks
    assert [role for _, role in regnet] == ["stem", *["block"] * 13, "head"]


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = ResidualBlock(), ResidualBlock()


def test_pair_of_modules_is_no_repetition() -> None:
    assert {role for _, role in _summary(Pair())} == {"leaf"}


class Gated(nn.Module):
    """Small gates that repeat beside large layers that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3)
        self.gate1, self.gate2, self.gate3 = (ResidualBlock() for _ in range(3))


def test_small_part_that_repeats_under_names_makes_no_blocks() -> None:
    assert {role for _, role in _summary(Gated())} == {"leaf"}


class Tokens(nn.Module):
    """Owns a token and positions, holds what runs, and one head in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(D, 2)
        self.token, self.positions = nn.Parameter(torch.ones(D)), nn.Parameter(torch.ones(4, D))
        self.body = nn.Module()
        self.body.scale = nn.Parameter(torch.ones(D))
        self.body.layers = nn.Sequential(*(nn.Sequential(nn.Linear(D, D)) for _ in range(3)))
        self.prompts = nn.ParameterList([torch.ones(D), torch.ones(D)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.add(x * self.body.scale, self.token)
        return self.head(self.body.layers(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_parameters_that_modules_own_themselves_are_layers_without_output(
    granularity: Granularity,
) -> None:
    layers = select_layers(Tokens(), granularity)
    bare = {layer.name: layer for layer in layers if not layer.has_output}
    owned = layer_parameters(layers)
    assert {name: [own for own, _ in owned[name]] for name in bare} == {
        "Tokens": ["token", "positions"],
        "body.scale": ["body.scale"],
        "prompts": ["prompts.0", "prompts.1"],
    }
    assert "head" not in bare
    assert "body.layers.0.0" not in bare


def test_layer_without_output_stands_before_the_first_that_runs_in_it() -> None:
    model = Tokens()
    recorder = ExecutionRecorder(model, select_layers(model))
    model(torch.ones(2, D))
    layers = recorder.close()
    assert [layer.name for layer in layers] == [
        *("Tokens", "body.scale", "body.layers.0.0", "body.layers.1.0", "body.layers.2.0"),
        *("prompts", "head"),
    ]
    assert [layer.depth for layer in layers] == list(range(1, 8))


def test_layer_without_output_keeps_its_place_where_nothing_ran() -> None:
    layers = select_layers(Tokens())
    assert order_by_execution(layers, []) == layers


def test_layer_that_never_ran_stays_behind_the_one_before_it() -> None:
    layers = [Layer(name, 0, nn.Linear(1, 1), "leaf") for name in ("a", "b", "c")]
    names = [layer.name for layer in order_by_execution(layers, ["c", "a"])]
    assert names == ["c", "a", "b"]


def test_attention_of_torch_has_an_output_and_its_projection_none_of_its_own() -> None:
    model = nn.TransformerEncoderLayer(D, 2)
    recorder = ExecutionRecorder(model, select_layers(model, "leaf"))
    model(torch.ones(3, 2, D))
    names = [layer.name for layer in recorder.close()]
    assert names.index("self_attn.out_proj") == names.index("self_attn") + 1
    assert all(layer.has_output for layer in select_layers(model, "leaf"))


def test_model_of_own_weights_only_runs() -> None:
    (layer,) = select_layers(KINDS["own weights"]())
    assert layer.has_output
    assert [name for name, _ in layer_parameters([layer])[layer.name]] == ["weight", "bias"]


def test_trained_weights_of_a_loss_are_layers_and_its_frozen_ones_are_not() -> None:
    layers = select_layers(FaceNet())
    assert [(layer.name, layer.has_output) for layer in layers[-2:]] == [
        ("loss.centers", False),
        ("perceptual.discriminator", True),
    ]


def test_network_that_a_loss_holds_too_keeps_its_own_name() -> None:
    class RankingLoss(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

    network = nn.Sequential(*(ResidualBlock() for _ in range(2)))
    model = nn.Module()
    model.loss = RankingLoss(network)
    model.network = network
    assert [name for name, _ in _summary(model)] == ["network.0", "network.1"]


class Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.factor


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_parametrized_weights_and_what_parametrizes_them_belong(granularity: Granularity) -> None:
    model = Tokens()
    parametrize.register_parametrization(model, "token", Shifted())
    parametrizations.weight_norm(model.head)
    layers = select_layers(model, granularity)
    assert unwatched_parameters(model, layers) == []
    assert watched_share(model, layers) == 1.0


def test_compiled_model_with_a_token_belongs() -> None:
    inner: Any = torch.compile(Tokens(), backend="eager")
    layers = select_layers(inner)
    assert layers[0].name == "Tokens"
    assert [name for name, _ in layer_parameters(layers)["Tokens"]] == ["token", "positions"]
    assert unwatched_parameters(inner, layers) == []


def test_what_is_excluded_is_named_with_its_share() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    layers = select_layers(model, exclude="2")
    assert unwatched_parameters(model, layers) == ["2.weight", "2.bias"]
    assert watched_share(model, layers) == pytest.approx(16 / (16 + 5))


def test_share_is_of_what_is_trained() -> None:
    model = nn.Sequential(nn.Linear(3, 4).requires_grad_(False), nn.ReLU(), nn.Linear(4, 1))
    assert watched_share(model, select_layers(model, include="2")) == 1.0
    assert watched_share(model, select_layers(model, include="0")) == 0.0
    assert unwatched_parameters(model, select_layers(model, include="0")) == ["2.weight", "2.bias"]


def test_model_that_trains_nothing_lacks_nothing() -> None:
    model = nn.Linear(2, 2).requires_grad_(False)
    assert watched_share(model, []) == 1.0
    assert unwatched_parameters(model, []) == []


def test_module_that_came_after_the_choice_is_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    layers = select_layers(model)
    model.append(nn.Linear(2, 2, bias=False))
    assert unwatched_parameters(model, layers) == ["2.weight"]
    assert watched_share(model, layers) == pytest.approx(2 / 3)


def test_averaged_copies_and_metrics_do_not_count() -> None:
    class FeatureMetric(torchmetrics.MeanMetric):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Linear(4, 4)

    model = nn.Module()
    model.net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model.average = AveragedModel(copy.deepcopy(model.net))
    model.metric = FeatureMetric()
    assert unwatched_parameters(model, []) == [
        *("net.0.weight", "net.0.bias", "net.1.weight", "net.1.bias"),
    ]
    assert watched_share(model, select_layers(model)) == 1.0


def test_tied_weights_count_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False), nn.Linear(2, 1))
    model[1].weight = model[0].weight
    assert watched_share(model, select_layers(model, include="1")) == pytest.approx(4 / (4 + 3))


def test_lazy_weights_are_named_and_have_no_size_yet() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.ReLU(), nn.Linear(3, 1))
    layers = select_layers(model, include="2")
    assert unwatched_parameters(model, layers) == ["0.weight", "0.bias"]
    assert watched_share(model, layers) == 1.0
    assert unwatched_parameters(model, select_layers(model)) == []
