"""The encoder of AS-CAL: an LSTM over the frames of a clip, whose states are averaged.

Rao, Xu, Hu, Cheng and Hu (2021), arXiv 2008.00188. It is PyTorch's nn.LSTM, which is one call of cuDNN on a GPU and of
oneDNN on a CPU, where it takes little longer than its products: docs/encoders.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from fastmc.encoders.base import ClipShape, Encoder, EncoderConfig, mlp_head, size_of
from fastmc.encoders.bigru import ViewNorm


@dataclass(frozen=True)
class LSTMConfig(EncoderConfig):
    """LSTM encoder. ``1x256`` in one direction is that of AS-CAL (0.42M parameters)."""

    encoder: str = "1x256"
    """Layers x hidden units per direction."""
    bidirectional: bool = False
    """A second LSTM from the last frame to the first; the representation joins both."""
    representation: Literal["mean", "last"] = "mean"
    """mean: of the states of all frames. last: the final states of each direction."""
    input_norm: bool = False
    """Batch normalisation of the input channels, with statistics per view."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.size

    @property
    def says(self) -> str:
        """Such as LSTM 1x256."""
        return f"LSTM {self.encoder}"

    @property
    def size(self) -> tuple[int, int]:
        """(layers, hidden)."""
        layers, hidden = size_of(self.encoder, "LAYERSxHIDDEN", "1x256")
        return layers, hidden


class LSTM(Encoder):
    """Clips (n, T, V * M * 3) to the mean of their states, or the final ones, (n, H)."""

    Config = LSTMConfig
    presets: ClassVar = {"small": {"encoder": "1x256"}, "tiny": {"encoder": "1x128"}}
    compiled = ("after",)
    config: LSTMConfig

    def __init__(self, config: LSTMConfig, shape: ClipShape) -> None:
        super().__init__(config, shape)
        layers, hidden = config.size
        self.norm = ViewNorm(shape.width) if config.input_norm else None
        self.recurrent = nn.LSTM(shape.width, hidden, layers, batch_first=True, bidirectional=config.bidirectional)
        self.representation_dim = hidden * (2 if config.bidirectional else 1)
        self.head = mlp_head(self.representation_dim, config.feature_dim)

    def body(self, x: Tensor, views: int) -> Tensor:
        if self.norm is not None:
            x = self.norm(x, views)
        states, (final, _) = self.recurrent(x.to(self.dtype))
        if self.config.representation == "mean":
            return states.mean(1)
        directions = 2 if self.config.bidirectional else 1
        return final[-directions:].transpose(0, 1).flatten(1)
