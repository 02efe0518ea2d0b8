import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgkd_jax.data.base import DatasetInfo, SplitSources, labels_and_ids
from fgkd_jax.data.holdout import hash_ids, holdout
from fgkd_jax.errors import UserError


class Rows:
    """Examples without images; `fast` ones give labels and ids away."""

    def __init__(self, labels, ids, *, fast=True):
        self.rows = list(zip(labels, ids, strict=True))
        if fast:
            self.labels, self.ids = np.array(labels), np.array(ids)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        label, number = self.rows[index]
        return {"image": b"", "label": label, "id": number, "name": str(number)}


def make(labels, ids, **options) -> SplitSources:
    sources = {"train": Rows(labels, ids, **options), "test": Rows([0], [10**6])}
    info = DatasetInfo("rows", ("a", "b", "c"), {k: len(v) for k, v in sources.items()})
    return SplitSources(info, sources)


def ids_of(dataset, split) -> list[int]:
    source = dataset.source(split)
    return [source[i]["id"] for i in range(len(source))]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 2), max_size=60),
    st.floats(0.01, 0.99),
    st.integers(0, 2**40),
    st.randoms(use_true_random=False),
)
def test_the_division_is_stratified_disjoint_and_blind_to_order(labels, fraction, seed, random):
    ids = random.sample(range(10**6), len(labels))
    dataset = make(labels, ids)
    held = holdout(dataset, fraction=fraction, seed=seed)
    train, validation = ids_of(held, "train"), ids_of(held, "validation")
    assert sorted(train + validation) == sorted(ids)
    assert held.info.splits == {"train": len(train), "test": 1, "validation": len(validation)}
    assert [i for i in ids if i in set(train)] == train  # the order of the source is kept
    label = dict(zip(ids, labels, strict=True))
    for k in range(3):
        n = labels.count(k)
        count = sum(label[i] == k for i in validation)
        assert count == min(max(int(n * fraction + 0.5), 1), n - 1) if n else count == 0
    order = random.sample(range(len(ids)), len(ids))
    shuffled = make([labels[i] for i in order], [ids[i] for i in order], fast=False)
    again = holdout(shuffled, fraction=fraction, seed=seed)
    assert set(ids_of(again, "validation")) == set(validation)
    for split in ("train", "validation"):
        known_labels, known_ids = labels_and_ids(held.source(split))
        assert known_ids.tolist() == ids_of(held, split)
        assert known_labels.tolist() == [label[i] for i in ids_of(held, split)]


def test_a_larger_fraction_holds_out_the_same_images_and_more():
    dataset = make([0, 1] * 100, list(range(200)))
    sets = [set(ids_of(holdout(dataset, fraction=f), "validation")) for f in (0.1, 0.3, 0.8)]
    assert sets[0] < sets[1] < sets[2]


def test_seeds_divide_differently_and_forever_the_same():
    dataset = make([0] * 100, list(range(100)))
    divisions = {
        tuple(ids_of(holdout(dataset, fraction=0.1, seed=s), "validation")) for s in range(9)
    }
    assert len(divisions) == 9
    # A changed hash would move images between train and validation of runs in progress.
    assert ids_of(holdout(dataset, fraction=0.05, seed=0), "validation") == FOREVER


FOREVER = [31, 38, 46, 55, 89]


def test_hashes_look_random():
    hashes = hash_ids(np.arange(4096), seed=3)
    assert len(set(hashes.tolist())) == 4096
    bits = np.unpackbits(hashes.view(np.uint8)).reshape(4096, 64)
    assert np.abs(bits.mean(0) - 0.5).max() < 0.04
    flips = np.unpackbits((hashes ^ hash_ids(np.arange(4096) ^ 1, seed=3)).view(np.uint8))
    assert abs(flips.mean() - 0.5) < 0.01


def test_test_split_and_description_stay():
    dataset = make([0, 0, 1, 1], [5, 6, 7, 8])
    held = holdout(dataset, fraction=0.5)
    assert held.source("test") is dataset.source("test")
    assert held.info.class_names == dataset.info.class_names
    assert held.info.num_classes == 3


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 2.0])
def test_a_fraction_out_of_range_is_an_error(fraction):
    with pytest.raises(UserError, match=f"validation fraction is {fraction}; expected"):
        holdout(make([0], [0]), fraction=fraction)


def test_unknown_splits_are_named():
    held = holdout(make([0, 0], [0, 1]), fraction=0.5)
    with pytest.raises(UserError, match="rows has no split 'valid'; did you mean 'validation'"):
        held.source("valid")
