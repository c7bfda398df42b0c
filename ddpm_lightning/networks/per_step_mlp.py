"""A multilayer perceptron with layers of its own for every noise level, for points."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from ddpm_lightning.batch import Condition, DataSpec
from ddpm_lightning.errors import InputError
from ddpm_lightning.networks.checks import check_counts
from ddpm_lightning.networks.layers import Linear
from ddpm_lightning.networks.network import Network


class PerStepMLP(Network):
    """Multilayer perceptron with a shared head and a tail for each noise level 1…T.

    Head: twice linear and ReLU; tail: linear, ReLU, linear, as tutorials of the first diffusion
    paper (Sohl-Dickstein et al. 2015) have it. The choice of the tail alone tells the noise level,
    so levels have to be whole numbers.

    Args:
        data: Points [C], without classes.
        out_channels: Coordinates of the output.
        width: Features.
        tails: The schedule's number of noise levels T.

    Raises:
        InputError: A setting is out of range, or the data are no points, or have classes.
    """

    def __init__(self, data: DataSpec, out_channels: int, width: int = 128, tails: int = 40):
        super().__init__()
        check_counts(self, width=width, tails=tails)
        self.data = data
        self.check_shape(data.shape)
        if data.num_classes is not None:
            raise InputError(
                "PerStepMLP takes no labels; train without them (--model.conditional false), or "
                "take another network (--model.net MLP)"
            )
        self.head = nn.Sequential(
            Linear(self.in_channels, width), nn.ReLU(), Linear(width, width), nn.ReLU()
        )
        self.tails = nn.ModuleList(
            nn.Sequential(Linear(width, width), nn.ReLU(), Linear(width, out_channels, gain=0.0))
            for _ in range(tails)
        )

    @override
    def forward(self, x: Tensor, c_noise: Tensor, condition: Condition = Condition()) -> Tensor:
        x = self.stack_image(x, condition)
        step = self._step(c_noise)
        h = self.head(x.to(next(self.parameters()).dtype))  # [B, width]
        order = step.argsort()
        # All tails are called, some with no rows, so that each has a gradient on every process.
        rows = h[order].split(step.bincount(minlength=len(self.tails)).tolist())
        output = torch.cat([tail(part) for tail, part in zip(self.tails, rows, strict=True)])
        return output[order.argsort()]

    @override
    def check_shape(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 1:
            raise InputError(
                f"PerStepMLP takes points [coordinates], not data of shape {list(shape)}; choose "
                "another network, e.g. UNet for images (--model.net UNet)"
            )

    def _step(self, c_noise: Tensor) -> Tensor:
        """The tail of each row, int64 [B]."""
        step, count = c_noise.round().long(), len(self.tails)
        if not torch.equal(step.to(c_noise.dtype), c_noise) or not 0 <= step.min() <= step.max():
            raise InputError(
                "PerStepMLP needs the noise coordinates 0, 1, 2, …, as the parameterizations Eps, "
                "X0, V, PosteriorMean and MeanShift give them at whole levels"
            )
        if step.max() >= count:
            raise InputError(
                f"PerStepMLP(tails={count}) was given noise level {int(step.max()) + 1}; give it "
                "as many tails as the schedule has levels, e.g. --model.net.tails 40 with "
                "--model.schedule.T 40"
            )
        return step
