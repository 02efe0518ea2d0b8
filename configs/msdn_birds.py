"""fgkd train --config configs/msdn_birds.py --workdir runs/msdn_birds --config.data.data_dir=FEATURES

MSDN on region features of 36 drawn species, to recognise 12 more by their attributes. FEATURES is
made with a network that was shown 27 of the 36 and none of the 12:

  fgkd train --config configs/classify_birds.py:seen --workdir BACKBONE
  fgkd export --workdir BACKBONE --output WEIGHTS.safetensors
  fgkd features --config configs/classify_birds.py:seen --folder FEATURES --stage 3 \
    --thumbnails 96 --config.pretrained.path=WEIGHTS.safetensors \
    --config.data.extra_keys="('parts',)"

`fgkd eval --workdir runs/msdn_birds --split test_unseen --pictures PICTURES` shows where attributes
were found. `--config.data.validation_classes=0.25 --config.data.validation_fraction=0.1
--config.report.split=validation` makes a run that knows the seen species alone; the nine that then
play unseen ones are those that the network above was not shown. `:paper`, `:text_to_image`,
`:image_to_text` and `:undistilled` as in `msdn_cub`.

Rate, decay, steps, the weights of the sub-nets and the offset of calibrated stacking were chosen on
these nine species, over three seeds, of both sub-nets and of either by itself; `:paper` and
`:undistilled` take what was chosen for both:

  python benchmarks/msdn_search.py --config msdn_birds --data_dir FEATURES --fraction 0.1 \
    --divisions 1 --seeds 3 --learning_rate 1e-4 3e-4 --weight_decay 1e-3 3e-3 1e-2 3e-2 \
    --distillation_weight 1e-3 3e-2 --override=--config.train.steps=1000 --output search.json

`benchmarks/results/msdn_search.json` has what came of it.
"""

from fgkd_jax.cli.zero_shot_recipes import CALIBRATED, FIGURES, region_features

CHOSEN = {
    "text_to_image": {"weight_decay": 1e-3, "unseen_offset": -0.1},
    "image_to_text": {
        "learning_rate": 3e-4,
        "weight_decay": 1e-2,
        "steps": 250,
        "unseen_offset": -0.17,
    },
    "both": {"weight_decay": 1e-2, "unseen_offset": 0.07},
}
"""What was chosen on seen species, by what is left of the method."""


def get_config(variant=""):
    """Returns the config.

    Args:
      variant: preset and ablation, separated by commas.
    """
    words = variant.split(",")
    chosen = CHOSEN[next((name for name in CHOSEN if name in words), "both")]
    config = region_features(
        "msdn",
        "cub",
        title="MSDN on a narrow ResNet's regions, 48 drawn species",
        variant=variant,
        data={"extra_keys": ("parts",)},
        method={"fusion": (0.5, 0.5)},
        steps=chosen.get("steps", 1000),
        report={
            "paper": "none on drawn birds",
            "figures": (*FIGURES, *CALIBRATED, "pointing", "pointing_gain"),
            "unseen_offset": chosen["unseen_offset"],
        },
    )
    config.seed = 0
    config.train.eval_every = config.train.steps // 2
    config.optim.weight_decay = chosen["weight_decay"]
    config.optim.learning_rate = chosen.get("learning_rate", 1e-4)
    return config
