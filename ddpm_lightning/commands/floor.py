"""The floor command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ddpm_lightning.errors import InputError
from ddpm_lightning.evaluation.floor import check_floor, floors
from ddpm_lightning.evaluation.judge import Judge, check_out
from ddpm_lightning.evaluation.real_images import RealImages
from ddpm_lightning.evaluation.report import floor_table
from ddpm_lightning.loaded import DataPlace, Loaded
from ddpm_lightning.metrics.result import write_results
from ddpm_lightning.processes import Processes


def floor(
    sizes: list[int],
    out: Path,
    reference: RealImages = RealImages(),
    ckpt: Path | None = None,
    data: DataPlace = DataPlace(),
    **judge: Any,
) -> None:
    """Measure how far apart real images are from other real images: the floor for samples.

    The Fréchet distance, and the extrapolated one, of so many real images against as many others,
    into results.json and as a table.

    Args:
        sizes: Numbers of images, e.g. "[1000, 2000, 5000]".
        out: Folder for the results.
        reference: The real images.
        ckpt: A checkpoint whose data they are, in place of ``reference``.
        data: Where that data is now, if it has moved.
        **judge: In whose features, see Judge.

    Raises:
        InputError: A file, a folder or a setting does not work.
    """
    first = Processes.current().first
    if first:
        check_out(out, {"reference.folder": reference.folder})
    if reference.given == (ckpt is not None):
        raise InputError(
            "the floor of which images? Give either --reference.data NAME, "
            "--reference.folder DIR or --ckpt FILE"
        )
    real = reference if ckpt is None else reference.of(Loaded.read(ckpt, data).data)
    judged = Judge(metrics=[], reference=real, **judge)
    check_floor(sizes, judged.real.count)
    real_features = judged.reference
    if not first:
        return
    found = floors(real_features, sizes, judged.measures.seed)
    records = write_results(out / "results.json", found)
    print(f"{out}: real images against as many others, from {judged.real.count}")
    print(floor_table(records))
