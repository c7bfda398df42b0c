import torch
from torch import nn

from ddpm_lightning.batch import Condition
from ddpm_lightning.networks import Network


class TwoConvolutions(Network):
    """Two convolutions, told the noise level and the label by a bias of each channel.

    Args:
        data: What it must know of the data.
        out_channels: Channels of the output.
        width: Channels in the middle.
    """

    def __init__(self, data, out_channels: int, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(data.shape[0], width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.level = nn.Linear(1, width)
        self.label = nn.Embedding(1 + (data.num_classes or 0), width)
        self.last = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, x, c_noise, condition=Condition()):
        """See the base class."""
        bias = self.level(c_noise[:, None].to(x.dtype) / 1000)
        if condition.label is not None:
            bias = bias + self.label(condition.label + 1)
        return self.last(torch.relu(self.norm(self.first(x)) + bias[:, :, None, None]))
