"""Files of named arrays: safetensors, NumPy and PyTorch."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from fgkd_jax.errors import UserError

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts put a state dict beside their epoch and optimiser."""


def load_arrays(path: str | PathLike[str]) -> dict[str, np.ndarray]:
    """Reads a file of named arrays.

    Nothing in the file is executed: pickled objects are refused in every format. A "module." in
    front of all names (PyTorch's `DataParallel`) is dropped, and a state dict is taken out of the
    checkpoint around it.

    Args:
      path: .safetensors, .npz, or PyTorch's .pt, .pth, .th, .bin or .tar, which need PyTorch.

    Returns:
      Arrays by name, in the order of the file.

    Raises:
      UserError: no such file, another kind of file, a damaged one, one without arrays, or PyTorch
        is needed and not installed.
    """
    file = _existing(path)
    try:
        arrays = READERS[file.suffix](file)
    except UserError:
        raise
    except Exception as error:  # what a decoder raises on damaged bytes is anyone's guess
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: not a readable {file.suffix} file of arrays: {reason}") from error
    if not arrays:
        raise UserError(f"{path}: holds no arrays")
    if all(name.startswith("module.") for name in arrays):
        arrays = {name.removeprefix("module."): array for name, array in arrays.items()}
    return arrays


METADATA = "fgkd_jax"
"""The key of a safetensors file's metadata under which ours is, as JSON."""

_IN_NPZ = f"__{METADATA}__"


def save_arrays(
    path: str | PathLike[str],
    arrays: Mapping[str, np.ndarray],
    *,
    metadata: Mapping[str, Any],
    overwrite: bool = False,
) -> None:
    """Writes a file of named arrays, whole or not at all.

    Args:
      path: .safetensors or .npz; its folder is made where it is missing.
      arrays: by name.
      metadata: JSON values, for `load_metadata`.
      overwrite: whether a file that is there already may be replaced.

    Raises:
      UserError: another kind of file, one that is there already, or it cannot be written.
    """
    file = Path(path)
    check_output(file, overwrite=overwrite)
    temporary = file.with_name(f".{os.getpid()}.{file.name}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            WRITERS[file.suffix](temporary, arrays, json.dumps(metadata))
            check_output(file, overwrite=overwrite)  # writing takes a while
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path} cannot be written: {reason}") from error


def check_output(path: str | PathLike[str], *, overwrite: bool) -> None:
    """Checks that `save_arrays` may write a file; writes nothing.

    Args:
      path: the file.
      overwrite: whether one that is there already may be replaced.

    Raises:
      UserError: another kind of file, or one that is there already.
    """
    file = Path(path)
    if file.suffix not in WRITERS:
        raise UserError(f"output {path} ends in {file.suffix!r}; expected {' or '.join(WRITERS)}")
    if file.exists() and not (overwrite and file.is_file()):
        raise UserError(f"output {path} exists already; expected a name that is free")


def load_metadata(path: str | PathLike[str]) -> dict[str, Any]:
    """Reads what `save_arrays` was given beside the arrays.

    Args:
      path: the file, in any format that `load_arrays` reads.

    Returns:
      The JSON values; none where the file has none of ours.

    Raises:
      UserError: no such file, another kind of file, or a damaged one.
    """
    file = _existing(path)
    if file.suffix not in WRITERS:
        return {}
    try:
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as loaded:
                text = str(loaded[_IN_NPZ]) if _IN_NPZ in loaded.files else "{}"
        else:
            with safetensors.safe_open(file, framework="numpy") as opened:
                text = (opened.metadata() or {}).get(METADATA, "{}")
        return json.loads(text)
    except Exception as error:  # what a decoder raises on damaged bytes is anyone's guess
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: its metadata is not readable: {reason}") from error


def _existing(path: str | PathLike[str]) -> Path:
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{path}: no such file")
    if file.suffix not in READERS:
        raise UserError(f"{path}: not a weights file; expected one of {', '.join(READERS)}")
    return file


def file_sha256(path: str | PathLike[str]) -> str:
    """The SHA-256 of a file, to tell later whether it is still the same one.

    Args:
      path: the file.

    Returns:
      64 hexadecimal digits.

    Raises:
      UserError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"weights {path} cannot be read: {error.strerror}") from error


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(path)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with open(path, "rb") as file:  # opened here: np.load leaves it open where it fails
        loaded = np.load(file, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise UserError(f"{path}: holds one array without a name; expected an .npz archive")
        with loaded:
            return {name: loaded[name] for name in loaded.files if name != _IN_NPZ}


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path}: reading it needs PyTorch: pip install 'fgkd-jax[torch]', "
            "or convert it to .safetensors"
        ) from error
    state: Any = torch.load(path, map_location="cpu", weights_only=True)
    for wrapper in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping):
        raise UserError(f"{path}: holds a {type(state).__name__}; expected a dict of tensors")
    tensors = {str(name): t for name, t in state.items() if isinstance(t, torch.Tensor)}
    return {
        name: (t.float() if t.dtype == torch.bfloat16 else t).detach().numpy()
        for name, t in tensors.items()
    }


READERS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".th": _read_torch,
    ".bin": _read_torch,
    ".tar": _read_torch,
}


def _write_safetensors(path: Path, arrays: Mapping[str, np.ndarray], metadata: str) -> None:
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    safetensors.numpy.save_file(whole, path, metadata={METADATA: metadata})


def _write_npz(path: Path, arrays: Mapping[str, np.ndarray], metadata: str) -> None:
    named: dict[str, Any] = {**arrays, _IN_NPZ: np.array(metadata)}
    with path.open("wb") as file:
        np.savez(file, **named)


WRITERS: dict[str, Callable[[Path, Mapping[str, np.ndarray], str], None]] = {
    ".safetensors": _write_safetensors,
    ".npz": _write_npz,
}
