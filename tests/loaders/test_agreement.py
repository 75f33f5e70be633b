"""What the ranks of torch.distributed open: the same, or an error on all of them."""

import os
from pathlib import Path

import torch.distributed as dist

from dray.loaders.agreement import open_snapshot
from dray.shards.errors import DrayError
from tests.support.foreign import numbered, write_tar
from tests.support.processes import call_at_once, meet

OWN_DISK = "/proc/self/cwd"  # the folder under this path differs between processes, as between nodes
CASES = ("equal", "other", "missing", "damaged")


def opened(folder: Path) -> tuple[int, list[str]]:
    """The rank, and the data that it opened on its own disk in each case, or its error; a process of two."""
    rank, found = meet(), []
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    os.chdir(folder / str(rank))
    for case in CASES:
        try:
            found.append(open_snapshot(f"{OWN_DISK}/{case}", "wdshards").commit.manifest)
        except (OSError, ValueError, RuntimeError, DrayError) as exc:
            found.append(str(exc))
    dist.destroy_process_group()
    return rank, found


def test_tars_are_the_same_on_all_ranks_or_an_error_on_all(tmp_path: Path) -> None:
    """Rank 0 chooses the tars. A rank that fails or finds other bytes leaves no other rank waiting."""
    for rank in range(2):
        for case in CASES:
            write_tar(tmp_path / f"{rank}/{case}/a.tar", numbered(0, 5))
    write_tar(tmp_path / "1/other/a.tar", numbered(1, 5))
    (tmp_path / "1/missing/a.tar").unlink()
    damaged = tmp_path / "1/damaged/a.tar"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    found = dict(call_at_once(2, opened, tmp_path))
    equal, other, *failed = zip(found[0], found[1], strict=True)
    assert equal[0] == equal[1]
    assert len(equal[0]) == 32
    assert "rank 1 found other bytes in the tars than rank 0" in other[0]
    assert "rank 0 found other bytes in the tars than rank 1" in other[1]
    for case, (first, second) in zip(CASES[2:], failed, strict=True):
        assert f"{case}/a.tar" in first
        assert first == second
