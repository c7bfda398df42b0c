import torch

from ddpm_lightning.data import ImageData


class Bars(ImageData):
    """Horizontal and vertical bars; the label says which."""

    native_shape = (1, 8, 8)
    num_classes = 2
    default_held_out = 32

    def read(self, split):
        """Draw a split."""
        generator = torch.Generator().manual_seed(len(split))
        labels = torch.randint(2, (200,), generator=generator)
        places = torch.randint(8, (200,), generator=generator)
        images = torch.zeros(200, 1, 8, 8, dtype=torch.uint8)
        for image, label, place in zip(images, labels, places, strict=True):
            (image[0] if label else image[0].T)[place] = 255
        return images, labels
