"""What this machine can run, and why not the rest: python -m fastmc.doctor."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from fastmc import bank_step_, foreign_package, mc_loss
from fastmc.loss import unavailable_reason

PACKAGES = ("fastmc", "torch", "triton", "numpy", "tyro", "tqdm", "matplotlib", "tensorboard")


def main() -> int:
    """Print the findings; 0 if the self-tests pass and the packages are ours."""
    print("versions")
    _line("python", f"{platform.python_version()} ({sys.executable})")
    for package, number in package_versions().items():
        _line(package, number or "not installed")
    print("devices")
    _line("cpu", f"{platform.machine()}, torch uses {torch.get_num_threads()} threads")
    _line("gpu", _gpu())
    print("packages of this clone")
    healthy = True
    for name in ("fastmc", "kernels", "train"):
        healthy &= _own_package(name)
    print("implementations of loss and bank step")
    devices = [torch.device("cpu")] + ([torch.device("cuda")] if torch.cuda.is_available() else [])
    for impl in ("reference", "torch", "triton"):
        for device in devices:
            healthy &= _implementation(impl, device)
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


def self_test(impl: str, device: torch.device) -> float:
    """Largest error of loss, its gradients, and one bank step against the float64 reference on a small random case,
    relative to the largest element of each."""
    results = {}
    for name, dtype, place in ((impl, torch.float32, device), ("reference", torch.float64, torch.device("cpu"))):
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(4 * 6 + 50, 16, generator=generator, dtype=torch.float64)
        rows = torch.nn.functional.normalize(rows, dim=1).to(place, dtype)
        f0, f1, f2, f3, bank = (t.clone() for t in rows.split([6, 6, 6, 6, 50]))
        queries = [f.requires_grad_() for f in (f1, f2, f3)]
        loss = mc_loss(f0, f1, f2, f3, bank, 0.3, impl=name)
        loss.backward()
        momentum = torch.zeros_like(bank)
        bank_step_(bank, momentum, f0, f1, f2, f3, 0.3, impl=name)
        gradients = [q.grad for q in queries if q.grad is not None]
        results[name if dtype == torch.float32 else "truth"] = [loss.detach(), *gradients, bank, momentum]
    pairs = zip(results[impl], results["truth"], strict=True)
    errors = [(a.cpu().double() - b).abs().max() / b.abs().max() for a, b in pairs]
    return float(torch.stack(errors).max())  # torch's maximum keeps a NaN, Python's may not


def _implementation(impl: str, device: torch.device) -> bool:
    reason = unavailable_reason(impl, device)
    if reason is not None:
        _line(f"{impl} on {device.type}", f"cannot run: {reason}")
        return True
    error = self_test(impl, device)
    good = error < 1e-4
    _line(f"{impl} on {device.type}", f"runs, error {error:.1e} against the float64 reference", good)
    return good


def _own_package(name: str) -> bool:
    foreign = foreign_package(name)
    ours = Path(__file__).resolve().parents[1] / name
    _line(name, str(ours) if foreign is None else f"another package is found: {foreign}", foreign is None)
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


def _line(name: str, text: str, good: bool = True) -> None:
    print(f"{'  ' if good else '!!'}{name:20} {text}")


if __name__ == "__main__":
    sys.exit(main())
