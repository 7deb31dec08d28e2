"""Counts of a step: of its kernels' launches, as Triton's interpreter runs them, and of PyTorch's operators.

``python -m bench.counting`` is the process in which the interpreter runs, since Triton decides once whether kernels are
interpreted: `count_launches` starts it.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Size, Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from bench.providers import ASCENT, TEMPERATURE, Case, Inputs, Mix


@dataclass(frozen=True)
class StepSize:
    """A step of the MC loss; by default the paper's, section 4.2."""

    mix: Mix = "own"
    """How the banks are mixed."""
    batch: int = 64
    """B, samples."""
    bank: int = 16384
    """K, bank entries."""
    dim: int = 128
    """D, elements of a feature."""

    @property
    def case(self) -> Case:
        return Case("step", self.mix, self.batch, self.bank, self.dim)


def step_arguments(x: Inputs, case: Case, precision: str) -> dict[str, Any]:
    """Of the raw mc_step_ of kernels.mc and fastmc.chunked: the step of the paper's section 4.2."""
    return {
        **vars(x),
        "temperature": TEMPERATURE,
        "bank_temperature": ASCENT["temperature"],
        "lr": ASCENT["lr"],
        "momentum_factor": ASCENT["momentum_factor"],
        "weight_decay": ASCENT["weight_decay"],
        "tiled": case.mix == "tiled",
        "soft_target": True,
        "update": "ascent",
        "cursor": None,
        "precision": precision,
    }


class Launching(Protocol):
    """What a process of its own can be told to launch: it is pickled."""

    def launch(self, device: str) -> None:
        """The launches, on tensors of this device."""


def count_launches(what: Launching) -> list[dict[str, Any]]:
    """One `bench.watch.Counts` per launch, as a dictionary. RuntimeError with the child's words."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.counting"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        input=pickle.dumps(what),
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"counting on the interpreter failed:\n{done.stderr.decode()}")
    return json.loads(done.stdout)


class Operators(TorchDispatchMode):
    """Operators that run, and the bytes of the tensors that they read and write: what a GPU's kernels would ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = 0
        self.load_bytes = 0
        self.store_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        written = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        views = {id(t.untyped_storage()) for t in read} >= {id(t.untyped_storage()) for t in written}
        allocates = "empty" in func.overloadpacket.__name__
        if func.is_view or allocates or (views and not func._schema.is_mutable):
            return result
        self.launches += 1
        self.load_bytes += sum(_bytes(t) for t in read)
        self.store_bytes += sum(_bytes(t) for t in written)
        return result


def _bytes(tensor: Tensor) -> int:
    """Distinct ones: a dimension that is only expanded costs nothing."""
    sizes = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return tensor.element_size() * int(Size(sizes).numel())


def count_operators(call: Callable[[], Any]) -> dict[str, int]:
    """launches, load_bytes, store_bytes and flops of the products of ``call``, one kernel an operator."""
    with Operators() as seen, FlopCounterMode(display=False) as flops:
        call()
    return {
        "launches": seen.launches,
        "load_bytes": seen.load_bytes,
        "store_bytes": seen.store_bytes,
        "flops": flops.get_total_flops(),
    }


def main() -> None:
    from bench.watch import watch

    what: Launching = pickle.load(sys.stdin.buffer)
    with watch(races=False) as seen:
        what.launch("cpu")
    print(json.dumps([vars(launch) for launch in seen.launches], default=dict))


if __name__ == "__main__":
    main()
