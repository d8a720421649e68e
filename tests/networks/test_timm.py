"""At home in timm: registration, features, checkpointing, weights from a file."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from timm.models import group_parameters
from torch import nn

from lightning_depth.errors import ConfigurationError
from lightning_depth.networks import _key_maps, build_convnet, build_imagenet
from lightning_depth.networks._shuffle import ShuffleUnit

SMALL = [
    *("depth_cifar_resnet20", "depth_cifar_preact_resnet20", "depth_cifar_densenet_40_12"),
    *("depth_resnet18", "depth_mobilenetv1_025", "depth_lenet5", "depth_cifar_revnet38"),
    *("depth_shufflenetv1_g3", "depth_mobilenetv2_100", "depth_googlenet"),
]
PEERS = {
    "resnet18": _key_maps.residual_keys,
    "resnet34": _key_maps.residual_keys,
    "resnet50": _key_maps.residual_keys,
    "resnet101": _key_maps.residual_keys,
    "resnet152": _key_maps.residual_keys,
    "wide_resnet50_2": _key_maps.residual_keys,
    "densenet121": _key_maps.dense_keys,
    "mobilenetv2_100": _key_maps.mobile_v2_keys,
}
LARGE_PEERS = {"resnet101", "resnet152", "wide_resnet50_2"}


def images(name: str, batch: int = 2) -> torch.Tensor:
    channels, side, _ = timm.get_pretrained_cfg(name).input_size
    return torch.randn(batch, channels, min(side, 64), min(side, 64))


def report_of_a_fresh_import() -> dict[str, object]:
    code = """
import json, time, timm, warnings
warnings.simplefilter("error")
before = set(timm.list_models())
import torch
made = []
first = torch.nn.Module.__init__
def note(self, *arguments, **options):
    made.append(type(self).__name__)
    first(self, *arguments, **options)
torch.nn.Module.__init__ = note
start = time.perf_counter()
import lightning_depth.networks
seconds = time.perf_counter() - start
after = set(timm.list_models())
print(json.dumps({"lost": sorted(before - after), "added": sorted(after - before),
                  "made": made, "seconds": seconds}))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    report: dict[str, object] = json.loads(run.stdout.splitlines()[-1])
    return report


def test_import_takes_no_name_and_builds_no_network() -> None:
    report = report_of_a_fresh_import()
    assert report["lost"] == []
    assert report["added"] == sorted(timm.list_models("depth_*"))
    assert all(str(name).startswith("depth_") for name in report["added"])  # type: ignore[attr-defined]
    assert report["made"] == []


@pytest.mark.parametrize("name", SMALL)
def test_features_only_returns_every_level(name: str) -> None:
    network = timm.create_model(name, features_only=True).eval()
    outputs = network(images(name))
    assert [output.shape[1] for output in outputs] == network.feature_info.channels()
    side = images(name).shape[-1]
    for output, reduction in zip(outputs, network.feature_info.reduction(), strict=True):
        assert output.shape[-1] <= -(-side // reduction) + 1


@pytest.mark.parametrize("name", SMALL)
def test_intermediates_are_the_features(name: str) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name).eval()
    x = images(name)
    with torch.no_grad():
        last, levels = network.forward_intermediates(x)
        assert torch.equal(last, network.forward_features(x))
        only = network.forward_intermediates(x, indices=2, intermediates_only=True)
        assert [level.shape[1] for level in levels] == [i["num_chs"] for i in network.feature_info]
        assert all(torch.equal(a, b) for a, b in zip(only, levels[-2:], strict=True))
        early = network.forward_intermediates(x, indices=[1], stop_early=True, norm=True)[1]
        assert torch.equal(early[0], levels[1])


def test_intermediates_of_another_format_are_refused() -> None:
    network = timm.create_model("depth_cifar_resnet20")
    with pytest.raises(
        ConfigurationError,
        match=r"^`output_fmt` must be one of 'NCHW', but got 'NLC'\. Did you mean 'NCHW'\?$",
    ):
        network.forward_intermediates(torch.randn(1, 3, 8, 8), output_fmt="NLC")


def test_getter_prunes_what_is_not_needed() -> None:
    network = timm.create_model(
        "depth_cifar_resnet20", features_only=True, feature_cls="getter", out_indices=(0, 1)
    )
    assert len(network.model.stages) == 1
    assert [output.shape[1] for output in network(torch.randn(1, 3, 8, 8))] == [16, 16]


