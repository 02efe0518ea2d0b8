"""What training asks of a method and of an evaluator: pure functions of arrays, and no names."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from flax import struct

from fgkd_jax.typing import Array, Batch, Key, Leaf, PyTree, Shaped, Variables


@struct.dataclass
class LossTerm:
    """One named part of a loss, not yet reduced.

    The training step adds `weight * sum(term.sum) / max(1, sum(term.count))` to the loss.

    Attributes:
      sum: the term in nats, per example (any shape), zero where `count` is zero.
      count: how much each entry counts, of the same shape as `sum` (0 or 1 per example, or the
        number of cells, boxes or pairs behind an entry).
      weight: what the term is multiplied with.
      accumulable: False where the term couples the examples of a batch (contrast over the batch,
        the log of a batch mean), so that it cannot be summed over micro-batches.
    """

    sum: Leaf
    count: Leaf
    weight: Leaf = 1.0
    accumulable: bool = struct.field(pytree_node=False, default=True)


Metric = tuple[Shaped[Array, "..."], Shaped[Array, "..."]]
"""A figure to be logged: (sum, count), reduced like a loss term."""

LossOutput = tuple[Mapping[str, LossTerm], Variables, Mapping[str, Metric]]
"""Loss terms by name, the new model state, and figures to log by name."""


@runtime_checkable
class Method(Protocol):
    """A frozen dataclass of options with these pure functions; it reads no files.

    Attributes:
      task: selects the batch keys and the evaluator, for example `"classification"`.
    """

    task: ClassVar[str]

    def frozen_parameters(self) -> tuple[str, ...]:
        """Says which parameters the optimiser leaves alone.

        Returns:
          Regular expressions over parameter paths.
        """
        ...

    def init(self, key: Key[Array, ""], batch: Batch) -> Variables:
        """Initialises every variable collection.

        Args:
          key: a typed PRNG key.
          batch: a batch of the task; only shapes and dtypes matter.

        Returns:
          Variables by collection: `params`, and where the method has them `batch_stats`
          (model state), `constants` and `frozen`.
        """
        ...

    def loss(
        self, variables: Variables, batch: Batch, key: Key[Array, ""], *, train: bool
    ) -> LossOutput:
        """Computes the unreduced loss terms.

        Args:
          variables: as `init` returns them.
          batch: a batch of the task.
          key: a typed PRNG key for this step.
          train: whether augmentation, dropout and batch statistics are in training mode.

        Returns:
          Loss terms, the new model state (the collections other than `params`, `constants` and
          `frozen`) and figures to log.
        """
        ...

    def predict(self, variables: Variables, batch: Batch) -> dict[str, Any]:
        """Predicts on a batch in evaluation mode.

        Args:
          variables: as `init` returns them.
          batch: a batch of the task; labels are not needed.

        Returns:
          Arrays by name; the task's evaluator says which it reads.
        """
        ...


@runtime_checkable
class MetaMethod(Protocol):
    """A method with a second step, on state of its own, that follows some of the main steps.

    Attributes:
      meta_every: main steps from one such step to the next; the first follows step 0. 0 takes none.
    """

    meta_every: int

    def meta_step(
        self,
        variables: Variables,
        batch: Batch,
        key: Key[Array, ""],
        *,
        meta_batch: Batch,
        learning_rate: float | Array,
    ) -> tuple[Variables, dict[str, Array]]:
        """Computes new values of some collections of the model state.

        Args:
          variables: as `init` returns them, after the main step.
          batch: the batch of the main step.
          key: a typed PRNG key for this step.
          meta_batch: what the outcome is judged by: examples that no main step sees, or `batch`.
          learning_rate: of the main step.

        Returns:
          The collections that change, and scalars to log.
        """
        ...


class Exported(NamedTuple):
    """A network that stands alone, taken out of what it was trained with.

    Attributes:
      method: a method with this one network, that predicts with it.
      variables: all that `method.predict` reads, as `method.init` lays them out.
      image_size: rows and columns of the images it was trained on, where these are not the
        images of the batch; else None.
    """

    method: Method
    variables: Variables
    image_size: tuple[int, int] | None = None


@runtime_checkable
class Exportable(Protocol):
    """A method whose networks can be taken out of the scaffold of their training."""

    def export(self, variables: Variables, *, network: int = 0) -> Exported:
        """Takes out one network with the classifier it predicts by.

        Args:
          variables: as `init` returns them.
          network: which one, counted from 0.

        Returns:
          The network.

        Raises:
          UserError: there is no such network, or it cannot stand alone.
        """
        ...


@runtime_checkable
class IndexedMethod(Protocol):
    """A method that keeps something for every example of the training split.

    Attributes:
      num_examples: how many there are; None until the data set is known.
    """

    num_examples: int | None

    def constants(self, labels: Any, ids: Any) -> dict[str, Any]:
        """Computes the `constants` collection from the training split, on the host.

        Args:
          labels: int64 [N], of the split that is trained on.
          ids: int64 [N].

        Returns:
          Arrays of the shapes that `init` gives the collection.
        """
        ...


@runtime_checkable
class DescribedMethod(Protocol):
    """A method that knows classes by what a data set says of them beside its images.

    Attributes:
      num_attributes: attributes of a class; None until the data set is known.
      word_size: dimensions of the vector of an attribute's name; None until then, or where there
        are none.
    """

    num_attributes: int | None
    word_size: int | None

    def describe(
        self, attributes: Any, seen: Any, word_vectors: Any, *, class_names: Sequence[str]
    ) -> dict[str, dict[str, Any]]:
        """Computes from the descriptions of classes what training starts with, on the host.

        Args:
          attributes: float32 [k, a].
          seen: bool [k], whether training has images of the class.
          word_vectors: float32 [a, v], or None.
          class_names: for messages.

        Returns:
          Arrays by collection and name, of the shapes that `init` gives them: the collection
          `constants` whole, and those of `params` that are not drawn at random.

        Raises:
          UserError: the descriptions lack something.
        """
        ...


@runtime_checkable
class TextMethod(Protocol):
    """A method that reads phrases of words by number.

    Attributes:
      vocabulary_size: how many numbers there are; None until the data set is known.
    """

    vocabulary_size: int | None


@runtime_checkable
class SplitMethod(Protocol):
    """A method with state that may be too large to be held whole by every device.

    Attributes:
      split_axes: for collections of its state that devices share with `mesh.split_state`, the
        axis of their arrays that is divided.
    """

    split_axes: ClassVar[Mapping[str, int]]


@runtime_checkable
class ChoosingMethod(Protocol):
    """A method that chooses some of its options by others, where they are None."""

    def chosen(self) -> Method:
        """Gives these options.

        Returns:
          A method that computes the same, with none of them None.
        """
        ...


@runtime_checkable
class Evaluator(Protocol):
    """Counts on the device, figures on the host: exact whatever the sharding and the padding."""

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of what `finalise` returns."""
        ...

    def empty(self) -> PyTree:
        """Returns the counts before the first batch."""
        ...

    def update(self, counts: PyTree, predictions: Mapping[str, Array], batch: Batch) -> PyTree:
        """Adds one batch to the counts; runs under jit.

        Args:
          counts: as `empty` or an earlier `update` returned them.
          predictions: what the method predicts on the batch.
          batch: the batch, with `mask` False where an example does not count.

        Returns:
          The new counts.
        """
        ...

    def finalise(self, counts: PyTree) -> dict[str, float]:
        """Turns the counts of a whole split into figures.

        Args:
          counts: after the last batch.

        Returns:
          Figures by name.
        """
        ...


