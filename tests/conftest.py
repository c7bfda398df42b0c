"""Fixtures of several test files."""

from __future__ import annotations

import pytest
import torch
from torch import nn


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory):
    """Keep the features of tests out of the user's cache, in processes they start, too."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory):
    """Random weights in the published file's format, batch-norm statistics from one pass."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Network

    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({}, path)
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Network, "load_state_dict", lambda self, state_dict: None)
        network = Network("random", ["2048"], str(path))
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network(torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8))
    weights = {k: v for k, v in network.state_dict().items() if "num_batches" not in k}
    torch.save(weights, path, _use_new_zipfile_serialization=False)  # a file of 2020
    return path


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """The checkpoint of a tiny run after three optimizer steps; not to be written to."""
    from ddpm_lightning.callbacks.run_folder import last_checkpoint
    from tests.small import fit

    folder = tmp_path_factory.mktemp("tiny")
    fit(folder, 3)
    return last_checkpoint(folder)
