"""fgkd train --config configs/mcl_cifar10.py --workdir runs/mcl_cifar10 --config.data.data_dir=CIFAR

Two ResNet-8 that learn 10,000 images of CIFAR-10 together by mutual contrast, in minutes on two CPU
cores. `:independent`, `:dml`, `:ensemble` and `:afd` train what MCL is compared with. Networks
behind it, as in `:mcl,cifar_resnet32` or `:dml,wrn_16_2,wrn_40_2`, learn all images instead, 30
times, which is for a GPU. The folder holds the authors' Python pickles, or the arrays of JPEG files.
"""

from fgkd_jax.cli.mutual_recipes import mutual_cifar10
from fgkd_jax.errors import UserError, nearest
from fgkd_jax.methods.comparisons import COMPARISON_TITLES, comparison


def get_config(variant="mcl"):
    """Returns the config.

    Args:
      variant: a key of `fgkd_jax.methods.comparisons.COMPARISONS` but `kd`, which needs a teacher;
        names of networks may follow it.
    """
    name, _, networks = variant.partition(",")
    names = [one for one in COMPARISON_TITLES if one != "kd"]
    if name not in names:
        raise UserError(f"mcl_cifar10 has no variant {name!r}{nearest(name, names)}")
    config = mutual_cifar10(
        lambda pair: comparison(name, pair), title=COMPARISON_TITLES[name], networks=networks
    )
    if variant == "mcl":
        config.report.controls = ("mcl_cifar10:independent", "mcl_cifar10:dml", "lmcl_cifar10")
    return config
