"""The page "The format of a dataset": its example is what dray writes, its code reads that, its tables name each field.

`python -m tests.repo.test_docs_format` writes the example into the page again.
"""

import io
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dray.loaders import ShardLoader
from dray.loaders.order.cursor import Cursor
from dray.pipelines import pickles_to_tars
from dray.shards import Snapshot, Store
from dray.shards.log import Commit, Intent
from dray.shards.manifest import Accounting, Manifest, Shard, TableChunk
from dray.shards.parsing.arrays import ArrayLayout
from dray.shards.parts import PartForms
from dray.shards.tar import scan
from dray.shards.verify import verify
from dray.shards.versions import Holds
from tests.support.datasets import npy, stored

PATH = Path(__file__).parents[2] / "docs" / "format.md"
PAGE = PATH.read_text()
BLOCK = re.compile(r"(<!-- example: (\w+) -->\n```\w+\n)(.*?)(```)", re.DOTALL)
FOLDER = "__dray__/pets"


@cache
def dataset() -> Mapping[str, bytes]:
    """The objects of the example by name, as a build in memory writes them."""
    inputs = Store("memory://example/inputs")  # gives each object the same ETag in every process
    for number, name in enumerate(("cat", "dog")):
        inputs.put_new(f"{name}.x.npy", npy(np.array([number, number + 0.5], "<f4")))
        inputs.put_new(f"{name}.txt", name.encode())
    url = "memory://example/pets"
    pickles_to_tars(inputs.url, ["cat", "dog"], ["x.npy", "txt"], url, "pets", min_num_shards=1, progress=False)
    return stored(Store(url))


def one(end: str) -> bytes:
    """The only object whose name ends so."""
    (body,) = (body for name, body in dataset().items() if name.endswith(end))
    return body


def record(folder: str) -> str:
    """A record as it is stored, with the time and the id that the page shows."""
    body = one(next(name for name in dataset() if name.startswith(f"{FOLDER}/{folder}/") and name.endswith(".json")))
    values = re.sub(r'("created": )"[^"]*"', r'\1"2026-11-28T09:30:00Z"', body.decode())
    return re.sub(r'("write_id": )"[^"]*"', rf'\1"{"0123456789abcdef" * 2}"', values)


def hex_dump(data: bytes, start: int = 0) -> str:
    """Offset, 16 bytes in hexadecimal, and as ASCII; without the lines of zeros."""
    lines = []
    for at in range(0, len(data), 16):
        piece = data[at : at + 16]
        if any(piece):
            text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in piece)
            lines.append(f"{start + at:08x}  {piece.hex(' '):47}  {text}".rstrip())
    return "\n".join(lines)


def columns() -> str:
    """The buffers of the index: column, place in the file, bytes."""
    file = one(".arrow")
    batch = pa.ipc.open_file(file).get_batch(0)
    body = pa.ipc.read_message(batch.serialize()).body.to_pybytes()
    begin, lines = file.index(body), []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        for buffer in column.buffers():
            if buffer is not None:
                at = file.index(buffer.to_pybytes(), begin)
                lines.append(f"{name:14} {at:5}  {buffer.to_pybytes().hex(' ')}")
    return "\n".join(lines)


def cursor() -> dict[str, Any]:
    """The state of a loader that has taken one sample."""
    loader = ShardLoader("memory://example/pets", prefix="pets", batch_size=1, shuffle=True, seed=7)
    next(iter(loader))
    state = loader.state_dict()
    loader.close()
    return state


