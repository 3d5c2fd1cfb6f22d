"""One compilation serves every size."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fusec

pytestmark = pytest.mark.usefixtures("clean")
LENGTHS = (2, 17, 1000, 1023, 1024, *range(3, 993, 22))


class Block(nn.Module):
    """Norm, qkv projection, attention, residual; norm, MLP with gelu, residual."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm_mlp = nn.LayerNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        split = self.qkv(self.norm(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm_mlp(x))))


def assert_one_compilation(
    fn: Callable[..., Any], arguments: Callable[[int], tuple[Any, ...]], sizes: tuple[int, ...], **options: Any
) -> dict[str, Any]:
    """Equal to eager for every size; compiled for the first one, and once more for all others. Returns the counts."""
    compiled = fusec.compile(fn, **options)
    for n in sizes:
        given = arguments(n)
        torch.testing.assert_close(compiled(*given), fn(*given), rtol=1e-4, atol=1e-4)
    found = fusec.stats()
    assert found["fallbacks"] == [] and found["graphs"] <= 2 and found["recompiles"] <= 1
    fusec.reset()
    return found


def test_fifty_lengths_of_a_transformer_block_are_compiled_twice() -> None:
    block = Block().eval()
    with torch.no_grad():
        found = assert_one_compilation(block, lambda n: (torch.randn(1, n, 16),), LENGTHS)
    assert len(LENGTHS) == 50 and found["kernels_built"] + found["cache_hits"] <= 8


def cross_entropy(x: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(x, labels)


ROWS: dict[str, Callable[..., Any]] = {
    "softmax": lambda x: x.softmax(-1),
    "log_softmax of columns": lambda x: x.log_softmax(0),
    "layer_norm": lambda x: F.layer_norm(x, (x.shape[-1],)),
    "rms_norm": lambda x: F.rms_norm(x, (x.shape[-1],)),
    "broadcast": lambda x: F.silu(x) * x[:1] + x[:, :1] * x.shape[0],
    "rows and columns": lambda x: (x.sum(1), x.sum(0), x.amax()),
    "variance": lambda x: x.var(-1) + x.mean(-1) / x.shape[-1],
    "positions": lambda x: (x.argmax(-1), x.max(0)),
    "transpose": lambda x: (x * 2).t().contiguous(),
    "cat and slice": lambda x: torch.cat([x, x + 1], 0)[1:-1],
    "flat": lambda x: x.reshape(-1)[x.shape[0] :] + 1,
    "view and expand": lambda x: x.view(x.shape[0], 1, x.shape[1]).expand(-1, 3, -1).sum(1),
    "sizes": lambda x: (x.shape[0] * x.shape[1] + 1, x * x.shape[0] ** 0.5, x.new_zeros(x.shape[1], 2)),
}
SIZES = (2, 17, 1024, 33, 1000, 4)


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_changing_number(name: str) -> None:
    assert_one_compilation(ROWS[name], lambda n: (torch.randn(n, 6),), SIZES)


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_changing_length(name: str) -> None:
    assert_one_compilation(ROWS[name], lambda n: (torch.randn(3, n),), SIZES)


@pytest.mark.parametrize("name", ROWS)
def test_both_sizes_change(name: str) -> None:
    assert_one_compilation(ROWS[name], lambda n: (torch.randn(n, 2 * n % 37 + 3),), SIZES[:3], dynamic=True)


def test_cross_entropy_over_a_changing_batch() -> None:
    assert_one_compilation(cross_entropy, lambda n: (torch.randn(n, 11), torch.randint(11, (n,))), SIZES)


def gradients(run: Callable[..., Tensor], module: nn.Module, x: Tensor) -> list[Tensor | None]:
    module.zero_grad()
    leaf = x.detach().requires_grad_()
    run(leaf).square().mean().backward()
    return [leaf.grad, *(p.grad for p in module.parameters())]


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.down(F.gelu(self.up(self.norm(x))))).softmax(0)


