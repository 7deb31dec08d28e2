"""The run folder: whether what it holds is this run, and who may write to it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from fastmc.checkpoint import CheckpointError, complete
from fastmc.config import CALL_SETTINGS, Config, RunFolderError, differences, load_config, to_plain
from fastmc.data.store import PackedStore
from fastmc.files import lock, read_text, write_json
from fastmc.reading import reading, shown
from fastmc.registry import NotAllowed
from fastmc.state import RunState
from train.engine.record import log

# What may differ between a run and its resumption without changing what it computes.
FREE_SETTINGS = (
    *("data_root", "device", "data.placement", "data.verify", "log.", "evaluation.", "optim.optimizer_impl"),
    *("step.impl", "step.view_impl", "step.compile", "step.cuda_graph", "step.overlap", "step.profile"),
    *("step.check_ranks", "step.rank_timeout", "given", "unfitted"),
)
OF_A_START = (
    *("checkpoints", "config.json", "environment.json", "metrics.csv", "profile", "run.log", "tensorboard", "wandb"),
)
OF_A_RUN = (
    *("curves.png", "report.json", "report.html", "page.pt", "evaluate", "features", "figures", "classifier*.pt"),
    *("encoder.onnx", "encoder.ts", "encoder.safetensors"),
)
"""Patterns of what a run leaves: before its first checkpoint, and after."""
OURS = (*OF_A_START, *OF_A_RUN)


JSON_KINDS: dict[type, str] = {dict: "object", list: "array"}


PAGE = "report.html"
RESULTS = ("metrics.csv", "curves.png", "classifier.pt", PAGE)
"""Of a finished run, beside report.json."""
ACCURACIES = {"knn_top1": "kNN top-1", "linear_top1": "linear top-1", "linear_top5": "linear top-5"}
"""In percent, in report.json, of the encoder and, below ``random_init``, of the untrained one."""
NOT_EVALUATED = "not_evaluated"
"""In their place: why there are none, such as a set without labels."""


def name_of(dataset: str) -> str:
    """A data set's name as part of a file's: of one that is named by its path, its folder's."""
    path = Path(dataset)
    return path.name if path.is_absolute() or ".." in path.parts else dataset


def default_folder(config: Config) -> Path:
    kinds = [config.method] if config.backbone == Config.backbone else [config.method, config.backbone]
    method, seed = "-".join(re.sub(r"[^\w.-]+", ".", kind) for kind in kinds), f"seed{config.seed}"
    return Path("runs") / f"{name_of(config.dataset)}-{config.protocol}-{method}-{config.stream}-{config.preset}-{seed}"


def read_json(path: Path) -> dict[str, Any] | None:
    """The content of a file that a run or an evaluation has written, None if it is not there; RunFolderError if it is
    damaged."""
    return _read_json(path, dict) if path.exists() else None


def read_list(path: Path) -> list[Any] | None:
    """The same of a file that holds a list."""
    return _read_json(path, list) if path.exists() else None


def _read_json(path: Path, kind: type) -> Any:
    with reading(f"{path} is damaged", RunFolderError, remedy="delete it, and the same command makes it anew"):
        found = json.loads(read_text(path))
        if not isinstance(found, kind):
            raise ValueError(f"it holds {shown(found)}, expected a JSON {JSON_KINDS[kind]}")
    return found


def run_settings(config: Config) -> dict[str, Any]:
    """Plain values of all that is said of the run."""
    return {key: value for key, value in to_plain(config).items() if key not in CALL_SETTINGS}


def is_finished(config: Config, data: str, remedy: str | None = None) -> bool:
    """Whether the folder that a config names holds this run, trained, and evaluated in this way on these clips and
    labels (`PackedStore.split_digest`). ``remedy`` as of `RunFolder`.

    Raises:
        RunFolderError: it holds something else.
    """
    return RunFolder(config, remedy).finished_report(data) is not None


