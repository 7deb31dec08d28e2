"""fastmc: A²MC, self-supervised pre-training of skeleton encoders.

A trained encoder on clips of one's own:

    load             the trained encoder of a run folder, ready for clips of its kind
    Embedder         what it gives: encode, classify, encode_stream
    Skeleton         the joint layout of clips; Given: what their numbers are, if not metres

Loss and bank:

    mc_loss          the MC loss of eq. 9-11, differentiable; mc_loss_parts: its three parts
    info_nce         InfoNCE, eq. 1
    bank_step_       the bank's ascent, eq. 7, in place
    mc_step_         both with gradients and metrics, in one sweep over the bank; MCStep: what it gives
    MemoryBank       keeps the bank

Augmented views without a data loader:

    draw_params      the random choices of views, ViewParams, as strong as AugmentConfig says
    make_views       makes them of clips: PackedClips of any lengths, or DenseClips of one

help(fastmc.mc_loss) has arguments, shapes and equations. The program: python -m train.run --help.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastmc.data.given import Given as Given
    from fastmc.embedding import Embedder as Embedder
    from fastmc.embedding import load as load
    from fastmc.objective.bank import MemoryBank as MemoryBank
    from fastmc.objective.bank import bank_step_ as bank_step_
    from fastmc.objective.contrast_step import MCStep as MCStep
    from fastmc.objective.contrast_step import mc_step_ as mc_step_
    from fastmc.objective.loss import info_nce as info_nce
    from fastmc.objective.loss import mc_loss as mc_loss
    from fastmc.objective.loss import mc_loss_parts as mc_loss_parts
    from fastmc.skeleton import Skeleton as Skeleton
    from fastmc.views.clips import DenseClips as DenseClips
    from fastmc.views.clips import PackedClips as PackedClips
    from fastmc.views.draw import AugmentConfig as AugmentConfig
    from fastmc.views.draw import ViewParams as ViewParams
    from fastmc.views.draw import draw_params as draw_params
    from fastmc.views.make import make_views as make_views

__version__ = "0.1.0"
_HOME = {
    "AugmentConfig": "fastmc.views.draw",
    "DenseClips": "fastmc.views.clips",
    "Embedder": "fastmc.embedding",
    "Given": "fastmc.data.given",
    "MCStep": "fastmc.objective.contrast_step",
    "MemoryBank": "fastmc.objective.bank",
    "PackedClips": "fastmc.views.clips",
    "Skeleton": "fastmc.skeleton",
    "ViewParams": "fastmc.views.draw",
    "bank_step_": "fastmc.objective.bank",
    "draw_params": "fastmc.views.draw",
    "info_nce": "fastmc.objective.loss",
    "load": "fastmc.embedding",
    "make_views": "fastmc.views.make",
    "mc_loss": "fastmc.objective.loss",
    "mc_loss_parts": "fastmc.objective.loss",
    "mc_step_": "fastmc.objective.contrast_step",
}
__all__ = [*_HOME]


def package_folder(name: str) -> Path:
    """Where package ``name`` of ours lies: beside fastmc in a clone, within it in a wheel (setup.py)."""
    inside = Path(__file__).resolve().parent / name
    return inside if inside.is_dir() else inside.parents[1] / name


def foreign_package(name: str) -> str | None:
    """Where top-level package ``name`` would be imported from, if that is not beside fastmc; None if it is ours. In a
    wheel kernels and train lie within fastmc, where no other package can stand in for them."""
    ours = package_folder(name)
    if ours.parent == Path(__file__).resolve().parent:
        return None
    spec = importlib.util.find_spec(name)
    found = Path(spec.origin).resolve().parent if spec is not None and spec.origin else None
    return None if found == ours else str(found or "nowhere")


def _refuse_foreign_kernels() -> None:
    place = foreign_package("kernels")
    if place is not None:
        raise ImportError(
            f"import kernels finds {place}, not the package beside fastmc in {Path(__file__).resolve().parents[1]}: "
            "run from the clone, put it first on PYTHONPATH, or uninstall the other package"
        )


_refuse_foreign_kernels()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    # Public names load on first use, so that the workers that read skeleton files never import torch.
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
