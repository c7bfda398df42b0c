"""The evaluate command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ddpm_lightning.evaluation.evaluation import Evaluation
from ddpm_lightning.evaluation.judge import check_out
from ddpm_lightning.evaluation.real_images import RealImages
from ddpm_lightning.evaluation.sample_set import SampleSet
from ddpm_lightning.loaded import DataPlace, Loaded
from ddpm_lightning.metrics import FeatureExtractor, Metric
from ddpm_lightning.processes import Processes


def evaluate(
    ckpt: Path,
    out: Path,
    metrics: Sequence[Metric | str] | str = "fd",
    reference: RealImages = RealImages(),
    extractor: FeatureExtractor | Literal["auto"] = "auto",
    data: DataPlace = DataPlace(),
    device: str = "auto",
    **samples: Any,
) -> None:
    """Score the samples of a checkpoint against real images.

    Writes results.json (every number with all that was measured), grid.png and neighbours.png
    (samples with their nearest real images) into a folder, and prints a table. Samples are drawn
    into the folder, too: the same command goes on where a stopped one was.

    Args:
        ckpt: The checkpoint; it describes its model and data itself.
        out: Folder for the results.
        metrics: Comma-separated: fd (Fréchet distance), fd_inf (extrapolated to endless samples),
            kid (kernel distance), is (Inception score), pr (precision, recall, density,
            coverage), accuracy (share of samples that the extractor's classifier takes for the
            class asked for) and bpd (bound on −log p of the test split, in bits a dimension); or
            a list, e.g. "[fd, {class_path: KID, init_args: {subset_size: 500}}]".
        reference: Real images; by default the data of the checkpoint.
        extractor: Whose features are compared. auto is LeNet for grey images; for colour it is
            Inception if its weights are in torch hub's cache, else ColourNet.
        data: Where the checkpoint's data is now, if it has moved.
        device: cpu, cuda, cuda:1, mps, or auto.
        **samples: How the samples are asked for, see Request; by default a conditional model gets
            the labels of the real images, in their order.

    Raises:
        InputError: A file, a folder or a setting does not work.
    """
    asked = SampleSet(**samples)
    if Processes.current().first:
        check_out(out, {"reference.folder": reference.folder})
    evaluation = Evaluation(Loaded.read(ckpt, data, device), metrics, reference, extractor, asked)
    evaluation.check(asked)
    evaluation(asked, out)
