"""Data sets as LightningDataModules: batches of x0 and its condition, images in [−1, 1]."""

# ruff: noqa: F401 (exports)

from ddpm_lightning.data.cached_latents import CachedLatents
from ddpm_lightning.data.captioned import Captioned
from ddpm_lightning.data.cifar import CIFAR10, CIFAR100
from ddpm_lightning.data.conditioned import Colourisation, Conditioned, Inpainting, SuperResolution
from ddpm_lightning.data.crops import CentreCrop, RandomCrop, RandomResizedCrop
from ddpm_lightning.data.digits import Digits
from ddpm_lightning.data.hub_images import HubImages
from ddpm_lightning.data.image_data import ImageData
from ddpm_lightning.data.image_folder import ImageFolder
from ddpm_lightning.data.image_set import ImageSet
from ddpm_lightning.data.letters import Letters
from ddpm_lightning.data.map_style import MapStyleImages
from ddpm_lightning.data.mnist import MNIST, FashionMNIST
from ddpm_lightning.data.shapes import Shapes
from ddpm_lightning.data.toy2d import Toy2D
