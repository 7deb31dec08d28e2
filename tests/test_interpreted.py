"""Runs the folder ``interpreted``, whose kernels Triton must interpret, in processes of their own, and there again what
holds for a step whether our kernel updates the weights or PyTorch. By hand: TRITON_INTERPRET=1 pytest FILE.

Values of the kernels of views, attack and update come through ttsem, in any process; interpreted only without it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from gpu_less import INTERPRETED, needs_triton, needs_ttsem, run_interpreted

pytestmark = [pytest.mark.slow, pytest.mark.program, pytest.mark.compiler]
HERE = Path(__file__).parent
OF_THE_STEP = "replayed or trace or complete or fault or cast_once or somebody or overflow or divided"
PROCESSES = {
    "kernels": ("interpreted/test_kernels.py",),
    "in use": ("interpreted/test_kernels_in_use.py", "interpreted/test_update_in_use.py"),
    "step": ("test_step.py", "-k", OF_THE_STEP),
    "traffic": ("interpreted/test_traffic.py", "interpreted/test_views_kernel.py", "test_gpu_less.py"),
    "interpreter": ("interpreted/test_interpreter.py", "interpreted/test_watch.py"),
}
WITHOUT_TTSEM = (
    "test_views.py", "test_attack.py", "test_attack_kernel.py", "test_update_kernel.py", "test_mining.py",
    "test_other_losses.py",
)  # fmt: skip
if needs_ttsem.args[0]:
    PROCESSES["values"] = WITHOUT_TTSEM


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="is interpreted itself")
@pytest.mark.parametrize("process", PROCESSES)
def test_interpreted(process):
    files = [str(HERE / word) if word.endswith(".py") else word for word in PROCESSES[process]]
    run_interpreted(Path(files[0]), *files[1:])


def test_without_the_variable_one_line_says_what_is_missing():
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TRITON_"))}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(HERE / "interpreted")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.strip().startswith("ERROR: these tests interpret kernels: TRITON_INTERPRET=1 ")


def test_every_file_of_the_folder_runs():
    named = {word for words in PROCESSES.values() for word in words}
    assert {f"interpreted/{path.name}" for path in (HERE / "interpreted").glob("test_*.py")} <= named
