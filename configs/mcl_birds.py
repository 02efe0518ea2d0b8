"""fgkd train --config configs/mcl_birds.py --workdir runs/mcl

Two narrow ResNets on drawn birds at 64 x 64 pixels that learn from each other by mutual contrast.
`:independent` trains them side by side without a word between them, `:dml` by Deep Mutual Learning,
`:ensemble` with the mean of their logits as the teacher.
"""

from fgkd_jax.cli.recipes import NARROW, drawn_birds
from fgkd_jax.methods.mcl import PRESET_TITLES, mcl_preset


def get_config(preset="mcl"):
    """Returns the config.

    Args:
      preset: a key of `fgkd_jax.methods.mcl.PRESETS`.
    """
    options = mcl_preset(preset)
    controls = ("mcl_birds:independent", "mcl_birds:dml", "lmcl_birds")
    return drawn_birds(
        {"name": "mcl", "networks": (dict(NARROW),) * 2, **options},
        image_size=64,
        steps=3600,
        batch_size=16,
        data={"images_per_class": 2},
        report={
            "title": f"{PRESET_TITLES[preset]}, two narrow ResNets, 64 x 64",
            "figures": ("accuracy", "network0_accuracy", "network1_accuracy", "ensemble_accuracy"),
            "controls": controls if preset == "mcl" else (),
        },
    )
