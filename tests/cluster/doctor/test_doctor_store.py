"""`dray doctor URL`: each trouble of a store, planted for real, is named, and nothing is left behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.shards import Store
from tests.cluster.doctor import syscalls
from tests.conftest import Dray
from tests.support.chaos import Chaos

DRAY = Path(sys.executable).parent / "dray"


class Report(NamedTuple):
    """What `dray doctor --json` printed."""

    code: int
    findings: dict[str, dict[str, Any]]  # by check
    text: str

    def bad(self) -> set[str]:
        return {check for check, finding in self.findings.items() if finding["level"] == "bad"}

    def said(self, check: str) -> str:
        return f"{self.findings[check]['found']} -> {self.findings[check]['advice']}"


Doctor = Callable[..., Report]


def report_of(code: int, out: str) -> Report:
    found = json.loads(out)
    assert found["exit_code"] == code
    assert found["is_good"] == (code == 0)
    return Report(code, {finding["check"]: finding for finding in found["findings"]}, out)


@pytest.fixture
def doctor(dray: Dray) -> Doctor:
    """Runs `dray doctor --json`; `options` are storage options."""

    def run(*words: object, options: dict[str, Any] | None = None, speed: bool = False) -> Report:
        given = [f"--storage-option={name}={str(value).lower() if value is True else value}" for name, value in
                 (options or {}).items()]  # fmt: skip
        done = dray("doctor", *words, "--json", *given, *([] if speed else ["--no-speed"]))
        return report_of(done.code, done.out)

    return run


def proxied(s3: SeaweedServer, chaos: Chaos) -> dict[str, Any]:
    return {**s3.storage_options, "endpoint": chaos.endpoint}


def test_a_good_store_has_no_trouble_and_keeps_nothing(doctor: Doctor, s3: SeaweedServer) -> None:
    """Every check is made, and each number is there for a program."""
    folder = uuid.uuid4().hex
    report = doctor(s3.url(folder), options=s3.storage_options, speed=True)
    assert report.code == 0, report.text
    assert {finding["level"] for finding in report.findings.values()} <= {"good", "warning"}
    for check in ("list", "create", "read", "conditional create", "clock", "latency", "one stream", "16 streams"):
        assert report.findings[check]["level"] == "good", report.text
    assert report.findings["16 streams"]["values"]["read_bytes_per_s"] > 0
    assert Store(s3.url(folder), s3.storage_options).list_tree() == []


def test_a_good_folder_has_no_trouble_and_stays_as_it_was(doctor: Doctor, tmp_path: Path) -> None:
    """Also one that does not exist yet."""
    (tmp_path / "mine").write_text("mine")
    for folder in (tmp_path, tmp_path / "new" / "er"):
        report = doctor(folder, speed=True)
        assert report.code == 0, report.text
        assert report.findings["hard links"]["level"] == "good"
        assert report.findings["fsync"]["level"] == "good"
    assert os.listdir(tmp_path) == ["mine"]


def test_a_store_that_ignores_conditions_is_bad(doctor: Doctor, s3: SeaweedServer, chaos: Chaos) -> None:
    """As rclone serve s3 does: every writer succeeds."""
    chaos.rule("ignore_condition")
    report = doctor(s3.url(uuid.uuid4().hex), options=proxied(s3, chaos))
    assert report.code == 3
    assert report.bad() == {"conditional create"}
    assert "9 of 9 writers created the same object, expected 1" in report.said("conditional create")
    assert "If-None-Match" in report.said("conditional create")


def test_a_store_that_refuses_conditions_is_bad(doctor: Doctor, s3: SeaweedServer, chaos: Chaos) -> None:
    """As older servers do, with an error of their own."""
    chaos.rule("status", method="PUT", path="once", code=400)
    report = doctor(s3.url(uuid.uuid4().hex), options=proxied(s3, chaos))
    assert report.bad() == {"conditional create"}
    assert "InvalidRequest" in report.said("conditional create")
    assert "If-None-Match" in report.said("conditional create")


@pytest.mark.parametrize("seconds", [600, -600])
def test_a_store_whose_clock_is_off_is_bad(doctor: Doctor, s3: SeaweedServer, chaos: Chaos, seconds: int) -> None:
    """By the Date of its answers."""
    chaos.rule("shift_date", seconds=seconds)
    report = doctor(s3.url(uuid.uuid4().hex), options=proxied(s3, chaos))
    assert report.code == 3
    assert report.bad() == {"clock"}
    assert abs(report.findings["clock"]["values"]["skew_s"] - seconds) < 5
    assert f"600 s {'ahead of' if seconds > 0 else 'behind'}" in re.sub(r"\b(599|601)\b", "600", report.said("clock"))


def test_a_store_that_refuses_the_time_of_requests_is_bad(doctor: Doctor, s3: SeaweedServer, chaos: Chaos) -> None:
    """S3's answer to a clock that is off by more than 15 minutes leads to the clock."""
    chaos.rule("shift_date", seconds=1200)
    chaos.rule("status", path=r"\?", code=403)
    assert {"list", "clock"} <= doctor(s3.url("any"), options=proxied(s3, chaos)).bad()


