"""The ledger of a whole step: that the counting counts, each part against counts by hand, and the model."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from bench import ledger
from bench.counting import REST, PartWork, RecurrentCall, count_parts, multi_tensor_launches
from bench.ledger import Ledger, measure, render
from bench.ledger_step import (
    KINDS,
    L2,
    LAUNCH,
    LAUNCHES_PER_FRAME,
    PEAK,
    TrainingStep,
    frame_seconds,
    kept_bytes,
    model,
    recurrent_seconds,
)
from kernels.ranges import part

pytestmark = [pytest.mark.slow, pytest.mark.compiler]
B, K, D, T, M, F, C = 3, 64, 16, 16, 2, 150, 128
LAYERS, H = 2, 8
PAPER = RecurrentCall("query", 192, 64, 150, 1024, 3, 2, False, True, False, 1_104_981_000_192)


# --- By hand


def gru_forward(clips: int) -> int:
    """Products of all gates with inputs and state, both directions of each layer."""
    return sum(2 * 2 * clips * T * 3 * H * (inputs + H) for inputs in (F, 2 * H))


def gru_input_gradient(clips: int) -> int:
    """As forward, but that the first state of a sequence is no variable."""
    return gru_forward(clips) - LAYERS * 2 * 2 * clips * 3 * H * H


def head_forward(clips: int) -> int:
    return 2 * clips * (2 * H * 2 * H + 2 * H * D)


# --- Counting


def test_work_goes_to_the_innermost_part_that_runs():
    a = torch.ones(4, 8, device="meta")

    def call():
        a @ a.T
        with part("attack"):
            a.T @ a
            with part("query"):
                a + 1
            a + 2

    works = count_parts(call)
    assert {name: dict(work.operators) for name, work in works.items()} == {
        REST: {"mm": 1},
        "attack": {"mm": 1, "add": 1},
        "query": {"add": 1},
    }
    assert (works[REST].flops, works["attack"].flops) == (2 * 4 * 8 * 4, 2 * 8 * 4 * 8)
    assert (works["query"].load_bytes, works["query"].store_bytes) == (4 * 32, 4 * 32)


def test_triton_launches_go_to_the_part_that_makes_them():
    launches = []

    class Launch:
        name = "_k_kernel"

    def call():
        launches.append(Launch)
        with part("mc"):
            launches.extend([Launch, Launch])
        with part("ema"):
            pass
        launches.append(Launch)

    works = count_parts(call, launches)
    assert {name: len(work.kernels) for name, work in works.items()} == {REST: 2, "mc": 2}


@pytest.mark.parametrize(
    "sizes, lists, launches",
    [
        ([0, 0], 2, 0),
        ([65536 * 320], 2, 1),
        ([65536 * 320 + 1], 2, 2),
        ([65536 * 319, 1, 1], 3, 2),
        ([1] * 111, 1, 2),
        ([1] * 110, 3, 3),
        ([1, 0] * 48, 3, 1),
        ([65536 * 700, *[1] * 47], 3, 3),
        ([65536 * 640, *[1] * 48], 3, 3),  # a tensor that ends with a launch takes no place in the next
    ],
)
def test_launches_for_lists_of_tensors(sizes, lists, launches):
    assert multi_tensor_launches(sizes, lists) == launches


def test_copies_of_lists_read_the_source_and_write_the_destination():
    source = [torch.ones(70_000, device="meta"), torch.ones(5, device="meta")]
    copies = [t.to(torch.bfloat16) for t in source]
    work = count_parts(lambda: torch._foreach_copy_(copies, source))[REST]
    assert dict(work.operators) == {"_foreach_copy_": 1}
    assert (work.load_bytes, work.store_bytes) == (4 * 70_005, 2 * 70_005)


def gru_passes(*, weights: bool, inputs: bool, layers: int = LAYERS, device: str = "meta") -> list[RecurrentCall]:
    gru = torch.nn.GRU(F, H, layers, batch_first=True, bidirectional=True, device=device).requires_grad_(weights)
    x = torch.zeros(B, T, F, device=device, requires_grad=inputs)

    def call():
        with part("query"):
            final = gru(x)[1]
        if final.requires_grad:
            with part("backward"):
                final.sum().backward()

    works = count_parts(call)
    assert all(not work.operators.get("mm") for work in works.values())
    return [pass_ for work in works.values() for pass_ in work.recurrent]


def test_passes_through_a_recurrent_net_against_counts_by_hand():
    (forward,) = gru_passes(weights=False, inputs=False)
    size = {"clips": B, "frames": T, "inputs": F, "hidden": H, "layers": LAYERS, "directions": 2}
    flags = {"backward": False, "keeps": False, "weights": False}
    assert forward == RecurrentCall(part="query", flops=gru_forward(B), **size, **flags)

    forward, backward = gru_passes(weights=False, inputs=True)
    assert (forward.flops, forward.keeps) == (gru_forward(B), True)
    assert (backward.part, backward.backward, backward.weights) == ("backward", True, False)
    assert backward.flops == gru_input_gradient(B)

    backward = gru_passes(weights=True, inputs=True)[1]
    assert backward.weights
    assert backward.flops == gru_input_gradient(B) + gru_forward(B)


@pytest.mark.parametrize("frames_first", [True, False])
@pytest.mark.parametrize("weights", [True, False])
def test_what_pytorch_does_around_cudnn_s_passes(frames_first, weights):
    """By hand, from ATen/native/cudnn/RNN.cpp. Frames first, the zeros remain and the copies go."""
    gru = torch.nn.GRU(F, H, LAYERS, batch_first=not frames_first, bidirectional=True, device="meta")
    gru.requires_grad_(weights)
    x = torch.zeros(*((T, B) if frames_first else (B, T)), F, device="meta", requires_grad=True)

    def call():
        with part("query"):
            final = gru(x)[1]
        with part("backward"):
            torch.autograd.grad(final, [x, *gru.parameters()] if weights else x, torch.empty_like(final))

    works = count_parts(call)
    counted = {
        name: {kind: n for kind, n in works[name].operators.items() if kind.startswith("_cudnn")} for name in works
    }
    outputs, numbers = T * B * 2 * H, sum(p.numel() for p in gru.parameters()) * weights
    back, bytes_ = {"zeros": 1 + weights}, 4 * (outputs + numbers)
    if not frames_first:
        back |= {"zeros copied": 1, "input copied": 1 + weights}
        bytes_ += 4 * (outputs + (1 + weights) * T * B * F)
    assert counted["query"] == ({} if frames_first else {"_cudnn_rnn: input copied": 1})
    assert counted["backward"] == {f"_cudnn_rnn_backward: {kind}": n for kind, n in back.items()}
    assert works["backward"].store_bytes == bytes_


# --- The step


SMALL = {"piece": "step", "batch": B, "bank": K, "dim": D, "frames": T, "encoder": f"{LAYERS}x{H}"}


@pytest.fixture(scope="module")
def found():
    return measure(Ledger(**SMALL))


def recurrent(parts, name: str) -> list[tuple[int, bool, bool, bool, int]]:
    return [(c["clips"], c["backward"], c["keeps"], c["weights"], c["flops"]) for c in parts[name]["recurrent"]]


def test_passes_of_a_step(found):
    """The attack's backward pass is that of the input alone; the views share one; the key encoder keeps nothing."""
    passes = {name: recurrent(found["parts"], name) for name, of in found["parts"].items() if of["recurrent"]}
    assert passes == {
        "attack": [(B, False, True, False, gru_forward(B)), (B, True, False, False, gru_input_gradient(B))],
        "key": [(B, False, False, False, gru_forward(B))],
        "query": [(3 * B, False, True, False, gru_forward(3 * B))],
        "backward": [(3 * B, True, False, True, gru_forward(3 * B) + gru_input_gradient(3 * B))],
    }


