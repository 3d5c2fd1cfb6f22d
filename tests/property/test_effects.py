"""Random programs with effects and views: compiled, they answer as eager does and leave the same behind."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode

from fusec.api import Backend
from fusec.config import Config
from fusec.pipeline import Stats
from tests.effects.helpers import aliases
from tests.property.effects import EffectsProgram, effects_program, written

PROGRAMS = 100
CHUNK = 20
# Of the largest value: a few roundings of the widest chain, each in the dtype of a buffer.
SLACK = {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 6e-2, torch.float16: 8e-3}


def check(program: EffectsProgram) -> Stats:
    """Assert that the compiled program does what eager mode does; returns what was counted."""
    stats = Stats()
    (leaves, ours), (eager_leaves, theirs) = _arguments(program), _arguments(program)
    with warnings.catch_warnings(), torch.set_grad_enabled(program.gradient):
        warnings.simplefilter("ignore")  # eager's own: deprecated reductions, in-place resizes
        compiled = _compiled(program, ours, stats)
        torch.manual_seed(program.seed)
        got = compiled(*ours)
        torch.manual_seed(program.seed)
        want = program.fn(*theirs)
    slack = _slack(program)
    _same([*got, *ours], [*want, *theirs], slack, str(program))
    seen, expected = _layout([*got, *ours]), _layout([*want, *theirs])
    # Strides and aliases that PyTorch's own capture loses are lost before fusec sees the graph.
    assert seen == expected or seen == _captured_layout(program), f"{program}\n{seen}\neager {expected}"
    if program.gradient and _differentiated(want, refused=RuntimeError):
        assert _differentiated(got), f"{program}\nno gradient"
        _same(_gradients(leaves), _gradients(eager_leaves), slack, f"{program}\ngradients")
    return stats


def unexpected(stats: Stats) -> list[str]:
    """Fallbacks other than that PyTorch could not capture the program, or that an op is a library call."""
    steps = [f for f in stats.fallbacks if f.level != "op"]
    return [str(f) for f in steps if "AOTAutograd failed" not in f.reason]


def _arguments(program: EffectsProgram) -> tuple[list[Tensor], list[Tensor]]:
    """(leaves, arguments): the same tensors, unless a gradient is asked for: a leaf cannot be written."""
    found = program.inputs()
    if not program.gradient:
        return found, found
    leaves = [x.clone().requires_grad_() for x in found]
    return leaves, [x.clone() for x in leaves]


def _compiled(program: EffectsProgram, inputs: Sequence[Tensor], stats: Stats) -> Callable[..., Any]:
    """The function through AOTAutograd and every pass, without Dynamo."""
    compiler = Backend(Config(cache=False, workers=0, random="eager"), stats=stats)
    module, mode = fx.symbolic_trace(program.fn), FakeTensorMode()
    with tracing(TracingContext(mode)):
        return compiler(module, [mode.from_tensor(x, static_shapes=True) for x in inputs])


def _differentiated(results: Sequence[Tensor], refused: type[Exception] | tuple[()] = ()) -> bool:
    """Run backward from the sum of all results; False where there is nothing to differentiate, or it is refused."""
    try:
        total = [r.sum() for r in results if r.requires_grad]
        if total:
            sum(total).backward()  # type: ignore[union-attr]
    except refused:
        return False
    return bool(total)


def _gradients(leaves: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]


def _layout(values: Sequence[Tensor]) -> tuple[Any, ...]:
    """Strides where they matter, and which tensors share memory."""
    strides = [[s for s, n in zip(x.stride(), x.shape, strict=True) if n > 1] if x.numel() else [] for x in values]
    return strides, aliases(list(values))


def _captured_layout(program: EffectsProgram) -> tuple[Any, ...]:
    """The same after PyTorch's own capture, without fusec."""
    torch._dynamo.reset()
    _, inputs = _arguments(program)
    with torch.set_grad_enabled(program.gradient):
        return _layout([*torch.compile(program.fn, backend="aot_eager")(*inputs), *inputs])


def _slack(program: EffectsProgram) -> float:
    """Of the coarsest dtype in the program: inside a kernel its values are not rounded, in eager mode they are."""
    dtypes = [d for d in SLACK if str(d) in str(program)]
    return max((SLACK[d] for d in dtypes), default=SLACK[torch.float32])


def _same(got: Sequence[Tensor], want: Sequence[Tensor], slack: float, what: str) -> None:
    assert len(got) == len(want), what
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        seen, wanted = (f"{x.dtype} {tuple(x.shape)}" for x in (a, b))
        assert seen == wanted, f"{what} [{i}]: {seen}, eager {wanted}"
        if not b.is_floating_point():
            assert torch.equal(a, b), f"{what} [{i}]: {int((a != b).sum())} of {b.numel()} differ"
            continue
        a, b = a.detach().double(), b.detach().double()
        finite = b[b.isfinite()]
        scale = max(float(finite.abs().max()), 1.0) if finite.numel() else 1.0
        room = max(slack, SLACK[want[i].dtype]) * scale
        torch.testing.assert_close(a, b, rtol=0, atol=room, equal_nan=True, msg=lambda m, i=i: f"{what} [{i}]: {m}")


@pytest.mark.parametrize("first", range(0, PROGRAMS, CHUNK))
def test_random_programs_with_effects_answer_as_eager(first: int) -> None:
    programs = [effects_program(seed) for seed in range(first, first + CHUNK)]
    counted = [check(program) for program in programs]
    assert not [reason for stats in counted for reason in unexpected(stats)]
    assert sum(stats.kernels_launched for stats in counted) >= CHUNK // 2
    assert sum(bool(written(program)) for program in programs) >= CHUNK // 2


def test_a_program_is_the_same_for_the_same_seed() -> None:
    assert str(effects_program(3)) == str(effects_program(3)) != str(effects_program(4))
