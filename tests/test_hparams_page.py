"""TensorBoard's HPARAMS page: what a run is compared by, and nothing that it has not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams.backend_context import Context

from ddpm_lightning.callbacks.hyper_parameters import measured
from ddpm_lightning.metrics import Inception, LeNet
from ddpm_lightning.metrics.measures import Measures
from ddpm_lightning.metrics.metric import as_metrics
from ddpm_lightning.trackers.tensorboard import TensorBoard


@pytest.mark.parametrize(
    ("metrics", "extractor", "offered"),
    [
        ("fd", LeNet, ["fd"]),
        ("fd", Inception, ["fid"]),
        ("kid,fd_inf,pr", LeNet, []),
        ("kid", Inception, []),
        ("swd,mmd", None, ["swd"]),
        ("mmd", None, []),
    ],
)
def test_only_what_is_measured_is_offered(metrics, extractor, offered):
    measures = Measures(as_metrics(metrics), extractor() if extractor else None)
    trainer = SimpleNamespace(callbacks=[SimpleNamespace(measures=measures), object()])
    assert measured(trainer) == ["val/loss_ema", *offered]


@pytest.fixture
def page(tmp_path):
    """What TensorBoard's own server makes of two runs for the page."""
    for name, lr in (("one", 0.1), ("two", 0.2)):
        logger = TensorBoardLogger(tmp_path, name="", version=name, default_hp_metric=False)
        values = {"lr": lr, "optimizer": "Adam", "batch": 8, "steps": 2, "schedule": "Cosine"}
        more = {"compile": False, "a": {"b": 1}}
        TensorBoard(logger, tmp_path).hyperparameters(values | more, ["val/loss_ema"])
        logger.finalize("success")
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    context = Context(TBContext(data_provider=MultiplexerDataProvider(multiplexer, "")))
    request = RequestContext()
    content = context.hparams_metadata(request, "")
    return context.experiment_from_metadata(request, "", True, content, [])


def test_what_one_looks_for_comes_first(page):
    names = [info.name for info in page.hparam_infos]
    assert names == ["batch", "lr", "optimizer", "schedule", "steps", "a/b", "compile"]


def test_a_truth_value_is_no_number(page):
    kinds = {info.name: info.type for info in page.hparam_infos}
    assert kinds["compile"] == kinds["optimizer"] != kinds["lr"]
