"""Train the weights of :class:`~ddpm_lightning.metrics.colour.ColourNet` on CIFAR-10.

    python -m ddpm_lightning.metrics.train_colour --root FOLDER --bfloat16

wrote the file that ships with the package: 10 epochs over the 50,000 training images, about eight
minutes of one core (21 beside other work). It ends with the accuracy on images that the network
was not trained on, of the weights as they are stored, in float16:

    CIFAR-10 test              85.88 %    10,000 images

FOLDER held train/ and test/ with a folder of JPEG files for each class (airplane, automobile, …),
in which CIFAR-10 is also handed around. Compression changes its pixels a little, and so do
decoders; the metadata of the weights tell on what they were trained. A folder with
cifar-10-batches-py, CIFAR-10's own files, does as well; it is downloaded if nothing is there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ddpm_lightning.data import CIFAR10
from ddpm_lightning.data.image_data import OfficialSplit
from ddpm_lightning.errors import InputError
from ddpm_lightning.files import atomic_write
from ddpm_lightning.metrics.colour import CLASSES, ColourNet, ColourNetwork


def train(
    images: Tensor,
    labels: Tensor,
    epochs: int,
    batch_size: int = 250,
    bfloat16: bool = False,
) -> Iterator[ColourNetwork]:
    """Fit a fresh network to photographs [N, 3, 32, 32] uint8 and labels [N] int64.

    Yields the network after each epoch. SGD with Nesterov's momentum; the learning rate rises for
    a quarter of the steps and falls to nothing.
    """
    network = ColourNetwork().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.0, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    steps = len(images) // batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=0.3,
        epochs=epochs,
        steps_per_epoch=steps,
        pct_start=0.25,
        anneal_strategy="linear",
        cycle_momentum=False,
        div_factor=10,
        final_div_factor=1000,
    )
    for epoch in range(epochs):
        start, total = time.monotonic(), 0.0
        for rows in torch.randperm(len(images)).split(batch_size)[:steps]:
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                features = network(shifted(mirrored(images[rows])))
            logits = network.classifier(features)
            loss = F.cross_entropy(logits, labels[rows], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        seconds = time.monotonic() - start
        print(f"epoch {epoch + 1}/{epochs}: loss {total / steps:.4f}, {seconds:.0f} s", flush=True)
        yield network


def mirrored(x: Tensor) -> Tensor:
    """Mirror half of the images [B, C, H, W] left to right, at random."""
    return torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)


def shifted(x: Tensor, pixels: int = 3) -> Tensor:
    """Move each image [B, C, H, W] by up to so many pixels, reflected at the border: float32."""
    padded = F.pad(x.float(), (pixels,) * 4, mode="reflect").permute(0, 2, 3, 1)
    down, right = torch.randint(2 * pixels + 1, (2, len(x), 1))
    rows, columns = down + torch.arange(x.shape[2]), right + torch.arange(x.shape[3])
    image = torch.arange(len(x))[:, None, None]
    return padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@torch.no_grad()
def accuracy(network: ColourNetwork, images: Tensor, labels: Tensor) -> float:
    """Measure the share of uint8 images [N, 3, H, W] that are recognised, in percent."""
    logits = [network.classifier(network(batch)) for batch in images.split(1000)]
    return 100 * (torch.cat(logits).argmax(dim=1) == labels).double().mean().item()


def cifar10(root: Path, split: OfficialSplit) -> tuple[Tensor, Tensor]:
    """Read one split of CIFAR-10: uint8 [N, 3, 32, 32] and int64 [N].

    Raises InputError: The class folders are others, or hold other images; or there are none, and
    CIFAR-10's own files cannot be had.
    """
    if not (root / split).is_dir():
        return CIFAR10(str(root), held_out=0).images(split)
    found = sorted(path.name for path in (root / split).iterdir() if path.is_dir())
    if found != sorted(CLASSES):
        raise InputError(f"{root / split} has the folders {found}, not CIFAR-10's {list(CLASSES)}")
    images, labels = [], []
    for label, name in enumerate(CLASSES):
        for path in sorted((root / split / name).iterdir()):
            with Image.open(path) as image:
                images.append(np.asarray(image.convert("RGB")))
            labels.append(label)
            if images[-1].shape != (32, 32, 3):
                raise InputError(f"{path} is not of 32×32 pixels, as CIFAR-10's images are")
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return pixels.contiguous(), torch.tensor(labels)


def packed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Round weights to float16, in which they take half the space."""
    return {
        name: (part.half() if part.is_floating_point() else part).contiguous()
        for name, part in state.items()
    }


def save(network: ColourNetwork, path: Path, **facts: str) -> None:
    """Write the weights in float16, with facts in the file's metadata."""
    with atomic_write(path) as partial:
        safetensors.torch.save_file(packed(network.state_dict()), partial, facts)


def main() -> None:
    """Train, write the weights and print what they achieve on images they have not seen."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--root", type=Path, required=True, help="CIFAR-10's folder")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bfloat16", action="store_true", help="faster on CPUs that have it")
    parser.add_argument("--out", type=Path, default=ColourNet.weights, help="file to write")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    try:
        images, labels = cifar10(args.root, "train")
        test_images, test_labels = cifar10(args.root, "test")
    except InputError as error:
        parser.error(str(error))
    epochs = args.out.with_suffix(".epoch.safetensors")
    for network in train(images, labels, args.epochs, bfloat16=args.bfloat16):
        save(network, epochs)

    network.eval().load_state_dict(packed(network.state_dict()))  # as it is stored
    percent = f"{accuracy(network, test_images, test_labels):.2f}"
    folders = (args.root / "train").is_dir()
    save(
        network,
        args.out,
        data="CIFAR-10 as JPEG files in class folders" if folders else "CIFAR-10's own files",
        training_images=str(len(images)),
        test_images=str(len(test_images)),
        test_accuracy_percent=percent,
        epochs=str(args.epochs),
        seed=str(args.seed),
        precision="bfloat16 autocast" if args.bfloat16 else "float32",
        torch=torch.__version__,
    )
    epochs.unlink()
    print(f"CIFAR-10 test: {percent} %    {len(test_images):,} images    {args.out}")


if __name__ == "__main__":
    main()
