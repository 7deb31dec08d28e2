"""What a compiled Triton kernel needs of a GPU: registers, spilled bytes, shared memory, instructions and its loops.

Instruction counts are static: an instruction in a loop counts once, one behind a branch counts as if it ran.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import triton
from triton.compiler import CompiledKernel

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
KIB = 1024


@dataclass(frozen=True)
class Loop:
    """An innermost loop of the machine code: from a label to the last branch back to it."""

    instructions: int
    counts: dict[str, int]
    """By kind, as of a whole kernel."""
    products: int
    """Multiplications and additions of its tensor-core instructions, all warps of a program together."""


@dataclass(frozen=True)
class Report:
    """The needs of one compiled kernel."""

    name: str
    target: str
    """Such as cuda:90."""
    registers: int
    """Per thread. On AMD: vector registers, accumulation registers included."""
    spill_store_bytes: int
    """Per thread, by ptxas. On AMD: 4 bytes for each spilled vector register."""
    spill_load_bytes: int
    local_bytes: int
    """Stack frame and local memory of a thread (AMD: scratch)."""
    shared_bytes: int
    """Shared memory of a program, static and dynamic (AMD: LDS)."""
    num_warps: int
    num_stages: int
    resident_warps: int
    """Warps that fit on a multiprocessor at a time; 0 where its limits are not known here (AMD)."""
    limited_by: str
    """What keeps more programs from fitting: registers, shared, warps or programs."""
    seconds: float
    cached: bool
    counts: dict[str, int] = field(default_factory=dict)
    """Instructions by kind (``KINDS`` and ``AMD_KINDS``)."""
    instructions: int = 0
    loops: tuple[Loop, ...] = ()
    """In the order of their addresses; none are looked for in AMD's code."""

    @property
    def hot(self) -> Loop | None:
        """The loop with most of the matrix products; of loops that have none, the longest."""
        return max(self.loops, key=lambda loop: (loop.products, loop.instructions), default=None)

    @property
    def spilled_bytes(self) -> int:
        """Stores and loads together, per thread."""
        return self.spill_store_bytes + self.spill_load_bytes


@dataclass(frozen=True)
class Multiprocessor:
    """Limits of one SM (CUDA C Programming Guide, "Technical Specifications per Compute Capability")."""

    shared_bytes: int
    warps: int
    programs: int
    registers: int = 64 * KIB


SM = {
    80: Multiprocessor(164 * KIB, warps=64, programs=32),
    86: Multiprocessor(100 * KIB, warps=48, programs=16),
    89: Multiprocessor(100 * KIB, warps=48, programs=24),
    90: Multiprocessor(228 * KIB, warps=64, programs=32),
    100: Multiprocessor(228 * KIB, warps=64, programs=32),
}
SYSTEM_SHARED = KIB  # the driver's own share of each program's shared memory, from sm_80 on
SHARED_UNIT = 128  # bytes; shared memory is handed out in these units
REGISTER_UNIT = 256  # registers; handed out to a warp in these units
PARTITIONS = 4  # of an SM; each holds a quarter of the registers

KINDS = {
    "HGMMA": r"HGMMA",
    "HMMA": r"HMMA",
    "UTCMMA": r"UTC\w*MMA",
    "FFMA": r"FFMA",
    "MUFU": r"MUFU",
    "LDG": r"LDG(?!STS|DEPBAR)",
    "LDG.128": r"LDG(?!STS|DEPBAR)\S*\.128",
    "LDGSTS": r"LDGSTS",
    "LDGSTS.128": r"LDGSTS\S*\.128",
    "UTMALDG": r"UTMALDG",
    "UTMASTG": r"UTMASTG",
    "STG": r"STG",
    "STG.128": r"STG\S*\.128",
    "LDS": r"LDS",
    "STS": r"STS",
    "LDL": r"LDL",
    "STL": r"STL",
    "BAR": r"BAR",
    "SHFL": r"SHFL",
    "ATOM": r"ATOMG|ATOM\.|RED(?!UX)",
}
AMD_KINDS = {
    "MFMA": r"v_mfma_\w+",
    "load.x4": r"(?:global|buffer)_load_dwordx4",
    "load": r"(?:global|buffer)_load_\w+",
    "store.x4": r"(?:global|buffer)_store_dwordx4",
    "store": r"(?:global|buffer)_store_\w+",
    "exp": r"v_exp_f32\w*",
    "scratch": r"scratch_(?:load|store)\w*",
    "barrier": r"s_barrier\w*",
    "ATOM": r"(?:global|buffer)_atomic\w*",
}


