"""The program: configuration, the training step, the loop, checkpoints and the command lines."""

import os

from fastmc import foreign_package

# Without it cuBLAS and cuDNN may sum in another order at every call, and no run repeats another bit for bit. It is read
# when a process first uses the GPU.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

if (_place := foreign_package("train")) is not None:
    raise ImportError(
        f"the train package in {__path__[0]} does not belong to the fastmc that is imported (beside that one there "
        f"should be train, but import train finds {_place}): run from one clone, or reinstall it with pip install -e ."
    )
