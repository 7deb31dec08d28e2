"""From a released checkpoint of ISC, CMD, CrosSCLR and their like to a run folder, and back: python -m train.convert
--help."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from fastmc.build import anywhere, build_model
from fastmc.checkpoint import save
from fastmc.config import Config, RunFolderError, load_config, preset_config, to_plain
from fastmc.data.store import NOT_NORMALISED, PackedStore
from fastmc.encoders.bigru import BiGRUConfig
from fastmc.encoders.released import ABOUT, SUFFIX, ReleasedEncoder, encoder_of, read_released, to_released
from fastmc.encoders.released_graphs import to_released_graph
from fastmc.files import make_folder_of, whole_file
from fastmc.methods import OF_RELEASED
from fastmc.methods.base import Method
from fastmc.skeleton import NTU25, Skeleton
from fastmc.state import Position, RunState, TrainingData
from fastmc.tensor_files import write_tensors
from fastmc.views.clips import Stream
from train.command.datasets import open_dataset
from train.command.errors import run_command
from train.engine.loop import build_step
from train.engine.record import log
from train.runs.folder import RunFolder
from train.runs.report import environment

THEIR_FRAME = "2s-AGCN: every frame's spine at the origin, hip to spine +z, left to right shoulder +x"
THEIR_FRAMES = 64
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Layout:
    """Joints and bodies of a clip: what the size of a model depends on."""

    skeleton: Skeleton
    max_bodies: int


def load(
    checkpoint: Path,
    out: Path,
    dataset: str = "ntu60",
    protocol: str = "xsub",
    stream: Stream = "joint",
    frames: int | None = None,
    data_root: Path = Path("data"),
    overwrite: bool = False,
) -> None:
    """Make a run folder of a released checkpoint, for train.evaluate and all that reads runs: BiGRU of ISC, CMD, HaLP
    and PCM3, ST-GCN of CrosSCLR, AimCLR and HiCLR, AGCN and HCN of ISC.

    Example: python -m train.convert load --checkpoint cmd.pth.tar --out runs/cmd-motion --stream motion

    Such encoders know coordinates of another preparation than ours: docs/checkpoints.md says how to pack theirs.

    Args:
        checkpoint: the file; of its encoders the one of --stream is taken.
        out: the run folder to make.
        dataset: name of the packed store that evaluations read; it may be prepared later.
        protocol: training and test split of that store.
        stream: joint, motion or bone. A file with one encoder does not say which it is.
        frames: frames of a clip as the encoder reads it; 64, unless the file was exported by us and says otherwise.
        data_root: folder of the packed stores.
        overwrite: replace the run that --out holds.
    """
    file = read_released(checkpoint)
    found = encoder_of(file, stream, NTU25.num_joints)
    frame = file.about.get("normalisation") or THEIR_FRAME
    layout = Layout(NTU25, found.input_size // (3 * NTU25.num_joints))
    store = open_dataset(dataset, data_root) if (data_root / dataset).exists() else None
    if store is not None:
        check_store(store, layout, protocol, frame)
    config = replace(
        config_of(found, file.epochs, dataset),
        protocol=protocol,
        stream=stream,
        frames=frames or file.about.get("frames", found.frames),
        data_root=data_root,
        out=out,
        restart=overwrite,
    )
    folder = RunFolder(config)
    if folder.saved is not None and not overwrite:
        raise RunFolderError(f"out = {out} holds a run; name another folder, or replace it with --overwrite")
    state = run_state(config, fill_model(build_model(config, layout, CPU), found), layout, store, frame)
    with folder.begin({**environment(CPU), "released": {"file": str(checkpoint), "encoder": found.name}}):
        save(out / "checkpoints", 0, state.to_plain(), keep=1)
    log.info("%s: %s, epoch %s", checkpoint, describe(found), file.epochs or "unknown")
    log.info("%s is a run now: python -m train.evaluate linear --run %s", out, out)


def export(run: tuple[Path, ...], out: Path, overwrite: bool = False) -> None:
    """Write runs with --reading stepwise to one file that the evaluation scripts of CMD read: a run for each stream.
    Runs without an input norm are written as ISC's scripts read them, which take one run.

    Example: python -m train.convert export --run runs/joint runs/motion runs/bone --out a2mc.pth.tar

    Args:
        run: run folders of python -m train.run, of different streams.
        out: the file to write.
        overwrite: replace it if it exists.
    """
    if out.is_dir():
        raise ValueError(f"out = {out} is a folder; name a file")
    if out.exists() and not overwrite:
        raise ValueError(f"out = {out} exists; name another file, or replace it with --overwrite")
    if not run:
        raise ValueError("run names no run folder; give one of each stream")
    make_folder_of(out)
    tensors: dict[str, Tensor] = {}
    epochs, encoders, abouts = [], set(), []
    for folder in run:
        config = load_config(folder)
        path, state = RunState.read(folder / "checkpoints")
        try:
            new = released_state(config, state)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None
        encoders.add(config.encoder)
        abouts.append(about_input(config, state))
        if not tensors.keys().isdisjoint(new) or len(encoders) > 1 or abouts[-1] != abouts[0]:
            raise ValueError(
                f"{folder} does not fit to the runs before it: the runs of a file are of different streams, their "
                "encoders of one size, with an input norm, and of the same frames and preparation of the data"
            )
        tensors |= new
        epochs.append(state.position.epoch)
        log.info("%s: %s stream of %s", folder, config.stream, path)
    with whole_file(out) as unfinished:
        # ISC asks for PyTorch 1.2, which reads no zip archives.
        content = {"epoch": max(epochs), "state_dict": tensors, ABOUT: abouts[0]}
        write_tensors(unfinished, content, zipped=False)
    parts = dict.fromkeys(name.removeprefix("module.").partition(".")[0] for name in tensors)
    log.info("wrote %s: %s", out, ", ".join(parts))
    warn_of_their_input(abouts[0])


def about_input(config: Config, state: RunState) -> dict[str, Any]:
    """What an encoder's input is like and no tensor says: frames, and the clips' frame of reference ("" if unknown)."""
    return {"frames": config.frames, "normalisation": state.data.normalisation if state.data else ""}


def warn_of_their_input(about: dict[str, Any]) -> None:
    """Their scripts feed clips of their own preparation, resized to 64 frames; say where the encoder knows others."""
    if about["normalisation"] not in (THEIR_FRAME, NOT_NORMALISED):
        log.warning(
            "the encoder learnt from coordinates of another frame (%s) than their scripts feed (%s), and will do worse "
            "there than it can; docs/checkpoints.md",
            *(about["normalisation"] or "its checkpoint does not say which", THEIR_FRAME),
        )
    if about["frames"] != THEIR_FRAMES:
        log.warning("the encoder learnt from clips of %d frames; their scripts feed %d", about["frames"], THEIR_FRAMES)


def check_store(store: PackedStore, layout: Layout, protocol: str, frame: str) -> None:
    """ValueError if the encoder cannot read the store's clips, or the store has no such protocol; a warning if its
    clips are in another frame of reference than ``frame``, the one that the encoder learnt from."""
    if (store.skeleton.joint_names, store.max_bodies) != (layout.skeleton.joint_names, layout.max_bodies):
        raise ValueError(
            f"{store.path} has {store.skeleton.num_joints} joints ({store.skeleton.name}) and up to {store.max_bodies} "
            f"bodies, the encoder reads the {layout.skeleton.num_joints} of {layout.skeleton.name} and "
            f"{layout.max_bodies}; name another --dataset"
        )
    if protocol not in store.protocols:
        raise ValueError(f"protocol = {protocol!r} is none of {store.path}; it has {', '.join(store.protocols)}")
    if store.normalisation not in (NOT_NORMALISED, frame):
        log.warning(
            "%s: its clips were normalised (%s). The encoder learnt from coordinates of another frame (%s) and will do "
            "worse on these than it can; docs/checkpoints.md",
            store.path,
            store.normalisation,
            frame,
        )


def config_of(found: ReleasedEncoder, epochs: int, dataset: str) -> Config:
    """Settings of a finished run that this encoder might come from: those of preset paper, a bank that takes features
    first in, first out, and no attack."""
    config = preset_config("paper", dataset, method=OF_RELEASED, backbone=found.backbone)
    settings = config.settings if found.queue is None else replace(config.settings, bank_size=len(found.queue))  # type: ignore[call-arg]
    optim = replace(config.optim, epochs=max(1, epochs))
    return replace(config, encoder=found.config, settings=settings, optim=optim)


def fill_model(model: Any, found: ReleasedEncoder) -> Method:
    """Put what was found into a fresh model of the method OF_RELEASED. The key encoder is a copy of the query encoder
    where the file has none; head and bank are left as they are where it has none."""
    model.query.load_state_dict(found.query, strict=found.has_head)
    model.key.load_state_dict(found.query if found.key is None else found.key, strict=found.has_head)
    if found.queue is not None:
        model.bank.entries.copy_(found.queue)
        model.bank.cursor.fill_(len(found.queue) + found.cursor)  # an epoch of any of their sets fills their queues
    return model


def run_state(config: Config, model: Method, layout: Layout, store: PackedStore | None, frame: str) -> RunState:
    """The checkpoint of a run at its end."""
    names = () if store is None else store.class_names
    fps = 30.0 if store is None else store.fps
    return RunState(
        config=to_plain(config),
        model=model.state_dict(),
        **build_step(config, model).state_dict(),
        position=Position(epoch=config.optim.epochs),
        dataset_checksum=None,
        data=TrainingData(layout.skeleton, layout.max_bodies, names, fps, frame, config.dataset),
    )


def released_state(config: Config, state: RunState) -> dict[str, Tensor]:
    """The encoders and the bank of a run's checkpoint under released names. ValueError as `to_released`."""
    data = state.data or TrainingData.of_store(open_dataset(config.dataset, config.data_root))
    if "bank.momentum" not in state.model:
        raise ValueError("codes of this layout have a key encoder and a bank, and this run has not")
    unit_queue = bool(state.model["bank.momentum"].any())  # the rows of one that learns have any length
    if not isinstance(config.encoder, BiGRUConfig):
        encoder = build_model(anywhere(config), Layout(data.skeleton, data.max_bodies), CPU).representation
        return to_released_graph(state.model, encoder, SUFFIX[config.stream], unit_queue=unit_queue)
    return to_released(
        state.model,
        config.encoder,
        joints=data.skeleton.num_joints,
        bodies=data.max_bodies,
        stream=config.stream,
        unit_queue=unit_queue,
    )


def describe(found: ReleasedEncoder) -> str:
    """What was read, what was not there, and what was left."""
    parts = [f"{found.name or 'the encoder'}, {found.config.says}"]
    if isinstance(found.config, BiGRUConfig):
        parts[0] += f" {'with' if found.config.input_norm else 'without'} input norm"
    if not found.has_head:
        parts.append("its fc is no projection head, so the head is untrained (evaluations do not use it)")
    parts.append("no key encoder, so it is a copy" if found.key is None else "key encoder")
    parts.append("no bank, so it is random" if found.queue is None else f"bank of {len(found.queue):,}")
    if found.unused:
        parts.append(f"not used: {', '.join(found.unused)}")
    return "; ".join(parts)


def main(args: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""

    def command(args: Sequence[str]) -> None:
        tyro.extras.subcommand_cli_from_dict(
            {"load": load, "export": export},
            prog="python -m train.convert",
            description="Read and write checkpoints in the layout of released skeleton-contrast codes.",
            args=args,
            config=(tyro.conf.FlagCreatePairsOff,),
        )

    return run_command(command, args, stopped="stopped; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
