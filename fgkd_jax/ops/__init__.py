"""Arrays in, arrays out: the numerical core."""

from fgkd_jax.ops.depthwise import depthwise_conv
from fgkd_jax.ops.preprocess import color_jitter, normalize_image
