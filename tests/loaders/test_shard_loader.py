"""`ShardLoader`: the contents of a batch, workers, versions and ranks."""

# Long: every test reads the same datasets with one rank or several.

import os
import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import default_collate

from dray.loaders import ShardLoader
from dray.loaders.batching.collate import collate
from dray.pipelines import pickles_to_tars
from dray.shards import Snapshot
from dray.shards.errors import CallError, DamagedError, RefusedError
from tests.support.datasets import pack

MANY = 61


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Mapping[int, str]:
    """A dataset of each size."""
    folder = tmp_path_factory.mktemp("loader")
    return {size: pack(folder / str(size), size, min(size, 5)) for size in (1, 3, MANY)}


def numbers(batch: Mapping[str, Any]) -> list[int]:
    """Returns the samples of a batch, without filler."""
    valid = batch.get("__valid__", torch.ones(len(batch["cls"]), dtype=torch.bool))
    assert torch.equal(torch.as_tensor(batch["x.pyd"])[:, 0].long(), torch.as_tensor(batch["cls"]))
    return [int(number) for number in batch["cls"][valid]]


def loaders_of(url: str, num_ranks: int, **options: Any) -> list[ShardLoader]:
    return [ShardLoader(url, rank=rank, num_ranks=num_ranks, **options) for rank in range(num_ranks)]


def steps_of(loaders: list[ShardLoader], steps: int | None = None) -> list[list[int]]:
    """Returns the samples of each step over all ranks, in rank order; all ranks must have as many steps."""
    ranks = [[numbers(batch) for batch in islice(loader, steps)] for loader in loaders]
    return [flat(list(step)) for step in zip(*ranks, strict=True)]


def flat(steps: list[list[int]]) -> list[int]:
    return [number for step in steps for number in step]


ORDER_PROGRAM = """
import sys
import time
from dray.loaders import ShardLoader
loader = ShardLoader(sys.argv[1], batch_size=7, shuffle=True, seed=11)
held = iter(loader)
print([batch["cls"].tolist() for batch in loader])
next(held)  # is left to the interpreter's end
"""


def test_another_process_has_the_same_order(urls: Mapping[int, str]) -> None:
    """The seed alone decides. An iterator that is still open does not keep the process from ending."""
    done = subprocess.run(
        [sys.executable, "-c", ORDER_PROGRAM, urls[MANY]], capture_output=True, text=True, check=True, timeout=120
    )
    loader = ShardLoader(urls[MANY], batch_size=7, shuffle=True, seed=11)
    assert done.stdout.strip() == str([numbers(batch) for batch in loader])
    assert done.stderr == ""


def test_a_rank_without_samples_has_a_batch_of_no_rows(urls: Mapping[int, str]) -> None:
    """It has the parts, dtypes and shapes of any other batch, also with a custom `collate`."""
    options: Any = {"batch_size": 2, "remainder": "keep", "rank": 0, "num_ranks": 3}
    (batch,) = ShardLoader(urls[1], with_keys=True, **options)
    assert batch["x.pyd"].shape == (0, 2)
    assert batch["x.pyd"].dtype == torch.float32
    assert batch["cls"].dtype == torch.int64
    assert batch["txt"] == batch["__key__"] == []
    ((ones, rows),) = ShardLoader(urls[1], collate=lambda rows: (torch.ones(len(rows), 5), rows), **options)
    assert (ones.shape, rows) == ((0, 5), [])
    ((xs, ys),) = ShardLoader(
        urls[1], collate=default_collate, transform=lambda row: (row["x.pyd"], row["cls"]), **options
    )
    assert (xs.shape, ys.shape) == ((0, 2), (0,))
    odd = ShardLoader(urls[1], collate=len, **options)
    with pytest.raises(CallError, match="the int that collate returned cannot be cut to 0 rows"):
        list(odd)