def test_other_products_of_a_step(found):
    parts = found["parts"]
    assert parts["attack"]["flops"] == 2 * (2 * B * 2 * H * C), "the FC and its input's gradient"
    assert parts["key"]["flops"] == head_forward(B)
    assert parts["query"]["flops"] == head_forward(3 * B)
    assert parts["backward"]["flops"] == 2 * head_forward(3 * B)
    assert {name for name, of in parts.items() if of["flops"]} == {"attack", "key", "query", "backward", "mc", "bank"}


def test_triton_launches_of_a_step(found):
    launches = {name: of["triton_launches"] for name, of in found["parts"].items() if of["triton_launches"]}
    assert launches == {"augment": 4, "attack": 3, "mc": 3, "bank": 1, "optimizer": 3}


def weights_of(layers: int, hidden: int, dim: int) -> tuple[int, int]:
    """Of an encoder: those that half precision copies, and those of its input norm."""
    inputs = [F, *[2 * hidden] * (layers - 1)]
    recurrent = sum(2 * 3 * hidden * (n + hidden + 2) for n in inputs)
    return recurrent + 2 * hidden * (2 * hidden + 1) + dim * (2 * hidden + 1), 2 * F


def test_all_updates_are_a_launch_for_each_group_of_weights(found):
    """The recurrent net's, the head's, the input norm's. Gradients of the latter two come tensor by tensor and are
    collected first; cuDNN's are taken as they come, and nobody casts a weight beside."""
    assert "ema" not in found["parts"]
    assert found["parts"]["optimizer"]["by_operator"]["_foreach_copy_"] == 2
    assert "_foreach_copy_" not in found["parts"]["backward"]["by_operator"]
    assert "_foreach_copy_" not in found["parts"][REST]["by_operator"]
    weights = LAYERS * 2 * 4 + 2 + 4  # the recurrent net's, the norm's, the head's
    assert found["plain"]["ema"]["operators"] >= 2 * weights


