"""The public losses: every implementation against the reference, hostile inputs, validation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from every_pair import every_pair
from oracle import assert_exact
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import kernels
from fastmc.arguments import check_contrast, check_mixing
from fastmc.backends import CONTRAST, Need
from fastmc.objective import attention as rows
from fastmc.objective import chunked
from fastmc.objective.loss import info_nce, mc_loss, mc_loss_parts

MIXES = ["own", "tiled"]
NAMES = ("loss", "L1", "L2", "L3", "df1", "df2", "df3", "bank")
Batch = dict[str, Any]  # keyword arguments
Outputs = dict[str, Tensor]


def batch(b: int, k: int, d: int, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> Batch:
    """Arguments of mc_loss: unit features, raw bank rows of many lengths, one coefficient per entry."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    arguments: Batch = {name: F.normalize(draw(b, d), dim=1) for name in ("f0", "f1", "f2", "f3")}
    lengths = 0.1 + 3 * torch.rand(k, 1, generator=generator, dtype=dtype)
    return {
        **arguments,
        "bank": F.normalize(draw(k, d), dim=1) * lengths,
        "mixing": torch.rand(k, generator=generator, dtype=dtype),
    }


def outputs(arguments: Batch, *, grad_output: float = 1.0, **settings: Any) -> Outputs:
    """The loss, its parts, and the gradients of both to f1, f2, f3 and the bank."""
    leaves = {name: arguments[name].detach().requires_grad_() for name in ("f0", "f1", "f2", "f3", "bank")}
    arguments = {**arguments, **leaves}
    loss = mc_loss(**arguments, **settings)
    parts = mc_loss_parts(**arguments, **settings)
    (grad_output * loss + 0.5 * parts[1] - 2 * parts[2]).backward()
    assert leaves["f0"].grad is None
    gradients = [leaves[name].grad for name in ("f1", "f2", "f3", "bank")]
    return dict(zip(NAMES, (loss.detach(), *(part.detach() for part in parts), *gradients), strict=True))


def zero_row(arguments: Batch) -> None:
    arguments["bank"][3] = 0


def tiny_row(arguments: Batch) -> None:
    arguments["bank"][3] *= 1e-14


def duplicate_rows(arguments: Batch) -> None:
    arguments["bank"][5:40] = arguments["bank"][4]


def entry_equal_to_a_feature(arguments: Batch) -> None:
    arguments["bank"][:7] = arguments["f0"]
    arguments["bank"][7:14] = -arguments["f2"]


def collapsed_encoder(arguments: Batch) -> None:
    for name in ("f0", "f1", "f2", "f3", "bank"):
        arguments[name][:] = arguments["f0"][:1].clone()


def huge_logits(arguments: Batch) -> None:
    for name in ("f0", "f1", "f2", "f3"):
        arguments[name] *= 30


def not_contiguous(arguments: Batch) -> None:
    for name in ("f0", "f1", "f2", "f3"):
        arguments[name] = arguments[name].T.contiguous().T
    arguments["bank"] = torch.cat([arguments["bank"], arguments["bank"]], dim=1)[:, ::2]
    arguments["mixing"] = arguments["mixing"].repeat_interleave(2)[::2]
    assert not any(t.is_contiguous() for t in arguments.values())


def broadcast_features(arguments: Batch) -> None:
    arguments["f1"] = arguments["f1"][:1].expand(7, -1)


def extreme_mixing(arguments: Batch) -> None:
    arguments["mixing"][::2] = 0
    arguments["mixing"][1::2] = 1


HOSTILE = [
    zero_row, tiny_row, duplicate_rows, entry_equal_to_a_feature, collapsed_encoder, huge_logits, not_contiguous,
    broadcast_features, extreme_mixing,
]  # fmt: skip


def without_mixing(arguments: Batch) -> None:
    arguments["mixing"] = None


@pytest.mark.parametrize(("spoil", "temperature", "mix"), every_pair([*HOSTILE, without_mixing], [0.01, 0.07], MIXES))
def test_torch_equals_reference_on_hostile_input(spoil: Callable[[Batch], None], temperature: float, mix: str) -> None:
    """By autograd, with an upstream gradient. Ordinary input of any shape: tests/test_chunked.py."""
    arguments = batch(7, 45, 6)
    spoil(arguments)
    ours, truth = (
        outputs(arguments, temperature=temperature, mix=mix, grad_output=-2.5, impl=impl)
        for impl in ("torch", "reference")
    )
    norm = max(float(arguments[name].norm(dim=1).max()) for name in ("f0", "f1", "f2", "f3"))
    # A rounding of a logit is the same relative rounding of its probability.
    assert_exact(ours, truth, 1e-12 * max(1.0, norm * max(norm, 1.0) / temperature / 100))


