import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fgkd_jax.data import cub
from fgkd_jax.data.base import DatasetInfo, SplitSources
from fgkd_jax.data.images import decode
from fgkd_jax.data.pipeline import DataOptions, divide_train, eval_iterator, train_iterator
from fgkd_jax.errors import UserError

SMALL = DataOptions(image_size=16, read_threads=2, prefetch_batches=2)
EVAL = DataOptions(image_size=16, read_threads=2, eval_geometry="resize")


class Memory:
    """Arrays as examples: picture i is grey of 10 i modulo 256, with label i % 3 and id 100 + i."""

    def __init__(self, n: int, *, broken: tuple[int, ...] = (), labels: dict | None = None):
        self.n, self.broken, self.changed = n, broken, labels or {}

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        image = b"broken" if i in self.broken else np.full((20, 24, 3), 10 * i % 256, np.uint8)
        return {
            "image": image,
            "label": self.changed.get(i, i % 3),
            "id": 100 + i,
            "name": f"{i}.jpg",
            "bbox": np.array([2, 3, 12, 13], np.float32),
            "mask": np.ones((20, 24), np.uint8),
            "visible": np.int64(i),
        }


def memory(train: int = 10, test: int = 7, **options) -> SplitSources:
    sources = {"train": Memory(train, **options), "test": Memory(test, **options)}
    splits = {name: len(source) for name, source in sources.items()}
    return SplitSources(DatasetInfo("memory", ("a", "b", "c"), splits), sources)


def take(iterator, n: int) -> list[dict]:
    batches = [next(iterator) for _ in range(n)]
    iterator.close()
    return batches


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) for k in a
    )


def joined(parts: list[dict]) -> dict:
    return {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}


@pytest.fixture
def birds(cub_dir):
    return cub.inspect(str(cub_dir)).usable()


def test_batches_have_the_documented_keys_shapes_and_types(birds):
    options = DataOptions(image_size=(16, 24), extra_keys=("bbox", "parts", "attributes"))
    for batch in (
        take(train_iterator(birds, options, batch_size=4, seed=0), 1)[0],
        take(eval_iterator(birds, "test", options, batch_size=4), 1)[0],
    ):
        kinds = {k: (v.dtype.name, v.shape) for k, v in batch.items()}
        assert kinds == {
            "image": ("uint8", (4, 16, 24, 3)),
            "label": ("int32", (4,)),
            "id": ("int32", (4,)),
            "mask": ("bool", (4,)),
            "bbox": ("float32", (4, 4)),
            "parts": ("float32", (4, 3, 3)),
            "attributes": ("float32", (4, 2)),
        }
        assert batch["mask"].all()
    plain = take(train_iterator(birds, SMALL, batch_size=2, seed=0), 1)[0]
    assert plain.keys() == {"image", "label", "id", "mask"}


def test_a_row_belongs_together(birds):
    for batch in take(train_iterator(birds, SMALL, batch_size=4, seed=3), 5):
        for number, label in zip(batch["id"], batch["label"], strict=True):
            assert number % 2 == 1  # the fixture's training images
            assert label == (number - 101) // 4


