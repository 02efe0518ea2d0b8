"""fgkd train --config configs/msdn_cub50.py --workdir runs/msdn_cub50 --config.data.data_dir=FEATURES

MSDN on region features of MobileNetV2, for CUB-200-2011 or a part of it. CUB, which holds the
proposed split too, becomes FEATURES by

  fgkd features --config configs/classify_cub50.py --folder FEATURES \
    --config.data.dataset=cub200_2011/zero_shot --config.data.data_dir=CUB \
    --config.pretrained.path=WEIGHTS

Weight decay, steps, the weights of the sub-nets, the centring of attributes and the offset of
calibrated stacking were chosen on seen classes alone, over five divisions of the 40 seen species
of the first 50, by this command with and without `--override=--config.method.centre_attributes=True`:

  python benchmarks/msdn_search.py --config msdn_cub50:released --data_dir FEATURES --looks 4 \
    --at_once 1 --override=--config.train.steps=368 --weight_decay 1e-4 1e-2 --output search.json

368 steps were the most that were tried. `benchmarks/results/msdn_search.json` has what came of it.
What is left of the method in the other variants is trained by the same choice.

`:released` has the released hyperparameters of CUB instead, for 30 passes over the 1,837 training
images. `:paper`, `:text_to_image`, `:image_to_text` and `:undistilled` as in `msdn_cub`.
"""

from fgkd_jax.cli.zero_shot_recipes import CALIBRATED, FIGURES, region_features


def get_config(variant=""):
    """Returns the config.

    Args:
      variant: `released`, preset and ablation, separated by commas.
    """
    words = [word for word in variant.split(",") if word]
    released = "released" in words
    config = region_features(
        "msdn",
        "cub",
        title="MSDN on MobileNetV2's regions, 50 species"
        + (", released hyperparameters" if released else ""),
        variant=",".join(word for word in words if word != "released"),
        steps=1837 * 30 // 50 if released else 368,
        report={"paper": "none on 50 species", "figures": FIGURES},
    )
    config.train.eval_every = config.train.steps // 2
    if not released:
        config.optim.weight_decay = 1e-2
        config.method.centre_attributes = True
        config.report.unseen_offset = -0.13
        config.report.figures = (*FIGURES, *CALIBRATED)
    return config
