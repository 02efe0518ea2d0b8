"""Pytrees on disk through Orbax: the only file that knows it.

A tree is stored as named plain arrays, which is all that Orbax is asked to hold. Typed PRNG keys
become their words; empty arrays are only described; what is no array (None, empty containers,
NamedTuples) comes from the tree that is restored into.
"""

import dataclasses
import json
import logging
import math
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from fgkd_jax.errors import UserError
from fgkd_jax.train.manifest import write_manifest
from fgkd_jax.typing import PyTree

DOCUMENT = "metadata.json"
LEFTOVER = ocp.utils.TMP_DIR_SUFFIX

_TIMEOUT_SECONDS = 1800

Described = Mapping[str, Mapping[str, Any]]


class ArrayStore:
    """Writes trees in the background and reads them back onto any devices."""

    def __init__(self, *, hashes: bool) -> None:
        """Starts the threads.

        Args:
          hashes: whether the manifest of a tree holds hashes; a tree without them is not trusted
            to be whole when Orbax fails to read it.
        """
        for name in ("absl", "asyncio"):
            logging.getLogger(name).addFilter(_not_from_orbax)
        if not isinstance(sys.unraisablehook, _UnraisableHook):
            sys.unraisablehook = _UnraisableHook(sys.unraisablehook)
        self._hashes = hashes
        self._handler = _Handler(hashes=hashes)
        self._orbax = ocp.AsyncCheckpointer(self._handler, timeout_secs=_TIMEOUT_SECONDS)

    def write(self, path: Path, tree: PyTree, document: Mapping[str, Any]) -> None:
        """Copies a tree off the devices and starts to write it; `wait` before the next.

        Args:
          path: the folder to be, which appears under this name when it is complete; until then
            its name ends in `LEFTOVER`.
          tree: arrays, typed PRNG keys and numbers.
          document: JSON values, stored in `DOCUMENT` beside the arrays.
        """
        with jax.transfer_guard("allow"):  # Orbax's copies to the host are implicit on a GPU
            arrays, described = to_store(tree)
            self._handler.document = {"leaves": described, **document}
            self._orbax.save(path, args=_SaveArgs(arrays))

    def wait(self) -> None:
        """Waits until what was started is committed, and raises what went wrong."""
        self._orbax.wait_until_finished()

    def close(self) -> None:
        """Waits and ends the threads."""
        self._orbax.close()

    def read(self, path: Path, abstract_tree: PyTree, described: Described) -> PyTree:
        """Reads a tree back.

        Args:
          path: folder of a committed tree.
          abstract_tree: leaves with shape, dtype and sharding.
          described: the entry `leaves` of its document.

        Returns:
          The tree, placed as the abstract tree asks.

        Raises:
          UserError: the stored tree is of another structure, or unreadable and without hashes.
        """
        plan = RestorePlan(abstract_tree, described, where=str(path))
        with jax.transfer_guard("allow"):
            try:
                arrays = self._orbax.restore(path, args=_RestoreArgs(plan.item, plan.arguments))
            except Exception as error:
                if self._hashes:  # then the files are known to be whole
                    raise
                reason = str(error).splitlines()[0][:200]
                raise UserError(
                    f"cannot restore {path}: {reason}; with verify_hashes a damaged checkpoint"
                    " would have been passed over"
                ) from error
            return plan.assemble(arrays)


def to_store(tree: PyTree) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Splits a tree into arrays to store and a description of every leaf.

    Args:
      tree: arrays, typed PRNG keys and numbers.

    Returns:
      The arrays by path, and shape, dtype and key implementation of all leaves by path, as JSON
      values.

    Raises:
      UserError: two leaves have one path, a leaf is no number, or there is nothing to store.
    """
    named = _named(tree)
    described = {name: _describe(name, leaf) for name, leaf in named.items()}
    arrays: dict[str, Any] = {}
    for name, leaf in named.items():
        if _is_key(leaf):
            arrays[name] = jax.random.key_data(leaf)
            described[name]["key"] = str(jax.random.key_impl(leaf))
        elif math.prod(described[name]["shape"]) > 0:
            on_device = isinstance(leaf, jax.Array)
            arrays[name] = leaf if on_device else np.asarray(leaf, described[name]["dtype"])
    if not arrays:
        raise UserError("the tree to save holds no numbers; expected at least one array")
    return arrays, described


class RestorePlan:
    """How to read a tree back with given shapes, dtypes and shardings.

    Attributes:
      item: what is read, by path.
      arguments: how each array is placed, by path.
    """

    def __init__(self, abstract_tree: PyTree, described: Described, *, where: str) -> None:
        """Compares the tree that is wanted with what is stored.

        Args:
          abstract_tree: leaves with shape, dtype and sharding.
          described: the description that was stored.
          where: the checkpoint, for the message.

        Raises:
          UserError: a leaf is missing, superfluous, or of another shape or dtype.
        """
        self._wanted = _named(abstract_tree)
        self._treedef = jax.tree.structure(abstract_tree)
        self._described = described
        _check(self._wanted, described, where)
        self.item: dict[str, Any] = {}
        self.arguments: dict[str, Any] = {}
        for name, leaf in self._wanted.items():
            shape, dtype = self._stored(name)
            if math.prod(shape) > 0:
                sharding = _sharding(leaf)
                self.item[name] = jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
                self.arguments[name] = ocp.ArrayRestoreArgs(
                    restore_type=jax.Array, sharding=sharding, global_shape=shape, dtype=dtype
                )

    def assemble(self, arrays: Mapping[str, Any]) -> PyTree:
        """Builds the tree from the arrays that were read.

        Args:
          arrays: by path.

        Returns:
          The tree, placed as the abstract tree asks.
        """
        leaves = []
        for name, leaf in self._wanted.items():
            implementation = self._described[name].get("key")
            if implementation:
                leaves.append(jax.random.wrap_key_data(arrays[name], impl=implementation))
            elif name in arrays:
                leaves.append(arrays[name])
            else:
                shape, dtype = self._stored(name)
                leaves.append(jax.device_put(np.zeros(shape, dtype), _sharding(leaf)))
        return jax.tree.unflatten(self._treedef, leaves)

    def _stored(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and dtype in the store: those of its words for a typed key."""
        entry = self._described[name]
        shape = tuple(entry["shape"])
        if "key" not in entry:
            return shape, jax.numpy.dtype(entry["dtype"])
        words = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=entry["key"])))
        return (*shape, *words.shape), words.dtype


