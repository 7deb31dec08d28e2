"""The repaired interpreter computes what PyTorch computes on the same types, bit for bit where that is defined."""

from __future__ import annotations

import functools
import operator

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter as stock

from bench import interpreter
from bench.interpreter import repair

N = 64
BLOCK = 1024
BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def _repaired():
    repair()
    torch.manual_seed(0)


def same(found, expected):
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    zero = expected == 0
    assert torch.equal(found[zero].signbit(), expected[zero].signbit())


def hostile_floats() -> torch.Tensor:
    """Float32: any bits, ties of bfloat16 and their neighbours, subnormals, zeros, infinities, NaNs of all kinds."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 1 << 32, (1 << 13,), generator=generator)
    ties = (bits & 0xFFFF0000) | 0x8000
    subnormal = bits & 0x807FFFFF
    named = [0, 1 << 31, 0x7F800000, 0xFF800000, 0x7F800001, 0xFF80FFFF, 0x7FFFFFFF, 0x7F7FFFFF, 0xFF7F8000, 1]
    everything = torch.cat([bits, ties - 1, ties, ties + 1, subnormal, torch.tensor(named)])
    everything = torch.cat([everything, everything[: -everything.numel() % BLOCK]])
    return everything.to(torch.int32).view(torch.float32)


def all_bfloat16() -> torch.Tensor:
    return torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(BF16)


def pairs_of_bfloat16() -> tuple[torch.Tensor, torch.Tensor]:
    """Any bits against any bits, and numbers of like size, where rounding is not trivial."""
    generator = torch.Generator().manual_seed(1)
    any_bits = all_bfloat16()[torch.randperm(1 << 16, generator=generator)].view(2, -1)
    alike = torch.randn(2, 1 << 14, generator=generator).bfloat16()
    x, y = torch.cat([any_bits, alike], 1)
    return x.contiguous(), y.contiguous()


def map_pairs(kernel, x, y, dtype, **constants):
    out = torch.empty(x.shape, dtype=dtype)
    kernel[(x.numel() // BLOCK,)](x, y, out, N=BLOCK, **constants)
    return out


@triton.jit
def cast_kernel(p_x, p_out, N: tl.constexpr):
    o = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(p_out + o, tl.load(p_x + o).to(p_out.dtype.element_ty))


def cast(x, dtype):
    out = torch.empty(x.shape, dtype=dtype)
    cast_kernel[(x.numel() // BLOCK,)](x, out, N=BLOCK)
    return out


@pytest.mark.parametrize("source", [torch.float32, torch.float64, torch.float16])
def test_rounding_to_bfloat16(source):
    x = hostile_floats()
    x = x.half() if source == torch.float16 else x.to(source)
    same(cast(x, BF16), x.to(BF16))


@pytest.mark.parametrize("target", [torch.float32, torch.float64, torch.float16])
def test_widening_of_bfloat16(target):
    x = all_bfloat16()
    same(cast(x, target), x.to(target))


def test_integers_and_bfloat16():
    x = torch.randint(-(1 << 30), 1 << 30, (1 << 12,), dtype=torch.int32)
    same(cast(x, BF16), x.to(BF16))
    y = (torch.randn(1 << 12) * 1e4).bfloat16()
    assert torch.equal(cast(y, torch.int32), y.to(torch.int32))


@triton.jit
def truncate_kernel(p_x, p_out, N: tl.constexpr):
    o = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(p_out + o, tl.cast(tl.load(p_x + o), tl.bfloat16, fp_downcast_rounding="rtz"))


def test_truncation_when_asked_for():
    x = hostile_floats()
    found = torch.empty(x.shape, dtype=BF16)
    truncate_kernel[(x.numel() // BLOCK,)](x, found, N=BLOCK)
    kept = (x.view(torch.int32) & -65536).view(torch.float32)
    same(found, torch.where(x.isnan(), x, kept).bfloat16())


@triton.jit
def arithmetic_kernel(p_x, p_y, p_out, OP: tl.constexpr, N: tl.constexpr):
    o = tl.program_id(0) * N + tl.arange(0, N)
    x, y = tl.load(p_x + o), tl.load(p_y + o)
    if OP == "add":
        z = x + y
    elif OP == "sub":
        z = x - y
    elif OP == "mul":
        z = x * y
    elif OP == "div":
        z = (x / y).to(tl.bfloat16)
    elif OP == "abs":
        z = tl.abs(x)
    elif OP == "where":
        z = tl.where(x > y, x, y)
    elif OP == "constant":
        z = (x + 0.1) * 1.5
    tl.store(p_out + o, z)


ARITHMETIC = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "abs": lambda x, y: x.abs(),
    "where": lambda x, y: torch.where(x > y, x, y),
    "constant": lambda x, y: (x + torch.tensor(0.1, dtype=BF16)) * 1.5,
}


@pytest.mark.parametrize("op", ARITHMETIC)
def test_arithmetic_of_bfloat16(op):
    x, y = pairs_of_bfloat16()
    same(map_pairs(arithmetic_kernel, x, y, BF16, OP=op), ARITHMETIC[op](x, y))


@triton.jit
def compare_kernel(p_x, p_y, p_out, N: tl.constexpr):
    o = tl.program_id(0) * N + tl.arange(0, N)
    x, y = tl.load(p_x + o), tl.load(p_y + o)
    z = (x < y).to(tl.int32) + 2 * (x <= y) + 4 * (x > y) + 8 * (x >= y) + 16 * (x == y) + 32 * (x != y)
    tl.store(p_out + o, z)


@pytest.mark.parametrize("dtype", [BF16, torch.float32])
def test_comparisons(dtype):
    x, y = (v.to(dtype) for v in pairs_of_bfloat16())
    bits = [x < y, x <= y, x > y, x >= y, x == y, x != y]
    expected = sum(bit.int() << i for i, bit in enumerate(bits))
    assert torch.equal(map_pairs(compare_kernel, x, y, torch.int32), expected)


@triton.jit
def extremes_kernel(p_x, p_y, p_out, OP: tl.constexpr, N: tl.constexpr):
    o = tl.program_id(0) * N + tl.arange(0, N)
    x, y = tl.load(p_x + o), tl.load(p_y + o)
    if OP == "maximum":
        z = tl.maximum(x, y)
    elif OP == "minimum":
        z = tl.minimum(x, y)
    elif OP == "maximum, NaN kept":
        z = tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)
    elif OP == "clamp":
        z = tl.clamp(x, -1.0, 2.0)
    elif OP == "clamp, NaN kept":
        z = tl.clamp(x, -1.0, 2.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(p_out + o, z)


EXTREMES = {
    "maximum": torch.fmax,
    "minimum": torch.fmin,
    "maximum, NaN kept": torch.maximum,
    "clamp": lambda x, y: x.nan_to_num(nan=-1.0).clamp(-1, 2),
    "clamp, NaN kept": lambda x, y: x.clamp(-1, 2),
}


@pytest.mark.parametrize("op", EXTREMES)
def test_extremes_and_nan(op):
    x, y = (torch.where(v.isnan(), torch.nan, v).float() for v in pairs_of_bfloat16())  # no signalling NaNs
    found, expected = map_pairs(extremes_kernel, x, y, torch.float32, OP=op), EXTREMES[op](x, y)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)  # of 0 and -0 either may win


@triton.jit
def reduce_kernel(p_x, p_sum, p_max, p_min, AXIS: tl.constexpr, N: tl.constexpr):
    o = tl.arange(0, N)
    x = tl.load(p_x + o[:, None] * N + o[None, :])
    tl.store(p_sum + o, tl.sum(x, AXIS))
    tl.store(p_max + o, tl.max(x, AXIS))
    tl.store(p_min + o, tl.min(x, AXIS))


@triton.jit
def condition_kernel(p_x, p_out, count, N: tl.constexpr):
    o, i_program = tl.arange(0, N), tl.program_id(0)
    tl.store(p_out + o, tl.load(p_x + o, mask=(i_program == 0) & (o < count), other=-1), mask=(count > 0) & (o >= 0))


def test_a_scalar_condition_in_a_mask():
    x, out = torch.randn(N), torch.empty(N)
    condition_kernel[(1,)](x, out, 40, N=N)
    same(out, torch.where(torch.arange(N) < 40, x, torch.tensor(-1.0)))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", [BF16, torch.float32])
@pytest.mark.filterwarnings("error")
def test_reductions(axis, dtype):
    x = torch.randint(-99, 99, (N, N)).to(dtype)  # sums are exact in float32
    found = [torch.empty(N, dtype=dtype) for _ in range(3)]
    reduce_kernel[(1,)](x, *found, AXIS=axis, N=N)
    for result, expected in zip(found, [x.float().sum(axis), x.amax(axis), x.amin(axis)], strict=True):
        same(result, expected.to(dtype))
    x[1], x[:, 2], x[3, 5], x[6, 7] = torch.nan, torch.nan, torch.inf, -torch.inf
    reduce_kernel[(1,)](x, *found, AXIS=axis, N=N)
    empty = x.isnan().all(axis)
    for result, fill, reduce in ((found[1], -torch.inf, torch.amax), (found[2], torch.inf, torch.amin)):
        expected = reduce(torch.where(x.isnan(), fill, x), axis)
        same(result, torch.where(empty, torch.nan, expected).to(dtype))


@triton.jit
def either(a, b):
    return a | b


@triton.jit
def after(scale, shift, next_scale, next_shift):
    """Of x -> scale x + shift, then the next: associative, and does not commute."""
    return scale * next_scale, shift * next_scale + next_shift


@triton.jit
def other_reductions_kernel(p_x, p_bits, p_maps, p_all, AXIS: tl.constexpr, KEEP: tl.constexpr, N: tl.constexpr):
    o = tl.arange(0, N)
    x = tl.load(p_x + o[:, None] * N + o[None, :])
    bits = tl.reduce(x, AXIS, either, keep_dims=KEEP)
    scale, shift = tl.reduce((x % 5 - 2, x), AXIS, after, keep_dims=KEEP)
    tl.store(p_bits + o, tl.reshape(bits, (N,)))
    tl.store(p_maps + o, tl.reshape(scale, (N,)))
    tl.store(p_maps + N + o, tl.reshape(shift, (N,)))
    everything = tl.reduce(x, None, either, keep_dims=KEEP)
    tl.store(p_all, tl.sum(everything) if KEEP else everything)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
def test_reductions_with_functions_of_ones_own(axis, keep, monkeypatch):
    """In order and with all operands, in a few calls."""
    calls = []
    monkeypatch.setattr(either, "fn", lambda a, b, fn=either.fn: calls.append(a) or fn(a, b))
    x = torch.randint(0, 1 << 20, (N, N), dtype=torch.int32)
    bits, maps, everything = (torch.empty(n, dtype=torch.int32) for n in (N, 2 * N, 1))
    other_reductions_kernel[(1,)](x, bits, maps, everything, AXIS=axis, KEEP=keep, N=N)
    scale, shift = torch.ones(N, dtype=torch.int32), torch.zeros(N, dtype=torch.int32)
    either_of = torch.zeros(N, dtype=torch.int32)
    for row in x.unbind(axis):
        next_scale = row % 5 - 2
        scale, shift, either_of = scale * next_scale, shift * next_scale + row, either_of | row
    assert torch.equal(bits, either_of)
    assert torch.equal(maps, torch.cat([scale, shift]))
    assert everything.item() == functools.reduce(operator.or_, bits.tolist())
    assert len(calls) == 6 + 12  # halvings of 64 and of 4096


@triton.jit
def dot_kernel(p_a, p_b, p_c, FORM: tl.constexpr, PRECISION: tl.constexpr, N: tl.constexpr):
    o = tl.arange(0, N)
    o = o[:, None] * N + o[None, :]
    a, b, c = tl.load(p_a + o), tl.load(p_b + o), tl.load(p_c + o)
    if FORM == "ab":
        c += tl.dot(a, b, input_precision=PRECISION, out_dtype=c.dtype)
    elif FORM == "ab, acc":
        c = tl.dot(a, b, acc=c, input_precision=PRECISION, out_dtype=c.dtype)
    elif FORM == "abT":
        c = tl.dot(a, tl.trans(b), c, input_precision=PRECISION, out_dtype=c.dtype)
    elif FORM == "aTb":
        c = tl.dot(a.T, b, c, input_precision=PRECISION, out_dtype=c.dtype)
    tl.store(p_c + o, c)


def dot(a, b, c=None, form="ab, acc", precision="ieee"):
    c = torch.zeros(N, N) if c is None else c.clone()
    dot_kernel[(1,)](a, b, c, FORM=form, PRECISION=precision, N=N)
    return c


@pytest.mark.parametrize("form", ["ab", "ab, acc", "abT", "aTb"])
@pytest.mark.parametrize("dtype", [BF16, torch.float16, torch.float32])
def test_dot_is_exact_on_integers(dtype, form):
    a, b = (torch.randint(-200, 200, (N, N)).to(dtype) for _ in range(2))
    c = torch.randint(-200, 200, (N, N)).float()
    x, y = (a.double().T if form == "aTb" else a.double()), (b.double().T if form == "abT" else b.double())
    same(dot(a, b, c, form), (x @ y + c).float())


def tf32(x):
    return (x.view(torch.int32) & -8192).view(torch.float32)


def split(x, precision):
    if precision == "bf16x3":
        high = x.bfloat16().float()
        return high.double(), (x - high).bfloat16().double()
    high = ((x.view(torch.int32) + 4096) & -8192).view(torch.float32)
    return high.double(), tf32(x - high).double()


@pytest.mark.parametrize("precision", ["ieee", "tf32", "tf32x3", "bf16x3"])
def test_dot_of_float32_by_precision(precision):
    a, b = torch.randn(2, N, N)
    if precision in ("ieee", "tf32"):
        x, y = ((v if precision == "ieee" else tf32(v)).double() for v in (a, b))
        expected = x @ y
    else:
        (ah, al), (bh, bl) = split(a, precision), split(b, precision)
        expected = al @ bh + ah @ bl + ah @ bh
    found = dot(a, b, precision=precision).double()
    summation = 1e-6 * (a.abs().double() @ b.abs().double())
    assert ((found - expected).abs() <= summation).all()
    error = (found - a.double() @ b.double()).abs().max()
    low, high = {"ieee": (0, 3e-5), "tf32": (2e-3, 5e-2), "tf32x3": (0, 3e-5), "bf16x3": (2e-5, 4e-4)}[precision]
    assert low <= error <= high  # the precisions are told apart


def test_infinity_survives_split_products():
    a, b = torch.ones(N, N), torch.ones(N, N)
    a[3, 4] = torch.inf
    for precision in ("tf32x3", "bf16x3"):
        same(dot(a, b, precision=precision), a @ b)


@triton.jit
def scalar_kernel(p_out, x, y, flag, missing):
    z = x * y
    if missing is None:
        z += 1.0
    tl.store(p_out, z)
    tl.store(p_out + 1, tl.where(flag, 1.0, 2.0))


@pytest.mark.parametrize("flag", [True, False])
def test_scalar_arguments(flag):
    out = torch.empty(2)
    scalar_kernel[(1,)](out, 0.1, 3.3, flag, None)
    x, y = torch.tensor([0.1, 3.3])
    same(out, torch.stack([x * y + 1, torch.tensor(1.0 if flag else 2.0)]))


@triton.jit
def fma_kernel(p_x, p_y, p_out, N: tl.constexpr):
    o = tl.program_id(0) * N + tl.arange(0, N)
    x = tl.load(p_x + o)
    tl.store(p_out + o, tl.fma(x, x, tl.load(p_y + o)))


def test_fma_rounds_once():
    x = torch.full((BLOCK,), 1 + 2.0**-12)
    same(map_pairs(fma_kernel, x, -(x * x), torch.float32), torch.full((BLOCK,), 2.0**-24))


@triton.jit
def masked_kernel(p_x, p_out, count, N: tl.constexpr):
    o = tl.arange(0, N)
    tl.store(p_out + o, tl.load(p_x + o, mask=o < count))


@pytest.mark.parametrize("dtype", [BF16, torch.float32])
def test_masked_lanes_are_poison(dtype):
    x = torch.randn(N).to(dtype)
    out = torch.empty_like(x)
    masked_kernel[(1,)](x, out, 40, N=N)
    same(out[:40], x[:40])
    assert out[40:].isnan().all()


@triton.constexpr_function
def half(n):
    return n // 2


@triton.jit
def weight(x, SCALE: tl.constexpr):
    return tl.exp2(x * SCALE) + tl.sum(x, 0)


@triton.jit
def online_kernel(p_x, p_other, p_out, rows, N: tl.constexpr):
    """Log-sum-exp2 over rows as flash attention does it, from either of two tensors; then all the ways to loop."""
    i_program = tl.program_id(0)
    o = tl.arange(0, N)
    p_rows = p_x
    if i_program == 1:
        p_rows = p_other
    highest, total = tl.full((N,), float("-inf"), tl.float32), tl.zeros((N,), tl.float32)
    for row in tl.range(0, rows, num_stages=2):
        b = tl.load(tl.where(i_program == 0, p_x, p_rows) + row * N + o)
        now = tl.maximum(highest, b)
        total = total * tl.exp2(highest - now) + tl.exp2(b - now)
        highest = now
    result = highest + tl.log2(total)
    row = 0
    while row < rows:
        result += tl.load(p_rows + row * N + o)
        row += 1
    for step in tl.static_range(half(6)):
        result += step * weight(tl.load(p_rows + o), 0.5)
    tl.store(p_out + i_program * N + o, result)


def test_language():
    x, y = torch.randn(2, 5, N)
    out = torch.empty(2, N)
    online_kernel[(2,)](x, y, out, 5, N=N)
    for rows, found in zip((x, y), out, strict=True):
        expected = rows.exp2().sum(0).log2() + rows.sum(0) + 3 * (torch.exp2(rows[0] * 0.5) + rows[0].sum())
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_language_is_patched_once(monkeypatch):
    def again(*args):
        raise AssertionError("patched again")

    monkeypatch.setattr(stock, "_patch_builtin", again)
    test_language()


def test_repairing_again_changes_nothing():
    before = dict(vars(stock.InterpreterBuilder)), dict(vars(stock))
    repair()
    assert (dict(vars(stock.InterpreterBuilder)), dict(vars(stock))) == before


def test_an_interpreter_of_another_shape_is_refused(monkeypatch):
    monkeypatch.setattr(interpreter, "_repaired", False)
    monkeypatch.setattr(stock.InterpreterBuilder, "create_masked_load", lambda self, addresses: None)
    with pytest.raises(RuntimeError, match=r"create_masked_load of triton .* known are .* triton 3.6 to 3.9"):
        repair()
    monkeypatch.delattr(stock, "_patch_lang")
    with pytest.raises(RuntimeError, match="_patch_lang"):
        repair()
