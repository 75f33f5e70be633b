"""`verify` finds all damage, and the advice of `dray verify` repairs it."""

# Long: the damages of the function's tests are those that the command's advice repairs.

import json
import re
import shlex
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dray.cluster.cli.verify import rebuild_command
from dray.pipelines import pickles_to_tars, split_by_hash
from dray.shards import CallError, DeniedError, NotFoundError, Snapshot, Store, StoreError
from dray.shards.index import digest_of
from dray.shards.layout import Layout, Location
from dray.shards.storage.objects import ObjectInfo
from dray.shards.tar import END, header
from dray.shards.verify import RANGES_FROM_BYTES, Finding, Level, open_whole, verify
from tests.conftest import Dray, Inputs, MakeInputs, Place
from tests.support import datasets
from tests.support.datasets import latest, overwrite

LAYOUT = Layout("wdshards")
SHARD, INDEX = LAYOUT.shard(0), LAYOUT.index(0)
LONG_NAME = "x" * 120  # needs a PAX header


@pytest.fixture
def inputs(make_inputs: MakeInputs) -> Inputs:
    """Six samples of two parts; one has a long name."""
    inputs = make_inputs(6, ("image.pyd", "label.cls"))
    for suffix in inputs.suffixes:
        inputs.path(inputs.names[1], suffix).rename(inputs.path(LONG_NAME, suffix))
    inputs.names[1] = LONG_NAME
    return inputs


def build(inputs: Inputs, place: Place, num_shards: int = 2) -> Snapshot:
    """A dataset of the inputs."""
    options = {"min_num_shards": num_shards, "address": "none", "input_storage_options": {}}
    datasets.build(inputs, place, prefix="wdshards", **options)
    return latest(place, "wdshards")


def found(snapshot: Snapshot, level: str) -> list[Finding]:
    return list(verify(snapshot, level))


@pytest.fixture
def in_memory(inputs: Inputs, request: pytest.FixtureRequest) -> Snapshot:
    """A dataset of two shards in memory."""
    return build(inputs, Place(f"memory://{digest_of(request.node.nodeid.encode())}"))


@pytest.mark.parametrize("level", Level)
def test_a_whole_dataset_has_no_finding(inputs: Inputs, place: Place, level: str) -> None:
    """This holds at any level on any store, and every shard is reported as done."""
    snapshot, done = build(inputs, place), list[int]()
    assert list(verify(snapshot, level, on_shard=done.append)) == []
    assert sum(done) == snapshot.num_bytes


def damage_of(kind: str, snapshot: Snapshot) -> None:
    """Damage a dataset."""
    store = snapshot.store
    tar, index, manifest = store.get(SHARD), store.get(INDEX), LAYOUT.manifest(1, snapshot.commit.manifest)
    sources = LAYOUT.table(1, snapshot.manifest.sources[0].digest)
    commit = json.loads(store.get(LAYOUT.commit(1)))
    if kind.startswith("missing "):
        store.delete([{"shard": SHARD, "index": INDEX, "manifest": manifest, "sources": sources}[kind.split()[1]]])
    elif kind == "swapped shards":
        other = store.get(LAYOUT.shard(1))
        overwrite(store, SHARD, other)
        overwrite(store, LAYOUT.shard(1), tar)
    else:
        bodies: dict[str, tuple[str, bytes]] = {
            "cut shard": (SHARD, tar[:-512]),
            "long shard": (SHARD, tar + bytes(512)),
            "empty shard": (SHARD, b""),
            "zeroed tail": (SHARD, tar[:-2048] + bytes(2048)),
            "header": (SHARD, b"y" + tar[1:]),
            "end": (SHARD, tar[:-1] + b"\1"),
            "data": (SHARD, tar.replace(b" image.pyd ", b" Image.pyd ", 1)),
            "stale index": (INDEX, store.get(LAYOUT.index(1))),
            "cut index": (INDEX, index[:-8]),
            "manifest": (manifest, replace(snapshot.manifest, shards=snapshot.shards[:1]).to_bytes()),
            "sources": (sources, store.get(sources)[:-1]),
            "commit": (LAYOUT.commit(1), b"{"),
            "other commit": (LAYOUT.commit(1), json.dumps(commit | {"write_id": "other"}).encode()),
        }
        name, body = bodies[kind]
        assert body != store.get(name)
        overwrite(store, name, body)


