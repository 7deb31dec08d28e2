"""Help whose paragraphs flow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from docstring_parser import attrdoc  # tyro brings it


@contextmanager
def flowing_help() -> Iterator[None]:
    """Within: the lines of a setting's docstring are joined in --help. docstring_parser, by which tyro reads them,
    leaves their indentation, and tyro takes an indented line for one that is to begin anew."""
    given = getattr(attrdoc, "ast_get_constant_value", None)
    if given is None:  # of another version: help is ragged, and nothing else
        yield
        return

    def joined(node: Any) -> Any:
        value = given(node)
        return " ".join(value.split()) if isinstance(value, str) else value

    attrdoc.ast_get_constant_value = joined
    try:
        yield
    finally:
        attrdoc.ast_get_constant_value = given
