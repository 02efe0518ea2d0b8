"""The files of weights that a run needs: what it starts from, and its teacher."""

import sys
from pathlib import Path
from typing import Any

import jax

from fgkd_jax.cli.experiment import Experiment
from fgkd_jax.cli.teachers import differing_option
from fgkd_jax.data.base import Dataset
from fgkd_jax.data.vocabulary import check_vocabulary
from fgkd_jax.errors import UserError
from fgkd_jax.protocols import FROZEN, Method, Taught
from fgkd_jax.train.checkpoint import Checkpointer
from fgkd_jax.train.init import Overlay, abstract_variables
from fgkd_jax.train.pretrained import PretrainedReport, load_exported, load_pretrained
from fgkd_jax.train.weight_files import READERS, file_sha256
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

    def read(variables: Variables) -> Variables:
        for part, path in _weight_files(experiment).items():
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
            frozen, notes = _load_teacher(method, variables[FROZEN], experiment, spec)
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


def _load_teacher(
    method: Any, variables: Variables, experiment: Experiment, spec: Batch
) -> tuple[Variables, PretrainedReport]:
    path = experiment.pretrained.teacher
    try:
        return load_exported(variables, path)
    except UserError as error:
        reason = differing_option(method, path, spec)
        if reason is None:
            raise
        raise UserError(reason) from error


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
