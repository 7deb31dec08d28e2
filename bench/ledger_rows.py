"""What the ledger says of any step: a row for each launch, with counts, machine code and the least time on an H100."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

from bench.aot import Launch, compile_launches, report
from bench.counting import Launching, count_launches
from bench.resources import Report
from train.tables.markdown import markdown

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
    multiprocessors: int
    clock: float
    """Hertz."""

    @property
    def exponentials(self) -> float:
        """A second: 16 a clock and multiprocessor."""
        return 16 * self.multiprocessors * self.clock

    def issue_seconds(self, instructions: float, num_warps: int, programs: int) -> float:
        """To issue ``instructions`` in each warp, on the multiprocessor with most of the programs: each of its four
        schedulers has a fourth of the warps, and issues one instruction a clock."""
        warps = ceil(num_warps * ceil(programs / self.multiprocessors) / 4)
        return instructions * warps / self.clock


H100 = Ceiling(
    name="H100 SXM (132 SMs at 1.755 GHz)",
    memory=3.35e12,
    products={"bf16x3": 989e12, "bf16": 989e12, "ieee": 67e12},
    multiprocessors=132,
    clock=1.755e9,
)


def least_seconds(bytes_moved: float, flops: float, exponentials: float, precision: str) -> float:
    """Seconds on an H100 if memory, tensor cores and exponentials each ran at their ceiling, side by side."""
    return max(bytes_moved / H100.memory, flops / H100.products[precision], exponentials / H100.exponentials)


def launch_rows(
    step: Launching, target: str, precision: str = "ieee", trips: Callable[[Launch], int] | None = None
) -> list[dict[str, Any]]:
    """Counts and machine code of every launch.

    Args:
        precision: of the products, if there are any.
        trips: how often a program runs the hot loop of a launch. With it, `issued` is in the rows too.
    """
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
        if trips is not None:
            rows[-1] |= issued(rows[-1], code, trips(launch), precision)
    return rows


def issued(row: dict[str, Any], code: Report, trips: int, precision: str) -> dict[str, Any]:
    """What the machine code of a launch says of its time.

    outside, trips: instructions of a warp that are not in the hot loop, and how often that is run.
    redundant_products: tensor-core operations that the hot loop asks for beyond those of the kernel's products, as a
        share of them; None where there are none, or where the operations are not in the code (cuda:100, AMD).
    data_seconds: at least, by bytes, products and exponentials alone.
    issue_seconds: to issue the instructions.
    seconds_at_least: the longer of the two.
    seconds_in_turn: bytes, then instructions and products (redundant ones too), which come in turn where a program is
        alone on its multiprocessor, since its warps wait for each product; side by side where there are two.
    """
    hot = code.hot
    looped = hot.instructions if hot else 0
    outside = code.instructions - looped
    issue = H100.issue_seconds(outside + looped * trips, code.num_warps, row["programs"])
    products = hot.products * trips * row["programs"] if hot else 0
    redundant = products / row["flops"] - 1 if products else None
    computing = [issue, max(products, row["flops"]) / H100.products[precision]]
    alone = min(code.resident_warps // code.num_warps, ceil(row["programs"] / H100.multiprocessors)) < 2
    return {
        "hot": asdict(hot) if hot else None,
        "outside": outside,
        "trips": trips,
        "redundant_products": redundant,
        "data_seconds": row["seconds_at_least"],
        "issue_seconds": issue,
        "seconds_at_least": max(row["seconds_at_least"], issue),
        "seconds_in_turn": row["first_touch_bytes"] / H100.memory + (sum(computing) if alone else max(computing)),
    }


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


def issue_cells(row: dict[str, Any]) -> dict[str, str]:
    """Of a launch with `issued`, or of a total of such."""
    return {
        "us by data": f"{row['data_seconds'] * 1e6:.1f}",
        "us by issue": f"{row['issue_seconds'] * 1e6:.1f}",
        "us at least": f"{row['seconds_at_least'] * 1e6:.1f}",
        "us in turn": f"{row['seconds_in_turn'] * 1e6:.1f}",
    }


def loop_cells(row: dict[str, Any]) -> dict[str, str]:
    """The hot loop of a launch with `issued`."""
    loop = row["hot"] or {"instructions": 0, "counts": {}}
    counts, redundant = loop["counts"], row["redundant_products"]
    return {
        "kernel": row["kernel"],
        "instructions of the loop": str(loop["instructions"]),
        "trips": str(row["trips"] if row["hot"] else 0),
        "outside": str(row["outside"]),
        "in the loop: tensor-core": str(sum(counts.get(name, 0) for name in ("HGMMA", "HMMA", "UTCMMA"))),
        "redundant": "" if redundant is None else f"{100 * redundant:.0f} %",
        "barriers": str(counts.get("BAR", 0)),
        "local loads, stores": f"{counts.get('LDL', 0)}, {counts.get('STL', 0)}",
        "shared loads, stores": f"{counts.get('LDS', 0)}, {counts.get('STS', 0)}",
        "shuffles": str(counts.get("SHFL", 0)),
        "MUFU": str(counts.get("MUFU", 0)),
    }


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
