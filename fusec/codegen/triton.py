"""The text table: how each row of `fusec.ir.ops.OPS` is written in Triton.

Enters: an op, its operands as text, dtypes and the precision. Leaves: expression text.

    add        a + b
    maximum    device.maximum(a, b)          # NaN if either is
    div        a / b                         # precision "eager", float32: tl.div_rn(a, b)
    cast       a.to(tl.float32)

Float16 and bfloat16 operands are computed in float32 and rounded to their own dtype again, as eager PyTorch does.
Memory ops and reductions are statements, not expressions: `fusec/codegen/emit.py` writes them with the helpers here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from fusec.codegen.text import ADD, AND, ATOM, COMPARE, MUL, OR, SHIFT, UNARY, XOR, Text, call, infix
from fusec.errors import FusecError
from fusec.ir.modes import real_tensors

DTYPES: dict[torch.dtype, str] = {
    torch.bool: "tl.int1",
    torch.int8: "tl.int8",
    torch.int16: "tl.int16",
    torch.int32: "tl.int32",
    torch.int64: "tl.int64",
    torch.uint8: "tl.uint8",
    torch.uint16: "tl.uint16",
    torch.uint32: "tl.uint32",
    torch.uint64: "tl.uint64",
    torch.float16: "tl.float16",
    torch.bfloat16: "tl.bfloat16",
    torch.float32: "tl.float32",
    torch.float64: "tl.float64",
    torch.float8_e4m3fn: "tl.float8e4nv",
    torch.float8_e5m2: "tl.float8e5",
}
_LOW_PRECISION = (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
_THROUGH_FLOAT32 = (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


def dtype_text(dtype: torch.dtype) -> str:
    """The Triton name of a dtype; FusecError for one that kernels do not hold."""
    if dtype not in DTYPES:
        raise FusecError(f"{dtype} has no Triton type; kernels hold {', '.join(str(d) for d in DTYPES)}")
    return DTYPES[dtype]


@dataclass(frozen=True, slots=True)
class Operand:
    """An operand as text. literal: its value, when the text is a Python literal; such text has no dtype."""

    text: Text
    dtype: torch.dtype
    literal: bool | int | float | None = None

    @property
    def is_literal(self) -> bool:
        return self.literal is not None


@dataclass(frozen=True, slots=True)
class Line:
    """One Instr to write: operands of one dtype (`where`: its condition first).

    precision: "eager", "fast", or "rough" where float32 results are only ever stored with 8 or 11 bits.
    """

    operands: tuple[Operand, ...]
    dtype: torch.dtype
    precision: str = "fast"

    @property
    def operand_dtype(self) -> torch.dtype:
        return self.operands[-1].dtype if self.operands else self.dtype

    @property
    def texts(self) -> tuple[Text, ...]:
        return tuple(o.text for o in self.operands)


Render = Callable[[Line], Text]


@dataclass(frozen=True, slots=True)
class Row:
    """How an op is written. literals: operands may be Python literals, as long as one is a tensor."""

    render: Render | None
    literals: bool = False
    widen: bool = True  # compute float16 and bfloat16 in float32


TEXT: dict[str, Row] = {}


def literal(value: Any, dtype: torch.dtype) -> Text:
    """A Python literal for a constant of a dtype."""
    if dtype is torch.bool:
        return Text(str(bool(value)))
    if not dtype.is_floating_point:
        number = int(value)
        return Text(str(number), ATOM if number >= 0 else UNARY)
    real = float(value)
    if dtype in _LOW_PRECISION:
        real = float(torch.tensor(real, dtype=dtype))  # written in float32, it must hold the rounded value
    if math.isnan(real):
        return Text('float("nan")')
    if math.isinf(real):
        return Text('float("inf")' if real > 0 else 'float("-inf")')
    return Text(repr(real), UNARY if repr(real).startswith("-") else ATOM)


def render(op: str, operands: Sequence[Operand], dtype: torch.dtype, precision: str) -> Text:
    """The text of one pointwise op."""
    row = TEXT[op]
    assert row.render is not None, f"{op} is not an expression"
    line = Line(tuple(operands), dtype, precision)
    low = line.operand_dtype if line.operand_dtype in _LOW_PRECISION else None
    if low is None or not row.widen:
        return row.render(line)
    wide = tuple(o if o.dtype is not low or o.is_literal else _widened(o) for o in operands)
    result_dtype = torch.float32 if dtype is low else dtype
    result = row.render(Line(wide, result_dtype, precision))
    return convert(result, torch.float32, low) if dtype is low else result


def _widened(operand: Operand) -> Operand:
    return replace(operand, text=convert(operand.text, operand.dtype, torch.float32), dtype=torch.float32)


# -- conversions ----------------------------------------------------------------------------------


def convert(value: Text, source: torch.dtype, target: torch.dtype) -> Text:
    """value conversion as Tensor.to: float to int truncates, anything to bool asks for nonzero."""
    if source is target:
        return value
    if target is torch.bool:
        if source in _THROUGH_FLOAT32:
            value = _to(value, torch.float32)
        return Text(f"{value.wrap(COMPARE + 1)} != 0", COMPARE)
    if source.is_floating_point and target is torch.uint8:
        return _to(convert(value, source, torch.int64), target)  # negative values wrap, as PyTorch's conversion does
    carried = source in _THROUGH_FLOAT32 or target in _THROUGH_FLOAT32
    if carried and torch.float32 not in (source, target):
        value = _to(value, torch.float32)
    if target is torch.float8_e4m3fn:
        return call("device.float8_e4m3fn" if _saturates() else "device.float8_e4m3fn_or_nan", value.text)
    if target is torch.float8_e5m2:
        return call("device.float8_e5m2", value.text)
    return _to(value, target)


def _to(value: Text, target: torch.dtype) -> Text:
    return Text(f"{value.wrap(ATOM)}.to({dtype_text(target)})")


@cache
def _saturates() -> bool:
    """What the installed PyTorch makes of a number above 448 in float8_e4m3fn: 448 in newer ones, NaN before."""
    with real_tensors():
        return bool(torch.tensor(1e9, device="cpu").to(torch.float8_e4m3fn).float().isfinite())


def stores_implicitly(source: torch.dtype, target: torch.dtype) -> bool:
    """True when `tl.store` makes the same conversion by itself."""
    if source is target:
        return True
    return source is torch.float32 and target in (torch.float16, torch.bfloat16)


def _cast(line: Line) -> Text:
    return convert(line.texts[0], line.operands[0].dtype, line.dtype)


def _bitcast(line: Line) -> Text:
    value, source = line.texts[0], line.operands[0].dtype
    if source is line.dtype:
        return value
    if torch.bool in (source, line.dtype):
        return convert(value, source, line.dtype)
    return Text(f"{value.wrap(ATOM)}.to({dtype_text(line.dtype)}, bitcast=True)")


# -- rows -----------------------------------------------------------------------------------------


def _function(name: str) -> Render:
    return lambda line: call(name, *(t.text for t in line.texts))


def _operator(symbol: str, precedence: int) -> Render:
    return lambda line: infix(line.texts[0], symbol, line.texts[1], precedence)


def _by_dtype(
    *, floating: Render, integer: Render | None = None, boolean: Render | None = None, unsigned: Render | None = None
) -> Render:
    """The row of the operands' dtype; what is not given falls back on the one before."""

    def choose(line: Line) -> Text:
        dtype = line.operand_dtype
        if dtype.is_floating_point:
            return floating(line)
        if dtype is torch.bool:
            return (boolean or integer or floating)(line)
        if not dtype.is_signed and unsigned is not None:
            return unsigned(line)
        return (integer or floating)(line)

    return choose


