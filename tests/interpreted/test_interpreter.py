"""The repaired interpreter computes what PyTorch computes on the same types, bit for bit where that is defined."""

from __future__ import annotations

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
def extremes_kernel(p_x, p_y, p_out, OP: tl.constexpr, N: tl.constexpr):
    o = tl.program_id(0) * N + tl.arange(0, N)
    x, y = tl.load(p_x + o), tl.load(p_y + o)
    tl.store(p_out + o, tl.maximum(x, y) if OP == "maximum" else tl.minimum(x, y))


@pytest.mark.parametrize(("op", "plain"), [("maximum", torch.fmax), ("minimum", torch.fmin)])
def test_extremes_and_nan(op, plain):
    x, y = (torch.where(v.isnan(), torch.nan, v).float() for v in pairs_of_bfloat16())  # no signalling NaNs
    found, expected = map_pairs(extremes_kernel, x, y, torch.float32, OP=op), plain(x, y)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)  # of 0 and -0 either may win


@triton.jit
def reduce_kernel(p_x, p_sum, p_max, p_min, AXIS: tl.constexpr, N: tl.constexpr):
    o = tl.arange(0, N)
    x = tl.load(p_x + o[:, None] * N + o[None, :])
    tl.store(p_sum + o, tl.sum(x, AXIS))
    tl.store(p_max + o, tl.max(x, AXIS))
    tl.store(p_min + o, tl.min(x, AXIS))


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


@pytest.mark.parametrize(
    ("form", "dtype"), [("ab", BF16), ("ab, acc", torch.float16), ("abT", BF16), ("aTb", torch.float32)]
)
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
