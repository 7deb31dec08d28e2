"""What a step of the MC loss costs a GPU, counted and compiled without one: python -m bench.ledger --help."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import tyro

from bench.aot import TARGETS, compile_launches, report
from bench.counting import StepSize, count_kernels, count_operators, launch_step
from bench.providers import PROVIDERS, Case, draw
from bench.tables import markdown
from fastmc.arguments import PRECISIONS

MB = 1e6


@dataclass(frozen=True)
class Ceiling:
    """What a chip does at most, from its data sheet, without sparsity."""

    name: str
    memory: float
    """Bytes a second."""
    products: dict[str, float]
    """Operations a second, two to a multiplication and addition, by precision."""
    exponentials: float
    """A second: 16 a clock and multiprocessor."""


H100 = Ceiling(
    name="H100 SXM (132 SMs at 1.755 GHz)",
    memory=3.35e12,
    products={"bf16x3": 989e12, "bf16": 989e12, "ieee": 67e12},
    exponentials=16 * 132 * 1.755e9,
)


@dataclass(frozen=True)
class Ledger(StepSize):
    """Count and compile the kernels of a step of the MC loss, and set a lower bound to its time on an H100.

    Bytes, operations and exponentials are counted while Triton's interpreter runs the step; registers, spills, shared
    memory and instructions are read off the machine code of an ahead-of-time compile. Needs no GPU; takes about a
    minute. Example: python -m bench.ledger --mix tiled --target cuda:80
    """

    precision: str = "bf16x3"
    """Products of the kernels: bf16x3, ieee or bf16."""
    target: str = "cuda:90"
    """What is compiled for. Counts are those of the launches for cuda:90."""
    plain: bool = True
    """Count the plain reference and the algebraic form in PyTorch beside it."""
    json: bool = False
    """Print JSON instead of the tables of docs/kernels.md."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}; got {self.precision!r}")
        if self.target not in TARGETS:
            raise ValueError(f"target must be one of {', '.join(TARGETS)}; got {self.target!r}")


def main(args: Sequence[str] | None = None) -> int:
    settings = tyro.cli(Ledger, prog="python -m bench.ledger", args=args)
    try:
        found = measure(settings)
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found, indent=1) if settings.json else render(found))
    return 0


def measure(settings: Ledger) -> dict[str, Any]:
    """Counts and machine code of every launch, their sums, the plain forms, and the model."""
    print("counting on the interpreter, compiling ahead of time ...", file=sys.stderr)
    counts = count_kernels(settings.case, settings.precision)
    with compile_launches(settings.target, fresh=True) as launches:
        launch_step(settings.case, settings.precision, "meta")
    kernels = []
    for count, launch in zip(counts, launches, strict=True):
        code = report(launch)
        if count["kernel"] != code.name:
            raise RuntimeError(f"counted {count['kernel']} where {code.name} was compiled")
        kernels.append(
            {
                "kernel": code.name,
                "programs": count["programs"],
                "load_bytes": count["load_bytes"],
                "store_bytes": count["store_bytes"],
                "first_touch_bytes": count["memory_load_bytes"] + count["memory_store_bytes"],
                "flops": sum(count["dot_flops"].values()),
                "exponentials": count["exponentials"],
                "registers": code.registers,
                "spilled_bytes": code.spilled_bytes,
                "shared_bytes": code.shared_bytes,
                "resident_warps": code.resident_warps,
                "compile_seconds": round(code.seconds, 2),
                "instructions": code.counts,
                "seconds_at_least": _bound(
                    count["memory_load_bytes"] + count["memory_store_bytes"],
                    sum(count["dot_flops"].values()),
                    count["exponentials"],
                    settings.precision,
                ),
            }
        )
    sums = ("load_bytes", "store_bytes", "first_touch_bytes", "flops", "exponentials", "seconds_at_least")
    needed = compulsory(settings.case)
    products = needed["flops"] * (3 if settings.precision == "bf16x3" else 1)
    return {
        "case": str(settings.case),
        "precision": settings.precision,
        "target": settings.target,
        "kernels": kernels,
        "total": {"launches": len(kernels)} | {name: sum(k[name] for k in kernels) for name in sums},
        "compulsory": needed
        | {"seconds_at_least": _bound(needed["bytes"], products, needed["exponentials"], settings.precision)},
        "plain": {name: count_plain(name, settings.case) for name in ("reference", "algebraic") if settings.plain},
        "ceiling": H100.name,
    }


def count_plain(provider: str, case: Case) -> dict[str, Any]:
    """Operators of a provider in PyTorch, one kernel each, on tensors without memory."""
    counts: dict[str, Any] = dict(count_operators(PROVIDERS[provider].bind(case, draw(case).to("meta", torch.float32))))
    counts["seconds_at_least"] = (counts["load_bytes"] + counts["store_bytes"]) / H100.memory
    return counts