@pytest.mark.parametrize("module", [Mlp, nn.RMSNorm, Block])
def test_training_steps_over_changing_sizes(module: Any) -> None:
    made = module(8) if module is not Mlp else module()
    compiled = fusec.compile(made)
    for n in (3, 17, 64, 33):
        x = torch.randn(2, n, 8)
        torch.testing.assert_close(gradients(compiled, made, x), gradients(made, made, x), rtol=1e-3, atol=1e-5)
    found = fusec.stats()
    assert found["graphs"] <= 4 and found["recompiles"] <= 1  # forward and backward, for one size and for all
    assert all(f["level"] == "op" for f in found["fallbacks"])


@pytest.mark.parametrize("name", ["rows and columns", "variance", "everything", "bias gradient"])
def test_reductions_that_were_split_for_a_long_first_call(name: str) -> None:
    more = {
        "everything": lambda x: (x.sum(), x.abs().amax(), x.square().mean(0)),
        "bias gradient": lambda x: (x * 2, (x * 2).sum(0), x.mean()),
    }
    fn = {**ROWS, **more}[name]
    sizes = (40000, 2, 17, 1023, 33000)
    assert_one_compilation(fn, lambda n: (torch.randn(n, 6),), sizes, dynamic=True)
    assert_one_compilation(fn, lambda n: (torch.randn(3, n),), sizes, dynamic=True)


# -- how sizes become symbolic ----------------------------------------------------------------------


def test_a_marked_dimension_is_dynamic_from_the_first_call() -> None:
    compiled = fusec.compile(lambda x: x.softmax(-1))
    for n in (5, 9, 1000):
        x = torch.randn(n, 6)
        torch._dynamo.mark_dynamic(x, 0)
        torch.testing.assert_close(compiled(x), x.softmax(-1))
    assert fusec.stats()["graphs"] == 1


def test_sizes_zero_and_one_are_versions_of_their_own() -> None:
    compiled = fusec.compile(lambda x: (x.sum(0), x * 2), dynamic=True)
    for n in (4, 0, 1, 7, 9):
        x = torch.randn(n, 5)
        torch.testing.assert_close(compiled(x), (x.sum(0), x * 2))
    assert fusec.stats()["graphs"] == 3 and fusec.stats()["fallbacks"] == []  # torch takes 0 and 1 for constants


def test_a_derived_size_may_become_zero_or_one() -> None:
    fn = lambda x: (x[2:].sum(0), x[2:] + 1, x[:-1].amax(1))  # noqa: E731
    assert_one_compilation(fn, lambda n: (torch.randn(n, 5),), (9, 3, 4, 12), dynamic=True)


def test_numbers_of_any_sign_are_arguments() -> None:
    assert_one_compilation(lambda x, a: x * a + a, lambda a: (torch.ones(3), a), (3, -7, 2**40, 8))


@pytest.mark.parametrize("change", [lambda x: x.t(), lambda x: x[:, ::2], lambda x: x[:1].expand(len(x), -1)])
def test_strides_of_every_kind(change: Callable[[Tensor], Tensor]) -> None:
    assert_one_compilation(lambda x: x * 2 + x.sum(), lambda n: (change(torch.randn(n, 6)),), (3, 8, 17), dynamic=True)


def test_an_input_is_written_whatever_its_size() -> None:
    def fn(x: Tensor) -> Tensor:
        x.add_(1)
        return x * 2

    compiled = fusec.compile(fn, dynamic=True)
    for n in (3, 17, 40):
        x = torch.zeros(n, 4)
        assert compiled(x).unique().item() == 2 and x.unique().item() == 1
    assert fusec.stats()["graphs"] == 1


def test_tangents_of_other_strides_than_traced() -> None:
    compiled = fusec.compile(lambda x: x.exp(), dynamic=True)
    for n in (3, 5):
        x = torch.randn(n, 4, requires_grad=True)
        compiled(x).t().backward(torch.ones(4, n))
        torch.testing.assert_close(x.grad, x.detach().exp())


# -- sizes that values decide -----------------------------------------------------------------------