@runtime_checkable
class CollectingEvaluator(Evaluator, Protocol):
    """An evaluator that keeps too much of every example for the devices to carry it along.

    `update` is given the counts of `empty` for every batch, and what it returns goes to the host.
    """

    def collect(self, counts: Sequence[PyTree]) -> PyTree:
        """Puts what was kept of all batches together, on the host.

        Args:
          counts: as `update` returned them, batch by batch.

        Returns:
          What `finalise` takes.
        """
        ...


@runtime_checkable
class ByClass(Protocol):
    """An evaluator that knows the figures of every class."""

    def by_class(self, counts: PyTree) -> list[dict[str, float]]:
        """Returns the figures of every class.

        Args:
          counts: what `finalise` takes.

        Returns:
          A row for each class, in order; what a class has no figure of is left out.
        """
        ...


@runtime_checkable
class Taught(Protocol):
    """A method with a frozen teacher, whose variables are the collection `frozen` of its own.

    Attributes:
      teacher: what the teacher is: `name` and options of its backbone, or the options of a method;
        its weights are a file.
    """

    teacher: Mapping[str, Any]

    @property
    def teaching(self) -> Method:
        """The teacher as a method of its own: of the kind that the file holds, with its options."""
        ...


FROZEN = "frozen"
"""The collection that holds a teacher's collections: no gradient, no update, in no checkpoint."""

_FIXED = ("constants", FROZEN)


def split_variables(variables: Variables) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Splits variable collections by who changes them.

    Args:
      variables: collections by name.

    Returns:
      `params` (changed by the optimiser), the model state (changed by the forward pass) and what
      is never changed (`constants` and `frozen`), the last two as collections by name.
    """
    params = variables["params"]
    constants = {name: value for name, value in variables.items() if name in _FIXED}
    model_state = {
        name: value for name, value in variables.items() if name not in ("params", *_FIXED)
    }
    return params, model_state, constants
