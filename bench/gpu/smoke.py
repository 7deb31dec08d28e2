"""Section a: every kernel of a step against float64, at the product's size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.counting import step_arguments
from bench.gpu.section import Bench
from bench.ledger_data import ntu_like_clips
from bench.parity import BUDGET
from bench.providers import ASCENT, MIXES, TEMPERATURE, Case, Mix, draw
from fastmc.doctor import gpu_lines
from fastmc.encoders.bigru import BiGRUConfig
from fastmc.encoders.storage import share_storage
from fastmc.methods import attack
from fastmc.methods.a2mc import OF_ATTACKED, OF_CLIPS, A2MCConfig
from fastmc.objective import chunked
from fastmc.skeleton import NTU25
from fastmc.views.clips import DenseClips
from fastmc.views.draw import COLUMNS, AugmentConfig, ViewParams, draw_params
from fastmc.views.make import make_views

SIMILARITY = {"bf16x3": 3 * 2.0**-18, "ieee": 0.0, "bf16": 2.0**-8}
"""Error of a similarity of unit rows by the kernels' products. bf16x3: either operand is off by at most 2^-18 of
itself, and the product that is left out is no larger. bf16: either operand is off by 2^-9."""
EPS = torch.finfo(torch.float32).eps
TABLE = "Largest error of each against float64, and its budget"
ANGULAR = ("pose", "jitter", "filter_sigma")
"""Choices that a sine, a cosine or an exponential is in; all others are equal bit for bit."""


def run(bench: Bench) -> None:
    for name, text, _ in gpu_lines():
        bench.found.note(f"{name}: {text}")
    check_products(bench, "bf16x3")  # the default
    bench.attempt("choices", check_choices, bench)
    bench.attempt("views", check_views, bench)
    bench.attempt("attack", check_attack, bench)
    bench.attempt("update of the weights", check_update, bench)
    check_products(bench, "ieee")
    check_products(bench, "bf16")


def check_products(bench: Bench, precision: str) -> None:
    """Loss and bank step with these products of the kernels, for both mixings."""
    for mix in MIXES:
        if bench.has(12, what := f"loss and bank step, {precision} products, {mix} mixing"):
            bench.attempt(what, check_step, bench, mix, precision)


def judge(bench: Bench, what: str, errors: Mapping[str, float], budgets: Mapping[str, float]) -> None:
    """A row for the output that uses most of its budget. AssertionError if that is more than all; a NaN is."""
    worst = max(budgets, key=lambda name: _share(errors[name], budgets[name]))
    share = _share(errors[worst], budgets[worst])
    bench.found.row(
        TABLE, what=what, worst=worst, error=errors[worst], budget=budgets[worst], **{"% of it": 100 * share}
    )
    assert share <= 1, f"{what}: {worst} is off by {errors[worst]:.2e}, the budget is {budgets[worst]:.2e}"


def _share(error: float, budget: float) -> float:
    if error != error:
        return float("inf")
    return error / budget if budget else float("inf") * error if error else 0.0


def off(found: Tensor, truth: Tensor) -> float:
    """The largest difference; NaN if there is one."""
    return float((found.detach().cpu().double() - truth.double()).abs().max())


# --- Loss and bank step


def check_step(bench: Bench, mix: Mix, precision: str) -> None:
    """A step of the kernels, held to twice what PyTorch is off in float32 and the error of the products: one of a logit
    is the same relative error of its probability."""
    case = bench.sizes.case(mix)
    from kernels.mc import contrast_step_  # here, since importing it decides how Triton runs

    found = outputs(contrast_step_, case, precision, bench.device)
    truth, plain = (
        outputs(chunked.contrast_step_, case, "ieee", torch.device("cpu"), dtype)
        for dtype in (torch.float64, torch.float32)
    )
    again = outputs(contrast_step_, case, precision, bench.device)
    assert all(torch.equal(found[name], again[name]) for name in found), "equal inputs give other bits"
    relative = (SIMILARITY[precision] + 4 * EPS) / min(TEMPERATURE, ASCENT["temperature"])
    # A gradient is a difference of two mean entries over tau B, and has at least their scale.
    entry = float(draw(case).f0.abs().max()) / (TEMPERATURE * case.batch)
    errors, budgets = {}, {}
    for name, exact in truth.items():
        scale = max(float(exact.abs().max()), entry if name.startswith("df") else 0.0)
        errors[name] = off(found[name], exact)
        budgets[name] = 2 * off(plain[name], exact) + relative * scale
    judge(bench, f"loss and bank step, {precision} products, {mix} mixing", errors, budgets)


def outputs(
    step: Callable[..., tuple[Tensor, Tensor]],
    case: Case,
    precision: str,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Loss and its parts, mean probability of the positive, gradients, and the change of bank and momentum."""
    x = draw(case).to(device, dtype)
    before = x.bank.clone(), x.momentum.clone()
    arguments: dict[str, Any] = step_arguments(x, case, precision)
    stats, (df1, df2, df3) = step(**arguments)
    loss, l1, l2, l3, _, probability = stats.unbind()
    named = {"loss": loss, "l1": l1, "l2": l2, "l3": l3, "probability": probability, "df1": df1, "df2": df2, "df3": df3}
    return named | {"bank": x.bank.double() - before[0].double(), "momentum": x.momentum.double() - before[1].double()}


