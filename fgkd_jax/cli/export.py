"""`fgkd export`: writes the network that ships, without the scaffold of its training."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from absl import flags

from fgkd_jax.cli.command import Command, define_run, get, require
from fgkd_jax.errors import UserError
from fgkd_jax.protocols import Exportable, Method
from fgkd_jax.typing import Variables

DESCRIPTION = """\
Writes one network of a run to a file: its backbone and what it predicts by, a classifier, PMA's
attention or a detector's pyramid and heads, without auxiliary branches, projections, matching
networks, teachers, other networks and the optimiser. The file says what is in it (backbone,
classes, image size, mean and std), and other runs start from it or learn from it:

  fgkd export --workdir runs/mcl --network 1 --output mcl.safetensors
  fgkd train --config configs/classify_folder.py --workdir runs/mine \\
    --config.pretrained.path=mcl.safetensors

  fgkd export --workdir runs/teacher --output teacher.safetensors
  fgkd train --config configs/defeat_faster_rcnn_birds.py --workdir runs/defeat \\
    --config.pretrained.teacher=teacher.safetensors

--names torch writes a classifier's tensors as torchvision and the like name and lay them out, for
load_state_dict. The newest checkpoint is taken unless --checkpoint=best asks for the one that was
best on validation.
"""

FORMAT = 1
"""Version of the metadata; a file of a later one is refused."""


def define(values: flags.FlagValues) -> None:
    """Adds the command's flags.

    Args:
      values: where the flags are defined.
    """
    define_run(values)
    flags.DEFINE_string("output", None, "file to write, .safetensors or .npz", flag_values=values)
    flags.DEFINE_integer(
        "network", 0, "which of the networks of a run that trains several", flag_values=values
    )
    flags.DEFINE_enum(
        "names", "jax", ["jax", "torch"], "whose names and layout of tensors", flag_values=values
    )
    flags.DEFINE_boolean("overwrite", False, "replace a file that is there", flag_values=values)


def run(values: flags.FlagValues, arguments: list[str]) -> int:
    """Runs the command.

    Args:
      values: parsed flags.
      arguments: none are expected.

    Returns:
      The exit status.

    Raises:
      UserError: the workdir holds no run or no checkpoint, there is no such network, or the file
        cannot be written or is there already.
    """
    from fgkd_jax.cli import results
    from fgkd_jax.train.weight_files import check_output

    if arguments:
        raise UserError(f"fgkd export takes no argument '{arguments[0]}'; see fgkd export --help")
    workdir = require(values, "workdir", command="export")
    output = require(values, "output", command="export")
    check_output(output, overwrite=get(values, "overwrite"))
    restored = results.restore_run(values, workdir)
    print(
        write_network(
            restored,
            output,
            network=get(values, "network"),
            names=get(values, "names"),
            overwrite=get(values, "overwrite"),
        )
    )
    return 0


def write_network(
    restored: Any, output: str, *, network: int, names: str, overwrite: bool = False
) -> str:
    """Writes one network of a run.

    Args:
      restored: the run, of type `cli.results.Restored`.
      output: the file.
      network: which network, counted from 0.
      names: a key of `NAMES`.
      overwrite: whether a file that is there already may be replaced.

    Returns:
      A line that says what was written.

    Raises:
      UserError: there is no such network, or the file cannot be written or is there already.
    """
    import jax

    from fgkd_jax import __version__
    from fgkd_jax.cli.experiment import method_to_dict
    from fgkd_jax.data.detection_pipeline import DetectionOptions
    from fgkd_jax.train.weight_files import save_arrays

    method = restored.trainer.run.method
    info, data = restored.dataset.info, restored.experiment.data
    if not isinstance(method, Exportable):
        kind = type(method).__name__
        raise UserError(f"method {kind} has no network to export; expected one with 'export'")
    # What predicts is exported: the moving average, where there is one.
    exported = method.export(jax.device_get(restored.state.variables(ema=True)), network=network)
    described = method_to_dict(exported.method)
    with_boxes = isinstance(data, DetectionOptions)
    rows, columns = exported.image_size or (data.buckets[0] if with_boxes else data.size)
    metadata = {
        "format": FORMAT,
        "method": described,
        "names": names,
        "image_size": [rows, columns],
        "eval_geometry": "fit" if with_boxes else data.eval_geometry,
        "class_names": list(info.class_names),
        **_words(restored),
        "trained": {
            "data": info.name,
            "method": method_to_dict(restored.trainer.run.method)["name"],
            "network": network,
            "step": restored.step,
            "version": __version__,
        },
    }
    arrays = _named(exported.variables, names)
    save_arrays(output, arrays, metadata=metadata, overwrite=overwrite)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(exported.variables["params"]))
    return (
        f"{output}: network {network} after {restored.step} steps, "
        f"{described.get('backbone', described)['name']}, {info.num_classes} classes, "
        f"{count} parameters, "
        f"images of {rows} x {columns}"
    )


def _words(restored: Any) -> dict[str, Any]:
    """The vocabulary that the network's phrases are numbered by, where it reads any."""
    vocabulary = restored.dataset.info.vocabulary
    reads = restored.experiment.text is not None and vocabulary is not None
    return {"vocabulary": list(vocabulary.words)} if reads else {}


def _named(variables: Variables, names: str) -> Mapping[str, Any]:
    from fgkd_jax.train.pretrained import named_arrays, to_torch_state_dict

    others = sorted(set(variables["params"]) - {"backbone", "head"})
    if names == "torch" and others:
        raise UserError(
            f"--names is torch, but the network has a part '{others[0]}', which has no name there; "
            "expected jax"
        )
    return {"jax": named_arrays, "torch": to_torch_state_dict}[names](variables)


@dataclasses.dataclass(frozen=True)
class LoadedNetwork:
    """An exported network, read back.

    Attributes:
      method: predicts with it.
      variables: what its functions take.
      metadata: what the file says of itself: `class_names`, `image_size` and where it comes from.
    """

    method: Method
    variables: Variables
    metadata: Mapping[str, Any]


def load_network(path: str) -> LoadedNetwork:
    """Reads a file of `fgkd export`.

    Args:
      path: the file.

    Returns:
      The network; `method.predict(variables, {"image": images})` takes uint8 [b, h, w, 3].

    Raises:
      UserError: the file is damaged or was not written by `fgkd export`.
    """
    import jax
    import numpy as np

    from fgkd_jax.cli.experiment import parse_method
    from fgkd_jax.train.init import abstract_variables
    from fgkd_jax.train.pretrained import load_exported
    from fgkd_jax.train.weight_files import load_metadata

    metadata = load_metadata(path)
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path}: its format is {metadata.get('format')}; expected {FORMAT}")
    method = parse_method(metadata["method"], path=f"{path}: method")
    image = jax.ShapeDtypeStruct((1, *metadata["image_size"], 3), np.uint8)
    variables, _ = load_exported(abstract_variables(method, {"image": image}), path)
    return LoadedNetwork(method, variables, metadata)


COMMAND = Command(
    name="export",
    usage="--workdir FOLDER [--network 0] --output FILE [--names jax|torch]",
    description=DESCRIPTION,
    define=define,
    run=run,
)