@pytest.mark.parametrize(("amp", "load", "store"), [("fp16", 14, 16), ("fp32", 16, 12)])
def test_bytes_of_the_updates(amp, load, store):
    """Of each weight, and of the table: six or four numbers a program; flag, rate and, in float16, scale."""
    copied, norm = weights_of(LAYERS, H, D)
    rows = replace(small_step(), amp=amp).update_rows()
    *others, of_norm = sorted(rows, key=lambda row: -row["store_bytes"])
    settings, columns = 4 * (3 if amp == "fp16" else 2), 4 if amp == "fp32" else 6
    table = sum(row["programs"] * (8 * columns + settings) for row in others)
    table += of_norm["programs"] * (8 * 4 + settings)
    assert sum(row["load_bytes"] for row in rows) == load * copied + 16 * norm + table
    assert sum(row["store_bytes"] for row in rows) == store * copied + 12 * norm


def moved(step: TrainingStep) -> tuple[float, float]:
    """Bytes of optimizer, key encoder and casts, and beside them those of the gradient's norm."""
    works = step.count("cuda:90")
    operators = [works[name] for name in (REST, "optimizer", "ema") if name in works]
    copied, norm = weights_of(3, 1024, 128)
    launches = sum(row["load_bytes"] + row["store_bytes"] for row in step.update_rows())
    return launches + sum(work.load_bytes + work.store_bytes for work in operators), 2 * copied + 4 * norm


def test_updates_of_the_papers_encoder_move_at_most_1_7_gigabytes():
    updates, norm = moved(Ledger(**SMALL | {"encoder": "3x1024", "dim": 128}).step)
    assert updates + norm < 1.61e9


def small_step() -> TrainingStep:
    return Ledger(**SMALL).step


def test_kernels_that_were_not_counted_are_an_error(monkeypatch):
    monkeypatch.setattr(TrainingStep, "triton_rows", lambda self: {"augment": [], "mc": []})
    with pytest.raises(RuntimeError, match=r"the part augment launches .*, of which .* were counted"):
        small_step().measure("cuda:90", plain=False)


# --- The model


