"""What the tensors of our encoders are called in released codes: rewritten one by one, and with another shape where a
linear map is a convolution of one tap there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from fastmc.encoders.base import Encoder

HEAD = (r"^head\.", "fc.")
NAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "AGCN": (
        (r"^norm\.", "data_bn."),
        (r"^blocks\.(\d+)\.space\.learnt$", r"l<\1>.gcn1.PA"),
        (
            r"^blocks\.(\d+)\.space\.ask\.(\w+)$",
            "+".join(rf"l<\1>.gcn1.conv_{ab}.{part}.\2" for ab in "ab" for part in range(3)),
        ),
        (r"^blocks\.(\d+)\.space\.mix\.(\w+)$", "+".join(rf"l<\1>.gcn1.conv_d.{part}.\2" for part in range(3))),
        (r"^blocks\.(\d+)\.space\.norm\.", r"l<\1>.gcn1.bn."),
        (r"^blocks\.(\d+)\.space\.shortcut\.map\.", r"l<\1>.gcn1.down.0."),
        (r"^blocks\.(\d+)\.space\.shortcut\.norm\.", r"l<\1>.gcn1.down.1."),
        (r"^blocks\.(\d+)\.temporal\.", r"l<\1>.tcn1.conv."),
        (r"^blocks\.(\d+)\.norm\.", r"l<\1>.tcn1.bn."),
        (r"^blocks\.(\d+)\.shortcut\.map\.", r"l<\1>.residual.conv."),
        (r"^blocks\.(\d+)\.shortcut\.norm\.", r"l<\1>.residual.bn."),
    ),
    "DSTANet": (
        (r"^entry\.map\.", "input_map.0."),
        (r"^entry\.norm\.", "input_map.1."),
        (r"^blocks\.(\d+)\.space\.scale$", r"graph_layers.\1.alphas"),
        (r"^blocks\.(\d+)\.space\.learnt$", r"graph_layers.\1.attention0s"),
        (r"^blocks\.(\d+)\.space\.ask\.", r"graph_layers.\1.in_nets."),
        (r"^blocks\.(\d+)\.space\.out\.map\.", r"graph_layers.\1.out_nets.0."),
        (r"^blocks\.(\d+)\.space\.out\.norm\.", r"graph_layers.\1.out_nets.1."),
        (r"^blocks\.(\d+)\.space_forward\.map\.", r"graph_layers.\1.ff_nets.0."),
        (r"^blocks\.(\d+)\.space_forward\.norm\.", r"graph_layers.\1.ff_nets.1."),
        (r"^blocks\.(\d+)\.around_space\.([01])\.map\.", r"graph_layers.\1.downs<\2>.0."),
        (r"^blocks\.(\d+)\.around_space\.([01])\.norm\.", r"graph_layers.\1.downs<\2>.1."),
        (r"^blocks\.(\d+)\.temporal\.", r"graph_layers.\1.out_nett.0."),
        (r"^blocks\.(\d+)\.temporal_norm\.", r"graph_layers.\1.out_nett.1."),
        (r"^blocks\.(\d+)\.time\.scale$", r"graph_layers.\1.alphat"),
        (r"^blocks\.(\d+)\.time\.learnt$", r"graph_layers.\1.attention0t"),
        (r"^blocks\.(\d+)\.time\.ask\.", r"graph_layers.\1.in_nett."),
        (r"^blocks\.(\d+)\.time\.out\.map\.", r"graph_layers.\1.out_nett.0."),
        (r"^blocks\.(\d+)\.time\.out\.norm\.", r"graph_layers.\1.out_nett.1."),
        (r"^blocks\.(\d+)\.time_forward\.map\.", r"graph_layers.\1.ff_nett.0."),
        (r"^blocks\.(\d+)\.time_forward\.norm\.", r"graph_layers.\1.ff_nett.1."),
        (r"^blocks\.(\d+)\.around_time\.([01])\.map\.", r"graph_layers.\1.downt<\2>.0."),
        (r"^blocks\.(\d+)\.around_time\.([01])\.norm\.", r"graph_layers.\1.downt<\2>.1."),
    ),
    "HCN": (
        (r"^positions\.point\.", "conv1.0."),
        (r"^positions\.frames\.", "conv2."),
        (r"^positions\.joints\.", "conv3.0."),
        (r"^positions\.picture\.", "conv4.0."),
        (r"^motion\.point\.", "conv1m.0."),
        (r"^motion\.frames\.", "conv2m."),
        (r"^motion\.joints\.", "conv3m.0."),
        (r"^motion\.picture\.", "conv4m.0."),
        (r"^joined\.", "conv5.0."),
        (r"^last\.", "conv6.0."),
    ),
    "S2S": (
        (r"^of_frames\.embedding\.", "hi_encoder.t_embedding."),
        (r"^of_frames\.halving\.convolution\.", "hi_encoder.t_downsample.conv.dw_conv."),
        (r"^of_frames\.halving\.norm\.", "hi_encoder.t_downsample.norm."),
        (r"^of_frames\.sequence\.", "hi_encoder.t_encoder."),
        (r"^of_joints\.embedding\.", "hi_encoder.s_embedding."),
        (r"^of_joints\.halving\.convolution\.", "hi_encoder.s_downsample.conv.dw_conv."),
        (r"^of_joints\.halving\.norm\.", "hi_encoder.s_downsample.norm."),
        (r"^of_joints\.sequence\.", "hi_encoder.s_encoder."),
    ),
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


def released_names(encoder: Encoder, name: str) -> list[str]:
    """What a tensor of this encoder is called there; several names where ours is theirs one below the other."""
    for pattern, instead in (*NAMES[type(encoder).__name__], HEAD):
        if re.match(pattern, name):
            found = re.sub(pattern, instead, name)
            return re.sub(r"<(\d+)>", lambda n: str(int(n[1]) + 1), found).split("+")  # in <>: they count from 1
    return [name]


def released_state(encoder: Encoder, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As much of this encoder's state as there is in a file of theirs, in our names, shapes and order."""
    state = {}
    for name, ours in encoder.state_dict().items():
        names = released_names(encoder, name)
        given = [theirs[each] for each in names if each in theirs]
        if len(given) == len(names) and sum(map(Tensor.numel, given)) == ours.numel():
            state[name] = (torch.cat(given) if len(given) > 1 else given[0]).reshape(ours.shape)
    return state


def released_tensors(encoder: Encoder, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse: tensors of this encoder under their names, in their shapes."""
    found: dict[str, Tensor] = {}
    for name, ours in state.items():
        names = released_names(encoder, name)
        parts = ours.chunk(len(names)) if len(names) > 1 else [ours]
        found |= zip(names, map(partial(_theirs, name), parts), strict=True)
    return found


def _theirs(name: str, tensor: Tensor) -> Tensor:
    """A linear map is a convolution of one tap there."""
    is_map = tensor.dim() == 2 and re.search(r"\.(map|mix|ask)\.weight$", name)
    return tensor[..., None, None].clone() if is_map else tensor.clone()
