"""fgkd train --config configs/lmcl_birds.py --workdir runs/lmcl

Two narrow ResNets on 768 drawn birds, cropped to 48 x 48 pixels, that contrast their last three
stages; a meta-network learns which stages of one match which of the other. `:uniform` weighs all
pairs alike.
"""

from fgkd_jax.cli.mutual_recipes import mutual_birds
from fgkd_jax.cli.recipes import NARROW
from fgkd_jax.errors import UserError, nearest

TITLES = {
    "learned": "L-MCL, two narrow ResNets",
    "uniform": "L-MCL without its meta-network, two narrow ResNets",
}


def get_config(match="learned"):
    """Returns the config.

    Args:
      match: a key of `TITLES`.
    """
    if match not in TITLES:
        raise UserError(f"lmcl_birds has no variant {match!r}{nearest(match, TITLES)}")
    method = {
        "name": "lmcl",
        "networks": (dict(NARROW),) * 2,
        "stages": 3,
        "meta_every": 50 if match == "learned" else 0,
    }
    return mutual_birds(method, title=TITLES[match])