# --- Choices, views, attack


def check_choices(bench: Bench) -> None:
    """The table of random choices, drawn by the kernel and by PyTorch."""
    frames = ntu_like_clips(bench.sizes.batch, bench.sizes.bodies, "cpu").num_frames
    for views, resized_to in ((OF_CLIPS, None), (OF_ATTACKED, bench.sizes.frames)):
        ours = drawn(frames.to(bench.device), views, resized_to, "triton")
        plain = drawn(frames, views, resized_to, "torch")
        errors = {name: off(ours.column(name), plain.column(name)) for name in COLUMNS}
        budgets = {name: BUDGET * EPS * float(plain.column(name).abs().max()) * (name in ANGULAR) for name in COLUMNS}
        judge(bench, f"choices of views {views[0]} and {views[1]}, against PyTorch's", errors, budgets)


def drawn(frames: Tensor, views: tuple[int, ...], resized_to: int | None, impl: str) -> ViewParams:
    sample = torch.arange(len(frames), device=frames.device) * 37
    key: dict[str, Any] = {"views": views, "seed": 3, "step": 11, "sample": sample, "resized_to": resized_to}
    return draw_params(AugmentConfig(), frames, NTU25.num_joints, **key, impl=impl)


def check_views(bench: Bench) -> None:
    """Views of clips and of attacked ones, in metres."""
    sizes = bench.sizes
    clips = ntu_like_clips(sizes.batch, sizes.bodies, "cpu")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(sizes.batch, sizes.frames, NTU25.num_joints * sizes.bodies * 3, generator=generator)
    dense = DenseClips(x, clips.num_bodies, sizes.bodies)
    for source, views, resized_to in ((clips, OF_CLIPS, None), (dense, OF_ATTACKED, sizes.frames)):
        params = drawn(clips.num_frames, views, resized_to, "torch")
        truth = make_views(source, params, NTU25, size=sizes.frames, impl="reference")
        there = on(source, bench.device), on(params, bench.device)
        found = make_views(*there, NTU25, size=sizes.frames, impl="triton")
        budget = BUDGET * EPS * float(truth.abs().max())
        judge(bench, f"views {views[0]} and {views[1]}", {"metres": off(found, truth)}, {"metres": budget})


def on(value: Any, device: torch.device) -> Any:
    """A dataclass of tensors and others, on a device."""
    moved = {name: v.to(device) if isinstance(v, Tensor) else v for name, v in vars(value).items()}
    return type(value)(**moved)


