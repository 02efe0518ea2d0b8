"""Attention between the attributes of classes and the regions of an image, both ways."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from fgkd_jax.errors import UserError
from fgkd_jax.models.heads import linear_init
from fgkd_jax.models.normalization import BatchNorm
from fgkd_jax.typing import Array, Float

# As 1e-12 below the norm in the released code, and with a gradient of zero at a vector of zeros.
_EPS = 1e-24


class SubnetOutputs(NamedTuple):
    """What one sub-net makes of a batch.

    Attributes:
      scores: `[b k]`, of every class, seen and unseen, without any calibration bias.
      attributes: `[b a]`, how strongly the image shows each attribute.
      attention: `[b h w a]`; over regions it sums to 1 for each attribute, or over attributes for
        each region, as the sub-net attends.
      maps: `[b h w a]`, what is summed by it: how strongly each region shows each attribute.
    """

    scores: Float[Array, "b k"]
    attributes: Float[Array, "b a"]
    attention: Float[Array, "b h w a"]
    maps: Float[Array, "b h w a"]


class AttributeAttention(nn.Module):
    """The two sub-nets of MSDN, on region features and the attributes of the classes.

    With words V[a] of the attributes, regions F[r] of an image, and a matrix W for each map,

        map_W[r, a] = F[r] . (V W)[a]

        text to image: psi[a] = sum_r softmax_r(map_2)[r, a] map_1[r, a]
        image to text: psi[a] = sum_r softmax_a(map_4)[r, a] map_3[r, a]

    and a class's score is psi . attributes[class]. The maps of both sub-nets are one product of the
    regions with all V W, one below the other: there is one pass over the features, which are by far
    the largest array. Lengths of regions divide the maps, not the features.

    Where the paper prints something else than the authors released (Chen et al., CVPR 2022), the
    released form is the default, and what is printed an option. Left out is what the released code
    computes and uses in no loss and no prediction: attention to attributes from pooled regions
    (its W_3, and W_3_1), scores by uniform attention, the mean region, and the word vector of each
    region. So are its transposes: all matrices here are [v, f].

    Attributes:
      word_size: v, dimensions of the words.
      text_to_image: whether there is the sub-net in which each attribute attends to regions.
      image_to_text: whether there is the one in which each region attends to attributes.
      normalize_features: whether regions are scaled to length one. With `conv` they are not.
      normalize_words: whether words are scaled to length one in every pass; those that training
        starts from have it anyway.
      sigmoid_maps: whether the maps that are summed go through a sigmoid.
      rectify_attributes: whether psi goes through a ReLU.
      uniform_regions: whether text to image takes the plain mean over regions, without attention.
      swap_axes: exchanges the axes of both softmaxes, as the paper prints them (equations 1 and 4);
        by its text, and as released, attributes attend to regions, and regions to attributes.
      relate_regions: image to text as the paper prints it (equation 6): each region's sum over
        attributes, by a further map of how alike region and attribute are,
        psi[a] = sum_r map_5[r, a] sum_c softmax_a(map_4)[r, c] map_3[r, c].
      class_network: scores by a small network on attributes[class] psi instead of their sum.
      conv: a 2x2 convolution to half the channels, batch norm and ReLU before everything else.
    """

    word_size: int
    text_to_image: bool = True
    image_to_text: bool = True
    normalize_features: bool = True
    normalize_words: bool = False
    sigmoid_maps: bool = False
    rectify_attributes: bool = False
    uniform_regions: bool = False
    swap_axes: bool = False
    relate_regions: bool = False
    class_network: bool = False
    conv: bool = False

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "b h w f"],
        attributes: Float[Array, "k a"],
        *,
        train: bool,
    ) -> dict[str, SubnetOutputs]:
        """Scores the classes.

        Args:
          features: of the regions; computed with in at least float32.
          attributes: of the classes, as they are multiplied with psi.
          train: whether the statistics of the convolution's batch norm are in training mode.

        Returns:
          Outputs by name of the sub-net, `text_to_image` and `image_to_text`.

        Raises:
          UserError: a shape does not fit, or there is no sub-net.
        """
        if features.ndim != 4 or attributes.ndim != 2:
            raise UserError(
                f"features have the shape {features.shape} and attributes {attributes.shape}; "
                "expected [b, h, w, f] and [k, a]"
            )
        if not (self.text_to_image or self.image_to_text):
            raise UserError("text_to_image and image_to_text are both off; expected one of them")
        x = features.astype(jnp.promote_types(features.dtype, jnp.float32))
        if self.conv:
            x = nn.Conv(x.shape[-1] // 2, (2, 2), padding="VALID", name="conv")(x)
            x = nn.relu(BatchNorm(name="norm")(x, train=train))
        maps = self._maps(x, attributes.shape[1])
        found = {}
        if self.text_to_image:
            found["text_to_image"] = self._attend_to_regions(maps)
        if self.image_to_text:
            found["image_to_text"] = self._attend_to_attributes(maps)
        shown = jnp.stack([psi for psi, *_ in found.values()])
        if self.rectify_attributes:
            shown = nn.relu(shown)
        scores = self._score(shown, attributes.astype(shown.dtype))
        grid = (*x.shape[:3], attributes.shape[1])
        return {
            name: SubnetOutputs(scores[i], shown[i], *(part.reshape(grid) for part in parts))
            for i, (name, (_, *parts)) in enumerate(found.items())
        }

    def _maps(self, x: Float[Array, "b h w f"], count: int) -> Mapping[str, Float[Array, "b r a"]]:
        """All maps, by one product."""
        batch, channels = x.shape[0], x.shape[-1]
        init = nn.initializers.normal(self.word_size**-0.5)
        words: Any = self.param("words", init, (count, self.word_size), jnp.float32)
        if self.normalize_words:
            words = words * _inverse_norm(words)
        shape = (self.word_size, channels)
        names = self._map_names()
        # Words with each matrix by itself: XLA does not make one product of a stack of them.
        queries = jnp.concatenate(
            [words @ self.param(name, _INITIALIZERS[name], shape, jnp.float32) for name in names]
        )
        regions = x.reshape(batch, -1, channels)
        maps = jnp.einsum("brf,qf->brq", regions, queries.astype(x.dtype))
        if self.normalize_features and not self.conv:
            maps = maps * _inverse_norm(regions)
        return dict(zip(names, jnp.split(maps, len(names), axis=2), strict=True))

    def _map_names(self) -> tuple[str, ...]:
        """The maps that something is made of."""
        needed = {
            "region_score": self.text_to_image,
            "region_attention": self.text_to_image and not self.uniform_regions,
            "attribute_score": self.image_to_text,
            "attribute_attention": self.image_to_text,
            "attribute_relation": self.image_to_text and self.relate_regions,
        }
        return tuple(name for name, wanted in needed.items() if wanted)

    def _attend_to_regions(self, maps: Mapping[str, Array]) -> tuple[Array, Array, Array]:
        """psi, attention and map of text to image."""
        values = self._activate(maps["region_score"])
        if self.uniform_regions:
            weights = jnp.full_like(values, 1 / values.shape[1])
        else:
            weights = jax.nn.softmax(maps["region_attention"], axis=2 if self.swap_axes else 1)
        return jnp.sum(weights * values, axis=1), weights, values

    def _attend_to_attributes(self, maps: Mapping[str, Array]) -> tuple[Array, Array, Array]:
        """psi, attention and map of image to text."""
        weights = jax.nn.softmax(maps["attribute_attention"], axis=1 if self.swap_axes else 2)
        values = self._activate(maps["attribute_score"])
        weighted = weights * values
        if self.relate_regions:
            weighted = maps["attribute_relation"] * jnp.sum(weighted, axis=2, keepdims=True)
        return jnp.sum(weighted, axis=1), weights, values

    def _activate(self, scores: Array) -> Array:
        return jax.nn.sigmoid(scores) if self.sigmoid_maps else scores

    def _score(self, shown: Array, attributes: Array) -> Array:
        """Scores [s b k] of what both sub-nets see, [s b a]."""
        if not self.class_network:
            return jnp.einsum("sba,ka->sbk", shown, attributes, precision=lax.Precision.HIGHEST)
        hidden = attributes.shape[1] // 2
        x = shown[:, :, None] * attributes[None, None]
        x = nn.relu(nn.Dense(hidden, kernel_init=linear_init, name="class_hidden")(x))
        return nn.Dense(1, kernel_init=linear_init, name="class_score")(x)[..., 0]


_INITIALIZERS: Mapping[str, Any] = {
    "region_score": nn.initializers.normal(1.0),
    "region_attention": nn.initializers.zeros,
    "attribute_score": nn.initializers.zeros,
    "attribute_attention": nn.initializers.zeros,
    # It is multiplied with the map of attribute_score: were both zero, neither would ever move.
    "attribute_relation": nn.initializers.normal(1.0),
}
"""As released: text to image starts from random maps and even attention, image to text from 0."""


def _inverse_norm(x: Array) -> Array:
    return lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + _EPS)
