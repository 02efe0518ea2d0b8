"""fgkd train --config configs/classify_imagenet.py --workdir runs/imagenet

ResNet-50 on ImageNet at 224 x 224 pixels, 90 epochs at batch 1,024; `:resnet18` and the like take
another backbone. The data set is prepared by TensorFlow Datasets.
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
            "dataset": "tfds/imagenet2012",
            "image_size": 224,
            "train_geometry": "random_resized_crop",
        },
        optim={"learning_rate": 0.4, "warmup_steps": 5629},
        steps=112590,
        batch_size=1024,
        every_steps=2251,
        report={"title": f"{backbone}, 224 x 224", "figures": ("accuracy",)},
    )
