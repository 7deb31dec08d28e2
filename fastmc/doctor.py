"""What this machine can run, and why not the rest: python -m fastmc.doctor. It takes no settings."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

import kernels
from fastmc import bank_step_, foreign_package, mc_loss, mc_step_, package_folder
from fastmc.backends import CONTRAST, RECURRENT, VIEWS, Need
from fastmc.encoders.amp import cudnn_text, no_bf16_reason
from fastmc.encoders.recurrent import SequenceGRU
from fastmc.files import ON_WINDOWS, why_no_locks
from fastmc.skeleton import NTU25
from fastmc.views.clips import PackedClips
from fastmc.views.draw import AugmentConfig, draw_params
from fastmc.views.make import make_views

PACKAGES = ("fastmc", "torch", "triton", "numba", "numpy", "tyro", "tqdm", "matplotlib", "tensorboard")
BOUNDS = {"ieee": 1e-4, "bf16x3": 1e-3}
"""Largest error of a self-test, by precision of the products."""
VIEW_BOUND = 1e-5
"""The same for views."""
RECURRENT_BOUND = 1e-5
"""The same for gradients of recurrent nets."""
ANYWAY = {"triton": "; without a GPU kernels run in an interpreter: docs/kernels.md, Checked how"}
"""What is said of an implementation that cannot run here."""


def main(args: Sequence[str] | None = None) -> int:
    """Print the findings; 0 if the self-tests pass and the packages are ours."""
    argparse.ArgumentParser(prog="python -m fastmc.doctor", description=__doc__).parse_args(args)
    print("versions")
    _line("python", f"{platform.python_version()} ({sys.executable})")
    for package, number in package_versions().items():
        _line(package, number or "not installed")
    print("devices")
    _line("cpu", f"{platform.machine()}, torch uses {torch.get_num_threads()} threads")
    _line("gpu", _gpu())
    for name, text, good in gpu_lines():
        _line(name, text, good)
    print("system")
    for name, text in system_lines():
        _line(name, text)
    print("packages")
    healthy = True
    for name in ("fastmc", "kernels", "train"):
        healthy &= _own_package(name)
    print("implementations of loss and bank step")
    devices = [torch.device("cpu")] + ([torch.device("cuda")] if torch.cuda.is_available() else [])
    for impl in ("reference", "torch", "cpp", "triton"):
        for device in devices:
            healthy &= _implementation(impl, device)
    print("implementations of views")
    for impl in ("torch", "numba", "triton"):
        for device in devices:
            healthy &= _view_implementation(impl, device)
    print("recurrent nets on a CPU")
    healthy &= _recurrent_implementation()
    print("ok" if healthy else "NOT ok: see the lines marked !!")
    return 0 if healthy else 1


def package_versions() -> dict[str, str | None]:
    """Versions of fastmc and what it stands on; None for what is not installed."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions


def self_test(impl: str, device: torch.device, precision: str = "ieee") -> float:
    """Largest error against the float64 reference on a small random case, relative to the largest element of each.

    Covers the loss and its gradients, a bank step, and every result of ``mc_step_`` for both of its updates.
    """
    truth = _results("reference", torch.device("cpu"), torch.float64, precision)
    ours = _results(impl, device, torch.float32, precision)
    errors = [(a.cpu().double() - b).abs().max() / b.abs().max() for a, b in zip(ours, truth, strict=True)]
    return float(torch.stack(errors).max())  # torch's maximum keeps a NaN, Python's may not


def _results(impl: str, device: torch.device, dtype: torch.dtype, precision: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4 * 6 + 50, 16, generator=generator, dtype=torch.float64)
    rows = torch.nn.functional.normalize(rows, dim=1).to(device, dtype)
    f0, f1, f2, f3, bank = (t.clone() for t in rows.split([6, 6, 6, 6, 50]))
    queries = [f.requires_grad_() for f in (f1, f2, f3)]
    loss = mc_loss(f0, f1, f2, f3, bank, 0.3, impl=impl, precision=precision)
    loss.backward()
    results = [loss.detach(), *(q.grad for q in queries if q.grad is not None)]

    stepped, momentum = bank.clone(), torch.zeros_like(bank)
    bank_step_(stepped, momentum, f0, f1, f2, f3, 0.3, impl=impl, precision=precision)
    found = mc_step_(bank, torch.zeros_like(bank), f0, f1, f2, f3, 0.3, impl=impl, precision=precision)
    cursor, velocity = torch.tensor(47, device=device), torch.ones_like(bank)
    setting: dict[str, Any] = {"objective": "info_nce", "update": "fifo", "cursor": cursor, "precision": precision}
    queued = mc_step_(bank, velocity, f0, None, None, f3, None, impl=impl, **setting)
    seen = [t for t in (*found, *queued) if t is not None and t.any()]  # InfoNCE of f3 has no L_1 and L_2
    return [*results, stepped, momentum, bank, velocity, cursor, *seen]


