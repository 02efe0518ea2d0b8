"""fgkd train --config configs/mcl_birds.py --workdir runs/mcl

Two narrow ResNets on drawn birds at 64 x 64 pixels that learn from each other by mutual contrast.
`:independent` trains them side by side without a word between them, `:dml` by Deep Mutual Learning,
`:ensemble` with the mean of their logits as the teacher, `:afd` by imitating each other's feature
maps. `:kd` trains one alone, with the plain network of `classify_birds:longer` as its teacher:

  fgkd export --workdir runs/longer --output teacher.safetensors
  fgkd train --config configs/mcl_birds.py:kd --workdir runs/kd \\
    --config.pretrained.teacher=teacher.safetensors
"""

from fgkd_jax.cli.mutual_recipes import mutual_figures
from fgkd_jax.cli.recipes import NARROW, drawn_birds
from fgkd_jax.methods.comparisons import COMPARISON_TITLES, comparison


def get_config(name="mcl"):
    """Returns the config.

    Args:
      name: a key of `fgkd_jax.methods.comparisons.COMPARISONS`.
    """
    method = comparison(name, (dict(NARROW),) * 2)
    several = len(method.get("networks", ()))
    what = "two narrow ResNets" if several else "narrow ResNet"
    controls = ("mcl_birds:independent", "mcl_birds:dml", "lmcl_birds")
    return drawn_birds(
        method,
        image_size=64,
        steps=3600,
        batch_size=16,
        data={"images_per_class": 2},
        report={
            "title": f"{COMPARISON_TITLES[name]}, {what}, 64 x 64",
            "figures": mutual_figures(several),
            "controls": controls if name == "mcl" else (),
        },
    )
