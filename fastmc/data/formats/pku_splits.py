"""PKU-MMD, phases I and II: names of recordings and actions, and the lists that split the recordings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fastmc.data.formats.ntu_splits import Protocols
from fastmc.data.packing import PrepareError
from fastmc.files import read_text
from fastmc.reading import shown

CAMERAS = "LMR"  # camera 1 is the left one, 2 the middle one, 3 the right one
PROTOCOL_OF_LIST = {"subject": "xsub", "view": "xview"}
_LIST_NAME = re.compile(r"cross[-_](subject|view)([-_]v\d)?\.txt", re.IGNORECASE)

# fmt: off
CLASS_NAMES = (  # of actions 1 to 51, as published
    "bow", "brushing hair", "brushing teeth", "check time (from watch)", "cheer up", "clapping",
    "cross hands in front (say stop)", "drink water", "drop", "eat meal/snack", "falling",
    "giving something to other person", "hand waving", "handshaking", "hopping (one foot jumping)",
    "hugging other person", "jump up", "kicking other person", "kicking something", "make a phone call/answer phone",
    "pat on back of other person", "pickup", "playing with phone/tablet", "point finger at the other person",
    "pointing to something with finger", "punching/slapping other person", "pushing other person", "put on a hat/cap",
    "put something inside pocket", "reading", "rub two hands together", "salute", "sitting down", "standing up",
    "take off a hat/cap", "take off glasses", "take off jacket", "take out something from pocket", "taking a selfie",
    "tear up paper", "throw", "touch back (backache)", "touch chest (stomachache/heart pain)",
    "touch head (headache)", "touch neck (neckache)", "typing on a keyboard",
    "use a fan (with hand or paper)/feeling warm", "wear jacket", "wear on glasses", "wipe face", "writing",
)
# fmt: on
# The ten of phase I that phase II lacks: eight of two people and the two of a pocket, as the field's code has it.
NOT_IN_PHASE2 = (12, 14, 16, 18, 21, 24, 26, 27, 29, 38)


@dataclass(frozen=True)
class Phase:
    """One of the two releases.

    Attributes:
        name: of the data set; title: of the release.
        recording: what a recording's name looks like; example: one that does.
        classes: numbers of its actions, increasing; label n is the n-th of them, from 0.
        clips: number of clips as published.
        skeletons, labels: archives to download; lists: files with the splits.
    """

    name: str
    title: str
    recording: re.Pattern[str]
    example: str
    classes: tuple[int, ...]
    clips: int
    skeletons: str
    labels: str
    lists: tuple[str, str]

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(CLASS_NAMES[number - 1] for number in self.classes)

    def fields(self, recording: str) -> dict[str, int]:
        """What a name tells, as `StoreWriter.add` takes it; ValueError if it is not the name of a recording."""
        match = self.recording.fullmatch(recording)
        if match is None:
            raise ValueError(f"{recording!r} is not the name of a recording of {self.title} such as {self.example}")
        known = match.groupdict()
        return {"camera": CAMERAS.index(known["camera"]) + 1, "subject": int(known.get("subject", -1))}

    @property
    def how_to_get(self) -> str:
        return f"""\
{self.title} may not be redistributed. To get it:
  1. see https://www.icst.pku.edu.cn/struct/Projects/PKUMMD.html (STRUCT group, Peking University), which links the
     folders and says whom to ask for permission;
  2. download {self.skeletons} (skeletons), {self.labels} (labels), {" and ".join(self.lists)}
     (splits), and unpack all of it below one folder;
  3. python -m train.prepare {self.name} --raw FOLDER --out data/{self.name}
