"""Arrays in, arrays out: the numerical core."""

from fgkd_jax.ops.attention import (
    detail_map,
    structure_map,
    trilinear_attention,
    trilinear_product,
)
from fgkd_jax.ops.density import (
    attention_densities,
    inverse_cdf,
    limit_density,
    reference_positions,
)
from fgkd_jax.ops.depthwise import depthwise_conv
from fgkd_jax.ops.masking import masked_softmax
from fgkd_jax.ops.preprocess import color_jitter, normalize_image
from fgkd_jax.ops.resample import corner_aligned_resize, separable_resample
from fgkd_jax.ops.sampler import attention_sample, corners_to_pixels, fractions_to_pixels
