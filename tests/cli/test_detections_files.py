"""What was found and what is there, as files that COCO's own tool scores without the library."""

import numpy as np
import pytest

from fgkd_jax.cli.detections import detection_writer
from fgkd_jax.data.base import DatasetInfo, SplitSources, Subset
from fgkd_jax.data.boxes import BoxTable, DetectionDataset, make_dataset
from fgkd_jax.evaluation import FoundBoxes, ScenePredictions
from fgkd_jax.evaluation.detection import TrueBoxes
from fgkd_jax.evaluation.detector import DetectionEvaluator

NAMES, NUMBERS, IDS = ("green", "blue"), (3, 7), (4, 5, 9)


class DrawnScenes:
    """Scenes without files."""

    def __len__(self):
        return len(IDS)

    def __getitem__(self, index):
        return {"id": IDS[index], "name": f"drawn/{IDS[index]}"}


def make_table():
    table = BoxTable("folder")
    for number in IDS:
        nothing = np.zeros((0, 4))
        table.add(f"{number}.jpg", number, (100, 120), nothing, np.zeros(0), np.zeros(0))
    return table


def make_counts():
    """Some objects are found where they are, some nearby, some not, and one is ignored."""
    rng = np.random.default_rng(0)
    found, truth = [], []
    for i in range(len(IDS)):
        corner, side = rng.uniform(0, 40, (6, 2)), rng.uniform(20, 50, (6, 2))
        boxes, labels = np.concatenate([corner, corner + side], 1), rng.integers(0, 2, 6)
        ignored = np.arange(6) == 2 * i
        truth.append(TrueBoxes(boxes.astype(np.float32), labels.astype(np.int32), ignored))
        moved = boxes + rng.choice([0.0, 2.0, 30.0], (6, 1))
        scores = rng.uniform(0.2, 1, 6).astype(np.float32)
        found.append(FoundBoxes(moved.astype(np.float32), scores, labels.astype(np.int32)))
    sizes = np.tile([100, 120], (len(IDS), 1))
    return ScenePredictions(np.array(IDS), sizes, tuple(found), tuple(truth))


def make_datasets():
    """Of files, a share of one's files, and drawn."""
    files = make_dataset("files", class_names=NAMES, category_ids=NUMBERS,
                         tables={"test": make_table()})  # fmt: skip
    base = files.source("test")
    rows = np.arange(len(IDS))
    some = Subset(base, rows, base.labels, base.ids)
    info = DatasetInfo(name="other", class_names=NAMES, splits={"test": len(IDS)})
    assert isinstance(files, SplitSources)
    return {
        "files": files,
        "share": DetectionDataset(info, {"test": some}, category_ids=NUMBERS),
        "drawn": DetectionDataset(info, {"test": DrawnScenes()}, category_ids=NUMBERS),
    }


@pytest.mark.parametrize("kind", ["files", "share", "drawn"])
def test_the_written_pair_has_the_figures_of_the_run(kind, tmp_path):
    pytest.importorskip("pycocotools", reason="the extra `detection` is not installed")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    counts = make_counts()
    detection_writer(str(tmp_path), make_datasets()[kind])("test", "last", counts)
    folder = tmp_path / "detections"
    assert sorted(path.name for path in folder.iterdir()) == ["test-last.json", "test-truth.json"]
    truth = COCO(str(folder / "test-truth.json"))
    tool = COCOeval(truth, truth.loadRes(str(folder / "test-last.json")), "bbox")
    tool.evaluate()
    tool.accumulate()
    tool.summarize()
    figures = DetectionEvaluator(NAMES).finalise(counts)
    assert 0.1 < figures["AP"] < figures["AP50"] < 0.9
    for place, name in enumerate(("AP", "AP50", "AP75")):
        assert tool.stats[place] == pytest.approx(figures[name], abs=1e-9), name
    assert [one["name"] for one in truth.loadCats([3, 7])] == ["green", "blue"]
    names = [one["file_name"] for one in truth.loadImgs(list(IDS))]
    assert names == [f"drawn/{i}" if kind == "drawn" else f"{i}.jpg" for i in IDS]
    crowds = [one["iscrowd"] for one in truth.loadAnns(truth.getAnnIds())]
    assert sum(crowds) == 3
