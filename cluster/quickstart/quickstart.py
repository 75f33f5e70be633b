"""`dray quickstart`: files, shards, training, and a rerun that finds nothing to do, on 1,797 handwritten digits.

Each step is a function with the calls that a program of your own would make. Everything runs on this machine.
"""

import pickle
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.pipelines import BuildReport, pickles_to_tars, split_by_hash
from dray.pipelines.running.ray_session import ray_session
from dray.shards import CallError, Store

if TYPE_CHECKING:
    from dray.loaders import PickledDataWDS

SUFFIXES = ("image.pyd", "label.cls")  # the parts of a sample: a pickled tensor, a number as text
FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}
NUM_SHARDS = 4  # of each dataset
GLOBAL_BATCH_SIZE = 64
NUM_EPOCHS = 8
NUM_THREADS = 2
UPLOAD_THREADS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the files lie: URLs, and the keys to them."""

    samples: str
    shards: str
    storage_options: dict[str, Any]

    def dataset(self, split: str) -> str:
        """The directory of a split's dataset."""
        return f"{self.shards}/{split}"


def run_quickstart(directory: Path, store: str) -> None:
    """Run all steps below a directory, and say what happens; a rerun does only what is missing.

    Args:
        directory: Made if missing, and kept.
        store: `disk`, or `s3`: all files go to an S3 server that keeps its objects in the directory.

    Raises:
        CallError: scikit-learn, or for `s3` the server, is not installed.
    """
    with open_place(directory, store) as place:
        with step("1. Write each digit as two files: a pickled image and its label"):
            names = write_samples(place)
        split = split_by_hash(names, FRACTIONS)
        with step("2. Start Ray and pack train, val and test into shards, one task a shard"), ray_session("local"):
            pack(place, split)
        with step(f"3. Train a small network for {NUM_EPOCHS} epochs on batches streamed from the shards"):
            accuracy = train(data_module(place, split))
        with step("4. Build again: nothing has changed"):
            pack(place, split)
        tell(f"\nTest accuracy: {accuracy:.1%} of the {len(split['test'])} digits that the network never saw.")
        say_what_next(directory, store)


@contextmanager
def open_place(directory: Path, store: str) -> Iterator[Place]:
    """Folders on this disk, or a bucket of an S3 server that runs inside the `with`."""
    if store == "disk":
        folder = directory.resolve()
        yield Place(samples=f"{folder}/samples", shards=f"{folder}/shards", storage_options={})
        return
    with SeaweedServer(directory / "s3") as server:
        tell(f"An S3 server answers at {server.endpoint} until the end of this run.")
        yield Place(samples=server.url("samples"), shards=server.url("shards"), storage_options=server.storage_options)


def write_samples(place: Place) -> list[str]:
    """Write `{name}.image.pyd` and `{name}.label.cls` of every digit that is not there yet; returns all names."""
    files = dict(digit_files())
    store = Store(place.samples, place.storage_options)
    missing = files.keys() - {found.name for found in store.list_folder()}
    with ThreadPoolExecutor(UPLOAD_THREADS) as threads:
        list(threads.map(lambda file: store.put_new(file, files[file]), missing))
    tell(f"   {len(missing):,} of {len(files):,} files written to {store.url}, such as digit-0007.image.pyd")
    return [file.removesuffix(".label.cls") for file in files if file.endswith(".label.cls")]


def digit_files() -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each file: images as float32 tensors of shape (1, 8, 8), values 0 to 1.

    Raises:
        CallError: scikit-learn, which holds the digits, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as exc:
        raise CallError("the digits are scikit-learn's, which is missing: pip install 'dray[quickstart]'") from exc
    import torch  # slow to import, like ray and lightning: each only where it is needed

    images, labels = load_digits(return_X_y=True)
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        tensor = torch.tensor(image / 16, dtype=torch.float32).reshape(1, 8, 8)
        yield f"digit-{row:04d}.image.pyd", pickle.dumps(tensor)
        yield f"digit-{row:04d}.label.cls", str(label).encode()


def pack(place: Place, split: dict[str, list[str]]) -> list[BuildReport]:
    """Make a dataset of each split; what an earlier build has packed is not packed again."""
    reports = [
        pickles_to_tars(
            place.samples,
            names,
            SUFFIXES,
            place.dataset(name),
            "wdshards",
            min_num_shards=NUM_SHARDS,
            storage_options=place.storage_options,
            progress=False,
        )
        for name, names in split.items()
    ]
    for report in reports:
        tell(f"   {report}")
    return reports


def data_module(place: Place, split: dict[str, list[str]]) -> "PickledDataWDS":
    """Samples as batches (images, labels) for Lightning; it packs too, and finds the shards packed."""
    from webdataset.filters import batched, shuffle

    from dray.cluster.quickstart.digits import stack
    from dray.loaders import PickledDataWDS, Split

    batch = batched(GLOBAL_BATCH_SIZE, collation_fn=stack)
    return PickledDataWDS(
        place.samples,
        {Split[name]: names for name, names in split.items()},
        SUFFIXES,
        {Split[name]: place.dataset(name) for name in split},
        GLOBAL_BATCH_SIZE,
        n_tars_wds=NUM_SHARDS,
        pipeline_wds={Split.train: shuffle(len(split["train"]), seed=0)},
        pipeline_prebatch_wld=dict.fromkeys(Split, batch),
        storage_options=place.storage_options,
    )


def train(data: "PickledDataWDS") -> float:
    """Fit the network on train, show val after each epoch, return the accuracy on test."""
    import torch
    from lightning import seed_everything

    from dray.cluster.quickstart.digits import DigitNetwork, quiet_trainer

    seed_everything(0, verbose=False)
    torch.set_num_threads(NUM_THREADS)
    trainer = quiet_trainer(NUM_EPOCHS)
    network = DigitNetwork()
    trainer.fit(network, data)
    [metrics] = trainer.test(network, data, verbose=False)
    return metrics["test_accuracy"]


@contextmanager
def step(title: str) -> Iterator[None]:
    """Say what a step does, and afterwards how long it took."""
    tell(f"\n{title}.")
    started = time.monotonic()
    yield
    tell(f"   {time.monotonic() - started:.1f} s")


def say_what_next(directory: Path, store: str) -> None:
    """Where the files lie, and commands to try."""
    tell(f"\nThe files lie in {directory} until you remove it: rm -r {directory}")
    if store == "s3":
        tell("With a bucket of your own: dray build s3://BUCKET/samples s3://BUCKET/shards --suffix image.pyd ...")
        return
    tell(
        f"""Try next:
   dray ls {directory}/shards                # what was built
   tar tf {directory}/shards/test/wdshards-000000.tar | head   # shards are plain tar files
   echo 1 > {directory}/samples/digit-0007.label.cls; dray quickstart --dir {directory}   # packs one shard again"""
    )


def tell(text: str) -> None:
    """One line for the reader, at once."""
    print(text, flush=True)  # noqa: T201
