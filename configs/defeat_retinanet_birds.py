"""fgkd train --config configs/defeat_retinanet_birds.py --workdir runs/defeat_retinanet_birds --config.pretrained.teacher=TEACHER

DeFeat: a narrow RetinaNet learns from a wider one, on drawn scenes of one to six birds at
192 x 192 pixels. First the teacher:

  fgkd train --config configs/retinanet_birds.py:teacher --workdir runs/teacher
  fgkd export --workdir runs/teacher --output TEACHER

`:imitation`, `:object`, `:background`, `:fine_grained` and `:gaussian` take something else from it,
and `:reference` what the released code takes for VOC; `configs/retinanet_birds.py` is the student
alone. All of them are trained for as many steps.
"""

from fgkd_jax.cli.narrow_detection_recipes import small_student


def get_config(variant="defeat"):
    """Returns the config.

    Args:
      variant: a key of `fgkd_jax.methods.defeat_detectors.TEACHING`.
    """
    return small_student(
        "defeat_retinanet", variant, heads="dense", scene="birds", title="RetinaNet"
    )
