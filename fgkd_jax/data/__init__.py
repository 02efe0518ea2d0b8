"""Data sets, and batches made of them.

`open_dataset` opens a data set by name, `train_iterator` and `eval_iterator` read batches from it:

    dataset = open_dataset("cub200_2011", data_dir="/data/CUB_200_2011")
    options = DataOptions(image_size=224)
    for batch in eval_iterator(dataset, "test", options, batch_size=64):
        ...

Batches
-------
A batch is a dictionary of NumPy arrays. b is the number of rows on this process, h and w are
`DataOptions.image_size`. This is the place where the keys are defined; what a task adds to those of
classification (text, attributes and seen classes, boxes of several objects) is defined with its
method.

Classification:

| key | type and shape | values |
|---|---|---|
| `image` | uint8 [b, h, w, 3] | RGB, 0 to 255; colour and normalisation happen on the device |
| `label` | int32 [b] | 0 to `info.num_classes` - 1, an index into `info.class_names` |
| `id` | int32 [b] | stable from run to run, unique over all splits of the data set |
| `mask` | bool [b] | True where the row holds an example |

`mask` is True throughout in training, where every batch is full. In evaluation it is False where
the last batch is filled up, and where an image that cannot be read is skipped
(`on_corrupt="skip"`); such a row has id -1 and everything else 0.

Zero-shot, from data sets of precomputed features: the same with `features` in place of `image`.

| key | type and shape | values |
|---|---|---|
| `features` | float16 or float32 [b, h, w, f] | of h x w regions; `info.feature_shape` |
| `label` | int32 [b] | index of all classes, seen and unseen; `info.descriptions` describes them |

With `DataOptions.views` of v > 1 a training batch also has `other_views`, uint8
[b, v - 1, h, w, 3]: more views of the same images, each cut out and flipped by draws of its own.
Everything else in the batch belongs to `image`.

Training batches are shuffled, or come in groups of images of one class
(`DataOptions.images_per_class`).

On demand (`DataOptions.extra_keys`), where the data set has them:

| extra key | key in the batch | type and shape | values |
|---|---|---|---|
| `bbox` | `bbox` | float32 [b, 4] | (x_min, y_min, x_max, y_max) |
| `parts` | `parts` | float32 [b, p, 3] | (x, y, visible 0 or 1); (0, 0, 0) where invisible |
| `mask` | `object_mask` | uint8 [b, h, w] | non-zero on the object |
| `attributes` | `attributes` | float32 [b, a] | 0 to 1, of the example's class |

With text (task `bimodal`; `DataOptions.text` says what is read of captions), with p phrases of t
words at most:

| key | type and shape | values |
|---|---|---|
| `phrases` | int32 [b, p, t] | numbers of words in `info.vocabulary`; 0 padding, 1 unknown |
| `phrase_lengths` | int32 [b, p] | words of each phrase; 0 where there is none |
| `other_phrases` | int32 [b, p, t] | in evaluation: those of another image |
| `other_phrase_lengths` | int32 [b, p] | likewise |

The other image is of another class where that is possible, and the same whatever the batch size
(`fgkd_jax.data.captions.partners`).

Detection (task `detection`; `detection_train_iterator` and `detection_eval_iterator`). All images
of a batch are of one size (h, w), one of `DetectionOptions.buckets`; m is
`DetectionOptions.max_boxes`:

| key | type and shape | values |
|---|---|---|
| `image` | uint8 [b, h, w, 3] | RGB in the top left corner, 0 in the rest |
| `valid_size` | int32 [b, 2] | rows and columns that hold the image |
| `original_size` | int32 [b, 2] | of the image before it was resized |
| `boxes` | float32 [b, m, 4] | (x_min, y_min, x_max, y_max) in pixels of `image` |
| `box_labels` | int32 [b, m] | an index into `info.class_names` |
| `box_mask` | bool [b, m] | True where the row holds a box; the first rows do, or none |
| `box_ignored` | bool [b, m] | True for objects that need not be found: crowds, difficult ones |
| `dropped_boxes` | int32 [b] | boxes that a crop, `least_side` or `max_boxes` left out |
| `id`, `mask` | int32, bool [b] | as in classification; there is no `label` |

Rows without a box are 0. In evaluation no box is left out, and a box in the batch times
`original_size` / `valid_size` is one in the original image.

Boxes and points are in pixels of `image`, after cropping, resizing and flipping. Coordinates are
continuous: pixel i covers [i, i + 1), the image [0, w] x [0, h]. `info.part_names` and
`info.attribute_names` name rows and entries. Any other key of an example can be asked for in the
same way and goes into the batch unchanged.
"""

from fgkd_jax.data.base import (
    CorruptImageError,
    Dataset,
    DatasetInfo,
    Example,
    Source,
)
from fgkd_jax.data.captions import with_text
from fgkd_jax.data.class_descriptions import ClassDescriptions
from fgkd_jax.data.detection_pipeline import (
    DetectionOptions,
    detection_eval_iterator,
    detection_train_iterator,
)
from fgkd_jax.data.holdout import holdout
from fgkd_jax.data.options import DataOptions
from fgkd_jax.data.pipeline import BatchIterator, divide_train, eval_iterator, train_iterator
from fgkd_jax.data.registry import build_dataset, check_dataset, open_dataset
from fgkd_jax.data.report import Report
from fgkd_jax.data.text import TextOptions, phrases_of
from fgkd_jax.data.vocabulary import Vocabulary
from fgkd_jax.data.word_vectors import with_word_vectors
from fgkd_jax.data.zero_shot import hold_out_classes

__all__ = [
    "BatchIterator",
    "ClassDescriptions",
    "CorruptImageError",
    "DataOptions",
    "Dataset",
    "DatasetInfo",
    "DetectionOptions",
    "Example",
    "Report",
    "Source",
    "TextOptions",
    "Vocabulary",
    "build_dataset",
    "check_dataset",
    "detection_eval_iterator",
    "detection_train_iterator",
    "divide_train",
    "eval_iterator",
    "hold_out_classes",
    "holdout",
    "open_dataset",
    "phrases_of",
    "train_iterator",
    "with_text",
    "with_word_vectors",
]
