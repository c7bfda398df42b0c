"""TensorBoard's HPARAMS page: what a run is compared by, and nothing that it has not."""

from __future__ import annotations

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams.backend_context import Context

from ddpm_lightning.callbacks import GenerativeMetrics
from ddpm_lightning.callbacks.hyper_parameters import measured
from ddpm_lightning.cli import main
from ddpm_lightning.metrics import Inception, LeNet
from ddpm_lightning.metrics.measures import Measures
from ddpm_lightning.trackers.tensorboard import TensorBoard

SMALL = [
    "--model.net.channels=8 --model.net.multipliers=[1] --model.net.blocks=1",
    "--model.net.attention_levels=[] --model.net.groups=4 --data.subset=64",
    "--data.global_batch_size=8 --trainer.accelerator=cpu --trainer.limit_val_batches=0",
    "--trainer.enable_progress_bar=false --grid=null --trainer.callbacks=[] --trainer.max_steps=1",
    "--metrics.n=8 --metrics.sampler=DDIM --metrics.sampler.steps=1 --metrics.neighbours=0",
]
TOY = [
    "--trainer.max_steps=1 --grid=null --trainer.callbacks=[] --trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false --metrics.sampler=DDIM --metrics.sampler.steps=1",
    "--metrics.n=20 --data.n=200 --trainer.limit_val_batches=0 --likelihood.weights=raw",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "small", "metrics", "offered"),
    [
        ("digits", SMALL, "fd", ["fd"]),
        ("digits", SMALL, "kid", []),
        ("toy2d", TOY, "swd,mmd", ["swd"]),
        ("toy2d", TOY, "mmd", []),
    ],
)
def test_a_run_offers_only_what_it_measures(tmp_path, config, small, metrics, offered):
    words = [*" ".join(small).split(), f"--trainer.default_root_dir={tmp_path}"]
    main(["fit", f"--config={config}", *words, f"--metrics.metrics={metrics}"])
    found = [info.name.tag for info in page_of(tmp_path).metric_infos]
    assert found == ["val/loss_ema", *offered]


@pytest.mark.parametrize(("extractor", "offered"), [(LeNet(), ["fd"]), (Inception(), ["fid"])])
def test_the_distance_is_offered_under_the_extractors_alias(extractor, offered):
    metric = GenerativeMetrics(extractor)
    metric.measures = Measures(metric.metrics, extractor)
    assert measured(Trainer(callbacks=[metric], logger=False)) == ["val/loss_ema", *offered]


def page_of(folder):
    """What TensorBoard's own server makes of the runs below a folder for the page."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    context = Context(TBContext(data_provider=MultiplexerDataProvider(multiplexer, "")))
    request = RequestContext()
    content = context.hparams_metadata(request, "")
    return context.experiment_from_metadata(request, "", True, content, [])


@pytest.fixture
def page(tmp_path):
    """The page of two runs."""
    for name, lr in (("one", 0.1), ("two", 0.2)):
        logger = TensorBoardLogger(tmp_path, name="", version=name, default_hp_metric=False)
        values = {"lr": lr, "optimizer": "Adam", "batch": 8, "steps": 2, "schedule": "Cosine"}
        more = {"compile": False, "a": {"b": 1}}
        TensorBoard(logger, tmp_path).hyperparameters(values | more, ["val/loss_ema"])
        logger.finalize("success")
    return page_of(tmp_path)


def test_what_one_looks_for_comes_first(page):
    names = [info.name for info in page.hparam_infos]
    assert names == ["batch", "lr", "optimizer", "schedule", "steps", "a/b", "compile"]


def test_a_truth_value_is_no_number(page):
    kinds = {info.name: info.type for info in page.hparam_infos}
    assert kinds["compile"] == kinds["optimizer"] != kinds["lr"]
