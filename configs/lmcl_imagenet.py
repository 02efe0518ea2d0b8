"""fgkd train --config configs/lmcl_imagenet.py --workdir runs/lmcl_imagenet

Networks that learn ImageNet together by mutual contrast of their stages with memory banks, matched
by a meta-network, 100 epochs: two ResNet-18, or `:resnet34,resnet50` and the like. An auxiliary
branch has one block per stage. Beside a ShuffleNetV2 the last three stages are matched. The data set is prepared by TensorFlow Datasets.
"""

from fgkd_jax.cli.mutual_recipes import mutual_imagenet


def get_config(networks="resnet18"):
    """Returns the config.

    Args:
      networks: their names, separated by commas.
    """
    stages = 3 if "shufflenet" in networks else 4

    def method(backbones):
        blocks = [3 if "shufflenet" in one["name"] else 4 for one in backbones]
        return {
            "name": "lmcl_bank",
            "networks": backbones,
            "stages": stages,
            "branch_options": tuple({"stage_sizes": (1,) * count} for count in blocks),
        }

    return mutual_imagenet(
        method,
        networks=networks,
        title="L-MCL",
        optim={"step_boundaries": (0.3, 0.6, 0.9)},
        epochs=100,
    )