def compulsory(case: Case) -> dict[str, float]:
    """What no implementation of a step can do without: bank and momentum read and written once, the features and the
    coefficients read, the gradients written; the products S = F M^T, G M and G^T F for three views; an exponential for
    every logit at either temperature. The target's plain logits are those of L3."""
    b, k, d = case.batch, case.bank, case.dim
    numbers = 4 * k * d + 4 * b * d + k + 3 * b * d
    return {"bytes": 4 * numbers, "flops": 3 * 3 * 2 * b * k * d, "exponentials": 2 * 7 * b * k}


def _bound(bytes_moved: float, flops: float, exponentials: float, precision: str) -> float:
    """Seconds on an H100 if memory, tensor cores and exponentials each ran at their ceiling, side by side."""
    return max(bytes_moved / H100.memory, flops / H100.products[precision], exponentials / H100.exponentials)


TENSOR_CORE = ("HGMMA", "HMMA", "UTCMMA", "MFMA")


def render(found: dict[str, Any]) -> str:
    """The ledger as markdown."""
    total, needed = found["total"], found["compulsory"]
    requested = (total["load_bytes"] + total["store_bytes"]) / MB
    lines = [
        f"{found['case']}; products {found['precision']}; compiled for {found['target']}.",
        "",
        _table([_row(k) for k in found["kernels"]] + [_row(total | {"kernel": f"all {total['launches']} launches"})]),
        "",
        f"Requested: {requested:.1f} MB in all, of which {total['first_touch_bytes'] / MB:.1f} MB are first touches, "
        f"which must come from memory or go there. Compulsory for any implementation: {needed['bytes'] / MB:.1f} MB, "
        f"{needed['flops'] / 1e9:.2f} GFLOP (three times that as split products), {needed['exponentials'] / 1e6:.1f} M "
        "exponentials.",
        "",
        _table([_code_row(k) for k in found["kernels"]]),
        "",
        f"A MODEL, not a measurement, of an {found['ceiling']}: at least {needed['seconds_at_least'] * 1e6:.1f} us for "
        f"what is compulsory, {total['seconds_at_least'] * 1e6:.1f} us for these kernels one after the other; each is "
        f"bounded by first-touched bytes / {H100.memory / 1e12:.2f} TB/s, FLOP / "
        f"{H100.products[found['precision']] / 1e12:.0f} TFLOP/s or exponentials / {H100.exponentials / 1e12:.2f} T/s, "
        "whichever is longest. Launches, latencies and the rest of the arithmetic are not in it.",
    ]
    if found["plain"]:
        lines += ["", _table([_plain_row(name, counts) for name, counts in found["plain"].items()])]
    return "\n".join(lines)


def _row(k: dict[str, Any]) -> dict[str, str]:
    return {
        "kernel": k["kernel"],
        "programs": str(k.get("programs", "")),
        "MB loaded": f"{k['load_bytes'] / MB:.2f}",
        "MB stored": f"{k['store_bytes'] / MB:.2f}",
        "MB first touched": f"{k['first_touch_bytes'] / MB:.2f}",
        "GFLOP": f"{k['flops'] / 1e9:.2f}",
        "M exponentials": f"{k['exponentials'] / 1e6:.1f}",
        "us at least": f"{k['seconds_at_least'] * 1e6:.1f}",
    }


def _code_row(k: dict[str, Any]) -> dict[str, str]:
    code = k["instructions"]
    return {
        "kernel": k["kernel"],
        "registers": str(k["registers"]),
        "bytes spilled": str(k["spilled_bytes"]),
        "shared KB": f"{k['shared_bytes'] / 1e3:.1f}",
        "warps per SM": str(k["resident_warps"]),
        "tensor-core instructions": ", ".join(f"{code[n]} {n}" for n in TENSOR_CORE if code.get(n)) or "0",
        "128-bit loads": f"{code.get('LDG.128', 0)} of {code.get('LDG', 0)} LDG, "
        f"{code.get('LDGSTS.128', 0)} of {code.get('LDGSTS', 0)} LDGSTS",
        "128-bit stores": f"{code.get('STG.128', 0)} of {code.get('STG', 0)}",
        "compiled in s": f"{k['compile_seconds']:.1f}",
    }


def _plain_row(name: str, counts: dict[str, Any]) -> dict[str, str]:
    return {
        "plain PyTorch": f"{name}: {PROVIDERS[name].says}",
        "operators": str(counts["launches"]),
        "MB loaded": f"{counts['load_bytes'] / MB:,.0f}",
        "MB stored": f"{counts['store_bytes'] / MB:,.0f}",
        "GFLOP": f"{counts['flops'] / 1e9:.2f}",
        "us at least, its bytes / bandwidth": f"{counts['seconds_at_least'] * 1e6:,.0f}",
    }


def _table(rows: Sequence[dict[str, str]]) -> str:
    return markdown(list(rows[0]), [list(row.values()) for row in rows])


if __name__ == "__main__":
    sys.exit(main())