@pytest.mark.parametrize("geometry", ["random_resized_crop", "shift_crop"])
@pytest.mark.parametrize("start_step", [0, 3])
def test_any_number_of_processes_gives_the_same_global_batches(birds, geometry, start_step):
    options = DataOptions(image_size=16, train_geometry=geometry, read_threads=3)

    def run(count: int) -> list[dict]:
        per_process = [
            take(
                train_iterator(
                    birds,
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
        return [joined(list(parts)) for parts in zip(*per_process, strict=True)]

    alone = run(1)
    assert {len(batch["id"]) for batch in alone} == {8}
    for count in (2, 4, 8):
        assert all(equal(a, b) for a, b in zip(alone, run(count), strict=True))


def test_further_views_are_drawn_besides_and_change_nothing_else(birds):
    options = DataOptions(image_size=16, views=3)
    one = DataOptions(image_size=16)
    whole, plain = (
        take(train_iterator(birds, o, batch_size=4, seed=5, start_step=1), 3)
        for o in (options, one)
    )
    for batch, alone in zip(whole, plain, strict=True):
        others = batch.pop("other_views")
        assert equal(batch, alone)
        assert (others.dtype, others.shape) == (np.uint8, (4, 2, 16, 16, 3))
        for views in zip(batch["image"], *others.swapaxes(0, 1), strict=True):
            assert len({view.tobytes() for view in views}) == 3
    halves = [
        take(
            train_iterator(
                birds, options, batch_size=4, seed=5, start_step=1, process_index=p, process_count=2
            ),
            3,
        )
        for p in range(2)
    ]
    again = take(train_iterator(birds, options, batch_size=4, seed=5, start_step=1), 3)
    for batch, *parts in zip(again, *halves, strict=True):
        assert equal(batch, joined(parts))
    evaluated = take(eval_iterator(birds, "test", options, batch_size=4), 1)[0]
    assert "other_views" not in evaluated


@pytest.mark.parametrize("step", [1, 2, 7])
def test_resuming_at_a_step_equals_not_stopping(birds, step):
    whole = take(train_iterator(birds, SMALL, batch_size=4, seed=9), step + 3)
    resumed = train_iterator(birds, SMALL, batch_size=4, seed=9, start_step=step)
    assert resumed.step == step
    rest = [next(resumed) for _ in range(3)]
    assert resumed.step == step + 3
    resumed.close()
    assert all(equal(a, b) for a, b in zip(whole[step:], rest, strict=True))


def test_resuming_far_away_reads_nothing_on_the_way(birds):
    class Counting:
        def __init__(self, source):
            self.source, self.reads = source, 0

        def __len__(self):
            return len(self.source)

        def __getitem__(self, i):
            self.reads += 1
            return self.source[i]

    source = Counting(birds.source("train"))
    dataset = SplitSources(birds.info, {**birds.sources, "train": source})
    options = DataOptions(image_size=16, read_threads=1, prefetch_batches=1)
    take(train_iterator(dataset, options, batch_size=4, seed=0, start_step=10**9), 1)
    assert source.reads <= 12


def test_threads_and_prefetching_change_nothing(birds):
    runs = [
        take(
            train_iterator(
                birds,
                DataOptions(image_size=16, read_threads=threads, prefetch_batches=ahead),
                batch_size=4,
                seed=1,
            ),
            6,
        )
        for threads, ahead in ((1, 1), (4, 1), (2, 9))
    ]
    for other in runs[1:]:
        assert all(equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_every_epoch_has_every_image_once_in_another_order(birds):
    ids = np.concatenate(
        [b["id"] for b in take(train_iterator(birds, SMALL, batch_size=4, seed=2), 9)]
    )
    epochs = ids.reshape(6, 6)  # batches of 4 cross the epochs' borders
    for epoch in epochs:
        assert sorted(epoch) == [101, 103, 105, 107, 109, 111]
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_draws_differ_from_epoch_to_epoch_and_seed_to_seed(birds):
    def crops(seed: int) -> list[bytes]:
        batches = take(train_iterator(birds, SMALL, batch_size=6, seed=seed), 4)
        return [b["image"][list(b["id"]).index(101)].tobytes() for b in batches]

    first, second = crops(0), crops(1)
    assert len(set(first)) == 4
    assert not set(first) & set(second)
    assert first == crops(0)


def test_training_geometry_flips_and_evaluation_does_not(birds):
    options = DataOptions(image_size=16, train_geometry="resize", eval_geometry="resize")
    truth = {}
    for batch in eval_iterator(birds, "train", options, batch_size=6):
        truth = dict(zip(batch["id"].tolist(), batch["image"], strict=True))
    seen = set()
    for batch in take(train_iterator(birds, options, batch_size=6, seed=0), 6):
        for number, image in zip(batch["id"].tolist(), batch["image"], strict=True):
            mirrored = np.array_equal(image, truth[number][:, ::-1])
            assert mirrored != np.array_equal(image, truth[number])
            seen.add(mirrored)
    assert seen == {True, False}
    never = DataOptions(image_size=16, train_geometry="resize", flip_probability=0.0)
    for batch in take(train_iterator(birds, never, batch_size=6, seed=0), 2):
        for number, image in zip(batch["id"].tolist(), batch["image"], strict=True):
            np.testing.assert_array_equal(image, truth[number])


def test_flips_exchange_left_and_right_parts(birds):
    options = DataOptions(
        image_size=16, train_geometry="resize", flip_probability=1.0, extra_keys=("parts",)
    )
    batch = take(train_iterator(birds, options, batch_size=1, seed=0), 1)[0]
    left, tail, right = batch["parts"][0]
    assert tail.tolist() == [0, 0, 0]
    # The fixture's left eye is at x = 12.5 of 60, its right eye at 30 of 60.
    assert right[0] == pytest.approx(16 * (1 - 12.5 / 60))
    assert left[0] == pytest.approx(16 * (1 - 30 / 60))


@pytest.mark.parametrize("batch_size", [1, 3, 7, 8, 20])
def test_evaluation_is_in_order_and_padded(batch_size):
    batches = list(eval_iterator(memory(), "test", EVAL, batch_size=batch_size))
    assert len(batches) == -(-7 // batch_size)
    whole = joined(batches)
    assert all(len(batch["id"]) == batch_size for batch in batches)
    mask = whole["mask"]
    assert mask.tolist() == [True] * 7 + [False] * (len(mask) - 7)
    assert whole["id"][mask].tolist() == [100 + i for i in range(7)]
    assert whole["image"][mask][:, 0, 0, 0].tolist() == [10 * i for i in range(7)]
    assert (whole["id"][~mask] == -1).all()
    assert not whole["label"][~mask].any()
    assert not whole["image"][~mask].any()


@pytest.mark.parametrize("count", [2, 4])
def test_processes_evaluate_contiguous_rows_and_equally_many_batches(count):
    options = DataOptions(image_size=16, extra_keys=("mask", "visible"))
    alone = list(eval_iterator(memory(), "test", options, batch_size=4))
    parts = [
        list(
            eval_iterator(
                memory(), "test", options, batch_size=4, process_index=p, process_count=count
            )
        )
        for p in range(count)
    ]
    assert [len(part) for part in parts] == [2] * count
    together = [joined(list(rows)) for rows in zip(*parts, strict=True)]
    assert all(equal(a, b) for a, b in zip(alone, together, strict=True))


def test_extra_keys_are_renamed_or_passed_on_and_padded_with_zeros():
    options = DataOptions(
        image_size=16, eval_geometry="resize", extra_keys=("mask", "bbox", "visible")
    )
    batch = list(eval_iterator(memory(), "test", options, batch_size=4))[1]
    assert batch["mask"].tolist() == [True, True, True, False]
    assert batch["object_mask"].shape == (4, 16, 16)
    assert batch["object_mask"][:3].all()
    np.testing.assert_allclose(batch["bbox"][0], [16 / 12, 2.4, 8, 10.4], rtol=1e-6)
    assert batch["visible"].tolist() == [4, 5, 6, 0]
    assert not batch["object_mask"][3].any()
    assert not batch["bbox"][3].any()


def test_a_missing_extra_key_is_named():
    options = DataOptions(image_size=16, extra_keys=("boxx",))
    with pytest.raises(UserError, match=r"image 0\.jpg: has no 'boxx'; did you mean 'bbox'"):
        next(eval_iterator(memory(), "test", options, batch_size=4))


def test_an_empty_split(birds):
    assert list(eval_iterator(memory(test=0), "test", EVAL, batch_size=4)) == []
    with pytest.raises(UserError, match="memory: the split 'train' is empty"):
        train_iterator(memory(train=0), EVAL, batch_size=4, seed=0)


def test_a_corrupt_image_stops_by_name():
    dataset = memory(broken=(4,))
    message = r"image 4\.jpg: cannot be decoded \(6 bytes, of no format known here\)"
    with pytest.raises(UserError, match=message) as caught:
        list(eval_iterator(dataset, "test", EVAL, batch_size=3))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=message):
        take(train_iterator(dataset, SMALL, batch_size=5, seed=0), 2)


def test_skipping_in_training_takes_the_next_one_of_the_source():
    options = DataOptions(image_size=16, train_geometry="resize", on_corrupt="skip")
    whole = DataOptions(image_size=16, train_geometry="resize")
    broken = (3, 4, 9)  # after the last comes the first
    replaced = {103: 105, 104: 105, 109: 100}
    good = take(train_iterator(memory(), whole, batch_size=5, seed=4), 6)
    iterator = train_iterator(memory(broken=broken), options, batch_size=5, seed=4)
    for expected in good:
        batch = next(iterator)
        assert batch["mask"].all()
        assert batch["id"].tolist() == [replaced.get(i, i) for i in expected["id"].tolist()]
    assert set(iterator.corrupt) == {"3.jpg", "4.jpg", "9.jpg"}
    assert "cannot be decoded" in iterator.corrupt["3.jpg"]
    iterator.close()
    halves = [
        take(
            train_iterator(
                memory(broken=broken),
                options,
                batch_size=4,
                seed=4,
                process_index=p,
                process_count=2,
            ),
            3,
        )
        for p in range(2)
    ]
    alone = take(train_iterator(memory(broken=broken), options, batch_size=4, seed=4), 3)
    for a, parts in zip(alone, zip(*halves, strict=True), strict=True):
        assert equal(a, joined(list(parts)))


def test_skipping_in_evaluation_masks_the_row():
    options = DataOptions(image_size=16, on_corrupt="skip", extra_keys=("bbox",))
    iterator = eval_iterator(memory(broken=(0, 5)), "test", options, batch_size=4)
    batch = joined(list(iterator))
    assert batch["mask"].tolist() == [False, True, True, True, True, False, True, False]
    assert batch["id"].tolist() == [-1, 101, 102, 103, 104, -1, 106, -1]
    assert not batch["image"][~batch["mask"]].any()
    assert not batch["bbox"][~batch["mask"]].any()
    assert sorted(iterator.corrupt) == ["0.jpg", "5.jpg"]


def test_nothing_readable_is_an_error_even_when_skipping():
    dataset = memory(train=3, broken=(0, 1, 2))
    options = DataOptions(image_size=16, on_corrupt="skip")
    with pytest.raises(UserError, match="memory: no image of the split 'train' can be read"):
        next(train_iterator(dataset, options, batch_size=2, seed=0))


def test_a_truncated_or_missing_file_counts_as_corrupt(cub_dir, birds):
    names = [birds.source("train")[i]["name"] for i in range(2)]
    Path(names[0]).write_bytes(Path(names[0]).read_bytes()[:-200])
    Path(names[1]).unlink()
    options = DataOptions(image_size=16, on_corrupt="skip")
    iterator = eval_iterator(birds, "train", options, batch_size=6)
    assert next(iterator)["mask"].tolist() == [False, False] + [True] * 4
    assert "truncated" in iterator.corrupt[names[0]]
    assert iterator.corrupt[names[1]] == "no such file"
    iterator.close()


@pytest.mark.parametrize("label", [3, -1])
@pytest.mark.parametrize("on_corrupt", ["raise", "skip"])
def test_a_label_out_of_range_is_named(label, on_corrupt):
    dataset = memory(labels={2: label})
    options = DataOptions(image_size=16, on_corrupt=on_corrupt)
    message = rf"image 2\.jpg: label is {label}; expected 0 to 2"
    with pytest.raises(UserError, match=message):
        list(eval_iterator(dataset, "test", options, batch_size=4))
    with pytest.raises(UserError, match=message):
        take(train_iterator(dataset, options, batch_size=5, seed=0), 2)


def test_a_mask_of_another_size_is_named():
    class Odd(Memory):
        def __getitem__(self, i):
            return {**super().__getitem__(i), "mask": np.ones((24, 20), np.uint8)}

    dataset = SplitSources(memory().info, {"train": Odd(2), "test": Odd(2)})
    with pytest.raises(UserError, match=r"image 0\.jpg: is \[20, 24\] and its mask \[24, 20\]"):
        next(eval_iterator(dataset, "test", EVAL, batch_size=2))


def test_validation_is_held_out_of_training(birds):
    options = DataOptions(image_size=16, validation_fraction=0.4, validation_seed=1)
    split = divide_train(birds, options)
    assert split.info.splits == {"train": 3, "test": 6, "validation": 3}
    (batch,) = eval_iterator(birds, "validation", options, batch_size=3)
    held = set(batch["id"].tolist())
    assert sorted(batch["label"].tolist()) == [0, 1, 2]
    trained = {
        i
        for b in take(train_iterator(birds, options, batch_size=3, seed=0), 4)
        for i in b["id"].tolist()
    }
    assert not held & trained
    assert held | trained == {101, 103, 105, 107, 109, 111}
    (batch,) = eval_iterator(birds, "train", options, batch_size=3)
    assert set(batch["id"].tolist()) == trained
    # Dividing what is divided already changes nothing.
    assert divide_train(split, options) is split


def test_what_remains_of_training_is_divided_further():
    whole = memory(train=60)
    options = DataOptions(
        image_size=16, validation_fraction=0.2, meta_fraction=0.25, train_fraction=0.25
    )
    split = divide_train(whole, options)
    sizes = {"train": 9, "test": 7, "validation": 12, "meta": 12, "unused": 27}
    assert split.info.splits == sizes
    ids = {name: set(split.source(name).ids.tolist()) for name in sizes if name != "test"}
    assert set.union(*ids.values()) == set(range(100, 160))
    assert divide_train(split, options) is split
    for name in ("train", "meta"):
        batches = take(train_iterator(whole, options, batch_size=6, seed=0, split=name), 3)
        seen = {i for batch in batches for i in batch["id"].tolist()}
        assert seen == ids[name]
        assert len({label for batch in batches for label in batch["label"].tolist()}) == 3
    # Only the training images grow with their share.
    more = divide_train(whole, dataclasses.replace(options, train_fraction=1.0))
    assert more.info.splits["train"] == 36
    assert set(more.source("meta").ids.tolist()) == ids["meta"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"meta_fraction": 1.0}, r"meta_fraction is 1.0; expected in \[0, 1\)"),
        ({"train_fraction": 0.0}, r"train_fraction is 0.0; expected in \(0, 1\]"),
    ],
)
def test_shares_are_checked(options, message):
    with pytest.raises(UserError, match=message):
        DataOptions(**options)


def test_validation_that_nobody_holds_out_is_an_error(birds):
    with pytest.raises(UserError, match="has no split 'validation' and validation_fraction is 0"):
        eval_iterator(birds, "validation", SMALL, batch_size=2)
    assert divide_train(birds, SMALL) is birds


def test_a_data_set_of_files_alone_can_be_evaluated():
    info = DatasetInfo("files", ("a", "b", "c"), {"files": 3})
    dataset = SplitSources(info, {"files": Memory(3)})
    options = DataOptions(image_size=16, validation_fraction=0.2)
    assert len(list(eval_iterator(dataset, "files", options, batch_size=2))) == 2
    with pytest.raises(UserError, match="files has no split 'test'"):
        eval_iterator(dataset, "test", options, batch_size=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; expected at least 1"),
        (
            {"batch_size": 6, "process_count": 4},
            "batch_size is 6; expected a multiple of 4 processes",
        ),
        ({"process_index": 2, "process_count": 2}, "process_index is 2"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"start_step": -1}, "start_step is -1"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(UserError, match=message):
        train_iterator(memory(), SMALL, **{"batch_size": 4, "seed": 0, **arguments})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("image_size", 0),
        ("image_size", (16, -1)),
        ("crop_fraction", 0.0),
        ("crop_fraction", 1.5),
        ("crop_scale", (0.5, 0.2)),
        ("crop_scale", (0.0, 1.0)),
        ("crop_ratio", (0.0, 1.0)),
        ("max_shift", -1),
        ("box_margin", -0.1),
        ("flip_probability", 1.1),
        ("validation_fraction", 1.0),
        ("num_workers", -1),
        ("read_threads", 0),
        ("prefetch_batches", 0),
    ],
)
def test_options_out_of_range(option, value):
    with pytest.raises(UserError, match=rf"{option} is .*; expected"):
        DataOptions(**{option: value})


