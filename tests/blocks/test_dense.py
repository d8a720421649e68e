"""Dense blocks: growth, transitions, and recomputation that counts a batch once."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.models.densenet import DenseBlock as TimmDenseBlock
from torch import Tensor, nn

from lightning_depth.blocks import DenseBlock


def saved_bytes(block: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps for the backward pass, parameters apart, each storage once."""
    own = {parameter.untyped_storage().data_ptr() for parameter in block.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = block(x)
    assert output.requires_grad
    return sum(kept.values())


def test_counts_as_the_peer_does() -> None:
    ours = DenseBlock(16, 64, growth_rate=12, bottleneck=True)
    theirs = TimmDenseBlock(4, 16, bn_size=4, growth_rate=12)
    assert sum(p.numel() for p in ours.parameters()) == 27_920
    assert sum(p.numel() for p in theirs.parameters()) == 27_920


def test_input_comes_first_in_the_output() -> None:
    x = torch.randn(2, 16, 6, 6)
    assert torch.equal(DenseBlock(16, 40)(x)[:, :16], x)


@pytest.mark.parametrize(("compression", "kept"), [(1.0, 17), (0.5, 8)])
def test_transition_compresses_and_rounds_down(compression: float, kept: int) -> None:
    block = DenseBlock(17, kept + 24, 2, compression=compression)
    assert block.transition.conv1.out_channels == kept
    assert block.num_layers == 3
    assert block(torch.randn(2, 17, 6, 6)).shape == (2, kept + 24, 3, 3)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_recomputation_changes_nothing_and_counts_the_batch_once(bottleneck: bool) -> None:
    torch.manual_seed(0)
    stored = DenseBlock(16, 64, bottleneck=bottleneck).double()
    recomputed = copy.deepcopy(stored)
    recomputed.set_grad_checkpointing()
    x = torch.randn(4, 16, 6, 6, dtype=torch.float64)
    for block in (stored, recomputed):
        block(x).square().mean().backward()
    for ours, theirs in zip(recomputed.parameters(), stored.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-14)
    for name, buffer in recomputed.named_buffers():
        assert torch.equal(buffer, stored.get_buffer(name)), name


def test_momentum_is_back_after_recomputation() -> None:
    block = DenseBlock(16, 28)
    block.set_grad_checkpointing()
    block(torch.randn(2, 16, 6, 6)).sum().backward()
    norm = block.layers[0].branch.norm1
    assert (norm.momentum, norm.num_batches_tracked.item()) == (0.1, 1)


def test_recomputed_memory_is_linear_in_depth_and_stored_memory_quadratic() -> None:
    x = torch.randn(2, 16, 6, 6)
    kept = {}
    for layers in (8, 16, 32):
        block = DenseBlock(16, 16 + 12 * layers)
        stored = saved_bytes(block, x)
        block.set_grad_checkpointing()
        kept[layers] = (stored, saved_bytes(block, x))
    stored_growth = (kept[32][0] - kept[16][0]) / (kept[16][0] - kept[8][0])
    recomputed_growth = (kept[32][1] - kept[16][1]) / (kept[16][1] - kept[8][1])
    assert stored_growth > 3  # 4 would be a pure square
    assert recomputed_growth == pytest.approx(2, rel=0.02)
