"""The steps of `dray quickstart`: files, shards, training, and a rerun without work, on 1,797 handwritten digits.

Each step is a function with the calls that your own program would make. Everything runs on this machine.
"""

import pickle
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.pipelines import BuildReport, pickles_to_tars, split_by_hash
from dray.pipelines.running.ray_session import ray_session
from dray.shards import CallError, Store

if TYPE_CHECKING:
    from dray.loaders import PickledDataWDS

SUFFIXES = ("image.pyd", "label.cls")  # parts of a sample: a pickled tensor, and a number as text
FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}
NUM_SHARDS = 4  # of each dataset
GLOBAL_BATCH_SIZE = 64
NUM_EPOCHS = 8
NUM_THREADS = 2
UPLOAD_THREADS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Location of the samples and shards: URLs and the options of their store, which hold its keys."""

    samples: str
    shards: str
    storage_options: dict[str, Any]

    def dataset(self, split: str) -> str:
        """Returns the URL of a split's dataset."""
        return f"{self.shards}/{split}"


def run_quickstart(directory: Path, store: str) -> None:
    """Run all steps in a directory and print what they do; a rerun does only what is missing.

    Args:
        directory: Created if missing, and never removed.
        store: "disk", or "s3" for an S3 server that keeps its objects in the directory.

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
        typer.echo(
            f"\nTest accuracy: {accuracy:.1%} of the {len(split['test'])} digits that the network has never seen."
        )
        print_next_steps(directory, store)


@contextmanager
def open_place(directory: Path, store: str) -> Iterator[Place]:
    """Yields folders on this disk, or a bucket of an S3 server that runs inside the `with` block."""
    if store == "disk":
        folder = directory.resolve()
        yield Place(samples=f"{folder}/samples", shards=f"{folder}/shards", storage_options={})
        return
    with SeaweedServer(directory / "s3") as server:
        typer.echo(f"An S3 server answers at {server.endpoint} until the end of this run.")
        yield Place(samples=server.url("samples"), shards=server.url("shards"), storage_options=server.storage_options)


def write_samples(place: Place) -> list[str]:
    """Write the missing ones of all files `{name}.image.pyd` and `{name}.label.cls`; return the names of all digits."""
    files = dict(digit_files())
    store = Store(place.samples, place.storage_options)
    missing = files.keys() - {found.name for found in store.list_folder()}
    with ThreadPoolExecutor(UPLOAD_THREADS) as threads:
        list(threads.map(lambda file: store.put_new(file, files[file]), missing))
    typer.echo(f"   {len(missing):,} of {len(files):,} files written to {store.url}, such as digit-0007.image.pyd")
    return [file.removesuffix(".label.cls") for file in files if file.endswith(".label.cls")]


def digit_files() -> Iterator[tuple[str, bytes]]:
    """Yields the name and bytes of each file: images are float32 tensors of shape (1, 8, 8) with values from 0 to 1.

    Raises:
        CallError: scikit-learn, which holds the digits, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as exc:
        raise CallError(
            "the digits come from scikit-learn, which is not installed: pip install 'dray[quickstart]'"
        ) from exc
    import torch  # slow to import, as are ray and lightning: imported only where needed

    images, labels = load_digits(return_X_y=True)
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        tensor = torch.tensor(image / 16, dtype=torch.float32).reshape(1, 8, 8)
        yield f"digit-{row:04d}.image.pyd", pickle.dumps(tensor)
        yield f"digit-{row:04d}.label.cls", str(label).encode()


def pack(place: Place, split: dict[str, list[str]]) -> list[BuildReport]:
    """Build a dataset for each split; shards of an earlier build are reused."""
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
        typer.echo(f"   {report}")
    return reports


def data_module(place: Place, split: dict[str, list[str]]) -> "PickledDataWDS":
    """Returns a Lightning DataModule with batches (images, labels); it would pack the shards if they were missing."""
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
    """Fit the network on train, print the accuracy on val after each epoch, and return the accuracy on test."""
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
    """Print what a step does, and at its end the seconds that it took."""
    typer.echo(f"\n{title}.")
    started = time.monotonic()
    yield
    typer.echo(f"   {time.monotonic() - started:.1f} s")


def print_next_steps(directory: Path, store: str) -> None:
    """Print the location of the files, and commands to try."""
    typer.echo(f"\nThe files stay in {directory} until you remove it: rm -r {directory}")
    if store == "s3":
        typer.echo(
            "With a bucket of your own: dray build s3://BUCKET/samples s3://BUCKET/shards --suffix image.pyd ..."
        )
        return
    typer.echo(
        f"""Try next:
   dray ls {directory}/shards                # what was built
   tar tf {directory}/shards/test/wdshards-000000.tar | head   # shards are plain tar files
   echo 1 > {directory}/samples/digit-0007.label.cls; dray quickstart --dir {directory}   # packs one shard again"""
    )
