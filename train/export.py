"""A trained encoder for other programs: python -m train.export --run DIR --to onnx|torchscript|safetensors."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from torch import Tensor

from fastmc.embedding import Embedder, load
from fastmc.encoder_file import SUFFIX, read_encoder, write_encoder
from fastmc.files import make_folder_of, whole_file
from fastmc.portable import PortableEncoder
from train.command.errors import run_command
from train.engine.record import log

Format = Literal["onnx", "torchscript", "safetensors"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torchscript": ".ts", "safetensors": SUFFIX}
EXAMPLE = (2, 24)
"""Clips, and frames of each, that the graph is recorded with."""
SIZES = ((1, 7), (2, 24), (5, 200))
"""Clips and frames that a file is checked with."""
TOLERANCE = 1e-4
"""Of the largest number of a feature: a runtime adds in another order, and the GRU carries that from frame to frame."""
Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Export:
    """Write a trained encoder to a file for other programs, and check the file against the encoder.

    Example: python -m train.export --run runs/demo --to onnx

    onnx and torchscript hold the whole way from clips to features: input "clips" (B, T, M, V, 3), float32, metres, any
    B and T >= 1, zero where a body is absent; output "features" (B, H). Frame of reference, crop and resizing are in
    it. safetensors holds the weights, and how clips have to be: fastmc.load(FILE) reads it.
    """

    run: str
    """Run folder, as made by python -m train.run; or an encoder's file or name, as of fastmc.load."""
    to: Format = "onnx"
    """onnx: for ONNX Runtime, TensorRT, OpenVINO, browsers; needs pip install onnx onnxscript onnxruntime.
    torchscript: for PyTorch in C++. safetensors: for sharing, in one file."""
    out: Path | None = None
    """The file to write; by default encoder with the format's suffix, in the run folder."""
    checkpoint: str = "last"
    """last, best (of the probe, where the run had --keep-best), or a step."""
    overwrite: bool = False
    """Replace the file if it exists."""
    data: Path | None = None
    """Packed store that the run was trained on; needed if its checkpoint does not describe it."""
    allow: tuple[str, ...] = ()
    """Methods and encoders outside of fastmc, MODULE:CLASS, that may be imported if the run is of one."""


def export(settings: Export) -> Path:
    """Write the file; returns its path.

    Raises:
        ValueError: a setting is wrong, the encoder cannot be exported so, or the file does not compute what it should.
        CheckpointError, StoreError, OSError: run, store or file cannot be read or written.
    """
    out = settings.out or default_file(settings)
    if out.suffix != SUFFIXES[settings.to]:
        raise ValueError(f"--out {out} must end in {SUFFIXES[settings.to]} for --to {settings.to}")
    if out.exists() and not settings.overwrite:
        raise ValueError(f"--out {out} exists; --overwrite replaces it")
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if settings.to == "onnx" and not find_spec(name)]
    if missing:
        raise ValueError(f"--to onnx needs {', '.join(missing)}: pip install {' '.join(missing)}")
    data, allow = settings.data, settings.allow
    embedder = load(settings.run, device="cpu", data=data, checkpoint=settings.checkpoint, allow=allow)
    make_folder_of(out)
    with whole_file(out) as unfinished:
        run = {"onnx": to_onnx, "torchscript": to_torchscript, "safetensors": to_safetensors}[settings.to](
            embedder, unfinished, settings.allow
        )
        worst = check(embedder, run, str(out))
    sizes = ", ".join(f"{clips} x {frames}" for clips, frames in SIZES)
    size = out.stat().st_size / 1e6
    log.info("%s: %.2f MB, %d joints to %d numbers", out, size, embedder.skeleton.num_joints, embedder.dim)
    log.info("checked: features of %s frames are those of encode, within %.1e of the largest", sizes, worst)
    return out


def default_file(settings: Export) -> Path:
    """In the run folder; what is no folder wants --out."""
    if not Path(settings.run).is_dir():
        raise ValueError(f"--run {settings.run} is no folder to write to; name the file with --out")
    return Path(settings.run, f"encoder{SUFFIXES[settings.to]}")


def about(embedder: Embedder) -> dict[str, str]:
    """What a user of the file has to know, in JSON."""
    data = embedder.data
    expects: dict[str, Any] = {
        "joints": list(data.skeleton.joint_names),
        "bodies": data.max_bodies,
        "frames per second": data.fps,
        "frame of reference": data.normalisation,
        "stream": embedder.config.stream,
    }
    return {"fastmc": json.dumps(expects)}