@pytest.mark.parametrize("name", SMALL)
def test_checkpointing_changes_no_number_and_counts_a_batch_once(name: str) -> None:
    torch.manual_seed(0)
    stored = timm.create_model(name, drop_rate=0.0).double().train()
    recomputed = timm.create_model(name, drop_rate=0.0).double().train()
    recomputed.load_state_dict(stored.state_dict())
    recomputed.set_grad_checkpointing()
    x = images(name, batch=4).double()
    for network in (stored, recomputed):
        network(x).square().mean().backward()
    for (key, a), b in zip(stored.named_parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-9, msg=key)
    for key, buffer in stored.named_buffers():
        torch.testing.assert_close(buffer, recomputed.get_buffer(key), msg=key)


@pytest.mark.parametrize("name", SMALL)
def test_groups_by_depth_hold_every_parameter(name: str) -> None:
    network = timm.create_model(name)
    groups = group_parameters(network, network.group_matcher())
    grouped = [parameter for members in groups.values() for parameter in members]
    assert sorted(grouped) == sorted(key for key, _ in network.named_parameters())


@pytest.mark.parametrize("name", SMALL)
def test_pool_and_classifier_can_be_taken_away(name: str) -> None:
    network = timm.create_model(name, num_classes=0, global_pool="").eval()
    assert network(images(name)).ndim == 4
    network = timm.create_model(name, in_chans=2).eval()
    network.reset_classifier(3)
    _, _, *size = images(name).shape
    assert network(torch.randn(2, 2, *size)).shape == (2, 3)


def test_stochastic_depth_rises_from_zero_to_the_rate() -> None:
    network = timm.create_model("depth_cifar_resnet20", drop_path_rate=0.4)
    rates = [
        getattr(block.drop_path, "drop_prob", 0.0) for stage in network.stages for block in stage
    ]
    assert rates == pytest.approx([0.05 * number for number in range(9)])


def test_stochastic_depth_of_a_plain_net_is_refused() -> None:
    sentence = "`drop_path_rate` must be 0 for plain blocks, which skip nothing, but got 0.1."
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        timm.create_model("depth_cifar_plain20", drop_path_rate=0.1)


def test_a_preset_takes_another_depth() -> None:
    assert timm.create_model("depth_cifar_resnet20", depth=26).depth == 26


@pytest.mark.parametrize(
    ("block", "depth", "sentence"),
    [
        (
            "residual",
            50,
            "`depth` of a residual net for large images must be one of 18, 34, 68, 102, 134, but "
            "got 50. The nearest are 34 and 68.",
        ),
        (
            "bottleneck",
            100,
            "`depth` of a bottleneck net for large images must be one of 26, 50, 101, 152, 200, "
            "but got 100. The nearest are 50 and 101.",
        ),
    ],
)
def test_depth_outside_the_large_families(block: str, depth: int, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        build_imagenet(block, depth)


def test_image_too_small_for_the_strides() -> None:
    network = build_convnet("dense", depth=10, width=4, num_classes=2)
    sentence = (
        "Images of 3 x 8 pixels are too small for the strides of this network: it needs at least "
        "4 x 4."
    )
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        network(torch.randn(2, 3, 3, 8))
    assert network(torch.randn(2, 3, 4, 4)).shape == (2, 2)


def test_channels_that_the_groups_do_not_divide() -> None:
    sentence = "`inner channels` (=16) must be divisible by `groups` (=3)."
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        ShuffleUnit(24, 64, groups=3)


def test_shufflenet_of_unknown_groups() -> None:
    sentence = "`groups` must be one of '1', '2', '3', '4', '8', but got '5'."
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}"):
        timm.create_model("depth_shufflenetv1_g3", groups=5)


@pytest.mark.parametrize(
    "peer", [pytest.param(n, marks=[pytest.mark.slow] * (n in LARGE_PEERS)) for n in PEERS]
)
@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_weights_of_the_peer_give_equal_logits(peer: str, library: str) -> None:
    torch.manual_seed(0)
    if library == "timm":
        theirs = timm.create_model(peer)
    else:
        builder = {"mobilenetv2_100": "mobilenet_v2"}.get(peer, peer)
        theirs = torchvision.models.get_model(builder)
    ours = timm.create_model(f"depth_{peer}")
    ours.load_state_dict(PEERS[peer](theirs.state_dict(), ours), strict=True)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("depth", [18, 50])
