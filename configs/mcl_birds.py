"""fgkd train --config configs/mcl_birds.py --workdir runs/mcl

Two narrow ResNets on drawn birds at 64 x 64 pixels that learn from each other by mutual contrast.
`:independent` trains them side by side without a word between them, `:dml` by Deep Mutual Learning,
`:ensemble` with the mean of their logits as the teacher.
"""

from fgkd_jax.cli.recipes import NARROW, drawn_birds
from fgkd_jax.errors import UserError, nearest
from fgkd_jax.methods.mcl import PRESETS, mcl_preset

TITLES = {
    "mcl": "MCL, two narrow ResNets, 64 x 64",
    "independent": "two narrow ResNets, independent, 64 x 64",
    "dml": "Deep Mutual Learning, two narrow ResNets, 64 x 64",
    "ensemble": "distilling the mean of logits, two narrow ResNets, 64 x 64",
}


def get_config(preset="mcl"):
    """Returns the config.

    Args:
      preset: a key of `TITLES`.
    """
    if preset not in TITLES:
        raise UserError(f"mcl_birds has no variant {preset!r}{nearest(preset, PRESETS)}")
    controls = ("mcl_birds:independent", "mcl_birds:dml", "lmcl_birds")
    return drawn_birds(
        {"name": "mcl", "networks": (dict(NARROW),) * 2, **mcl_preset(preset)},
        image_size=64,
        steps=3600,
        data={"images_per_class": 2},
        report={
            "title": TITLES[preset],
            "figures": ("accuracy", "network0_accuracy", "network1_accuracy", "ensemble_accuracy"),
            "controls": controls if preset == "mcl" else (),
        },
    )
