"""Codecs: the latents in which a diffusion model works, and the way back to data."""

# ruff: noqa: F401 (exports)

from ddpm_lightning.codecs.autoencoder import AutoencoderCodec
from ddpm_lightning.codecs.codec import Codec, Identity
from ddpm_lightning.codecs.haar import Haar