def test_what_a_batch_is_made_of() -> None:
    """Equal dtypes and shapes are stacked without loss; anything else stays a list."""
    tensor, array = torch.ones(2, dtype=torch.bfloat16), np.ones((2, 3), ">i4")
    rows: list[dict[str, Any]] = [
        {"t": tensor, "a": array, "n": 1, "f": 0.1, "b": True, "s": "x", "g": np.float32(2), "l": None, "m": [1]},
        {"t": tensor, "a": array, "n": 2, "f": 0.2, "b": False, "s": "y", "g": np.float32(3), "l": tensor, "m": {}},
    ]
    batch = collate(rows)
    assert (batch["t"].dtype, batch["t"].shape) == (torch.bfloat16, (2, 2))
    assert (batch["a"].dtype, batch["a"].shape) == (torch.int32, (2, 2, 3))
    assert (batch["n"].tolist(), batch["f"].tolist(), batch["b"].tolist()) == ([1, 2], [0.1, 0.2], [True, False])
    assert batch["g"].dtype == torch.float32
    assert (batch["s"], batch["m"]) == (["x", "y"], [[1], {}])
    assert batch["l"] == [None, tensor]
    assert [type(value) for value in collate(rows, stack={"n"}).values()] == [list, list, Tensor, *[list] * 6]
    mixed = collate([{"a": np.ones(2, np.float32)}, {"a": torch.zeros(2)}])["a"]
    assert torch.equal(mixed, torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    assert collate([{"a": np.array(["text"])}])["a"][0] == "text"
    leaf = torch.ones(2, requires_grad=True)
    assert not collate([{"a": leaf}, {"a": leaf}])["a"].requires_grad
    with pytest.raises(CallError, match="transform returned Tensor, not a dict"):
        collate([tensor])  # type: ignore[list-item]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_arrays_in_a_batch_stay_arrays_with_workers(urls: Mapping[int, str], num_workers: int) -> None:
    """A batch is what `collate` returned, in either process."""
    loader = ShardLoader(
        urls[3], batch_size=3, num_workers=num_workers, collate=lambda rows: (np.ones(2), {"a": [np.ones(1)]})
    )
    ((array, held),) = loader
    assert (type(array), type(held["a"][0])) == (np.ndarray, np.ndarray)


def test_lists_of_many_tensors_need_no_file_descriptors(urls: Mapping[int, str]) -> None:
    """PyTorch sends each tensor by a descriptor, and a worker that has none left hangs; here it has only a few."""

    def ragged(row: dict[str, Any]) -> dict[str, Any]:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, most))
        return {"many": [torch.ones(row["cls"]) for _ in range(40)]}

    loader = ShardLoader(urls[3], batch_size=3, num_workers=1, transform=ragged)
    (batch,) = loader
    assert [len(tensors[39]) for tensors in batch["many"]] == [0, 1, 2]


def test_only_wanted_parts_are_read(urls: Mapping[int, str]) -> None:
    """With keys, a limit and a transform."""
    loader = ShardLoader(urls[MANY], batch_size=4, parts="cls", with_keys=True, limit=6, remainder="keep")
    batches = list(loader)
    assert [list(batch) for batch in batches] == [["cls", "__key__"]] * 2
    assert [key for batch in batches for key in batch["__key__"]] == [f"s{number:04d}" for number in range(6)]
    assert loader.stats()["bytes"] == 6
    doubled = ShardLoader(urls[3], batch_size=3, parts="cls", transform=lambda row: {"two": 2 * row["cls"]})
    assert [batch["two"].tolist() for batch in doubled] == [[0, 2, 4]]


def test_a_part_that_no_sample_has_is_refused(tmp_path: Path) -> None:
    """The error lists the parts that exist. A part that whole shards lack exists."""

    def extra(key: str, parts: Mapping[str, bytes]) -> dict[str, Any]:
        return dict(parts) if key < "s0004" else {**parts, "more.cls": b"7"}

    url = pack(tmp_path, 6, 3, func_output_data=extra, transform_version="1")
    loader = ShardLoader(url, batch_size=6, parts=["cls", "more.cls"], missing="none")
    assert [batch["more.cls"] for batch in loader] == [[None] * 4 + [7, 7]]
    with pytest.raises(CallError, match=r"no sample has a part 'y.pyd'; their parts are cls, more.cls, txt, x.pyd"):
        ShardLoader(url, batch_size=6, parts=["cls", "y.pyd"])


def test_filler_is_marked_or_refused(urls: Mapping[int, str]) -> None:
    """`__valid__` is added to the result of `collate` if that is a dict."""
    (batch,) = ShardLoader(urls[3], batch_size=4, remainder="pad", collate=lambda rows: {"n": len(rows)})
    assert (batch["n"], batch["__valid__"].tolist()) == (4, [True, True, True, False])
    with pytest.raises(CallError, match="collate returned list, not dict"):
        list(ShardLoader(urls[3], batch_size=4, remainder="pad", collate=list))


