"""fgkd train --config configs/classify_cub.py --workdir runs/cub --config.data.data_dir=CUB_200_2011 --config.pretrained.path=WEIGHTS

ResNet-50 from ImageNet weights on CUB-200-2011 at 448 x 448 pixels, 100 epochs: the plain network
that fine-grained methods are compared with. `:resnet34` and the like take another backbone.
"""

from fgkd_jax.cli.recipes import photographs, plain


def get_config(backbone="resnet50"):
    """Returns the config.

    Args:
      backbone: name of the backbone.
    """
    return photographs(
        {"name": "classifier", **plain(backbone)},
        data={"dataset": "cub200_2011", "image_size": 448, "train_geometry": "random_crop"},
        optim={"learning_rate": 0.004, "warmup_steps": 935},
        steps=18700,
        batch_size=32,
        every_steps=500,
        report={"title": f"{backbone}, 448 x 448", "figures": ("accuracy", "mean_class_accuracy")},
    )
