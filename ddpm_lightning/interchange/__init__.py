"""Models of other libraries: read and written without those libraries, but for autoencoders."""

# ruff: noqa: F401 (exports)

from ddpm_lightning.interchange.autoencoder_kl import DiffusersAutoencoder
