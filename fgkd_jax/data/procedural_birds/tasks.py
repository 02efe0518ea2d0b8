"""Which drawing a task asks for."""

from collections.abc import Callable, Mapping

from fgkd_jax.data.procedural_birds import detection, zero_shot
from fgkd_jax.data.procedural_birds.detection import DrawnScene
from fgkd_jax.data.procedural_birds.examples import DrawnExample, draw_example

_DRAWINGS: Mapping[str, Callable[[str, int], DrawnExample | DrawnScene]] = {
    zero_shot.PREFIX: zero_shot.draw_zero_shot,
    detection.PREFIX: detection.draw_detection,
}


def draw_task(split: str, index: int) -> DrawnExample | DrawnScene:
    """Draws an example of any configuration.

    Args:
      split: of `classification`, or one of another configuration with its `PREFIX` before it.
      index: which of the split's examples.

    Returns:
      The example.
    """
    for prefix, draw in _DRAWINGS.items():
        if split.startswith(prefix):
            return draw(split.removeprefix(prefix), index)
    return draw_example(split, index)
