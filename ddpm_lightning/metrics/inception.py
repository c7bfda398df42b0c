"""Inception: the features behind published FIDs."""

from __future__ import annotations

import hashlib
import io
import textwrap
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from typing_extensions import override

from ddpm_lightning.errors import InputError
from ddpm_lightning.metrics.features import FeatureExtractor, Features

URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
PUBLISHED = "6726825d"  # the published file's sha256 begins so


class Inception(FeatureExtractor):
    """The 2048 pooled features of TensorFlow's Inception-v3 of 2015, as in published FIDs.

    Network, weights and the resize to 299×299 (TensorFlow 1's bilinear, without anti-aliasing)
    are torch-fidelity's, which agree with the original FID code. Grey images are repeated to
    three channels. Its logits are those of published Inception scores, which leave the bias out.

    Args:
        weights: Local file weights-inception-2015-12-05-6726825d.pth. Default: torch hub's cache
            folder, into which the file (95 MB) is downloaded if it is not there.
    """

    name = "fid"
    alias = "fid"
    dim = 2048
    channels = (1, 3)
    classes = 1008
    resize = "tf1-bilinear-299"

    def __init__(self, weights: str | None = None) -> None:
        self.weights = weights

    @property
    def is_here(self) -> bool:
        """Whether the file of the weights is on this machine."""
        return self.path.is_file()

    @property
    def path(self) -> Path:
        """Where the file of the weights is, or is expected."""
        if self.weights is not None:
            return Path(self.weights).expanduser()
        return Path(torch.hub.get_dir(), "checkpoints", Path(URL).name)

    @override
    def load(self) -> tuple[nn.Module, str]:
        path = self.path
        if self.weights is None and not self.is_here:
            _download(path)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read the weights {path}: {error}. {_WAYS}") from error
        digest = hashlib.sha256(content).hexdigest()
        network = _network(content, path)
        if not digest.startswith(PUBLISHED):
            warnings.warn(
                f"{path} is not the published Inception file (sha256 {digest[:8]}…, not "
                f"{PUBLISHED}…): distances are not comparable with published FIDs",
                stacklevel=2,
            )
        return network, digest

    @override
    def features(self, images: Tensor) -> Tensor:
        return self.features_and_logits(images).features

    @override
    def features_and_logits(self, images: Tensor) -> Features:
        return Features(*self.network(images.expand(-1, 3, -1, -1)))


_WAYS = (
    f"Download {URL} on another machine and put it there, or state its place: --extractor "
    "Inception --extractor.weights PATH (in training --metrics.extractor.weights PATH); LeNet for "
    "grey images and ColourNet for colour need no download (--extractor auto)"
)


def _download(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(URL, str(path), hash_prefix=PUBLISHED)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"Inception's weights are not at {path} and cannot be downloaded: {error}. {_WAYS}"
        ) from error


def _network(content: bytes, path: Path) -> nn.Module:
    """Build torch-fidelity's network around plain tensors; a file with code is refused unrun.

    Its constructor unpickles whatever it is given, so it is given our own copy of the tensors.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    copy = io.BytesIO()
    try:
        torch.save(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), copy)
        copy.seek(0)
        with torch.random.fork_rng(devices=[]):  # its initial weights are not our randomness
            return FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], copy)
    except Exception as error:  # a damaged file can fail in any way
        reason = textwrap.shorten(str(error), width=200, placeholder=" …")
        raise InputError(
            f"{path} does not hold the plain weights of FID's Inception-v3: {reason}. {_WAYS}"
        ) from error
