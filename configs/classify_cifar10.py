"""fgkd train --config configs/classify_cifar10.py --workdir runs/cifar10 --config.data.data_dir=CIFAR

ResNet-18 with a small stem on CIFAR-10, 200 epochs at batch 128. The folder holds the authors'
Python pickles, or the arrays of JPEG files.
"""

from fgkd_jax.cli.recipes import CIFAR10_MEAN, CIFAR10_STD, small_images


def get_config():
    """Returns the config."""
    return small_images("classifier", "cifar10", mean=CIFAR10_MEAN, std=CIFAR10_STD)
