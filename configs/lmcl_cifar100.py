"""fgkd train --config configs/lmcl_cifar100.py --workdir runs/lmcl_cifar100 --config.data.data_dir=CIFAR

Networks that learn CIFAR-100 together by mutual contrast of their stages, which a meta-network
matches, 300 epochs: two ResNet-32, or `:wrn_16_2,wrn_40_2` and the like. The folder holds the
authors' Python pickles.
"""

from fgkd_jax.cli.mutual_recipes import mutual_networks, mutual_small_images


def get_config(networks="cifar_resnet32"):
    """Returns the config.

    Args:
      networks: their names, separated by commas.
    """
    pair = mutual_networks(networks)
    method = {"name": "lmcl", "networks": pair, "stages": 3}
    return mutual_small_images(method, networks=pair, title="L-MCL")
