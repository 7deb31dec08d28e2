"""report.md: what was found, for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastmc.files import whole_file
from train.tables.markdown import markdown

REHEARSED = (
    "**A REHEARSAL: run on a CPU at tiny sizes, with interpreted kernels. None of the numbers below means anything.**"
)
HEADLINES = {
    "step_seconds": ("a training step (bf16, one CUDA graph)", 1e3, "ms"),
    "step_vs_encoder": ("the step over its recurrent calls alone, same precision", 1, "x"),
    "step_vs_reference": ("the plain reference's step over ours", 1, "x"),
    "training_steps_per_second": ("steps of the training run, by its log", 1, "a second"),
    "hours_for_750_epochs": ("750 epochs at that rate", 1, "hours"),
    "hours_of_wall_clock": ("750 epochs by wall clock, with a checkpoint an epoch", 1, "hours"),
    "training_memory": ("GPU memory of the training run", 1e-9, "GB"),
    "mc_seconds": ("loss and bank step, own mixing, cold, as a graph", 1e6, "us"),
    "mc_vs_reference": ("the plain reference's loss and bank step over that", 1, "x"),
    "mc_of_ceiling": ("of its ceiling, by what it must do", 1e2, "%"),
    "views_vs_numpy": ("four views by a numpy worker over ours", 1, "x"),
    "copy_bytes_per_second": ("copy on the device", 1e-12, "TB/s"),
    "bf16_flop_per_second": ("bf16 product", 1e-12, "TFLOP/s"),
}
"""By the key of a number: what it is, the factor to the unit that is shown, that unit."""


def write(path: Path, state: Mapping[str, Any]) -> None:
    """Write the page whole."""
    with whole_file(path) as unfinished:
        unfinished.write_text("\n".join(lines(state)) + "\n", encoding="utf-8")


def lines(state: Mapping[str, Any]) -> Iterator[str]:
    identity, sections = state["identity"], state["sections"]
    if identity["rehearsal"]:
        yield from (REHEARSED, "")
    yield from ("# Measured on a GPU" if not identity["rehearsal"] else "# Rehearsed without a GPU", "")
    yield from _conditions(state)
    yield from _headlines(sections)
    yield from _states(sections)
    for letter, section in sections.items():
        yield from ("", f"## ({letter}) {section['title']}")
        yield from _section(section)


def _conditions(state: Mapping[str, Any]) -> Iterator[str]:
    identity, c = state["identity"], state["conditions"]
    device: dict[str, Any] = next(
        (s["found"]["device"] for s in state["sections"].values() if s.get("found", {}).get("device")), {}
    )
    changed = " with changes" if identity["dirty"] else ""
    rows = {
        "card": identity["card"] or "none",
        "commit": f"{identity['commit']}{changed}",
        "torch, triton": f"{identity['torch']}, {identity['triton']}",
        **{name: value for name, value in device.items() if name != "card"},
        **{f"nvidia-smi: {name}": value for name, value in c.get("nvidia-smi", {}).items() if name != "name"},
        "Python": c.get("python"),
        "host": f"{c.get('cores')} cores of {c.get('cpu')}, {c.get('memory_gb')} GB, {c.get('system')}",
        "began": c.get("began"),
    }
    yield markdown(("", ""), [(name, str(value)) for name, value in rows.items()])


def _headlines(sections: Mapping[str, Any]) -> Iterator[str]:
    if found := headlines(sections):
        yield from ("", "## Headlines", "", markdown(("", ""), found))


def headlines(sections: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What each is, and its value with its unit."""
    numbers: dict[str, float] = {}
    for section in sections.values():
        numbers |= section.get("found", {}).get("numbers", {})
    return [
        (what, f"{shown(numbers[key] * factor)} {unit}")
        for key, (what, factor, unit) in HEADLINES.items()
        if key in numbers
    ]


def _states(sections: Mapping[str, Any]) -> Iterator[str]:
    rows = [
        (letter, s["title"], s["status"], shown(s["seconds"]) if "seconds" in s else "", shown(s["budget"]))
        for letter, s in sections.items()
    ]
    yield from ("", "## Sections", "", markdown(("", "section", "came to", "seconds", "allowed"), rows))


def _section(section: Mapping[str, Any]) -> Iterator[str]:
    if section["status"] != "done":
        yield from ("", f"**{section['status']}**")
    if section.get("error"):
        yield from ("", "```", section["error"].strip(), "```")
    found = section.get("found", {})
    for title, rows in found.get("tables", {}).items():
        yield from ("", f"### {title}", "", table(rows))
    for note in found.get("notes", ()):
        yield from ("", f"- {note}")
    for title, text in found.get("code", {}).items():
        yield from ("", f"{title}:", "", "```", text.strip(), "```")
    if found.get("error"):
        yield from ("", "It ended with:", "", "```", found["error"].strip(), "```")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Columns in the order in which they first appear."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return markdown(
        [name.replace("_", " ") for name in names],
        [[shown(row.get(name)).replace("|", "\\|") for name in names] for row in rows],
    )


def shown(value: Any) -> str:
    """Four digits of a number."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