def resident_programs(registers: int, shared_bytes: int, num_warps: int, sm: Multiprocessor) -> tuple[int, str]:
    """How many programs fit on one SM at a time, and what stops the next: the CUDA occupancy calculation."""
    per_warp = -(-registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
    per_program = -(-shared_bytes // SHARED_UNIT) * SHARED_UNIT + SYSTEM_SHARED
    limits = {
        "registers": PARTITIONS * (sm.registers // PARTITIONS // max(per_warp, 1)) // num_warps,
        "shared": sm.shared_bytes // per_program,
        "warps": sm.warps // num_warps,
        "programs": sm.programs,
    }
    limited_by = min(limits, key=lambda name: limits[name])
    return limits[limited_by], limited_by


def resources(kernel: CompiledKernel, seconds: float, cached: bool) -> Report:
    """Read everything off the binary. Raises RuntimeError where NVIDIA's tools disagree with each other."""
    backend = kernel.metadata.target.backend
    return (_nvidia if backend == "cuda" else _amd)(kernel, seconds, cached)


def _nvidia(kernel: CompiledKernel, seconds: float, cached: bool) -> Report:
    arch = kernel.metadata.target.arch
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(kernel.asm["cubin"])
        usage = dict(re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", _tool("cuobjdump", "-res-usage", str(cubin))))
        sass = _tool("nvdisasm", "-c", str(cubin))
    code, log = _instructions(sass), _assemble_again(kernel)
    registers, shared = int(usage["REG"]), int(usage["SHARED"]) + kernel.metadata.shared
    if int(_find(r"Used (\d+) registers", log)) != registers:
        raise RuntimeError(f"{kernel.metadata.name}: assembled again it has other registers than {registers}:\n{log}")
    programs, limited_by = 0, ""
    if arch in SM:
        programs, limited_by = resident_programs(registers, shared, kernel.metadata.num_warps, SM[arch])
    return Report(
        name=kernel.metadata.name,
        target=f"cuda:{arch}",
        registers=registers,
        spill_store_bytes=int(_find(r"(\d+) bytes spill stores", log)),
        spill_load_bytes=int(_find(r"(\d+) bytes spill loads", log)),
        local_bytes=int(usage["STACK"]) + int(usage["LOCAL"]),
        shared_bytes=shared,
        num_warps=kernel.metadata.num_warps,
        num_stages=kernel.metadata.num_stages,
        resident_warps=programs * kernel.metadata.num_warps,
        limited_by=limited_by,
        seconds=seconds,
        cached=cached,
        counts=_count(KINDS, code),
        instructions=len(code),
        loops=tuple(_loop(code[a:b], kernel.metadata.num_warps) for a, b in _innermost(sass)),
    )


def _amd(kernel: CompiledKernel, seconds: float, cached: bool) -> Report:
    text = kernel.asm["amdgcn"]
    code = re.findall(r"^\s+([a-z]\w+)", text, re.M)
    number = {key: int(value) for key, value in re.findall(r"^\s*-?\s*\.(\w+):\s+(\d+)$", text, re.M)}
    return Report(
        name=kernel.metadata.name,
        target=f"hip:{kernel.metadata.target.arch}",
        registers=number["vgpr_count"],
        spill_store_bytes=4 * number["vgpr_spill_count"],
        spill_load_bytes=4 * number["vgpr_spill_count"],
        local_bytes=number["private_segment_fixed_size"],
        # Triton asks for LDS at the launch, so the binary's own figure is 0
        shared_bytes=max(number["group_segment_fixed_size"], kernel.metadata.shared),
        num_warps=kernel.metadata.num_warps,
        num_stages=kernel.metadata.num_stages,
        resident_warps=0,
        limited_by="",
        seconds=seconds,
        cached=cached,
        counts=_count(AMD_KINDS, code),
        instructions=len(code),
    )


def _assemble_again(kernel: CompiledKernel) -> str:
    """What ptxas says of the stored PTX: Triton keeps the binary but not the log with the spilled bytes."""
    from triton.backends.nvidia import compiler

    ptx = kernel.asm["ptx"]
    arch = _find(r"[.]target (sm_[0-9a-z]+)", ptx)
    fused = [] if kernel.metadata.enable_fp_fusion else ["--fmad=false"]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx, encoding="utf-8")
        ptxas = compiler.get_ptxas(kernel.metadata.target.arch).path
        # the options of triton.backends.nvidia.compiler.make_cubin
        flags = ["-lineinfo", "-v", "--regAllocOptLevel=2", *fused, f"--gpu-name={arch}"]
        done = subprocess.run(
            [ptxas, *flags, str(source), "-o", str(Path(folder, "out"))], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise RuntimeError(f"ptxas: {done.stderr}")
    return done.stderr


SASS = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.x]*)([^;]*)")
LABEL = re.compile(r"^(\.L_\w+):")


def _instructions(sass: str) -> list[str]:
    """Opcodes with their modifiers, such as LDG.E.128, in the order of their addresses; without what fills the end."""
    return [opcode for opcode, _ in _lines(sass)[0]]


def _lines(sass: str) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """Opcode and operands of every instruction, and how many instructions lie before a label."""
    code: list[tuple[str, str]] = []
    labels: dict[str, int] = {}
    for line in sass.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(code)
        elif (found := SASS.match(line)) and found[1] != "NOP":
            code.append((found[1], found[2]))
    return code, labels


def _innermost(sass: str) -> list[tuple[int, int]]:
    """First and behind-the-last instruction of the loops that hold no other loop. A branch to itself, which ends the
    code of every kernel, is none."""
    code, labels = _lines(sass)
    last: dict[int, int] = {}
    for at, (opcode, operands) in enumerate(code):
        target = re.search(r"\.L_\w+", operands) if opcode.startswith("BRA") else None
        if target and (first := labels.get(target[0], at)) < at:
            last[first] = at + 1
    loops = sorted(last.items())
    return [(a, b) for a, b in loops if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in loops)]


def _loop(code: Sequence[str], num_warps: int) -> Loop:
    return Loop(len(code), _count(KINDS, code), sum(_products(opcode, num_warps) for opcode in code))


def _products(opcode: str, num_warps: int) -> int:
    """Multiplications and additions that an instruction asks the tensor cores for, run by all warps of a program: four
    warps share an HGMMA of 64 rows, an HMMA is one warp's."""
    if found := re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)", opcode):
        return 2 * int(found[1]) * int(found[2]) * int(found[3]) * num_warps // 4
    if found := re.match(r"HMMA\.16(8)(8|16)", opcode):
        return 2 * 16 * int(found[1]) * int(found[2]) * num_warps
    return 0


def _count(kinds: dict[str, str], code: Iterable[str]) -> dict[str, int]:
    opcodes = Counter(code)
    return {
        kind: sum(n for opcode, n in opcodes.items() if re.match(pattern, opcode)) for kind, pattern in kinds.items()
    }


def _tool(name: str, *args: str) -> str:
    return subprocess.run([str(TOOLS / name), *args], capture_output=True, text=True, check=True).stdout


def _find(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"{pattern!r} is not in:\n{text}")
    return found.group(1)
