"""Whatever is wrong with a file, the command says so in a line that names it; --debug shows where it was found."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from fastmc.config import Config, RunFolderError, load_config, to_plain
from fastmc.data.formats.ctrgcn import import_ctrgcn
from fastmc.data.formats.npz import import_npz
from fastmc.data.formats.stgcn import import_stgcn
from fastmc.data.packing import PrepareError
from fastmc.data.store import PackedStore, StoreError
from fastmc.reading import explain, reading, shown
from fastmc.skeleton import NTU25
from tests.fuzz.formats import FORMATS, npy_bytes
from train import convert, embed, evaluate, figures, prepare, run
from train.command.clips import ArrayKind, find_inputs
from train.engine.record import read_metrics
from train.runs.folder import RunFolder, read_json
from train.tables import __main__ as tables


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (ValueError("what it is"), "what it is"),
        (AttributeError("'bytes' object has no attribute 'shape'"), "AttributeError: 'bytes' object has"),
        (MemoryError(), "it takes more memory than there is"),
        (RecursionError("maximum recursion depth exceeded"), "RecursionError: maximum"),
        (KeyError("label"), "'label' is missing"),
        (Unprintable(), "Unprintable: no text"),
        (EOFError(), "EOFError: "),
        (ValueError("a\nb \ud800"), r"a b \\ud800"),
    ],
)
def test_any_failure_becomes_the_error_that_is_named(failure, said):
    message = f"set.npz is damaged: {said}.*; make it anew$"
    boundary = reading("set.npz is damaged", StoreError, remedy="make it anew")
    with pytest.raises(StoreError, match=message) as caught, boundary:
        raise failure
    assert caught.value.__cause__ is failure
    str(caught.value).encode()


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), SystemExit(2), StoreError("mine")])
def test_what_is_no_failure_of_reading_passes(failure):
    with pytest.raises(type(failure)) as caught, reading("set.npz", ValueError, passing=(StoreError,)):
        raise failure
    assert caught.value is failure


def test_messages_are_short():
    assert len(explain(ValueError("x" * 10**6))) < 400
    for value in ("x" * 10**6, b"x" * 10**6, [0] * 10**6, 10**5000, [10**5000]):
        assert len(shown(value)) < 400


def zip_of(members, method=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def header(text, data=b""):
    text = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def shape(text):
    return header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {text}}}")


HEADERS = {
    "text": b"not an array",
    "pickle": pickle.dumps({}),
    "terabytes": shape("(1, 3, 1000000000, 25, 1000)"),
    "shape beyond 64 bits": shape("(1, 3, 99999999999999999999, 25, 1)"),
    "negative": shape("(-1, 3, 4, 25, 1)"),
    "deep": shape("(" * 500),
    "no dict": header("[]"),
    "dtype of ten parts": header("{'descr': [[]], 'fortran_order': False, 'shape': ()}"),
}


def says(capsys, command, path):
    """The command ends with one line that names the file."""
    assert command() == 1
    error = capsys.readouterr().err
    assert f"{path}" in error and "error: " in error
    assert "Traceback" not in error and len(error) < 3000


LABELS = {
    "a long integer": pickle.dumps((["x", "y"], [0, 10**5000])),
    "a long integer as a name": pickle.dumps(([10**5000, "y"], [0, 1])),
    "a long text for a label": pickle.dumps((["x", "y"], ["a" * 10**6, 1])),
    "half a character": pickle.dumps((["\ud800", "y"], [0, 1])),
    "a number twice over": pickle.dumps(5),
}


def members_of(kind):
    with zipfile.ZipFile(io.BytesIO(FORMATS[kind].seeds()[0]["set.npz"])) as archive:
        return {name.removesuffix(".npy"): archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize(
    ("kind", "key", "flags"), [("npz", "x", ("--train", "split=train")), ("ctrgcn", "x_train", ())]
)
def test_npz_files(kind, key, flags, tmp_path, capsys):
    file, members = tmp_path / "set.npz", members_of(kind)
    faulty = [zip_of(members | {key: content}) for content in HEADERS.values()]
    lzma = bytearray(zip_of(members, zipfile.ZIP_LZMA))
    at = lzma.index(f"{key}.npy".encode()) + 40
    lzma[at : at + 40] = b"\xff" * 40
    faulty.append(bytes(lzma))
    if kind == "npz":
        faulty.append(zip_of(members | {"label": b"text"}))
        faulty.append(zip_of(members | {"name": npy_bytes(np.full(3, 0x7FFFFFFF, "<u4").view("U1"))}))
    for content in faulty:
        file.write_bytes(content)
        command = [kind, "--file", str(file), "--out", str(tmp_path / "out"), *flags]
        says(capsys, lambda command=command: prepare.main(command), file)


@pytest.mark.parametrize("faults", [HEADERS, LABELS], ids=["npy", "pickle"])
def test_npy_and_pickle_files(faults, tmp_path, capsys):
    for name, content in FORMATS["npy"].seeds()[0].items():
        (tmp_path / name).write_bytes(content)
    file = tmp_path / ("train.npy" if faults is HEADERS else "train.pkl")
    pairs = [str(tmp_path / f"{part}.{kind}") for part in ("train", "test") for kind in ("npy", "pkl")]
    command = ["npy", "--train", *pairs[:2], "--test", *pairs[2:], "--out", str(tmp_path / "out")]
    for content in faults.values():
        file.write_bytes(content)
        says(capsys, lambda: prepare.main(command), file)


DEEP = "[" * 100_000
META = {
    "a list": "[]",
    "deep": DEEP,
    "fps of words": {"fps": "often"},
    "fps of 400 digits": {"fps": 10**400},
    "no protocols": {"protocols": []},
    "protocol of numbers": {"protocols": {"xsub": 5}},
    "half a character": {"class_names": ["\ud800", "y"]},
    "class names in one text": {"class_names": "xy"},
    "a skeleton of lists": {"skeleton": []},
    "counts of words": {"counts": {"clips": "x", "rows": 1}},
    "normalisation of numbers": {"normalisation": 7},
}


def small_store(folder):
    for name, content in FORMATS["store"].seeds()[0].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder / "toy"


def test_meta_json_of_a_store(tmp_path, capsys):
    path = small_store(tmp_path)
    meta = json.loads((path / "meta.json").read_text())
    for text in META.values():
        (path / "meta.json").write_text(text if isinstance(text, str) else json.dumps(meta | text))
        says(capsys, lambda: prepare.main(["info", str(path)]), path)


@pytest.mark.parametrize("name", ["frames", "names", "label"])
def test_arrays_of_a_store(name, tmp_path, capsys):
    path = small_store(tmp_path)
    for content in (*HEADERS.values(), zip_of({"x": npy_bytes(np.ones(3))})):
        (path / f"{name}.npy").write_bytes(content)
        says(capsys, lambda: prepare.main(["info", str(path)]), f"{path} is corrupt or incomplete: {name}.npy: ")
    if name == "names":
        for names in (["b", "a", "c"], ["a", "a", "b"], ["a", "b", "c\n"], [1, 2, 3]):
            np.save(path / "names.npy", np.array(names))
            with pytest.raises(StoreError, match=f"{path} is corrupt"):
                PackedStore.open(path)


def test_skipped_json_of_a_store(tmp_path, capsys):
    path = small_store(tmp_path)
    for text in ("[1]", '[{"name": 1}]', "{}{", DEEP, '[{"name": "a", "reason": "b"}]', "5"):
        (path / "skipped.json").write_text(text)
        says(capsys, lambda: prepare.main(["info", str(path)]), path / "skipped.json")


def test_json_of_a_run_folder(tmp_path):
    for text in ("[]", DEEP, '{"a"', "5", "9" * 5000, "\xff"):
        for name, read in (("report.json", read_json), ("config.json", lambda path: load_config(path.parent))):
            (tmp_path / name).write_text(text, encoding="latin1")
            with pytest.raises(RunFolderError, match=f"{tmp_path / name} is damaged"):
                read(tmp_path / name)
    config = replace(Config(), out=tmp_path / "run")
    for text in (None, "{", "{}", "7", DEEP):
        run = RunFolder(config).begin({"python": text or "3.11"})
        if text is None:
            with run:
                continue
        (tmp_path / "run" / "environment.json").write_text(text)
        (tmp_path / "run" / "report.json").write_text("{}")  # else it is a start that left nothing, and is deleted
        with pytest.raises(RunFolderError, match=r"environment\.json is damaged: .*; delete it"), run:
            pass


def test_settings_of_a_run_folder(tmp_path):
    for change in ({"optim": None}, {"optim": []}, {"data_root": {}}, {"frames": 10**400}, {"augment": {"x": 1}}):
        (tmp_path / "config.json").write_text(json.dumps(to_plain(Config()) | change))
        with pytest.raises(RunFolderError, match=f"{tmp_path}/config.json is damaged or not of fastmc"):
            load_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"epoch,step\n1,2\n1,x\n", "row 2: "),
        (b"epoch,step\n1,2,3\n", "row 1: "),
        (b"epoch,step\n1,inf\n", "row 1: "),
        (b"epoch\n1\n", "row 1: "),
        (b"epoch,step\n1,2\n\xff,3\n", ".*byte 0xff in position 15"),
        (b"epoch,step\n1,2\n1,2\0\n", "row 2: "),
        (b"epoch,step\n1," + b"2" * 200_000 + b"\n", "row 1: "),
    ],
)
def test_metrics_of_a_run_folder(text, fault, tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=f"{path} is damaged: {fault}"):
        read_metrics(path)


COMMANDS = {
    "run": (run.main, ("--dataset", "nowhere", "--data-root", "nowhere")),
    "prepare": (prepare.main, ("info", "nowhere")),
    "evaluate": (evaluate.main, ("knn", "--run", "nowhere")),
    "embed": (embed.main, ("--run", "nowhere", "--input", "nowhere", "--out", "out.npz")),
    "convert": (convert.main, ("export", "--run", "nowhere", "--out", "x.pt")),
    "figures": (figures.main, ("--run", "nowhere")),
    "tables": (tables.main, ("--table", "7")),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_debug_shows_the_traceback(name, capsys):
    main, arguments = COMMANDS[name]
    assert main([*arguments]) == 1
    said = capsys.readouterr()
    plain = said.out + said.err
    assert "error: " in plain and "Traceback" not in plain
    assert main([*arguments, "--debug"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def read_by(reader, file, folder):
    """Give the file to a reader of arrays, as what it reads."""
    embedder = SimpleNamespace(moves=lambda *_: True, skeleton=NTU25)
    good = folder / "good.npy"
    np.save(good, np.ones((2, 3, 4, 25, 1), np.float32))
    labels = folder / "labels.pkl"
    labels.write_bytes(pickle.dumps((["a", "b"], [0, 1])))
    readers = {
        "npz": lambda: import_npz(file, folder / "out"),
        "ctrgcn": lambda: import_ctrgcn(file, folder / "out"),
        "npy, array": lambda: import_stgcn((file, labels), (good, labels), folder / "out"),
        "npy, labels": lambda: import_stgcn((good, file), (good, labels), folder / "out"),
        "embed": lambda: find_inputs(file, embedder, True, ArrayKind(NTU25)),
    }
    return readers[reader]()


OBJECTS = {"pickle": lambda: pickle.dumps([1]), "array": lambda: npy_bytes(np.array([{}], object))}
OBJECTS["member"] = lambda: zip_of(
    {key: OBJECTS["array"]() for key in ("x", "num_frames", "label", "x_train", "y_train")}
)


@pytest.mark.parametrize("content", OBJECTS)
@pytest.mark.parametrize(
    ("reader", "suffix"),
    [
        *(("npz", ".npz"), ("ctrgcn", ".npz"), ("npy, array", ".npy"), ("npy, labels", ".npy")),
        *(("embed", ".npz"), ("embed", ".npy")),
    ],
)
def test_no_reader_advises_to_load_objects_unsafely(tmp_path, reader, suffix, content):
    file = tmp_path / f"set{suffix}"
    file.write_bytes(OBJECTS[content]())
    with pytest.raises((ValueError, PrepareError)) as caught:
        read_by(reader, file, tmp_path)
    said = str(caught.value)
    assert str(file) in said and "allow_pickle" not in said and "unsafe" not in said
    if content == "pickle" and reader != "ctrgcn":  # which opens a zip file, and says that it is none
        assert "it holds Python objects, which are never loaded; save plain numbers or strings" in said
