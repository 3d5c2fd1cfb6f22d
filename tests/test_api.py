"""The decorator on functions, methods and modules; options; counters; the user's own errors."""

from __future__ import annotations

import copy
import functools
import io
import pickle
import subprocess
import sys
import threading
import traceback
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fusec
from fusec.capture.graph import CapturedGraph, is_symbolic
from fusec.errors import ConfigError, FallbackWarning, LoweringError, TargetError
from fusec.ir.types import Program
from fusec.lowering import lower

pytestmark = pytest.mark.usefixtures("clean")  # a cache of its own, counters at zero


class Block(nn.Module):
    """A small residual block with parameters, a buffer and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.norm, self.drop = nn.LayerNorm(8), nn.Dropout(0.5)
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.drop(self.down(torch.nn.functional.gelu(self.up(x)))) * self.scale)

    @fusec.compile
    def activate(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x) * self.scale


def silu(x: Tensor, scale: float = 2.0) -> Tensor:
    """Scaled SiLU."""
    return x * torch.sigmoid(x) * scale


# -- functions, methods, modules ------------------------------------------------------------------


def test_a_function_computes_the_same_and_keeps_its_name() -> None:
    compiled, x = fusec.compile(silu), torch.randn(17, 5)
    torch.testing.assert_close(compiled(x, scale=3.0), silu(x, scale=3.0))
    assert (compiled.__name__, compiled.__doc__) == ("silu", "Scaled SiLU.")
    assert fusec.stats()["graphs"] == 1 and fusec.stats()["kernels_launched"] == 1


def test_decorator_without_parentheses() -> None:
    @fusec.compile
    def double(x: Tensor) -> Tensor:
        return x * 2 + 1

    assert double(torch.ones(3)).tolist() == [3.0] * 3


def test_decorator_with_arguments() -> None:
    @fusec.compile(precision="eager", name="doubling")
    def double(x: Tensor) -> Tensor:
        return x * 2 + 1

    assert double(torch.ones(3)).tolist() == [3.0] * 3


def test_a_method_sees_its_self() -> None:
    block, x = Block(), torch.randn(3, 8)
    with torch.no_grad():
        torch.testing.assert_close(block.activate(x), torch.sigmoid(x) * 0.5)
        torch.testing.assert_close(fusec.compile(block.forward)(x).shape, x.shape)


def test_disable_returns_the_function_itself() -> None:
    assert fusec.compile(silu, disable=True) is silu


def test_a_compiled_function_inside_another() -> None:
    inner = fusec.compile(silu)
    outer = fusec.compile(lambda x: inner(x) + 1)
    x = torch.randn(9)
    torch.testing.assert_close(outer(x), silu(x) + 1)


def test_a_module_in_eval_mode() -> None:
    block, x = Block().eval(), torch.randn(5, 8)
    compiled = fusec.compile(block)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), block(x))
    assert isinstance(compiled, nn.Module) and compiled.scale is block.scale


def test_train_and_eval_reach_the_module() -> None:
    block = Block()
    compiled = fusec.compile(block)
    compiled.eval()
    assert not block.training and not block.drop.training
    x = torch.randn(5, 8)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), compiled(x))
        compiled.train()
        assert block.training and not torch.equal(compiled(x), compiled(x))


def test_state_dict_goes_both_ways() -> None:
    source, target = Block(), Block()
    compiled = fusec.compile(target).eval()
    expected = torch.compile(target, backend="eager").state_dict()
    assert list(compiled.state_dict()) == list(expected)
    target.load_state_dict(source.state_dict())
    x = torch.randn(4, 8)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), source.eval()(x))


def test_parameters_changed_in_place_are_seen() -> None:
    block, x = Block().eval(), torch.randn(4, 8)
    compiled = fusec.compile(block)
    with torch.no_grad():
        compiled(x)
        block.norm.weight.mul_(3)
        torch.testing.assert_close(compiled(x), block(x))


def test_forward_hooks_run_once_a_call() -> None:
    block, seen = Block().eval(), []
    block.register_forward_hook(lambda module, args, output: seen.append(1))
    with torch.no_grad():
        compiled = fusec.compile(block)
        for _ in range(3):
            compiled(torch.randn(2, 8))
    assert len(seen) == 3


def test_pickle_and_deepcopy_of_a_compiled_module() -> None:
    block, x = Block().eval(), torch.randn(4, 8)
    compiled = fusec.compile(block, precision="eager", name="block")
    with torch.no_grad():
        expected = compiled(x)
        for restored in (pickle.loads(pickle.dumps(compiled)), copy.deepcopy(compiled)):
            assert type(restored) is type(compiled) and restored.norm is not block.norm
            torch.testing.assert_close(restored(x), expected)
            assert restored._fusec[0].precision == "eager"


def test_torch_save_and_load() -> None:
    compiled, x, file = fusec.compile(Block().eval()), torch.randn(4, 8), io.BytesIO()
    torch.save(compiled, file)
    file.seek(0)
    with torch.no_grad():
        torch.testing.assert_close(torch.load(file, weights_only=False)(x), compiled(x))


def test_outputs_may_be_nested_and_hold_numbers_and_none() -> None:
    @fusec.compile
    def fn(x: Tensor) -> dict[str, Any]:
        return {"sum": x.sum(), "pair": (x + 1, None), "n": x.shape[0], "same": x}

    x = torch.randn(3, 4)
    out = fn(x)
    torch.testing.assert_close(out["sum"], x.sum())
    torch.testing.assert_close(out["pair"][0], x + 1)
    assert out["pair"][1] is None and out["n"] == 3 and out["same"] is x


def test_inputs_written_in_place() -> None:
    @fusec.compile
    def step(cache: Tensor, x: Tensor, i: int) -> Tensor:
        cache[i] = x
        return cache.sum(0)

    cache = torch.zeros(4, 3)
    for i in range(4):
        torch.testing.assert_close(step(cache, torch.full((3,), i + 1.0), i), cache.sum(0))
    assert cache[:, 0].tolist() == [1.0, 2.0, 3.0, 4.0]
    counted = fusec.stats()  # from its second value on the position is a number of the graph
    assert counted["graphs"] == 2 and not counted["fallbacks"] and counted["kernels_launched"] >= 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_dtypes_and_awkward_inputs(dtype: torch.dtype) -> None:
    fn = fusec.compile(lambda x: (x + x, x.sum(-1)))
    base = torch.randint(0, 3, (6, 17)).to(dtype)
    for x in (base, base.t(), base[1:4, ::2], base[:1].expand(5, 17), base[:0], base[0, 0]):
        torch.testing.assert_close(fn(x), (x + x, x.sum(-1)))


class Tagged(torch.Tensor):
    """A subclass with no dispatch of its own."""


def test_a_tensor_subclass() -> None:
    x = torch.randn(5).as_subclass(Tagged)
    got = fusec.compile(silu)(x)
    torch.testing.assert_close(got.as_subclass(Tensor), silu(x.as_subclass(Tensor)))
    assert fusec.stats()["fallbacks"] == []


def test_views_of_inputs_and_of_results_stay_views() -> None:
    def fn(x: Tensor) -> tuple[Tensor, ...]:
        y = x * 2
        return x.t(), y, y[0]

    x = torch.randn(3, 4)
    transposed, y, row = fusec.compile(fn)(x)
    y.add_(1)
    assert transposed.data_ptr() == x.data_ptr()
    torch.testing.assert_close(row, x[0] * 2 + 1)


def test_random_numbers_are_those_of_eager_mode() -> None:
    def fn(x: Tensor) -> Tensor:
        return torch.nn.functional.dropout(x, 0.5) + torch.rand_like(x) * torch.randn(5)

    x, results = torch.ones(4, 5), []
    for f in (fn, fusec.compile(fn, options={"random": "eager"})):
        torch.manual_seed(3)
        results.append(f(x))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_grad_modes(mode: Any) -> None:
    def step(cache: Tensor, x: Tensor) -> Tensor:
        cache[:, 1] = x
        return cache.softmax(-1)

    with mode():
        ours, theirs, x = torch.zeros(3, 4), torch.zeros(3, 4), torch.randn(3)
        torch.testing.assert_close(fusec.compile(step)(ours, x), step(theirs, x))
        torch.testing.assert_close(ours, theirs)


def test_autocast() -> None:
    block, x = Block().eval(), torch.randn(3, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(fusec.compile(block)(x), block(x), rtol=2e-2, atol=2e-2)


def test_threads_share_a_compiled_function() -> None:
    fn, errors = fusec.compile(silu), []

    def work(n: int) -> None:
        try:
            for k in range(3):
                x = torch.randn(n, 4 + k)
                torch.testing.assert_close(fn(x), silu(x))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in (2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and fusec.stats()["fallbacks"] == []


def test_an_optimizer_step() -> None:
    ours, theirs = (nn.Linear(4, 3), nn.Linear(4, 3))
    theirs.load_state_dict(ours.state_dict())
    optimizers = [torch.optim.AdamW(m.parameters(), lr=0.1) for m in (ours, theirs)]
    steps = [fusec.compile(optimizers[0].step), optimizers[1].step]
    for _ in range(3):
        for module, step in zip((ours, theirs), steps, strict=True):
            module.zero_grad()
            module(torch.ones(2, 4)).square().sum().backward()
            step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-4, atol=1e-5)


# -- graph breaks, recompilation, gradients ---------------------------------------------------------


def test_graph_breaks_are_counted_and_harmless() -> None:
    @fusec.compile
    def fn(x: Tensor) -> Tensor:
        y = torch.exp(x)
        return y * float(y.sum())

    x = torch.randn(7)
    torch.testing.assert_close(fn(x), torch.exp(x) * torch.exp(x).sum())
    assert fusec.stats()["graph_breaks"] == 1 and fusec.stats()["graphs"] == 2


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


@pytest.mark.parametrize("wrap", [nn.Sequential, nn.Identity])
def test_what_capture_gives_up_is_counted(wrap: type[nn.Module]) -> None:
    model, x = Recurrent(), torch.randn(2, 3, 4)  # Dynamo does not trace recurrent modules
    compiled = fusec.compile(nn.Sequential(model.rnn) if wrap is nn.Sequential else model)
    with torch.no_grad():
        got = compiled(x)
        torch.testing.assert_close(got[0] if isinstance(got, tuple) else got, model(x))
        compiled(x)
    assert fusec.stats()["graphs"] == 0 and fusec.stats()["graph_breaks"] == 1


def test_a_graph_break_before_the_first_op_is_counted() -> None:
    def fn(x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return x + 1

    torch.testing.assert_close(fusec.compile(fn)(torch.ones(3)), torch.full((3,), 2.0))
    assert fusec.stats()["graphs"] == 1 and fusec.stats()["graph_breaks"] == 1


def test_fullgraph_makes_a_graph_break_an_error() -> None:
    def fn(x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return x + 1

    with pytest.raises(torch._dynamo.exc.Unsupported):
        fusec.compile(fn, fullgraph=True)(torch.ones(2))


def test_new_sizes_are_recompilations() -> None:
    fn = fusec.compile(lambda x: torch.softmax(x * 2, -1))
    for n in (3, 5, 7, 5):
        x = torch.randn(2, n)
        torch.testing.assert_close(fn(x), torch.softmax(x * 2, -1))
    found = fusec.stats()
    assert found["graphs"] == 2 and found["recompiles"] == 1 and found["fallbacks"] == []


def test_a_graph_that_needs_numbers_is_compiled_for_each_size_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_numbers(graph: CapturedGraph, *rest: Any) -> Program:
        if is_symbolic(graph.example_inputs):
            raise LoweringError("a size is wanted as a number")
        return lower(graph, *rest)

    monkeypatch.setattr("fusec.pipeline.lower", only_numbers)
    fn = fusec.compile(lambda x: x.exp() + 1, dynamic=True, recompile_limit=2)
    with pytest.warns(FallbackWarning) as caught:
        for n in range(3, 9):
            x = torch.randn(n)
            torch.testing.assert_close(fn(x), x.exp() + 1)
    found = fusec.stats()
    assert found["graphs"] == 2 and [f["level"] for f in found["fallbacks"]] == ["sizes", "graph"]
    assert "a size is wanted as a number" in str(caught[0].message) and "2 tuples of sizes" in str(caught[1].message)


def test_gradients_are_those_of_eager_mode() -> None:
    block = Block().eval()  # no dropout
    x = torch.randn(5, 8, requires_grad=True)
    fusec.compile(block)(x).square().sum().backward()
    got = [x.grad, *(p.grad for p in block.parameters())]
    block.zero_grad()
    x.grad = None
    block(x).square().sum().backward()
    torch.testing.assert_close(got, [x.grad, *(p.grad for p in block.parameters())], rtol=1e-3, atol=1e-5)
    assert fusec.stats()["graphs"] == 2


def test_a_training_loop_learns() -> None:
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
    compiled, optimizer = fusec.compile(model), torch.optim.SGD(model.parameters(), 0.1)
    x = torch.randn(32, 4)
    y = x.sum(1, keepdim=True)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(compiled(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]


# -- bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [3, "relu", [silu], None.__class__()])
def test_not_callable_is_a_type_error(value: Any) -> None:
    if value is None:
        assert callable(fusec.compile(value))  # the decorator form
        return
    with pytest.raises(TypeError, match=f"a function, a method or a module, got {type(value).__name__}"):
        fusec.compile(value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "defualt"}, "unknown mode 'defualt'; did you mean \"default\"?.*reduce-overhead"),
        ({"precision": "fasst"}, "unknown precision 'fasst'; did you mean \"fast\"?"),
        ({"target": "sm90"}, "unknown target 'sm90'; did you mean \"sm_90\"?"),
        ({"options": {"fusoin": False}}, "unknown option 'fusoin'; did you mean \"fusion\"?"),
        ({"options": {"fusion": "no"}}, "fusion must be True or False"),
        ({"options": ["fusion"]}, "options must be a dict"),
        ({"options": {1: 2}}, "option names are strings"),
        ({"fullgraph": 1}, "fullgraph must be True or False"),
        ({"dynamic": "yes"}, "dynamic must be None, True or False"),
        ({"recompile_limit": 0}, "recompile_limit must be an integer of at least 1"),
        ({"disable": None}, "disable must be True or False"),
        ({"name": 3}, "name must be a string"),
    ],
)
def test_unknown_options_and_values_list_the_valid_ones(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fusec.compile(silu, **arguments)
    with pytest.raises(ConfigError, match=message):
        fusec.compile(**arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_target_cuda_without_a_gpu() -> None:
    with pytest.raises(TargetError, match='target "cuda" needs a GPU'):
        fusec.compile(silu, target="cuda")


def mismatched(x: Tensor, y: Tensor) -> Tensor:
    z = x + 1
    return z @ y  # the users line


def shape_error(function: Any, *args: Any) -> tuple[type[BaseException], str, str]:
    """The error of a call: its type, message and innermost line of this file."""
    try:
        function(*args)
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == __file__]
        assert error.__cause__ is None and (error.__context__ is None or error.__suppress_context__)
        return type(error), str(error), frames[-1].line or ""
    raise AssertionError("no error")


@pytest.mark.parametrize("options", [{}, {"fullgraph": True}, {"options": {"strict": True}}])
def test_a_shape_error_is_the_eager_error_at_the_users_line(options: dict[str, Any]) -> None:
    x, y = torch.ones(3, 4), torch.ones(3, 4)
    got = shape_error(fusec.compile(mismatched, **options), x, y)
    assert got == shape_error(mismatched, x, y)
    assert got[2] == "return z @ y  # the users line"


def test_a_shape_error_in_a_module() -> None:
    model = nn.Sequential(nn.Linear(4, 7), nn.Linear(8, 7))
    got = shape_error(fusec.compile(model), torch.ones(2, 4))
    assert got[:2] == shape_error(model, torch.ones(2, 4))[:2]


def test_a_shape_error_in_a_decorated_forward() -> None:
    def logged(forward: Any) -> Any:
        @functools.wraps(forward)
        def wrapper(self: nn.Module, *args: Tensor) -> Tensor:
            return forward(self, *args)

        return wrapper

    class Model(nn.Module):
        @logged
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return mismatched(x, y)

    x = torch.ones(3, 4)
    assert shape_error(fusec.compile(Model()), x, x) == shape_error(Model(), x, x)


def test_an_error_that_a_library_raises_at_run_time() -> None:
    fn = fusec.compile(lambda x: torch.linalg.inv(x) + 1)
    x = torch.eye(3) * 2
    torch.testing.assert_close(fn(x), torch.linalg.inv(x) + 1)
    if torch.__version__ >= "2.13":  # before, AOTAutograd drops the check for every backend
        with pytest.raises(torch.linalg.LinAlgError, match="singular"):
            fn(torch.zeros(3, 3))
    torch.testing.assert_close(fn(x), torch.linalg.inv(x) + 1)
    assert fusec.stats()["fallbacks"] == [] and fusec.stats()["kernels_launched"] == 2


def test_the_users_exception_is_not_touched() -> None:
    def fn(x: Tensor) -> Tensor:
        if x.shape[0] == 3:
            raise KeyError("mine")
        return x + 1

    with pytest.raises(KeyError, match="mine"):
        fusec.compile(fn)(torch.ones(3))


def test_a_function_with_no_tensors_just_runs() -> None:
    assert fusec.compile(lambda a, b: a + b)(2, 3) == 5
    assert fusec.stats()["graphs"] == 0


# -- counters, explanations, the entry point --------------------------------------------------------


def test_stats_are_plain_values_and_reset_clears_them() -> None:
    fn = fusec.compile(silu)
    fn(torch.randn(3))
    fn(torch.randn(3))
    found = fusec.stats()
    assert set(found) == {
        *("graphs", "graph_breaks", "kernels_built", "kernels_launched", "extern_calls"),
        *("fallbacks", "cache_hits", "recompiles"),
    }
    assert found["kernels_launched"] == 2 and found["kernels_built"] == 1 and found["extern_calls"] == 0
    found["fallbacks"].append("mine")
    assert fusec.stats()["fallbacks"] == []
    fusec.reset()
    assert all(v in (0, []) for v in fusec.stats().values())
    fn(torch.randn(3))
    assert fusec.stats()["graphs"] == 1


def test_extern_calls_are_counted() -> None:
    fusec.compile(lambda x: (x @ x).relu())(torch.randn(4, 4))
    assert fusec.stats()["extern_calls"] == 1


def test_a_second_compilation_hits_the_cache() -> None:
    x = torch.randn(5, 3)
    fusec.compile(silu)(x)
    fusec.reset()
    fusec.compile(silu)(x)
    assert fusec.stats()["cache_hits"] == 1 and fusec.stats()["kernels_built"] == 0


def test_explain_a_function_and_a_compiled_module() -> None:
    x = torch.randn(4, 8)
    found = fusec.explain(silu)(x, scale=0.5)
    assert len(found.graphs) == 1 and len(found.kernels) == 1 and found.kernels[0].launches == 1
    assert "@triton.jit" in found.kernels[0].source and "silu" not in fusec.stats()
    assert any("test_api.py" in line for line in found.kernels[0].lines)
    with torch.no_grad():
        text = str(fusec.explain(fusec.compile(Block().eval()))(x))
    assert "1 graph" in text and "aten.addmm" in text
    assert fusec.stats()["graphs"] == 0  # explaining counts into its own counters


def test_explain_reports_graph_breaks() -> None:
    def fn(x: Tensor) -> Tensor:
        y = x.exp()
        torch._dynamo.graph_break()
        return y + 1

    found = fusec.explain(fn)(torch.randn(3))
    assert len(found.graphs) == 2 and len(found.graph_breaks) == 1 and "test_api.py" in found.graph_breaks[0]


def test_explain_needs_a_callable() -> None:
    with pytest.raises(TypeError, match=r"fusec\.explain takes a function"):
        fusec.explain(3)


def test_dump_writes_every_stage(tmp_path: Path) -> None:
    fusec.compile(silu, options={"dump": tmp_path / "out"})(torch.randn(4, 5))
    names = sorted(p.name for p in (tmp_path / "out" / "silu_0").iterdir())
    assert names[:3] == ["01_program.txt", "02_simplified.txt", "03_schedule.txt"] and "kernels" in names
    assert "sigmoid" in (tmp_path / "out" / "silu_0" / "01_program.txt").read_text()


def test_torch_compile_takes_the_backend_with_options() -> None:
    from fusec.api import dynamo_backend

    x = torch.randn(5)
    fn = torch.compile(silu, backend=dynamo_backend, options={"precision": "eager"})
    torch.testing.assert_close(fn(x), silu(x))
    with pytest.raises(Exception, match='unknown option .precison.; did you mean "precision"'):
        torch.compile(lambda x: x + 1, backend=dynamo_backend, options={"precison": "eager"})(x)


ENTRY_POINT = """
import sys, torch
from importlib.metadata import entry_points
if not any(e.name == "fusec" for e in entry_points(group="torch_dynamo_backends")):
    print("not installed"); sys.exit()
model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU(), torch.nn.LayerNorm(4)).eval()
assert not any(m == "fusec" or m.startswith("fusec.") for m in sys.modules)
x = torch.randn(3, 4)
with torch.no_grad():
    torch.testing.assert_close(torch.compile(model, backend="fusec", mode="default")(x), model(x))
import fusec
print(fusec.stats()["kernels_launched"], fusec.stats()["fallbacks"])
"""


def test_entry_point_needs_no_import() -> None:
    done = subprocess.run([sys.executable, "-c", ENTRY_POINT], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    if done.stdout.strip() == "not installed":
        pytest.skip("the package is not installed, so it has no entry points")
    assert done.stdout.split(maxsplit=1) == ["1", "[]\n"]


def test_nothing_is_warned_of_when_nothing_falls_back() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        fusec.compile(Block())(torch.randn(3, 8)).sum().backward()
    assert [f for f in fusec.stats()["fallbacks"] if f["level"] != "op"] == []
