"""The files of weights that a run needs: what it starts from, and its teacher."""

import contextlib
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict

from fgkd_jax.cli.experiment import Experiment, method_to_dict
from fgkd_jax.cli.teachers import differing_options, stated
from fgkd_jax.data.base import Dataset
from fgkd_jax.data.vocabulary import check_vocabulary
from fgkd_jax.errors import UserError
from fgkd_jax.methods.defeat_options import DecoupledOptions
from fgkd_jax.methods.detector import Detector
from fgkd_jax.protocols import FROZEN, Method, Taught
from fgkd_jax.train.checkpoint import Checkpointer
from fgkd_jax.train.init import Overlay, abstract_variables
from fgkd_jax.train.pretrained import load_detector, load_exported, load_pretrained
from fgkd_jax.train.weight_files import READERS, file_sha256, load_metadata
from fgkd_jax.typing import Batch, Variables

VOCABULARY = "vocabulary fingerprint"
"""What a checkpoint calls the hash of the words that its run numbers."""


def say(line: str) -> None:
    """Prints one line for the person who watches, beside the progress bar.

    Args:
      line: what to say.
    """
    if jax.process_index() == 0:
        print(line, file=sys.stderr, flush=True)


def weight_hashes(experiment: Experiment) -> dict[str, str]:
    """Reads the hashes by which a resumed run knows its files of weights again.

    Args:
      experiment: names the files.

    Returns:
      SHA-256 by what the file is for.

    Raises:
      UserError: a file cannot be read.
    """
    files = {**_weight_files(experiment), "teacher": experiment.pretrained.teacher}
    return {
        "weights sha256" + (f" of {part}" if part != "backbone" else ""): file_sha256(path)
        for part, path in files.items()
        if path
    }


def check_files(experiment: Experiment) -> None:
    """Raises at once where a file of weights is lacking, superfluous, missing, or of another kind.

    Args:
      experiment: names the files.

    Raises:
      UserError: the method needs a teacher and is given no file, or the other way round; or what is
        named is no file that weights are read from.
    """
    teacher = experiment.pretrained.teacher
    taught = isinstance(experiment.method, Taught)
    if teacher and not taught:
        raise UserError(f"pretrained.teacher is {teacher}, but the method has no teacher")
    if taught and not teacher:
        raise UserError(
            "the method learns from a frozen teacher, but pretrained.teacher is empty; expected a "
            "file of its weights, as fgkd export writes it"
        )
    options = experiment.pretrained
    others = {f"others.{part}": path for part, path in options.others.items()}
    for option, path in {"path": options.path, **others, "teacher": teacher}.items():
        if path and Path(path).suffix not in READERS:
            raise UserError(
                f"pretrained.{option} is {path}, not a weights file; "
                f"expected one of {', '.join(READERS)}"
            )
        if path and not Path(path).is_file():
            raise UserError(f"pretrained.{option} is {path}, but there is no such file")


def tell_frozen(experiment: Experiment) -> None:
    """Says so where weights stay as they were drawn: stages are frozen, and no file is read.

    Args:
      experiment: names the files.
    """
    frozen = getattr(experiment.method, "frozen_stages", 0)
    if frozen and not experiment.pretrained.path:
        say(
            f"note: method.frozen_stages is {frozen}, but pretrained.path is empty, so that these "
            "stages keep random weights; expected a file of weights, or "
            "--config.method.frozen_stages=0"
        )


