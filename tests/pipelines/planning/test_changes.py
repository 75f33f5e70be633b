"""What a build of scanned samples may remove or change unasked, and what a split may leave behind."""

import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dray.loaders import ShardLoader
from dray.pipelines import BuildReport, pickles_to_tars
from dray.pipelines.building.build import build, survey
from dray.pipelines.building.job import PackJob
from dray.pipelines.building.survey import BuildSpec
from dray.pipelines.inputs.scan import scan
from dray.pipelines.inputs.tolerance import Tolerance
from dray.pipelines.planning.changes import Changes, Guard
from dray.pipelines.planning.recipe import Recipe
from dray.shards import CallError, Snapshot, Store
from dray.shards.diff import diff
from dray.shards.layout import Layout, Location
from tests.conftest import Dray, Outcome, Place
from tests.pipelines.building.test_compact_interrupted import Watched


def fill(folder: Path, *numbers: int, content: str = "") -> None:
    """Files of the samples with these numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / f"s{number:03d}.pyd").write_text(content or f"sample {number}")


def remove(folder: Path, *numbers: int) -> None:
    for number in numbers:
        (folder / f"s{number:03d}.pyd").unlink()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """30 samples."""
    fill(tmp_path / "in", *range(30))
    return tmp_path / "in"


Build = Callable[..., Outcome]


@pytest.fixture
def cli(dray: Dray, source: Path, tmp_path: Path) -> Build:
    """Runs `dray build` from the source to `out`; `plan=True` runs `dray plan`."""

    def run(*more: object, plan: bool = False, folder: Path | None = None, suffix: str = "pyd") -> Outcome:
        command = "plan" if plan else "build"
        return dray(command, folder or source, tmp_path / "out", "--suffix", suffix, "--shards", 3, *more)

    return run


@pytest.mark.parametrize(
    ("allowed", "num_last", "most"),
    [(None, 0, 0), (None, 1, 0), (None, 2, 1), (None, 19, 9), (None, 20, 2), (None, 30, 3), (None, 3016, 301),
     ("100%", 30, 30), ("12.5%", 16, 2), ("0", 30, 0), ("0%", 30, 0), ("7", 30, 7), ("40", 30, 30)],
)  # fmt: skip
def test_a_guard_lets_so_many_samples_go(allowed: str | None, num_last: int, most: int) -> None:
    """A tenth of twenty or more, half of fewer, or what was allowed; one more is refused with the figures."""
    guard = Guard(allow_removal=allowed)
    assert not guard.refuses_removal(Changes(num_last=num_last, num_removed=most))
    if most < num_last:
        refusal = guard.refuses_removal(Changes(num_last=num_last, num_removed=most + 1, num_added=5))
        assert f"would remove {most + 1:,} of the {num_last:,} samples" in refusal
        assert f"{most:,} may go unasked), add 5" in refusal


@pytest.mark.parametrize("text", ["", "all", "101%", "-1", "1.5", "5 %", "nan%"])
def test_what_may_be_removed_is_per_cent_or_a_number(text: str) -> None:
    """Anything else is refused."""
    with pytest.raises(CallError, match="allow_removal="):
        Guard(allow_removal=text)


def test_a_scan_of_the_wrong_folder_is_refused(cli: Build, tmp_path: Path) -> None:
    """With the figures and both options; each alone does not do."""
    assert cli().code == 0
    fill(tmp_path / "other", *range(28, 36))
    refused = cli(folder=tmp_path / "other")
    assert (refused.code, refused.out) == (2, "")
    assert "would remove 28 of the 30 samples of the last version (93.3%; 3 may go unasked), add 6" in refused.err
    assert f"the input folder was file://{tmp_path}/in, is file://{tmp_path}/other" in refused.err
    assert cli("--allow-removal", "100%", folder=tmp_path / "other").code == 2
    assert cli("--allow-changed-source", folder=tmp_path / "other").code == 2
    assert Snapshot.open(tmp_path / "out").version == 1
    done = cli("--allow-removal", "28", "--allow-changed-source", folder=tmp_path / "other")
    assert "8 samples" in done.out
    assert "6 added, 0 changed, 28 removed" in done.out


def test_a_tenth_may_go_and_no_sample_more(cli: Build, source: Path, tmp_path: Path) -> None:
    """Also if the recipe changed, after a compaction, and if the previous version was of listed names."""
    cli()
    remove(source, 1, 2, 3)
    assert "0 added, 0 changed, 3 removed" in cli("--shuffle-seed", 5).out
    remove(source, 4, 5, 6)
    assert "would remove 3 of the 27 samples" in cli("--shuffle-seed", 6).err
    fill(source, 4, 5, 6)
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"s{number:03d}" for number in range(7, 28)))
    listed = cli("--names", names)
    assert "21 samples" in listed.out
    assert "0 added, 0 changed, 6 removed" in listed.out
    remove(source, *range(7, 10))
    assert "would remove 3 of the 21 samples" in cli().err


def test_changed_suffixes_need_their_option(cli: Build, source: Path, tmp_path: Path) -> None:
    """Another suffix, one more, or one fewer; their order alone loses nothing."""
    for path in list(source.iterdir()):
        path.with_suffix(".txt").write_text("x")
    cli("--suffix", "txt")
    for words in (["--suffix", "txt"], []):
        assert cli(*words, suffix="pyd").code == (0 if words else 2)
    assert "the suffixes were pyd, txt, are pyd: if that is what you want, give --allow-changed-source" in cli().err
    assert cli("--suffix", "pyd", suffix="txt").code == 0
    assert cli("--allow-changed-source").code == 0


def test_a_plan_says_that_the_build_would_be_refused(cli: Build, source: Path, tmp_path: Path) -> None:
    """In text and JSON, with the same figures; it ends well, and takes the same options."""
    cli()
    remove(source, *range(10))
    fill(source, 40)
    fill(source, 20, content="changed")
    shown = cli(plan=True)
    assert shown.code == 0
    assert "1 added, 1 changed, 10 removed" in shown.out
    assert "dray build would be refused: " in shown.out
    [plan] = json.loads(cli("--json", plan=True).out)
    assert plan["samples"] == {"num_last": 30, "num_added": 1, "num_changed": 1, "num_removed": 10}
    assert "would remove 10 of the 30" in plan["refused"][0]
    assert "refused" not in cli("--allow-removal", "10", plan=True).out
    assert Snapshot.open(tmp_path / "out").version == 1


@pytest.mark.parametrize("when", ["found", "packed"])
def test_quarantined_samples_count_as_removed(cli: Build, source: Path, tmp_path: Path, when: str) -> None:
    """Those that cannot be found before anything is written, and those that packing finds: no version is made."""
    encode = ["--encode", "pyd=json", "--on-error", "quarantine", "--max-bad", "100%"]
    for number in range(30):
        (source / f"s{number:03d}.pyd").write_bytes(b"\x80\x04K\x01.")
    assert cli(*encode).code == 0
    for number in range(4):
        path = source / f"s{number:03d}.pyd"
        path.unlink()
        if when == "found":
            path.symlink_to("gone")
        else:
            path.write_bytes(b"no pickle")
    refused = cli(*encode)
    assert refused.code == 2
    assert "would remove 4 of the 30 samples" in refused.err
    assert ("nothing was written" if when == "found" else "no version was made") in refused.err
    assert Snapshot.open(tmp_path / "out").version == 1
    assert "0 added, 0 changed, 4 removed" in cli(*encode, "--allow-removal", "15%").out


def spec_for(source: Path, output: Store) -> BuildSpec:
    """A guarded build of all samples."""
    inputs = Store(source)
    found = scan(inputs, ["pyd"])
    return BuildSpec(
        job=PackJob(inputs=inputs, location=Location(output, Layout("wdshards")), transform=None),
        recipe=Recipe(suffixes=("pyd",), num_shards=3),
        names=found.names,
        scan=found,
        guard=Guard(),
        tolerance=Tolerance(),
        address="none",
        progress=False,
    )


@pytest.mark.parametrize("is_surveyed", [True, False])
def test_a_build_that_starts_again_is_judged_again(source: Path, tmp_path: Path, is_surveyed: bool) -> None:
    """Another builder commits more samples while it packs: what it would remove of those counts."""
    url = str(tmp_path / "out")

    def add_samples() -> None:
        names = [f"s{number:03d}" for number in range(30, 60)]
        fill(source, *range(60))
        pickles_to_tars(source, [*names, "s005"], "pyd", url, "wdshards", min_num_shards=3, progress=False)

    build(spec_for(source, Store(url)), retention=None)
    remove(source, 1, 2)
    watched = Watched(Place(url), lambda name: "commits" in name, add_samples)
    spec = spec_for(source, watched)
    surveyed = survey(spec) if is_surveyed else None
    with pytest.raises(CallError, match="would remove 30 of the 31 samples"):
        build(spec, retention=None, surveyed=surveyed)
    assert Snapshot.open(url).version == 2


def report_on(folder: Path, url: str, samples: dict[int, str], seed: int) -> BuildReport:
    """A build of just these samples: number -> content, which decides the time of the file too."""
    for path in folder.iterdir():
        path.unlink()
    for number, content in samples.items():
        fill(folder, number, content=content)
        os.utime(folder / f"s{number:03d}.pyd", ns=(0, ord(content)))
    names = sorted(path.stem for path in folder.iterdir())
    return pickles_to_tars(folder, names, "pyd", url, "wdshards", shuffle_seed=seed, progress=False)


SAMPLES = st.dictionaries(st.integers(0, 9), st.sampled_from(["a", "b"]), min_size=1)


@settings(max_examples=25, deadline=None)
@given(then=SAMPLES, now=SAMPLES, seeds=st.tuples(st.integers(0, 1), st.integers(0, 1)))
def test_a_report_counts_what_differs(
    then: dict[int, str], now: dict[int, str], seeds: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """For any shards that are packed for it, a plan and a diff of the versions count the same."""
    folder, url = tmp_path_factory.mktemp("in"), f"memory://{uuid.uuid4().hex}"
    _, report = [report_on(folder, url, samples, seed) for samples, seed in zip((then, now), seeds, strict=True)]
    added, removed = now.keys() - then.keys(), then.keys() - now.keys()
    changed = [key for key in then.keys() & now.keys() if then[key] != now[key]]
    expected = (len(added), len(changed), len(removed)) if report.is_new else (0, 0, 0)
    assert (report.num_added, report.num_changed, report.num_removed) == expected
    if report.is_new and report.version == 2:
        found = diff(Snapshot.open(url, version=1), Snapshot.open(url))
        assert (len(found.added), len(found.changed), len(found.removed)) == expected


def test_new_sub_folders_of_an_old_dataset_are_announced(cli: Build, source: Path, tmp_path: Path) -> None:
    """A dataset that no scan of sub-folders made, here of listed names; nothing is packed again for it."""
    (tmp_path / "names.txt").write_text("\n".join(f"s{number:03d}" for number in range(30)))
    cli("--names", tmp_path / "names.txt")
    assert "nothing to do" in cli().out
    fill(source / "more", 1, 2)
    done = cli()
    assert "2 new samples lie in sub-folders of" in done.err
    assert "1 packed, 3 reused" in done.out
    fill(source / "more", 3)
    assert "sub-folders" not in cli().err
    assert Snapshot.open(tmp_path / "out").manifest.recipe["recursive"] is True


def test_what_was_not_scanned_is_reported(cli: Build, source: Path) -> None:
    """On standard error, in the report, and in the plan."""
    fill(source / ".hidden", 1)
    done = cli()
    assert "left out of the scan" in done.err
    assert done.out.rstrip().endswith("; not scanned: 1 hidden folder")
    assert cli("--quiet").err == ""
    assert json.loads(cli("--json", plan=True).out)[0]["unscanned"]["hidden_folders"] == 1


SPLIT = "train=0.5,val=0.3,test=0.2"


def split_keys(out: Path) -> dict[str, set[str]]:
    return {path.name: set(Snapshot.open(path).sources()["key"].to_pylist()) for path in sorted(out.iterdir())}


def test_all_groups_are_judged_before_one_is_written(cli: Build, source: Path, tmp_path: Path) -> None:
    """A group that comes first has changes to write, a later one is refused: no group has a new version."""
    cli("--split", SPLIT)
    keys = split_keys(tmp_path / "out")
    fill(source, *(int(key[1:]) for key in keys["train"]), content="changed")
    remove(source, *sorted(int(key[1:]) for key in keys["test"])[1:])
    before = sorted((tmp_path / "out").rglob("*"))
    assert "out/test: this build is refused, and nothing was written" in cli("--split", SPLIT).err
    assert sorted((tmp_path / "out").rglob("*")) == before


def test_a_group_that_a_split_no_longer_names_is_a_leak(cli: Build, dray: Dray, tmp_path: Path) -> None:
    """Its samples are in another group now: refused, kept or dropped; a dropped one can be rolled back and built."""
    out = tmp_path / "out"
    cli("--split", SPLIT)
    keys = split_keys(out)
    words = ["--split", "train=0.5,val=0.5"]
    refused = cli(*words)
    assert refused.code == 2
    size = len(keys["test"])
    assert f"out/test is not a group of this --split, and {size} of its {size} samples are in the groups" in refused.err
    assert split_keys(out) == keys
    assert "dray build would be refused: " in cli(*words, plan=True).out
    dropped = cli(*words, "--missing-groups", "drop")
    assert f"test wdshards version 2: 0 samples in 0 shards, 0.0 MB; 0 added, 0 changed, {size} removed" in dropped.out
    assert split_keys(out) == {"train": keys["train"], "val": keys["val"] | keys["test"], "test": set()}
    assert Snapshot.open(out / "test", version=1).num_samples == size
    assert cli(*words).code == 0
    with pytest.raises(CallError, match=r"version 2 of 'wdshards' under .*/out/test has no samples"):
        ShardLoader(str(out / "test"), batch_size=1)
    assert dray("verify", out / "test").code == 0
    assert dray("ls", out).code == 0
    dray("rollback", out / "test", 1)
    assert cli(*words).code == 2
    assert cli(*words, "--missing-groups", "keep").code == 0
    assert split_keys(out)["test"] == keys["test"]
    cli(*words, "--missing-groups", "drop")
    assert cli("--split", SPLIT, "--allow-removal", "100%").code == 0
    assert split_keys(out) == keys


def test_a_dataset_of_other_samples_beside_a_split_is_no_leak(cli: Build, dray: Dray, tmp_path: Path) -> None:
    """From another folder, though the names are the same."""
    fill(tmp_path / "in2", *range(5))
    dray("build", tmp_path / "in2", tmp_path / "out" / "extra", "--suffix", "pyd")
    assert cli("--split", SPLIT).code == 0


def test_a_split_and_a_dataset_do_not_share_a_folder(cli: Build, dray: Dray, source: Path, tmp_path: Path) -> None:
    """One of all samples above the groups, or groups in one: both are refused, unless the prefix is another."""
    cli("--split", SPLIT)
    assert "out is the parent folder of the datasets" in cli().err
    assert cli("--prefix", "all").code == 0
    words = ["build", source, tmp_path / "one", "--suffix", "pyd"]
    dray(*words)
    assert "one is itself a dataset with the prefix 'wdshards'" in dray(*words, "--split", SPLIT).err
    assert dray(*words).code == 0


def test_missing_groups_need_a_split(cli: Build) -> None:
    """An option that does nothing would look like one that did."""
    assert "--missing-groups is about the groups of a split" in cli("--missing-groups", "drop").err


def test_samples_that_move_between_groups_are_counted(cli: Build, tmp_path: Path) -> None:
    """Another seed: by pair of groups, in build and plan."""
    cli("--split", SPLIT)
    before = split_keys(tmp_path / "out")
    shown = cli("--split", SPLIT, "--seed", 1, plan=True)
    assert cli("--split", SPLIT, "--seed", 1).code == 2
    done = cli("--split", SPLIT, "--seed", 1, "--allow-removal", "100%")
    after = split_keys(tmp_path / "out")
    assert before["train"] & after["val"]
    assert f"{len(before['train'] & after['val'])} from train to val" in done.err
    assert "from train to val" in shown.out + shown.err