def _float32_eager(exact: Render, fast: Render) -> Render:
    """The correctly rounded text for float32 in precision "eager"; float64 is exact either way."""
    return lambda line: exact(line) if line.precision == "eager" and line.operand_dtype is torch.float32 else fast(line)


def _float32_rough(rough: Render, exact: Render) -> Render:
    """The quicker text for float32 that is stored with 16 bits."""
    return lambda line: (
        rough(line) if line.precision == "rough" and line.operand_dtype is torch.float32 else exact(line)
    )


def _same(line: Line) -> Text:
    return line.texts[0]


def _negate(line: Line) -> Text:
    return Text(f"-{line.texts[0].wrap(UNARY)}", UNARY)


def _negate_float(line: Line) -> Text:
    """Triton subtracts from zero for `-x`, which loses the sign of a zero."""
    return Text(f"{line.texts[0].wrap(MUL)} * -1.0", MUL)


def _invert(line: Line) -> Text:
    return Text(f"~{line.texts[0].wrap(UNARY)}", UNARY)


def _invert_unsigned(line: Line) -> Text:
    """Triton builds `~` from -1, which no unsigned type holds."""
    ones = Text(str(2 ** (8 * line.operand_dtype.itemsize) - 1))
    return infix(line.texts[0], "^", ones, XOR)


