"""What the configs of progressive mask attention have in common."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from fgkd_jax.cli.recipes import NARROW, chosen, photographs
from fgkd_jax.errors import UserError, nearest

LEARNERS = ("bimodal", "vision", "text", "student")
"""What a config of images with captions trains: the word for it in the config's argument."""

BACKBONES = ("resnet50", "vgg16", "vgg19")
"""The paper's networks."""

ATTENTIVE: Mapping[str, Any] = {
    **NARROW,
    "stage_sizes": (1, 1, 1),
    "strides": (2, 2, 1),
    "dilations": (1, 1, 1),
}
"""A narrow network with a last map of 16 x 16 from 64 x 64 pixels: 64 blocks to choose from."""

IMAGE_OPTIONS = ("image_mean", "image_std", "brightness", "contrast", "saturation")
"""Options of methods on images, which a reader of texts has not."""


def words_of(argument: str, *, owner: str, known: tuple[str, ...]) -> list[str]:
    """Splits the argument of a config.

    Args:
      argument: words separated by commas.
      owner: name of the config.
      known: words that it takes.

    Returns:
      The words.

    Raises:
      UserError: there is an unknown word.
    """
    words = [word for word in argument.split(",") if word]
    for word in words:
        if word not in known:
            raise UserError(f"{owner} has no variant {word!r}{nearest(word, known)}")
    return words


def attentive_photographs(
    methods: Mapping[str, str],
    argument: str,
    *,
    owner: str,
    data: Mapping[str, Any],
    epoch: float,
    report: Mapping[str, Any],
) -> ConfigDict:
    """Progressive mask attention on photographs of 448 x 448 pixels, in batches of 32, 100 epochs.

    A text is all of an image's captions, 30 phrases at most, as in the paper. Sizes that the paper
    does not give are the methods' defaults.

    Args:
      methods: the method's name by learner, a part of `LEARNERS`; the first is the default.
      argument: words separated by commas: a learner, and one of `BACKBONES`.
      owner: name of the config.
      data: data set.
      epoch: steps of an epoch.
      report: figures of the row.

    Returns:
      The config.

    Raises:
      UserError: the argument has an unknown word, or two of one kind.
    """
    words = words_of(argument, owner=owner, known=(*methods, *BACKBONES))
    learner, name = chosen(words, tuple(methods)), chosen(words, BACKBONES)
    backbone: dict[str, Any] = {"name": name, "dtype": "bfloat16"}
    if name == "resnet50":
        backbone["norm_groups"] = 1
    method: dict[str, Any] = {"name": methods[learner], "backbone": backbone}
    if learner == "student":
        method["teacher"] = {"backbone": dict(backbone)}
    if learner == "text":
        method.pop("backbone")
    reads = {} if learner == "vision" else {"text": dict(PAPER_TEXT)}
    return photographs(
        method,
        data={"image_size": 448, "train_geometry": "random_crop", **data, **reads},
        optim={"learning_rate": 0.004, "warmup_steps": round(5 * epoch)},
        steps=round(100 * epoch),
        batch_size=32,
        every_steps=round(5 * epoch),
        report={"title": f"PMA ({learner}), {name}, 448 x 448", **report},
    )


PAPER_TEXT: Mapping[str, Any] = {
    "train_captions": "all",
    "eval_captions": "all",
    "max_phrases": 30,
    "max_words": 8,
    "min_count": 2,
}
"""How the paper's configs read captions."""


def small_text_method(name: str, *, learner: str) -> dict[str, Any]:
    """Options of the narrow networks of drawn birds.

    Args:
      name: of the method.
      learner: one of `LEARNERS`, or `plain`, the backbone alone.

    Returns:
      Options of the method.
    """
    vision = {"backbone": dict(ATTENTIVE), "stage_features": 64, "reduction": 4}
    words = {"word_features": 32, "phrase_features": 64}
    options: dict[str, dict[str, Any]] = {
        "plain": {"backbone": dict(ATTENTIVE)},
        "vision": vision,
        "bimodal": {**vision, **words},
        "text": {**words, "reduction": 4},
        "student": {"backbone": dict(ATTENTIVE), "teacher": {**vision, **words}},
    }
    return {"name": name, **options[learner]}
