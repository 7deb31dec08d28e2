"""What `test_ranks.py` starts as the ranks of one run: training of many kinds, and what ranks do to each other.

many_ranks.py cases DATA OUT: forty steps of every case, and the checks of `together`, to OUT/rankN.pt
many_ranks.py gpu DATA OUT: the same steps of OF_GPUS on GPUs, without the checks
many_ranks.py run OUT WORDS...: train.run WORDS, with what this rank writes in OUT/rankN.txt
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fastmc.data.store import PackedStore
from fastmc.encoders.norm import ViewNorm
from fastmc.evaluation.features import represent
from fastmc.methods.base import Batch
from fastmc.random import keyed_generator
from fastmc.ranks import ALONE
from fastmc.views.make import whole_clips
from train import run
from train.command.parse import parse
from train.engine.loop import Pretraining
from train.engine.ranks import Place, Ranks, opened
from train.engine.world import World

STEPS, CLIPS, BANK = 40, 7, 128  # a small bank lets roundings grow fast
"""CLIPS: of a batch, which neither 2 nor 3 ranks divide. Steps count from the one on that has a full bank."""
FEW, FEW_STEPS = ("--bank-size", str(3 * CLIPS)), 10
"""Of what has so small a bank, since ten steps are enough to show that it is the same."""
SLOW = ("--optimizer", "sgd", "--lr", "0.001")
CALM = (*FEW, "--method", "b3", *SLOW)
"""Of encoders whose roundings grow within forty steps until nothing is left to compare."""
SMALL_STGCN = ("--encoder", "4x8", "--blocks", "1", "1", "1", "1")
CASES: dict[str, tuple[str, ...]] = {
    **{method: ("--method", method) for method in ("b1", "b2", "b3", "a2mc")},
    "adamw": ("--optimizer", "adamw", "--lr", "0.002"),
    "stepwise": (*FEW, "--reading", "stepwise"),
    "no norm": (*FEW, "--no-input-norm"),
    "tiled, drawn": (*FEW, "--mix", "tiled", "--mixing", "draw"),
    "mapped": (*FEW, "--placement", "mapped", "--frames-dtype", "float16"),
    "operators": (*FEW, "--impl", "torch", "--view-impl", "torch"),
    # At the paper's rate a bank of 24 clips' keys lets a rounding of half precision grow a thousandfold in these steps.
    "bf16": ("--amp", "bf16", "--bank-lr", "0.1"),
    "fp16": ("--amp", "fp16", "--bank-lr", "0.1"),
    "b3 in bf16": ("--amp", "bf16", "--method", "b3"),
    "agcn": (*CALM, "--backbone", "agcn", "--encoder", "4", "--blocks", "1", "1", "1"),
    "dstanet": (*CALM, "--backbone", "dstanet", "--encoder", "8", "--blocks", "1", "1"),
    "hcn": (*CALM, "--backbone", "hcn", "--encoder", "4", "--frames", "16"),
    "lstm": (*CALM, "--backbone", "lstm", "--encoder", "1x8", "--bidirectional", "--input-norm"),
    "s2s": (*CALM, "--backbone", "s2s", "--encoder", "8", "--levels", "2", "--heads", "2"),
    "stgcn": (*CALM, "--backbone", "stgcn", *SMALL_STGCN),
    "hico": (*FEW, "--method", "hico", "--backbone", "s2s", "--encoder", "8", "--levels", "2", "--heads", "2", *SLOW),
    "cpm": (*FEW, "--method", "cpm", "--mined", "4", "--mining-from", "1", "--backbone", "stgcn", *SMALL_STGCN, *SLOW),
    "aimclr": (*FEW, "--method", "aimclr", "--mining-from", "1", "--backbone", "stgcn", *SMALL_STGCN, *SLOW),
    "hiclr": (*FEW, "--method", "hiclr", "--backbone", "stgcn", *SMALL_STGCN, *SLOW),
    "ascal": (*FEW, "--method", "ascal", "--backbone", "lstm", "--encoder", "1x8", *SLOW),
    "toy method": ("--method", "toy:ToyMethod", "--toy-queue", "24"),
    "toy encoder": ("--backbone", "toy:ToyEncoder", "--toy-width", "4"),
    "both toys": ("--method", "toy:ToyMethod", "--backbone", "toy:ToyEncoder", "--toy-queue", "24"),
}


def config_of(case: str, data_root: Path) -> Any:
    words = ["--dataset", "small", "--data-root", str(data_root), "--protocol", "xsub", "--preset", "tiny"]
    words += ["--device", "cpu", "--batch-size", str(CLIPS), "--feature-dim", "32", "--epochs", "100"]
    given = CASES[case]
    words += [] if "toy:ToyMethod" in given or "--bank-size" in given else ["--bank-size", str(BANK)]
    words += [] if "--frames" in given else ["--frames", "8"]
    words += [] if "--backbone" in given else ["--encoder", "2x16"]
    words += [] if "--optimizer" in given else ["--optimizer", "sgd", "--lr", "0.01"]
    return parse([*words, *given])


OF_GPUS = ("a2mc", "bf16", "fp16", "b3 in bf16", "toy method")


def start(case: str, data_root: Path, world: World) -> Pretraining:
    config, device = config_of(case, data_root), torch.device(world.device or "cpu")
    return Pretraining(config, PackedStore.open(data_root / "small"), Path("nowhere"), device, world)


def advance(pretraining: Pretraining) -> None:
    """A step, over the end of an epoch if need be."""
    if pretraining.batch == pretraining.batches:
        pretraining._start_epoch(pretraining.epoch + 1)
    with closing(pretraining._remaining_batches()) as batches:
        pretraining._advance(*next(batches))


def trained(case: str, data_root: Path, world: World, disturb: Callable[[Pretraining], None] | None = None) -> dict:
    """Numbers of each step, the clips and views of this rank, and in the end the state, and features of all clips."""
    pretraining = start(case, data_root, world)
    if pretraining.stepper.scaling is not None:
        pretraining.stepper.scaling.scale.fill_(2.0**8)  # at the default the first steps overflow and are skipped
    numbers, ids, views = [], [], []
    bank = getattr(pretraining.config.settings, "bank_size", 0)
    steps = FEW_STEPS if CASES[case][: len(FEW)] == FEW else STEPS
    for _ in range(steps + -(-bank // CLIPS)):
        if disturb is not None:
            disturb(pretraining)
        advance(pretraining)
        numbers.append(pretraining.stepper.metrics.clone())
        ids.append(pretraining.stepper.sample.clone())
        views.append(pretraining.stepper._views[:2].clone())
    pretraining.stepper.check()
    pretraining.release()
    return {
        "numbers": torch.stack(numbers[-steps:]),
        "ids": torch.stack(ids),
        "views": torch.stack(views),
        "state": {name: tensor.clone() for name, tensor in pretraining.model.state_dict().items()},
        "features": features_of(pretraining),
    }


@torch.no_grad()
def features_of(pretraining: Pretraining) -> torch.Tensor:
    """(N, D) of the whole clips of the store."""
    data, encoder = pretraining.data, pretraining.model.representation
    clips = data.select(torch.arange(len(data), device=data.device))
    return encoder.eval()(whole_clips(clips, data.skeleton, pretraining.config.frames))


def by_an_ulp(seed: int) -> Callable[[Pretraining], None]:
    """In each step moves every weight by one unit in its last place of float32, up or down, and every gradient likewise
    in the dtype that it is computed in, and what each norm gives by one of its largest: what another order of sums may
    do, of gradients and of statistics. A net with rectifiers needs the last: what is 0 but for rounding may pass them,
    or not."""

    def disturb(pretraining: Pretraining) -> None:
        generator = keyed_generator(seed, pretraining.step)
        with torch.no_grad():
            for copy in pretraining.stepper.copies.values():
                for master in copy.masters:
                    master.mul_(1 + _signs(master, generator) * 2.0**-23)

    def disturb_gradients(pretraining: Pretraining) -> None:
        generator = keyed_generator(seed + 1, pretraining.step)
        for weight in pretraining.stepper._working:
            weight.grad.mul_(1 + _signs(weight, generator) * torch.finfo(weight.dtype).eps)

    def disturb_norm(generator: torch.Generator, _: ViewNorm, __: object, found: torch.Tensor) -> torch.Tensor:
        ulp = found.detach().abs().max() * torch.finfo(torch.float32).eps / 2
        return found + _signs(found, generator) * ulp

    def first(pretraining: Pretraining) -> None:
        if pretraining.step == 0:
            pretraining.stepper._sum_gradients = partial(disturb_gradients, pretraining)
            generator = keyed_generator(seed + 2, 0)
            for network in pretraining.stepper.networks.values():
                for norm in (part for part in network.modules() if isinstance(part, ViewNorm)):
                    norm.register_forward_hook(partial(disturb_norm, generator))
        disturb(pretraining)

    return first


def _signs(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return (torch.randint(2, like.shape, generator=generator) * 2 - 1).to(like.dtype)


def _own_statistics(pretraining: Pretraining) -> None:
    for network in pretraining.stepper.networks.values():
        network.norm.ranks = ALONE


def _own_gradients(pretraining: Pretraining) -> None:
    pretraining.stepper._sum_gradients = lambda: None


MUTANTS = {"own statistics": _own_statistics, "own gradients": _own_gradients}
"""Mistakes that must be seen in the numbers of b3."""


def told(act: Callable[[], object]) -> str:
    """What an action says against itself."""
    try:
        act()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def together(data_root: Path, world: World) -> dict[str, Any]:
    """What ranks find out about each other, and decide together."""
    last = world.size - 1
    found: dict[str, Any] = {}
    pretraining = start("a2mc", data_root, world)
    for _ in range(6):
        advance(pretraining)
    encoder, data = pretraining.model.representation, pretraining.data
    ids = torch.arange(len(data)).flip(0)
    how = {"frames": 8, "ratio": torch.full((len(ids),), 0.9), "position": torch.full((len(ids),), 0.5)}
    for size in (5, 48):  # of 48, one rank has all
        by_all = represent(encoder, data, ids, "joint", batch_size=size, ranks=world, **how)
        alone = represent(encoder, data, ids, "joint", batch_size=size, **how)
        found[f"features in batches of {size}"] = (by_all, alone)
    found["agreed"] = world.agree(world.rank == last, 3 * world.rank, 0)
    found["first"] = world.first(lambda: (data_root / "of the first").exists() or (data_root / "of the first").touch())
    world.agree(0)
    if world.rank == 0:
        (data_root / "of the first").unlink()
    facts = {"settings": {"seed": int(world.rank == last)}, "code": {"commit": "abc" if world.rank < last else "def"}}
    found["facts"] = told(lambda: world.check_same(facts))
    found["same facts"] = told(lambda: world.check_same({"settings": {"seed": 1}}))
    found["equal"] = told(lambda: world.check_equal(pretraining.model.state_dict(), "now"))
    if world.rank == last:
        pretraining.model.bank.entries[3, 5] *= 1 + 2.0**-23
    found["unequal"] = told(lambda: world.check_equal(pretraining.model.state_dict(), "now"))
    found["a fault"] = _fault(data_root, world)
    found["an overflow"] = _overflow(data_root, world)
    found["compiled"] = {case: _compiled(case, data_root, world) for case in COMPILED}
    found["who gathers nothing"] = told(lambda: _without_gather(data_root, world))
    return found


COMPILED = ("b3", "lstm", "stgcn", "agcn", "dstanet", "hcn")


def _compiled(case: str, data_root: Path, world: World) -> tuple[list[str], bool]:
    """Which of the encoder's functions stay as they are under torch.compile, and whether the first steps have the
    numbers that they have without it. Traced as for a GPU; no code is generated, so that the bits are the same."""
    torch._dynamo.reset()  # it counts how often a function is compiled, of all cases together
    plain, ours = (start(case, data_root, world) for _ in range(2))
    left = ours.stepper.compile_around("eager")
    for _ in range(2 if "--bank-size" in CASES[case] else 1):
        advance(plain)
        advance(ours)
    return left, torch.equal(plain.stepper.metrics, ours.stepper.metrics)


def _fault(data_root: Path, world: World) -> tuple[str, int, bool]:
    """Features of the last rank are no numbers in step 8: what is said, where the rank stands, and whether the weights
    are those of before."""
    pretraining = start("a2mc", data_root, world)
    for _ in range(8):
        advance(pretraining)
    before = {name: tensor.clone() for name, tensor in pretraining.model.state_dict().items()}
    if world.rank == world.size - 1:
        make = Batch.make

        def broken(self: Batch, *views: Any, of: Any = None) -> torch.Tensor:
            return make(self, *views, of=of).mul_(torch.nan)

        Batch.make = broken  # type: ignore[method-assign]
    advance(pretraining)
    if world.rank == world.size - 1:
        Batch.make = make  # type: ignore[method-assign]
    now = pretraining.model.state_dict()
    kept = all(torch.equal(tensor, now[name]) for name, tensor in before.items())
    return told(pretraining.stepper.check), pretraining.step, kept


def _overflow(data_root: Path, world: World) -> list[float]:
    """The gradient scale after each of four steps, in the second of which the last rank's gradient overflows."""
    pretraining = start("fp16", data_root, world)
    scaling = pretraining.stepper.scaling
    assert scaling is not None
    scaling.scale.fill_(2.0**8)
    stepper, found = pretraining.stepper, []
    whole = stepper._sum_gradients

    def overflowing() -> None:
        if world.rank == world.size - 1:
            stepper._working[0].grad.view(-1)[0] = torch.inf
        whole()

    for n in range(4):
        stepper._sum_gradients = overflowing if n == 1 else whole
        advance(pretraining)
        found.append(float(scaling.scale))
    return found


