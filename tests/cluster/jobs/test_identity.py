"""The same command is the same job; secrets in a command line are found, and not quoted."""

import pytest

from dray.cluster.jobs.identity import JobName, secrets_in

PARAMS = {"source": "s3://lab/raw", "destination": "s3://lab/out", "suffix": ["x"], "shards": None}


def test_ids_depend_on_command_and_arguments_alone() -> None:
    """Neither on their order, nor on what is printed and where; a golden value keeps them equal between versions."""
    name = JobName.of("build", PARAMS)
    assert name.attempt(2) == "dray-build-75121a69d594-2"
    assert JobName.of("build", dict(reversed(PARAMS.items())) | {"quiet": True, "address": "auto"}) == name
    for other in (
        JobName.of("index", PARAMS),
        JobName.of("build", PARAMS | {"shards": 3}),
        JobName.of("run", {}, b"x"),
    ):
        assert other != name


@pytest.mark.parametrize(
    ("submission_id", "number"), [("{}-12", 12), ("{}-x", None), ("{}", None), ("other-1", None), (None, None)]
)
def test_attempts_are_recognised(submission_id: str | None, number: int | None) -> None:
    """Jobs of others are in the same list."""
    name = JobName.of("build", PARAMS)
    assert name.number_of(submission_id and submission_id.format(name.text)) == number


@pytest.mark.parametrize(
    "word",
    [
        "s3://me:planted@lab/raw",
        "https://planted@host/x",
        "https://lab.blob.core.windows.net/raw?sv=1&sig=planted",
        "https://lab.s3.amazonaws.com/raw?X-Amz-Signature=planted",
        "access_key_id=planted",
        "secret_access_key=planted",
        "--storage-option=account_key=planted",
        "AWS_SESSION_TOKEN=planted",
        "sas_token=planted",
        "--password=planted",
        "--api-key",
    ],
)
def test_a_secret_in_a_command_line_is_found(word: str) -> None:
    """The problem names the word, and not its value."""
    (problem, *_) = secrets_in(["build", word])
    assert problem.startswith("word 2 ")
    assert "planted" not in problem


@pytest.mark.parametrize(
    "word",
    [
        "s3://lab/raw",
        "region=eu-west-1",
        "endpoint=http://h:1",
        "--key-column=id",
        "--keys",
        "s3://b/key=3/x",
        "train=0.9",
    ],
)
def test_other_words_are_none(word: str) -> None:
    """Options of dray, and names of partitions."""
    assert not secrets_in([word, "id"])
