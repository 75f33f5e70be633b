"""`--log-format json`: every line on standard error is an object, also of warnings and errors."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from dray.cluster.observability.json_lines import JsonLog
from dray.cluster.observability.json_log import wants_json
from dray.pipelines import progress
from dray.pipelines.events import LostNode, Retried
from tests.conftest import Dray, MakeInputs


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def written(*texts: str) -> list[dict[str, Any]]:
    stream = io.StringIO()
    log = JsonLog(stream)
    for text in texts:
        log.write(text)
    return objects(stream.getvalue())


def test_a_build_writes_objects_with_its_dataset(
    dray: Dray, make_inputs: MakeInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Progress has its numbers as fields; the report stays on standard output."""
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    words = ["--suffix", "tensor.pyd", "--shards", 2, "--log-format", "json"]
    done = dray("build", make_inputs(8).folder, tmp_path / "out", *words)
    found = objects(done.err)
    assert done.code == 0
    assert "8 samples in 2 shards" in done.out
    assert {one["dataset"] for one in found} == {str(tmp_path / "out")}
    packed = [one for one in found if one.get("unit") == "shards"]
    assert [(one["done"], one["total"]) for one in packed] == [(1, 2), (2, 2)]
    assert all(one["time"].endswith("Z") and one["level"] == "info" for one in packed)


@pytest.mark.parametrize("words", [["verify", "absent"], ["build"], ["verify", "absent", "--bogus"]])
def test_an_error_is_an_object(dray: Dray, tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one of a command line that cannot be parsed, and one asked for by the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRAY_LOG_FORMAT", "json")
    done = dray(*words)
    assert done.code != 0
    assert all({"time", "level", "message"} <= set(one) for one in objects(done.err))
    assert done.err


def test_no_object_has_the_key_in_a_url(dray: Dray) -> None:
    """Such a URL is refused; the field that names the dataset does not repeat it either."""
    failed = dray("ls", "s3://AKIA:planted@lab/out", "--log-format", "json")
    (found,) = objects(failed.err)
    assert "must not hold a key" in found["message"]
    assert "planted" not in failed.err


def test_levels_and_nodes_are_fields() -> None:
    """The words before a message are not repeated in it."""
    found = written(
        "dray: error: no dataset\ndray: warn", "ing: x\n", "\x1b[36m(dray.pack pid=7, ip=10.0.0.2)\x1b[0m hi\n"
    )
    assert [(one["level"], one["message"]) for one in found] == [
        ("error", "no dataset"), ("warning", "x"), ("info", "hi")
    ]  # fmt: skip
    assert found[2]["node"] == "dray.pack pid=7, ip=10.0.0.2"


def test_retries_say_shard_and_attempt() -> None:
    """The second attempt follows the first failure."""
    stream = io.StringIO()
    log = JsonLog(stream)
    for event in (Retried("shard 7 (a..b)", "died"), Retried("shard 7 (a..b)", "died"), LostNode("10.0.0.2")):
        log.observe(event)
    found = objects(stream.getvalue())
    assert [(one.get("shard"), one.get("attempt")) for one in found] == [(7, 2), (7, 3), (None, None)]
    assert found[2]["node"] == "10.0.0.2"


def test_the_option_counts_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """In both of its forms."""
    monkeypatch.setenv("DRAY_LOG_FORMAT", "json")
    assert wants_json(["build"])
    assert wants_json([])
    assert not wants_json(["build", "--log-format", "text"])
    assert wants_json(["build", "--log-format=json"])
