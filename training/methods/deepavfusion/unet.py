"""What DeepAVFusion's upsampling decoders are made of: double convolutions, and stages that enlarge and join.

B samples, C channels.
"""

import torch
from torch import Tensor, nn


class DoubleConv(nn.Sequential):
    """Twice: a 3x3 convolution without bias, batch norm, ReLU."""

    def __init__(self, channels: int, out: int) -> None:
        layers: list[nn.Module] = []
        for inward in (channels, out):
            layers += [nn.Conv2d(inward, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        super().__init__(*layers)


class Up(nn.Module):
    """Enlarges a map `factor` times with as many times fewer channels, joins another map, and convolves both."""

    def __init__(self, channels: int, out: int, *, joined: int = 0, factor: int = 2) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(channels, channels // factor, factor, factor)
        self.conv = DoubleConv(channels // factor + joined, out)

    def forward(self, x: Tensor, *joined: Tensor) -> Tensor:
        """x [B, C, H, W], joined [B, joined, factor H, factor W] -> [B, out, factor H, factor W]."""
        return self.conv(torch.cat([self.up(x), *joined], dim=1))


def as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens [B, rows * columns, D] -> [B, D, rows, columns]."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def spread(vector: Tensor, like: Tensor) -> Tensor:
    """A vector [B, C] at every place of a map [B, _, H, W] -> [B, C, H, W]."""
    return vector[:, :, None, None].expand(-1, -1, *like.shape[2:])


def layers_at(depth: int, stages: int) -> list[int]:
    """As many layers of `depth`, evenly spread from the first to the last, rounded down: of 12, 4 are 0, 3, 7, 11."""
    return [(depth - 1) * stage // (stages - 1) for stage in range(stages)]


def init_decoder(module: nn.Module) -> None:
    """Kaiming-normal convolutions by their outputs and Xavier-uniform linear layers, as the authors'; biases 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
