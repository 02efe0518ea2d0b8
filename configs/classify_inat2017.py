"""fgkd train --config configs/classify_inat2017.py --workdir runs/inat2017 --config.pretrained.path=WEIGHTS

ResNet-50 from ImageNet weights on iNaturalist-2017 at 448 x 448 pixels, 30 epochs. Its classes are
of very different sizes, so that the mean accuracy per class stands beside top-1. The data set is
prepared by TensorFlow Datasets.
"""

from fgkd_jax.cli.recipes import photographs, plain


def get_config(backbone="resnet50"):
    """Returns the config.

    Args:
      backbone: name of the backbone.
    """
    return photographs(
        {"name": "classifier", **plain(backbone)},
        data={
            "dataset": "tfds/i_naturalist2017",
            "image_size": 448,
            "train_geometry": "random_resized_crop",
        },
        optim={"learning_rate": 0.05, "warmup_steps": 3395},
        steps=67900,
        batch_size=256,
        every_steps=1358,
        report={"title": f"{backbone}, 448 x 448", "figures": ("accuracy", "mean_class_accuracy")},
    )