@pytest.mark.parametrize(
    ("kind", "level", "expected"),
    [
        ("missing shard", "quick", f"/{SHARD}: the shard is missing"),
        ("missing index", "quick", f"/{INDEX}: the index is missing"),
        ("missing manifest", "quick", r"\.json: the manifest of version 1 is missing"),
        ("missing sources", "quick", r"\.parquet: the table of version 1 is missing"),
        ("cut shard", "quick", rf"/{SHARD}: \d+ bytes expected, found \d+: the shard was cut short"),
        ("long shard", "quick", rf"/{SHARD}: \d+ bytes expected, found \d+: the shard was written to"),
        ("empty shard", "quick", rf"/{SHARD}: \d+ bytes expected, found 0: the shard was cut short"),
        ("manifest", "quick", "the manifest is not the one that version 1 committed"),
        ("sources", "quick", r"\.parquet: not a readable table of version 1 \(not the one"),
        ("commit", "quick", "commits/0000000001.json: not a readable commit"),
        ("other commit", "quick", "commits/0000000001.json: the commit was replaced"),
        ("stale index", "index", f"/{INDEX}: not the index that version 1 names"),
        ("cut index", "index", f"/{INDEX}: not the index that version 1 names"),
        ("header", "index", f"/{SHARD} at offset 0, key 'sample-0000': not the header of a part of 15 bytes"),
        ("end", "index", rf"/{SHARD} at offset \d+: two zero blocks expected"),
        ("swapped shards", "index", f"/{SHARD}.*(bytes expected|not the header)"),
        ("zeroed tail", "full", f"/{SHARD} at offset .*, key 'sample-0002': (checksum|not the header)"),
        ("data", "full", rf"/{SHARD} at offset \d+, key 'x{{120}}': checksum [0-9a-f]{{16}} of \d+ bytes expected"),
    ],
)
def test_damage_is_found_at_its_level_and_above(
    inputs: Inputs, place: Place, kind: str, level: str, expected: str
) -> None:
    """Each finding names its object, on any store."""
    snapshot = build(inputs, place)
    damage_of(kind, snapshot)
    for deeper in list(Level)[list(Level).index(Level(level)) :]:
        findings = found(snapshot, deeper)
        assert re.search(expected, "\n".join(map(str, findings)))
        assert all(finding.url.startswith(f"{place.url}/") for finding in findings)


def test_a_cut_at_any_block_is_found(in_memory: Snapshot) -> None:
    """Every level finds every truncation; level full also finds truncated data filled with zeros."""
    tar = in_memory.store.get(SHARD)
    for size in range(0, len(tar), 512):
        overwrite(in_memory.store, SHARD, tar[:size])
        assert all(found(in_memory, level) for level in Level), size
    last_data = len(tar.rstrip(b"\0"))
    for size in range(0, last_data, 512):
        overwrite(in_memory.store, SHARD, tar[:size].ljust(len(tar), b"\0"))
        assert found(in_memory, "full"), size


