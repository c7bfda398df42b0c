"""When trackers are given checkpoints: saves on the way, the last one, and that of a stop."""

from __future__ import annotations

import signal

import pytest
from lightning.pytorch.loggers import CSVLogger

from ddpm_lightning.trackers import TRACKERS, Tracker
from tests.small import fit
from tests.test_stops import Kill


class Kept(Tracker):
    """Notes what it is given."""

    given: list[tuple[int, bool]]

    def checkpoint(self, path, step, last):
        self.given.append((step, last))


@pytest.fixture
def given(monkeypatch):
    """Steps of the checkpoints that a tracker is given, and whether one is the last."""
    monkeypatch.setitem(TRACKERS, CSVLogger, Kept)
    monkeypatch.setattr(Kept, "given", [], raising=False)
    return Kept.given


def test_the_checkpoint_at_the_end_of_training_alone_is_the_last(given, tmp_path):
    fit(tmp_path, 4, run={"logger": CSVLogger(tmp_path)})
    assert given == [(3, False), (4, True)]


def test_that_of_a_stop_is_one_on_the_way(given, tmp_path):
    with pytest.raises(SystemExit):
        fit(
            tmp_path,
            4,
            Kill(signal.SIGTERM, "on_train_batch_end", 2),
            run={"logger": CSVLogger(tmp_path)},
        )
    assert given == [(2, False)]
