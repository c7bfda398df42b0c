"""Options, markers and fixtures of the test suite."""

from __future__ import annotations

import gc
import os

# Of every process, because the threads of small networks wait for each other more than they
# compute: by many times where other programs, or `pytest -n 2`, use the same cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

# Quick tests of numbers, without the command line and without training: `pytest -m core`.
CORE = (
    "batch",
    "bound",
    "configurable",
    "denoiser",
    "devices",
    "ema",
    "flow_likelihood",
    "guidance",
    "likelihood",
    "networks",
    "objectives",
    "oracles",
    "parameterizations",
    "posterior",
    "randomness",
    "sampler_parity",
    "samplers",
    "schedules",
    "timesteps",
    "unet",
    "variances",
)
DTYPES = ("float32", "float64", "bfloat16")


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="where the numeric tests run, e.g. cuda")
    parser.addoption("--dtype", default="float32", choices=DTYPES, help="in what precision")


def pytest_collectstart():
    gc.disable()  # while tests import what stays, which it would go through again and again


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


def pytest_configure(config):
    name = config.getoption("--device")
    if name == "cpu":
        return  # without torch: the process that deals out the tests to others starts sooner
    import torch

    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise pytest.UsageError(f"--device {name}: {str(error).splitlines()[0]}") from error
    # The numbers are compared with the CPU's, which has no TF32.
    torch.backends.cudnn.allow_tf32 = False


def pytest_collection_modifyitems(config, items):
    no_gpu = pytest.mark.skip(reason="needs a GPU: pytest --device cuda")
    core = {f"test_{name}.py" for name in CORE}
    for item in items:
        if item.path.name in core and not {"slow", "long"} & set(item.keywords):
            item.add_marker("core")
        if item.get_closest_marker("gpu") and config.getoption("--device") == "cpu":
            item.add_marker(no_gpu)


@pytest.fixture(scope="session")
def device(request):
    """The device of ``--device``."""
    import torch

    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def dtype(request):
    """The precision of ``--dtype``."""
    import torch

    return getattr(torch, request.config.getoption("--dtype"))


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory):
    """Keep the features of tests out of the user's cache, in processes they start, too."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def no_other_processes():
    """Take away what Lightning leaves in the environment when a test trains by a process group.

    The processes that a later test starts would take themselves for a part of that group.
    """
    yield
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory):
    """Random weights in the published file's format, batch-norm statistics from one pass."""
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Network

    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({}, path)
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Network, "load_state_dict", lambda self, state_dict: None)
        network = Network("random", ["2048"], str(path))
    network.train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network(torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8))
    weights = {k: v for k, v in network.state_dict().items() if "num_batches" not in k}
    torch.save(weights, path, _use_new_zipfile_serialization=False)  # a file of 2020
    return path


@pytest.fixture
def requests(monkeypatch):
    """The request of every call of generate, and whether autocast was on."""
    import torch

    from ddpm_lightning import DiffusionModule

    seen, generate = [], DiffusionModule.generate

    def record(self, indices, request, *args):
        seen.append((request, torch.is_autocast_enabled("cpu")))
        return generate(self, indices, request, *args)

    monkeypatch.setattr(DiffusionModule, "generate", record)
    return seen


@pytest.fixture(scope="session")
def lively_checkpoint(tmp_path_factory):
    """A conditional model of 40 levels on 8×8 digits, to which labels and averaging matter."""
    from ddpm_lightning.diffusion import MSE, MinSNR, SohlDickstein, V
    from tests.small import lively, tiny_data, tiny_module, trainer

    root = tmp_path_factory.mktemp("lively")
    parts = {"schedule": SohlDickstein(), "parameterization": V(), "objective": MSE(MinSNR())}
    module = lively(tiny_module(**parts, conditional=True))
    trainer(root, 2).fit(module, tiny_data())
    return root / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """The checkpoint of a tiny run after three optimizer steps; not to be written to."""
    from ddpm_lightning.run_folder import last_checkpoint
    from tests.small import fit

    folder = tmp_path_factory.mktemp("tiny")
    fit(folder, 3)
    return last_checkpoint(folder)