def test_a_flipped_bit_anywhere_is_found_at_full(in_memory: Snapshot) -> None:
    """A flipped bit in headers, data, padding or end gives a finding at or before that byte."""
    tar = in_memory.store.get(SHARD)
    for place in range(0, len(tar), 7):
        damaged = bytearray(tar)
        damaged[place] ^= 1 << place % 8
        overwrite(in_memory.store, SHARD, bytes(damaged))
        findings = found(in_memory, "full")
        assert len(findings) == 1, place
        assert findings[0].offset is not None
        assert findings[0].offset <= place


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_of_any_object_is_found_at_full(in_memory: Snapshot, data: st.DataObject) -> None:
    """No byte of shards, indexes, manifest or sources that a reader needs can change undetected."""
    store = in_memory.store
    sources = LAYOUT.table(1, in_memory.manifest.sources[0].digest)
    names = [SHARD, LAYOUT.shard(1), INDEX, LAYOUT.index(1), LAYOUT.manifest(1, in_memory.commit.manifest), sources]
    name = data.draw(st.sampled_from(names))
    body = store.get(name)
    bit = data.draw(st.integers(0, 8 * len(body) - 1))
    damaged = bytearray(body)
    damaged[bit // 8] ^= 1 << bit % 8
    overwrite(store, name, bytes(damaged))
    try:
        assert found(in_memory, "full")
    finally:
        overwrite(store, name, body)
    assert not found(in_memory, "full")


def test_a_flipped_bit_of_a_header_is_found_at_index(in_memory: Snapshot) -> None:
    """This covers the headers of all parts, the PAX header and the end."""
    tar, index = in_memory.store.get(SHARD), in_memory.index(in_memory.shards[0])
    places = {len(tar) - len(END) + place for place in range(0, len(END), 100)}
    for row, key in enumerate(index.keys):
        for column, suffix in enumerate(index.suffixes):
            size = len(header(f"{key}.{suffix}".encode(), int(index.sizes[row, column])))
            offset = int(index.offsets[row, column])
            places |= set(range(offset - size, offset, 7))
    for place in places:
        damaged = bytearray(tar)
        damaged[place] ^= 4
        overwrite(in_memory.store, SHARD, bytes(damaged))
        assert found(in_memory, "index"), place


def test_the_headers_of_large_parts_are_read_by_ranges(make_inputs: MakeInputs, place: Place) -> None:
    """Damaged headers and ends are found, and only level full reads data."""
    inputs = make_inputs(3)
    for name in inputs.names:
        inputs.path(name, "tensor.pyd").write_bytes(b"d" * RANGES_FROM_BYTES)
    snapshot = build(inputs, place, num_shards=1)
    tar = snapshot.store.get(SHARD)
    assert [len(found(snapshot, level)) for level in Level] == [0, 0, 0]
    for damaged, expected in (
        (tar.replace(b"sample-0001", b"sample-0007", 1), [0, 1, 1]),
        (tar[:-700] + b"\1" + tar[-699:], [0, 1, 1]),
        (tar[:1000] + b"\1" + tar[1001:], [0, 0, 1]),
    ):
        overwrite(snapshot.store, SHARD, damaged)
        assert [len(found(snapshot, level)) for level in Level] == expected


def test_a_transforms_own_parts_are_verified(inputs: Inputs, tmp_path: Path) -> None:
    """Samples may have different parts in any order."""

    def parts(key: str, sample: dict[str, bytes]) -> dict[str, bytes]:
        return dict(sorted(sample.items(), reverse=key.endswith("2"))) | ({"e": b""} if key.endswith("3") else {})

    pickles_to_tars(inputs.folder, inputs.names, inputs.suffixes, tmp_path / "out", "a", parts, progress=False)
    assert found(Snapshot.open(tmp_path / "out", "a"), "full") == []


class Silent(Store):
    """Does not answer when a shard is listed or read."""

    def list_folder(self, folder: str = "") -> list[ObjectInfo]:
        raise DeniedError("no answer")


def test_a_store_that_does_not_answer_is_an_error(in_memory: Snapshot) -> None:
    """A store that does not answer is not a finding."""
    with pytest.raises(StoreError, match="no answer"):
        found(replace(in_memory, location=Location(Silent(in_memory.store.url), LAYOUT)), "quick")


def test_an_unknown_level_is_refused_at_once(in_memory: Snapshot) -> None:
    """The error is raised before the first finding is requested."""
    with pytest.raises(CallError, match="level 'deep': expected one of quick, index, full"):
        verify(in_memory, "deep")


def test_a_version_that_never_was_is_not_found(in_memory: Snapshot) -> None:
    """A missing version is not damage."""
    with pytest.raises(NotFoundError):
        open_whole(Location(in_memory.store, LAYOUT), 7)


def test_the_command_says_that_all_is_whole(dray: Dray, inputs: Inputs, tmp_path: Path) -> None:
    """The exit code is 0, and one line is printed."""
    build(inputs, Place(str(tmp_path / "out")))
    for level in Level:
        code, out, _ = dray("verify", tmp_path / "out", "--level", level)
        assert code == 0
        assert out.endswith(f"version 1: 6 samples in 2 shards, no damage found at level {level}\n")


@pytest.mark.parametrize("kind", ["missing shard", "missing index", "cut shard", "stale index", "data", "header"])
def test_what_the_command_prints_repairs_the_dataset(dray: Dray, inputs: Inputs, tmp_path: Path, kind: str) -> None:
    """The exit code is 1; deleting and running what it prints repairs the dataset and keeps the rest."""
    out, names_file = tmp_path / "out", tmp_path / "names.txt"
    names = [inputs.names[row] for row in (4, 1, 0, 2, 3)]  # a subset of the source in another order
    snapshot = build(replace(inputs, names=names), Place(str(out)))
    damage_of(kind, snapshot)
    code, text, _ = dray("verify", out, "--level", "full", "--names", names_file)
    assert code == 1
    assert "1 finding in 1 shard at" in text
    assert names_file.read_text().splitlines() == names
    for name in re.findall(r"^  (/.*)$", text, re.MULTILINE):
        Path(name).unlink()
    (command,) = re.findall(r"^  (dray build .*)$", text, re.MULTILINE)
    code, text, _ = dray(*shlex.split(command)[1:])
    assert (code, "1 packed, 1 reused" in text) == (0, True), text
    repaired = Snapshot.open(out)
    assert repaired.version == 2
    assert found(repaired, "full") == []
    assert [key for shard in repaired.shards for key in repaired.index(shard).keys] == [
        name.replace(".", "-") for name in names
    ]


def test_findings_come_as_json(dray: Dray, inputs: Inputs, tmp_path: Path) -> None:
    """The JSON lists what to delete and what to run."""
    snapshot = build(inputs, Place(str(tmp_path / "out")))
    damage_of("data", snapshot)
    code, out, _ = dray("verify", tmp_path / "out", "--level", "full", "--json")
    (facts,) = json.loads(out)
    assert (code, facts["level"], facts["version"]) == (1, "full", 1)
    assert [(found["key"], found["shard"]) for found in facts["findings"]] == [(LONG_NAME, 0)]
    assert facts["delete"] == [str(tmp_path / "out" / name) for name in (SHARD, INDEX)]
    assert shlex.split(facts["rebuild"])[:2] == ["dray", "build"]


@pytest.mark.parametrize("kind", ["manifest", "missing manifest", "commit", "sources"])
def test_a_damaged_record_asks_for_another_prefix(dray: Dray, inputs: Inputs, tmp_path: Path, kind: str) -> None:
    """A build cannot start from it, and nothing should be deleted."""
    damage_of(kind, build(inputs, Place(str(tmp_path / "out"))))
    code, out, _ = dray("verify", tmp_path / "out", "--names", tmp_path / "names.txt")
    assert code == 1
    assert "build again under another prefix" in out.lower()
    assert "delete" not in out
    assert not (tmp_path / "names.txt").exists()


def test_the_command_names_seed_and_what_was_left_out(dray: Dray, inputs: Inputs, tmp_path: Path) -> None:
    """Without them everything would be packed again, or the build would fail on bad inputs."""
    inputs.path(inputs.names[0], inputs.suffixes[0]).unlink()
    out, words = tmp_path / "out", [word for suffix in inputs.suffixes for word in ("--suffix", suffix)]
    words += ["--shards", 4, "--shuffle-seed", 3, "--on-error", "quarantine", "--max-bad", 1]
    (tmp_path / "names.txt").write_text("".join(f"{name}\n" for name in inputs.names))
    assert dray("build", inputs.folder, out, *words, "--names", tmp_path / "names.txt").code == 0
    (out / "wdshards-000001.tar").unlink()
    (command,) = re.findall(r"^  (dray build .*)$", dray("verify", out).out, re.MULTILINE)
    assert "--shuffle-seed 3 --on-error quarantine --max-bad 1" in command


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"endpoint": "http://127.0.0.1:8333", "region": "eu-west-1"},
            ["endpoint=http://127.0.0.1:8333", "region=eu-west-1"],
        ),
        ({"endpoint": "http://user:secret@127.0.0.1:8333"}, []),
        ({"secret_access_key": "secret"}, []),
    ],
)
def test_the_command_repeats_no_option_that_may_be_secret(
    inputs: Inputs, tmp_path: Path, options: dict[str, str], words: list[str]
) -> None:
    """Endpoint and region are needed, but an endpoint may contain a password."""
    snapshot = build(inputs, Place(str(tmp_path / "out")))
    command = shlex.split(str(rebuild_command(snapshot, [], None, options)))
    assert [word for before, word in pairwise(command) if before == "--storage-option"] == words
    assert not any("secret" in word for word in command)


