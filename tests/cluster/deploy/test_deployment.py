"""What cannot be a name, an image or a variable is refused, and so is what looks like a secret."""

from typing import Any

import pytest

from dray.cluster.deploy.deployment import Deployment, SecretRef
from dray.shards.errors import CallError

HOSTILE = ["a\nb", "a b", "a'b", 'a"b', "a;b", "$(id)", "`id`", "a: b", "#a", "{a}", "-a", "a\0", "é", "a\\"]


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("keyword", ["name", "image", "service_account"])
def test_hostile_names_are_refused(keyword: str, value: str) -> None:
    """They reach directives of Slurm and fields of Kubernetes, which have no quotes."""
    with pytest.raises(CallError, match=f"{keyword}=.*expected"):
        Deployment(**{keyword: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_variables_and_references_are_refused(value: str) -> None:
    """The name of a variable is not quoted in a shell script."""
    for fields in ({"env": {value: "x"}}, {"secrets": {value: SecretRef("a", "b")}}):
        with pytest.raises(CallError, match="expected the name of an environment variable"):
            Deployment(**fields)  # type: ignore[arg-type]
    for reference in (SecretRef(value, "key"), SecretRef("name", value + " ")):
        with pytest.raises(CallError, match=r"expected .* Kubernetes Secret"):
            Deployment(secrets={"A": reference})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"workers": 0}, "workers=0: expected at least 1"),
        ({"min_workers": 3}, "min_workers=3: expected 0 to 2"),
        ({"memory_gib": 1}, "memory_gib=1: expected at least 2"),
        ({"cpus": 0}, "cpus=0"),
        ({"gpus": -1}, "gpus=-1"),
        ({"time_limit_s": 0}, "time_limit_s=0"),
        ({"words": ("build", "a\0")}, "null bytes"),
        ({"words": ("build", "a\udc80")}, "UTF-8"),
        ({"name": "a" * 41}, "at most 40"),
    ],
)
def test_values_out_of_range_are_refused(fields: dict[str, Any], message: str) -> None:
    """At once, and by the name of the field."""
    with pytest.raises(CallError, match=message):
        Deployment(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"env": {"AWS_SECRET_ACCESS_KEY": "planted"}},
        {"env": {"RAY_AUTH_TOKEN": "planted"}},
        {"words": ("build", "a", "b", "--storage-option", "secret_access_key=planted")},
        {"words": ("build", "https://host/x?sas_token=planted")},
    ],
)
def test_what_looks_like_a_secret_is_refused_unquoted(fields: dict[str, Any]) -> None:
    """A manifest is a file that people share; the error must not show the secret either."""
    with pytest.raises(CallError, match="looks like a secret") as raised:
        Deployment(**fields)
    assert "planted" not in str(raised.value)
