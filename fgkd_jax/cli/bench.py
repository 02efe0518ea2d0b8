"""`fgkd bench`: measures speed, as a ratio to an alternative measured in the same process."""

import os
import shlex
from typing import Any

from absl import flags

from fgkd_jax.cli.command import DEVICE_HELP, Command
from fgkd_jax.errors import UserError, nearest

DESCRIPTION = """\
Measures how fast something is and compares it with alternatives in the same process, taking one
sample of each in turn. The table has the median, the least and the most of the samples, and of
the ratios within each turn: above 1, ours is faster.

  sampler    the resample behind attention sampling, forward and with gradients
             against torch, copy (by default: as many bytes copied)
  mcl        the layer-wise contrast between networks, with gradients
             against torch (a loop over pairs of stages)
  msdn       a training step of zero-shot recognition on region features, optimiser included
             against torch (one product per map, as published), torch_one_product (as ours)
  step       the training step of a config on random images
             against torch, torch_channels_last, torch_compile (the same network in PyTorch)
  depthwise  the lowerings of the depthwise convolution, forward and with gradients
             against torch, torch_channels_last
  detect     suppression of 2,000 boxes, and RoIAlign of 512 over four levels, also with gradients
             against torch
  detect_step  the training step of a detector, and what each of its parts takes, on random
             scenes; without --config, of three small detectors
  data       the training pipeline of a config, on its data set
             against pillow (by default: the same crop and resize with Pillow)

  fgkd bench sampler --against torch,copy
  fgkd bench step --config classify_birds --against torch
  fgkd bench depthwise --against torch,torch_channels_last --output depthwise.json
  fgkd bench detect_step --config retinanet_coco --batch_size 2
  fgkd bench data --config classify_birds --batch_size 32
"""


def define(values: flags.FlagValues) -> None:
    """Adds the command's flags.

    Args:
      values: where the flags are defined.
    """
    flags.DEFINE_string("config", None, "config file or name, as of fgkd train", flag_values=values)
    flags.DEFINE_list("against", None, "alternatives, separated by commas", flag_values=values)
    flags.DEFINE_integer(
        "batch_size", None, "images of a call; the config's by default", flag_values=values
    )
    flags.DEFINE_integer("repeats", 7, "samples of each alternative", flag_values=values)
    flags.DEFINE_float("seconds", 0.5, "least length of a sample", flag_values=values)
    flags.DEFINE_string("output", None, "JSON file to write; must not exist", flag_values=values)
    flags.DEFINE_multi_string(
        "note",
        [],
        "something a reader of the JSON should know; may be repeated",
        flag_values=values,
    )
    flags.DEFINE_enum("device", None, ["cpu", "gpu", "tpu"], DEVICE_HELP, flag_values=values)


def run(values: flags.FlagValues, arguments: list[str]) -> int:
    """Runs the command.

    Args:
      values: parsed flags.
      arguments: the benchmark's name and overrides of the config.

    Returns:
      The exit status.

    Raises:
      UserError: the benchmark or an alternative is unknown, something it needs is missing, or the
        output exists.
    """
    # Two libraries share the device, so neither may take all of its memory at the start.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

    from fgkd_jax.cli.benchmarks import BENCHMARKS
    from fgkd_jax.cli.benchmarks.base import Request
    from fgkd_jax.cli.benchmarks.record import check_output, load_average, record, write
    from fgkd_jax.cli.benchmarks.timing import measure, table
    from fgkd_jax.cli.config import load_config
    from fgkd_jax.cli.session import say, use_platform

    names = [argument for argument in arguments if not argument.startswith("--config.")]
    overrides = [argument for argument in arguments if argument.startswith("--config.")]
    if len(names) != 1:
        raise UserError(f"fgkd bench needs one name; expected one of {', '.join(BENCHMARKS)}")
    if names[0] not in BENCHMARKS:
        raise UserError(f"fgkd bench has no '{names[0]}'{nearest(names[0], BENCHMARKS)}")
    benchmark = BENCHMARKS[names[0]]
    config, output = values["config"].value, values["output"].value
    if overrides and not config:
        raise UserError(f"{overrides[0]} overrides a config, but there is no --config")
    against = values["against"].value
    request = Request(
        experiment=load_config(config, overrides) if config else None,
        against=benchmark.default_against if against is None else tuple(against),
        batch_size=values["batch_size"].value,
    )
    benchmark.check(request)
    if output:
        check_output(output)
    use_platform(values["device"].value)
    settings: dict[str, Any] = {name: values[name].value for name in ("repeats", "seconds")}
    load = load_average()
    results = []
    for case in benchmark.cases(request):
        say(f"{benchmark.name}: {case.name}, {len(case.alternatives)} alternatives")
        results.append(measure(case, **settings))
    made = record(
        results,
        name=benchmark.name,
        command=_command(names[0], values, overrides),
        settings={**settings, "against": list(request.against)},
        load_before=load,
        notes=values["note"].value or [],
    )
    print("\n".join([table(results), *made["notes"]]))
    if output:
        write(output, made)
    return 0


def _command(name: str, values: flags.FlagValues, overrides: list[str]) -> str:
    """The command line that makes a result again, without where it is written."""
    given = [
        f"--{flag}={','.join(value) if isinstance(value, list) else value}"
        for flag in ("config", "against", "batch_size", "repeats", "seconds", "device")
        if (value := values[flag].value) is not None
    ]
    return shlex.join(["fgkd", "bench", name, *given, *overrides])


COMMAND = Command(
    name="bench",
    usage="NAME [--config CONFIG] [--against NAMES] [--output FILE] [--config.X=VALUE ...]",
    description=DESCRIPTION,
    define=define,
    run=run,
    takes_overrides=True,
)
