"""The flag --debug, which every command takes: an error that is the user's to mend comes with its traceback too."""

from __future__ import annotations

import sys
from collections.abc import Sequence

DEBUG = "--debug"


def without_debug(args: Sequence[str] | None) -> tuple[list[str], bool]:
    """A command line (by default that of this process) without the flag, and whether it was there."""
    given = list(sys.argv[1:] if args is None else args)
    return [argument for argument in given if argument != DEBUG], DEBUG in given
