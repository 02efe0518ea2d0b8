"""fgkd train --config configs/mcl_cifar100.py --workdir runs/mcl_cifar100 --config.data.data_dir=CIFAR

Networks that learn CIFAR-100 together by mutual contrast, 300 epochs: two ResNet-32, or
`:wrn_16_2,wrn_40_2` and the like. A first word `independent`, `dml`, `ensemble` or `afd`, as in
`:dml,wrn_16_2`, trains what MCL is compared with. So does `:kd,STUDENT,TEACHER`, which needs the
teacher's weights, `--config.pretrained.teacher=FILE`. The folder holds the authors' Python pickles.
"""

from fgkd_jax.cli.mutual_recipes import mutual_networks, mutual_small_images
from fgkd_jax.methods.comparisons import COMPARISON_TITLES, comparison


def get_config(variant="cifar_resnet32"):
    """Returns the config.

    Args:
      variant: names of networks, after a key of `fgkd_jax.methods.comparisons.COMPARISONS` where it
        is not MCL itself.
    """
    first, _, rest = variant.partition(",")
    known = first in COMPARISON_TITLES
    name, networks = (first, rest or "cifar_resnet32") if known else ("mcl", variant)
    pair = mutual_networks(networks)
    return mutual_small_images(comparison(name, pair), networks=pair, title=COMPARISON_TITLES[name])
