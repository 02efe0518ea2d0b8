"""`fgkd compile`: what a slice of a pod would do with the step of a config, without one."""

import shlex
from pathlib import Path
from typing import Any

from absl import flags

from fgkd_jax.cli.command import Command, get, require
from fgkd_jax.errors import UserError

DESCRIPTION = """\
Compiles the training step of a config for a slice of a TPU pod, and prints what the compiler says
of it: memory per chip, operations, bytes, exchanges between chips. Neither the chips nor the data
are needed, only the extra 'tpu' (libtpu, whose compiler runs anywhere). Sizes of the data set are
the published ones; nothing is run, and times are estimates from the chips' published figures.
Compiling takes minutes.

  fgkd compile --config tasn_cub --topology v5e:2x2
  fgkd compile --config lmcl_imagenet --topology v5e:16x16 --config.train.batch_size=8192
  fgkd compile --config msdn_sun --topology v4:2x2x1 --sizes_of xlsa17/SUN
  fgkd compile --config classify_birds --topology cpu:8 --config.mesh.fsdp=8

The batch size is that of all chips together. Topologies are a chip (v4, v5e, v5p, v6e, tpu7x) and
the shape of a slice; cpu:8 stands for eight virtual devices of the processor. The exit status is 1
where a step does not fit into the memory of a chip.
"""


def define(values: flags.FlagValues) -> None:
    """Adds the command's flags.

    Args:
      values: where the flags are defined.
    """
    flags.DEFINE_string("config", None, "config file or name, as of fgkd train", flag_values=values)
    flags.DEFINE_string("topology", None, "chip and shape, as v5e:16x16", flag_values=values)
    flags.DEFINE_string(
        "sizes_of",
        None,
        "data set whose published sizes hold, where the config's own are not known",
        flag_values=values,
    )
    flags.DEFINE_string(
        "step", None, "the one step to compile, train or meta; all by default", flag_values=values
    )
    flags.DEFINE_float(
        "memory", None, "GiB of a chip, in place of the published figure", flag_values=values
    )
    flags.DEFINE_string("output", None, "JSON file to write", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "whether --output may exist", flag_values=values)


def run(values: flags.FlagValues, arguments: list[str]) -> int:
    """Runs the command.

    Args:
      values: parsed flags.
      arguments: overrides of the config.

    Returns:
      The exit status: 0, or 1 where a step does not fit.

    Raises:
      UserError: an argument is wrong, the compiler is missing, or the output exists.
    """
    from fgkd_jax.cli.benchmarks.record import check_output
    from fgkd_jax.cli.compilation.report import record, render
    from fgkd_jax.cli.compilation.study import study_steps
    from fgkd_jax.cli.compilation.topology import open_slice
    from fgkd_jax.cli.config import load_config
    from fgkd_jax.cli.session import say
    from fgkd_jax.cli.workdir import write_json

    stray = [argument for argument in arguments if not argument.startswith("--config.")]
    if stray:
        raise UserError(f"fgkd compile takes no argument '{stray[0]}'; see fgkd compile --help")
    config = require(values, "config", command="compile")
    topology = require(values, "topology", command="compile")
    output, memory = get(values, "output"), get(values, "memory")
    if memory is not None and not memory > 0:
        raise UserError(f"--memory is {memory}; expected more than 0 GiB")
    if output and not get(values, "overwrite"):
        check_output(output)
    experiment = load_config(config, arguments)
    where = open_slice(topology)

    from fgkd_jax.cli.abstract_run import abstract_run
    from fgkd_jax.train.sharding import make_mesh

    mesh = make_mesh(experiment.mesh, devices=where.devices)
    abstract = abstract_run(experiment, mesh=mesh, sizes_of=get(values, "sizes_of"))
    limit = None if memory is None else round(memory * 2**30)
    made = record(
        study_steps(abstract, where, only=get(values, "step"), memory_bytes=limit, say=say),
        abstract,
        where,
        experiment,
        command=_command(values, config, topology, arguments),
    )
    print(render(made))
    if output:
        write_json(Path(output), made)
    return 1 if any(step["fits"] is False for step in made["steps"].values()) else 0


def _command(values: flags.FlagValues, config: str, topology: str, overrides: list[str]) -> str:
    """The command line that makes a result again, without where it is written."""
    given: list[Any] = ["fgkd", "compile", "--config", config, "--topology", topology]
    for name in ("sizes_of", "step", "memory"):
        if get(values, name) is not None:
            given += [f"--{name}", str(get(values, name))]
    return shlex.join([*given, *overrides])


COMMAND = Command(
    name="compile",
    usage="--config CONFIG --topology CHIP:SHAPE [--output FILE] [--config.OPTION=VALUE ...]",
    description=DESCRIPTION,
    define=define,
    run=run,
    takes_overrides=True,
)