@pytest.mark.parametrize(
    "geometry", ["resize", "random_crop", "random_resized_crop", "shift_crop", "box", "box_crop"]
)
def test_every_training_geometry_gives_the_size_asked_for(birds, geometry):
    options = DataOptions(image_size=(12, 20), train_geometry=geometry)
    batch = take(train_iterator(birds, options, batch_size=3, seed=0), 1)[0]
    assert batch["image"].shape == (3, 12, 20, 3)
    assert batch["image"].std() > 0


@pytest.mark.parametrize("geometry", ["resize", "center_crop", "box"])
def test_every_evaluation_geometry_gives_the_size_asked_for(birds, geometry):
    options = DataOptions(image_size=(12, 20), eval_geometry=geometry)
    (batch,) = eval_iterator(birds, "test", options, batch_size=6)
    assert batch["image"].shape == (6, 12, 20, 3)
    assert batch["image"].std() > 0


def test_a_batch_of_real_photographs(shared):
    dataset = cub.inspect(str(shared / "data" / "cub50")).usable()
    options = DataOptions(image_size=64, eval_geometry="resize", extra_keys=("bbox", "parts"))
    iterator = eval_iterator(dataset, "test", options, batch_size=8)
    batch = next(iterator)
    iterator.close()
    source = dataset.source("test")
    for i in range(8):
        example = source[i]
        height, width = decode(example["image"], "x").shape[:2]
        scale = np.array([64 / width, 64 / height] * 2, np.float32)
        np.testing.assert_allclose(
            batch["bbox"][i], np.clip(example["bbox"] * scale, 0, 64), rtol=1e-5
        )
        assert batch["id"][i] == example["id"]
    assert batch["image"].mean() > 50


