"""Puts right what Triton's interpreter (TRITON_INTERPRET=1) computes wrongly, so that its values can be trusted.

The stock interpreter keeps bfloat16 as raw 16-bit integers in numpy and forgets so in most places. Found in triton 3.6
to 3.9 unless a version is named, repaired by ``repair`` and tested in tests/interpreted/test_interpreter.py:

- float32 to bfloat16 truncates instead of rounding to nearest even, and makes an infinity of some NaNs; subnormals of
  bfloat16 widen wrongly; a cast between bfloat16 and anything but float32 converts the raw integer;
- sums, products, comparisons and reductions of bfloat16 work on the raw integers;
- the result of a comparison keeps the type of its operands, so that a scalar condition makes an int32 of a block's mask
  (3.9 then refuses to load);
- ``tl.dot`` of bfloat16 multiplies the raw integers; of float32 it ignores ``input_precision`` and lacks ``bf16x3``;
- ``tl.maximum``, ``tl.minimum`` and ``tl.clamp`` let a NaN through, where a GPU takes the other operand (3.6, 3.7);
- a scalar constant of bfloat16 is an AttributeError (3.6 to 3.8), a bool argument a ValueError (3.6, 3.7), and a tensor
  as the bound of a loop a TypeError with numpy 2.4 (3.6);
- a float argument stays a Python float, so arithmetic on scalars is in double precision; on a GPU it is float32;
- ``tl.fma`` rounds twice (3.6 to 3.8);
- lanes of a load that are masked off, with no ``other``, read 0; on a GPU they hold anything. Here floats read NaN;
- every call of a ``tl`` function written in Triton (tl.sum, tl.max, tl.zeros, ...) patches the whole language again:
  milliseconds each, half the time of a kernel. Here the language is patched once;
- ``tl.reduce`` with a function that is not Triton's own goes element by element, 50 us each. Here it goes by
  halves of the block.

Not modelled: the approximate division, exponential and logarithm of a GPU and its order of summation (numpy's are exact
to a bit or so); a*b + c contracted into one rounding; the variable of ``tl.range`` as a tensor (it is a Python int and
has no ``.to``); libdevice and inline assembly; conversions to integers that overflow; atomics on bfloat16.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import operator
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import triton
import triton.language as tl
from triton.runtime import interpreter as stock

VERSIONS = "3.6 to 3.9"
"""Versions of Triton whose interpreter this file was tested with."""

# What is replaced or called below, with the parameters that it must begin with.
_SHAPE: dict[str, tuple[str, ...]] = {
    "_get_np_dtype": ("tt_dtype",),
    "_implicit_cvt": ("arg",),
    "_patch_lang": ("fn",),
    "_LangPatchScope.restore": ("self",),
    "GridExecutor.__call__": ("self",),
    "InterpreterBuilder.binary_op": ("self", "lhs", "rhs", "op"),
    "InterpreterBuilder.cast_impl": ("self", "src", "dst_type"),
    "InterpreterBuilder.create_clampf": ("self", "arg", "lo", "hi", "propagate_nans"),
    "InterpreterBuilder.create_dot": ("self", "a", "b", "d", "input_precision"),
    "InterpreterBuilder.create_fcmpOLT": ("self", "lhs", "rhs"),
    "InterpreterBuilder.create_fma": ("self", "x", "y", "z"),
    "InterpreterBuilder.create_fp_to_fp": ("self", "src", "dst_type", "rounding_mode"),
    "InterpreterBuilder.create_masked_load": ("self", "ptrs", "mask", "other"),
    "InterpreterBuilder.create_maxnumf": ("self", "lhs", "rhs"),
    "InterpreterBuilder.unary_op": ("self", "arg", "op"),
    "ReduceOps.generic_reduce": ("self", "input"),
    "ReduceOps.min_max": ("self", "input", "val_reduce_op", "idx_reduce_op"),
    "ReduceOps.unravel": ("self", "input", "axis"),
    "ReduceScanOpInterface.apply": ("self", "input"),
    "ReduceScanOpInterface.to_tensor": ("self", "ret", "dtype"),
}

_repaired = False


def repair() -> None:
    """Repair the interpreter of this process, once; further calls do nothing. Call it before the first launch.

    Raises RuntimeError when kernels are compiled rather than interpreted here, and when the installed Triton's
    interpreter is not of the shape that this file knows.
    """
    global _repaired
    if _repaired:
        return
    if not triton.knobs.runtime.interpret:
        raise RuntimeError("bench.interpreter.repair: TRITON_INTERPRET=1 is not set, kernels are compiled here")
    _check_shape()
    _repair_arguments()
    _repair_language()
    _repair_casts()
    _repair_arithmetic()
    _repair_reductions()
    _replace(stock.InterpreterBuilder, "create_dot", _dot)
    _replace(stock.InterpreterBuilder, "create_masked_load", _masked_load)
    _replace(stock.GridExecutor, "__call__", _quietly)
    _repaired = True


def _check_shape() -> None:
    for path, expected in _SHAPE.items():
        try:
            found = tuple(inspect.signature(operator.attrgetter(path)(stock)).parameters)
        except AttributeError:
            found = ()
        if found[: len(expected)] != expected:
            raise RuntimeError(
                f"bench.interpreter: {path} of triton {triton.__version__}'s interpreter takes {found or 'no call'}, "
                f"not {expected}; known are the interpreters of triton {VERSIONS}. Install one of them, or use a GPU"
            )


def _replace(owner: Any, name: str, build: Callable[[Any], Callable[..., Any]]) -> None:
    """Put ``build(stock implementation)`` in its place, under its name and signature."""
    original = getattr(owner, name)
    setattr(owner, name, functools.wraps(original)(build(original)))


# --- bfloat16 as numpy's uint16 -----------------------------------------------------------------------------------


def round_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Float32 to the bits of bfloat16, rounded to nearest even; every NaN becomes 0x7FC0."""
    bits = values.view(np.uint32)
    # adding just under half a unit, and the last kept bit, carries exactly where the value rounds up
    rounded = ((bits + ((bits >> 16) & np.uint32(1)) + np.uint32(0x7FFF)) >> 16).astype(np.uint16)
    nan = values != values
    if nan.any():
        rounded[nan] = 0x7FC0
    return rounded


