"""Whatever is wrong with a file, the command says so in a line that names it; --debug shows where it was found."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile

import numpy as np
import pytest

from fastmc.config import Config, RunFolderError, load_config, to_plain
from fastmc.data.store import PackedStore, StoreError
from fastmc.reading import explain, load_array, reading, shown
from tests.fuzz.formats import FORMATS, npy_bytes
from train import embed, evaluate, figures, prepare
from train.engine.record import read_metrics
from train.runs.folder import read_json
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


def damaged_lzma(members):
    content = bytearray(zip_of(members, zipfile.ZIP_LZMA))
    at = content.index(b"x.npy" if "x" in members else b"x_train.npy") + 40
    content[at : at + 40] = b"\xff" * 40
    return bytes(content)


def npz_members():
    with zipfile.ZipFile(io.BytesIO(FORMATS["npz"].seeds()[0]["set.npz"])) as archive:
        return {name.removesuffix(".npy"): archive.read(name) for name in archive.namelist()}


def ctrgcn_members():
    with zipfile.ZipFile(io.BytesIO(FORMATS["ctrgcn"].seeds()[0]["set.npz"])) as archive:
        return {name.removesuffix(".npy"): archive.read(name) for name in archive.namelist()}


NPZ = {
    **{name: lambda content=content: zip_of(npz_members() | {"x": content}) for name, content in HEADERS.items()},
    "label is no array": lambda: zip_of(npz_members() | {"label": b"text"}),
    "damaged lzma": lambda: damaged_lzma(npz_members()),
    "names that are no text": lambda: zip_of(
        npz_members() | {"name": npy_bytes(np.full(3, 0x7FFFFFFF, "<u4").view("U1"))}
    ),
}
CTRGCN = {
    **{
        name: lambda content=content: zip_of(ctrgcn_members() | {"x_train": content})
        for name, content in HEADERS.items()
    },
    "damaged lzma": lambda: damaged_lzma(ctrgcn_members()),
}


def says(capsys, command, path):
    """The command ends with one line that names the file."""
    assert command() == 1
    error = capsys.readouterr().err
    assert f"{path}" in error and "error: " in error
    assert "Traceback" not in error and len(error) < 3000


@pytest.mark.parametrize("fault", NPZ)
def test_npz_files(fault, tmp_path, capsys):
    file = tmp_path / "set.npz"
    file.write_bytes(NPZ[fault]())
    command = ["npz", "--file", str(file), "--out", str(tmp_path / "out"), "--train", "split=train"]
    says(capsys, lambda: prepare.main(command), file)


@pytest.mark.parametrize("fault", CTRGCN)
def test_ctrgcn_files(fault, tmp_path, capsys):
    file = tmp_path / "set.npz"
    file.write_bytes(CTRGCN[fault]())
    says(capsys, lambda: prepare.main(["ctrgcn", "--file", str(file), "--out", str(tmp_path / "out")]), file)


LABELS = {
    "a long integer": pickle.dumps((["x", "y"], [0, 10**5000])),
    "a long integer as a name": pickle.dumps(([10**5000, "y"], [0, 1])),
    "a long text for a label": pickle.dumps((["x", "y"], ["a" * 10**6, 1])),
    "half a character": pickle.dumps((["\ud800", "y"], [0, 1])),
    "a number twice over": pickle.dumps(5),
}


@pytest.mark.parametrize("fault", [*HEADERS, *LABELS])
def test_npy_and_pickle_files(fault, tmp_path, capsys):
    for name, content in FORMATS["npy"].seeds()[0].items():
        (tmp_path / name).write_bytes(content)
    file = tmp_path / ("train.npy" if fault in HEADERS else "train.pkl")
    file.write_bytes(HEADERS[fault] if fault in HEADERS else LABELS[fault])
    pairs = [str(tmp_path / f"{part}.{kind}") for part in ("train", "test") for kind in ("npy", "pkl")]
    command = ["npy", "--train", *pairs[:2], "--test", *pairs[2:], "--out", str(tmp_path / "out")]
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


@pytest.mark.parametrize("fault", META)
def test_meta_json_of_a_store(fault, tmp_path, capsys):
    path = small_store(tmp_path)
    meta = json.loads((path / "meta.json").read_text())
    text = META[fault]
    (path / "meta.json").write_text(text if isinstance(text, str) else json.dumps(meta | text))
    says(capsys, lambda: prepare.main(["info", str(path)]), path)


@pytest.mark.parametrize("name", ["frames", "names", "label"])
@pytest.mark.parametrize("fault", [*HEADERS, "archive"])
def test_arrays_of_a_store(name, fault, tmp_path, capsys):
    path = small_store(tmp_path)
    (path / f"{name}.npy").write_bytes(HEADERS.get(fault) or zip_of({"x": npy_bytes(np.ones(3))}))
    says(capsys, lambda: prepare.main(["info", str(path)]), f"{path} is corrupt or incomplete: {name}.npy: ")


@pytest.mark.parametrize("text", ["[1]", '[{"name": 1}]', "{}{", DEEP, '[{"name": "a", "reason": "b"}]', "5"])
def test_skipped_json_of_a_store(text, tmp_path, capsys):
    path = small_store(tmp_path)
    (path / "skipped.json").write_text(text)
    says(capsys, lambda: prepare.main(["info", str(path)]), path / "skipped.json")


def test_names_of_a_store_are_unique_and_sorted(tmp_path):
    path = small_store(tmp_path)
    for names in (["b", "a", "c"], ["a", "a", "b"], ["a", "b", "c\n"], [1, 2, 3]):
        np.save(path / "names.npy", np.array(names))
        with pytest.raises(StoreError, match=f"{path} is corrupt"):
            PackedStore.open(path)


FOLDER_JSON = {
    "a list": "[]",
    "deep": DEEP,
    "cut": '{"a"',
    "a number": "5",
    "a long number": "9" * 5000,
    "bytes": "\xff",
}


@pytest.mark.parametrize("fault", FOLDER_JSON)
@pytest.mark.parametrize("read", [read_json, lambda path: load_config(path.parent)], ids=["report.json", "config.json"])
def test_json_of_a_run_folder(read, fault, tmp_path):
    path = tmp_path / ("report.json" if read is read_json else "config.json")
    path.write_text(FOLDER_JSON[fault], encoding="latin1")
    with pytest.raises(RunFolderError, match=f"{path} is damaged"):
        read(path)


@pytest.mark.parametrize(
    "change",
    [{"optim": None}, {"optim": []}, {"data_root": {}}, {"frames": 10**400}, {"seed": "1"}, {"augment": {"x": 1}}],
)
def test_settings_of_a_run_folder(change, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(to_plain(Config()) | change))
    with pytest.raises(RunFolderError, match=f"{tmp_path}/config.json is damaged or not of fastmc"):
        load_config(tmp_path)


@pytest.mark.parametrize("text", ["{", "{}", "7", DEEP])
def test_environment_json_of_a_run_folder(text, tmp_path):
    from dataclasses import replace

    from train.runs.folder import RunFolder

    config = replace(Config(), out=tmp_path / "run")
    with RunFolder(config).begin({"python": "3.11"}):
        pass
    (tmp_path / "run" / "environment.json").write_text(text)
    run = RunFolder(config).begin({"python": "3.12"})
    with pytest.raises(RunFolderError, match=r"environment\.json is damaged: .*; delete it"), run:
        pass


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


def test_a_file_of_objects_is_never_loaded(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match="it holds objects, which are never loaded"):
        load_array(tmp_path / "a.npy")


COMMANDS = {
    "prepare": (prepare.main, ("info", "nowhere")),
    "evaluate": (evaluate.main, ("knn", "--run", "nowhere")),
    "embed": (embed.main, ("--run", "nowhere", "--input", "nowhere", "--out", "out.npz")),
    "figures": (figures.main, ("--run", "nowhere")),
    "tables": (tables.main, ("--table", "7")),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_debug_shows_the_traceback(name, capsys):
    main, arguments = COMMANDS[name]
    assert main([*arguments]) == 1
    plain = capsys.readouterr().err
    assert "error: " in plain and "Traceback" not in plain
    assert main([*arguments, "--debug"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_debug_of_run_and_convert(capsys):
    from train import convert, run

    assert run.main(["--dataset", "nowhere", "--data-root", "nowhere", "--debug"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err
    assert convert.main(["export", "--run", "nowhere", "--out", "x.pt", "--debug"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err
