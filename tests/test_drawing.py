"""Callbacks that draw: each has a folder of the run to itself."""

from __future__ import annotations

from functools import partial

import pytest

from ddpm_lightning.callbacks import Marginals, ReconstructionGrid, SampleGrid
from ddpm_lightning.diffusion.samplers import DDIM
from ddpm_lightning.errors import InputError
from tests.small import fit

KINDS = [SampleGrid, ReconstructionGrid, Marginals]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["../../evil", "/evil", "", "."])
def test_a_name_is_a_folder_inside_the_run(kind, name):
    with pytest.raises(InputError, match=f"{kind.__name__}.*name a folder inside the run folder"):
        kind(name=name)


@pytest.mark.parametrize("one", [partial(SampleGrid, n=1), partial(Marginals, n=1)])
@pytest.mark.parametrize("name", ["shown", "./shown"])
def test_two_that_draw_into_one_folder_are_refused_before_training(tmp_path, one, name):
    with pytest.raises(InputError, match="Marginals both draw into 'shown'; give one"):
        fit(tmp_path, 1, one(name="shown"), Marginals(name=name))
    assert not (tmp_path / "shown").exists()


def test_two_with_folders_of_their_own_both_draw(tmp_path):
    fit(tmp_path, 1, *(Marginals(n=2, sampler=DDIM(2), name=name) for name in "ab"))
    assert [len([*(tmp_path / name).iterdir()]) for name in "ab"] == [1, 1]
