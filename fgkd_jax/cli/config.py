"""Configs: found by path or by name, completed with defaults, overridden from the command line."""

import dataclasses
import importlib.util
import inspect
import re
import traceback
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags

import fgkd_jax
from fgkd_jax.cli.experiment import DATA_OPTIONS, Experiment, method_to_dict, parse_experiment
from fgkd_jax.cli.network_titles import retitled
from fgkd_jax.cli.options import to_dict
from fgkd_jax.data.options import DataOptions
from fgkd_jax.errors import UserError, nearest


def config_folder() -> Path:
    """Returns the folder of the configs that come with the project.

    Returns:
      `fgkd_jax/configs` of an installed wheel, `configs` beside the package of a checkout.
    """
    package = Path(fgkd_jax.__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def find_config(name: str) -> Path:
    """Finds a config file.

    Args:
      name: a path to a Python file, or the name of a config that comes with the project, with or
        without its folder and ending.

    Returns:
      The file's path.

    Raises:
      UserError: there is no such file and no such name.
    """
    if Path(name).is_file():
        return Path(name)
    known = {path.stem: path for path in config_folder().glob("*.py")}
    stem = Path(name).name.removesuffix(".py")
    if stem in known and name in (stem, f"{stem}.py", f"configs/{stem}.py", f"configs/{stem}"):
        return known[stem]
    raise UserError(f"config '{name}' is neither a file nor a known name{nearest(stem, known)}")


def load_module(path: Path) -> types.ModuleType:
    """Runs a config file.

    Args:
      path: a Python file that defines `get_config`.

    Returns:
      The module.

    Raises:
      UserError: the file cannot be run or defines no `get_config`.
    """
    spec = importlib.util.spec_from_file_location(f"fgkd_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"config {path} is not a Python file; expected a name ending in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise _broken(path, error) from error
    if not callable(getattr(module, "get_config", None)):
        raise UserError(f"config {path} defines no function get_config")
    return module


def _broken(path: Path, error: Exception) -> UserError:
    """Names the line of a config at which running it failed."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    line = error.lineno if isinstance(error, SyntaxError) else next(reversed(lines), None)
    return UserError(f"config {path}, line {line}: {type(error).__name__}: {error}")


def load_config(spec: str, overrides: Sequence[str] = ()) -> Experiment:
    """Loads a config and applies overrides.

    Args:
      spec: path or name of a config, with `:ARGUMENT` behind it where its `get_config` takes one.
      overrides: arguments of the form `--config.section.option=value`.

    Returns:
      The experiment, checked.

    Raises:
      UserError: no such config, an unknown key (with the nearest valid one), or a bad value.
    """
    name, _, argument = spec.partition(":")
    path = find_config(name)
    get_config = load_module(path).get_config
    takes_argument = bool(inspect.signature(get_config).parameters)
    if argument and not takes_argument:
        raise UserError(f"config '{name}' takes no argument; got ':{argument}'")
    try:
        raw = get_config(argument) if argument else get_config()
    except UserError:
        raise
    except Exception as error:
        raise _broken(path, error) from error
    if not isinstance(raw, config_dict.ConfigDict):
        raise UserError(
            f"config {path}: get_config returns a {type(raw).__name__}; expected a ConfigDict"
        )
    experiment = parse_experiment(raw.to_dict())
    if not overrides:
        return experiment
    config = typed_config(experiment)
    config.method.name = method_to_dict(experiment.method)["name"]
    before = config.copy_and_resolve_references()
    apply_overrides(config, overrides, open_sections=_mappings(experiment))
    try:
        overridden = parse_experiment(config.to_dict())
    except UserError as error:
        raise UserError(f"{error}{_example(str(error), before, overrides)}") from error
    report = overridden.report
    if report.title == experiment.report.title:
        title = retitled(report.title, before=experiment.method, now=overridden.method)
        report = dataclasses.replace(report, title=title)
    return dataclasses.replace(overridden, report=report)


def _example(message: str, config: config_dict.ConfigDict, overrides: Sequence[str]) -> str:
    """Shows the value that a tuple had before it was overridden, where the message is about it."""
    for argument in overrides:
        key = argument.removeprefix("--config.").partition("=")[0]
        if key in _flat_names(config) and re.match(rf"config\.{re.escape(key)}(\[| is )", message):
            holder, name = _holder(config, key)
            if isinstance(holder[name], tuple) and holder[name]:
                return f", as in {holder[name]!r}"
    return ""


def apply_overrides(
    config: config_dict.ConfigDict, overrides: Sequence[str], *, open_sections: Sequence[str] = ()
) -> None:
    """Sets options of a config from command-line arguments, in place.

    Args:
      config: every option there is, with its type.
      overrides: arguments of the form `--config.section.option=value`.
      open_sections: sections that take options which the config does not list.

    Raises:
      UserError: an option is unknown or a value cannot be read as its type.
    """
    known = _flat_names(config)
    for argument in overrides:
        key = argument.removeprefix("--config.").partition("=")[0]
        section = key.rpartition(".")[0]
        if key in known:
            continue
        if section not in open_sections:
            raise UserError(f"config has no option '{key}'{_nearest_option(key, known)}")
        # What takes these options knows which there are, and says so.
        holder, name = _holder(config, key)
        holder[name] = config_dict.FieldReference(None, field_type=object)
    values = flags.FlagValues()
    arguments = ["fgkd", *overrides]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=arguments)
        values(arguments)
    except (flags.Error, TypeError, ValueError, KeyError) as error:
        raise _unreadable(error, config, overrides) from error


_EXPECTED: Mapping[type, str] = {bool: "True or False", int: "a whole number", float: "a number"}
"""What values of a type are called."""


def _unreadable(
    error: Exception, config: config_dict.ConfigDict, overrides: Sequence[str]
) -> UserError:
    """Says of the override that could not be read what its option takes."""
    for argument in overrides:
        key, _, value = argument.removeprefix("--config.").partition("=")
        if not str(error).startswith(f"flag {argument}: "):
            continue
        holder, name = _holder(config, key)
        kind = holder.get_type(name)
        if kind in _EXPECTED:
            return UserError(f"config.{key} is {value!r}; expected {_EXPECTED[kind]}")
        if issubclass(kind, config_dict.ConfigDict):
            inside = next(iter(holder[name]), "OPTION")
            return UserError(
                f"config.{key} is {value!r}; expected its options one by one, as in "
                f"--config.{key}.{inside}=VALUE"
            )
    return UserError(f"cannot read an override: {' '.join(str(error).split())}")


def _holder(config: config_dict.ConfigDict, key: str) -> tuple[config_dict.ConfigDict, str]:
    """The section that an option is in, and its name there."""
    *sections, name = key.split(".")
    for section in sections:
        config = config[section]
    return config, name


def _mappings(options: Any, prefix: str = "") -> list[str]:
    found = []
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if isinstance(value, Mapping):
            found.append(prefix + field.name)
        elif dataclasses.is_dataclass(value):
            found += _mappings(value, f"{prefix}{field.name}.")
    return found


def _flat_names(config: config_dict.ConfigDict, prefix: str = "") -> list[str]:
    names = []
    for name in config:
        names.append(prefix + name)
        if isinstance(config.get(name), config_dict.ConfigDict):
            names += _flat_names(config[name], f"{prefix}{name}.")
    return names


_OF_DATA = {
    field.name
    for kind in (DataOptions, *DATA_OPTIONS.values())
    for field in dataclasses.fields(kind)
}
"""Options of data, whatever the task."""


def _nearest_option(key: str, known: Sequence[str]) -> str:
    """A hint for a wrong option: by its name in its section, or elsewhere; else by its path."""
    section, _, last = key.rpartition(".")
    inside = sorted(name for name in known if name.rpartition(".")[0] == section)
    expected = f"; expected one of {', '.join(inside)}"
    if section == "data" and last in _OF_DATA:
        # Spelt right, for another task: what is spelt alike does something else.
        return expected
    if inside:
        hint = nearest(last, [name.rpartition(".")[2] for name in inside])
        if "did you mean" in hint:
            return hint.replace("'", f"'{section}." if section else "'", 1)
        elsewhere = [name for name in known if name.rpartition(".")[2] == last]
        return nearest(key, elsewhere) if elsewhere else expected
    hint = nearest(key, known)
    if "did you mean" in hint:
        return hint
    return nearest(key, [name for name in known if "." not in name])


def typed_config(options: Any) -> config_dict.ConfigDict:
    """Turns options into a `ConfigDict` that knows the type of every entry.

    Args:
      options: a dataclass of options.

    Returns:
      The config; an option that is None keeps the type it may have.
    """
    config = config_dict.ConfigDict()
    hints = typing.get_type_hints(type(options))
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            value = typed_config(value)
        elif isinstance(value, Mapping):
            value = config_dict.ConfigDict(to_dict(value))
        elif isinstance(hints[field.name], types.UnionType):
            # Read as a literal, and checked against the annotation afterwards.
            value = config_dict.FieldReference(to_dict(value), field_type=object)
        else:
            value = to_dict(value)
        config[field.name] = value
    return config
