"""The doctor command: each check passes on a sound run, and fails on the fault it is for."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from torch import nn

from ddpm_lightning import EMA
from ddpm_lightning.batch import Condition
from ddpm_lightning.callbacks import PointMetrics, RunCheckpoint, SampleGrid
from ddpm_lightning.cli import main
from ddpm_lightning.data import Digits, Toy2D
from ddpm_lightning.diffusion import Linear
from ddpm_lightning.doctor import CHECKS, Run, examine
from ddpm_lightning.doctor.model_checks import overfits
from ddpm_lightning.doctor.run_checks import forecast, run_size
from ddpm_lightning.doctor.trial import Trial
from ddpm_lightning.networks import MLP, SmallUNet
from ddpm_lightning.run_folder import last_checkpoint
from tests.small import tiny_data, tiny_module, trainer


def run(tmp_path, source=None, callbacks=(), run=None, **arguments):
    source = source or tiny_data()
    module = tiny_module(
        **{"data": source.spec, "conditional": source.num_classes is not None} | arguments
    )
    return Run(module, source, trainer(tmp_path, 9, callbacks=[*callbacks], **(run or {})))


class Shifted(Digits):
    """Digits with one thing changed in every batch."""

    def __init__(self, change, **arguments):
        super().__init__(global_batch_size=8, subset=64, **arguments)
        self.change = change

    def finish(self, raw):
        return self.change(super().finish(raw))


class Idle(EMA):
    """An average of which one tensor moves."""

    def update(self, net, step):
        with torch.no_grad():
            next(self.net.parameters()).add_(1.0)


class Large(SmallUNet):
    """A network that no memory holds with more than one row."""

    def forward(self, x, c_noise, condition=Condition()):
        if len(x) > 1:
            raise torch.OutOfMemoryError("no room for more than a row")
        return super().forward(x, c_noise, condition)


def labels_from_one(batch):
    return batch._replace(condition=batch.condition._replace(label=batch.condition.label + 1))


def without_labels(batch):
    return batch._replace(condition=batch.condition._replace(label=None))


def bytes_in_place_of_range(batch):
    return batch._replace(x0=127.5 * (batch.x0 + 1))


def zero_to_one(batch):
    return batch._replace(x0=(batch.x0 + 1) / 2)


def with_a_hole(batch):
    batch.x0[3, 0, 2, 2] = torch.nan
    return batch


def same_rows(batch):
    return batch._replace(row=torch.zeros_like(batch.row))


def test_a_sound_run_passes_every_check(tmp_path, patient):
    sound = run(tmp_path, optimizer=partial(torch.optim.Adam, lr=2e-3))
    found = {finding.check: finding.state for finding in examine(sound)}
    assert found == dict.fromkeys(CHECKS, "ok")


@pytest.mark.parametrize(
    ("check", "words", "faulty"),
    [
        ("data", "255", {"source": Shifted(bytes_in_place_of_range)}),
        ("data", "empty", {"source": Shifted(zero_to_one)}),
        ("data", "rows [3]", {"source": Shifted(with_a_hole)}),
        ("labels", "labels [10]", {"source": Shifted(labels_from_one)}),
        ("labels", "no labels", {"source": Shifted(without_labels)}),
        ("noise at the last level", "ZeroTerminalSNR", {"schedule": Linear(100, rescale=False)}),
        ("division of the batch", "use 6 or 9", {"run": {"accumulate_grad_batches": 3}}),
        ("division of the batch", "there are 64", {"source": tiny_data(global_batch_size=72)}),
        ("EMA", "not finite", {"optimizer": partial(torch.optim.SGD, lr=1e30)}),
        ("EMA", "does not follow", {"ema": Idle()}),
        ("noise of the ranks", "4 of 4", {"source": Shifted(same_rows)}),
    ],
)
def test_a_check_fails_on_its_fault(tmp_path, check, words, faulty):
    (finding,) = examine(run(tmp_path, **faulty), [check])
    assert finding.state == "failed"
    assert words in finding.text


def test_dropout_in_evaluation_is_found(tmp_path):
    subject = run(tmp_path)

    class Always(nn.Dropout):
        def forward(self, x):
            return nn.functional.dropout(x, self.p, training=True)

    for module in list(subject.module.ema.net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout):
                setattr(module, name, Always(0.5).eval())
    finding = CHECKS["dropout"](subject)
    assert finding.state == "failed"
    assert "ema weights differ" in finding.text


def test_a_learning_rate_that_destroys_the_network_is_found(tmp_path):
    subject = run(tmp_path, optimizer=partial(torch.optim.SGD, lr=1e6))
    (finding,) = examine(subject, ["overfit one batch"])
    assert finding.state == "failed"


def test_a_machine_without_room_is_a_finding(tmp_path):
    subject = run(tmp_path, net=Large, conditional=False)
    (finding,) = examine(subject, ["forecast"])
    assert (finding.state, finding.text[:17]) == ("failed", "OutOfMemoryError:")


def test_a_folder_with_a_run_is_for_going_on_alone(tmp_path):
    last_checkpoint(tmp_path).parent.mkdir()
    last_checkpoint(tmp_path).touch()
    subject = run(tmp_path)
    again = Run(subject.module, subject.data, subject.trainer, resumes=True)
    states = [CHECKS["run folder"](one).state for one in (subject, again)]
    assert states == ["failed", "ok"]


def test_the_forecast_of_points_counts_their_metrics(tmp_path):
    data = Toy2D(n=100, global_batch_size=8)
    callback = PointMetrics(every_n_steps=3, n=10)
    assert forecast(run(tmp_path, data, [callback], net=MLP, conditional=False)).state == "ok"


def test_a_step_that_takes_too_long_counts_as_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr("ddpm_lightning.doctor.model_checks.SECONDS", 1e-6)
    finding = overfits(run(tmp_path))
    assert (finding.state, finding.text[:9]) == ("unknown", "not tried")


@pytest.mark.slow
def test_the_examined_run_is_left_as_it_was(tmp_path):
    subject = run(tmp_path)
    before = {name: value.clone() for name, value in subject.module.state_dict().items()}
    list(examine(subject, [name for name in CHECKS if "overfit" not in name]))
    after = subject.module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_forecast_size_is_that_of_the_checkpoints_of_the_run(tmp_path):
    saves = [RunCheckpoint(every_n_steps=3, keep_all=True)]
    subject = run(tmp_path, callbacks=saves)
    subject.trainer.fit(subject.module, subject.data)
    written = [path.stat().st_size for path in (tmp_path / "checkpoints").glob("step_*.ckpt")]
    assert len(written) == 3
    predicted = run_size(run(tmp_path, callbacks=saves)) / (3 + 3)  # three copies and three kept
    # Lightning's and zip's own entries come on top of the tensors.
    assert predicted == pytest.approx(written[0], rel=0.35)
    assert predicted < written[0]


def test_activations_are_counted_in_bytes(tmp_path):
    one, two = (Trial(run(tmp_path), rows).activations() for rows in (2, 4))
    assert two == pytest.approx(2 * one, rel=0.05)


@pytest.mark.slow
def test_time_for_samples_is_part_of_the_forecast(tmp_path):
    grid = SampleGrid(every_n_steps=1, n=4000)
    assert " 0 s of samples" not in forecast(run(tmp_path, callbacks=[grid])).text


TINY = [
    *("--data", "Digits", "--data.global_batch_size", "8", "--data.subset", "64"),
    *(
        "--model.net",
        "UNet",
        "--model.net.channels",
        "8",
        "--model.net.blocks",
        "1",
        "--model.net.groups",
        "4",
    ),
    *("--model.optimizer.lr", "0.01", "--trainer.max_steps", "3", "--trainer.accelerator", "cpu"),
]


@pytest.fixture
def patient(monkeypatch):
    """Give the last check the time that it needs on a busy machine, and ask little of it."""
    monkeypatch.setattr("ddpm_lightning.doctor.model_checks.SECONDS", 1e9)
    monkeypatch.setattr("ddpm_lightning.doctor.model_checks.LEARNED", 0.4)


def doctor(capsys, *words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["doctor", *words])
    return stop.value.code, capsys.readouterr().out


@pytest.mark.slow
def test_a_failed_check_gives_exit_code_one(tmp_path, capsys, patient):
    flags = ["--trainer.accumulate_grad_batches", "3", "--trainer.default_root_dir", str(tmp_path)]
    code, out = doctor(capsys, *TINY, *flags)
    assert code == 1
    assert "failed   division of the batch: global_batch_size 8" in out
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_checkpoint_is_examined_with_its_configuration(tmp_path, capsys, patient):
    main(["fit", *TINY, "--trainer.default_root_dir", str(tmp_path), "--grid", "null"])
    code, out = doctor(capsys, "--ckpt", str(tmp_path / "checkpoints" / "last.ckpt"), "--json")
    found = {finding["check"]: finding for finding in json.loads(out)}
    assert code == 0
    assert list(found) == list(CHECKS)
    assert "holds a run" in found["run folder"]["text"]


@pytest.mark.slow
def test_what_could_not_be_told_gives_exit_code_three(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ddpm_lightning.doctor.model_checks.SECONDS", 1e-6)
    code, out = doctor(capsys, *TINY, "--trainer.default_root_dir", str(tmp_path))
    assert code == 3
    assert "unknown  overfit one batch: not tried" in out


@pytest.mark.slow
def test_a_checkpoint_alone_states_its_data(tiny_checkpoint, tmp_path, capsys, patient):
    alone = tmp_path / "alone.ckpt"
    alone.write_bytes(tiny_checkpoint.read_bytes())
    code, out = doctor(capsys, "--ckpt", str(alone), "--trainer.default_root_dir", str(tmp_path))
    assert code == 0
    assert "data: [8, 1, 8, 8]" in out
