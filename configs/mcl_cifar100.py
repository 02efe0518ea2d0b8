"""fgkd train --config configs/mcl_cifar100.py --workdir runs/mcl_cifar100 --config.data.data_dir=CIFAR

Networks that learn CIFAR-100 together by mutual contrast, 300 epochs: two ResNet-32, or
`:wrn_16_2,wrn_40_2` and the like. A first word `independent`, `dml` or `ensemble`, as in
`:dml,wrn_16_2`, trains what MCL is compared with. The folder holds the authors' Python pickles.
"""

from fgkd_jax.cli.mutual_recipes import mutual_small_images
from fgkd_jax.methods.mcl import PRESET_TITLES, PRESETS, mcl_preset


def get_config(variant="cifar_resnet32"):
    """Returns the config.

    Args:
      variant: names of networks, after a preset where it is not MCL itself.
    """
    first, _, rest = variant.partition(",")
    preset, networks = (first, rest or "cifar_resnet32") if first in PRESETS else ("mcl", variant)
    return mutual_small_images(
        {"name": "mcl", **mcl_preset(preset)}, networks=networks, title=PRESET_TITLES[preset]
    )
