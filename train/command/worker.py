"""A process that runs one command of this program after the other, each in a fork of itself: python -m
train.command.worker.

Importing PyTorch and what belongs to it takes seconds, which a fork has behind it. It reads a line a command,
{"module", "arguments", "log"} as JSON, and answers with the exit code when the command has ended; `train.command.jobs`
talks to it. Nothing of CUDA is touched before a fork: CUDA does not survive one. Should the process that talks to it be
killed, or should it be killed itself, the command is told to stop.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import sys
import time
import traceback
from typing import Any

from train.engine.stopping import LOOK, stop_without

# What train.run and train.evaluate import, at once or late. Neither of the two, which are run as programs of their own.
PRELOADED = (
    "train.engine.loop",
    "train.runs.report",
    "train.runs.evaluations",
    "fastmc.figures.style",
    "sklearn.metrics",
)


def main() -> int:
    """Serve until the input ends; in a fork, run its command. Returns the exit code of either."""
    parent, me = os.getppid(), os.getpid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what stops a command leaves the worker to tell of its end
    for module in PRELOADED:
        importlib.import_module(module)
    for line in sys.stdin:
        command = json.loads(line)
        child = os.fork()
        if not child:
            stop_without(me)
            return run(command)
        code = wait_for(child, parent)
        if os.getppid() != parent:
            return code  # nobody is there to be told
        print(code, flush=True)
    return 0


def wait_for(child: int, parent: int) -> int:
    """The exit code of a command, which is told to stop should ``parent``, who started this worker, be gone before."""
    told = False
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if not told and os.getppid() != parent:
            told = True
            os.kill(child, signal.SIGINT)
        time.sleep(LOOK / 10)


def run(command: dict[str, Any]) -> int:
    """Run ``python -m module arguments`` in this process; all that it prints goes to the file ``log``."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(command["log"], "w", encoding="utf-8") as log, open(os.devnull, encoding="utf-8") as nothing:
        for number, file in enumerate((nothing, log, log)):
            os.dup2(file.fileno(), number)
    sys.argv = [command["module"], *command["arguments"]]
    try:
        runpy.run_module(command["module"], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