def _without_gather(data_root: Path, world: World) -> None:
    pretraining = start("both toys", data_root, world)

    def not_gathered(self: Batch, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tensors

    gather, Batch.gather = Batch.gather, not_gathered  # type: ignore[method-assign]
    try:
        advance(pretraining)
    finally:
        Batch.gather = gather  # type: ignore[method-assign]


def gpu(data_root: Path, out: Path) -> None:
    """One rank alone is a world of one, that exchanges what it has with itself."""
    place = Place.of_environment()
    world = Ranks(place, "cuda", 120.0)
    found = {case: trained(case, data_root, world) for case in OF_GPUS}
    graph = start("bf16", data_root, world).graph
    torch.save({"cases": found, "graph": tuple(graph), "says": world.says}, out / f"rank{world.rank}.pt")
    world.close()


def cases(data_root: Path, out: Path) -> None:
    with opened(Place.of_environment(), "cpu", 120.0) as world:
        found = {case: trained(case, data_root, world) for case in CASES}
        found |= {name: trained("b3", data_root, world, undo) for name, undo in MUTANTS.items()}
        torch.save({"cases": found, "together": together(data_root, world)}, out / f"rank{world.rank}.pt")


def main(words: list[str]) -> int:
    torch.set_num_threads(1)
    if words[0] != "run":
        {"cases": cases, "gpu": gpu}[words[0]](Path(words[1]), Path(words[2]))
        return 0
    return audited(Path(words[1]), words[2:])


WRITING = {"os.mkdir": 0, "os.rename": 0, "os.remove": 0, "os.rmdir": 0, "os.truncate": 0, "shutil.rmtree": 0}
"""Events of Python's audit hooks that change files, and which argument names the file."""


def audited(out: Path, words: list[str]) -> int:
    """train.run, by a rank that notes its process and all that it changes below the working folder."""
    rank, here = os.environ.get("RANK", "0"), str(Path.cwd())
    (out / f"rank{rank}.pid").write_text(str(os.getpid()))
    note = partial(os.write, os.open(out / f"rank{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND))

    def hear(event: str, arguments: tuple) -> None:
        path = None
        if event == "open" and isinstance(arguments[0], str):
            writes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
            path = arguments[0] if writes else None
        elif event in WRITING:
            path = os.fspath(arguments[WRITING[event]])
        if path is not None and os.path.abspath(path).startswith(here):
            note(f"{event} {path}\n".encode())

    sys.addaudithook(hear)
    if (out / "dies").exists() and rank == "1":
        _die_at(7, out / "dies")
    return run.main(words)


def _die_at(step: int, mark: Path) -> None:
    """Once, by kill -9, as soon as a run has made this step."""
    after = Pretraining._advance

    def advance_and_die(self: Pretraining, *batch: Any) -> bool:
        if self.step == step:
            mark.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return after(self, *batch)

    Pretraining._advance = advance_and_die  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