def widen_bfloat16(bits: np.ndarray) -> np.ndarray:
    """The bits of bfloat16 to float32, which is exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _is_bfloat16(handle: Any) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def _values(handle: Any) -> np.ndarray:
    return widen_bfloat16(handle.data) if _is_bfloat16(handle) else handle.data


def _bfloat16(values: np.ndarray) -> Any:
    return stock.TensorHandle(round_to_bfloat16(values.astype(np.float32, copy=False)), tl.bfloat16)


# --- arguments and the language -----------------------------------------------------------------------------------


def _repair_arguments() -> None:
    def build(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def implicit_convert(argument: Any) -> Any:
            if isinstance(argument, bool):
                return tl.tensor(stock.TensorHandle(np.array([argument]), tl.int1), tl.int1)
            if isinstance(argument, float):
                return tl.tensor(stock.TensorHandle(np.array([argument], dtype=np.float32), tl.float32), tl.float32)
            return convert(argument)

        return implicit_convert

    _replace(stock, "_implicit_cvt", build)


def _repair_language() -> None:
    """Patch ``triton.language`` once for the life of the process, and drop the overflow checks that lead nowhere.

    Without TRITON_DEBUG the stock interpreter computes every integer sum and product a second time in 64 bits and
    throws the verdict away.
    """
    stock._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    stock._patch_lang = lambda fn: stock._LangPatchScope()
    _replace(stock, "_get_np_dtype", _remember)
    tl.tensor.__index__ = lambda self: self.handle.data.item()
    options = stock.interpreter_builder.options
    stock.interpreter_builder.options = dataclasses.replace(
        options,
        allowed_dot_input_precisions=tuple(_SPLIT_PRODUCTS) + ("ieee",),
        sanitize_overflow=options.debug,
    )


def _remember(lookup: Callable[[Any], np.dtype]) -> Callable[[Any], np.dtype]:
    """The stock function builds its table of 18 types anew for every lookup, several for each operation."""
    known: dict[str, np.dtype] = {}

    def numpy_type(tt_dtype: Any) -> np.dtype:
        if tt_dtype.name not in known:
            known[tt_dtype.name] = lookup(tt_dtype)
        return known[tt_dtype.name]

    return numpy_type


def _quietly(call: Callable[..., Any]) -> Callable[..., Any]:
    """A GPU does not warn of 0/0 or an overflow to infinity."""

    def launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        with np.errstate(all="ignore"):
            return call(self, *args, **kwargs)

    return launch


# --- element by element -------------------------------------------------------------------------------------------


def _repair_casts() -> None:
    def build_cast(cast: Callable[..., Any]) -> Callable[..., Any]:
        def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
            source, target = src.dtype.scalar, dst_type.scalar
            if target == tl.bfloat16 != source:
                return _bfloat16(src.data)
            if source == tl.bfloat16 != target:
                return stock.TensorHandle(_values(src).astype(stock._get_np_dtype(target), copy=False), target)
            return cast(self, src, dst_type)

        return cast_impl

    def build_float_cast(cast: Callable[..., Any]) -> Callable[..., Any]:
        def create_fp_to_fp(self: Any, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
            """Casts that name a rounding, and all casts of 8-bit floats."""
            source, target = src.dtype.scalar, dst_type.scalar
            if source == tl.float32 and target == tl.bfloat16:
                if rounding_mode == stock._ir.ROUNDING_MODE.RTZ:
                    return stock.TensorHandle(_truncate_to_bfloat16(src.data), tl.bfloat16)
                return _bfloat16(src.data)
            return cast(self, src, dst_type, rounding_mode)

        return create_fp_to_fp

    _replace(stock.InterpreterBuilder, "cast_impl", build_cast)
    _replace(stock.InterpreterBuilder, "create_fp_to_fp", build_float_cast)
    stock.InterpreterBuilder.get_bf16 = lambda self, value: _bfloat16(np.array([value]))


def _truncate_to_bfloat16(values: np.ndarray) -> np.ndarray:
    return np.where(values != values, np.uint16(0x7FC0), (values.view(np.uint32) >> 16).astype(np.uint16))


_COMPARISONS: dict[Callable[..., np.ndarray], tuple[str, ...]] = {
    np.less: ("fcmpOLT", "icmpSLT", "icmpULT"),
    np.less_equal: ("fcmpOLE", "icmpSLE", "icmpULE"),
    np.greater: ("fcmpOGT", "icmpSGT", "icmpUGT"),
    np.greater_equal: ("fcmpOGE", "icmpSGE", "icmpUGE"),
    np.equal: ("fcmpOEQ", "icmpEQ"),
    np.not_equal: ("fcmpUNE", "icmpNE"),
}


def _repair_arithmetic() -> None:
    builder = stock.InterpreterBuilder
    # Single operations in float32, rounded to bfloat16, are the correctly rounded results: 24 >= 2 * 8 + 2 bits.
    _replace(builder, "binary_op", _on_bfloat16)
    _replace(builder, "unary_op", _on_bfloat16)
    for comparison, names in _COMPARISONS.items():
        for name in names:
            setattr(builder, f"create_{name}", _compare(comparison))
    builder.create_maxnumf = lambda self, lhs, rhs: self.binary_op(lhs, rhs, np.fmax)
    builder.create_minnumf = lambda self, lhs, rhs: self.binary_op(lhs, rhs, np.fmin)
    builder.create_clampf = _clamp
    if not hasattr(stock._interpreter, "fma_fp32"):  # triton 3.9 has an exact one
        builder.create_fma = _fma


def _on_bfloat16(operation: Callable[..., Any]) -> Callable[..., Any]:
    def widened(self: Any, *args: Any) -> Any:
        *handles, op = args
        if not _is_bfloat16(handles[0]):
            return operation(self, *args)
        return _bfloat16(op(*map(_values, handles)))

    return widened


def _compare(comparison: Callable[..., np.ndarray]) -> Callable[..., Any]:
    def compare(self: Any, lhs: Any, rhs: Any) -> Any:
        return stock.TensorHandle(comparison(_values(lhs), _values(rhs)), tl.int1)

    return compare


def _clamp(self: Any, arg: Any, lo: Any, hi: Any, propagate_nans: Any) -> Any:
    if propagate_nans == stock._ir.PROPAGATE_NAN.NONE:
        return self.binary_op(self.binary_op(arg, lo, np.fmax), hi, np.fmin)
    return self.binary_op(self.binary_op(arg, lo, np.maximum), hi, np.minimum)


def _fma(self: Any, x: Any, y: Any, z: Any) -> Any:
    """In float64, where the product is exact; the sum rounds twice only when its float64 is a tie of float32."""
    exact = _values(x).astype(np.float64) * _values(y) + _values(z)
    if _is_bfloat16(z):
        return _bfloat16(exact)
    return stock.TensorHandle(exact.astype(z.data.dtype), z.dtype.scalar)


# --- reductions ---------------------------------------------------------------------------------------------------


def _repair_reductions() -> None:
    """Sums and scans of bfloat16 round once at the end, as PyTorch's do; a GPU rounds each partial sum."""

    def build_apply(apply: Callable[..., Any]) -> Callable[..., Any]:
        def widened(self: Any, input: Any) -> Any:
            if not isinstance(input, tuple):
                return self.apply((input,))[0]
            narrow = [isinstance(x, tl.tensor) and _is_bfloat16(x.handle) for x in input]
            if not any(narrow):
                return apply(self, input)
            wide = tuple(
                self.to_tensor(_values(x.handle), tl.float32) if is_narrow else x
                for x, is_narrow in zip(input, narrow, strict=True)
            )
            return tuple(
                self.to_tensor(round_to_bfloat16(x.handle.data), tl.bfloat16) if is_narrow else x
                for x, is_narrow in zip(apply(self, wide), narrow, strict=False)
            )

        return widened

    def build_min_max(min_max: Callable[..., Any]) -> Callable[..., Any]:
        # the same values as nanmax's and nanmin's, without the warning for a slice of NaNs
        quiet = {np.nanmax: np.fmax.reduce, np.nanmin: np.fmin.reduce}

        def quiet_min_max(self: Any, input: Any, val_reduce_op: Any, idx_reduce_op: Any = None) -> Any:
            if idx_reduce_op is None:
                val_reduce_op = quiet.get(val_reduce_op, val_reduce_op)
            return min_max(self, input, val_reduce_op, idx_reduce_op)

        return quiet_min_max

    _replace(stock.ReduceScanOpInterface, "apply", build_apply)
    _replace(stock.ReduceOps, "min_max", build_min_max)
    _replace(stock.ReduceOps, "generic_reduce", lambda generic: _reduce_by_halves)


