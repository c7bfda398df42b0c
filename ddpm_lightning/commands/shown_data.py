"""The data or the picture that a plot shows, and the levels that it shows them at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ddpm_lightning.data.data_module import DiffusionData
from ddpm_lightning.data.wrapper import innermost
from ddpm_lightning.errors import InputError, at_least
from ddpm_lightning.images import from_uint8
from ddpm_lightning.images.decoding import Decoding
from ddpm_lightning.loaded import DataPlace, Loaded

MOST_COLUMNS = 50
"""Levels that a strip shows at most; more are too small to see."""

PICTURE = 128
"""Height and width that a picture file is brought to."""


@dataclass(frozen=True, eq=False)
class ShownData:
    """Training data or one picture.

    Args:
        name: What it is, for messages.
        shape: [C, ...] of a sample.
        data: The data module; None of a picture.
        picture: [1, 3, H, W] in [−1, 1]; None of data.
        loaded: The checkpoint, if there is one.
    """

    name: str
    shape: tuple[int, ...]
    data: DiffusionData | None
    picture: Tensor | None
    loaded: Loaded | None

    def first(self, n: int) -> Tensor:
        """The first n training samples [n, ...], or the picture."""
        if self.picture is not None:
            return self.picture
        assert self.data is not None
        # Of what is inside, because a latent of CachedLatents is no picture.
        data: DiffusionData = innermost(self.data)
        return data.finished("train", n).x0


def shown_data(
    data: DiffusionData | DataPlace | None,
    image: Path | None,
    ckpt: Path | None = None,
    takes_ckpt: bool = True,
) -> ShownData:
    """Find what is shown: the picture, else the data, else the checkpoint's data.

    ``takes_ckpt`` says whether a message may tell to give a checkpoint.

    Raises InputError: None of them is given, or both picture and data, or they cannot be read.
    """
    place = data if isinstance(data, DataPlace) else DataPlace()
    loaded = None if ckpt is None else Loaded.read(ckpt, place)
    if image is not None:
        if data is not None:
            raise InputError("data and a picture: leave out --data or --image")
        picture = picture_at(image)
        return ShownData(str(image), tuple(picture.shape[1:]), None, picture, loaded)
    if not isinstance(data, DiffusionData):
        if loaded is None:
            ckpt_too = ", or --ckpt PATH" if takes_ckpt else ""
            raise InputError(
                f"which data? Give --data NAME, e.g. --data Digits, or --image FILE{ckpt_too}"
            )
        data = loaded.data
    return ShownData(type(data).__name__, data.shape, data, None, loaded)


def picture_at(path: Path) -> Tensor:
    """Read a picture file as [1, 3, 128, 128] in [−1, 1], scaled to cover and cut.

    Raises InputError: There is none, or it cannot be read.
    """
    if not path.is_file():
        raise InputError(f"no image at {path}")
    try:
        return from_uint8(Decoding(3, (PICTURE, PICTURE))(path.read_bytes()))[None]
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def levels_of(levels: int | list[int], T: int) -> list[int]:
    """List the levels: of a number, so many after 0, evenly spread up to T.

    Raises InputError: One of a list is not in 0…T, a number is above T, or there are too many.
    """
    count = levels if isinstance(levels, int) else len(levels)
    if count > MOST_COLUMNS:
        raise InputError(f"{count} levels: a figure shows {MOST_COLUMNS} at most; change --levels")
    if isinstance(levels, int):
        at_least(1, levels=levels)
        if levels > T:
            raise InputError(f"levels={levels}: there are {T} steps; give --levels {T} or fewer")
        return [round(i * T / levels) for i in range(levels + 1)]
    at_least(1, levels=len(levels))
    beyond = [t for t in levels if not 0 <= t <= T]
    if beyond:
        raise InputError(f"level {beyond[0]}: the levels are 0…{T}; change --levels, or T")
    return levels
