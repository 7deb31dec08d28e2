"""The ledger's piece "mc": a step of the MC loss, with the bank's ascent."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import torch

from bench.aot import Launch
from bench.counting import count_operators, step_arguments
from bench.ledger_rows import (
    H100,
    MB,
    SUMS,
    instruction_cells,
    issue_cells,
    launch_rows,
    least_seconds,
    loop_cells,
    plain_cells,
    resource_cells,
    table,
    total,
    traffic_cells,
)
from bench.providers import PROVIDERS, Case, draw

TENSOR_CORE = ("HGMMA", "HMMA", "UTCMMA", "MFMA")
PLAIN = ("reference", "algebraic")
MODELLED = ("data_seconds", "issue_seconds", "seconds_in_turn")


@dataclass(frozen=True)
class McStep:
    """The launches of contrast_step_.

    Attributes:
        precision: products of the kernels.
    """

    case: Case
    precision: str

    def launch(self, device: str) -> None:
        from kernels.mc import contrast_step_  # here, since importing it decides how Triton runs

        contrast_step_(**step_arguments(draw(self.case).to(device, torch.float32), self.case, self.precision))

    def measure(self, target: str, plain: bool) -> dict[str, Any]:
        """Counts and machine code of every launch, their sums, the plain forms, and the model."""
        rows, needed = launch_rows(self, target, self.precision, trips), compulsory(self.case)
        products = needed["flops"] * (3 if self.precision == "bf16x3" else 1)
        seconds = least_seconds(needed["bytes"], products, needed["exponentials"], self.precision)
        return {
            "case": str(self.case),
            "precision": self.precision,
            "target": target,
            "kernels": rows,
            "total": total(rows, (*SUMS, *MODELLED)),
            "compulsory": needed | {"seconds_at_least": seconds},
            "plain": {name: count_plain(name, self.case) for name in PLAIN if plain},
            "ceiling": H100.name,
        }


def trips(launch: Launch) -> int:
    """How often a program runs the hot loop: tiles of the bank, blocks of chunks, queries times blocks of samples."""
    a = launch.arguments
    if launch.name == "_sweep_kernel":
        return ceil(a["num_steps"] / launch.grid[1])
    if launch.name == "_combine_kernel":
        return ceil(a["num_chunks"] / a["BLOCK_N"])
    if launch.name == "_bank_kernel":
        return len(a["p_split"]) * ceil(a["B"] / a["BLOCK_B"])
    return ceil(a["D"] / a["BLOCK_D"])


def count_plain(provider: str, case: Case) -> dict[str, int]:
    """Operators of a provider in PyTorch, one kernel each, on tensors without memory."""
    return count_operators(PROVIDERS[provider].bind(case, draw(case).to("meta", torch.float32)))


def compulsory(case: Case) -> dict[str, float]:
    """What no implementation of a step can do without: bank and momentum read and written once, the features and the
    coefficients read, the gradients written; the products S = F M^T, G M and G^T F for three views; an exponential for
    every logit at either temperature. The target's plain logits are those of L3."""
    b, k, d = case.batch, case.bank, case.dim
    numbers = 4 * k * d + 4 * b * d + k + 3 * b * d
    return {"bytes": 4 * numbers, "flops": 3 * 3 * 2 * b * k * d, "exponentials": 2 * 7 * b * k}


def render(found: dict[str, Any]) -> str:
    """As markdown."""
    sums, needed = found["total"], found["compulsory"]
    requested = (sums["load_bytes"] + sums["store_bytes"]) / MB
    lines = [
        f"{found['case']}; products {found['precision']}; compiled for {found['target']}.",
        "",
        table([_row(row) for row in (*found["kernels"], sums)]),
        "",
        f"Requested: {requested:.1f} MB in all, of which {sums['first_touch_bytes'] / MB:.1f} MB are first touches, "
        f"which must come from memory or go there. Compulsory for any implementation: {needed['bytes'] / MB:.1f} MB, "
        f"{needed['flops'] / 1e9:.2f} GFLOP (three times that as split products), {needed['exponentials'] / 1e6:.1f} M "
        "exponentials.",
        "",
        table([_code_row(row) for row in found["kernels"]]),
        "",
        table([loop_cells(row) for row in found["kernels"]]),
        "",
        f"A MODEL, not a measurement, of an {found['ceiling']}: at least {needed['seconds_at_least'] * 1e6:.1f} us for "
        f"what is compulsory. These kernels one after the other: {sums['data_seconds'] * 1e6:.1f} us by data alone, "
        f"first-touched bytes / {H100.memory / 1e12:.2f} TB/s, FLOP / "
        f"{H100.products[found['precision']] / 1e12:.0f} TFLOP/s or exponentials / {H100.exponentials / 1e12:.2f} T/s, "
        f"whichever is longest; at least {sums['seconds_at_least'] * 1e6:.1f} us with the time to issue instructions, "
        "(outside + loop x trips) x warps of a scheduler / clock, one a clock, if that is longer still; "
        f"{sums['seconds_in_turn'] * 1e6:.1f} us in turn, where a kernel's bytes hide behind nothing and its products "
        "hide behind the instructions of another program, if its multiprocessor has one. Launches and latencies are in "
        "none of them.",
    ]
    if found["plain"]:
        plain = found["plain"].items()
        lines += ["", table([plain_cells(f"{name}: {PROVIDERS[name].says}", counts) for name, counts in plain])]
    return "\n".join(lines)


def _row(row: dict[str, Any]) -> dict[str, str]:
    work = {"GFLOP": f"{row['flops'] / 1e9:.2f}", "M exponentials": f"{row['exponentials'] / 1e6:.1f}"}
    return traffic_cells(row) | work | issue_cells(row)


def _code_row(row: dict[str, Any]) -> dict[str, str]:
    code = row["instructions"]
    products = ", ".join(f"{code[name]} {name}" for name in TENSOR_CORE if code.get(name)) or "0"
    return resource_cells(row) | {"tensor-core instructions": products} | instruction_cells(row)