def test_model_of_a_pass():
    """Three layers of 64 frames; products 2 x 2 x 192 x 3 x 1024 x 1024, weights 2 x 3 x 1024 x 1024 bfloat16."""
    frames = 3 * 64
    products, weights = 2 * 2 * 192 * 3 * 1024**2, 2 * 3 * 1024**2 * 2
    assert frame_seconds(PAPER, "bf16") == {
        "products": products / 989e12,
        "weights from L2": weights / L2,
        "weights from memory": 0.0,
    }
    at_once = PAPER.flops - frames * products
    assert at_once == 2 * 2 * 192 * 64 * 3 * 1024 * (150 + 2048 + 2048)
    assert recurrent_seconds(PAPER, "bf16") == pytest.approx(
        dict.fromkeys(KINDS, 0.0)
        | {
            "frames: launches": frames * LAUNCHES_PER_FRAME * LAUNCH,
            "frames: products": frames * products / 989e12,
            "products": at_once / 989e12,
        }
    )


def test_bytes_of_a_pass():
    """One layer, one direction, by hand: weights, inputs, outputs; four gates for a backward pass; its gradients."""
    call = RecurrentCall("key", 5, 7, 11, 13, 1, 1, False, False, False, 0)
    weights, inputs, outputs, gates = 3 * 13 * (11 + 13), 5 * 7 * 11, 5 * 7 * 13, 4 * 5 * 7 * 13
    assert kept_bytes(call, "bf16") == 2 * (weights + inputs + outputs)
    assert kept_bytes(replace(call, keeps=True), "fp32") == 4 * (weights + inputs + outputs + gates)
    backward = replace(call, backward=True)
    assert kept_bytes(backward, "bf16") == 2 * (weights + 2 * inputs + 2 * outputs + gates)
    assert kept_bytes(replace(backward, weights=True), "bf16") == 2 * (2 * weights + 2 * inputs + 2 * outputs + gates)


def test_model_of_a_part():
    work = PartWork(load_bytes=3_000_000, store_bytes=350_000, flops=0)
    work.operators.update({"add": 2, "mul": 1})
    rows = [
        {"first_touch_bytes": 6_700_000, "seconds_at_least": 2e-6},
        {"first_touch_bytes": 6_700_000, "seconds_at_least": 5e-6},
    ]
    want = dict.fromkeys(KINDS, 0.0) | {"launches": 5 * LAUNCH, "memory": 1e-6 + 2e-6, "products": 5e-6}
    assert model(work, rows, "bf16") == pytest.approx(want)
    work.flops = int(PEAK["tf32"] * 1e-5)
    want |= {"memory": 2e-6, "products": 15e-6}
    assert model(work, rows, "tf32") == pytest.approx(want)


# --- The command


def test_what_is_printed(found, monkeypatch, capsys):
    monkeypatch.setattr(ledger, "measure", lambda settings: found)
    assert ledger.main(["--piece", "step", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parts"]["key"]["recurrent"][0]["flops"] == gru_forward(B)
    text = render(found)
    assert "A MODEL, not a measurement, of an H100 SXM" in text
    assert "14 Triton launches and" in text
    assert "| attack | 3 |" in text
    assert f"- query, {3 * B} clips: " in text
    assert "fastmc.reference.step" in text
    assert "this model is wrong for them" in text, "eight hidden units"


def test_wrong_inputs(capsys):
    for wrong, says in (
        ({"amp": "fp8"}, "amp must be one of bf16, fp16, tf32, fp32"),
        ({"encoder": "big"}, "encoder must be LAYERSxHIDDEN"),
        ({"batch": 0}, "batch must be at least 1"),
    ):
        with pytest.raises(ValueError, match=says):
            _ = Ledger(**SMALL | wrong).step
    with pytest.raises(ValueError, match="--stream has no meaning for --piece step"):
        Ledger(**SMALL, stream="bone")
    with pytest.raises(ValueError, match="--amp has no meaning for --piece mc"):
        Ledger(amp="fp32")
    assert ledger.main(["--piece", "step", "--encoder", "big"]) == 1
    assert "encoder must be LAYERSxHIDDEN" in capsys.readouterr().err
