"""Fixtures that several test files share."""

from collections.abc import Iterator

import pytest

from dray.cluster.seaweed import SeaweedServer


@pytest.fixture(scope="session")
def s3() -> Iterator[SeaweedServer]:
    """A real S3 server, started for the first test that asks and shared by all: write below a folder of your own."""
    with SeaweedServer() as server:
        yield server