def _isnan(line: Line) -> Text:
    value = line.texts[0].wrap(COMPARE + 1)
    return Text(f"{value} != {value}", COMPARE)


def _isinf(line: Line) -> Text:
    return Text(f'tl.abs({line.texts[0].text}) == float("inf")', COMPARE)


def _never(line: Line) -> Text:
    value = line.texts[0].wrap(COMPARE + 1)
    return Text(f"{value} != {value}", COMPARE)


def _signbit(line: Line) -> Text:
    bits = "tl.int64" if line.operand_dtype is torch.float64 else "tl.int32"
    return Text(f"{line.texts[0].wrap(ATOM)}.to({bits}, bitcast=True) < 0", COMPARE)


def _negative(line: Line) -> Text:
    return Text(f"{line.texts[0].wrap(COMPARE + 1)} < 0", COMPARE)


def _reciprocal(line: Line) -> Text:
    return Text(f"1.0 / {line.texts[0].wrap(UNARY)}", MUL)


def _reciprocal_rn(line: Line) -> Text:
    return call("tl.div_rn", "1.0", line.texts[0].text)


def _compare(symbol: str) -> Render:
    plain = _operator(symbol, COMPARE)

    def of_bools(line: Line) -> Text:
        # Triton orders 1-bit integers as signed: True would be -1.
        a, b = (t if o.is_literal else _to(t, torch.int8) for t, o in zip(line.texts, line.operands, strict=True))
        return infix(a, symbol, b, COMPARE)

    return _by_dtype(floating=plain, boolean=plain if symbol in ("==", "!=") else of_bools, integer=plain)


def _shift(symbol: str, function: str) -> Render:
    plain, general = _operator(symbol, SHIFT), _function(function)

    def choose(line: Line) -> Text:
        count = line.operands[1].literal
        inside = count is not None and 0 <= count < line.operands[0].dtype.itemsize * 8
        return plain(line) if inside else general(line)

    return choose


def _row(name: str, text: Render | None, *, literals: bool = False, widen: bool = True) -> None:
    TEXT[name] = Row(text, literals, widen)


# Statements, written by emit.py.
for _name in ("const", "index", "load", "store", "checked"):
    _row(_name, None)
for _name in ("sum", "prod", "max", "min", "any", "all", "exp_sum", "dev_sum", "mean", "argmax", "argmin"):
    _row(_name, None)
