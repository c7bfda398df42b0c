"""Altered flags, config files, checkpoints, images and data sets: one line, or a valid input."""

from __future__ import annotations

import pytest

from tests.fuzz import fuzz


@pytest.mark.slow
def test_a_few_altered_inputs_are_refused_or_make_no_difference(tmp_path):
    tally = fuzz(20, seed=1, folder=tmp_path)
    assert (sum(tally.counts.values()), tally.wrong) == (20, [])


@pytest.mark.slow
def test_many_altered_inputs_are_refused_or_make_no_difference(tmp_path):
    tally = fuzz(150, seed=0, folder=tmp_path)
    print(tally)
    assert (sum(tally.counts.values()), tally.wrong) == (150, [])
