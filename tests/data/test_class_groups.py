"""Batches of groups of one class: what is in them, how often, and that nothing else decides it."""

import pickle
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgkd_jax.data.base import DatasetInfo, SplitSources
from fgkd_jax.data.class_groups import ClassGroups, balanced_sizes
from fgkd_jax.data.holdout import holdout
from fgkd_jax.data.pipeline import DataOptions, train_iterator
from fgkd_jax.errors import UserError

PAIRS = DataOptions(image_size=8, read_threads=2, prefetch_batches=2, images_per_class=2)


class Labelled:
    """Grey images with given labels; picture i has id 100 + i. `reads` are those asked for."""

    def __init__(self, labels, *, broken=()):
        self.labels, self.ids = np.asarray(labels), 100 + np.arange(len(labels))
        self.broken, self.reads = broken, []

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        self.reads.append(i)
        image = b"broken" if i in self.broken else np.full((8, 10, 3), i % 256, np.uint8)
        return {"image": image, "label": int(self.labels[i]), "id": 100 + i, "name": f"{i}.jpg"}


def dataset_of(sizes, *, classes: int | None = None, **options) -> SplitSources:
    """So many images of class 0, of class 1, ..., mixed."""
    labels = np.random.default_rng(7).permutation(np.repeat(np.arange(len(sizes)), sizes))
    source = Labelled(labels, **options)
    names = tuple("abcdefghijklmnop"[: classes or len(sizes)])
    return SplitSources(DatasetInfo("grey", names, {"train": len(source)}), {"train": source})


def take(iterator, n: int) -> list[dict]:
    batches = list(islice(iterator, n))
    iterator.close()
    return batches


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def grouped(sizes, *, batch_size: int, images_per_class: int = 2, seed: int = 0) -> ClassGroups:
    labels = np.random.default_rng(7).permutation(np.repeat(np.arange(len(sizes)), sizes))
    options = {"batch_size": batch_size, "images_per_class": images_per_class, "seed": seed}
    return ClassGroups(labels, **options)