def test_a_version_before_the_damaged_one_can_be_gone_back_to(dray: Dray, inputs: Inputs, tmp_path: Path) -> None:
    """After the rollback that the advice names, builds work again."""
    place = Place(str(tmp_path / "out"))
    build(inputs, place)
    inputs.path(inputs.names[0], inputs.suffixes[0]).write_bytes(b"changed")
    snapshot = build(inputs, place)
    snapshot.store.delete([snapshot.record_names()[1]])
    assert "an intact version with\ndray rollback" in dray("verify", tmp_path / "out").out
    assert dray("rollback", tmp_path / "out", 1).code == 0
    assert build(inputs, place).version == 4


def test_the_command_warns_where_a_dataset_is_a_part_of_its_source(dray: Dray, inputs: Inputs, tmp_path: Path) -> None:
    """A group of a split must not be rebuilt from all samples."""
    names = split_by_hash(inputs.names, {"train": 0.5, "val": 0.5})["train"]
    damage_of("cut shard", build(replace(inputs, names=names), Place(str(tmp_path / "out"))))
    assert "made from a part of them (--names, --split)" in dray("verify", tmp_path / "out").out


def test_a_dataset_of_a_function_is_made_again_by_its_program(dray: Dray, inputs: Inputs, tmp_path: Path) -> None:
    """The command line cannot pass a function."""
    pickles_to_tars(
        inputs.folder,
        inputs.names,
        inputs.suffixes,
        tmp_path / "out",
        "wdshards",
        lambda key, sample: sample,
        2,
        transform_version="7",
        progress=False,
    )
    damage_of("cut index", Snapshot.open(tmp_path / "out"))
    code, out, _ = dray("verify", tmp_path / "out")
    assert code == 1
    assert "transform_version='7'" in out
    assert "dray build" not in out


