"""Pickles of plain data are read; no other pickle is, and nothing that one names is run."""

from __future__ import annotations

import datetime
import os
import pickle
import subprocess
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest

from fastmc.data.bytes.safe_pickle import SafePickleError, load_plain


def write(tmp_path, content):
    file = tmp_path / "label.pkl"
    file.write_bytes(content)
    return file


def same(a, b):
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, np.ndarray | np.generic):
        return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)
    return type(a) is type(b) and a == b


PLAIN = [
    (["S001C001P001R001A001.skeleton", "é"], [0, 59]),
    [["a"], [True, None, -1.5, 2**70, b"\xff", b""]],
    {"names": ["a"], 3: {"deep": (1, [2, (3,)])}},
    (["a", "b"], np.array([3, 4])),
    (["a", "b"], [np.int64(3), np.float32(0.5), np.bool_(True)]),
    [np.array([[1.5, 2.5], [3.5, 4.5]], np.float32).T, np.array([], np.int32), np.array(7, ">i2")],
    [np.array(["ab", "ü"]), np.array([b"ab", b"c"]), np.array([True, False]), np.str_("x")],
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_come_back(tmp_path, protocol):
    for value in PLAIN:
        assert same(load_plain(write(tmp_path, pickle.dumps(value, protocol))), value)


def test_what_older_numpy_wrote_is_read(tmp_path):
    content = pickle.dumps(np.arange(3), 2)
    assert b"numpy._core" in content
    assert load_plain(write(tmp_path, content.replace(b"numpy._core", b"numpy.core"))).tolist() == [0, 1, 2]


def python2_array(values):
    """As Python 2 pickled an int32 array in protocol 0: its bytes are a str, and the dtype's flags are integers."""
    raw = repr(np.array(values, "<i4").tobytes())[1:]
    return (
        "cnumpy.core.multiarray\n_reconstruct\np0\n(cnumpy\nndarray\np1\n(I0\ntp2\nS'b'\np3\ntp4\nRp5\n"
        f"(I1\n(I{len(values)}\ntp6\ncnumpy\ndtype\np7\n(S'i4'\np8\nI0\nI1\ntp9\nRp10\n"
        f"(I3\nS'<'\np11\nNNNI-1\nI-1\nI0\ntp12\nbI00\nS{raw}\np13\ntp14\nb"
    )


def test_python2_pickles_are_read(tmp_path):
    names = "(lp20\nS'S001C001P001R001A001.skeleton'\np21\naS'caf\\xe9'\np22\na"
    content = (f"({names}{python2_array([200, 7])}tp30\n.").encode("latin1")
    names, labels = load_plain(write(tmp_path, content))
    assert names == ["S001C001P001R001A001.skeleton", "café"]
    assert (labels.tolist(), labels.dtype) == ([200, 7], np.dtype("<i4"))


def test_what_windows_made_of_a_text_pickle_is_undone(tmp_path):
    """Of Python 3's and of Python 2's, whose strings must end in a quote; a CR that is in a string stays."""
    value = (["S001C001P001R001A001.skeleton", "é"], [0, 1.5], np.arange(3))
    assert same(load_plain(write(tmp_path, pickle.dumps(value, 0).replace(b"\n", b"\r\n"))), value)
    assert load_plain(write(tmp_path, b"(lp0\r\nS'a'\r\np1\r\naI7\r\na.")) == ["a", 7]
    assert load_plain(write(tmp_path, b"(lp0\nVa\r\np1\na.")) == ["a\r"]


class Runs:
    """Pickled, it is a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    ("function", "named"),
    [(os.system, r"(posix|nt)\.system"), (subprocess.check_call, r"\w+\.check_call"), (eval, r"\w*builtin\w*\.eval")],
)
def test_malicious_pickle_does_not_run(tmp_path, function, named, protocol):
    trace = tmp_path / "trace"
    command = f"open({str(trace)!r}, 'w')" if function is eval else f"touch {trace}"
    arguments = ([["touch", str(trace)]],) if function is subprocess.check_call else ((command,),)
    content = pickle.dumps((["a"], Runs(function, *arguments[0])), protocol)
    pickle.loads(content)  # it would run
    assert trace.exists()
    trace.unlink()
    with pytest.raises(SafePickleError, match=f"it holds {named}, which is not plain data"):
        load_plain(write(tmp_path, content))
    assert not trace.exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Path("a"), r"pathlib\.\w+"),
        (OrderedDict(a=1), r"collections\.OrderedDict"),
        (Counter("a"), r"collections\.Counter"),
        (datetime.date(2020, 1, 1), r"datetime\.date"),
        (slice(3), r"(builtins|__builtin__)\.slice"),
        (np.array([{}, None]), "dtype 'O8'"),
        (np.array(["2020-01-01"], "M8[D]"), "dtype 'M8'"),
        (np.array([(1, 2.0)], [("a", int), ("b", float)]), "dtype 'V16'"),
        (np.random.default_rng(0), r"numpy\.random"),
        ({1, 2}, r"it holds (a set|\w*builtin\w*.set)"),
        (bytearray(b"ab"), r"it holds (a bytearray|\w*builtin\w*.bytearray)"),
        (np.dtype("i8"), "it holds a dtype"),
        (np.ndarray, "it holds a class or function"),
        ({(1, 2): 3}, "it holds a dict"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_what_is_not_plain_is_named(tmp_path, value, message, protocol):
    with pytest.raises(SafePickleError, match=message):
        load_plain(write(tmp_path, pickle.dumps([value], protocol)))


def change(content, before, after):
    assert before in content
    return content.replace(before, after)


ARRAY = pickle.dumps(np.arange(3, dtype="<i4"), 2)
FORGED = {
    # more elements than bytes: numpy must never see these sizes
    "too large": (change(ARRAY, b"K\x03\x85", b"M\xff\xff\x85"), r"array int32 \(65535,\) of 12 bytes"),
    "negative": (change(ARRAY, b"K\x03\x85", b"J\xfd\xff\xff\xff\x85"), r"array int32 \(-3,\)"),
    "other dtype": (change(ARRAY, b"X\x02\x00\x00\x00i4", b"X\x02\x00\x00\x00O8"), "dtype 'O8'"),
    "no size": (change(ARRAY, b"X\x02\x00\x00\x00i4", b"X\x02\x00\x00\x00S0"), "without room"),
    "function changed": (b"\x80\x02cnumpy\ndtype\n}X\x05\x00\x00\x00_makeK\x01sb.", "changes a function"),
    "class made": (b"\x80\x02cnumpy\nndarray\n)\x81.", "not a readable pickle"),
    "unfinished array": (b"\x80\x02cnumpy\nndarray\n)R.", "it holds an array without content"),
    "persistent": (b"\x80\x02K\x01Q.", "not a readable pickle|persistent"),
    "codec": (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.", "encodes text as 'rot13'"),
    "deeply nested": (b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".", "not a readable pickle: RecursionError"),
    "empty": (b"", "not a readable pickle: EOFError"),
    "text": (b"a,b,c\n", "not a readable pickle"),
    "truncated": (pickle.dumps((["a"] * 9, list(range(9))))[:-8], "not a readable pickle"),
}


@pytest.mark.parametrize("forged", FORGED)
def test_broken_and_forged_pickles(tmp_path, forged):
    content, message = FORGED[forged]
    with pytest.raises(SafePickleError, match=message):
        load_plain(write(tmp_path, content))


def test_shared_lists_are_converted_once(tmp_path):
    value = [np.arange(2)]
    for _ in range(200):  # 2^200 places
        value = [value, value]
    loaded = load_plain(write(tmp_path, pickle.dumps(value)))
    for _ in range(200):
        assert loaded[0] is loaded[1]
        loaded = loaded[0]
    assert loaded[0].tolist() == [0, 1]


def test_a_small_pickle_cannot_ask_for_much_memory(tmp_path):
    """bytes(n) of a number makes n of them: the content of an array must be there."""
    frombuffer = np.arange(3).__reduce_ex__(5)[0]
    huge = Runs(frombuffer, 2**40, np.dtype("u1"), (2**40,), "C")
    with pytest.raises(SafePickleError, match="it makes an array of a int"):
        load_plain(write(tmp_path, pickle.dumps(huge, 5)))


def test_a_tuple_that_holds_itself(tmp_path):
    inner: list = []
    value = (inner, np.arange(2))
    inner.append(value)
    with pytest.raises(SafePickleError, match="a tuple that holds itself"):
        load_plain(write(tmp_path, pickle.dumps(value)))
    shared = (1, np.arange(2))
    assert same(load_plain(write(tmp_path, pickle.dumps([shared, shared]))), [shared, shared])
