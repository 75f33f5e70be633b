"""Ray Data in and out: dray's readers beside Ray's own, on a local disk and on object storage.

    python benchmarks/ray_data.py
    python benchmarks/ray_data.py --sizes 4kB --samples 2000 --rounds 3 --no-s3

Ray starts on this machine, with a CPU for each core. Each race has two ways to do the same, which take turns in every
round, in changing order; a ratio is taken inside a round, and the median of the rounds is shown with its target. A turn
begins with the call and ends when the last block is in Ray's object store, or the last tar is closed. All settings are
the defaults. Before the first round, when workers start, both ways must give the same samples. The local files are in
the page cache. SeaweedFS serves S3 on loopback, behind a proxy that delays each request; server, proxy and Ray share
this machine.

    read_pickles   decoded to tensor columns     beside `read_binary_files`, which decodes nothing
    read_shards    decoded `.npy` parts          beside `read_webdataset` on the same tars
    write_shards   8 exact, durable shards       beside `write_webdataset`, a tar for each block; on the local disk
"""

import argparse
import logging
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import ray
from in_and_out import reading, writing
from in_and_out.data import Where, make_samples, object_store
from in_and_out.race import run
from loading.task import parse_bytes

RACES = (reading.races, writing.races)
MOST_SAMPLES, MOST_BYTES, REMOTE_SAMPLES = 20_000, 300_000_000, 1_000
STORE_BYTES = 1_500 << 20


def main() -> None:
    """Run the races of each size and place."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="dray-benchmark-", dir=arguments.dir) as folder:
        _start_ray()
        try:
            for size in arguments.sizes:
                num = arguments.samples or min(MOST_SAMPLES, MOST_BYTES // size)
                _race(Where("local disk", folder), size, num, arguments.rounds)
            if arguments.s3:
                with object_store(arguments.latency) as where:
                    for size in arguments.sizes:
                        num = arguments.samples or min(REMOTE_SAMPLES, MOST_BYTES // size)
                        _race(where, size, num, arguments.remote_rounds)
        finally:
            ray.shutdown()


def _race(where: Where, size: int, num: int, rounds: int) -> None:
    samples = make_samples(where, size, num)
    for races in RACES:
        for race in races(where, samples):
            run(race, rounds)


def _start_ray() -> None:
    ray.init(
        address="local", include_dashboard=False, object_store_memory=STORE_BYTES, log_to_driver=False,
        logging_level=logging.ERROR,
    )  # fmt: skip
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=parse_bytes, default=[4_000, 100_000], help="of a sample")
    parser.add_argument("--samples", type=int, help=f"default: {MOST_SAMPLES:,} or 300 MB; {REMOTE_SAMPLES:,} on S3")
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--remote-rounds", type=int, default=3, help="on S3 (default: %(default)s)")
    parser.add_argument("--latency", type=int, default=20, help="ms a request to S3 (default: %(default)s)")
    parser.add_argument("--no-s3", dest="s3", action="store_false", help="the local disk alone")
    parser.add_argument("--dir", type=os.path.abspath, help="where the data lie meanwhile: the disk to be measured")
    return parser.parse_args()


if __name__ == "__main__":
    main()
