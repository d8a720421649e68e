r"""How weights of timm and torchvision are named here.

=============================== =========================== ===============================
theirs                          ours                        where
=============================== =========================== ===============================
``conv1``, ``bn1``              ``stem.conv``, ``.norm``    ResNets
``layer<i>.<j>.conv<k>``        ``stages.<i-1>.<j>.branch.conv<k>`` ResNets
``layer<i>.<j>.bn<k>``          ``stages.<i-1>.<j>.branch.norm<k>`` ResNets
``layer<i>.<j>.downsample.0``   ``stages.<i-1>.<j>.shortcut.conv``  ResNets
``fc``                          ``head.fc``                 ResNets
``features.denseblock<i>.denselayer<j>.`` ``stages.<i-1>.0.layers.<j-1>.branch.`` DenseNets
``features.transition<i>``      ``stages.<i>.0.transition``  DenseNets
=============================== =========================== ===============================

A map renames and never changes a number; keys that are ours already pass unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["dense_keys", "mobile_v2_keys", "preactivated_keys", "residual_keys"]

Rules = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]


def _shifted(template: str) -> Callable[[re.Match[str]], str]:
    """Return a replacement in which ``{0}``, ``{1}``, ... are the groups, counted from 0."""

    def replace(match: re.Match[str]) -> str:
        return template.format(*(int(group) - 1 for group in match.groups()))

    return replace


RESIDUAL: Rules = (
    (r"^conv1\.", "stem.conv."),
    (r"^bn1\.", "stem.norm."),
    (r"^layer(\d+)\.", _shifted("stages.{0}.")),
    (r"^(stages\.\d+\.\d+)\.conv(\d)\.", r"\1.branch.conv\2."),
    (r"^(stages\.\d+\.\d+)\.bn(\d)\.", r"\1.branch.norm\2."),
    (r"\.downsample\.0\.", ".shortcut.conv."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"^fc\.", "head.fc."),
)
PREACTIVATED: Rules = (
    (r"^stages\.(\d+)\.blocks\.(\d+)\.", r"stages.\1.\2."),
    (r"^(stages\.\d+\.\d+)\.norm1\.", r"\1.preact.norm."),
    (r"^(stages\.\d+\.\d+)\.(norm|conv)(\d)\.", r"\1.branch.\2\3."),
    (r"\.downsample\.conv\.", ".shortcut.conv."),
    (r"^norm\.", "final.norm."),
)
DENSE: Rules = (
    (r"^features\.conv0\.", "stem.conv."),
    (r"^features\.norm0\.", "stem.norm."),
    (
        r"^features\.denseblock(\d+)\.denselayer(\d+)\.",
        _shifted("stages.{0}.0.layers.{1}.branch."),
    ),
    (r"^features\.transition(\d+)\.(norm|conv)\.", r"stages.\1.0.transition.\g<2>1."),
    (r"^features\.norm5\.", "final.norm."),
    (r"^classifier\.", "head.fc."),
)


def _rename(state: Mapping[str, Any], rules: Rules) -> dict[str, Any]:
    renamed = {}
    for key, value in state.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


def residual_keys(state: Mapping[str, Any], model: Any = None) -> dict[str, Any]:
    """Return the weights of a ResNet or wide ResNet of timm or torchvision under our names.

    Args:
        state: Their state dict.
        model: The network that will load it; timm passes it, and it is not read here.

    Returns:
        The same tensors under our names.

    Example:
        >>> list(residual_keys({'layer2.0.bn1.bias': 0}))
        ['stages.1.0.branch.norm1.bias']
    """
    return _rename(state, RESIDUAL)


def preactivated_keys(state: Mapping[str, Any], model: Any = None) -> dict[str, Any]:
    """Return the weights of a ``resnetv2`` of timm under our names.

    Args:
        state: Their state dict.
        model: The network that will load it; timm passes it, and it is not read here.

    Returns:
        The same tensors under our names.

    Example:
        >>> list(preactivated_keys({'norm.bias': 0}))
        ['final.norm.bias']
    """
    renamed = _rename(state, PREACTIVATED)
    classifier = renamed.get("head.fc.weight")
    if classifier is not None and classifier.ndim == 4:  # timm's is a 1x1 convolution
        renamed["head.fc.weight"] = classifier.flatten(1)
    return renamed


def dense_keys(state: Mapping[str, Any], model: Any = None) -> dict[str, Any]:
    """Return the weights of a DenseNet of timm or torchvision under our names.

    Args:
        state: Their state dict.
        model: The network that will load it; timm passes it, and it is not read here.

    Returns:
        The same tensors under our names.

    Example:
        >>> list(dense_keys({'features.norm5.bias': 0}))
        ['final.norm.bias']
    """
    return _rename(state, DENSE)


def mobile_v2_keys(state: Mapping[str, Any], model: Any = None) -> dict[str, Any]:
    """Return the weights of a MobileNet v2 of timm or torchvision under our names.

    All three list their layers in the order in which they are used, so that they are matched by
    position; only the classifier goes by name.

    Args:
        state: Their state dict.
        model: The network that will load it, whose order says where each tensor goes.

    Returns:
        The same tensors under our names.

    Example:
        >>> import timm
        >>> ours = timm.create_model("depth_mobilenetv2_100", num_classes=10)
        >>> theirs = timm.create_model("mobilenetv2_100", num_classes=10).state_dict()
        >>> ours.load_state_dict(mobile_v2_keys(theirs, ours))
        <All keys matched successfully>
    """
    if model is None or "stem.conv.weight" in state:
        return dict(state)
    renamed = {re.sub(r"^classifier\.(1\.)?", "head.fc.", key): state[key] for key in state}
    theirs, ours = _body(renamed), _body(model.state_dict())
    named = dict(zip(theirs, ours, strict=True))
    return {
        named.get(key, key): value
        for key, value in renamed.items()
        if key in named or _is_head(key)
    }


def _is_head(key: str) -> bool:
    return key.startswith("head.")


def _body(state: Mapping[str, Any]) -> list[str]:
    return [key for key in state if not (_is_head(key) or key.endswith("num_batches_tracked"))]