@pytest.mark.parametrize("mix", MIXES)
def test_one_coefficient_equals_a_vector_of_it(mix: str) -> None:
    arguments = batch(7, 45, 6)
    vector = outputs({**arguments, "mixing": torch.full((45,), 0.3, dtype=torch.float64)}, mix=mix)
    number = outputs({**arguments, "mixing": 0.3}, mix=mix)
    assert_exact(number, vector)


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("b,k,d", [(1, 1, 1), (7, 130, 5)])
def test_info_nce_is_a_cross_entropy_against_the_normalised_bank(b: int, k: int, d: int, impl: str) -> None:
    arguments = batch(b, k, d)
    f0, f, bank = (arguments[name].requires_grad_() for name in ("f0", "f1", "bank"))
    negatives = f @ F.normalize(bank, dim=1).T
    logits = torch.cat([(f * f0.detach()).sum(1, keepdim=True), negatives], dim=1) / 0.07
    library = F.cross_entropy(logits, torch.zeros(b, dtype=torch.int64))
    ours = info_nce(f, f0, bank, impl=impl)
    torch.testing.assert_close(ours, library, rtol=1e-12, atol=1e-14)
    expected = torch.autograd.grad(library, [f, bank])
    *gradients, of_key = torch.autograd.grad(3 * ours, [f, bank, f0], allow_unused=True)
    assert of_key is None
    for gradient, truth in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, 3 * truth, rtol=1e-11, atol=1e-13)


def test_half_precision_features_are_widened_before_any_product() -> None:
    arguments = batch(7, 45, 6, dtype=torch.float32)
    narrow = {name: t.bfloat16() if name[0] == "f" else t for name, t in arguments.items()}
    widened = {name: t.float() for name, t in narrow.items()}
    ours, truth = outputs(narrow), outputs(widened)
    assert ours["loss"].dtype == torch.float32 and torch.equal(ours["loss"], truth["loss"])
    assert ours["df1"].dtype == torch.bfloat16 and torch.equal(ours["df1"], truth["df1"].bfloat16())
    assert ours["bank"].dtype == torch.float32 and torch.equal(ours["bank"], truth["bank"])


@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_autocast_does_not_reach_inside(impl: str) -> None:
    arguments = batch(7, 45, 6, dtype=torch.float32)
    f, f0, bank = arguments["f1"], arguments["f0"], arguments["bank"]
    expected = mc_loss(**arguments, impl=impl), info_nce(f, f0, bank, impl=impl)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (f @ bank.T).dtype == torch.bfloat16
        assert torch.equal(mc_loss(**arguments, impl=impl), expected[0])
        assert torch.equal(info_nce(f, f0, bank, impl=impl), expected[1])