def to_onnx(embedder: Embedder, path: Path, allow: Sequence[str]) -> Run:
    """Write it; returns what ONNX Runtime computes of clips."""
    import onnx
    import onnxruntime

    module, clips = PortableEncoder(embedder).eval(), example(embedder)
    batch, frames = torch.export.Dim("clips", min=1), torch.export.Dim("frames", min=1)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter about itself
        # strict: else nn.GRU's checks of shapes make this batch's size that of every batch.
        graph = torch.export.export(module, (clips,), dynamic_shapes={"clips": {0: batch, 1: frames}}, strict=True)
        names = ["clips"], ["features"]
        program = torch.onnx.export(graph, dynamo=True, verbose=False, input_names=names[0], output_names=names[1])
    assert program is not None
    model = program.model_proto
    for key, value in about(embedder).items():
        model.metadata_props.add(key=key, value=value)
    name_sizes(model.graph, dict(zip(symbols(model.graph.input[0]), ("clips", "frames"), strict=True)))
    onnx.checker.check_model(model)
    onnx.save(model, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda clips: np.asarray(session.run(None, {"clips": clips})[0])


def symbols(value: Any) -> list[str]:
    """Names of the sizes that are free, of a value of a graph of ONNX."""
    return [dim.dim_param for dim in value.type.tensor_type.shape.dim if dim.dim_param]


def name_sizes(graph: Any, names: dict[str, str]) -> None:
    """The exporter calls them s6 and s11."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = names.get(dim.dim_param, dim.dim_param)


def to_torchscript(embedder: Embedder, path: Path, allow: Sequence[str]) -> Run:
    """Write it; returns what the file computes of clips."""
    module = PortableEncoder(embedder).eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the tracer: what it warns of is checked at other sizes
        traced = torch.jit.trace(module, example(embedder), check_trace=False)
        torch.jit.save(traced, path, _extra_files=about(embedder))
        read = torch.jit.load(path, map_location="cpu")
    return lambda clips: read(torch.from_numpy(clips)).numpy()


def to_safetensors(embedder: Embedder, path: Path, allow: Sequence[str]) -> Run:
    """Write it; returns what an encoder of the file computes of clips."""
    write_encoder(path, embedder)
    config, data, encoder = read_encoder(path, allow)
    read = Embedder(path, encoder, config, data)
    return lambda clips: read.encode(list(clips), check="off").numpy()


def example(embedder: Embedder) -> Tensor:
    return torch.from_numpy(clips_of(embedder, *EXAMPLE))


def clips_of(embedder: Embedder, clips: int, frames: int) -> np.ndarray:
    """Noise with a second body, where there is room, that is there in every other frame; of the last of several clips
    it is the only one."""
    rng = np.random.default_rng(clips)
    found = rng.normal(size=(clips, frames, embedder.max_bodies, embedder.skeleton.num_joints, 3)).astype(np.float32)
    found[:, ::2, 1:] = 0
    if clips > 1 and embedder.max_bodies > 1:
        found[-1, :, 0] = 0
    return found


def check(embedder: Embedder, run: Run, name: str) -> float:
    """The largest difference to `Embedder.encode`, as a share of the largest number; ValueError if it is too large."""
    return max(_differences(embedder, run, name))


def _differences(embedder: Embedder, run: Run, name: str) -> Iterator[float]:
    for clips, frames in SIZES:
        given = clips_of(embedder, clips, frames)
        exact, found = embedder.encode(list(given), check="off").numpy(), run(given)
        error = np.inf if exact.shape != found.shape else np.abs(exact - found).max() / np.abs(exact).max()
        if not error <= TOLERANCE:  # a NaN is not
            raise ValueError(
                f"{name} was not written: for {clips} clips of {frames} frames its features differ from those of the "
                f"encoder by {error:.1e} of the largest ({TOLERANCE:.0e} is allowed)"
            )
        yield float(error)


def main(args: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""

    def command(args: Sequence[str]) -> None:
        export(tyro.cli(Export, prog="python -m train.export", args=args, config=(tyro.conf.FlagCreatePairsOff,)))

    return run_command(command, args, stopped="stopped; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
