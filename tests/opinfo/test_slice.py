"""A fixed slice of PyTorch's OpInfo suite: a sample of every op, in a dtype that rotates from op to op.

`make test-opinfo` runs all samples in all dtypes, `make test-opinfo-backward` the gradients of all samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest

CHUNKS = 40
LARGEST = 2_000  # elements of a sample: the interpreter computes them one block after the other
DRAWN = 24  # samples of an op to choose from
DTYPES = ("float32", "bfloat16", "int64", "float16", "bool", "complex64", "float64", "int32", "uint8")


def slice_of(chunk: int) -> Iterator[tuple[Any, str, Any]]:
    """(op, dtype, sample) of every CHUNKS-th op."""
    from tests.opinfo.harness import elements
    from tests.opinfo.suite import ops, samples, supported

    for number in range(chunk, len(ops()), CHUNKS):
        op = ops()[number]
        turn = [d for d in DTYPES[number % len(DTYPES) :] + DTYPES[: number % len(DTYPES)] if supported(op, d)]
        for dtype in turn[:1]:
            small = [s for s in islice(samples(op, dtype), DRAWN) if elements((s.input, s.args, s.kwargs)) <= LARGEST]
            yield from ((op, dtype, sample) for sample in small[number % max(len(small), 1) :][:1])


def gradients_of(chunk: int, chunks: int, dtype: str) -> Iterator[tuple[Any, Any]]:
    """(op, sample) of every chunks-th op that has gradients."""
    from tests.opinfo.harness import elements
    from tests.opinfo.suite import ops, samples, supported

    for number, op in list(enumerate(o for o in ops() if supported(o, dtype)))[chunk::chunks]:
        small = [s for s in islice(samples(op, dtype), DRAWN) if elements((s.input, s.args, s.kwargs)) <= LARGEST]
        yield from ((op, sample) for sample in small[number % max(len(small), 1) :][:1])


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_a_sample_of_every_op_gives_eagers_answer(chunk: int) -> None:
    from tests.opinfo.harness import Compiler, run_sample
    from tests.opinfo.misses import miss_of
    from tests.opinfo.suite import full_name

    found = [(full_name(op), dtype, run_sample(op, sample, Compiler())) for op, dtype, sample in slice_of(chunk)]
    failed = [(name, dtype, o.verdict) for name, dtype, o in found if not o.passed and miss_of(name, dtype) is None]
    assert failed == []
    assert len(found) > 10 and sum(o.kernels > 0 for _, _, o in found) > 0


@pytest.mark.parametrize(("chunk", "dtype"), [*((c, "float32.backward") for c in range(6)), (6, "float64.gradcheck")])
def test_gradients_are_eagers_and_agree_with_finite_differences(chunk: int, dtype: str) -> None:
    from tests.opinfo.harness import Compiler, run_sample
    from tests.opinfo.misses import miss_of
    from tests.opinfo.suite import full_name, step_of

    step = step_of(dtype)
    found = [(full_name(op), run_sample(op, s, Compiler(), step=step)) for op, s in gradients_of(chunk, CHUNKS, dtype)]
    assert [(name, o.verdict) for name, o in found if not o.passed and miss_of(name, dtype) is None] == []
    assert (
        sum(o.verdict in ("same", "closer", "rounded") for _, o in found) > 10
        and sum(o.kernels > 1 for _, o in found) > 4
    )


@pytest.mark.parametrize("step", ["backward", "gradcheck"])
def test_a_wrong_gradient_is_found(step: str) -> None:
    from tests.opinfo.harness import STEPS, Compiler, run_sample
    from tests.opinfo.suite import full_name, ops, samples

    class Wrong(Compiler):
        def compiled(self, task: Any, arguments: Any) -> Any:
            graph = super().compiled(task, arguments)
            return replace(graph, call=lambda x: graph.call(x.detach() + (x - x.detach()) * 1.1))

    op = next(o for o in ops() if full_name(o) == "sinh")
    sample = next(samples(op, f"float64.{step}"))
    outcome = run_sample(op, sample, Wrong(), step=STEPS[step])
    assert outcome.verdict.startswith("result 2: values differ") or "Jacobian mismatch" in outcome.verdict
    assert run_sample(op, sample, Compiler(), step=STEPS[step]).verdict == "same"


@pytest.mark.parametrize("chunk", range(0, CHUNKS, 8))
def test_through_the_decorator_the_answer_or_the_error_is_eagers(chunk: int) -> None:
    from tests.opinfo.harness import Compiler, run_sample
    from tests.opinfo.misses import miss_of
    from tests.opinfo.suite import ERRORS, full_name, samples, supported

    for op, dtype, sample in list(slice_of(chunk))[::4]:
        outcome = run_sample(op, sample, Compiler(), decorated=True)
        assert outcome.passed or miss_of(full_name(op), dtype), f"{full_name(op)} {dtype}: {outcome.verdict}"
        wrong = next(samples(op, ERRORS), None) if supported(op, ERRORS) else None
        if wrong is not None and miss_of(full_name(op), ERRORS) is None:
            outcome = run_sample(op, wrong, Compiler(), decorated=True)
            assert outcome.verdict == "error", f"{full_name(op)}: {outcome.verdict}"


def test_the_table_of_misses_only_shrinks() -> None:
    from tests.opinfo.misses import LIMIT, MISSES
    from tests.opinfo.suite import full_name, ops

    names = {full_name(op) for op in ops()}
    assert len(MISSES) <= LIMIT and {m.op for m in MISSES} <= names
    assert all(m.reason and m.where for m in MISSES)


@pytest.mark.parametrize("name", ["amax", "cat", "complex", "gather", "narrow_copy", "take"])
def test_an_error_that_eager_alone_raises_is_missed_without_fusec_too(name: str) -> None:
    from tests.opinfo.harness import Compiler, run_sample
    from tests.opinfo.misses import miss_of
    from tests.opinfo.suite import ERRORS, full_name, ops, samples

    op = next(o for o in ops() if full_name(o) == name)
    outcomes = [run_sample(op, sample, Compiler()) for sample in samples(op, ERRORS)]
    missed = [o for o in outcomes if not o.passed]
    assert missed and all(o.without_fusec for o in missed) and miss_of(name, ERRORS) is not None


def test_max_unpools_fake_tensor_has_other_strides_than_its_kernel() -> None:
    """The defect of PyTorch behind a row of the table; when this fails, the row goes."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    x = torch.randn(1, 2, 1, 3).to(memory_format=torch.channels_last).as_strided((1, 2, 1, 3), (6, 1, 6, 2))
    index = torch.zeros(1, 2, 1, 3, dtype=torch.int64).as_strided((1, 2, 1, 3), (6, 1, 6, 2))
    real = torch.ops.aten.max_unpool2d(x, index, [3, 6])
    with FakeTensorMode() as mode:
        fake = torch.ops.aten.max_unpool2d(mode.from_tensor(x), mode.from_tensor(index), [3, 6])
    assert real.stride() == (36, 1, 12, 2) and fake.stride() == (36, 18, 6, 1)


def test_group_norms_statistics_alone_have_no_gradient_in_eager_mode() -> None:
    """The defect of PyTorch behind a row of the table; when this fails, the row goes."""
    import torch

    def mean(x: torch.Tensor) -> torch.Tensor:
        return torch.native_group_norm(x, None, None, 1, 4, 3, 2, 1e-5)[1]

    x = torch.randn(1, 4, 3, requires_grad=True)
    assert torch.autograd.grad(mean(x).sum(), x, allow_unused=True) == (None,)
    assert torch.allclose(mean(x + 1), mean(x) + 1)


def test_a_complex_pseudo_inverse_is_wrong_without_fusec_too() -> None:
    """The defect of PyTorch behind two rows of the table; when this fails, they go."""
    import torch

    x, one = torch.randn(5, 5, dtype=torch.complex64), torch.eye(5)
    compiled = torch.compile(torch.linalg.pinv, backend="aot_eager")
    assert (torch.linalg.pinv(x) @ x - one).abs().max() < 1e-4
    assert (compiled(x) @ x - one).abs().max() > 0.1