class Recorder(TorchDispatchMode):
    """The names of the operators that run, and the largest tensor that they make."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: set[str] = set()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operators.add(func.overloadpacket.__name__)
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


WAITING = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select"}


@pytest.mark.slow
@pytest.mark.parametrize("mix", MIXES)
def test_torch_makes_nothing_larger_than_a_chunk_and_waits_for_nothing(
    mix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "ENTRIES", 50)
    monkeypatch.setattr(chunked, "may_look", lambda tensor: False)  # as on a GPU
    b, k, d = 150, 500, 16
    arguments = batch(b, k, d)
    arguments["mixing"] = 0.3
    with Recorder() as recorder:
        outputs(arguments, impl="torch", mix=mix)
    chunk = 50 if mix == "own" else b
    assert recorder.largest <= max(8 * 50 * chunk, 4 * b * d, k * d)  # three blocks of 50 samples, plain and mixed
    assert not recorder.operators & WAITING
    if mix == "own":
        with Recorder() as recorder:
            outputs(arguments, impl="reference", mix=mix)
        assert recorder.largest >= b * k * d, "the recorder sees the banks that the reference builds"


def test_validation_looks_at_no_value_on_a_gpu() -> None:
    with FakeTensorMode():  # a fake tensor has no values: reading one raises
        features = {name: torch.empty(7, 5, device="cuda") for name in ("f0", "f1")}
        bank, mixing = torch.empty(9, 5, device="cuda"), torch.empty(9, device="cuda")
        check_contrast(features, bank, 0.07)
        check_mixing(mixing, bank, "own")
        with pytest.raises(DataDependentOutputException):
            bool((mixing > 0).any())


NAN, TWO = float("nan"), torch.full((45,), 2.0)
INVALID = [
    ("f0", torch.zeros(6, 6)),
    ("f1", torch.zeros(7, 5)),
    ("f3", torch.zeros(7, 1, 6)),
    ("f0", torch.zeros(0, 6)),
    ("f1", torch.zeros(7, 6, dtype=torch.int64)),
    ("f3", [[0.0] * 6] * 7),
    ("f2", torch.zeros(7, 6, device="meta")),
    ("bank", torch.zeros(45, 5)),
    ("bank", torch.zeros(0, 6)),
    ("bank", torch.zeros(45, 6, dtype=torch.int32)),
    ("bank", None),
    ("mixing", torch.zeros(44)),
    ("mixing", torch.zeros(45, 1)),
    ("mixing", torch.zeros(45, dtype=torch.int64)),
    ("mixing", torch.zeros(45, device="meta")),
    ("mixing", TWO),
    ("mixing", -TWO),
    ("mixing", TWO * NAN),
    ("mixing", 1.5),
    ("mixing", "0.3"),
    ("temperature", 0.0),
    ("temperature", NAN),
    ("temperature", torch.tensor(0.07)),
    ("mix", "mine"),
    ("impl", "cuda"),
    ("precision", "float32"),
]


@pytest.mark.parametrize("name,value", INVALID)
def test_invalid_input_is_an_error_that_names_the_argument(name: str, value: Any) -> None:
    arguments = batch(7, 45, 6, dtype=torch.float32)
    for function in (mc_loss, mc_loss_parts):
        function(**arguments)
        # "f1 is (7, 5), f0 is (7, 6)" may begin with either of the two that disagree.
        with pytest.raises(ValueError, match=rf"\b{name}\b"):
            function(**{**arguments, name: value})


@pytest.mark.parametrize("name,value", [case for case in INVALID if case[0] in ("f0", "bank", "temperature", "impl")])
def test_invalid_input_of_info_nce_is_an_error_that_names_the_argument(name: str, value: Any) -> None:
    arguments = batch(7, 45, 6, dtype=torch.float32)
    valid = {"f": arguments["f1"], "f0": arguments["f0"], "bank": arguments["bank"]}
    info_nce(**valid)
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        info_nce(**{**valid, name: value})


@pytest.mark.parametrize(
    "name,known",
    [("mix", MIXES), ("impl", ["auto", "triton", "torch", "reference"]), ("precision", ["bf16x3", "ieee", "bf16"])],
)
def test_an_unknown_choice_lists_the_known_ones(name: str, known: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        mc_loss(**{**batch(7, 45, 6), name: "fastest"})
    assert all(choice in str(error.value) for choice in (*known, "fastest"))


def test_triton_says_why_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = batch(7, 45, 6)
    monkeypatch.setattr(kernels, "unavailable_reason", lambda device: "the moon is full")
    with pytest.raises(RuntimeError, match="the moon is full"):
        mc_loss(**arguments, impl="triton")
    monkeypatch.setattr(kernels, "unavailable_reason", lambda device: None)
    with pytest.raises(RuntimeError, match="the tensors are float64"):
        mc_loss(**arguments, impl="triton")


def test_auto_takes_triton_on_a_gpu_where_it_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert all(CONTRAST.why_not(impl, Need(cpu)) is None for impl in ("torch", "reference"))
    monkeypatch.setattr(kernels, "unavailable_reason", lambda device: None)
    assert CONTRAST.choose("auto", Need(gpu, torch.float32)) == "triton"
    assert CONTRAST.choose("auto", Need(gpu, torch.float64)) == "torch", "the kernels compute in float32"
    assert CONTRAST.choose("auto", Need(cpu, torch.float32)) == "cpp"
    monkeypatch.setattr(kernels, "unavailable_reason", lambda device: "no")
    assert CONTRAST.choose("auto", Need(gpu, torch.float32)) == "torch"
    with pytest.raises(RuntimeError, match="cannot run: no; impl='auto'"):
        CONTRAST.choose("triton", Need(gpu, torch.float32))
