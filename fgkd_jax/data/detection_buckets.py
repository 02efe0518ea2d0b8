"""Which images of several sizes go together into batches of one size."""

import functools
from dataclasses import dataclass

import numpy as np

from fgkd_jax.data.base import Source
from fgkd_jax.data.boxes import image_sizes
from fgkd_jax.data.detection_transforms import Size, choose_bucket
from fgkd_jax.data.holdout import hash_ids

_CYCLE, _PASS = 1, 2


def bucket_members(source: Source, buckets: tuple[Size, ...]) -> tuple[np.ndarray, ...]:
    """Divides images among buckets.

    Args:
      source: of images with boxes; no image is decoded.
      buckets: (height, width) of each.

    Returns:
      int64[n_k] for each bucket k, positions in the source, ascending.
    """
    sizes = image_sizes(source)
    different, which = np.unique(sizes, axis=0, return_inverse=True)
    chosen = [choose_bucket((int(h), int(w)), buckets=buckets) for h, w in different]
    number = np.array(chosen, np.int64)[which.reshape(-1)] if len(sizes) else np.zeros(0)
    return tuple(np.flatnonzero(number == k) for k in range(len(buckets)))


@dataclass(frozen=True, eq=False)
class BucketOrder:
    """Which images are in which batch.

    Batches come in cycles. With n_k images in bucket k and g the greatest common divisor of all
    n_k, a cycle has n_k / g batches of bucket k, the r-th of them at a random point of the r-th of
    n_k / g equal parts of the cycle. The images of a bucket come in one pass after another, each in
    a random order of its own, without regard to where a batch ends.

    Attributes:
      members: int64[n_k] for each bucket.
      batch_size: images of a batch.
      seed: of all orders.
    """

    members: tuple[np.ndarray, ...]
    batch_size: int
    seed: int

    def image(self, position: int) -> tuple[int, int]:
        """Returns what is at a place in the endless stream of rows.

        Args:
          position: batch times `batch_size`, plus the row in the batch.

        Returns:
          The bucket, the same for all rows of a batch, and the position of the image in the source.
        """
        step, row = divmod(position, self.batch_size)
        counts = tuple(len(members) for members in self.members)
        common = int(np.gcd.reduce(counts))
        shares = tuple(count // common for count in counts)
        cycle, place = divmod(step, sum(shares))
        buckets, ranks = _cycle(shares, self.seed, cycle)
        bucket = int(buckets[place])
        before = (cycle * shares[bucket] + int(ranks[place])) * self.batch_size
        number, offset = divmod(before + row, counts[bucket])
        order = _shuffled(counts[bucket], self.seed, _PASS, bucket, number)
        return bucket, int(self.members[bucket][order[offset]])


@functools.lru_cache(maxsize=16)
def _cycle(shares: tuple[int, ...], seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The bucket of each batch of a cycle, and how many of the same bucket are before it."""
    places, buckets, ranks = [], [], []
    for bucket, share in enumerate(shares):
        rank = np.arange(share)
        draws = hash_ids(rank, seed=_key(seed, _CYCLE, bucket, number)) / 2.0**64
        places.append((rank + draws) / max(1, share))
        buckets.append(np.full(share, bucket))
        ranks.append(rank)
    order = np.argsort(np.concatenate(places), kind="stable")
    return np.concatenate(buckets)[order], np.concatenate(ranks)[order]


@functools.lru_cache(maxsize=64)
def _shuffled(n: int, *key: int) -> np.ndarray:
    """An order of n that looks random and depends on the key alone."""
    return np.argsort(hash_ids(np.arange(n), seed=_key(*key)), kind="stable")


def _key(*parts: int) -> int:
    """One seed of several."""
    seed = 0
    for part in parts:
        seed = int(hash_ids(np.array([part]), seed=seed)[0])
    return seed
