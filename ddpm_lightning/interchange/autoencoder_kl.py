"""diffusers' AutoencoderKL as a codec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from typing_extensions import override

from ddpm_lightning.batch import Moments
from ddpm_lightning.codecs.codec import Codec
from ddpm_lightning.errors import InputError
from ddpm_lightning.interchange.folder import read_json, read_weights
from ddpm_lightning.interchange.hub import downloaded
from ddpm_lightning.networks.checks import check_image

CLASS = "AutoencoderKL"


class DiffusersAutoencoder(Codec):
    """The latents of an AutoencoderKL that diffusers has saved, such as Stable Diffusion's.

    As with AutoencoderCodec, its weights are read once and kept in the run's own checkpoints (335
    MB for Stable Diffusion's). Scale and shift are measured on the run's data, in place of the
    configuration's scaling_factor.

    Args:
        source: The folder of the network, or of a pipeline with the sub-folder vae, or a name on
            the Hugging Face hub, OWNER/NAME.
        draw: Train on draws from the posterior in place of its mean (Rombach et al. 2022).
        network: The configuration in a checkpoint's description, whose weights follow; not for
            users.

    Raises:
        InputError: diffusers is not installed, or the source is no AutoencoderKL.
    """

    def __init__(
        self, source: str | None = None, draw: bool = False, network: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.draws = draw
        weights = None
        if network is None:
            if source is None:
                raise InputError("DiffusersAutoencoder: give its source, a folder or OWNER/NAME")
            folder = _folder(source)
            network, weights = read_json(folder / "config.json"), read_weights(folder)
            if network.get("_class_name") != CLASS:
                raise InputError(f"{folder} holds a {network.get('_class_name')}, not an {CLASS}")
            network = {name: v for name, v in network.items() if not name.startswith("_")}
        self._arguments = {"source": source, "draw": draw, "network": network}
        self.net = _built(network)
        if weights is not None:
            self._load(weights, str(source))

    def _load(self, weights: dict[str, Tensor], source: str) -> None:
        try:
            self.net.load_state_dict(weights)
        except RuntimeError as error:
            problems = " ".join(str(error).split())
            raise InputError(f"the weights of {source} do not fit: {problems:.300}") from error

    @override
    def latent_arguments(self) -> dict[str, Any]:
        return {"network": self._arguments["network"]}  # wherever it was read

    @override
    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        config = self.net.config
        factor = 2 ** (len(config.block_out_channels) - 1)
        check_image("the autoencoder", shape, factor)
        if shape[0] != config.in_channels:
            raise InputError(
                f"the autoencoder encodes images of {config.in_channels} channels, and the data "
                f"has {shape[0]}; choose images of as many (--data.channels, where it has that)"
            )
        return config.latent_channels, shape[1] // factor, shape[2] // factor

    @override
    def moments(self, x: Tensor) -> Moments:
        posterior = self.net.encode(x).latent_dist
        return Moments(posterior.mean, posterior.std)

    @override
    def decoded(self, e: Tensor) -> Tensor:
        return self.net.decode(e).sample.clamp(-1, 1)


def _folder(source: str) -> Path:
    """The folder of a network's files."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if source.count("/") != 1 or source.startswith((".", "~", "/")):
            raise InputError(f"there is no folder {source}, and a hub name is OWNER/NAME")
        folder = downloaded(source)
    inner = folder / "vae"
    return inner if (inner / "config.json").is_file() else folder


def _built(network: dict[str, Any]) -> Any:
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise InputError(
            "DiffusersAutoencoder needs diffusers: pip install 'ddpm_lightning[diffusers]'"
        ) from error
    try:
        return AutoencoderKL.from_config(network)
    except Exception as error:  # whatever a configuration of someone else's can hold
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"the configuration does not fit {CLASS}: {reason}") from error
