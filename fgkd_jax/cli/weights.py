"""The files of weights that a run needs: what it starts from, and its teacher."""

import sys

import jax

from fgkd_jax.cli.experiment import Experiment
from fgkd_jax.data.base import Dataset
from fgkd_jax.data.vocabulary import Vocabulary, check_vocabulary
from fgkd_jax.errors import UserError
from fgkd_jax.protocols import FROZEN, Taught
from fgkd_jax.train.checkpoint import Checkpointer
from fgkd_jax.train.init import Overlay
from fgkd_jax.train.pretrained import load_exported, load_pretrained
from fgkd_jax.train.weight_files import file_sha256, load_metadata
from fgkd_jax.typing import Variables

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


def weights_overlay(experiment: Experiment) -> Overlay:
    """Makes the function that puts trained arrays in place of initial ones.

    Args:
      experiment: names the files.

    Returns:
      Of variables, those with the arrays of all files, the teacher's too.
    """

    def overlay(variables: Variables) -> Variables:
        for part, path in _weight_files(experiment).items():
            has_head = part == "backbone" and "head" in variables["params"]
            variables, notes = load_pretrained(
                variables,
                path,
                backbone=part,
                head="head" if has_head else None,
                reinit_head=experiment.pretrained.reinit_head,
                # A method may take the first stages of another backbone alone.
                truncated=part != "backbone",
            )
            say(str(notes))
        if experiment.pretrained.teacher:
            frozen, notes = load_exported(variables[FROZEN], experiment.pretrained.teacher)
            say(f"teacher: {notes}")
            variables = {**variables, FROZEN: frozen}
        return variables

    return overlay


def check_teacher(experiment: Experiment, dataset: Dataset) -> None:
    """Raises before a run begins where its method lacks the teacher it needs.

    Args:
      experiment: the experiment.
      dataset: its data set.

    Raises:
      UserError: the method needs a teacher and is given no file, or the other way round, or the
        file says that the teacher knows other classes or numbers words otherwise.
    """
    path = experiment.pretrained.teacher
    if not isinstance(experiment.method, Taught):
        if path:
            raise UserError(f"pretrained.teacher is {path}, but the method has no teacher")
        return
    if not path:
        raise UserError(
            "the method learns from a frozen teacher, but pretrained.teacher is empty; expected a "
            "file of its weights, as fgkd export writes it"
        )
    metadata = load_metadata(path)
    known, words = metadata.get("class_names"), metadata.get("vocabulary")
    if words and dataset.info.vocabulary and experiment.text:
        theirs = Vocabulary(tuple(words)).fingerprint
        check_vocabulary(dataset.info.vocabulary, theirs, owner=f"the teacher {path}")
    classes = dataset.info.class_names
    if known and len(known) != len(classes):
        raise UserError(
            f"the teacher {path} knows {len(known)} classes; expected {len(classes)}, those of "
            f"{dataset.info.name}"
        )
    for i, (their, ours) in enumerate(zip(known or (), classes, strict=False)):
        if their != ours:
            raise UserError(
                f"class {i} of the teacher {path} is {their!r}; expected {ours!r}, as in "
                f"{dataset.info.name}"
            )


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
