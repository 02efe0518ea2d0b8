"""Options of MSDN by data set, by what is computed, and by what is left of it."""

from collections.abc import Mapping
from typing import Any

from fgkd_jax.errors import UserError, nearest

RELEASED: Mapping[str, Mapping[str, Any]] = {
    "cub": {"calibration_weight": 0.1, "distillation_weight": 1e-3, "fusion": (0.9, 0.1)},
    "sun": {"calibration_weight": 1e-4, "distillation_weight": 1e-2, "fusion": (0.7, 0.3)},
    "awa2": {
        "calibration_weight": 0.12,
        "distillation_weight": 1e-7,
        "fusion": (1.0, 0.0),
        "normalize_words": True,
        "clip_attributes": True,
    },
}
"""Options of `MSDN` by data set, as released."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "reference": {},
    "paper": {
        "label_classes": "seen",
        "calibration": "example",
        "distillation": "printed",
        "swap_axes": True,
        "relate_regions": True,
    },
}
"""Options of `MSDN` by preset: the released computation, and the printed equations."""

ABLATIONS: Mapping[str, Mapping[str, Any]] = {
    "both": {},
    "undistilled": {"distillation_weight": 0.0},
    "text_to_image": {"subnets": ("text_to_image",)},
    "image_to_text": {"subnets": ("image_to_text",)},
}
"""Options of `MSDN` by what is left of it."""


def msdn_preset(name: str, *, dataset: str = "cub", ablation: str = "both") -> dict[str, Any]:
    """Looks the options of a preset up.

    Args:
      name: a key of `PRESETS`.
      dataset: a key of `RELEASED`; the paper's weights are taken to be the released ones.
      ablation: a key of `ABLATIONS`.

    Returns:
      Options of `MSDN`, for a config to complete.

    Raises:
      UserError: there is no such preset, data set or ablation.
    """
    for kind, key, known in (
        ("preset", name, PRESETS),
        ("data set", dataset, RELEASED),
        ("ablation", ablation, ABLATIONS),
    ):
        if key not in known:
            raise UserError(f"MSDN has no {kind} {key!r}{nearest(key, known)}")
    return {**RELEASED[dataset], **PRESETS[name], **ABLATIONS[ablation]}
