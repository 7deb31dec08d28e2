"""What the tensors of our encoders are called in released codes: rewritten one by one, and with another shape where a
linear map is a convolution of one tap there."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from fastmc.encoders.base import Encoder

HEAD = (r"^head\.", "fc.")
NAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "STGCN": (
        (r"^norm\.", "data_bn."),
        (r"^blocks\.(\d+)\.edges$", r"edge_importance.\1"),
        (r"^blocks\.(\d+)\.mix\.", r"st_gcn_networks.\1.gcn.conv."),
        (r"^blocks\.(\d+)\.norm\.", r"st_gcn_networks.\1.tcn.0."),
        (r"^blocks\.(\d+)\.temporal\.", r"st_gcn_networks.\1.tcn.2."),
        (r"^blocks\.(\d+)\.norm_out\.", r"st_gcn_networks.\1.tcn.3."),
        (r"^blocks\.(\d+)\.shortcut\.map\.", r"st_gcn_networks.\1.residual.0."),
        (r"^blocks\.(\d+)\.shortcut\.norm\.", r"st_gcn_networks.\1.residual.1."),
    ),
}
"""By the class of ours: patterns, of which the first that fits is taken, and what stands there instead."""


def released_name(encoder: Encoder, name: str) -> str:
    """What a tensor of this encoder is called there."""
    for pattern, instead in (*NAMES[type(encoder).__name__], HEAD):
        if re.match(pattern, name):
            return re.sub(pattern, instead, name)
    return name


def released_state(encoder: Encoder, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As much of this encoder's state as there is in a file of theirs, in our names, shapes and order."""
    state = {}
    for name, ours in encoder.state_dict().items():
        given = theirs.get(released_name(encoder, name))
        if given is not None and given.numel() == ours.numel():
            state[name] = given.view_as(ours)
    return state
