"""fgkd train --config configs/tasn_birds.py --workdir runs/tasn

TASN on drawn birds: the attention net sees 64 x 64 pixels, and chooses which 64 rows and columns
of the 256 x 256 picture the classifier gets. `:uniform` and `:box` are its controls, which take
the pixels evenly or from the annotated box.
"""

from fgkd_jax.cli.recipes import NARROW, drawn_birds
from fgkd_jax.errors import UserError, nearest

TITLES = {
    "attention": "TASN, 64 x 64 sampled from 256 x 256",
    "uniform": "TASN's networks on plain 64 x 64 copies",
    "box": "TASN's networks, sampling by the true box",
}
CONTROLS = (
    "classify_birds",
    "classify_birds:longer",
    "tasn_birds:uniform",
    "tasn_birds:box",
    "classify_birds:full",
)


def get_config(sampling="attention"):
    """Returns the config.

    Args:
      sampling: `attention`, or the controls `uniform` and `box`.
    """
    if sampling not in TITLES:
        raise UserError(f"tasn_birds has no variant {sampling!r}{nearest(sampling, TITLES)}")
    return drawn_birds(
        {
            "name": "tasn",
            "sampling": sampling,
            "backbone": dict(NARROW),
            # Its last map is 16 x 16 with 32 channels.
            "attention_backbone": {
                "name": "resnet_narrow",
                "stem": "imagenet",
                "width": 16,
                "stage_sizes": (1, 1),
                "strides": (1, 1),
                "dilations": (1, 1),
            },
            "dilated_head": False,
            "attention_size": 64,
            "out_size": 64,
        },
        image_size=256,
        steps=7200,
        data={"extra_keys": ("bbox", "parts")},
        report={
            "title": TITLES[sampling],
            "figures": ("accuracy", "genus_accuracy", "box_gain", "part_gain"),
            "controls": CONTROLS if sampling == "attention" else (),
        },
    )
