"""Fixtures that several tests of the command line share."""

from pathlib import Path

import pytest

from dray.cluster.quickstart.seaweed import SeaweedServer
from tests.conftest import Dray, Inputs, MakeInputs


@pytest.fixture
def inputs(make_inputs: MakeInputs) -> Inputs:
    """60 samples of two parts."""
    return make_inputs(60, ("image.pyd", "label.cls"))


@pytest.fixture
def build(dray: Dray, inputs: Inputs, tmp_path: Path) -> Dray:
    """Runs `dray build` on the inputs, with further words."""
    words = ["build", inputs.folder, tmp_path / "out", "--suffix", "image.pyd", "--suffix", "label.cls"]
    return lambda *more, **options: dray(*words, *more, **options)


@pytest.fixture
def s3_words(s3: SeaweedServer, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options for the S3 server of the tests, whose keys are in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.storage_options["access_key_id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.storage_options["secret_access_key"])
    return ["--storage-option", f"endpoint={s3.endpoint}", "--storage-option", "region=us-east-1"]