class RunFolder:
    """The folder that a config names. Making this object checks it and writes nothing. What began and came to no
    checkpoint is no run: another one may take its place.

    Args:
        remedy: what a user can do where the folder holds another run.
        store: the clips, so that settings which differ since these have changed are told as that.

    Raises:
        RunFolderError: it holds another run, or files that are no run at all. CheckpointError: it holds this run,
            trained on other clips.
    """

    def __init__(self, config: Config, remedy: str | None = None, store: PackedStore | None = None) -> None:
        assert config.out is not None
        self.path, self.restart = config.out, config.restart
        self.remedy = remedy or (
            f"Resume it with --config {self.path / 'config.json'} --out {self.path}, name another folder with --out, "
            "or replace it with --restart"
        )
        self.plain = run_settings(config)
        self.saved: dict[str, Any] | None = None
        self._held: os.stat_result | None = None
        self._again: Callable[[], None] | None = None
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"out = {self.path} is a file; name a folder")
        if self.path.is_dir() and any(entry.name != ".lock" for entry in self.path.iterdir()):
            if not (self.path / "config.json").exists():
                raise RunFolderError(f"out = {self.path} holds files that are no run of fastmc; name another folder")
            try:
                self.saved = run_settings(load_config(self.path, (config.method, config.backbone)))
            except NotAllowed as error:
                raise RunFolderError(f"{self.path} holds a run of something else: {error}") from None
            if not self.restart:
                self._check_same_run(store)

    def _check_same_run(self, store: PackedStore | None) -> None:
        assert self.saved is not None
        changed = [name for name in differences(self.saved, self.plain) if not name.startswith(FREE_SETTINGS)]
        if changed and not self._is_a_start_only:
            if store is not None and not {"dataset", "protocol"} & set(changed):
                self._check_same_clips(store)
            raise RunFolderError(f"{self.path} holds a run with other settings ({', '.join(changed)}). {self.remedy}")
        self.restart = bool(changed)

    def _check_same_clips(self, store: PackedStore) -> None:
        """CheckpointError if the run is of other clips: epochs and bank are fitted to the set, and so are not the fault
        of who gave the command."""
        assert self.saved is not None
        try:
            path, state = RunState.read(self.path / "checkpoints")
        except CheckpointError:
            return
        state.check_dataset(store.content_checksum, path)
        state.check_clips(torch.from_numpy(store.split(self.plain["protocol"])[0]), path)

    @property
    def _is_a_start_only(self) -> bool:
        """Whether the run has left neither a checkpoint nor a result."""
        results = any(path for name in OF_A_RUN for path in self.path.glob(name))
        return not results and not complete(self.path / "checkpoints")

    def finished_report(self, data: str) -> dict[str, Any] | None:
        """The content of report.json, if it has all accuracies of the evaluation that is asked for, on these clips and
        labels, or says why these have none."""
        report = read_json(self.path / "report.json")
        asked = {"evaluation": self.plain["evaluation"], "data": data}
        if report is None or not asked.items() <= report.items():
            return None
        if NOT_EVALUATED in report:
            return report
        found = (report, report.get("random_init"))
        is_whole = all(isinstance(of, dict) and all(isinstance(of.get(k), float) for k in ACCURACIES) for of in found)
        return report if is_whole else None

    def is_complete(self, report: dict[str, Any]) -> bool:
        """Whether all results of a finished run with this report are there."""
        unmade = {"classifier.pt"} if NOT_EVALUATED in report else set()
        return all((self.path / name).exists() for name in RESULTS if name not in unmade)

    @contextmanager
    def begin(self, environment: dict[str, Any]) -> Iterator[None]:
        """Within: this process alone writes to the folder. Deletes the run that is there if it is to start over, and
        after an error before the first checkpoint all that was written; of other files in the folder none is touched.

        Raises:
            RunFolderError: another process trains in it.
        """
        with ExitStack() as locks:
            self._lock(locks)
            try:
                if self.restart:
                    self._delete_run()
                starts = self.path / "environment.json"
                before = read_list(starts) or []
                self._write_settings(environments := [*before, environment])

                def again() -> None:
                    self._lock(locks)
                    self._write_settings(environments)

                self._again = again
                yield
            except BaseException:
                if self._is_a_start_only:
                    self._delete_run()
                    locks.callback(self._remove_if_empty)
                raise
            finally:
                self._again = None

    def make_again(self) -> None:
        """Where the folder or its settings were removed under a run, make them again: what the run leaves is a run.

        Raises:
            RunFolderError: another process trains in it meanwhile.
        """
        if self._again is not None and not (self.path / "config.json").exists():
            log.warning("%s or its settings were removed; they are made again", self.path)
            self._again()

    def _lock(self, locks: ExitStack) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path / ".lock", os.O_WRONLY | os.O_CREAT, 0o666)
        locks.callback(os.close, handle)
        if self._held is not None and os.path.samestat(os.fstat(handle), self._held):
            return
        try:
            lock(handle)
        except BlockingIOError:
            raise RunFolderError(f"another process trains in {self.path}; wait for it or name another --out") from None
        self._held = os.fstat(handle)

    def _write_settings(self, environments: list[dict[str, Any]]) -> None:
        write_json(self.path / "config.json", self.plain)
        write_json(self.path / "environment.json", environments)

    def _remove_if_empty(self) -> None:
        (self.path / ".lock").unlink(missing_ok=True)
        with suppress(OSError):
            self.path.rmdir()

    def _delete_run(self) -> None:
        for path in [path for name in OURS for path in self.path.glob(name)]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
