"""The list of a checkpoint's files with sizes and hashes, by which damage is found.

Orbax does not notice a changed byte in the arrays' data: it restores a wrong number.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

MANIFEST = "MANIFEST.json"

# Orbax touches these after the manifest is written; nothing of a checkpoint is restored from them.
_NOT_LISTED = (MANIFEST, "_CHECKPOINT_METADATA", "commit_success.txt")


def write_manifest(directory: Path, *, hashes: bool) -> None:
    """Lists every file below a folder in `MANIFEST.json`.

    Hashing reads each file once, at about one gigabyte per second where they are still in memory.

    Args:
      directory: folder of a checkpoint that is complete but not committed yet.
      hashes: whether to list SHA-256 beside sizes.
    """
    files = {
        path.relative_to(directory).as_posix(): {
            "size": path.stat().st_size,
            "sha256": _sha256(path) if hashes else None,
        }
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name not in _NOT_LISTED
    }
    document = {"files": files, "sha256": _sha256_of_list(files)}
    (directory / MANIFEST).write_text(json.dumps(document, indent=1))


def damage(directory: Path, *, hashes: bool) -> str | None:
    """Compares the files of a checkpoint with its manifest.

    Args:
      directory: folder of a committed checkpoint.
      hashes: whether to compare hashes too; sizes always are.

    Returns:
      What is wrong, in a few words; None where everything is as it was written.
    """
    try:
        document = json.loads((directory / MANIFEST).read_text())
        files = document["files"]
        intact = document["sha256"] == _sha256_of_list(files)
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        return f"{MANIFEST} is not as it was written"
    for name, entry in files.items():
        size, digest = entry["size"], entry["sha256"]
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if hashes and digest is not None and _sha256(path) != digest:
            return f"{name} has another SHA-256 than when it was written"
    return None


def _sha256_of_list(files: dict[str, dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