def check_attack(bench: Bench) -> None:
    """What surrounds the encoder's passes in eq. 5 and 6."""
    from kernels import attack as kernel  # here, since importing it decides how Triton runs

    sizes, config = bench.sizes, A2MCConfig()
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(sizes.batch, config.attack_classes, generator=generator)
    truth = attack.logit_gradient(logits.double())
    found = kernel.logit_gradient(logits.to(bench.device))
    budget = 4 * BUDGET * EPS * float(truth.abs().max())
    judge(bench, "gradient of the attack's logits", {"gradient": off(found, truth)}, {"gradient": budget})

    x, gradient = (
        torch.randn(sizes.batch, sizes.frames, NTU25.num_joints * sizes.bodies * 3, generator=generator)
        for _ in range(2)
    )
    settings = (sizes.bodies, config.attack_lr, config.attack_norm)
    truth = attack.limited_step(x.double(), gradient.double(), *settings)
    found = kernel.limited_step(x.to(bench.device), gradient.to(bench.device), *settings)
    budget = BUDGET * EPS * float(truth.abs().max())
    judge(bench, "attacked clips", {"metres": off(found, truth)}, {"metres": budget})


# --- Update of the weights


def update_of(
    shapes: Sequence[Sequence[int]], device: torch.device
) -> tuple[Callable[[], None], dict[str, list[Tensor]]]:
    """A call that makes one update of weights in these shapes, and all tensors that it changes or reads, by name."""
    from kernels.update import UpdateGroup  # here, since importing it decides how Triton runs

    generator = torch.Generator(device).manual_seed(0)

    def drawn_ones() -> list[Tensor]:
        return [torch.randn(tuple(shape), generator=generator, device=device) for shape in shapes]

    weights = {"query": drawn_ones(), "key": drawn_ones()}
    weights |= {f"{name}'s copy": [w.bfloat16() for w in weights[name]] for name in ("query", "key")}
    gradient = [w.bfloat16() for w in drawn_ones()]
    for same in (*weights.values(), gradient):
        share_storage(same)
    group = UpdateGroup(*weights.values())
    for velocity, value in zip(group.velocity, drawn_ones(), strict=True):
        velocity.copy_(value)
    skip, lr = torch.zeros((), device=device), torch.full((), LR, device=device)

    def call() -> None:
        group.step(gradient, skip=skip, lr=lr, unscale=None, momentum=0.9, weight_decay=1e-4, alpha=0.999)

    return call, weights | {"velocity": group.velocity, "gradient": gradient}


LR = 0.01


def check_update(bench: Bench) -> None:
    """SGD, eq. 4 and the copies in half precision, of weights in the shapes of the recurrent net's largest layer."""
    _, hidden = BiGRUConfig(bench.sizes.encoder).size
    shapes = [(3 * hidden, 2 * hidden), (3 * hidden, hidden), (3 * hidden,), (3 * hidden,)]
    call, there = update_of(shapes, bench.device)
    before = {name: [w.detach().cpu().double() for w in weights] for name, weights in there.items()}
    call()
    errors, budgets = dict.fromkeys(there, 0.0), dict.fromkeys(there, 0.0)
    lr = float(torch.tensor(LR))
    for i in range(len(shapes)):
        q, k, v, g = (before[name][i] for name in ("query", "key", "velocity", "gradient"))
        v = 0.9 * v + g + 1e-4 * q
        q = q - lr * v
        k = k - 0.001 * (k - q)
        truth = {"query": q, "key": k, "query's copy": q, "key's copy": k, "velocity": v, "gradient": g}
        for name, exact in truth.items():
            rounding = 2.0**-8 if name.endswith("copy") else 4 * EPS
            errors[name] = max(errors[name], off(there[name][i], exact))
            budgets[name] = max(budgets[name], rounding * float(exact.abs().max()))
    judge(bench, "update of the weights, both encoders and their copies", errors, budgets)
