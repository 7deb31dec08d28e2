"""A class by its name: built in, or one of the user's own, ``MODULE:CLASS``."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from typing import TypeVar

Kind = TypeVar("Kind")


class NotAllowed(ValueError):
    """A run folder names a class that is not part of fastmc, and the user has not."""


def find(what: str, name: str, base: type[Kind], built_in: Mapping[str, str], allowed: Collection[str]) -> type[Kind]:
    """The class of this name, a subclass of ``base``.

    What is not built in is imported only where it is among ``allowed``, the names that the user's own command or call
    gives: a run folder or checkpoint that names a module does not make it run.

    Args:
        what: how messages call it, such as "method". built_in: names to ``MODULE:CLASS``.

    Raises:
        ValueError: there is no such class. NotAllowed: it may not be imported; the message says how to allow it.
    """
    place = built_in.get(name, name)
    module, colon, cls = place.partition(":")
    if not (colon and module and cls):
        known = ", ".join(built_in)
        raise ValueError(f"{what} = {name!r} is unknown; choose from {known}, or name your own as MODULE:CLASS")
    if name not in built_in and name not in allowed:
        raise NotAllowed(
            f"{what} = {name!r} is not part of fastmc, and what a run folder names is never imported unasked; "
            f"if you trust it, give --allow {name} (in Python: allow=({name!r},))"
        )
    try:
        found = getattr(importlib.import_module(module), cls)
    except (ImportError, AttributeError) as error:
        where = "the folder of your module must be the current one, or on PYTHONPATH"
        raise ValueError(f"{what} = {name!r} cannot be imported: {error}; {where}") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"{what} = {name!r} is no subclass of {base.__module__}.{base.__name__}")
    return found
