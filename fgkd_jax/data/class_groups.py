"""Training batches of groups of images of one class.

Contrastive losses need several images of a class in a batch, which plain shuffling does not give
where classes are many. Here a batch consists of groups of `images_per_class` images.

**Classes.** A batch with as many groups as there are classes, or more, has every class equally
often, and then a choice of classes that are all different. So they are in a batch with fewer groups
than classes. The choices are dealt from shuffled rounds over all classes, so that after any number
of batches two classes differ by one group at most; a class without images is never drawn.

**Images.** Those of a class are walked in passes, each in an order of its own, and every one is
used once in a pass. Where two passes meet in a batch, the second starts with images that the first
has not used there, so no image is in a batch twice. A class with so few images that there is no
such order (less than three times what it can give to a batch) draws them anew for every batch,
without replacement, and repeats images only where it has fewer than the batch takes.

**Random access.** Nothing is carried from batch to batch: how often a class was drawn before batch
s follows from s and one round. Orders are hashes and so the same on every machine and in every
version of NumPy.
"""

import functools
from collections.abc import Iterator

import numpy as np

from fgkd_jax.data.base import DatasetInfo, Source, labels_and_ids
from fgkd_jax.data.holdout import hash_ids
from fgkd_jax.errors import UserError

_ROUND, _PASS, _FEW, _BATCH = range(4)  # what an order is for


