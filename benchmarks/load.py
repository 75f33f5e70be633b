"""Loading pickled tensors from local shards: dray against the pipeline of bionemo-webdatamodule.

    python benchmarks/load.py
    python benchmarks/load.py --sizes 4kB 100kB --samples 5000 --rounds 5

All contestants read the same tars (packed by dray, which any WebDataset reader reads) and give batches of 32 float32
tensors stacked in a new dimension. They run in one process tree, one after the other in every round, in an order that
changes from round to round; a ratio is taken inside each round, and the median of the rounds is shown. The shards lie
in the page cache. Each run is one epoch; the first round, in which processes start and files are mapped, is left out.

    WebLoader         webdataset's reader and `.decode()`, which runs any pickle, batches in the training process: what
                      bionemo-webdatamodule builds of its documented example, without shuffling
    WebDataModule     the same call with dray, which decodes safely
    ShardLoader       dray's own loader, in the dataset's order
    ShardLoader mixed the same, shuffled over all shards
"""

import argparse
import pickle
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import webdataset
from webdataset.filters import batched

from dray.loaders import ShardLoader, Split, WebDataModule
from dray.pipelines import pickles_to_tars

SUFFIX, BATCH = "tensor.pyd", 32
UNITS = {"kB": 1_000, "MB": 1_000_000, "B": 1}
Epoch = Callable[[], Iterable[Any]]


def main() -> None:
    """Pack, then measure each size and number of workers."""
    arguments = _arguments()
    torch.set_num_threads(1)
    for size in arguments.sizes:
        num_samples = arguments.samples or max(BATCH * 4, min(10_000, 400_000_000 // _bytes(size)))
        with tempfile.TemporaryDirectory(dir=arguments.dir) as folder:
            shards = _pack(Path(folder), num_samples, _bytes(size))
            for num_workers in arguments.workers:
                rates = _measure(_contestants(shards, num_samples, num_workers), num_samples, arguments.rounds)
                print(f"\n{size} x {num_samples:,}, {num_workers} workers, batches of {BATCH}")
                theirs = rates["WebLoader"]
                for name, ours in rates.items():
                    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
                    print(f"    {name:18} {statistics.median(ours):12,.0f} samples/s {ratio:8.2f} x WebLoader")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", nargs="+", default=["4kB", "100kB", "2MB"], help="of a sample (default: %(default)s)"
    )
    parser.add_argument("--samples", type=int, help="default: 10,000, or as many as make 400 MB")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="processes (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="after one to warm up (default: %(default)s)")
    parser.add_argument("--dir", type=Path, help="where to work (default: a temporary folder)")
    return parser.parse_args()


def _bytes(text: str) -> int:
    unit = next(unit for unit in UNITS if text.endswith(unit))
    return int(float(text.removesuffix(unit)) * UNITS[unit])


def _pack(folder: Path, num_samples: int, num_bytes: int) -> Path:
    (folder / "pickles").mkdir()
    names = [f"s{number}" for number in range(num_samples)]
    for name in names:
        (folder / "pickles" / f"{name}.{SUFFIX}").write_bytes(pickle.dumps(torch.rand(num_bytes // 4)))
    pickles_to_tars(folder / "pickles", names, SUFFIX, folder / "shards", "wdshards", min_num_shards=8, progress=False)
    return folder / "shards"


def _contestants(shards: Path, num_samples: int, num_workers: int) -> dict[str, Epoch]:
    untuple_and_batch = [_untuple, batched(BATCH, collation_fn=torch.stack)]
    tars = [str(path) for path in sorted(shards.glob("*.tar"))]
    plain = webdataset.WebDataset(tars, shardshuffle=False, nodesplitter=webdataset.split_by_node)
    plain = plain.decode().to_tuple(SUFFIX)
    web_loader = webdataset.WebLoader(plain, batch_size=None, num_workers=num_workers).compose(*untuple_and_batch)
    module = WebDataModule(
        {Split.test: num_samples}, SUFFIX, {Split.test: str(shards)}, BATCH,
        pipeline_prebatch_wld={Split.test: untuple_and_batch}, kwargs_wld={Split.test: {"num_workers": num_workers}},
    )  # fmt: skip
    module.setup("test")
    ours = [
        ShardLoader(shards, batch_size=BATCH, shuffle=shuffle, num_workers=num_workers, remainder="keep")
        for shuffle in (False, True)
    ]
    return {
        "WebLoader": lambda: web_loader,
        "WebDataModule": module.test_dataloader,
        "ShardLoader": lambda: ours[0],
        "ShardLoader mixed": lambda: ours[1],
    }


def _untuple(source: Iterable[tuple[torch.Tensor]]) -> Iterator[torch.Tensor]:
    return (tensor for (tensor,) in source)


def _num_rows(batch: Any) -> int:
    return len(batch if isinstance(batch, torch.Tensor) else batch[SUFFIX])


def _measure(contestants: dict[str, Epoch], num_samples: int, rounds: int) -> dict[str, list[float]]:
    """Samples a second of each, round by round."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    order = random.Random(0)
    for number in range(rounds + 1):
        for name in order.sample(list(contestants), len(contestants)):
            started = time.perf_counter()
            count = sum(map(_num_rows, contestants[name]()))
            rate = count / (time.perf_counter() - started)
            if count != num_samples:
                raise SystemExit(f"{name} gave {count} of {num_samples} samples")
            rates[name] += [rate] if number else []
    return rates


if __name__ == "__main__":
    main()