for _name in ("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "cumargmax", "cumargmin"):
    _row(_name, None)

_row("cast", _cast, widen=False)
_row("bitcast", _bitcast, widen=False)

_row("neg", _by_dtype(floating=_negate_float, integer=_negate))
_row("abs", _by_dtype(floating=_function("tl.abs"), integer=_function("tl.abs"), boolean=_same, unsigned=_same))
_row("sign", _by_dtype(floating=_function("device.sign"), boolean=_same))
_row("floor", _by_dtype(floating=_function("tl.floor"), integer=_same))
_row("ceil", _by_dtype(floating=_function("tl.ceil"), integer=_same))
_row("trunc", _by_dtype(floating=_function("device.trunc"), integer=_same))
_row("round", _by_dtype(floating=_function("device.round"), integer=_same))
_row("exp", _float32_rough(_function("device.exp_rough"), _function("device.exp")))
_row("exp2", _function("tl.exp2"))
_row("log", _function("tl.log"))
_row("log2", _function("tl.log2"))
_row("sqrt", _float32_eager(_function("tl.sqrt_rn"), _function("tl.sqrt")))
_row("rsqrt", _function("tl.rsqrt"))
_row("reciprocal", _float32_eager(_reciprocal_rn, _reciprocal))
_row(
    "sigmoid",
    _float32_rough(
        _function("device.sigmoid_rough"),
        _float32_eager(_function("device.sigmoid_rn"), _function("device.sigmoid")),
    ),
)
_row("ndtr", _float32_rough(_function("device.ndtr_rough"), _function("device.ndtr")))
for _name in (
    "expm1", "log10", "log1p", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh",
    "atanh", "erf", "erfc", "erfinv", "lgamma", "digamma", "trigamma", "i0", "i0e", "i1", "i1e", "erfcx", "ndtri",
):  # fmt: skip
    _row(_name, _function(f"device.{_name}"))
_row("isnan", _by_dtype(floating=_isnan, integer=_never), widen=True)
_row("isinf", _by_dtype(floating=_isinf, integer=_never))
_row("signbit", _by_dtype(floating=_signbit, integer=_negative, boolean=_never, unsigned=_never))
_row("not", _by_dtype(floating=_invert, unsigned=_invert_unsigned))

_row("add", _by_dtype(floating=_operator("+", ADD), boolean=_operator("|", OR)), literals=True)
_row("sub", _by_dtype(floating=_operator("-", ADD), boolean=_operator("^", XOR)), literals=True)
_row("mul", _by_dtype(floating=_operator("*", MUL), boolean=_operator("&", AND)), literals=True)
_row("div", _float32_eager(_function("tl.div_rn"), _operator("/", MUL)), literals=True)
_row("floordiv", _function("device.floordiv"))
_row("truncdiv", _by_dtype(floating=_function("device.truncdiv"), integer=_operator("//", MUL)))
_row("mod", _function("device.mod"))
_row("fmod", _by_dtype(floating=_function("device.fmod"), integer=_operator("%", MUL)))
_row("pow", _function("device.pow"))
_row("atan2", _function("device.atan2"))
_row("copysign", _function("device.copysign"))
_row("nextafter", _function("device.nextafter"))
for _name, _bool_operator, _bool_level in (("minimum", "&", AND), ("maximum", "|", OR)):
    _either = _by_dtype(
        floating=_function(f"device.{_name}"),
        integer=_function(f"tl.{_name}"),
        boolean=_operator(_bool_operator, _bool_level),
    )
    _row(_name, _either)
for _name, _integer in (("fmin", "tl.minimum"), ("fmax", "tl.maximum")):
    _row(_name, _by_dtype(floating=_function(f"device.{_name}"), integer=_function(_integer)))
_row("and", _operator("&", AND), literals=True)
_row("or", _operator("|", OR), literals=True)
_row("xor", _operator("^", XOR), literals=True)
_row("shl", _shift("<<", "device.shl"))
_row("shr", _shift(">>", "device.shr"))
for _name, _symbol in (("eq", "=="), ("ne", "!="), ("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">=")):
    _row(_name, _compare(_symbol), literals=True)
_row("where", _function("tl.where"), literals=True)
_row("philox", _function("device.philox"), literals=True)
