"""Networks F(x, c_noise, condition), which a denoiser wraps."""

from ddpm_lightning.networks.annotated_unet import AnnotatedUNet, AnnotatedUNet2022
from ddpm_lightning.networks.autoencoder import Autoencoder2d
from ddpm_lightning.networks.bottlenecks import Bottleneck, KLBottleneck, VQBottleneck
from ddpm_lightning.networks.diffusers_unet import DiffusersUNet
from ddpm_lightning.networks.dit import DiT
from ddpm_lightning.networks.double_conv_unet import DoubleConvUNet
from ddpm_lightning.networks.mlp import MLP
from ddpm_lightning.networks.network import Network
from ddpm_lightning.networks.per_step_mlp import PerStepMLP
from ddpm_lightning.networks.simple_unet import SimpleUNet
from ddpm_lightning.networks.small_unet import SmallUNet
from ddpm_lightning.networks.unet import UNet

__all__ = [
    "MLP",
    "AnnotatedUNet",
    "AnnotatedUNet2022",
    "Autoencoder2d",
    "Bottleneck",
    "DiT",
    "DiffusersUNet",
    "DoubleConvUNet",
    "KLBottleneck",
    "Network",
    "PerStepMLP",
    "SimpleUNet",
    "SmallUNet",
    "UNet",
    "VQBottleneck",
]