def test_an_older_version_says_that_a_build_makes_the_last(dray: Dray, inputs: Inputs, tmp_path: Path) -> None:
    """Its own shards cannot be rebuilt from changed sources."""
    snapshot = build(inputs, Place(str(tmp_path / "out")))
    inputs.path(inputs.names[0], "image.pyd").write_bytes(b"changed")
    build(inputs, Place(str(tmp_path / "out")))
    damage_of("cut shard", snapshot)
    assert dray("verify", tmp_path / "out").code == 0
    code, out, _ = dray("verify", tmp_path / "out", "--version", 1)
    assert (code, "This is not the last version" in out) == (1, True)


def test_no_such_version_is_one_line(dray: Dray, inputs: Inputs, tmp_path: Path) -> None:
    """The error names the last version, or says that there is none."""
    build(inputs, Place(str(tmp_path / "out")))
    assert "no version 3 of prefix 'wdshards' under" in dray("verify", tmp_path / "out", "--version", 3).err
    assert "no dataset with prefix 'a' in" in dray("verify", tmp_path / "out", "--prefix", "a").err


def test_findings_are_in_the_order_of_the_shards(make_inputs: MakeInputs, request: pytest.FixtureRequest) -> None:
    """Several are read at a time, more than there are threads in all; whoever stops early waits for few."""
    place = Place(f"memory://{digest_of(request.node.nodeid.encode())}")
    snapshot = build(make_inputs(60), place, num_shards=60)
    damaged = [59, 3, 40, 17, 18]
    for number in damaged:
        body = snapshot.store.get(LAYOUT.shard(number))
        overwrite(snapshot.store, LAYOUT.shard(number), body[:512] + b"?" + body[513:])
    done: list[int] = []
    assert [one.shard for one in verify(snapshot, "full", on_shard=done.append)] == sorted(damaged)
    assert done == [shard.num_bytes for shard in snapshot.shards]
    assert next(verify(snapshot, "full")).shard == 3
