"""`fgkd data`: builds or checks a data set."""

from absl import flags

from fgkd_jax.cli.command import Command, get
from fgkd_jax.errors import UserError, nearest

DESCRIPTION = """\
build draws a data set that the project draws itself, and says where to get any other.
check counts the examples of each split, decodes every image and lists what is missing, wrong or
corrupt, with where to get it; the exit status is 1 when something is.

  fgkd data build procedural_birds/classification
  fgkd data check cub200_2011 --data_dir /data/CUB_200_2011
  fgkd data check cub200_2011 --data_dir /data/CUB_200_2011 --captions_dir /data/text_c10

data sets: procedural_birds/classification, procedural_birds/zero_shot, cub200_2011,
cub200_2011/zero_shot, cifar10, cifar100, flowers102, fgvc_aircraft, fgvc_aircraft/trainval,
image_folder, xlsa17/NAME (SUN, CUB, AWA2), features (what fgkd features wrote), and tfds/NAME for
those that TensorFlow Datasets prepares (cars196, i_naturalist2017, ...); with boxes
procedural_birds/detection, coco_json, voc_xml and voc_xml/trainval.
"""


def define(values: flags.FlagValues) -> None:
    """Adds the command's flags.

    Args:
      values: where the flags are defined.
    """
    flags.DEFINE_string(
        "data_dir",
        None,
        "folder of the data set; $FGKD_DATA_DIR or ~/.cache/fgkd_jax by default",
        flag_values=values,
    )
    flags.DEFINE_string(
        "captions_dir",
        None,
        "check: folder of captions of the images, text_c10 or the one it lies in",
        flag_values=values,
    )


def run(values: flags.FlagValues, arguments: list[str]) -> int:
    """Runs the command.

    Args:
      values: parsed flags.
      arguments: `build` or `check`, and the data set's name.

    Returns:
      The exit status.

    Raises:
      UserError: the action or the data set is unknown, or it cannot be built.
    """
    from fgkd_jax.data.registry import build_dataset, check_dataset

    if len(arguments) != 2:
        raise UserError("fgkd data needs an action and a data set; see fgkd data --help")
    action, name = arguments
    if action not in ("build", "check"):
        raise UserError(f"fgkd data cannot '{action}'{nearest(action, ['build', 'check'])}")
    data_dir = get(values, "data_dir")
    captions_dir = get(values, "captions_dir")
    if action == "build":
        if captions_dir is not None:
            raise UserError(
                "--captions_dir is an option of fgkd data check; expected none with build"
            )
        build_dataset(name, data_dir=data_dir)
        return 0
    report = check_dataset(name, data_dir=data_dir, captions_dir=captions_dir)
    print(report)
    return 0 if report.ok else 1


COMMAND = Command(
    name="data",
    usage="build|check NAME [--data_dir FOLDER] [--captions_dir FOLDER]",
    description=DESCRIPTION,
    define=define,
    run=run,
)
