"""`read_shards`: the samples of a version, each once and in order, and nothing else is read."""

import pickle
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.pipelines import build_dataset, pickles_to_tars, read_shards, write_samples
from dray.pipelines.ray_data.shards_datasource import stored_rows
from dray.shards import CallError, DamagedError, NotFoundError, RefusedError, Snapshot
from tests.conftest import Place
from tests.support.chaos import NO_PAUSES, Chaos
from tests.support.datasets import npy, pack, rows_of, samples_at, store_at
from tests.support.foreign import NAMES, PER_TAR, index_at, put_tars, replace_tar, tar_of
from tests.support.hostile_pickles import call, text, whole

pytestmark = pytest.mark.usefixtures("ray_local")
PARTS = {
    "x.npy": lambda number: npy(np.full((2, 3), number, "f4")),
    "ragged.npy": lambda number: npy(np.arange(number % 3)),
    "t.pyd": lambda number: pickle.dumps(torch.full((2,), float(number))),
    "cls": lambda number: b"%d" % number,
    "txt": lambda number: b"note %d" % number,
    "json": lambda number: b'{"n": %d}' % number,
    "bin": lambda number: bytes([number] * 3),
}


def numbers(dataset: Any) -> list[int]:
    return [int(row["cls"]) for row in rows_of(dataset.select_columns(["cls"]))]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """100 samples with every kind of part in 3 shards."""
    return pack(tmp_path_factory.mktemp("read"), 100, parts=PARTS)


def test_every_part_has_a_column_of_its_values(url: str) -> None:
    """In the order of the dataset; the number of read tasks makes no difference, even inside a tar."""
    dataset = read_shards(url, override_num_blocks=7)
    assert dataset.materialize().num_blocks() == 7
    rows = rows_of(dataset)
    assert [row["__key__"] for row in rows] == [f"s{number:04d}" for number in range(100)]
    for number, row in enumerate(rows):
        assert (row["x.npy"] == np.full((2, 3), number)).all()
        assert row["x.npy"].dtype == np.float32
        assert row["ragged.npy"].tolist() == list(range(number % 3))
        assert row["t.pyd"].tolist() == [number, number]
        assert (row["cls"], row["txt"]) == (number, f"note {number}")
        assert (row["json"], row["bin"]) == ({"n": number}, bytes([number] * 3))


def test_read_tasks_take_resources_and_a_limit_of_their_number(url: str) -> None:
    """As Ray Data's own readers do."""
    dataset = read_shards(url, parts="cls", ray_remote_args={"num_cpus": 0.5, "resources": {}}, concurrency=1)
    assert sorted(numbers(dataset)) == list(range(100))


def test_undecoded_parts_are_the_stored_bytes(url: str) -> None:
    """Under the suffixes by which they are stored."""
    rows = rows_of(read_shards(url, decode=False, parts=["json", "x.npy"]))
    assert [row["x.npy"] for row in rows] == [PARTS["x.npy"](number) for number in range(100)]
    assert [row["json"] for row in rows] == [PARTS["json"](number) for number in range(100)]


def test_keys_and_counts_need_no_shard(tmp_path: Path) -> None:
    """The tars are gone, and the number of samples, the keys and the version's parts are still known."""
    dataset = read_shards(pack(tmp_path, 20))
    for tar in (tmp_path / "out").glob("*.tar"):
        tar.unlink()
    assert dataset.count() == 20
    assert len(rows_of(dataset.select_columns(["__key__"]))) == 20
    with pytest.raises(NotFoundError, match="the shard is missing"):
        dataset.take(1)


def test_only_the_columns_and_samples_in_demand_are_fetched(s3: SeaweedServer, chaos: Chaos, tmp_path: Path) -> None:
    """A sample has 100 kB, and 3 of them are taken: the second part of these is fetched, from the first shard."""
    parts = {"a.bin": lambda number: bytes(100_000), "b.bin": lambda number: b"%d" % number}
    url, options = s3.url("columns"), s3.storage_options | {"endpoint": chaos.endpoint}
    pack(tmp_path, 30, url=url, parts=parts, storage_options=s3.storage_options)
    dataset = read_shards(url, storage_options=options)
    assert [row["b.bin"] for row in dataset.select_columns(["b.bin"]).take(3)] == [b"0", b"1", b"2"]
    tars = [asked for asked in chaos.log if ".tar" in asked.path]
    assert {asked.path.split("?")[0].rpartition("/")[2] for asked in tars} == {"wdshards-000000.tar"}
    assert sum(asked.sent for asked in tars) < 10_000
    assert len([asked for asked in chaos.log if "/index/" in asked.path]) == 1