def test_a_version_is_kept_while_others_are_built(tmp_path: Path) -> None:
    """A loader keeps the version that it opened. A URL or an argument names a version other than the latest."""
    url = pack(tmp_path, 12, 3)
    loader = ShardLoader(url, batch_size=2)
    batches = iter(loader)
    next(batches)
    pickles_to_tars(tmp_path / "inputs", ["s0000"], ["x.pyd", "cls", "txt"], url, "wdshards", progress=False)
    assert len(list(batches)) == 5
    assert flat([numbers(batch) for batch in loader]) == list(range(12))
    for pinned in (ShardLoader(f"{url}?version=1", batch_size=2), ShardLoader(url, version=1, batch_size=2)):
        assert len(list(pinned)) == 6
        pinned.load_state_dict(loader.state_dict())
    assert len(list(ShardLoader(url, batch_size=1))) == 1
    with pytest.raises(CallError, match=r"dataset: .*open .*\?version=1"):
        ShardLoader(url, batch_size=1).load_state_dict(loader.state_dict())
    with pytest.raises(CallError, match="seed: 0 in the checkpoint, 1 here"):
        ShardLoader(url, version=1, batch_size=2, seed=1).load_state_dict(loader.state_dict())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_pickle_that_is_not_safe_is_refused(tmp_path: Path, num_workers: int) -> None:
    """The error names shard, key and suffix."""
    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs" / "a.x.pyd").write_bytes(pickle.dumps(subprocess.DEVNULL.__class__))
    (tmp_path / "inputs" / "b.x.pyd").write_bytes(pickle.dumps(Path("x")))
    pickles_to_tars(tmp_path / "inputs", ["a", "b"], "x.pyd", tmp_path / "out", "wdshards", progress=False)
    with pytest.raises(RefusedError, match=r"wdshards-000000\.tar, key '[ab]', suffix 'x\.pyd'"):
        list(ShardLoader(tmp_path / "out", batch_size=1, num_workers=num_workers))


def test_a_killed_worker_is_an_error_and_the_next_pass_has_others(urls: Mapping[int, str]) -> None:
    """The trainer does not hang, and the error names the process."""

    def die(row: dict[str, Any]) -> dict[str, Any]:
        if row["cls"] == 20 and not os.environ.get("DRAY_TEST_LIVE"):
            os.kill(os.getpid(), signal.SIGKILL)
        return row

    loader = ShardLoader(urls[MANY], batch_size=4, num_workers=2, transform=die, remainder="keep")
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid.*\d+\).*(killed|exited)"):
        list(loader)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DRAY_TEST_LIVE", "1")
        loader.set_epoch(0)
        assert flat([numbers(batch) for batch in loader]) == list(range(MANY))


def test_locate_returns_the_keys_of_every_batch(urls: Mapping[int, str]) -> None:
    """For every rank and step: in a resumed epoch, before it is continued, and in other epochs."""
    options = {"shuffle": True, "with_keys": True, "remainder": "pad"}
    old = ShardLoader(urls[MANY], batch_size=15, **options)  # type: ignore[arg-type]
    next(iter(old))
    loaders = loaders_of(urls[MANY], 2, batch_size=4, **options)
    for loader in loaders:
        loader.load_state_dict(old.state_dict())
    located = [[sample["key"] for sample in loaders[0].locate(0, 2, rank)] for rank in (0, 1)]
    assert located == [list(islice(loader, 2))[1]["__key__"] for loader in loaders]
    with pytest.raises(CallError, match="step 0 of epoch 0"):
        loaders[0].locate(0, 0)
    with pytest.raises(CallError, match="on rank 2"):
        loaders[0].locate(0, 2, 2)
    for step, batch in enumerate(loaders[1]):
        found = loaders[0].locate(1, step, 1)
        assert [sample["key"] for sample in found] == batch["__key__"]
    shard, key, offset = found[0].values()
    with Path(shard.removeprefix("file://")).open("rb") as file:
        file.seek(offset - 512)
        assert file.read(100).startswith(f"{key}.".encode())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"limit": 0}, "limit=0"),
        ({"rank": 2, "num_ranks": 2}, "rank=2 and num_ranks=2: rank must be less"),
        ({"rank": 0}, "give both"),
        ({"remainder": "some"}, "expected one of drop, pad, keep"),
    ],
)
def test_wrong_arguments_are_refused(urls: Mapping[int, str], options: dict[str, Any], message: str) -> None:
    """The error names the argument."""
    with pytest.raises(CallError, match=message):
        ShardLoader(urls[3], **{"batch_size": 1, **options})
    with pytest.raises(CallError, match="epoch=-1"):
        ShardLoader(urls[3], batch_size=1).set_epoch(-1)


