"""fgkd train --config configs/classify_cifar100.py --workdir runs/cifar100 --config.data.data_dir=CIFAR

ResNet-18 with a small stem on CIFAR-100, 200 epochs at batch 128. The folder holds the authors'
Python pickles.
"""

from fgkd_jax.cli.recipes import small_images


def get_config():
    """Returns the config."""
    return small_images(
        "classifier", "cifar100", mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762)
    )
