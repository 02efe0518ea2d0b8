"""Arrays in, arrays out: the numerical core."""

from fgkd_jax.ops.anchors import base_anchors, grid_anchors, inside_anchors, valid_anchors
from fgkd_jax.ops.assign import (
    RCNN_RULE,
    RETINA_RULE,
    RPN_RULE,
    Assignment,
    MatchRule,
    Sample,
    assign_boxes,
    sample_boxes,
    sample_mask,
)
from fgkd_jax.ops.attention import (
    detail_map,
    structure_map,
    trilinear_attention,
    trilinear_product,
)
from fgkd_jax.ops.box_masks import (
    box_mask,
    box_masks,
    gaussian_mask,
    near_object_mask,
    resize_mask,
)
from fgkd_jax.ops.boxes import (
    box_area,
    box_iof,
    box_iou,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    paired_box_iof,
    paired_box_iou,
)
from fgkd_jax.ops.density import (
    attention_densities,
    inverse_cdf,
    limit_density,
    reference_positions,
)
from fgkd_jax.ops.depthwise import depthwise_conv
from fgkd_jax.ops.detection_outputs import (
    Proposals,
    dense_detections,
    region_proposals,
    roi_detections,
)
from fgkd_jax.ops.detection_targets import (
    AnchorTargets,
    RoiTargets,
    anchor_targets,
    roi_targets,
)
from fgkd_jax.ops.masking import first_max, masked_softmax
from fgkd_jax.ops.preprocess import color_jitter, normalize_image
from fgkd_jax.ops.regions import RoiOptions, pyramid_levels, pyramid_roi_align, roi_align
from fgkd_jax.ops.resample import corner_aligned_resize, separable_resample
from fgkd_jax.ops.sampler import attention_sample, corners_to_pixels, fractions_to_pixels
from fgkd_jax.ops.suppression import Detections, Kept, multiclass_nms, nms, nms_per_class