def test_failing_requests_are_repeated(s3: SeaweedServer, chaos: Chaos, tmp_path: Path) -> None:
    """Every request fails at first, or is cut in the middle: each sample comes once."""
    url, options = s3.url("failing"), s3.storage_options | {"endpoint": chaos.endpoint, "retry_config": NO_PAUSES}
    pack(tmp_path, 60, url=url, parts=PARTS, storage_options=s3.storage_options)
    chaos.rule("status", code=503, path=r"/index/", times=1, each=True)
    cut = chaos.rule("reset_body", at=2000, path=r"\.tar", times=1, each=True)
    assert numbers(read_shards(url, storage_options=options, override_num_blocks=4)) == list(range(60))
    assert rows_of(read_shards(url, storage_options=options))[59]["txt"] == "note 59"
    assert cut.hits


def test_the_version_is_fixed_when_it_is_opened(tmp_path: Path) -> None:
    """A later commit does not change a dataset; a number, a hold and a URL name a version."""
    url = pack(tmp_path, 6, parts={"cls": PARTS["cls"]})
    dataset = read_shards(url)
    pickles_to_tars(tmp_path / "inputs", ["s0001"], "cls", url, "wdshards", progress=False)
    assert numbers(dataset) == list(range(6))
    assert numbers(read_shards(url)) == [1]
    assert numbers(read_shards(f"{url}?version=1")) == numbers(read_shards(url, version=1)) == list(range(6))


def pack_with_gaps(folder: Path) -> str:
    """Odd samples lack `x.npy`; all have a label."""
    (folder / "inputs").mkdir()
    names = [f"s{number}" for number in range(8)]
    for number, name in enumerate(names):
        (folder / "inputs" / f"{name}.cls").write_bytes(b"%d" % number)
        if number % 2 == 0:
            (folder / "inputs" / f"{name}.x.npy").write_bytes(npy(np.full(2, number)))
    pickles_to_tars(
        folder / "inputs", names, "cls", folder / "out", "wdshards", optional_suffixes=["x.npy"], progress=False
    )
    return str(folder / "out")


def test_samples_that_lack_a_part_are_treated_as_in_the_loaders(tmp_path: Path) -> None:
    """An error that names the part, or null; a column has one type in all blocks."""
    url = pack_with_gaps(tmp_path)
    with pytest.raises(CallError, match="give missing='none'"):
        read_shards(url)
    with pytest.raises(CallError, match=r"key 's1'.*no part with suffix 'x.npy'"):
        read_shards(url, parts=["x.npy"]).take_all()
    rows = rows_of(read_shards(url, missing="none", override_num_blocks=8).repartition(1))
    assert [None if row["x.npy"] is None else row["x.npy"].tolist() for row in rows] == [
        None if number % 2 else [number, number] for number in range(8)
    ]
    assert numbers(read_shards(url, parts="cls")) == list(range(8))


def test_an_encoded_part_has_the_name_of_its_source(tmp_path: Path) -> None:
    """Its values are decoded from the form in which each is stored; undecoded, each form is a column."""
    values = [torch.full((2,), 1.0), {"a": 1}, torch.full((2,), 3.0)]
    url = pack(tmp_path, 3, parts={"x.pyd": lambda number: pickle.dumps(values[number])}, encode="auto")
    rows = rows_of(read_shards(url))
    assert (rows[0]["x.pyd"].tolist(), rows[1]["x.pyd"], rows[2]["x.pyd"].tolist()) == ([1, 1], {"a": 1}, [3, 3])
    stored = rows_of(read_shards(url, decode=False))
    assert [{name for name, value in row.items() if value is not None} for row in stored] == [
        {"__key__", "x.npy"}, {"__key__", "x.json"}, {"__key__", "x.npy"}
    ]  # fmt: skip


def test_a_hostile_pickle_is_refused_in_the_worker(tmp_path: Path) -> None:
    """The error names shard, key, suffix and keyword, and nothing ran."""
    ran = tmp_path / "ran"
    hostile = whole(call("os", "mkdir", text(str(ran))))
    url = pack(tmp_path, 5, parts={"x.pyd": lambda number: hostile if number == 3 else pickle.dumps(number)})
    with pytest.raises(RefusedError, match=r"(?s)wdshards-\d+\.tar.*key 's0003'.*suffix 'x\.pyd'.*os\.mkdir.*allow="):
        read_shards(url).materialize()
    assert not ran.exists()
    assert [row["x.pyd"] for row in read_shards(url).take(3)] == [0, 1, 2]


def test_a_damaged_sample_is_an_error_that_names_it(tmp_path: Path) -> None:
    """And never a shorter dataset."""
    url = pack(tmp_path, 6, parts={"bin": lambda number: bytes(100)})
    tar = tmp_path / "out" / "wdshards-000001.tar"
    body = bytearray(tar.read_bytes())
    body[600] ^= 1
    tar.write_bytes(body)
    with pytest.raises(DamagedError, match=r"wdshards-000001\.tar.*key 's0002'"):
        read_shards(url).materialize()


def test_arguments_that_cannot_be_right_are_named(url: str) -> None:
    """Before anything is read, or when the columns are known."""
    with pytest.raises(CallError, match="no sample has a part 'nope'"):
        read_shards(url, parts="nope")
    with pytest.raises(CallError, match="no column 'nope'"):
        read_shards(url).select_columns(["nope"]).take(1)
    with pytest.raises(CallError, match="override_num_blocks=0"):
        read_shards(url, override_num_blocks=0)