SCRIPT = """
import pickle, sys
import numpy as np
from fgkd_jax.data import cub
from fgkd_jax.data.pipeline import DataOptions, eval_iterator, train_iterator
from fgkd_jax.errors import UserError

def main():
    dataset = cub.inspect(sys.argv[1]).usable()
    batches = []
    for images in (0, 2):
        options = DataOptions(
            image_size=16, num_workers=2, read_threads=1, on_corrupt="skip", images_per_class=images
        )
        training = train_iterator(dataset, options, batch_size=4, seed=1, start_step=2)
        batches += [{k: np.array(v) for k, v in next(training).items()} for _ in range(3)]
        training.close()
    strict = DataOptions(image_size=16, num_workers=1, read_threads=1)
    try:
        list(eval_iterator(dataset, "test", strict, batch_size=3))
        message = ""
    except UserError as error:
        message = str(error)
    with open(sys.argv[2], "wb") as file:
        pickle.dump((batches, sorted(training.corrupt), message), file)

if __name__ == "__main__":
    main()
"""


def test_worker_processes_give_the_same_batches_and_errors(cub_dir, birds, tmp_path):
    broken = [birds.source(split)[1]["name"] for split in ("train", "test")]
    for name in broken:
        Path(name).write_bytes(b"broken")
    expected = []
    for images in (0, 2):
        options = DataOptions(image_size=16, on_corrupt="skip", images_per_class=images)
        here = train_iterator(birds, options, batch_size=4, seed=1, start_step=2)
        expected += take(here, 3)
    script, result = tmp_path / "script.py", tmp_path / "result.pickle"
    script.write_text(SCRIPT)
    run = subprocess.run(
        [sys.executable, str(script), str(cub_dir), str(result)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    batches, corrupt, message = pickle.loads(result.read_bytes())
    assert all(equal(a, b) for a, b in zip(expected, batches, strict=True))
    assert corrupt == sorted(here.corrupt) == [broken[0]]
    assert message.startswith(f"image {broken[1]}: cannot be decoded")
