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
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol
from unittest import mock

import torch
from torch import Size, Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from bench.providers import ASCENT, TEMPERATURE, Case, Inputs, Mix
from fastmc.contrast_table import A2MC
from fastmc.encoders.storage import share_storage
from kernels.ranges import observe


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
    """Of the raw contrast_step_ of kernels.mc and fastmc.objective.chunked: the step of the paper's section 4.2."""
    return {
        "bank": x.bank,
        "momentum": x.momentum,
        "f0": x.f0,
        "queries": [x.f1, x.f2, x.f3],
        "mixing": x.mixing,
        "table": A2MC,
        "temperature": TEMPERATURE,
        "bank_temperature": ASCENT["temperature"],
        "lr": ASCENT["lr"],
        "momentum_factor": ASCENT["momentum_factor"],
        "weight_decay": ASCENT["weight_decay"],
        "tiled": case.mix == "tiled",
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
        if not _launches(func, read, written):
            return result
        self.launches += 1
        self.load_bytes += sum(_bytes(t) for t in read)
        self.store_bytes += sum(_bytes(t) for t in written)
        return result


def _launches(func: Any, read: list[Tensor], written: list[Tensor]) -> bool:
    """Whether an operator has a kernel: views and fresh memory have none."""
    views = {id(t.untyped_storage()) for t in read} >= {id(t.untyped_storage()) for t in written}
    allocates = "empty" in func.overloadpacket.__name__
    return not (func.is_view or allocates or (views and not func._schema.is_mutable))


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


# --- A whole step, by its parts

REST = "rest"
"""What runs outside of any part."""
CHUNK, MAX_BLOCKS, MAX_TENSORS = 65536, 320, {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
"""PyTorch's multi-tensor kernels (ATen/native/cuda/MultiTensorApply.cuh): numbers that a block takes, blocks a launch,
and tensors a launch by the number of lists. Builds that hand a kernel 32 KB of arguments launch fewer."""


@dataclass(frozen=True)
class RecurrentCall:
    """One pass through the recurrent net, a single call of cuDNN's on a GPU.

    Attributes:
        clips, frames, inputs: N, T and I of its input (N, T, I).
        backward: the pass of the gradients.
        keeps: a forward pass that keeps what a backward pass needs.
        weights: a backward pass that computes the gradients of the weights too.
        flops: of its matrix products.
    """

    part: str
    clips: int
    frames: int
    inputs: int
    hidden: int
    layers: int
    directions: int
    backward: bool
    keeps: bool
    weights: bool
    flops: int


@dataclass
class PartWork:
    """What a part of a step asks for outside of the recurrent net.

    Attributes:
        kernels: names of the Triton launches, in order.
        operators: kernels of PyTorch's operators, by operator.
        load_bytes, store_bytes, flops: of PyTorch's operators.
        recurrent: passes through the recurrent net.
    """

    kernels: list[str] = field(default_factory=list)
    operators: Counter[str] = field(default_factory=Counter)
    load_bytes: int = 0
    store_bytes: int = 0
    flops: int = 0
    recurrent: list[RecurrentCall] = field(default_factory=list)


class PartOperators(TorchDispatchMode):
    """PyTorch's operators by part (`kernels.ranges`), on tensors without memory. One kernel an operator, but as many as
    PyTorch's CUDA code launches for one that takes lists of tensors. Within `opaque`, products count alone."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[str, PartWork] = {}
        self.running: list[str] = []
        self._products_only: list[int] = []

    @property
    def here(self) -> PartWork:
        return self.parts.setdefault(self.part, PartWork())

    @property
    def part(self) -> str:
        return self.running[-1] if self.running else REST

    def observe(self, name: str, begins: bool) -> None:
        """To be told of parts."""
        if begins:
            self.running.append(name)
        else:
            self.running.pop()

    def add(self, name: str, read: Sequence[Tensor], written: Sequence[Tensor]) -> None:
        """A kernel that runs here within another operator."""
        work = self.here
        work.operators[name] += 1
        work.load_bytes += sum(_bytes(t) for t in read)
        work.store_bytes += sum(_bytes(t) for t in written)

    @contextmanager
    def opaque(self) -> Iterator[list[int]]:
        """Within: one call of a library's. The list's number becomes the operations of its products."""
        flops = [0]
        outer, self._products_only = self._products_only, flops
        try:
            yield flops
        finally:
            self._products_only = outer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        result = None if name.startswith("_fused_") else func(*args, **kwargs)  # they have no form without memory
        formula = flop_registry.get(func.overloadpacket)
        flops = formula(*args, **kwargs, out_val=result) if formula else 0
        if self._products_only:
            self._products_only[0] += flops
            return result
        read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        written = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        if not _launches(func, read, written):
            return result
        lists = {a.name: v for a, v in zip(func._schema.arguments, args, strict=False) if _is_list(a, v)}
        if name.startswith(("_foreach_", "_fused_")):
            count, written = _of_lists(name, lists, written, scaled=kwargs.get("grad_scale") is not None)
        else:
            count = 1
        if "copy" in name:
            read = read[len(written) :]  # what is written over need not be read
        work = self.here
        work.operators[name] += count
        work.load_bytes += sum(_bytes(t) for t in read)
        work.store_bytes += sum(_bytes(t) for t in written)
        work.flops += flops
        return result


def _is_list(argument: Any, value: Any) -> bool:
    return str(argument.type) == "List[Tensor]" and bool(value)


def _of_lists(
    name: str, lists: dict[str, list[Tensor]], results: list[Tensor], scaled: bool
) -> tuple[int, list[Tensor]]:
    """Kernels of an operator on lists of tensors, and what it writes."""
    listed = {key: value for key, value in lists.items() if key != "state_steps"}  # one number each
    count = multi_tensor_launches([t.numel() for t in lists["self"]], len(listed))
    if name == "_foreach_norm":
        return count + 2, results  # partial sums are set to zero before, and joined after
    if name.startswith("_fused_"):
        changed = [value for key, value in lists.items() if key != "grads" or scaled]
        return count, [t for value in changed for t in value]
    return count, lists["self"] if name.endswith("_") else results


def multi_tensor_launches(sizes: Sequence[int], lists: int) -> int:
    """Launches of one multi-tensor kernel for ``lists`` lists of tensors of these sizes."""
    launches = blocks = tensors = 0
    for size in sizes:
        chunks = -(-size // CHUNK)
        tensors += chunks > 0
        for chunk in range(chunks):
            blocks += 1
            last = chunk == chunks - 1
            if blocks == MAX_BLOCKS or (last and tensors == MAX_TENSORS[lists]):
                launches, blocks, tensors = launches + 1, 0, 0 if last else 1
    return launches + (blocks > 0)


def count_parts(call: Callable[[], Any], launches: Sequence[Any] = ()) -> dict[str, PartWork]:
    """The work of ``call`` by part.

    Args:
        launches: a list to which every Triton launch is appended that ``call`` makes.
    """
    seen, told = PartOperators(), len(launches)

    def settle() -> None:
        nonlocal told
        if len(launches) > told:
            seen.here.kernels += [launch.name for launch in launches[told:]]
        told = len(launches)

    def listen(name: str, begins: bool) -> None:
        settle()
        seen.observe(name, begins)

    with observe(listen), opaque_recurrent_nets(seen), seen:
        call()
    settle()
    return seen.parts


@contextmanager
def opaque_recurrent_nets(seen: PartOperators) -> Iterator[None]:
    """Within, each pass of torch.nn.GRU is one call, as with cuDNN: without memory, PyTorch unrolls it over time."""
    variables = torch.nn.modules.rnn._VF
    unrolled = variables.gru

    def gru(x: Tensor, initial: Tensor, weights: list[Tensor], *settings: Any) -> tuple[Tensor, Tensor]:
        # Views, since autograd does not say of a leaf whether its gradient is asked for.
        return _OpaqueGRU.apply(seen, unrolled, settings, *(t.view_as(t) for t in (x, initial, *weights)))

    with mock.patch.object(variables, "gru", gru, create=True):
        yield


class _OpaqueGRU(torch.autograd.Function):
    """torch.gru whose passes are counted as a `RecurrentCall` each, and beside them what PyTorch's node of autograd
    does around cuDNN (ATen/native/cudnn/RNN.cpp): copies to frames first, zeros for the gradient of the outputs, which
    nobody gives, and for those of the weights, which cuDNN adds to."""

    @staticmethod
    def forward(
        ctx: Any, seen: PartOperators, unrolled: Any, settings: tuple[Any, ...], x: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        wanted = ctx.needs_input_grad[3:]
        inside = [t.detach().requires_grad_(wants) for t, wants in zip((x, *tensors), wanted, strict=True)]
        with torch.enable_grad(), seen.opaque() as flops:
            out, final = unrolled(inside[0], inside[1], inside[2:], *settings)
        ctx.seen, ctx.inside, ctx.outside = seen, inside, (out, final)
        _, layers, _, _, bidirectional, batch_first = settings
        clips, frames, inputs = x.shape if batch_first else (x.shape[1], x.shape[0], x.shape[2])
        ctx.call = RecurrentCall(
            part=seen.part,
            clips=clips,
            frames=frames,
            inputs=inputs,
            hidden=final.shape[-1],
            layers=layers,
            directions=1 + bidirectional,
            backward=False,
            keeps=any(wanted),
            weights=False,
            flops=flops[0],
        )
        seen.here.recurrent.append(ctx.call)
        ctx.batch_first = batch_first
        ctx.copied = not (x.transpose(0, 1) if batch_first else x).is_contiguous()
        ctx.set_materialize_grads(False)
        if ctx.copied:
            seen.add("_cudnn_rnn: input copied", [x], [x])
        return out.detach(), final.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # Of a call for some gradients only, autograd asks a library's operator for those alone.
        asked = [node is not None and torch._C._will_engine_execute_node(node) for node, _ in ctx.next_functions]
        seen, x = ctx.seen, ctx.inside[0]
        there = [i for i, gradient in enumerate(gradients) if gradient is not None]
        with seen.opaque() as flops:
            wanted = [t for t, wants in zip(ctx.inside, asked, strict=True) if wants]
            upstream = [gradients[i] for i in there]
            found = list(torch.autograd.grad([ctx.outside[i] for i in there], wanted, upstream))
            if any(asked[2:]):
                share_storage(found[-sum(asked[2:]) :])  # as cuDNN's are views of one
        outputs, passes = ctx.outside[0], 2 if any(asked[2:]) else 1
        if gradients[0] is None:
            seen.add("_cudnn_rnn_backward: zeros", [], [outputs])
        if ctx.batch_first:
            seen.add("_cudnn_rnn_backward: zeros copied", [outputs], [outputs])
        if any(asked[2:]):
            seen.add("_cudnn_rnn_backward: zeros", [], ctx.inside[2:])
        for _ in range(passes * ctx.copied):
            seen.add("_cudnn_rnn_backward: input copied", [x], [x])
        changes = {"part": seen.part, "backward": True, "keeps": False, "weights": any(asked[2:]), "flops": flops[0]}
        seen.here.recurrent.append(replace(ctx.call, **changes))
        return None, None, None, *(found.pop(0) if wants else None for wants in asked)


def main() -> None:
    from bench.watch import watch

    what: Launching = pickle.load(sys.stdin.buffer)
    with watch(races=False) as seen:
        what.launch("cpu")
    print(json.dumps([vars(launch) for launch in seen.launches], default=dict))


if __name__ == "__main__":
    main()