def weights_overlay(experiment: Experiment, method: Method, spec: Batch) -> Overlay:
    """Reads the files, and makes the function that puts their arrays in place of initial ones.

    The arrays are laid over the shapes of the variables first, so that what does not fit is told
    before anything is compiled.

    Args:
      experiment: names the files.
      method: with the sizes of its data set.
      spec: `jax.ShapeDtypeStruct` by batch key.

    Returns:
      Of variables, those with the arrays of all files, the teacher's too. The arrays are held until
      it is called; a second call reads the files again.

    Raises:
      UserError: a file cannot be read, or does not fit.
    """
    options = experiment.pretrained
    of_classes = _of_classes(method, spec) if options.path else frozenset()
    for path in _weight_files(experiment).values():
        _tell_differences(method, path)

    def read(variables: Variables) -> Variables:
        for part, path in _weight_files(experiment).items():
            if part not in options.others and isinstance(method, Detector):
                variables, notes = load_detector(
                    variables,
                    path,
                    of_classes=of_classes,
                    reinit_head=options.reinit_head,
                    # Its pyramid may read the first stages alone.
                    truncated=method.ends_early,
                )
                say(str(notes))
                continue
            has_head = part == "backbone" and "head" in variables["params"]
            variables, notes = load_pretrained(
                variables,
                path,
                backbone=part,
                head="head" if has_head else None,
                reinit_head=experiment.pretrained.reinit_head,
                # A method may take the first stages of another backbone alone, or of its own.
                truncated=part != "backbone" or getattr(method, "ends_early", False),
            )
            say(str(notes))
        if experiment.pretrained.teacher:
            frozen, notes = load_exported(variables[FROZEN], options.teacher)
            say(f"teacher: {notes}")
            variables = {**variables, FROZEN: frozen}
        return variables

    held = [read(abstract_variables(method, spec))]

    def overlay(variables: Variables) -> Variables:
        if not held:
            return read(variables)
        found = held.pop()
        return {
            name: jax.tree.map(_laid, found[name], initial) for name, initial in variables.items()
        }

    return overlay


def _laid(found: Any, initial: Any) -> Any:
    """What a file had for a variable; its initial value where that was nothing."""
    return initial if isinstance(found, jax.ShapeDtypeStruct) else found


def _of_classes(method: Method, spec: Batch) -> frozenset[str]:
    """Names of the variables of a detector whose shapes the number of classes decides."""
    if not isinstance(method, Detector):
        return frozenset()
    plain = _plain(method)
    sizes = [
        {name: leaf.shape for name, leaf in flatten_dict(dict(variables), sep="/").items()}
        for variables in (
            abstract_variables(dataclasses.replace(plain, num_classes=count), spec)
            for count in (2, 3)
        )
    ]
    return frozenset(name for name, shape in sizes[0].items() if shape != sizes[1][name])


def _plain(method: Detector) -> Detector:
    """A detector without its teacher, where it has one."""
    return method.student if isinstance(method, DecoupledOptions) else method


def _tell_differences(method: Any, path: str) -> None:
    """Says so where what a run starts from was trained to read images, or boxes, otherwise."""
    theirs = load_metadata(path).get("method")
    if not isinstance(theirs, Mapping):
        return
    ours = method_to_dict(_plain(method) if isinstance(method, Detector) else method)
    differing: list[tuple[str, ...]] = [
        (name,)
        for name in ("image_mean", "image_std")
        if name in ours and name in theirs and tuple(ours[name]) != tuple(theirs[name])
    ]
    if isinstance(method, Detector) and theirs.get("name") == ours["name"]:
        with contextlib.suppress(UserError):  # metadata of another version; tensors are checked
            differing = differing_options(ours, theirs)
    for option in differing:
        name, there, here = ".".join(option), stated(theirs, option), stated(ours, option)
        say(f"note: {path} was trained with {name} {there}; method.{name} is {here}")


def check_words(checkpointer: Checkpointer, dataset: Dataset, experiment: Experiment) -> None:
    """Raises before a run is resumed where it numbered words otherwise.

    The number of words is a shape of the parameters, so this comes before they are restored.

    Args:
      checkpointer: of the run.
      dataset: its data set.
      experiment: the experiment.

    Raises:
      UserError: the newest checkpoint was made with another vocabulary.
    """
    vocabulary, steps = dataset.info.vocabulary, checkpointer.steps()
    if experiment.text is None or vocabulary is None or not steps:
        return
    try:
        stored = checkpointer.metadata(steps[-1])
    except UserError:
        return  # damaged: whoever restores it says so, or takes the one before
    check_vocabulary(
        vocabulary, stored.get(VOCABULARY), owner=f"the checkpoint of step {steps[-1]}"
    )


def _weight_files(experiment: Experiment) -> dict[str, str]:
    """Files of pretrained weights by the backbone they are for."""
    files = {"backbone": experiment.pretrained.path, **experiment.pretrained.others}
    return {part: path for part, path in files.items() if path}
