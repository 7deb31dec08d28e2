"""NTU RGB+D 60 and 120: names of the actions, evaluation protocols and the list of files without usable skeletons."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastmc.files import read_text

Protocols = Mapping[str, Mapping[str, Any]]

NTU60_FILES = 56_880
NTU60_LIMITS = {"setup": 17, "performer": 40}
NTU60_CLIPS = NTU60_FILES - 302  # without the files published as missing or incomplete

NTU120_FILES = 114_480
NTU120_LIMITS = {"setup": 32, "performer": 106}
NTU120_CLIPS = NTU120_FILES - 535  # without those published as missing or incomplete

# fmt: off
NTU60_TRAIN_SUBJECTS = (1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38)
NTU60_TRAIN_CAMERAS = (2, 3)
NTU120_TRAIN_SUBJECTS = (
    *NTU60_TRAIN_SUBJECTS, 45, 46, 47, 49, 50, 52, 53, 54, 55, 56, 57, 58, 59, 70, 74, 78, 80, 81, 82, 83, 84, 85, 86,
    89, 91, 92, 93, 94, 95, 97, 98, 100, 103,
)
NTU120_TRAIN_SETUPS = tuple(range(2, 33, 2))

NTU60_CLASS_NAMES = (  # A001 to A060
    "drink water", "eat meal", "brush teeth", "brush hair", "drop", "pick up", "throw", "sit down", "stand up",
    "clapping", "reading", "writing", "tear up paper", "put on jacket", "take off jacket", "put on a shoe",
    "take off a shoe", "put on glasses", "take off glasses", "put on a hat", "take off a hat", "cheer up",
    "hand waving", "kicking something", "reach into pocket", "hopping", "jump up", "phone call",
    "play with phone/tablet", "type on a keyboard", "point to something", "taking a selfie", "check time",
    "rub two hands", "nod head/bow", "shake head", "wipe face", "salute", "put palms together",
    "cross hands in front", "sneeze/cough", "staggering", "falling down", "headache", "chest pain", "back pain",
    "neck pain", "nausea/vomiting", "fan self", "punch/slap", "kicking", "pushing", "pat on back", "point finger",
    "hugging", "giving object", "touch pocket", "shaking hands", "walking towards", "walking apart",
)
NTU120_CLASS_NAMES = (
    *NTU60_CLASS_NAMES,  # and A061 to A120
    "put on headphone", "take off headphone", "shoot at basket", "bounce ball", "tennis bat swing",
    "juggle table tennis ball", "hush", "flick hair", "thumb up", "thumb down", "make OK sign", "make victory sign",
    "staple book", "counting money", "cutting nails", "cutting paper", "snap fingers", "open bottle", "sniff/smell",
    "squat down", "toss a coin", "fold paper", "ball up paper", "play magic cube", "apply cream on face",
    "apply cream on hand", "put on bag", "take off bag", "put object into bag", "take object out of bag", "open a box",
    "move heavy objects", "shake fist", "throw up cap/hat", "capitulate", "cross arms", "arm circles", "arm swings",
    "run on the spot", "butt kicks", "cross toe touch", "side kick", "yawn", "stretch oneself", "blow nose",
    "hit with object", "wield knife", "knock over", "grab stuff", "shoot with gun", "step on foot", "high-five",
    "cheers and drink", "carry object", "take a photo", "follow", "whisper", "exchange things", "support somebody",
    "rock-paper-scissors",
)
# fmt: on

NTU60_PROTOCOLS: Protocols = {
    "xsub": {"field": "subject", "train": list(NTU60_TRAIN_SUBJECTS)},
    "xview": {"field": "camera", "train": list(NTU60_TRAIN_CAMERAS)},
}
NTU120_PROTOCOLS: Protocols = {
    "xsub": {"field": "subject", "train": list(NTU120_TRAIN_SUBJECTS)},
    "xset": {"field": "setup", "train": list(NTU120_TRAIN_SETUPS)},
}

_CLIP_NAME = re.compile(r"S\d{3}C\d{3}P\d{3}R\d{3}A\d{3}")


def read_missing_list(path: str | Path) -> frozenset[str]:
    """Clip names of a published list of files with missing or incomplete skeletons.

    One name a line, with or without ``.skeleton``. Blank lines, comments (``#``) and the lines of prose above the
    list, where it is published, are passed over.

    Raises:
        ValueError: a line starts like a clip name and is none, or the file holds no name at all.
    """
    names = set()
    for number, line in enumerate(read_text(Path(path), "utf-8-sig").splitlines(), 1):
        name = line.partition("#")[0].strip().removesuffix(".skeleton")
        if _CLIP_NAME.fullmatch(name):
            names.add(name)
        elif re.match(r"S\d", name):
            raise ValueError(f"{path}, line {number}: {name!r} is not a clip name such as S001C002P005R002A008")
    if not names:
        raise ValueError(f"{path} names no clip; expected lines such as S001C002P005R002A008")
    return frozenset(names)
