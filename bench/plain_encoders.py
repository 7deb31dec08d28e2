"""The encoders of `fastmc.encoders` as their released codes compute them, by the cards of ../shared/methods.

Channels first, bodies in the batch, an einsum over joints for the parts of the graph, PyTorch's modules, float32. Their
tensors have the names of those codes (`fastmc.encoders.released_names`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmc.encoders.agcn import AGCN
from fastmc.encoders.base import Encoder
from fastmc.encoders.dstanet import SLOPE, TAPS, DSTANet, places
from fastmc.encoders.released_names import released_tensors
from fastmc.encoders.stgcn import STGCN


class PlainSTGCN(nn.Module):
    """Of CrosSCLR, AimCLR and HiCLR."""

    A: Tensor

    def __init__(self, encoder: STGCN) -> None:
        super().__init__()
        joints = encoder.shape.joints
        self.data_bn = nn.BatchNorm1d(3 * joints)
        self.register_buffer("A", encoder.graph.clone(), persistent=False)
        layers = encoder.config.layers
        self.st_gcn_networks = nn.ModuleList(PlainGraphBlock(*layer, len(self.A), i) for i, layer in enumerate(layers))
        self.edge_importance = nn.ParameterList(torch.ones_like(self.A) for _ in layers)

    def forward(self, x: Tensor) -> Tensor:
        n, c, t, v, m = x.shape
        x = x.permute(0, 4, 3, 1, 2).contiguous().view(n * m, v * c, t)
        x = self.data_bn(x).view(n, m, v, c, t).permute(0, 1, 3, 4, 2).contiguous().view(n * m, c, t, v)
        for block, importance in zip(self.st_gcn_networks, self.edge_importance, strict=True):
            x = block(x, self.A * importance)
        return F.avg_pool2d(x, x.shape[2:]).view(n, m, -1).mean(1)


class PlainGraphBlock(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int, parts: int, number: int) -> None:
        super().__init__()
        self.parts, self.number = parts, number
        self.gcn = nn.ModuleDict({"conv": nn.Conv2d(channels_in, parts * channels, 1)})
        temporal = nn.Conv2d(channels, channels, (9, 1), (stride, 1), (4, 0))
        self.tcn = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(True), temporal, nn.BatchNorm2d(channels))
        self.residual: nn.Module = nn.Identity()
        if number and (channels_in != channels or stride != 1):
            self.residual = nn.Sequential(nn.Conv2d(channels_in, channels, 1, (stride, 1)), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor, graph: Tensor) -> Tensor:
        z = self.gcn["conv"](x)
        z = z.view(len(z), self.parts, -1, *z.shape[2:])
        y = self.tcn(torch.einsum("nkctv,kvw->nctw", z, graph).contiguous())
        return F.relu(y + (self.residual(x) if self.number else 0), inplace=True)


class PlainDSTANet(nn.Module):
    """The released settings for NTU: convolution over time."""

    def __init__(self, encoder: DSTANet) -> None:
        super().__init__()
        self.slope, width = SLOPE, encoder.config.width
        self.input_map = nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width), nn.LeakyReLU(SLOPE))
        heads, joints = encoder.config.heads, encoder.shape.joints
        self.graph_layers = nn.ModuleList(PlainAttentionBlock(*layer, heads, joints) for layer in encoder.config.layers)

    def forward(self, x: Tensor) -> Tensor:
        n, c, t, v, m = x.shape
        x = self.input_map(x.permute(0, 4, 1, 2, 3).contiguous().view(n * m, c, t, v))
        for block in self.graph_layers:
            x = block(x)
        return x.view(n, m, x.shape[1], -1).mean(3).mean(1)


class PlainAttentionBlock(nn.Module):
    code: Tensor

    def __init__(self, channels_in: int, channels: int, stride: int, heads: int, joints: int) -> None:
        super().__init__()
        self.heads, self.width = heads, channels // 4
        self.alphas = nn.Parameter(torch.ones(1, heads, 1, 1))
        self.attention0s = nn.Parameter(torch.ones(1, heads, joints, joints) / joints)
        self.in_nets = nn.Conv2d(channels_in, 2 * heads * self.width, 1)
        self.out_nets = nn.Sequential(nn.Conv2d(heads * channels_in, channels, 1), nn.BatchNorm2d(channels))
        self.ff_nets = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels))
        temporal = nn.Conv2d(channels, channels, (TAPS, 1), (stride, 1), (TAPS // 2, 0))
        self.out_nett = nn.Sequential(temporal, nn.BatchNorm2d(channels))
        self.downs1 = self.downs2 = self.downt2 = None
        if channels_in != channels or stride != 1:

            def down(of: int, stride: int) -> nn.Sequential:
                return nn.Sequential(nn.Conv2d(of, channels, 1, (stride, 1)), nn.BatchNorm2d(channels))

            self.downs1, self.downs2, self.downt2 = down(channels_in, 1), down(channels_in, 1), down(channels, stride)
        self.register_buffer("code", places(joints, channels_in).T[None, :, None].contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        n, c, t, v = x.shape
        q, k = self.in_nets(x + self.code).view(n, 2 * self.heads, self.width, t, v).chunk(2, dim=1)
        maps = torch.tanh(torch.einsum("nsctu,nsctv->nsuv", q, k) / (self.width * t)) * self.alphas
        maps = maps + self.attention0s.repeat(n, 1, 1, 1)
        y = torch.einsum("nctu,nsuv->nsctv", x, maps).contiguous().view(n, self.heads * c, t, v)
        y = F.leaky_relu((x if self.downs1 is None else self.downs1(x)) + self.out_nets(y), SLOPE)
        y = F.leaky_relu((x if self.downs2 is None else self.downs2(x)) + self.ff_nets(y), SLOPE)
        return F.leaky_relu((y if self.downt2 is None else self.downt2(y)) + self.out_nett(y), SLOPE)


class PlainAGCN(nn.Module):
    """Of ISC."""

    def __init__(self, encoder: AGCN) -> None:
        super().__init__()
        self.data_bn = nn.BatchNorm1d(encoder.shape.width)
        self.layers = [f"l{i + 1}" for i in range(len(encoder.config.layers))]
        for i, (name, layer) in enumerate(zip(self.layers, encoder.config.layers, strict=True)):
            self.add_module(name, PlainAdaptiveBlock(*layer, encoder.graph, i))

    def forward(self, x: Tensor) -> Tensor:
        n, c, t, v, m = x.shape
        x = self.data_bn(x.permute(0, 4, 3, 1, 2).contiguous().view(n, m * v * c, t))
        x = x.view(n, m, v, c, t).permute(0, 1, 3, 4, 2).contiguous().view(n * m, c, t, v)
        for name in self.layers:
            x = self.get_submodule(name)(x)
        return x.view(n, m, x.shape[1], -1).mean(3).mean(1)


class PlainAdaptiveBlock(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int, graph: Tensor, number: int) -> None:
        super().__init__()
        self.gcn1 = PlainAdaptiveGraph(channels_in, channels, graph)
        temporal = nn.Conv2d(channels, channels, (9, 1), (stride, 1), (4, 0))
        self.tcn1 = nn.ModuleDict({"conv": temporal, "bn": nn.BatchNorm2d(channels)})
        self.number, self.residual = number, nn.ModuleDict()
        if number and (channels_in != channels or stride != 1):
            self.residual["conv"] = nn.Conv2d(channels_in, channels, 1, (stride, 1))
            self.residual["bn"] = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.tcn1["bn"](self.tcn1["conv"](self.gcn1(x)))
        if not self.number:
            return F.relu(y)
        return F.relu(y + (self.residual["bn"](self.residual["conv"](x)) if self.residual else x))


class PlainAdaptiveGraph(nn.Module):
    A: Tensor

    def __init__(self, channels_in: int, channels: int, graph: Tensor) -> None:
        super().__init__()
        self.register_buffer("A", graph.clone(), persistent=False)
        self.PA = nn.Parameter(torch.full_like(graph, 1e-6))
        self.width = channels // 4
        self.conv_a, self.conv_b = (
            nn.ModuleList(nn.Conv2d(channels_in, self.width, 1) for _ in graph) for _ in range(2)
        )
        self.conv_d = nn.ModuleList(nn.Conv2d(channels_in, channels, 1) for _ in graph)
        self.bn = nn.BatchNorm2d(channels)
        self.down = nn.Sequential()
        if channels_in != channels:
            self.down = nn.Sequential(nn.Conv2d(channels_in, channels, 1), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        n, c, t, v = x.shape
        graph, y = self.A + self.PA, None
        for part, (a, b, d) in enumerate(zip(self.conv_a, self.conv_b, self.conv_d, strict=True)):
            one = a(x).permute(0, 3, 1, 2).contiguous().view(n, v, self.width * t)
            two = b(x).view(n, self.width * t, v)
            maps = torch.softmax(one @ two / one.shape[-1], dim=-2) + graph[part]
            z = d((x.view(n, c * t, v) @ maps).view(n, c, t, v))
            y = z if y is None else z + y
        return F.relu(self.bn(y) + self.down(x))


KINDS: dict[type[Encoder], type[nn.Module]] = {STGCN: PlainSTGCN, DSTANet: PlainDSTANet, AGCN: PlainAGCN}


def plain(encoder: Encoder) -> nn.Module:
    """The same encoder, with the same weights, as its released code has it; it takes (n, 3, T, V, M)."""
    found = KINDS[type(encoder)](encoder)
    of_encoder = {name: t for name, t in encoder.state_dict().items() if not name.startswith("head.")}
    found.load_state_dict(released_tensors(encoder, of_encoder))
    return found