def _named(tree: PyTree) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in named:
            raise UserError(f"two leaves of the tree have the path {name!r}; expected one of each")
        named[name] = leaf
    return named


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _describe(name: str, leaf: Any) -> dict[str, Any]:
    if _is_key(leaf):
        return {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
    plain = leaf if hasattr(leaf, "dtype") and hasattr(leaf, "shape") else np.asarray(leaf)
    if np.dtype(plain.dtype).kind in "OSU":
        raise UserError(f"leaf {name!r} of the tree is a {type(leaf).__name__}; expected numbers")
    dtype = jax.dtypes.canonicalize_dtype(plain.dtype)
    return {"shape": list(plain.shape), "dtype": str(dtype)}


def _check(wanted: Mapping[str, Any], described: Described, where: str) -> None:
    for name, leaf in wanted.items():
        expected = _text(_describe(name, leaf))
        if name not in described:
            raise UserError(
                f"checkpoint {where} has no {name}; the configuration expects it as {expected}"
            )
        if (found := _text(described[name])) != expected:
            raise UserError(
                f"checkpoint {where} holds {name} as {found}; the configuration expects {expected}"
            )
    for name, entry in described.items():
        if name not in wanted:
            raise UserError(
                f"checkpoint {where} holds {name} as {_text(entry)}; the configuration has no such"
                " leaf"
            )


def _text(entry: Mapping[str, Any]) -> str:
    return f"{entry['dtype']}[{','.join(map(str, entry['shape']))}]"


def _sharding(leaf: Any) -> jax.sharding.Sharding:
    sharding = getattr(leaf, "sharding", None)
    return sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


class _Handler(ocp.PyTreeCheckpointHandler):
    """Orbax's handler of arrays, with our two files as part of what is committed at once."""

    def __init__(self, *, hashes: bool) -> None:
        super().__init__()
        self._hashes = hashes
        self.document: dict[str, Any] = {}

    def finalize(self, directory: Any) -> None:
        """Runs on one process, after all have written and before the rename that commits."""
        super().finalize(directory)
        folder = Path(directory)
        (folder / DOCUMENT).write_text(json.dumps(self.document, indent=1, allow_nan=False))
        write_manifest(folder, hashes=self._hashes)


@ocp.args.register_with_handler(_Handler, for_save=True)
@dataclasses.dataclass
class _SaveArgs(ocp.args.PyTreeSave):
    """Orbax looks handlers up by the class of their arguments."""


@ocp.args.register_with_handler(_Handler, for_restore=True)
@dataclasses.dataclass
class _RestoreArgs(ocp.args.PyTreeRestore):
    """Orbax looks handlers up by the class of their arguments."""


def _not_from_orbax(record: logging.LogRecord) -> bool:
    """Keeps Orbax's log lines off the terminal: what fails in it is raised to us as well."""
    trace = record.exc_info[2] if record.exc_info else None
    files = [record.pathname, *(frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace))]
    ours = not any(f"{os.sep}orbax{os.sep}" in file for file in files)
    return ours and "tensorstore" not in record.getMessage()


class _UnraisableHook:
    """Reports what cannot be raised, but not the echoes of an array that failed to be written.

    The first failure ends Orbax's event loop and is raised to us; each array that TensorStore is
    still busy with then finds the loop closed, and a traceback for each would be printed.
    """

    def __init__(self, report: Callable[[Any], Any]) -> None:
        self._report = report

    def __call__(self, unraisable: Any) -> None:
        echo = unraisable.object is None and isinstance(unraisable.exc_value, RuntimeError)
        if not (echo and str(unraisable.exc_value) == "Event loop is closed"):
            self._report(unraisable)
