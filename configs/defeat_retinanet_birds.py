"""fgkd train --config configs/defeat_retinanet_birds.py --workdir runs/defeat_retinanet_birds --config.pretrained.teacher=TEACHER

DeFeat: a narrow RetinaNet learns from a wider one, on drawn scenes of one to six birds at
192 x 192 pixels. First the teacher:

  fgkd train --config configs/retinanet_birds.py:teacher --workdir runs/teacher
  fgkd export --workdir runs/teacher --output TEACHER

`:imitation`, `:object`, `:background`, `:fine_grained` and `:gaussian` take something else from it;
`configs/retinanet_birds.py` is the student alone. All of them are trained for as many steps.
"""

from fgkd_jax.cli.detection_recipes import (
    SMALL_SCENES,
    SMALL_STEPS,
    WIDE_BACKBONE,
    narrow_detector,
)
from fgkd_jax.methods.defeat_detectors import TEACHING_TITLES, teaching


def get_config(variant="defeat"):
    """Returns the config.

    Args:
      variant: a key of `fgkd_jax.methods.defeat_detectors.TEACHING`.
    """
    return narrow_detector(
        {
            "name": "defeat_retinanet",
            "teacher": {"backbone": dict(WIDE_BACKBONE)},
            **teaching(variant),
        },
        heads="dense",
        data=SMALL_SCENES["birds"],
        steps=SMALL_STEPS["dense"],
        report={"title": f"RetinaNet, narrow ResNet, {TEACHING_TITLES[variant]}, 192 x 192"},
    )
