"""fgkd train --config configs/defeat_faster_rcnn_bccd.py --workdir runs/defeat_faster_rcnn_bccd --config.data.data_dir=BCCD --config.pretrained.teacher=TEACHER

DeFeat: a narrow Faster R-CNN learns from a wider one, on photographs of blood cells at 240 x 320
pixels. First the teacher:

  fgkd train --config configs/faster_rcnn_bccd.py:teacher --workdir runs/teacher --config.data.data_dir=BCCD
  fgkd export --workdir runs/teacher --output TEACHER

`:imitation`, `:object`, `:background`, `:fine_grained` and `:gaussian` take something else from it,
and `:reference` what the released code takes for VOC; `configs/faster_rcnn_bccd.py` is the student
alone. All of them are trained for as many steps.
"""

from fgkd_jax.cli.narrow_detection_recipes import small_student


def get_config(variant="defeat"):
    """Returns the config.

    Args:
      variant: a key of `fgkd_jax.methods.defeat_detectors.TEACHING`.
    """
    return small_student(
        "defeat_faster_rcnn", variant, heads="regions", scene="bccd", title="Faster R-CNN"
    )
