"""A folder of small photographs, and a config that trains on it in seconds."""

import textwrap

import cv2
import numpy as np
import pytest


def write_images(root, *, split, per_class, size=20):
    """Three classes told apart by colour, with noise."""
    for index, name in enumerate(("blue", "green", "red")):
        folder = root / split / name
        folder.mkdir(parents=True)
        for i in range(per_class):
            rng = np.random.default_rng([index, i, len(split)])
            image = rng.integers(0, 120, (size, size, 3)).astype(np.uint8)
            image[..., index] += 120
            cv2.imwrite(str(folder / f"{i:02}.png"), image)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    root = tmp_path_factory.mktemp("photographs")
    write_images(root, split="train", per_class=16)
    write_images(root, split="validation", per_class=4)
    write_images(root, split="test", per_class=6)
    return root


@pytest.fixture(scope="session")
def config(photographs, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(
        textwrap.dedent(f'''
        """A narrow network on twenty-pixel images."""

        from ml_collections import ConfigDict


        def get_config():
            return ConfigDict(
                {{
                    "method": {{
                        "name": "classifier",
                        "backbone": {{"name": "resnet_narrow", "width": 4, "norm_groups": 2}},
                        "brightness": 0.1,
                        "dropout": 0.1,
                    }},
                    "data": {{
                        "dataset": "image_folder",
                        "data_dir": {str(photographs)!r},
                        "image_size": 16,
                        "train_geometry": "shift_crop",
                        "eval_geometry": "resize",
                    }},
                    "optim": {{
                        "name": "sgd", "momentum": 0.9, "learning_rate": 0.05,
                        "ema_decay": 0.9, "warmup_steps": 2,
                    }},
                    "train": {{
                        "steps": 12, "batch_size": 16, "eval_batch_size": 8,
                        "log_every": 2, "eval_every": 4, "tensorboard": "off",
                    }},
                    "mesh": {{"data": 2}},
                    "checkpoint": {{"every_steps": 4}},
                    "report": {{"title": "tiny", "figures": ("accuracy",)}},
                }}
            )
        ''')
    )
    return path
