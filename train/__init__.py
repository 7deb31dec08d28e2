"""The program: configuration, the training step, the loop, checkpoints and the command lines."""

from fastmc import foreign_package

if (_place := foreign_package("train")) is not None:
    raise ImportError(
        f"the train package in {__path__[0]} does not belong to the fastmc that is imported (beside that one there "
        f"should be train, but import train finds {_place}): run from one clone, or reinstall it with pip install -e ."
    )
