"""Hand-built plans of the shapes that codegen must write: the goldens and the cross-compiled ones."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fusec.ir.types import Role
from tests.codegen.plans import Build, bf16, f32, i64

SAMPLES: dict[str, Callable[[], Build]] = {}


def sample(make: Callable[[], Build]) -> Callable[[], Build]:
    SAMPLES[make.__name__] = make
    return make


@sample
def swiglu() -> Build:
    """silu(gate) * up over a flat bf16 tensor."""
    b = Build(x=64 * 11008)
    b.buffer("gate", bf16, (64, 11008))
    b.buffer("up", bf16, (64, 11008))
    b.buffer("mul_3", bf16, (64, 11008), Role.OUTPUT)
    at = b.index(x0=1)
    b.at("silu_2", "aten.silu.default", "return self.down(F.silu(self.gate(x)) * self.up(x))", 57)
    gate = b.cast(b.load("gate", at), f32)
    silu = b.op("mul", gate, b.op("sigmoid", gate))
    b.at("mul_3", "aten.mul.Tensor", "return self.down(F.silu(self.gate(x)) * self.up(x))", 57)
    up = b.cast(b.load("up", at), f32)
    b.store("mul_3", at, b.cast(b.op("mul", silu, up), bf16))
    return b


@sample
def bias_gelu() -> Build:
    """gelu(x + bias): a vector broadcast along rows of a flat kernel."""
    b = Build(x=(100, 3072))
    b.buffer("addmm", f32, (100, 3072), Role.TEMPORARY)
    b.buffer("p_bias", f32, (3072,), hint="encoder.layer.3.intermediate.dense.bias")
    b.buffer("gelu", f32, (100, 3072), Role.OUTPUT)
    at = b.index(x0=3072, x1=1)
    b.at("add", "aten.add.Tensor", "h = self.dense(h)", 12)
    x = b.op("add", b.load("addmm", at), b.load("p_bias", b.index(x1=1)))
    b.at("gelu", "aten.gelu.default", "return F.gelu(h)", 13)
    erf = b.op("erf", b.op("mul", x, b.const(0.7071067811865476)))
    b.store("gelu", at, b.op("mul", b.op("mul", x, b.const(0.5)), b.op("add", erf, b.const(1.0))))
    return b


@sample
def softmax() -> Build:
    """A persistent softmax over rows of 1000, in bf16."""
    b = Build(x=64, r=1000)
    b.buffer("scores", bf16, (64, 1000))
    b.buffer("probs", bf16, (64, 1000), Role.OUTPUT)
    at = b.index(x0=1000, r0=1)
    b.at("_softmax", "aten._softmax.default", "attention = scores.softmax(-1)", 21)
    x = b.cast(b.load("scores", at), f32)
    exp = b.op("exp", b.op("sub", x, b.op("max", x)))
    b.store("probs", at, b.cast(b.op("div", exp, b.op("sum", exp)), bf16))
    return b


def _layer_norm(b: Build, n: int, looped: bool) -> Build:
    b.buffer("x", bf16, (64, n))
    b.buffer("residual", bf16, (64, n))
    b.buffer("p_w", bf16, (n,), hint="encoder.layer.0.LayerNorm.weight")
    b.buffer("p_b", bf16, (n,), hint="encoder.layer.0.LayerNorm.bias")
    b.buffer("out", bf16, (64, n), Role.OUTPUT)
    at = b.index(x0=n, r0=1)

    def summed() -> str:
        b.at("add", "aten.add.Tensor", "h = self.norm(x + residual)", 40)
        return b.op("add", b.cast(b.load("x", at), f32), b.cast(b.load("residual", at), f32))

    def next_phase(h: str) -> str:
        if not looped:
            return h
        b.phase()
        return summed()

    h = summed()
    b.at("native_layer_norm", "aten.native_layer_norm.default", "h = self.norm(x + residual)", 40)
    mean = b.op("div", b.op("sum", h), b.const(float(n)))
    h = next_phase(h)
    b.at("native_layer_norm", "aten.native_layer_norm.default", "h = self.norm(x + residual)", 40)
    centered = b.op("sub", h, mean)
    var = b.op("div", b.op("sum", b.op("mul", centered, centered)), b.const(float(n)))
    if looped:
        h = next_phase(h)
        b.at("native_layer_norm", "aten.native_layer_norm.default", "h = self.norm(x + residual)", 40)
        centered = b.op("sub", h, mean)
    rstd = b.op("rsqrt", b.op("add", var, b.const(1e-5)))
    w, bias = b.cast(b.load("p_w", b.index(r0=1)), f32), b.cast(b.load("p_b", b.index(r0=1)), f32)
    y = b.op("add", b.op("mul", b.op("mul", centered, rstd), w), bias)
    b.store("out", at, b.cast(y, bf16))
    return b


@sample
def layer_norm() -> Build:
    """Residual and layer norm over rows of 768, held in registers."""
    return _layer_norm(Build(x=64, r=768), 768, looped=False)


@sample
def looped_layer_norm() -> Build:
    """The same over rows of 20000: three passes."""
    return _layer_norm(Build(looped=True, x=64, r=20000), 20000, looped=True)


@sample
def transpose() -> Build:
    """x.t().contiguous() * 2 of a [512, 256] tensor, in one 2-D tile."""
    b = Build(y=256, x=512)
    b.buffer("x", f32, (512, 256))
    b.buffer("out", f32, (256, 512), Role.OUTPUT)
    b.at("mul", "aten.mul.Tensor", "(x * 2).t().contiguous()", 3)
    value = b.op("mul", b.load("x", b.index(x0=256, y0=1)), b.const(2.0))
    b.store("out", b.index(y0=512, x0=1), value)
    return b


@sample
def looped_argmax() -> Build:
    """argmax over rows of 50257, the vocabulary of a language model."""
    b = Build(looped=True, x=4, r=50257)
    b.buffer("logits", f32, (4, 50257))
    b.buffer("argmax", i64, (4,), Role.OUTPUT)
    b.at("argmax", "aten.argmax.default", "token = logits.argmax(-1)", 90)
    best = b.op("argmax", b.load("logits", b.index(x0=50257, r0=1)), b.position(b.axis("r0")))
    b.store("argmax", b.index(x0=1), best)
    return b


@sample
def embedding() -> Build:
    """weight[ids] + position: a gather of rows."""
    b = Build(x=(20, 384))
    b.buffer("ids", i64, (20,))
    b.buffer("p_weight", f32, (30522, 384), hint="embeddings.word_embeddings.weight")
    b.buffer("position", f32, (20, 384))
    b.buffer("out", f32, (20, 384), Role.OUTPUT)
    b.at("embedding", "aten.embedding.default", "h = self.word_embeddings(ids) + position", 7)
    ids = b.load("ids", b.index(x0=1))
    word = b.load("p_weight", b.value(ids, 30521) * 384 + b.axis("x1"))
    b.at("add", "aten.add.Tensor", "h = self.word_embeddings(ids) + position", 7)
    at = b.index(x0=384, x1=1)
    b.store("out", at, b.op("add", word, b.load("position", at)))
    return b


@sample
def cat() -> Build:
    """torch.cat([a, b], 1): masked loads of two segments."""
    b = Build(x=(64, 96))
    b.buffer("a", f32, (64, 32))
    b.buffer("b", f32, (64, 64))
    b.buffer("cat", f32, (64, 96), Role.OUTPUT)
    b.at("cat", "aten.cat.default", "torch.cat([a, b], 1)", 5)
    first = b.op("lt", b.position(b.axis("x1")), b.const(32, i64))
    second = b.op("not", first)
    left = b.load("a", b.index(x0=32, x1=1), first, 0.0)
    right = b.load("b", b.index(x0=64, x1=1, offset=-32), second, 0.0)
    b.store("cat", b.index(x0=96, x1=1), b.op("where", first, left, right))
    return b


@sample
def column_sum() -> Build:
    """The sum over the outer axis: columns are the grid."""
    b = Build(x=1000, r=64)
    b.buffer("grad", f32, (64, 1000))
    b.buffer("out", f32, (1000,), Role.OUTPUT)
    b.at("sum_1", "aten.sum.dim_IntList", "grad.sum(0)", 2)
    b.store("out", b.index(x0=1), b.op("sum", b.load("grad", b.index(r0=1000, x0=1))))
    return b


INPUTS: dict[str, Callable[[], dict[str, torch.Tensor]]] = {
    "swiglu": lambda: {"gate": torch.randn(64, 11008).to(bf16), "up": torch.randn(64, 11008).to(bf16)},
    "bias_gelu": lambda: {"addmm": torch.randn(100, 3072), "p_bias": torch.randn(3072)},
    "softmax": lambda: {"scores": (4 * torch.randn(64, 1000)).to(bf16)},
    "layer_norm": lambda: _norm_inputs(768),
    "looped_layer_norm": lambda: _norm_inputs(20000),
    "transpose": lambda: {"x": torch.randn(512, 256)},
    "looped_argmax": lambda: {"logits": torch.randn(4, 50257)},
    "embedding": lambda: {
        "ids": torch.randint(0, 30522, (20,)),
        "p_weight": torch.randn(30522, 384),
        "position": torch.randn(20, 384),
    },
    "cat": lambda: {"a": torch.randn(64, 32), "b": torch.randn(64, 64)},
    "column_sum": lambda: {"grad": torch.randn(64, 1000)},
}

# Blocks as the scheduler chooses them on a GPU.
BLOCKS: dict[str, dict[str, int]] = {
    "swiglu": {"x": 1024},
    "bias_gelu": {"x": 512},
    "softmax": {"x": 1},
    "layer_norm": {"x": 1},
    "looped_layer_norm": {"x": 1, "r": 4096},
    "transpose": {"x": 32, "y": 32},
    "looped_argmax": {"x": 1, "r": 2048},
    "embedding": {"x": 512},
    "cat": {"x": 512},
    "column_sum": {"x": 64},
}


def _norm_inputs(n: int) -> dict[str, torch.Tensor]:
    return {
        "x": (torch.randn(64, n) + 3).to(bf16),
        "residual": torch.randn(64, n).to(bf16),
        "p_w": torch.randn(n).to(bf16),
        "p_b": torch.randn(n).to(bf16),
    }