RANK_PROGRAM = """
import os, sys, torch.distributed as dist
from dray.loaders import ShardLoader
from dray.pipelines import pickles_to_tars
from dray.shards.errors import NotFoundError

class Locked(os.PathLike):
    def __fspath__(self):
        if rank == 0:
            raise PermissionError("the key is gone")
        return f"{folder}/out"

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
if rank == 1:  # it comes late: rank 0 has sent its version before
    real = dist.broadcast_object_list
    def late(*args, **kwargs):
        real(*args, **kwargs)
        parts, out = ["x.pyd", "cls", "txt"], f"{folder}/out"
        pickles_to_tars(f"{folder}/inputs", ["s0000"], parts, out, "wdshards", progress=False)
    dist.broadcast_object_list = late
loader = ShardLoader(f"{folder}/out", batch_size=2)
print(loader.rank, loader.num_ranks, loader.snapshot.version, *[n for batch in loader for n in batch["cls"].tolist()])
try:
    ShardLoader(f"{folder}/nowhere", batch_size=2)
except NotFoundError as exc:
    print("nowhere" in str(exc))
try:
    ShardLoader(Locked(), batch_size=2)
except Exception as exc:
    print(f"{type(exc).__name__}: {exc}")
dist.destroy_process_group()
"""


def test_all_ranks_read_the_version_of_rank_0(tmp_path: Path) -> None:
    """Although a build commits in between. If rank 0 fails, every rank raises its error instead of hanging."""
    pack(tmp_path, 12, 3)
    (tmp_path / "program.py").write_text(RANK_PROGRAM)
    command = [sys.executable, f"{tmp_path}/program.py"]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], stdout=subprocess.PIPE, text=True) for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=120)[0].splitlines() for rank in ranks]
    locked = "PermissionError: the key is gone"
    assert outputs == [
        ["0 2 1 0 1 4 5 8 9", "True", locked],
        ["1 2 1 2 3 6 7 10 11", "True", f"DrayError: rank 0: {locked}"],
    ]
    assert Snapshot.open(tmp_path / "out").version == 2


def test_ranks_of_a_named_group_agree_where_a_version_is_named(tmp_path: Path) -> None:
    """Without a version each rank opens the latest one, and a state of one version is refused by the other."""
    url = pack(tmp_path, 12, 3)
    early = ShardLoader(url, batch_size=2, rank=0, num_ranks=2)
    pickles_to_tars(tmp_path / "inputs", ["s0000"], ["x.pyd", "cls", "txt"], url, "wdshards", progress=False)
    late = ShardLoader(url, batch_size=2, rank=1, num_ranks=2)
    assert (early.snapshot.version, late.snapshot.version) == (1, 2)
    with pytest.raises(CallError, match=r"open .*\?version=1"):
        late.load_state_dict(early.state_dict())
    named = ShardLoader(url, batch_size=2, rank=1, num_ranks=2, version=1)
    named.load_state_dict(early.state_dict())
    assert steps_of([early, named]) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_own_decoders_come_before_the_table(urls: Mapping[int, str], num_workers: int) -> None:
    """Also for parts that could be stacked without decoding. Lambdas reach the workers; a failure names the sample."""
    options: Any = {"batch_size": 3, "num_workers": num_workers}
    loader = ShardLoader(urls[3], decoders={"x.pyd": len, "txt": lambda data: data.decode().upper()}, **options)
    (batch,) = loader
    assert batch["txt"] == ["NOTE 0", "NOTE 1", "NOTE 2"]
    assert all(size > 100 for size in batch["x.pyd"].tolist())
    with pytest.raises(DamagedError, match=r"key 's0000', suffix 'cls': its decoder, decoders\['cls'\], failed"):
        list(ShardLoader(urls[3], decoders={"cls": lambda _: 1 // 0}, **options))


def test_maps_leave_file_descriptors_to_others(tmp_path: Path) -> None:
    """With more shards than a quarter of the descriptors, some maps are closed."""
    url = pack(tmp_path, 60, 60)
    program = (
        "import resource, sys; from dray.loaders import ShardLoader\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))\n"
        "print(sum(len(b['cls']) for b in ShardLoader(sys.argv[1], batch_size=7, shuffle=True, remainder='keep')))"
    )
    done = subprocess.run([sys.executable, "-c", program, url], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "60\n"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_of_a_transform_names_its_sample(urls: Mapping[int, str], num_workers: int) -> None:
    """It is raised after the batches before it."""

    def fail(row: dict[str, Any]) -> dict[str, Any]:
        return {"cls": 1 // (row["cls"] - 45)}

    taken = []
    with pytest.raises(ZeroDivisionError) as caught:
        taken.extend(ShardLoader(urls[MANY], batch_size=5, num_workers=num_workers, transform=fail))
    assert len(taken) == 9
    assert "key 's0045'" in f"{caught.value} {getattr(caught.value, '__notes__', '')}"
