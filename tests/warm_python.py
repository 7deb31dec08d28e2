"""A Python for examples that has imported PyTorch and its like: ``python -m MODULE`` of this clone is a fork of a
server, with the arguments, folder, environment and files of who asks; anything else is an ordinary Python. The imports
take 4 s of a processor, and the pages have dozens of commands.

This file is the server and, as ``python``, who asks it.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import select
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OURS = ("train.", "bench.", "fastmc.")
LARGEST = 1 << 18  # bytes of a command with its environment


@contextmanager
def warm_python() -> Iterator[Path]:
    """Within: a folder for PATH that has ``python``."""
    with tempfile.TemporaryDirectory(prefix="fastmc-") as folder:  # a short name, as sockets want it
        place, command = Path(folder, "socket"), Path(folder, "python")
        me = shlex.join([sys.executable, "-S", "-E", __file__, str(place)])
        command.write_text(f'#!/bin/sh\nexec {me} "$@"\n')
        command.chmod(0o755)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        start = [sys.executable, "-c", f"from tests.warm_python import serve; serve({str(place)!r})"]
        with subprocess.Popen(
            start, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as server:
            assert server.stdin is not None and server.stdout is not None
            assert server.stdout.read(1), "the server did not start"
            yield command.parent
            server.stdin.close()


def serve(place: str) -> None:
    """Answer until the standard input ends."""
    from train.command.worker import PRELOADED

    for module in PRELOADED:
        importlib.import_module(module)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(place)
        listener.listen()
        os.write(1, b"!")
        while True:
            ready, _, _ = select.select([listener, sys.stdin], [], [])
            with suppress(ChildProcessError):  # of those who have answered
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if sys.stdin in ready:
                return
            asked, _ = listener.accept()
            if not os.fork():
                answer(asked)
                return
            asked.close()


def answer(asked: socket.socket) -> None:
    """Run a command in a fork, and tell its exit code."""
    message, files, *_ = socket.recv_fds(asked, LARGEST, 3)
    command = os.fork()
    if command:
        code = os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])
        asked.send(str(code).encode())
        os._exit(0)
    for number, file in enumerate(files):
        os.dup2(file, number)
    request = json.loads(message)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["arguments"]
    sys.path[0] = request["folder"]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def ask(place: str, arguments: list[str]) -> int:
    """The exit code of ``python -m arguments`` as the server ran it."""
    request = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.connect(place)
        socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
        return int(server.recv(16) or 1)


if __name__ == "__main__":
    place, *arguments = sys.argv[1:]
    if arguments[:1] == ["-m"] and arguments[1].startswith(OURS):
        sys.exit(ask(place, arguments[1:]))
    os.execv(sys.executable, [sys.executable, *arguments])
