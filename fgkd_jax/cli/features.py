"""`fgkd features`: region features of a backbone over a data set."""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from fgkd_jax.cli.command import DEVICE_HELP, Command, get, require
from fgkd_jax.errors import UserError

DESCRIPTION = """\
Runs the backbone of a config, with its pretrained weights, over every split of its data set and
writes the feature maps of the last stage (or that of --stage) to a folder, with labels, ids, and
the attributes of the classes where the data set has them. Images are cut as in evaluation.

  fgkd features --config configs/classify_cub50.py --folder FEATURES \\
    --config.data.dataset=cub200_2011/zero_shot --config.data.data_dir=CUB \\
    --config.pretrained.path=WEIGHTS
  fgkd data check features --data_dir FEATURES

A run that was stopped goes on where it was. A folder that holds features of another backbone, other
weights, another image size or another data set is refused. Training reads them with
--config.data.dataset=features --config.data.data_dir=FEATURES.

--storage uint8 halves the size; a value is then off by at most 1/510 of the range of its example.
Keys of data.extra_keys (bbox, parts, ...) are stored too, boxes and points in cells of the map.
--thumbnails N keeps what the backbone saw of each image, at most N pixels wide and high, for
pictures of attention (fgkd eval --pictures).
"""


def define(values: flags.FlagValues) -> None:
    """Adds the command's flags.

    Args:
      values: where the flags are defined.
    """
    flags.DEFINE_string("config", None, "path or name of a config", flag_values=values)
    flags.DEFINE_string("folder", None, "folder of the features", flag_values=values)
    flags.DEFINE_integer(
        "stage",
        None,
        "stage of the backbone, counted from 0; the last by default",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "storage", "float16", ["float16", "uint8"], "how values are stored", flag_values=values
    )
    flags.DEFINE_integer(
        "thumbnails",
        0,
        "side in pixels of the images that are kept beside features; 0 keeps none",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_enum("device", None, ["cpu", "gpu", "tpu"], DEVICE_HELP, flag_values=values)


def run(values: flags.FlagValues, arguments: list[str]) -> int:
    """Runs the command.

    Args:
      values: parsed flags.
      arguments: overrides of the config.

    Returns:
      The exit status.

    Raises:
      UserError: an argument is wrong.
    """
    from fgkd_jax.cli.config import load_config
    from fgkd_jax.cli.session import use_platform

    stray = [argument for argument in arguments if not argument.startswith("--config.")]
    if stray:
        raise UserError(f"fgkd features takes no argument '{stray[0]}'; see fgkd features --help")
    experiment = load_config(require(values, "config", command="features"), arguments)
    folder = require(values, "folder", command="features")
    use_platform(get(values, "device"))
    print(
        write_features(
            experiment,
            folder,
            stage=get(values, "stage"),
            storage=get(values, "storage"),
            thumbnails=get(values, "thumbnails"),
        )
    )
    return 0


def write_features(
    experiment: Any,
    folder: str,
    *,
    stage: int | None = None,
    storage: str = "float16",
    thumbnails: int = 0,
) -> str:
    """Computes what is missing of the features of a data set.

    Args:
      experiment: its method has a `backbone` and normalises images; its data set is taken whole,
        its images are cut as in evaluation, its pretrained weights are those of the backbone.
      folder: where the features are, or will be.
      stage: of the backbone; None for the last.
      storage: "float16" or "uint8".
      thumbnails: largest side of the images that are kept beside features; 0 keeps none.

    Returns:
      What was done, in a line.

    Raises:
      UserError: the method has no backbone, there is no such stage, the weights or the data do not
        fit, or the folder holds something else.
    """
    import jax

    from fgkd_jax.data.feature_writer import writing
    from fgkd_jax.data.registry import open_dataset

    if jax.process_count() > 1:
        raise UserError("fgkd features runs in a single process; expected one")
    dataset = open_dataset(experiment.data.dataset, data_dir=experiment.data.data_dir)
    if experiment.data.word_vectors:
        from fgkd_jax.data.word_vectors import with_word_vectors

        dataset = with_word_vectors(dataset, experiment.data.word_vectors)
    if dataset.info.feature_shape is not None:
        raise UserError(f"{dataset.info.name} has features already; expected a data set of images")
    extractor = Extractor.of(experiment, stage=stage)
    identity = _identity(
        extractor, experiment, dataset.info, storage=storage, thumbnails=thumbnails
    )
    with writing(Path(folder), identity, dataset.info.descriptions) as writer:
        before = sum(writer.done(split) for split in identity.splits)
        if before < sum(identity.splits.values()):
            extractor.load()
            for split in identity.splits:
                _write_split(extractor, dataset, split, writer, experiment)
    total = sum(identity.splits.values())
    shape = " x ".join(map(str, identity.shape))
    resumed = f" ({before} were there)" if before else ""
    return (
        f"{folder}: {shape} {storage} features of {total} examples{resumed}, "
        f"backbone {identity.backbone}"
    )


@dataclasses.dataclass
class Extractor:
    """A backbone up to a stage, what it is given, and its weights once they are read.

    Attributes:
      method: normalises images.
      backbone: the network.
      stage: the stage whose output is taken.
      weights: file of pretrained weights; empty for random ones.
      seed: of random weights.
      about: everything the features depend on, in words.
      variables: of the network; None until `load`.
    """

    method: Any
    backbone: Any
    stage: int
    weights: str
    seed: int
    about: Mapping[str, Any]
    variables: Any = None

    @classmethod
    def of(cls, experiment: Any, *, stage: int | None) -> "Extractor":
        """Reads a backbone off a config.

        Args:
          experiment: its method has a `backbone` and normalises images.
          stage: counted from 0; None for the last.

        Returns:
          The extractor, without weights.

        Raises:
          UserError: the method has no backbone, or it has no such stage.
        """
        from fgkd_jax.models.backbones import backbone_from
        from fgkd_jax.train.weight_files import file_sha256

        method, data = experiment.method, experiment.data
        options = getattr(method, "backbone", None)
        if not isinstance(options, Mapping) or not hasattr(method, "normalize"):
            raise UserError("the config's method has no backbone on images; expected one that has")
        backbone = backbone_from(options)
        last = backbone.num_stages - 1
        stage = last if stage is None else stage
        if not 0 <= stage <= last:
            raise UserError(f"--stage is {stage}; expected 0 to {last}")
        weights = experiment.pretrained.path
        about = {
            "backbone": dict(options),
            "weights": file_sha256(weights) if weights else f"random, seed {experiment.seed}",
            "stage": stage,
            "image_mean": list(method.image_mean),
            "image_std": list(method.image_std),
            "image_size": list(data.size),
            "eval_geometry": data.eval_geometry,
            "crop_fraction": data.crop_fraction if data.eval_geometry == "center_crop" else None,
            "box_margin": data.box_margin if data.eval_geometry == "box" else None,
        }
        return cls(method, backbone, stage, weights, experiment.seed, about)

    @property
    def fingerprint(self) -> str:
        """Hash of all that the features depend on but the images."""
        text = json.dumps(self.about, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """Returns (h, w, f) of the features of images of a size."""
        from fgkd_jax.models.backbones import feature_shapes

        return feature_shapes(self.backbone, size)[self.stage]

    def load(self) -> None:
        """Initialises the network and lays the pretrained weights over it.

        Raises:
          UserError: the weights do not fit.
        """
        import jax
        import jax.numpy as jnp

        from fgkd_jax.cli.session import say
        from fgkd_jax.train.pretrained import load_pretrained

        image = jnp.zeros((1, 64, 64, 3))
        stop = self.stage + 1
        own = jax.jit(lambda key: self.backbone.init(key, image, train=False, stop=stop))(
            jax.random.key(self.seed)
        )
        variables: Any = {collection: {"backbone": tree} for collection, tree in own.items()}
        if self.weights:
            variables, notes = load_pretrained(
                variables, self.weights, head=None, truncated=stop < self.backbone.num_stages
            )
            say(str(notes))
        self.variables = {name: tree["backbone"] for name, tree in variables.items()}

    def __call__(self, variables: Any, image: Any) -> Any:
        """Computes the features of images, [b, h, w, 3] in 0..255."""
        stop = self.stage + 1
        pixels = self.method.normalize(image)
        return self.backbone.apply(variables, pixels, train=False, stop=stop)[-1]


def _identity(
    extractor: Extractor, experiment: Any, info: Any, *, storage: str, thumbnails: int
) -> Any:
    """What the folder of these features says of itself."""
    from fgkd_jax.data.feature_folder import THUMBNAIL, FeatureIdentity

    extra_keys = experiment.data.extra_keys
    return FeatureIdentity(
        dataset=info.name,
        dataset_fingerprint=info.fingerprint,
        backbone=extractor.fingerprint,
        about=extractor.about,
        shape=extractor.shape(experiment.data.size),
        storage=storage,
        splits=dict(info.splits),
        class_names=info.class_names,
        groupings=dict(info.groupings),
        part_names=info.part_names,
        extra_keys=(*extra_keys, THUMBNAIL) if thumbnails else extra_keys,
        thumbnails=thumbnails,
    )


def _write_split(
    extractor: Extractor, dataset: Any, split: str, writer: Any, experiment: Any
) -> None:
    """Computes what is missing of one split."""
    from tqdm import tqdm

    done, size = writer.done(split), writer.identity.splits[split]
    if done == size:
        return
    bar = tqdm(total=size, initial=done, desc=f"features of {split}", unit=" images")
    rows: list[dict[str, Any]] = []
    side = writer.identity.thumbnails
    computed = _batches(extractor, dataset, split, experiment, start=done, thumbnails=side)
    with bar, contextlib.closing(computed) as batches:
        for batch in batches:
            for i, there in enumerate(batch["mask"]):
                # Behind the end of the split a batch is filled up; an unread image has no row.
                if there:
                    rows.append({key: value[i] for key, value in batch.items()})
                if done < size:
                    done += 1
                    bar.update()
                if len(rows) == writer.rows_per_shard or (done == size and rows):
                    writer.write(split, rows, stop=done)
                    rows = []
        if writer.done(split) < size:
            writer.write(split, rows, stop=size)


def _batches(
    extractor: Extractor,
    dataset: Any,
    split: str,
    experiment: Any,
    *,
    start: int,
    thumbnails: int,
) -> Generator[dict[str, np.ndarray], None, None]:
    """Batches of a split from an example on, with `features` in place of `image`."""
    import jax

    from fgkd_jax.data.base import SplitSources, Subset, labels_and_ids
    from fgkd_jax.data.feature_folder import THUMBNAIL
    from fgkd_jax.data.pipeline import eval_iterator
    from fgkd_jax.train.sharding import check_batch_size, make_mesh, put_batch, replicated

    mesh, size = make_mesh(experiment.mesh), experiment.train.eval_batch_size
    check_batch_size(size, mesh=mesh, name="train.eval_batch_size")
    source = dataset.source(split)
    labels, ids = labels_and_ids(source)
    rest = np.arange(start, len(source))
    part = SplitSources(
        dataclasses.replace(dataset.info, splits={split: len(rest)}),
        {split: Subset(source, rest, labels[rest], ids[rest])},
    )
    # The data set is taken whole, whatever is held out of it in training.
    options = dataclasses.replace(
        experiment.data, validation_fraction=0.0, validation_classes=0.0, meta_fraction=0.0
    )
    compute = jax.jit(extractor.__call__)
    variables = jax.device_put(extractor.variables, replicated(mesh))
    with contextlib.closing(eval_iterator(part, split, options, batch_size=size)) as batches:
        for batch in batches:
            placed = put_batch({"image": batch["image"]}, mesh=mesh)
            features = np.asarray(compute(variables, placed["image"]), np.float32)
            rows = _in_cells(batch, features.shape[1:3])
            images = rows.pop("image")
            if thumbnails:
                rows[THUMBNAIL] = shrunk(images, side=thumbnails)
            yield {**rows, "features": features}


def shrunk(images: np.ndarray, *, side: int) -> np.ndarray:
    """Makes small images of images; none is enlarged.

    Args:
      images: uint8 [b, h, w, 3].
      side: the larger of height and width that is aimed at, in pixels.

    Returns:
      uint8 [b, sh, sw, 3] of the same aspect ratio, to the nearest pixel.
    """
    from fgkd_jax.data.images import resize

    height, width = images.shape[1:3]
    share = min(1.0, side / max(height, width))
    size = max(1, round(height * share)), max(1, round(width * share))
    return np.stack([resize(image, size) for image in images])


def _in_cells(batch: Mapping[str, np.ndarray], cells: tuple[int, ...]) -> dict[str, np.ndarray]:
    """A batch whose boxes and points are in cells of the features instead of pixels."""
    height, width = batch["image"].shape[1:3]
    scale = np.array([cells[1] / width, cells[0] / height], np.float32)
    changed = dict(batch)
    if "bbox" in batch:
        changed["bbox"] = batch["bbox"] * np.concatenate([scale, scale])
    if "parts" in batch:
        changed["parts"] = batch["parts"] * np.append(scale, np.float32(1))
    return changed


COMMAND = Command(
    name="features",
    usage="--config CONFIG --folder FOLDER [--stage N] [--config.OPTION=VALUE ...]",
    description=DESCRIPTION,
    define=define,
    run=run,
    takes_overrides=True,
)
