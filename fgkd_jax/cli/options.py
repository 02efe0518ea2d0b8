"""From dictionaries to frozen dataclasses; unknown keys, wrong types, misspelt values are told."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from fgkd_jax.errors import UserError, nearest

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], *, path: str) -> T:
    """Builds a dataclass of options, strictly.

    Args:
      cls: a dataclass whose fields are plain types, `Literal`s, tuples, optionals, mappings or
        further dataclasses.
      values: field values by name; a nested dataclass is a nested mapping.
      path: what to call the place in messages, for example `"config.train"`.

    Returns:
      The dataclass.

    Raises:
      UserError: a key is unknown or missing, or a value is not of the field's type.

    Example:
      >>> @dataclasses.dataclass(frozen=True)
      ... class Options:
      ...     steps: int = 10
      >>> build(Options, {"steps": 5}, path="config.train")
      Options(steps=5)
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise UserError(f"{path}.{name} is not an option{nearest(name, fields)}")
    required = [
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    for name in required:
        if name not in values:
            raise UserError(f"{path}.{name} is missing; expected {describe(hints[name])}")
    arguments = {
        name: convert(value, hints[name], path=f"{path}.{name}") for name, value in values.items()
    }
    try:
        return cls(**arguments)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def convert(value: Any, hint: Any, *, path: str) -> Any:
    """Checks a value against a type annotation, and converts what stands for the same thing.

    Lists become tuples, whole numbers become floats where a float is expected, and mappings
    become dataclasses.

    Args:
      value: the value.
      hint: the annotation.
      path: what to call the value in messages.

    Returns:
      The value as the annotation has it.

    Raises:
      UserError: the value does not fit.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if any(type(value) is type(arg) and value == arg for arg in args):
            return value
        raise UserError(f"{path} is {value!r}{nearest(str(value), [str(a) for a in args])}")
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, args, hint, path)
    if origin is tuple:
        return _convert_tuple(value, args, hint, path)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            return value
        if isinstance(value, Mapping):
            return build(hint, value, path=path)
    elif origin is not None and isinstance(value, origin):
        return value
    elif hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif hint is Any or (isinstance(value, hint) and not (hint is int and isinstance(value, bool))):
        return value
    raise _mismatch(value, hint, path)


def _convert_union(value: Any, args: tuple[Any, ...], hint: Any, path: str) -> Any:
    if value is None and type(None) in args:
        return None
    options = [arg for arg in args if arg is not type(None)]
    if len(options) == 1:
        return convert(value, options[0], path=path)
    for option in options:
        try:
            return convert(value, option, path=path)
        except UserError:
            continue
    raise _mismatch(value, hint, path)


def _convert_tuple(value: Any, args: tuple[Any, ...], hint: Any, path: str) -> Any:
    if not isinstance(value, tuple | list):
        raise _mismatch(value, hint, path)
    if len(args) == 2 and args[1] is Ellipsis:
        args = (args[0],) * len(value)
    if len(args) != len(value):
        raise _mismatch(value, hint, path)
    return tuple(
        convert(item, arg, path=f"{path}[{i}]")
        for i, (item, arg) in enumerate(zip(value, args, strict=True))
    )


def _mismatch(value: Any, hint: Any, path: str) -> UserError:
    return UserError(f"{path} is {value!r}; expected {describe(hint)}")


def describe(hint: Any) -> str:
    """Names a type annotation as a person would write it.

    Args:
      hint: an annotation.

    Returns:
      For example `"int"`, `"float or None"`, `"one of 'sgd', 'adamw'"`.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(repr(arg) for arg in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(arg) for arg in args))
    if hint is type(None):
        return "None"
    if origin is tuple:
        return f"({', '.join('...' if arg is Ellipsis else describe(arg) for arg in args)})"
    if dataclasses.is_dataclass(hint):
        return "a mapping of options"
    return getattr(origin or hint, "__name__", str(hint))


def to_dict(options: Any) -> Any:
    """Turns a dataclass of options back into plain dictionaries, tuples and values.

    Args:
      options: a dataclass, a mapping, a tuple or a plain value.

    Returns:
      What `build` accepts, and JSON can hold.
    """
    if dataclasses.is_dataclass(options) and not isinstance(options, type):
        return {
            field.name: to_dict(getattr(options, field.name))
            for field in dataclasses.fields(options)
            if field.init
        }
    if isinstance(options, Mapping):
        return {name: to_dict(value) for name, value in options.items()}
    if isinstance(options, tuple | list):
        return tuple(to_dict(value) for value in options)
    return options