def example() -> dict[str, str]:
    """Each block of the example."""
    objects, tar = dataset(), one(".tar")
    members = scan(io.BytesIO(tar), "pets-000000.tar")
    metadata = pa.ipc.open_file(one(".arrow")).schema.metadata
    return {
        "objects": "\n".join(f"{len(body):5}  {name}" for name, body in sorted(objects.items())),
        "members": "\n".join(f"{m.name:9} {m.offset:5} {m.size:4}  {m.xxh3_64:016x}" for m in members),
        "tar": hex_dump(tar[:1024]),
        "index": "\n".join(f"{key.decode()}: {value.decode()}" for key, value in metadata.items()),
        "columns": columns(),
        "intent": record("intents").rstrip(),
        "manifest": record("manifests").rstrip(),
        "commit": record("commits").rstrip(),
        "sources": "\n".join(map(str, pq.read_table(io.BytesIO(one(".parquet"))).to_pylist())),
        "cursor": json.dumps(cursor(), indent=1),
    }


def test_the_example_is_what_dray_writes() -> None:
    """Every block; run this file as a module to write them again after a change of the format or of pyarrow."""
    shown = {name: text.rstrip("\n") for _, name, text, _ in BLOCK.findall(PAGE)}
    assert shown == example()


def test_the_example_is_a_whole_dataset() -> None:
    """It opens, every byte is as it should be, and the cursor resumes."""
    dataset()
    snapshot = Snapshot.open("memory://example/pets", "pets")
    assert list(verify(snapshot, "full")) == []
    assert Cursor.from_dict(cursor()).consumed == 1


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_reader_of_the_page_reads_the_example(tmp_path: Path) -> None:
    """Without dray: it prints each part."""
    for name, body in dataset().items():
        (tmp_path / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pets" / name).write_bytes(body)
    printed = subprocess.check_output([sys.executable, "-c", python_blocks()[1]], cwd=tmp_path, text=True)
    assert printed.splitlines() == ["cat x.npy 136", "cat txt 3", "dog x.npy 136", "dog txt 3"]


@pytest.fixture(scope="module")
def sample_at(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The function of the page."""
    path = tmp_path_factory.mktemp("order") / "order.py"
    path.write_text(python_blocks()[0])
    return runpy.run_path(str(path))["sample_at"]


cursors = st.builds(
    Cursor,
    dataset=st.just(""),
    version=st.just(1),
    num_samples=st.integers(1, 3000) | st.integers(1, 10**12),
    shuffle=st.booleans(),
    seed=st.integers(),
    epoch=st.integers(0, 1 << 40),
    lanes=st.integers(1, 300),
    block=st.integers(1, 64),
)


@settings(max_examples=200, deadline=None)
@given(cursor=cursors, data=st.data())
def test_the_order_of_the_page_is_that_of_the_loaders(sample_at: Any, cursor: Cursor, data: st.DataObject) -> None:
    """At any position, of blocks, runs and tail."""
    last = cursor.num_samples - 1
    some = data.draw(st.lists(st.integers(0, last) | st.integers(max(0, last - 300), last), min_size=1, max_size=5))
    assert [sample_at(position, cursor.to_dict()) for position in some] == cursor.order().at(some).tolist()


@pytest.mark.parametrize(
    ("section", "kinds"),
    {
        "Index": [ArrayLayout],
        "Manifest": [Manifest, Shard, PartForms, Accounting, TableChunk],
        "Intents": [Intent],
        "Commits and holds": [Commit, Holds],
        "Cursor": [Cursor],
    }.items(),
)
def test_each_field_is_specified(section: str, kinds: list[type[Any]]) -> None:
    """In the section of its record."""
    found = re.search(rf"^## {section}\n(.*?)^## ", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None
    names = {field.name for kind in kinds for field in fields(kind)}
    assert sorted(name for name in names if f"`{name}`" not in found[1]) == []


def test_the_links_at_the_top_name_the_sections() -> None:
    """All of them, in order."""
    sections = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    links = [(section, section.lower().replace(" ", "-")) for section in sections]
    assert re.findall(r"^\d+\. \[(.+)\]\(#(.+)\)$", PAGE, re.MULTILINE) == links


if __name__ == "__main__":
    blocks = example()
    PATH.write_text(BLOCK.sub(lambda found: f"{found[1]}{blocks[found[2]]}\n{found[4]}", PAGE))
