"""fgkd train --config configs/lmcl_birds.py --workdir runs/lmcl

Two narrow ResNets on drawn birds at 64 x 64 pixels, contrasted stage by stage; a meta-network
learns which stages of one match which of the other. `:uniform` weighs all pairs alike.
"""

from fgkd_jax.cli.recipes import NARROW, drawn_birds
from fgkd_jax.errors import UserError, nearest

TITLES = {
    "learned": "L-MCL, two narrow ResNets, 64 x 64",
    "uniform": "L-MCL without its meta-network, two narrow ResNets, 64 x 64",
}


def get_config(match="learned"):
    """Returns the config.

    Args:
      match: a key of `TITLES`.
    """
    if match not in TITLES:
        raise UserError(f"lmcl_birds has no variant {match!r}{nearest(match, TITLES)}")
    return drawn_birds(
        {
            "name": "lmcl",
            "networks": (dict(NARROW),) * 2,
            "meta_every": 50 if match == "learned" else 0,
        },
        image_size=64,
        steps=3600,
        batch_size=16,
        data={"images_per_class": 2},
        report={
            "title": TITLES[match],
            "figures": ("accuracy", "network0_accuracy", "network1_accuracy", "ensemble_accuracy"),
        },
    )