def _reduce_by_halves(self: Any, input: tuple[Any, ...]) -> list[Any]:
    """Combine neighbours, every other element with the one behind it in one call, until one is left: in order, so that
    the function need not commute. It has to be associative, as ``tl.reduce`` asks, and must not branch on operands."""
    blocks, axis = self.unravel(input, self.axis)
    values = [np.moveaxis(x.handle.data, axis, 0) for x in blocks]
    while len(values[0]) > 1:
        operands = (self.to_tensor(v[side::2], x.dtype) for side in (0, 1) for v, x in zip(values, blocks, strict=True))
        combined = self.combine_fn.fn(*operands)
        values = [x.handle.data for x in (combined if isinstance(combined, tuple) else (combined,))]
    if self.keep_dims:
        shape = [1 if self.axis in (None, i) else n for i, n in enumerate(input[0].shape)]
        return [self.to_tensor(v.reshape(shape), x.dtype) for v, x in zip(values, blocks, strict=True)]
    return [self.to_tensor(v[0], x.dtype) for v, x in zip(values, blocks, strict=True)]


# --- products -----------------------------------------------------------------------------------------------------


def _truncate_to_tf32(values: np.ndarray) -> np.ndarray:
    """What a tensor core sees of a float32: it ignores the 13 lowest bits."""
    return (values.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def _round_to_tf32(values: np.ndarray) -> np.ndarray:
    """cvt.rna.tf32.f32: to nearest, ties away from zero."""
    return ((values.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def _split_tf32(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    high = _round_to_tf32(values)
    return high, _truncate_to_tf32(values - high)


def _split_bfloat16(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    high = widen_bfloat16(round_to_bfloat16(values))
    return high, widen_bfloat16(round_to_bfloat16(values - high))


def _three_products(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """high.high + (high.low + low.high); a NaN of the small terms, which infinities make, counts as 0 as in Triton."""
    small = np.matmul(a[1], b[0]) + np.matmul(a[0], b[1])
    return np.where(small != small, np.float32(0), small) + np.matmul(a[0], b[0])


_SPLIT_PRODUCTS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "tf32": lambda a, b: np.matmul(_truncate_to_tf32(a), _truncate_to_tf32(b)),
    "tf32x3": lambda a, b: _three_products(_split_tf32(a), _split_tf32(b)),
    "bf16x3": lambda a, b: _three_products(_split_bfloat16(a), _split_bfloat16(b)),
}
"""float32 by float32 on NVIDIA's tensor cores, by ``input_precision``; read off the compiled TTGIR and PTX."""


def _dot(dot: Callable[..., Any]) -> Callable[..., Any]:
    def create_dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, *rest: Any) -> Any:
        kind = a.dtype.scalar
        if kind == tl.bfloat16:
            product = np.matmul(_values(a), _values(b))
        elif kind == tl.float32 and input_precision.name.lower() in _SPLIT_PRODUCTS:
            product = _SPLIT_PRODUCTS[input_precision.name.lower()](a.data, b.data)
        else:
            return dot(self, a, b, d, input_precision, *rest)
        return stock.TensorHandle(product + d.data, d.dtype.scalar)

    return create_dot


# --- memory -------------------------------------------------------------------------------------------------------


def _masked_load(load: Callable[..., Any]) -> Callable[..., Any]:
    def create_masked_load(self: Any, ptrs: Any, mask: Any, other: Any, *policy: Any, **options: Any) -> Any:
        element = ptrs.get_element_ty()
        if other is None and element.is_standard_floating() and not np.asarray(mask.data).all():
            poison = 0x7FC0 if element == tl.bfloat16 else float("nan")
            other = stock.TensorHandle(np.full(ptrs.data.shape, poison, stock._get_np_dtype(element)), element)
        return load(self, ptrs, mask, other, *policy, **options)

    return create_masked_load
