"""fgkd train --config configs/mcl_imagenet.py --workdir runs/mcl_imagenet

Networks that learn ImageNet together by mutual contrast with memory banks, 90 epochs: two
ResNet-18, or `:resnet34,shufflenet_v2_x1_0` and the like. A first word `independent`, `dml`,
`ensemble` or `afd`, as in `:dml,resnet18`, trains what MCL is compared with; after `kd` the first
network learns from the second, whose weights `--config.pretrained.teacher` names. The data set is
prepared by TensorFlow Datasets. The banks of two networks take 1.3 GB, what a step gathers from
them 2.1 GB; `--config.train.accumulate=4` gathers a quarter of it at a time.
"""

from fgkd_jax.cli.mutual_recipes import mutual_imagenet
from fgkd_jax.methods.comparisons import COMPARISON_TITLES, COMPARISONS, comparison


def get_config(variant="resnet18"):
    """Returns the config.

    Args:
      variant: names of networks, after a key of `COMPARISONS` where it is not MCL itself.
    """
    first, _, rest = variant.partition(",")
    name, networks = (first, rest or "resnet18") if first in COMPARISONS else ("mcl", variant)

    def method(backbones):
        if name == "mcl":
            return {"name": "mcl_bank", "networks": backbones}
        return comparison(name, backbones)

    return mutual_imagenet(method, networks=networks, title=COMPARISON_TITLES[name])
