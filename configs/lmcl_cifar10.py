"""fgkd train --config configs/lmcl_cifar10.py --workdir runs/lmcl_cifar10 --config.data.data_dir=CIFAR

Two ResNet-8 that learn 10,000 images of CIFAR-10 together by mutual contrast of their stages, which
a meta-network matches. Networks that are named, as in `:cifar_resnet32`, learn all images instead,
30 times, which is for a GPU. The folder holds the authors' Python pickles, or the arrays of JPEG
files.
"""

from fgkd_jax.cli.mutual_recipes import mutual_cifar10


def get_config(networks=""):
    """Returns the config.

    Args:
      networks: names of networks, separated by commas, in place of two ResNet-8.
    """
    return mutual_cifar10(
        lambda pair: {"name": "lmcl", "networks": pair}, title="L-MCL", networks=networks
    )
