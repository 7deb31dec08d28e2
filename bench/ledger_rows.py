"""What the ledger says of any step: a row for each launch, with counts, machine code and the least time on an H100."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from bench.aot import compile_launches, report
from bench.counting import Launching, count_launches
from train.markdown import markdown

MB = 1e6
SUMS = ("load_bytes", "store_bytes", "first_touch_bytes", "flops", "exponentials", "seconds_at_least")


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


def least_seconds(bytes_moved: float, flops: float, exponentials: float, precision: str) -> float:
    """Seconds on an H100 if memory, tensor cores and exponentials each ran at their ceiling, side by side."""
    return max(bytes_moved / H100.memory, flops / H100.products[precision], exponentials / H100.exponentials)


def launch_rows(step: Launching, target: str, precision: str = "ieee") -> list[dict[str, Any]]:
    """Counts and machine code of every launch. precision: of the products, if there are any."""
    counts = count_rows(step, precision)
    with compile_launches(target, fresh=True) as launches:
        step.launch("meta")
    rows = []
    for count, launch in zip(counts, launches, strict=True):
        code = report(launch)
        if count["kernel"] != code.name:
            raise RuntimeError(f"counted {count['kernel']} where {code.name} was compiled")
        rows.append(
            count
            | {
                "registers": code.registers,
                "spilled_bytes": code.spilled_bytes,
                "shared_bytes": code.shared_bytes,
                "resident_warps": code.resident_warps,
                "compile_seconds": round(code.seconds, 2),
                "instructions": code.counts,
            }
        )
    return rows


def count_rows(step: Launching, precision: str = "ieee") -> list[dict[str, Any]]:
    """Counts of every launch, and the least time that they leave it."""
    rows = []
    for count in count_launches(step):
        first_touch = count["memory_load_bytes"] + count["memory_store_bytes"]
        flops = sum(count["dot_flops"].values())
        rows.append(
            {
                "kernel": count["kernel"],
                "programs": count["programs"],
                "load_bytes": count["load_bytes"],
                "store_bytes": count["store_bytes"],
                "first_touch_bytes": first_touch,
                "flops": flops,
                "exponentials": count["exponentials"],
                "seconds_at_least": least_seconds(first_touch, flops, count["exponentials"], precision),
            }
        )
    return rows


def total(rows: Collection[dict[str, Any]], names: Sequence[str] = SUMS) -> dict[str, Any]:
    """How many rows there are, and their sums."""
    return {"launches": len(rows)} | {name: sum(row[name] for row in rows) for name in names}


# --- Cells of the tables


def table(rows: Sequence[dict[str, str]]) -> str:
    return markdown(list(rows[0]), [list(row.values()) for row in rows])


def traffic_cells(row: dict[str, Any]) -> dict[str, str]:
    """Of a launch, or of a total."""
    return {
        "kernel": row.get("kernel") or f"all {row['launches']} launches",
        "programs": str(row.get("programs", "")),
        "MB loaded": f"{row['load_bytes'] / MB:.2f}",
        "MB stored": f"{row['store_bytes'] / MB:.2f}",
        "MB first touched": f"{row['first_touch_bytes'] / MB:.2f}",
    }


def time_cells(row: dict[str, Any]) -> dict[str, str]:
    return {"us at least": f"{row['seconds_at_least'] * 1e6:.1f}"}


def resource_cells(row: dict[str, Any]) -> dict[str, str]:
    return {
        "kernel": row["kernel"],
        "registers": str(row["registers"]),
        "bytes spilled": str(row["spilled_bytes"]),
        "shared KB": f"{row['shared_bytes'] / 1e3:.1f}",
        "warps per SM": str(row["resident_warps"]),
    }


def instruction_cells(row: dict[str, Any]) -> dict[str, str]:
    code = row["instructions"]
    return {
        "128-bit loads": f"{code.get('LDG.128', 0)} of {code.get('LDG', 0)} LDG, "
        f"{code.get('LDGSTS.128', 0)} of {code.get('LDGSTS', 0)} LDGSTS",
        "128-bit stores": f"{code.get('STG.128', 0)} of {code.get('STG', 0)}",
        "compiled in s": f"{row['compile_seconds']:.1f}",
    }


def plain_cells(name: str, counts: dict[str, Any]) -> dict[str, str]:
    """Of operators of PyTorch, as `bench.counting.count_operators` counts them."""
    moved = counts["load_bytes"] + counts["store_bytes"]
    return {
        "plain PyTorch": name,
        "operators": str(counts["launches"]),
        "MB loaded": f"{counts['load_bytes'] / MB:,.0f}",
        "MB stored": f"{counts['store_bytes'] / MB:,.0f}",
        "GFLOP": f"{counts['flops'] / 1e9:.2f}",
        "us at least, its bytes / bandwidth": f"{moved / H100.memory * 1e6:,.0f}",
    }
