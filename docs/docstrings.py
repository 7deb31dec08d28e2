"""Of docstrings, for the API pages: "f1, f2: features" is an item for each name, and each must be a parameter."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

SECTION = re.compile(r"^( *)(?:Args|Attributes):\n(?:(?:\1 +.*)?\n?)*", re.MULTILINE)
ITEM = re.compile(r"^( +)(\w+(?:, \w+)+)(:.*(?:\n\1 +.*)*)", re.MULTILINE)


class EachName(Extension):
    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = SECTION.sub(lambda section: ITEM.sub(_items, section[0]), obj.docstring.value)


def _items(item: re.Match[str]) -> str:
    return "\n".join(item[1] + name + item[3] for name in item[2].split(", "))
