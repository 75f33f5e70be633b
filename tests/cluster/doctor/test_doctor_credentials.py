"""The kind of credentials in use is named, and no secret is shown."""

import json
import re
from pathlib import Path

import pytest

from dray.cluster.doctor.credentials import check_credentials
from dray.cluster.doctor.finding import good

ROOT = Path(__file__).parents[3]
KEYS = {"AWS_ACCESS_KEY_ID": "PLANTED-ID", "AWS_SECRET_ACCESS_KEY": "PLANTED-SECRET"}
CASES = [
    ("s3://a/b", KEYS, {}, "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment", "good"),
    ("s3://a/b", {**KEYS, "KUBERNETES_SERVICE_HOST": "10.0.0.1"}, {}, "of this pod", "good"),
    ("s3://a/b", {**KEYS, "AWS_SESSION_TOKEN": "PLANTED-TOKEN"}, {}, "temporary keys", "warning"),
    ("s3://a/b", {}, {"access_key_id": "PLANTED", "secret_access_key": "PLANTED"}, "in storage options", "warning"),
    ("s3://a/b", {}, {"skip_signature": "true"}, "unsigned", "good"),
    ("s3://a/b", {}, {}, "none found", "bad"),
    ("s3://a/b", {"AWS_PROFILE": "missing"}, {}, "none: The config profile (missing)", "bad"),
    ("gs://a/b", {"GOOGLE_APPLICATION_CREDENTIALS": "/etc/key.json"}, {}, "in a file on this machine", "good"),
    ("gs://a/b", {}, {}, "the service account of this machine", "good"),
    ("az://a/b", {"AZURE_STORAGE_ACCOUNT_KEY": "PLANTED"}, {}, "an account key in the environment", "good"),
    ("az://a/b", {"AZURE_FEDERATED_TOKEN_FILE": "/var/token"}, {}, "workload identity", "good"),
    ("az://a/b", {}, {"account_key": "PLANTED"}, "a key in storage options", "warning"),
    ("az://a/b", {}, {}, "managed identity", "good"),
]


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials of the machine that runs the tests."""
    for name in (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_PROFILE",
        "AWS_SKIP_SIGNATURE",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.mark.parametrize(("url", "variables", "options", "found", "level"), CASES)
def test_kinds_of_credentials(
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    variables: dict[str, str],
    options: dict[str, str],
    found: str,
    level: str,
) -> None:
    """By their place, in the order in which the client looks."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    finding = check_credentials(url, options)
    assert found in finding.found
    assert finding.level == level
    assert "PLANTED" not in str(finding)


def test_keys_of_a_profile_are_named_by_the_profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file on this machine, as nodes may have it."""
    (tmp_path / ".aws").mkdir()
    keys = "[lab]\naws_access_key_id = PLANTED\naws_secret_access_key = PLANTED\n"
    (tmp_path / ".aws/credentials").write_text(keys)
    monkeypatch.setenv("AWS_PROFILE", "lab")
    finding = check_credentials("s3://a/b", {})
    assert "keys in a file on this machine (profile 'lab'" in finding.found
    assert "PLANTED" not in str(finding)


def test_the_page_shows_the_shape_of_the_json() -> None:
    """Field by field."""
    page = (ROOT / "docs/doctor.md").read_text()
    found = re.search(r"```json\n(.*?)```", page, re.DOTALL)
    assert found is not None
    report = json.loads(found[1])
    assert set(report) == {"is_good", "exit_code", "findings"}
    assert set(report["findings"][0]) == {"subject", *good("a", "b").as_json()}