class ClassGroups:
    """Which images are in which training batch, where those of a class come together.

    Attributes:
      labels: int64[n], of the images of the source.
      members: int64[m] by class, the positions of its images in the source, for the classes that
        have any.
    """

    def __init__(self, labels: np.ndarray, *, batch_size: int, images_per_class: int, seed: int):
        self.labels = labels
        self._arguments = (batch_size, images_per_class, seed)
        _, counts = np.unique(labels, return_counts=True)
        by_class = np.argsort(labels, kind="stable")
        self.members = tuple(np.split(by_class, np.cumsum(counts)[:-1]))
        groups = batch_size // images_per_class
        self._groups_each, self._groups_more = divmod(groups, len(counts))
        # The smaller of the choice and its complement is dealt: then two rounds that share a batch
        # can always be kept apart without knowing any other round.
        self._dealt = min(self._groups_more, len(counts) - self._groups_more)
        largest = images_per_class * (self._groups_each + (self._groups_more > 0))
        self._reach = largest - 1  # images that must differ from the one before them
        # Kept per process, and not pickled. A class stays at one or two passes for many batches.
        self._batch = functools.lru_cache(maxsize=64)(self._make_batch)
        self._round = functools.lru_cache(maxsize=8)(self._make_round)
        self._pass = functools.lru_cache(maxsize=2 * len(counts))(self._make_pass)

    def __reduce__(self) -> tuple[object, ...]:
        batch_size, size, seed = self._arguments
        return functools.partial(
            type(self), batch_size=batch_size, images_per_class=size, seed=seed
        ), (self.labels,)

    def batch(self, step: int) -> np.ndarray:
        """Returns which images are in a batch.

        Args:
          step: index of the batch.

        Returns:
          int64[batch_size], positions in the source; groups stand one after another, in random
          order.
        """
        return self._batch(step)

    def candidates(self, position: int) -> Iterator[int]:
        """Yields the image of a row, and what may replace it where it cannot be read.

        The replacements are the other images of the class: first those outside the batch, of which
        two rows of the batch never try the same at first, in the end those in the batch.

        Args:
          position: of the row in the endless stream of rows.

        Yields:
          Positions in the source.
        """
        batch_size, _, _ = self._arguments
        step, row = divmod(position, batch_size)
        batch = self.batch(step)
        yield int(batch[row])
        members = next(m for m in self.members if batch[row] in m)
        used = np.flatnonzero(np.isin(batch, members))
        members = np.roll(members, -int(np.searchsorted(members, batch[used[0]])))
        spare = members[~np.isin(members, batch)]
        own = spare[int(np.searchsorted(used, row)) :: len(used)]
        rest = members[~np.isin(members, own)]
        last = np.isin(rest, batch)
        for index in (*own, *rest[~last], *rest[last]):
            if index != batch[row]:
                yield int(index)

    def _make_batch(self, step: int) -> np.ndarray:
        _, size, seed = self._arguments
        counts, before = self._deal(step)
        groups = [
            self._images(step, int(c), first=size * int(before[c]), count=size * int(counts[c]))
            for c in np.flatnonzero(counts)
        ]
        rows = np.concatenate(groups).reshape(-1, size)
        return rows[_shuffled(len(rows), seed, _BATCH, step)].reshape(-1)

    def _deal(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Per class, the groups in a batch and those in all batches before it: int64[classes]."""
        classes, dealt = len(self.members), self._dealt
        place = np.zeros(classes, np.int64)
        chosen, before = place < 0, place
        if dealt:
            number, offset = divmod(step * dealt, classes)
            place = self._round(number)
            before = number + (place < offset)
            chosen = (offset <= place) & (place < offset + dealt)
            if offset + dealt > classes:
                chosen |= self._round(number + 1) < offset + dealt - classes
        if dealt < self._groups_more:
            chosen, before = ~chosen, step - before
        return self._groups_each + chosen, self._groups_each * step + before

    def _make_round(self, number: int) -> np.ndarray:
        """The place of every class in a round: int64[classes]."""
        _, _, seed = self._arguments
        classes, dealt = len(self.members), self._dealt
        ends = [n * classes % dealt for n in (number, number + 1)]
        return np.argsort(_order(classes, seed, _ROUND, number=number, ends=ends))

    def _images(self, step: int, c: int, *, first: int, count: int) -> np.ndarray:
        """So many images of a class from a place in its walk on."""
        _, _, seed = self._arguments
        members = self.members[c]
        if len(members) < 3 * self._reach:
            return members[np.resize(_shuffled(len(members), seed, _FEW, c, step), count)]
        number, offset = divmod(first, len(members))
        order = self._pass(c, number)[offset : offset + count]
        if len(order) < count:
            order = np.concatenate([order, self._pass(c, number + 1)[: count - len(order)]])
        return members[order]

    def _make_pass(self, c: int, number: int) -> np.ndarray:
        """The order of the images of a class in a pass."""
        _, _, seed = self._arguments
        ends = [self._reach, self._reach]
        return _order(len(self.members[c]), seed, _PASS, c, number=number, ends=ends)


def balanced_sizes(classes: int, *, batch_size: int) -> tuple[int, int]:
    """Sizes of batches that hold every class of a training split alike, or different classes.

    The balanced batches with which zero-shot methods are trained on SUN and AWA2 have
    min(classes, batch_size) different classes with max(batch_size // classes, 1) images each; where
    that is less than `batch_size`, the batch is smaller. `ClassGroups` makes them of what is
    returned here. It differs from the released samplers in that classes take turns and images of a
    class are dealt without replacement, where those draw both anew for each batch.

    Args:
      classes: those with training images.
      batch_size: what is asked for.

    Returns:
      The batch's own size, and its `images_per_class`.

    Raises:
      UserError: a number is not above 0.

    Example:
      >>> balanced_sizes(645, batch_size=50), balanced_sizes(40, batch_size=50)
      ((50, 1), (40, 1))
      >>> balanced_sizes(40, batch_size=100)
      (80, 2)
    """
    for name, value in (("classes", classes), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name} is {value}; expected at least 1")
    images = max(batch_size // classes, 1)
    return min(classes, batch_size) * images, images


def class_groups(
    source: Source, info: DatasetInfo, *, batch_size: int, images_per_class: int, seed: int
) -> ClassGroups:
    """Groups a training split by its labels.

    Args:
      source: the split; no image is decoded.
      info: names its classes.
      batch_size: of the global batch.
      images_per_class: size of a group, at least 1.
      seed: of all orders.

    Returns:
      The batches.

    Raises:
      UserError: the groups do not divide the batch, a label is out of range, or a class has images,
        but fewer than a group.
    """
    if batch_size % images_per_class:
        raise UserError(
            f"images_per_class is {images_per_class}; expected a divisor of batch_size, which is "
            f"{batch_size}"
        )
    labels, ids = labels_and_ids(source)
    for row in np.flatnonzero((labels < 0) | (labels >= info.num_classes))[:1]:
        raise UserError(
            f"{info.name}: the image with id {ids[row]} of the split 'train' has label "
            f"{labels[row]}; expected 0 to {info.num_classes - 1}"
        )
    counts = np.bincount(labels, minlength=info.num_classes)
    few = np.flatnonzero((counts > 0) & (counts < images_per_class))
    if len(few):
        more = f" (and {len(few) - 1} more classes)" if len(few) > 1 else ""
        raise UserError(
            f"{info.name}: images of class {info.class_names[few[0]]!r} in the split 'train' are "
            f"{counts[few[0]]}{more}; expected at least images_per_class, which is "
            f"{images_per_class}"
        )
    return ClassGroups(labels, batch_size=batch_size, images_per_class=images_per_class, seed=seed)


def _order(n: int, *key: int, number: int, ends: list[int]) -> np.ndarray:
    """An order of n, from a sequence of them in which neighbours fit together.

    `ends` are the lengths of the end of the order before and of this one. Ends are as they were
    drawn; what the end before holds comes last in front of the own end. So the start differs from
    the end before, and no order depends on any but the one before.
    """
    before, own = ends
    order = _shuffled(n, *key, number)
    if not number or not before:
        return order
    body, end = np.split(order, [n - own])
    earlier = np.isin(body, _shuffled(n, *key, number - 1)[n - before :])
    return np.concatenate([body[np.argsort(earlier, kind="stable")], end])


def _shuffled(n: int, *key: int) -> np.ndarray:
    """An order of n that looks random and depends on the key alone."""
    seed = 0
    for part in key:
        seed = int(hash_ids(np.array([part]), seed=seed)[0])
    return np.argsort(hash_ids(np.arange(n), seed=seed), kind="stable")
