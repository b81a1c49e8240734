"""Residual networks for small images (He et al. 2016, section 4.2)."""

from __future__ import annotations

from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Add two 3x3 convolutions to their input; a 1x1 convolution adapts the input where the shape changes."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and width_in == width
            else nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, width_in, height, width)` to `(batch, width, height / stride, width / stride)`."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += self.shortcut(x)
        out: Tensor = self.relu(y)
        return out


class SmallResNet(nn.Module):
    """A residual network of three stages of `blocks` basic blocks, with widths `width`, `2 width` and `4 width`.

    The depth is `6 blocks + 2`: three blocks a stage give ResNet-20. Unlike the paper, shortcuts that change the
    shape are 1x1 convolutions (the paper's option B).
    """

    def __init__(self, blocks: int = 3, width: int = 32, channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(blocks, width, width, 1)
        self.layer2 = _stage(blocks, width, 2 * width, 2)
        self.layer3 = _stage(blocks, 2 * width, 4 * width, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map images `(batch, channels, height, width)` to class scores `(batch, classes)`, before softmax."""
        x = self.relu(self.bn(self.conv(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        scores: Tensor = self.fc(self.pool(x).flatten(1))
        return scores


def _stage(blocks: int, width_in: int, width: int, stride: int) -> nn.Sequential:
    first = BasicBlock(width_in, width, stride)
    return nn.Sequential(first, *(BasicBlock(width, width, 1) for _ in range(blocks - 1)))
