"""Reversible blocks: the stored version is the oracle."""

from __future__ import annotations

import copy
import re
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_depth.blocks import AdditiveCoupling, ReversibleBlock, ReversibleSequence
from lightning_depth.errors import ConfigurationError, MisuseError


def stack(
    depth: int, *, dropout: float = 0.0, max_drift: float | None = None
) -> ReversibleSequence:
    torch.manual_seed(0)
    blocks = [ReversibleBlock(8, 8) for _ in range(depth)]
    for block in blocks:
        if dropout:
            block.f.append(nn.Dropout(dropout))
    return ReversibleSequence(*blocks, max_drift=max_drift)


def stored(sequence: ReversibleSequence, x: Tensor) -> Tensor:
    for block in sequence:
        x = block(x)
    return x


def relative_error(first: list[Tensor], second: list[Tensor]) -> float:
    a, b = (torch.cat([t.flatten().double() for t in tensors]) for tensors in (first, second))
    return ((a - b).norm() / b.norm()).item()


def gradients(output: Tensor, module: nn.Module, x: Tensor) -> list[Tensor]:
    output.float().square().mean().backward()
    return [x.grad, *(parameter.grad for parameter in module.parameters())]


@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["plain", "dropout"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_gradients_equal_those_of_the_stored_version(
    dtype: torch.dtype, bound: float, dropout: float
) -> None:
    ours = stack(10, dropout=dropout).to(dtype)
    theirs = copy.deepcopy(ours)
    x = torch.randn(4, 8, 6, 6, dtype=dtype)
    first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.manual_seed(1)
    a = gradients(ours(first), ours, first)
    torch.manual_seed(1)
    b = gradients(stored(theirs, second), theirs, second)
    assert relative_error(a, b) < bound
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, theirs.get_buffer(name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_branch_reads_in_the_backward_pass_what_it_read_before(dtype: torch.dtype) -> None:
    sequence = stack(10).to(dtype)
    inputs: dict[nn.Module, list[Tensor]] = {}
    for block in sequence:
        for branch in (block.f, block.g):
            branch.register_forward_pre_hook(
                lambda module, x: inputs.setdefault(module, []).append(x[0].detach().clone())
            )
    sequence(torch.randn(4, 8, 6, 6, dtype=dtype)).float().square().mean().backward()
    assert len(inputs) == 20
    assert all(torch.equal(*pair) for pair in inputs.values())


def test_batch_statistics_are_counted_once() -> None:
    sequence = stack(2)
    sequence(torch.randn(4, 8, 6, 6)).sum().backward()
    counts = [b.item() for name, b in sequence.named_buffers() if name.endswith("tracked")]
    assert set(counts) == {1}


def test_global_random_numbers_are_left_alone_by_the_backward_pass() -> None:
    sequence = stack(3, dropout=0.5)
    output = sequence(torch.randn(4, 8, 6, 6))
    state = torch.get_rng_state()
    output.sum().backward()
    assert torch.equal(torch.get_rng_state(), state)


def test_autocast_is_that_of_the_forward_pass() -> None:
    ours = stack(4)
    theirs = copy.deepcopy(ours)
    x = torch.randn(4, 8, 6, 6)
    first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        a, b = ours(first), stored(theirs, second)
    assert relative_error(gradients(a, ours, first), gradients(b, theirs, second)) < 1e-3


@pytest.mark.parametrize("depth", [1, 10, 50])
def test_input_is_reconstructed(depth: int) -> None:
    sequence = stack(depth).double()
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    y = sequence(x)
    for block in reversed(list(sequence)):
        y = AdditiveCoupling(block.f, block.g).inverse(y)
    assert (y - x).abs().max() < 1e-12


def saved_bytes(sequence: ReversibleSequence) -> int:
    own = {parameter.data_ptr() for parameter in sequence.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sequence(torch.randn(2, 8, 6, 6))
    return sum(kept.values())


def test_memory_does_not_grow_with_depth() -> None:
    assert saved_bytes(stack(40)) == saved_bytes(stack(10)) == 2 * 8 * 6 * 6 * 8


def test_nothing_is_kept_of_random_states_that_no_branch_used() -> None:
    output = stack(3)(torch.randn(2, 8, 6, 6))
    assert [branch.state for branch in output.grad_fn.branches] == [None] * 6


def test_any_pair_of_branches_couples() -> None:
    sequence = ReversibleSequence(*(AdditiveCoupling(nn.Linear(4, 4), nn.Tanh()) for _ in "123"))
    x = torch.randn(2, 8, requires_grad=True)
    sequence(x).sum().backward()
    assert x.grad.shape == (2, 8)


def test_a_branch_used_twice_gets_both_gradients() -> None:
    shared = nn.Linear(4, 4).double()
    ours = ReversibleSequence(AdditiveCoupling(shared, shared))
    x = torch.randn(2, 8, dtype=torch.float64)
    ours(x).sum().backward()
    ours_gradient, shared.weight.grad = shared.weight.grad, None
    stored(ours, x).sum().backward()
    torch.testing.assert_close(ours_gradient, shared.weight.grad)


def test_channels_that_have_no_halves_are_refused() -> None:
    sequence = ReversibleSequence(AdditiveCoupling(nn.Identity(), nn.Identity()))
    with pytest.raises(
        ConfigurationError, match=r"^`channels` \(=5\) must be divisible by `halves` \(=2\)\.$"
    ):
        sequence(torch.randn(2, 5))


def test_no_graph_is_kept_without_gradients() -> None:
    with torch.no_grad():
        assert not stack(2)(torch.randn(2, 8, 6, 6)).requires_grad


@pytest.mark.parametrize("capture", ["fx", "script", "compile"])
def test_capturing_a_graph_runs_the_plain_forward(capture: str) -> None:
    sequence = stack(2).eval()
    x = torch.randn(2, 8, 6, 6)
    if capture == "compile":
        torch._dynamo.reset()
        captured = torch.compile(sequence, fullgraph=True, backend="aot_eager")
    elif capture == "fx":
        captured = torch.fx.symbolic_trace(sequence)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch deprecates TorchScript
            captured = torch.jit.script(sequence)
    torch.testing.assert_close(captured(x), stored(sequence, x))


def _train_one_step(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    sequence = unnormalised()
    parallel = nn.parallel.DistributedDataParallel(sequence)
    parallel(halves()[rank]).square().mean().backward()
    torch.save([p.grad for p in sequence.parameters()], folder / f"gradients{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def unnormalised() -> ReversibleSequence:
    torch.manual_seed(0)
    blocks = (ReversibleBlock(8, 8, norm=None, activation="tanh").double() for _ in "123")
    return ReversibleSequence(*blocks)


def halves() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 8, 6, 6, dtype=torch.float64, generator=generator).chunk(2)


def test_two_processes_reach_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(
        _train_one_step, args=(tmp_path,), nprocs=2, start_method="fork"
    )
    expected = unnormalised()
    stored(expected, torch.cat(halves())).square().mean().backward()
    for rank in range(2):
        gradients = torch.load(tmp_path / f"gradients{rank}.pt", weights_only=True)
        for ours, parameter in zip(gradients, expected.parameters(), strict=True):
            torch.testing.assert_close(ours, parameter.grad, rtol=1e-10, atol=1e-12)


class Noisy(nn.Module):
    """A branch that is another function every time it is called, which breaks reversibility."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.weight * self.calls


def test_drift_is_reported_where_asked() -> None:
    sequence = ReversibleSequence(AdditiveCoupling(Noisy(), Noisy()), max_drift=1e-3)
    output = sequence(torch.randn(2, 8))
    sentence = (
        r"^The reconstructed input of a reversible sequence drifted by [\d.e+]+, more than "
        r"`max_drift` \(=0\.001\); use fewer blocks, smaller weights or more precision\.$"
    )
    with pytest.raises(MisuseError, match=sentence):
        output.sum().backward()


def test_small_drift_is_accepted() -> None:
    stack(10, max_drift=1e-3)(torch.randn(2, 8, 6, 6)).sum().backward()


@pytest.mark.parametrize(
    ("block", "name"), [(nn.ReLU(), "ReLU"), (ReversibleBlock(8, 16), "ReversibleBlock")]
)
def test_a_block_that_cannot_be_reversed_is_refused(block: nn.Module, name: str) -> None:
    sentence = (
        "Block 0 of a reversible sequence must keep the shape and have two branches `f` and `g`, "
        f"but {name} does not."
    )
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        ReversibleSequence(block)


@pytest.mark.parametrize("method", ["forward", "inverse"])
def test_a_coupling_of_an_odd_channel_count_is_named(method: str) -> None:
    coupling = AdditiveCoupling(nn.Identity(), nn.Identity())
    sentence = "`channels` (=5) must be divisible by `halves` (=2)."
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        getattr(coupling, method)(torch.ones(2, 5))


def test_a_coupling_traces_scripts_and_compiles() -> None:
    coupling = AdditiveCoupling(nn.Linear(3, 3), nn.Linear(3, 3))
    x = torch.randn(2, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates TorchScript
        scripted = torch.jit.script(coupling)
    compiled = torch.compile(coupling, fullgraph=True, backend="aot_eager")
    for run in (scripted, torch.fx.symbolic_trace(coupling), compiled):
        torch.testing.assert_close(run(x), coupling(x))
    torch.testing.assert_close(scripted.inverse(scripted(x)), x)
