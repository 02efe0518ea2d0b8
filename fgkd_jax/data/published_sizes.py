"""Data sets by their sizes alone, for what has to know a step's shapes where no data are."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fgkd_jax.data.base import DatasetInfo, SplitSources
from fgkd_jax.data.class_descriptions import ClassDescriptions
from fgkd_jax.data.detection_pipeline import DetectionOptions
from fgkd_jax.data.options import DataOptions
from fgkd_jax.data.vocabulary import Vocabulary


@dataclass(frozen=True)
class DatasetSizes:
    """What shapes of a training step depend on.

    Attributes:
      num_classes: seen and unseen ones.
      train: images of the training split, before a share of them is held out.
      num_attributes: of a class; 0 where nothing describes the classes.
      word_size: dimensions of the word vectors that come with the attributes; 0 for none.
    """

    num_classes: int
    train: int
    num_attributes: int = 0
    word_size: int = 0


SIZES: Mapping[str, DatasetSizes] = {
    "procedural_birds/classification": DatasetSizes(24, 1920),
    "procedural_birds/tiny": DatasetSizes(24, 48),
    "procedural_birds/detection": DatasetSizes(8, 800),
    "procedural_birds/zero_shot": DatasetSizes(48, 2160, num_attributes=57, word_size=49),
    "cub200_2011": DatasetSizes(200, 5994),
    "cub200_2011/zero_shot": DatasetSizes(200, 7057, num_attributes=312, word_size=300),
    "xlsa17/CUB": DatasetSizes(200, 7057, num_attributes=312, word_size=300),
    "xlsa17/SUN": DatasetSizes(717, 10320, num_attributes=102, word_size=300),
    "xlsa17/AWA2": DatasetSizes(50, 23527, num_attributes=85, word_size=300),
    "cifar10": DatasetSizes(10, 50_000),
    "cifar100": DatasetSizes(100, 50_000),
    "coco2017": DatasetSizes(80, 118_287),
    "voc0712": DatasetSizes(20, 16_551),
    "flowers102": DatasetSizes(102, 1020),
    "fgvc_aircraft": DatasetSizes(100, 3334),
    "fgvc_aircraft/trainval": DatasetSizes(100, 6667),
    "tfds/cars196": DatasetSizes(196, 8144),
    "tfds/imagenet2012": DatasetSizes(1000, 1_281_167),
    "tfds/i_naturalist2017": DatasetSizes(5089, 579_184),
}
"""By name, as their authors publish them; word vectors of attributes have 300 dimensions as those
that the authors of zero-shot methods publish."""

REGIONS = (7, 7, 2048)
"""Shape of the region features of an image, ResNet-101's, that zero-shot methods publish."""

WORDS = 5000
"""Words of captions, where nobody has counted them yet: of the order of CUB's."""


def sized_dataset(options: DataOptions | DetectionOptions, sizes: DatasetSizes) -> SplitSources:
    """Describes a data set of given sizes, without an example in it.

    Args:
      options: names the data set, and says which share of its training images is held out.
      sizes: its sizes.

    Returns:
      A description with invented names of classes, attributes and words, and no source. The number
      of training images after a division is that of the whole, not of each class by itself.
    """
    names = tuple(f"class {i}" for i in range(sizes.num_classes))
    if isinstance(options, DetectionOptions):
        scenes = DatasetInfo(options.dataset, class_names=names, splits={"train": sizes.train})
        return SplitSources(scenes, {})
    kept = (1 - options.validation_fraction) * (1 - options.meta_fraction) * options.train_fraction
    words = tuple(f"word {i}" for i in range(WORDS - 2))  # two numbers stand for no word
    info = DatasetInfo(
        name=options.dataset,
        class_names=names,
        splits={"train": round(kept * sizes.train)},
        descriptions=_described(names, sizes) if sizes.num_attributes else None,
        vocabulary=Vocabulary(words) if options.text is not None else None,
        feature_shape=REGIONS if options.dataset == "features" else None,
    )
    return SplitSources(info, {})


def _described(names: tuple[str, ...], sizes: DatasetSizes) -> ClassDescriptions:
    words = np.ones((sizes.num_attributes, sizes.word_size), np.float32)
    return ClassDescriptions(
        class_names=names,
        attributes=np.ones((len(names), sizes.num_attributes), np.float32),
        seen=np.arange(len(names)) % 2 == 0,
        word_vectors=words if sizes.word_size else None,
    )