def test_a_batch_has_pairs_of_different_classes_as_the_released_sampler_draws():
    # 64 of 100 classes, two images each: one positive and 126 negatives for every anchor.
    groups = grouped([20] * 100, batch_size=128)
    for step in range(60):
        batch = groups.batch(step)
        labels = groups.labels[batch].reshape(64, 2)
        assert (labels[:, 0] == labels[:, 1]).all()
        assert len(set(labels[:, 0])) == 64
        assert len(set(batch)) == 128


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.lists(st.integers(3, 30), min_size=1, max_size=12),
    groups=st.integers(1, 24),
    images=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_sizes_are_balanced_and_repeat_nothing(sizes, groups, images, seed):
    made = grouped(sizes, batch_size=groups * images, images_per_class=images, seed=seed)
    classes, sizes = len(sizes), np.array(sizes)
    by_class, by_image = np.zeros(classes, int), np.zeros(sizes.sum(), int)
    most = images * -(-groups // classes)
    for step in range(40):
        batch = made.batch(step)
        labels = made.labels[batch].reshape(groups, images)
        assert (labels == labels[:, :1]).all()
        count = np.bincount(labels[:, 0], minlength=classes)
        assert groups // classes <= count.min() <= count.max() <= -(-groups // classes)
        for c in range(classes):
            own = batch[made.labels[batch] == c]
            assert len(set(own)) == min(len(own), sizes[c])
        assert all(len(set(group)) == images for group in batch.reshape(groups, images))
        by_class += count
        assert np.ptp(by_class) <= 1
        by_image += np.bincount(batch, minlength=len(by_image))
        for c in np.flatnonzero(sizes >= 3 * (most - 1)):
            assert np.ptp(by_image[made.labels == c]) <= 1


def test_classes_and_images_are_walked_in_other_orders_every_time():
    groups = grouped([8] * 6, batch_size=12)
    rounds = [groups.labels[groups.batch(s)][::2] for s in range(8)]
    assert all(sorted(r) == list(range(6)) for r in rounds)
    assert len({tuple(r) for r in rounds}) == 8
    pairs = [frozenset(groups.batch(s)[groups.labels[groups.batch(s)] == 0]) for s in range(40)]
    assert len(set(pairs)) > 12  # of 28; one order for all passes would give four
    other = grouped([8] * 6, batch_size=12, seed=1)
    assert not np.array_equal(other.batch(0), groups.batch(0))
    # Every other class is met equally often, in expectation: the neighbours in a round are random.
    met = np.zeros((6, 6), int)
    few = grouped([8] * 6, batch_size=4)
    for step in range(300):
        a, b = few.labels[few.batch(step)][::2]
        met[a, b] += 1
    met = (met + met.T)[~np.eye(6, dtype=bool)]
    assert met.min() > 8
    assert met.max() < 36  # 20 on average


def test_an_epoch_covers_everything():
    dataset = dataset_of([12] * 5)
    batches = take(train_iterator(dataset, PAIRS, batch_size=10, seed=3), 18)
    ids = np.concatenate([b["id"] for b in batches]).reshape(3, 60)
    for epoch in ids:  # six batches each, of one pair of every class
        assert sorted(epoch) == list(range(100, 160))
    assert not np.array_equal(ids[0], ids[1])


def test_a_row_belongs_together_and_images_are_drawn_anew():
    dataset = dataset_of([9, 6, 5])
    labels = dataset.source("train").labels
    crops: dict[int, set] = {}
    for batch in take(train_iterator(dataset, PAIRS, batch_size=6, seed=0), 12):
        assert batch["mask"].all()
        assert batch["label"].dtype == batch["id"].dtype == np.int32
        assert batch["label"].tolist() == labels[batch["id"] - 100].tolist()
        assert (batch["label"][::2] == batch["label"][1::2]).all()
        for image, number in zip(batch["image"], batch["id"], strict=True):
            assert (image == number - 100).all()
            crops.setdefault(int(number), set()).add(image.tobytes())
    assert len(crops) == 20


@pytest.mark.parametrize("start_step", [0, 3])
@pytest.mark.parametrize("images", [1, 2, 4])
def test_any_number_of_processes_gives_the_same_global_batches(pixels, images, start_step):
    class Pictures(Labelled):
        def __getitem__(self, i):
            return {**super().__getitem__(i), "image": pixels(i, 20, 24)}

    dataset = dataset_of([9, 6, 5])
    source = Pictures(dataset.source("train").labels)
    dataset = SplitSources(dataset.info, {"train": source})

    def run(count: int, threads: int) -> list[dict]:
        options = DataOptions(image_size=8, read_threads=threads, images_per_class=images)
        shares = [
            take(
                train_iterator(
                    dataset,
                    options,
                    batch_size=8,
                    seed=5,
                    start_step=start_step,
                    process_index=p,
                    process_count=count,
                ),
                4,
            )
            for p in range(count)
        ]
        return [
            {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}
            for parts in zip(*shares, strict=True)
        ]

    alone = run(1, 1)
    assert {len(batch["id"]) for batch in alone} == {8}
    for count, threads in ((1, 5), (2, 2), (4, 1), (8, 2)):
        assert all(equal(a, b) for a, b in zip(alone, run(count, threads), strict=True))


@pytest.mark.parametrize("step", [1, 7, 33])
def test_resuming_at_a_step_equals_not_stopping(step):
    dataset = dataset_of([9, 6, 5])
    whole = take(train_iterator(dataset, PAIRS, batch_size=4, seed=9), step + 3)
    resumed = train_iterator(dataset, PAIRS, batch_size=4, seed=9, start_step=step)
    assert resumed.step == step
    assert all(equal(a, b) for a, b in zip(whole[step:], take(resumed, 3), strict=True))


def test_resuming_far_away_reads_nothing_on_the_way():
    dataset = dataset_of([9, 6, 5])
    options = DataOptions(image_size=8, read_threads=1, prefetch_batches=1, images_per_class=2)
    take(train_iterator(dataset, options, batch_size=4, seed=0, start_step=10**9), 1)
    reads = dataset.source("train").reads
    assert 4 <= len(reads) <= 12  # and no image for its label


def test_a_copy_for_another_process_makes_the_same_batches():
    groups = grouped([9, 6, 5, 12], batch_size=8)
    groups.batch(0)
    state = pickle.dumps(groups)
    assert len(state) < 32 * 8 + 1000  # the labels, no orders
    copy = pickle.loads(state)
    assert all(np.array_equal(groups.batch(s), copy.batch(s)) for s in (0, 5, 10**9))


def test_orders_never_change():
    # From the hashes of `hash_ids`, not from NumPy's generators, which may change.
    labels = np.repeat([0, 1, 2], [4, 3, 5])
    groups = ClassGroups(labels, batch_size=4, images_per_class=2, seed=0)
    assert [groups.batch(s).tolist() for s in (0, 1, 1000)] == FROZEN


FROZEN = [[4, 6, 2, 1], [7, 9, 5, 4], [7, 9, 4, 5]]


def test_all_images_of_a_group_stay_in_one_part_of_the_batch():
    dataset = dataset_of([9, 6, 5, 8])
    for parts in (1, 2, 4):
        shares = [
            train_iterator(
                dataset, PAIRS, batch_size=8, seed=2, process_index=p, process_count=parts
            )
            for p in range(parts)
        ]
        for share in shares:
            for batch in take(share, 5):
                _, counts = np.unique(batch["label"], return_counts=True)
                assert (counts == 2).all()


def test_a_class_without_images_is_never_drawn():
    dataset = dataset_of([9, 0, 5], classes=4)
    for batch in take(train_iterator(dataset, PAIRS, batch_size=4, seed=0), 6):
        assert sorted(batch["label"].tolist()) == [0, 0, 2, 2]


def test_held_out_images_are_not_drawn():
    dataset = dataset_of([10, 10])
    options = DataOptions(image_size=8, images_per_class=2, validation_fraction=0.3)
    held = holdout(dataset, fraction=0.3).source("validation").ids
    batches = take(train_iterator(dataset, options, batch_size=4, seed=0), 14)
    drawn = {i for batch in batches for i in batch["id"].tolist()}
    assert drawn == set(range(100, 120)) - set(held.tolist())


def test_a_corrupt_image_is_replaced_by_one_of_its_class_that_is_not_in_the_batch():
    whole = dataset_of([9, 6, 5, 8])
    labels = whole.source("train").labels
    broken = tuple(np.flatnonzero(labels == 0)[:4]) + tuple(np.flatnonzero(labels == 2)[1:3])
    options = DataOptions(image_size=8, images_per_class=2, on_corrupt="skip")
    damaged = dataset_of([9, 6, 5, 8], broken=broken)
    iterator = train_iterator(damaged, options, batch_size=6, seed=4)
    replaced = 0
    for expected in take(train_iterator(whole, options, batch_size=6, seed=4), 30):
        batch = next(iterator)
        assert batch["mask"].all()
        assert np.array_equal(batch["label"], expected["label"])
        assert len(set(batch["id"].tolist())) == 6
        bad = np.isin(expected["id"] - 100, broken)
        assert np.array_equal(batch["id"][~bad], expected["id"][~bad])
        assert not np.isin(batch["id"] - 100, broken).any()
        replaced += bad.sum()
    assert replaced > 10
    assert set(iterator.corrupt) == {f"{i}.jpg" for i in broken}
    iterator.close()


def test_candidates_are_all_images_of_the_class_and_first_those_no_other_row_takes():
    groups = grouped([9, 6], batch_size=8)  # two pairs each
    batch = groups.batch(3)
    for row in range(8):
        tried = list(groups.candidates(3 * 8 + row))
        own = np.flatnonzero(groups.labels == groups.labels[batch[row]])
        assert tried[0] == batch[row]
        assert sorted(tried) == own.tolist()
        inside = np.isin(tried[1:], batch)
        assert inside.sum() == 3
        assert inside[-3:].all()
    firsts = [list(groups.candidates(24 + row))[1] for row in range(8)]
    by_class = [groups.labels[firsts].tolist().count(c) for c in (0, 1)]
    assert by_class == [4, 4]
    assert len(set(firsts)) == 4 + 2  # class 1 has two images outside the batch


def test_a_class_of_which_nothing_can_be_read_is_named():
    dataset = dataset_of([4, 3])
    broken = tuple(np.flatnonzero(dataset.source("train").labels == 1))
    options = DataOptions(image_size=8, images_per_class=2, on_corrupt="skip")
    damaged = dataset_of([4, 3], broken=broken)
    message = "grey: no image of class 'b' in the split 'train' can be read"
    with pytest.raises(UserError, match=message):
        take(train_iterator(damaged, options, batch_size=4, seed=0), 1)
    with pytest.raises(UserError, match=r"image \d+\.jpg: cannot be decoded"):
        take(train_iterator(damaged, PAIRS, batch_size=4, seed=0), 1)


@pytest.mark.parametrize(
    ("sizes", "images", "message"),
    [
        (
            [4, 4],
            3,
            "images_per_class is 3; expected a divisor of batch_size, which is 8",
        ),
        (
            [4, 1, 3],
            2,
            "grey: images of class 'b' in the split 'train' are 1; expected at least "
            "images_per_class, which is 2",
        ),
        (
            [4, 3, 0, 2],
            4,
            "grey: images of class 'b' in the split 'train' are 3 (and 1 more classes); expected "
            "at least images_per_class, which is 4",
        ),
    ],
)
def test_what_cannot_be_grouped_is_told_in_one_line(sizes, images, message):
    options = DataOptions(image_size=8, images_per_class=images)
    with pytest.raises(UserError) as caught:
        train_iterator(dataset_of(sizes), options, batch_size=8, seed=0)
    assert str(caught.value) == message


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_out_of_range_is_told_before_training(label):
    source = Labelled([0, 0, 1, label, 1])
    dataset = SplitSources(DatasetInfo("grey", ("a", "b"), {"train": 5}), {"train": source})
    message = rf"id 103 of the split 'train' has label {label}; expected 0 to 1"
    with pytest.raises(UserError, match=message):
        train_iterator(dataset, PAIRS, batch_size=4, seed=0)
    assert not source.reads


def test_sources_without_labels_at_hand_are_read_once():
    class Slow:
        def __init__(self, source):
            self.source = source

        def __len__(self):
            return len(self.source)

        def __getitem__(self, i):
            return self.source[i]

    fast = dataset_of([5, 4, 6])
    slow = SplitSources(fast.info, {"train": Slow(fast.source("train"))})
    options = DataOptions(image_size=8, images_per_class=2, read_threads=1, prefetch_batches=1)
    runs = [take(train_iterator(each, options, batch_size=6, seed=1), 4) for each in (fast, slow)]
    assert all(equal(a, b) for a, b in zip(*runs, strict=True))


def test_drawn_birds_come_in_pairs(tmp_path):
    from fgkd_jax.data import procedural_birds as birds

    dataset = birds.open_birds(tmp_path, config="tiny", workers=0, progress=False)
    per_class = np.bincount(dataset.source("train").labels)
    options = DataOptions(image_size=16, images_per_class=int(per_class.min()))
    size = 4 * int(per_class.min())
    (batch,) = take(train_iterator(dataset, options, batch_size=size, seed=0), 1)
    assert (np.unique(batch["label"], return_counts=True)[1] == per_class.min()).all()


def test_no_groups_is_the_plain_shuffle():
    dataset = dataset_of([9, 1, 5])
    plain = DataOptions(image_size=8)
    assert plain.images_per_class == 0
    ids = np.concatenate(
        [b["id"] for b in take(train_iterator(dataset, plain, batch_size=5, seed=0), 3)]
    )
    assert sorted(ids) == list(range(100, 115))
    with pytest.raises(UserError, match="images_per_class is -1; expected at least 0"):
        DataOptions(images_per_class=-1)


@pytest.mark.parametrize(
    ("classes", "asked", "size", "images"),
    [(645, 50, 50, 1), (150, 50, 50, 1), (40, 50, 40, 1), (40, 100, 80, 2), (1, 7, 7, 7)],
)
def test_balanced_batches_are_of_different_classes(classes, asked, size, images):
    # The recipes of zero-shot recognition: min(classes, batch) of them, max(batch // classes, 1)
    # images each, so that 50 from 40 classes are 40.
    assert balanced_sizes(classes, batch_size=asked) == (size, images)
    assert size == min(classes, asked) * max(asked // classes, 1)
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(classes), 9))
    groups = ClassGroups(labels, batch_size=size, images_per_class=images, seed=3)
    for step in (0, 1, 17):
        rows = groups.batch(step)
        _, counts = np.unique(labels[rows], return_counts=True)
        assert counts.tolist() == [images] * min(classes, asked)
        assert len(set(rows.tolist())) == size


def test_sizes_of_nothing_are_refused():
    with pytest.raises(UserError, match="classes is 0; expected at least 1"):
        balanced_sizes(0, batch_size=3)
    with pytest.raises(UserError, match="batch_size is 0; expected at least 1"):
        balanced_sizes(3, batch_size=0)