def test_the_memory_of_this_process_is_refused(tmp_path: Path) -> None:
    """Workers could not read it."""
    memory = pack(tmp_path, 3, url="memory://read-shards", address="none")
    with pytest.raises(CallError, match="cannot read the memory of this process"):
        read_shards(memory)


def test_each_sample_goes_to_one_of_the_consumers_of_a_stream(url: str) -> None:
    """`streaming_split` over two threads, with a column and a limit pushed down, again in a second epoch."""
    dataset = read_shards(url).select_columns(["cls"]).limit(90)
    seen: list[list[int]] = [[], []]

    def consume(rank: int, iterator: Any) -> None:
        for _ in range(2):
            for batch in iterator.iter_batches(batch_size=8):
                seen[rank] += batch["cls"].tolist()

    consumers = [
        threading.Thread(target=consume, args=pair) for pair in enumerate(dataset.streaming_split(2, equal=False))
    ]
    for consumer in consumers:
        consumer.start()
    for consumer in consumers:
        consumer.join()
    assert sorted(seen[0] + seen[1]) == sorted([*range(90)] * 2)


def places(snapshot: Snapshot) -> Mapping[str, tuple[int, int]]:
    table = snapshot.samples().to_pydict()
    return {key: (shard, row) for key, shard, row in zip(table["key"], table["shard"], table["row"], strict=True)}


def test_stored_rows_are_those_that_were_listed(url: str) -> None:
    """As bytes, with the key of their source."""
    snapshot = Snapshot.open(url)
    rows = {0: [1, 4], 2: [0, 1, 2, 30]}
    keys = [key for key, (shard, row) in sorted(places(snapshot).items()) if row in rows.get(shard, ())]
    found = rows_of(ray.data.read_datasource(stored_rows(snapshot, rows), override_num_blocks=4))
    assert [row["__key__"] for row in found] == [row["__source__"] for row in found] == keys
    for row in found:
        assert row["x.npy"] == PARTS["x.npy"](int(row["__key__"][1:]))


def two_of_each(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"__key__": f"{sample['__key__']}_{copy}", "__source__": sample["__source__"], "y.cls": sample["cls"]}
        for sample in samples
        for copy in range(2)
    ]


def test_rows_know_their_source_where_an_input_gave_several(tmp_path: Path) -> None:
    """Also in a dataset that a function made, on Ray as in process, which is read like any other."""
    (tmp_path / "in").mkdir()
    for number in range(6):
        (tmp_path / "in" / f"s{number}.cls").write_bytes(b"%d" % number)
    for folder, address in (("out", None), ("here", "none")):
        build_dataset(
            tmp_path / "in", tmp_path / folder, suffixes="cls", transform=two_of_each, transform_version="1",
            samples_per_shard=5, batch_size=4, address=address, progress=False,
        )  # fmt: skip
    assert samples_at(tmp_path / "out") == samples_at(tmp_path / "here")
    assert [row["y.cls"] for row in rows_of(read_shards(tmp_path / "out"))] == [n // 2 for n in range(12)]
    rows = {0: [1, 4], 2: [0]}
    found = rows_of(ray.data.read_datasource(stored_rows(Snapshot.open(tmp_path / "out"), rows), override_num_blocks=2))
    assert [(row["__key__"], row["__source__"], row["y.cls"]) for row in found] == [
        ("s0_1", "s0", b"0"), ("s2_0", "s2", b"2"), ("s5_0", "s5", b"5")
    ]  # fmt: skip


def test_rows_of_a_dataset_without_sources_have_none(tmp_path: Path) -> None:
    """The column `__source__` is an error before anything is read."""
    write_samples([{"__key__": "a", "cls": 1}], tmp_path, samples_per_shard=1)
    assert rows_of(read_shards(tmp_path)) == [{"__key__": "a", "cls": 1}]
    with pytest.raises(CallError, match="records no sources"):
        stored_rows(Snapshot.open(tmp_path), {0: [0]})


def test_tars_of_another_program_are_read_where_the_caller_says(tmp_path: Path) -> None:
    """By workers as well, which check that they are the ones that were indexed."""
    records, tars = Place((tmp_path / "records").as_uri()), Place((tmp_path / "tars").as_uri())
    put_tars(store_at(tars))
    index_at(records, tars=tars)
    with pytest.raises(CallError, match=f"give data_url='{tars.url}'"):
        read_shards(records.url, prefix="wds")
    dataset = read_shards(records.url, prefix="wds", data_url=tars.url)
    assert numbers(dataset) == list(range(3 * PER_TAR))
    replace_tar(store_at(tars), NAMES[1], tar_of([1]))
    with pytest.raises(DamagedError, match=r"a/01\.tar: not the tar that was indexed"):
        rows_of(dataset)
