"""The Compose file passes Compose's own checker, which finds planted faults and fills in what is not in the file."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dray.cluster.deploy.compose import compose_file, render_compose
from dray.cluster.deploy.deployment import Deployment
from tests.support.manifests.programs import run_program

REHEARSAL = Deployment(image="lab/dray:1", words=("build", "s3://data/raw", "s3://data/shards"), env={"A": "$B"})
SECRETS = {"RAY_AUTH_TOKEN": "planted-t", "AWS_ACCESS_KEY_ID": "planted-i", "AWS_SECRET_ACCESS_KEY": "planted-s"}
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


def checked(content: str, folder: Path, **env: str) -> tuple[dict[str, Any], str]:
    """The file as Compose understands it, and what it says against it: its exit code is 0 in any case."""
    (folder / "compose.yaml").write_text(content)
    words = ("-f", folder / "compose.yaml", "--profile", "*", "config", "--format", "json")
    done = run_program("docker-compose", *words, env=SECRETS | env)
    return json.loads(done.stdout or "{}"), done.stderr


def test_compose_has_nothing_to_say(tmp_path: Path) -> None:
    """A store, and a head and two workers: three nodes."""
    found, problems = checked(render_compose(REHEARSAL), tmp_path)
    assert problems == ""
    assert found["services"].keys() == {"store", "head", "worker", "job"}
    assert found["services"]["worker"]["deploy"]["replicas"] == 2


def test_ports_are_open_to_this_machine_only(tmp_path: Path) -> None:
    """A dashboard runs any code that it is sent."""
    found, _ = checked(render_compose(REHEARSAL), tmp_path)
    ports = [port for service in found["services"].values() for port in service.get("ports", ())]
    assert [port["host_ip"] for port in ports] == ["127.0.0.1"] * 2


def test_secrets_come_from_the_environment_and_are_asked_for(tmp_path: Path) -> None:
    """The file holds none; without one of them nothing starts."""
    content = render_compose(REHEARSAL)
    found, _ = checked(content, tmp_path)
    assert found["services"]["head"]["environment"] | SECRETS == found["services"]["head"]["environment"]
    for name in SECRETS:
        assert f"required variable {name} is missing" in checked(content, tmp_path, **{name: ""})[1]


@pytest.mark.parametrize(
    ("service", "fields", "message"),
    [
        ("head", {"comand": ["ray"]}, "'comand' not allowed"),
        ("worker", {"deploy": {"replicas": "two"}}, "replicas"),
        ("worker", {"depends_on": {"heads": {"condition": "service_healthy"}}}, "heads"),
        ("worker", {"depends_on": {"head": {"condition": "healthy"}}}, "condition"),
        ("store", {"volumes": ["object:/data"]}, "object"),
        ("head", {"ports": ["http:8265"]}, "hostPort: http"),
        ("head", {"image": None}, "image"),
    ],
)
def test_planted_faults_are_found(service: str, fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    """A misspelt field, a wrong type, a name of nothing."""
    content = compose_file(REHEARSAL)
    content["services"][service].update(fields)
    assert message in checked(yaml.safe_dump(content), tmp_path)[1]


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(word=TEXT, value=TEXT)
def test_hostile_words_and_values_stay_values(word: str, value: str, tmp_path: Path) -> None:
    """Compose gives back what was given, `$` doubled as in the file."""
    deployment = Deployment(image="lab/dray:1", words=("build", word), env={"A": value})
    found, problems = checked(render_compose(deployment), tmp_path)
    assert problems == ""
    assert found["services"]["job"]["command"][-2:] == ["build", word.replace("$", "$$")]
    assert found["services"]["head"]["environment"]["A"] == value.replace("$", "$$")