def test_a_key_that_can_only_read_is_named(doctor: Doctor, s3: SeaweedServer) -> None:
    """It lists and reads: enough to train, not to build."""
    folder = uuid.uuid4().hex
    Store(s3.url(folder), s3.storage_options).put_new("a.tar", b"tarred")
    report = doctor(s3.url(folder), options=s3.read_only_options, speed=True)
    assert report.code == 3
    assert report.bad() == {"create"}
    assert "AccessDenied" in report.said("create")
    assert "s3:PutObject" in report.said("create")
    assert "read a.tar" in report.said("read")
    assert report.findings["bandwidth"]["level"] == "unchecked"


@pytest.mark.parametrize(
    ("wrong", "named", "advice"),
    [
        ({"secret_access_key": "PLANTED" * 5}, "SignatureDoesNotMatch", "secret key does not belong"),
        ({"access_key_id": "PLANTED-ID"}, "InvalidAccessKeyId", "does not know this access key"),
    ],
)
def test_a_wrong_key_is_named_and_not_shown(
    doctor: Doctor, s3: SeaweedServer, wrong: dict[str, str], named: str, advice: str
) -> None:
    """And nothing else is tried with it."""
    report = doctor(s3.url("any"), options={**s3.storage_options, **wrong})
    assert report.code == 3
    assert report.bad() == {"list"}
    assert named in report.said("list")
    assert advice in report.said("list")
    assert report.findings["create"]["level"] == "unchecked"
    assert "PLANTED" not in report.text


def test_a_bucket_that_does_not_exist_is_named(doctor: Doctor, s3: SeaweedServer) -> None:
    """And not created."""
    report = doctor("s3://nobody/any", options=s3.storage_options)
    assert report.bad() == {"list"}
    assert "NoSuchBucket" in report.said("list")


def test_a_store_at_which_nobody_listens_is_named(doctor: Doctor, s3: SeaweedServer, unused_port: int) -> None:
    """With the endpoint and where it came from."""
    options = {**s3.storage_options, "endpoint": f"http://127.0.0.1:{unused_port}"}
    report = doctor(s3.url("any"), options=options)
    assert report.bad() == {"list"}
    assert f"endpoint http://127.0.0.1:{unused_port} from option 'endpoint'" in report.said("list")
    assert "is the store running" in report.said("list")


def test_objects_that_cannot_be_deleted_are_named(doctor: Doctor, s3: SeaweedServer, chaos: Chaos) -> None:
    """By their folder: the gc of a dataset could not delete either."""
    chaos.rule("status", method="POST", path="delete", code=403)
    report = doctor(s3.url(uuid.uuid4().hex), options=proxied(s3, chaos))
    assert report.bad() == {"delete"}
    assert "could not clean up" in report.said("delete")
    assert ".dray-doctor-" in report.said("delete")


def run_dray(*words: object, before: tuple[str, ...] = (), **more: Any) -> subprocess.CompletedProcess[str]:
    command = [*before, str(DRAY), "doctor", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **more)


@pytest.mark.skipif(not syscalls.is_supported(), reason="needs seccomp")
@pytest.mark.parametrize(("calls", "check"), [("link,linkat", "hard links"), ("fsync", "fsync")])
def test_a_disk_that_refuses_what_a_build_needs_is_bad(tmp_path: Path, calls: str, check: str) -> None:
    """The kernel answers as a file system without it does."""
    refuse = (sys.executable, "-m", "tests.cluster.doctor.syscalls", calls, "EPERM", sys.executable)
    done = run_dray(tmp_path, "--json", "--no-speed", before=refuse, cwd=Path(__file__).parents[3])
    report = report_of(done.returncode, done.stdout)
    assert report.code == 3
    assert check in report.bad(), report.text
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_bad(doctor: Doctor, tmp_path: Path) -> None:
    """And keeps nothing of the doctor."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("mounting needs root")
    try:
        (tmp_path / "fill").write_bytes(bytes(60 << 10))
        report = doctor(tmp_path)
        assert report.bad()
        assert "No space left on device" in report.text
        assert os.listdir(tmp_path) == ["fill"]
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_store_that_never_answers_ends_by_the_time_limit(s3: SeaweedServer, chaos: Chaos) -> None:
    """The process ends as well, although a thread still waits."""
    chaos.rule("latency", seconds=300)
    options = [f"--storage-option={name}={value}" for name, value in proxied(s3, chaos).items() if "key" not in name]
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    done = run_dray(s3.url("any"), "--timeout", 2, "--json", *options, env={**os.environ, **keys})
    report = report_of(done.returncode, done.stdout)
    assert report.code == 3
    assert report.bad() == {"list"}
    assert "no end after 2 s" in report.said("list")


def test_an_interrupt_cleans_up(s3: SeaweedServer, chaos: Chaos) -> None:
    """Ctrl-C while the store is slow."""
    folder, options = uuid.uuid4().hex, s3.storage_options
    chaos.rule("latency", method="GET", path="created", seconds=5)
    keys = {"AWS_ACCESS_KEY_ID": options["access_key_id"], "AWS_SECRET_ACCESS_KEY": options["secret_access_key"]}
    words = [f"--storage-option={name}={value}" for name, value in proxied(s3, chaos).items() if "key" not in name]
    command = [str(DRAY), "doctor", s3.url(folder), *words]
    with subprocess.Popen(command, env={**os.environ, **keys}, stdout=subprocess.PIPE, text=True) as process:
        while not any(asked.method == "GET" and "created" in asked.path for asked in chaos.log):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert "temporary objects are deleted" in process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert Store(s3.url(folder), options).list_tree() == []
