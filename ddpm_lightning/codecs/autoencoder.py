"""A trained autoencoder as a codec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from typing_extensions import override

from ddpm_lightning.batch import DataSpec, Moments
from ddpm_lightning.checkpoint import AVERAGE, KEY, read_checkpoint
from ddpm_lightning.codecs.codec import Codec
from ddpm_lightning.configurable import build, check_arguments, configurable_class, plain
from ddpm_lightning.errors import InputError
from ddpm_lightning.networks.autoencoder import Autoencoder2d
from ddpm_lightning.trust import check_trust


class AutoencoderCodec(Codec):
    """The latents of an autoencoder that fit has trained, by its averaged weights.

    The weights are read once, when a run starts. From then on they are in the run's own
    checkpoints, so that these need no other file: a checkpoint's description has the network in
    place of the file's content, and the path only to say where it came from.

    Args:
        ckpt: The autoencoder's checkpoint.
        draw: Train on draws from the posterior in place of its mean (Rombach et al. 2022).
        network: The network in a checkpoint's description, whose weights follow; not for users.

    Raises:
        InputError: Neither is given, or the file is no checkpoint of an autoencoder.
    """

    def __init__(
        self,
        ckpt: Path | None = None,
        draw: bool = False,
        network: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.draws = draw
        state = None
        if network is None:
            if ckpt is None:
                raise InputError(
                    "AutoencoderCodec: which autoencoder? Give --model.codec.ckpt FILE, the "
                    "checkpoint of a run of fit --config mnist_autoencoder or the like"
                )
            network, state = _read(Path(ckpt))
        origin = None if ckpt is None else str(ckpt)
        self._arguments = {"ckpt": origin, "draw": draw, "network": network}
        self.net = _built(network)
        if state is not None:
            self.net.load_state_dict(state)

    @override
    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if tuple(shape) != self.net.data.shape:
            raise InputError(
                f"the autoencoder {self._arguments['ckpt']} encodes images of shape "
                f"{list(self.net.data.shape)}, and the data has {list(shape)}; train one on this "
                "data"
            )
        return self.net.latent_shape

    @override
    def latent_arguments(self) -> dict[str, Any]:
        return {"network": self._arguments["network"]}  # wherever it was read

    @override
    def moments(self, x: Tensor) -> Moments:
        return self.net.bottleneck.moments(self.net.encode(x))

    @override
    def decoded(self, e: Tensor) -> Tensor:
        return self.net.decode(e).clamp(-1, 1)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The network's description and its averaged weights, from an autoencoder's checkpoint."""
    checkpoint = read_checkpoint(path, weights=True)
    stated, state = checkpoint["hyper_parameters"], checkpoint["state_dict"]
    check_trust(path, stated)
    cls, data = configurable_class(stated["net"]["class_path"]), stated["data"]
    if not issubclass(cls, Autoencoder2d):
        raise InputError(
            f"{path} holds a {checkpoint[KEY]['class_path'].rpartition('.')[2]}, not an "
            "Autoencoder; train one by fit --config mnist_autoencoder or the like"
        )
    network = {"class": cls.class_path(), "data": data, "settings": stated["net"]["init_args"]}
    return network, {
        name.removeprefix(AVERAGE): weight
        for name, weight in state.items()
        if name.startswith(AVERAGE)
    }


def _built(network: dict[str, Any]) -> Autoencoder2d:
    cls: Any = configurable_class(network["class"])
    if not issubclass(cls, Autoencoder2d):
        raise InputError(f"{network['class']} is no autoencoder")
    stated = plain(network["settings"], "codec.network")  # because fit's parser builds objects
    check_arguments(cls, stated, "codec.network.")
    settings = {name: build(value) for name, value in stated.items()}
    return cls(DataSpec(**network["data"]), **settings)