UNBACKED: dict[str, tuple[Callable[..., Any], Callable[[int], tuple[Any, ...]]]] = {
    "nonzero": (lambda x: (x > 0).nonzero() * 2, lambda n: (torch.randn(n, 5),)),
    "masked_select": (lambda x: x[x > 0].exp().sum(), lambda n: (torch.randn(n, 5),)),
    "unique": (lambda x: torch.unique(x) * 2, lambda n: (torch.randint(5, (n,)),)),
    "number": (lambda x, i: x * i.item(), lambda n: (torch.randn(4), torch.tensor(n - 20))),
    "slice": (lambda x, i: x[: i.item()] + 1, lambda n: (torch.randn(9, 3), torch.tensor(n % 12))),
    "zeros": (lambda i: torch.zeros(i.item(), 3) + 1, lambda n: (torch.tensor(n),)),
    "reduce": (lambda x: x[x > 0].cumsum(0).softmax(0), lambda n: (torch.randn(n + 5),)),
}


@pytest.fixture
def values_captured() -> Iterator[None]:
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True, capture_scalar_outputs=True):
        yield


@pytest.mark.usefixtures("values_captured")
@pytest.mark.parametrize("name", UNBACKED)
def test_the_graph_goes_on_with_sizes_known_after_a_call(name: str) -> None:
    fn, arguments = UNBACKED[name]
    compiled = fusec.compile(fn, dynamic=True, fullgraph=True)
    for n in (6, 17, 2, 40):
        given = arguments(n)
        torch.testing.assert_close(compiled(*given), fn(*given))
    found = fusec.stats()
    assert found["graphs"] == 1 and found["kernels_launched"] >= 4 and found["fallbacks"] == []


@pytest.mark.usefixtures("values_captured")
def test_what_the_user_asserts_is_checked() -> None:
    def fn(x: Tensor, i: Tensor) -> Tensor:
        n = int(i.item())
        torch._check(n >= 0)
        torch._check(n <= x.shape[0])
        return x.narrow(0, 0, n) * 2

    compiled, x = fusec.compile(fn, dynamic=True), torch.randn(8, 5)
    for n in (3, 8, 0):
        torch.testing.assert_close(compiled(x, torch.tensor(n)), x[:n] * 2)
    with pytest.raises(RuntimeError):
        compiled(x, torch.tensor(9))


# -- looking inside ---------------------------------------------------------------------------------


def norm_and_sum(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    return F.layer_norm(x @ w, (32,)), x.sum(0)


def test_what_explains_a_graph_names_its_sizes() -> None:
    x, w = torch.randn(9, 64), torch.randn(64, 32)
    explained = fusec.explain(norm_and_sum, dynamic=True)(x, w)
    text = explained.kernels[0].source
    assert "mm_ptr: f32[s0, 32] (32, 1)" in text and ", s0, XBLOCK: tl.constexpr" in text
    fusec.reset()
    static = fusec.explain(norm_and_sum)(x, w)
    assert explained.eager == static.eager  # bytes and launches of the call that was explained
    fusec.reset()
    assert fusec.replay(norm_and_sum, dynamic=True)(x, w)


def test_a_dumped_kernel_runs_alone_with_the_sizes_of_the_first_call(tmp_path: Path) -> None:
    fusec.compile(norm_and_sum, dynamic=True, options={"dump": str(tmp_path)})(torch.randn(9, 64), torch.randn(64, 32))
    (script,) = tmp_path.glob("*/kernels/sum_kernel.py")
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert "sum_kernel: ok" in ran.stdout


def test_an_archive_holds_the_binaries_for_all_sizes_and_for_even_ones(tmp_path: Path) -> None:
    made = fusec.precompile(
        lambda x: x.exp() * x.shape[0], (torch.randn(8, 64),), target="sm_90", path=tmp_path / "out", dynamic=True
    )
    assert "s0" in made.explanation.kernels[0].source
    assert len(fusec.load(tmp_path / "out").kernels) == 2
