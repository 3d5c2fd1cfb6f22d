"""Products whose rows are not aligned: which are padded, and that their values stay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fusec.capture import aligned
from fusec.capture.aligned import alignment_table, padding

aten = torch.ops.aten
BF16 = torch.bfloat16


def fake(
    *shape: int, strides: tuple[int, ...] | None = None, dtype: torch.dtype = BF16, device: str = "cuda"
) -> Tensor:
    strides = strides or (shape[1], 1)
    with FakeTensorMode():
        return torch.empty_strided(shape, strides, dtype=dtype, device=device)


def test_only_what_is_slow_is_padded() -> None:
    x, w = fake(16384, 768), fake(768, 50257, strides=(1, 768))
    assert padding(x, w) == (0, 0, 7), "the result's rows"
    assert padding(x, fake(768, 50257)) == (0, 0, 7), "the operand's rows, too"
    assert padding(fake(16384, 50257), fake(50257, 768)) == (0, 7, 0), "the gradient's rows"
    assert padding(fake(50257, 16384, strides=(1, 50257)), fake(16384, 768)) == (7, 0, 0), "and their transpose"
    assert padding(x, fake(768, 50264, strides=(1, 768))) is None
    assert padding(fake(16384, 768, strides=(768 + 8, 1)), fake(768, 512)) is None, "a cut of an aligned tensor"


@pytest.mark.parametrize("kind", [{"device": "cpu"}, {"dtype": torch.float32}])
def test_others_are_left(kind: dict[str, object]) -> None:
    x, w = fake(16384, 768, **kind), fake(768, 50257, **kind)  # type: ignore[arg-type]
    assert padding(x, w) is None
    assert alignment_table()[aten.mm.default](x, w) is NotImplemented


def test_small_products_and_thin_ones_are_left() -> None:
    assert padding(fake(64, 16), fake(16, 33)) is None
    assert padding(fake(100_000, 16), fake(16, 1001)) is None, "copying the result costs more"


@pytest.mark.parametrize("extra", [(0, 0, 7), (0, 3, 0), (1, 3, 7)])
def test_padded_operands_lie_in_memory_as_they_did(extra: tuple[int, int, int]) -> None:
    a, b = torch.randn(9, 11), torch.randn(13, 11).t()
    more_a, more_b = aligned._padded(a, b, extra)
    rows, inner, columns = extra
    assert (more_a.stride(1), more_b.stride(0)) == (1, 1)
    assert (more_a.shape, more_b.shape) == ((9 + rows, 11 + inner), (11 + inner, 13 + columns))
    torch.testing.assert_close((more_a @ more_b)[:9, :13], a @ b)


@pytest.mark.parametrize("extra", [(1, 0, 0), (0, 5, 0), (0, 0, 3), (7, 7, 7)])
def test_padded_products_are_the_products(extra: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []

    def once(a: Tensor, b: Tensor) -> tuple[int, int, int]:
        asked.append((*a.shape, *b.shape))
        return extra

    monkeypatch.setattr(aligned, "padding", once)
    a, b, bias = torch.randn(9, 11), torch.randn(11, 13), torch.randn(13)
    product = alignment_table()[aten.mm.default](a, b)
    torch.testing.assert_close(product, a @ b)
    assert product.is_contiguous()
    torch.testing.assert_close(alignment_table()[aten.addmm.default](bias, a, b), bias + a @ b)
    assert alignment_table()[aten.addmm.default](bias, a, b, beta=2) is NotImplemented
    assert asked == [(9, 11, 11, 13)] * 3
