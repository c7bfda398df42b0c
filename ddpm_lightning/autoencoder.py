"""The LightningModule of autoencoders, whose latents a diffusion model works in."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from typing_extensions import override

from ddpm_lightning.batch import Batch, DataSpec
from ddpm_lightning.ema import EMA
from ddpm_lightning.errors import InputError
from ddpm_lightning.networks.autoencoder import Autoencoder2d
from ddpm_lightning.networks.checks import check_size
from ddpm_lightning.perceptual import Perceptual
from ddpm_lightning.randomness import Draw
from ddpm_lightning.sampling import Weights
from ddpm_lightning.trained import TrainedModule


class Autoencoder(TrainedModule):
    """An autoencoder of images: reconstruction by L1, and the bottleneck's penalty.

    loss = mean |x − d(e)| + penalty/values of an image, with e drawn from q(e | x), and a
    perceptual distance of x and d(e), if there is one. Validation
    reconstructs from the mean of e and logs the peak signal-to-noise ratio, val/psnr, of the
    averaged weights.

    Args:
        data: Specification of the images; the command line takes it from the data module.
        net: The network, as a factory of data.
        ema: The exponential moving average of the weights.
        optimizer: The optimizer.
        warmup_steps: Optimizer steps over which the learning rate rises linearly from 0.
        lr_schedule: Learning rate after the warm-up, stepped per optimizer step; null: constant.
        compile: Compile the network with torch.compile for training.
        seed: Seed of the draws of e; the command line takes it from seed_everything.
        skip_nonfinite: Steps in a row that may be skipped because their gradients are not finite,
            without a trace in weights and average; one more ends the run.
        perceptual: Distance of features that is added to the loss, e.g. --model.perceptual VGG
            --model.perceptual.path vgg16-397923af.pth; null: none.

    Raises:
        InputError: The network does not fit the data, or the data has condition images.
    """

    def __init__(
        self,
        data: DataSpec,
        net: Callable[[DataSpec], Autoencoder2d] = Autoencoder2d,
        ema: EMA = EMA(),
        optimizer: OptimizerCallable = partial(torch.optim.Adam, lr=1e-3),
        warmup_steps: int = 0,
        lr_schedule: LRSchedulerCallable | None = None,
        compile: bool = False,
        seed: int = 0,
        skip_nonfinite: int = 0,
        perceptual: Perceptual | None = None,
    ) -> None:
        if data.image_channels:
            raise InputError("an autoencoder is given no condition images; leave out Conditioned")
        check_size(partial(net, data))
        super().__init__(
            net(data), ema, optimizer, warmup_steps, lr_schedule, compile, seed, skip_nonfinite
        )
        self.data = data
        self.perceptual = perceptual
        self.save_hyperparameters(self.described(data))

    @override
    def setup(self, stage: str) -> None:
        if stage == "fit" and self.perceptual is not None:
            self.perceptual.prepare(self.data.shape)
        super().setup(stage)

    @override
    def training_loss(
        self, batch: Batch, batch_idx: int
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        _check_images(batch)
        noise = self.training_noise(batch, batch_idx)
        x, penalties = self.net(batch.x0, partial(noise, Draw.POSTERIOR))
        l1 = (x - batch.x0).abs().flatten(1).mean(1)
        loss = l1 + torch.stack(list(penalties.values())).sum(0)
        terms = {"l1": l1, **penalties}
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(x, batch.x0)
            loss = loss + self.perceptual.weight * terms["perceptual"]
        terms = {"loss": loss, **{name: term.detach() for name, term in terms.items()}}
        return loss.mean(), torch.zeros_like(batch.index), terms

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Compute the loss of a batch."""
        loss, _, terms = self.checked(batch, batch_idx)
        return {"loss": loss, "per_sample": terms["loss"].detach()}

    def reconstruct(self, x: Tensor, weights: Weights = "ema") -> Tensor:
        """Encode and decode images [B, C, H, W] in [−1, 1], from the mean of the latents."""
        net = self.ema.net if weights == "ema" else self.net
        training = net.training
        try:
            return net.eval()(x)[0].clamp(-1, 1)
        finally:
            net.train(training)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the L1 of raw and EMA weights, and the PSNR of the EMA weights."""
        self._evaluation_step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the same on the test split."""
        self._evaluation_step(batch, "test")

    def _evaluation_step(self, batch: Batch, split: str) -> None:
        _check_images(batch)
        raw, ema = (self.reconstruct(batch.x0, one) for one in ("raw", "ema"))
        values = {
            "loss": F.l1_loss(raw, batch.x0),
            "loss_ema": F.l1_loss(ema, batch.x0),
            "psnr": psnr(ema, batch.x0).mean(),
        }
        self.log_dict(
            {f"{split}/{name}": value for name, value in values.items()},
            batch_size=len(batch.x0),
            sync_dist=True,
            prog_bar=True,
        )


def _check_images(batch: Batch) -> None:
    if batch.latents is not None:
        raise InputError(
            "an autoencoder is trained on images, and CachedLatents holds latents; give the "
            "images themselves, e.g. --data MNIST"
        )


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio 10·log10(2²/MSE) of images in [−1, 1], float [B], in dB."""
    error = (x - y).float().square().flatten(1).mean(1)
    return 10 * torch.log10(4 / error.clamp(min=1e-12))