def _implementation(impl: str, device: torch.device) -> bool:
    reason = CONTRAST.why_not(impl, Need(device))
    if reason is not None:
        _line(f"{impl} on {device.type}", f"cannot run: {reason}{ANYWAY.get(impl, '')}")
        return True
    good = True
    for precision, bound in BOUNDS.items() if impl == "triton" else [("ieee", 1e-4)]:
        error = self_test(impl, device, precision)
        good &= error < bound
        products = f" with {precision} products" if impl == "triton" else ""
        text = f"runs{products}, error {error:.1e} against the float64 reference"
        _line(f"{impl} on {device.type}", text, error < bound)
    return good


def _view_implementation(impl: str, device: torch.device) -> bool:
    reason = VIEWS.why_not(impl, Need(device))
    if reason is not None:
        _line(f"{impl} on {device.type}", f"cannot run: {reason}{ANYWAY.get(impl, '')}")
        return True
    error = view_self_test(impl, device)
    _line(f"{impl} on {device.type}", f"runs, error {error:.1e} against the float64 reference", error < VIEW_BOUND)
    return error < VIEW_BOUND


def _recurrent_implementation() -> bool:
    reason = RECURRENT.why_not("cpp", Need(torch.device("cpu")))
    if reason is not None:
        _line("cpp on cpu", f"cannot run: {reason}; PyTorch's operators compute instead")
        return True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, x = SequenceGRU(9, 24, layers=2).double(), torch.randn(5, 7, 9, dtype=torch.float64)
    results = []
    for impl in ("torch", "cpp"):
        net.impl = impl
        results.append(torch.autograd.grad(net(x).square().sum(), list(net.parameters())))
        net.float()
        x = x.float()
    error = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(*results, strict=True))
    _line("cpp on cpu", f"runs, error {error:.1e} of its gradients against float64", error < RECURRENT_BOUND)
    return error < RECURRENT_BOUND


def view_self_test(impl: str, device: torch.device) -> float:
    """Largest error of two views of four clips, a strong one among them, against the reference, in metres for
    coordinates near 1 m."""
    generator = torch.Generator().manual_seed(0)
    num_frames, num_bodies = torch.tensor([1, 30, 64, 150]), torch.tensor([1, 2, 1, 2])
    rows = num_frames * num_bodies
    frames = torch.randn(int(rows.sum()), 25, 3, generator=generator)
    start = rows.cumsum(0) - rows
    clips = PackedClips(frames.to(device), start.to(device), num_frames.to(device), num_bodies.to(device), max_bodies=2)
    sample = torch.arange(4, device=device)
    settings: dict[str, Any] = {"views": (1, 2), "seed": 0, "step": 0, "sample": sample, "impl": impl}
    params = draw_params(AugmentConfig(crop_frames_min=1), clips.num_frames, 25, **settings)
    ours, truth = (make_views(clips, params, NTU25, impl=i).cpu() for i in (impl, "reference"))
    return float((ours - truth).abs().max())


def _own_package(name: str) -> bool:
    foreign = foreign_package(name)
    place = f"{package_folder(name)}" if foreign is None else f"another package is found: {foreign}"
    _line(name, place, foreign is None)
    return foreign is None


def _gpu() -> str:
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        return f"none that torch sees (torch is {built})"
    names = []
    for index in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(index)
        names.append(f"{p.name}, {p.total_memory / 2**30:.0f} GiB, sm_{p.major}{p.minor}")
    return "; ".join(names)


def gpu_lines() -> list[tuple[str, str, bool]]:
    """What recurrent nets and kernels need on a GPU beside it: name, finding, whether it is there."""
    if not torch.cuda.is_available():
        return []
    number, bf16, launcher = torch.backends.cudnn.version(), no_bf16_reason(), kernels.no_launcher_reason()
    cudnn = "none" if number is None else cudnn_text(number)
    return [
        ("cudnn", f"{cudnn}, recurrent nets in bfloat16" if bf16 is None else f"{cudnn}: {bf16}", bf16 is None),
        ("launcher of kernels", "a C compiler and Python.h are there" if launcher is None else launcher, not launcher),
    ]


def system_lines() -> list[tuple[str, str]]:
    """What this operating system has, of what is not everywhere, and what is left out without it: name, finding."""
    unlocked, forks = why_no_locks(), hasattr(os, "fork")
    lines = [("file locks", "a store and a run folder have one writer at a time" if unlocked is None else unlocked)]
    lines += [] if forks else [("train.tables", "starts no runs, for want of os.fork: train.run does, one at a time")]
    lines += [("memory", "free memory is unknown: --placement auto takes device")] * (not hasattr(os, "sysconf"))
    if ON_WINDOWS:
        lines.append(
            ("what is left", "by a command that was killed is not removed: .tmp files and folders beside its own")
        )
    return lines


def _line(name: str, text: str, good: bool = True) -> None:
    print(f"{'  ' if good else '!!'}{name:20} {text}")


if __name__ == "__main__":
    sys.exit(main())
