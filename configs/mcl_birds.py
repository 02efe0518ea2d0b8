"""fgkd train --config configs/mcl_birds.py --workdir runs/mcl

Two narrow ResNets on 768 drawn birds, cropped to 48 x 48 pixels, that learn from each other by
mutual contrast. `:independent` trains them side by side without a word between them, `:dml` by Deep
Mutual Learning, `:ensemble` with the mean of their logits as the teacher, `:afd` by imitating each
other's feature maps. `:kd` trains one alone, with another, trained before, as its teacher:

  fgkd export --workdir runs/teacher --output teacher.safetensors
  fgkd train --config configs/mcl_birds.py:kd --workdir runs/kd \\
    --config.pretrained.teacher=teacher.safetensors
"""

from fgkd_jax.cli.mutual_recipes import mutual_birds
from fgkd_jax.cli.recipes import NARROW
from fgkd_jax.methods.comparisons import COMPARISON_TITLES, comparison


def get_config(name="mcl"):
    """Returns the config.

    Args:
      name: a key of `fgkd_jax.methods.comparisons.COMPARISONS`.
    """
    method = comparison(name, (dict(NARROW),) * 2)
    what = "two narrow ResNets" if "networks" in method else "narrow ResNet"
    controls = ("mcl_birds:independent", "mcl_birds:dml", "lmcl_birds") if name == "mcl" else ()
    return mutual_birds(method, title=f"{COMPARISON_TITLES[name]}, {what}", controls=controls)