FOLDER must hold, at any depth, recordings such as {self.example}.txt (150 numbers a line), label files of the same
names in another folder, and the lists."""


PKU1 = Phase(
    name="pku1",
    title="PKU-MMD phase I",
    recording=re.compile(r"\d{4}-(?P<camera>[LMR])"),
    example="0002-L",
    classes=tuple(range(1, len(CLASS_NAMES) + 1)),
    clips=21_545,
    skeletons="Skeleton.7z",
    labels="Label_PKUMMD.7z",
    lists=("cross-subject.txt", "cross-view.txt"),
)
PKU2 = Phase(
    name="pku2",
    title="PKU-MMD phase II",
    recording=re.compile(r"A\d{2}N(?P<subject>\d{2})-(?P<camera>[LMR])"),
    example="A01N01-L",
    classes=tuple(number for number in PKU1.classes if number not in NOT_IN_PHASE2),
    clips=6_945,
    skeletons="Skeleton_v2.7z",
    labels="Label_PKUMMD_v2.7z",
    lists=("cross_subject_v2.txt", "cross_view_v2.txt"),
)


@dataclass(frozen=True)
class Split:
    """Names of the recordings that train and of those that test."""

    train: frozenset[str]
    test: frozenset[str]


def is_list(path: Path) -> bool:
    """Whether a file is called like one of the lists, of either phase."""
    return _LIST_NAME.fullmatch(path.name) is not None


def read_splits(paths: Iterable[Path], phase: Phase) -> dict[str, Split]:
    """Protocol name -> split, ``xsub`` first, from those of the files that are lists of this phase.

    Raises:
        PrepareError: a list is none, puts a recording on both sides, or contradicts another one of its kind.
    """
    found: dict[str, tuple[Path, Split]] = {}
    for path in sorted(paths):
        match = _LIST_NAME.fullmatch(path.name)
        split = _read_list(path, phase) if match else None
        if match is None or split is None:
            continue
        protocol = PROTOCOL_OF_LIST[match[1].lower()]
        other, same = found.setdefault(protocol, (path, split))
        if same != split:
            raise PrepareError(
                f"{other} and {path} are lists for {protocol} that differ: name the folder of the right one, --splits"
            )
    return {protocol: found[protocol][1] for protocol in PROTOCOL_OF_LIST.values() if protocol in found}


def _read_list(path: Path, phase: Phase) -> Split | None:
    """None if it is the other phase's."""
    try:
        lines = [line for line in read_text(path, "utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise PrepareError(f"cannot read the list {path}: {error}") from error
    sides = [[name.strip() for name in line.split(",") if name.strip()] for line in lines[1::2]]
    names = [name for side in sides for name in side]
    if not any(phase.recording.fullmatch(name) for name in names):
        if any(other.recording.fullmatch(name) for other in (PKU1, PKU2) for name in names):
            return None
        raise PrepareError(f"{path} is no list of recordings: expected names such as {phase.example} in lines 2 and 4")
    if len(lines) != 4:
        raise PrepareError(
            f"{path} has {len(lines)} lines; expected 4: a heading, the training recordings, a heading, the test ones"
        )
    foreign = [name for name in names if not phase.recording.fullmatch(name)]
    if foreign:
        raise PrepareError(f"{path}: {shown(foreign[0])} is no recording of {phase.title} such as {phase.example}")
    train, test = map(frozenset, sides)
    if not (train and test):
        raise PrepareError(f"{path}: the list of {'test' if train else 'training'} recordings is empty")
    both = sorted(train & test)
    if both:
        raise PrepareError(f"{path}: {', '.join(both[:3])}{', ...' * (len(both) > 3)} both train and test")
    return Split(train, test)


def part_of(name: str, splits: Mapping[str, Split]) -> int:
    """A recording's side in all splits as one number: bit n is set if it trains under the n-th protocol."""
    return sum(1 << n for n, split in enumerate(splits.values()) if name in split.train)


def protocols_of(splits: Mapping[str, Split]) -> Protocols:
    """The rules over the numbers of `part_of`; their ``values`` say what each number means."""
    parts = range(1 << len(splits))
    values = [
        ", ".join(f"{protocol} {'training' if part >> n & 1 else 'test'}" for n, protocol in enumerate(splits))
        for part in parts
    ]
    return {
        protocol: {"field": "part", "train": [part for part in parts if part >> n & 1], "values": values}
        for n, protocol in enumerate(splits)
    }