def test_weights_of_timms_preactivation_nets_load(depth: int) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(f"resnetv2_{depth}").eval()
    ours = timm.create_model(f"depth_preact_resnet{depth}").eval()
    ours.load_state_dict(_key_maps.preactivated_keys(theirs.state_dict()), strict=True)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():  # timm's classifier is a 1x1 convolution, which rounds in another order
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("peer", ["resnet18", "densenet121", "mobilenetv2_100", "resnetv2_18"])
@pytest.mark.parametrize("num_classes", [1000, 5])
def test_pretrained_reads_timms_weights_from_a_file(
    peer: str, num_classes: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(peer)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    name = "depth_" + peer.replace("resnetv2_", "preact_resnet")
    ours = timm.create_model(
        name,
        pretrained=True,
        num_classes=num_classes,
        pretrained_cfg_overlay={"file": str(tmp_path / "weights.pth")},
    )
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        features = theirs.eval().forward_features(x)
        torch.testing.assert_close(ours.eval().forward_features(x), features, rtol=1e-5, atol=1e-5)
    assert ours(x).shape == (1, num_classes)


def test_configuration_names_timms_weights() -> None:
    ours, theirs = (timm.get_pretrained_cfg(name) for name in ("depth_resnet50", "resnet50"))
    assert ours.hf_hub_id == theirs.hf_hub_id
    assert (ours.first_conv, ours.classifier) == ("stem.conv", "head.fc")


@pytest.mark.parametrize("name", [*SMALL, "depth_lenet5_1998"])
def test_configuration_names_layers_of_the_network(name: str) -> None:
    network = timm.create_model(name)
    config = network.default_cfg
    assert {f"{config[key]}.weight" for key in ("first_conv", "classifier")} <= set(
        network.state_dict()
    )


SMALLEST: list[tuple[str, int, dict[str, object]]] = [
    ("plain", 8, {}),
    ("residual", 8, {}),
    ("residual", 8, {"shortcut": "B"}),
    ("bottleneck", 11, {}),
    ("bottleneck", 11, {"inner_width": 2}),
    ("preactivation", 8, {"shortcut": "B"}),
    ("preactivation_bottleneck", 11, {}),
    ("highway", 5, {}),
    ("crelu", 8, {}),
    ("dense", 7, {}),
    ("dense", 10, {"bottleneck": True, "compression": 0.5}),
    ("maxout", 8, {}),
    ("separable", 8, {}),
    ("inverted_residual", 11, {}),
    ("inception", 8, {}),
    ("reversible", 14, {}),
]


@pytest.mark.parametrize(("block", "depth", "options"), SMALLEST)
def test_smallest_members_compile_into_one_graph(
    block: str, depth: int, options: dict[str, object]
) -> None:
    torch._dynamo.reset()
    network = build_convnet(block, depth=depth, width=8, num_classes=2, block_options=options)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    compiled(torch.randn(2, 3, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("depth_cifar_highway19", "depth_mnist_highway10", "depth_maxout_mnist", "depth_lenet5"),
        *("depth_resnet18", "depth_densenet121", "depth_alexnet", "depth_googlenet"),
        *("depth_mobilenetv1_025", "depth_mobilenetv2_100", "depth_shufflenetv1_g1"),
        *("depth_cifar_plain20", "depth_cifar_resnet20", "depth_cifar_preact_resnet20"),
        *("depth_cifar_densenet_40_12", "depth_cifar_revnet38", "depth_plain18"),
        *("depth_preact_resnet18", "depth_lenet5_1998"),
        *("depth_allconv6_1", "depth_cifar_wrn_16_4", "depth_vgg19"),
    ],
)
def test_smallest_presets_compile_into_one_graph(name: str) -> None:
    torch._dynamo.reset()
    network = timm.create_model(name)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    compiled(images(name)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    "name",
    ["depth_cifar_resnet20", "depth_cifar_revnet38", "depth_lenet5", "depth_lenet5_1998"],
)
def test_scripts(name: str) -> None:
    network = timm.create_model(name, scriptable=True).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates TorchScript
        scripted = torch.jit.script(network)
    x = images(name)
    torch.testing.assert_close(scripted(x), network(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["depth_cifar_resnet20", "depth_maxout_mnist"])
def test_a_traced_graph_scripts(name: str) -> None:
    network = timm.create_model(name, scriptable=True).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates TorchScript
        scripted = torch.jit.script(torch.fx.symbolic_trace(network))
    x = images(name)
    torch.testing.assert_close(scripted(x), network(x), rtol=1e-4, atol=1e-4)


def test_reversible_blocks_stand_in_one_sequence() -> None:
    network = timm.create_model("depth_cifar_revnet38")
    assert [type(m).__name__ for m in network.stages[1]] == [
        "ReversibleBlock",
        "ReversibleSequence",
    ]
    assert isinstance(network.stages[0], nn.Sequential)
