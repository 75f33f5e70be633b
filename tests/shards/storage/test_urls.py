"""URLs and paths: one spelling for each, and an error for those that cannot be opened."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dray.shards.errors import (
    CallError,
)
from dray.shards.storage.store import Store
from dray.shards.storage.urls import check_apart, local_path, normal_url, split_version


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("/a/b", "file:///a/b"),
        ("/a/b/", "file:///a/b"),
        ("/a/../b/./c//d", "file:///b/c/d"),
        (Path("/a/b"), "file:///a/b"),
        ("/", "file:///"),
        ("/a b/ü", "file:///a b/ü"),
        ("/a%41#b?c", "file:///a%2541%23b%3Fc"),
        ("file:///a/b/", "file:///a/b"),
        ("file:///a%20b", "file:///a b"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/a/b//", "s3://bucket/a/b"),
        ("gs://bucket/a", "gs://bucket/a"),
        ("az://container/a", "az://container/a"),
        ("memory://x/y/", "memory://x/y"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
    ],
)
def test_a_url_has_one_spelling(url: str | Path, normal: str) -> None:
    """However it was written, and written again."""
    assert normal_url(url) == normal_url(normal_url(url)) == normal


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker in another folder opens the same place; a tilde is the home folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ann")
    assert normal_url("a/../b") == f"file://{tmp_path}/b"
    assert normal_url("~/data") == "file:///home/ann/data"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "empty URL"),
        ("s3:/bucket/a", "did you mean s3://bucket/a"),
        (Path("s3://bucket/a"), "did you mean s3://bucket/a"),  # pathlib drops a slash
        ("s3:bucket/a", r"did you mean s3://bucket/a\? \(a folder of that name is \./s3:bucket/a\)"),
        ("S3://bucket/a", "did you mean s3://bucket/a"),
        ("s3a://bucket/a", "did you mean s3://bucket/a"),
        ("GCS:/bucket/a", "did you mean gs://bucket/a"),
        ("abfss://container/a", "did you mean az://container/a"),
        ("file:/data/train", "did you mean file:///data/train"),
        ("FILE:///data/train", "did you mean file:///data/train"),
        ("memory:x", "did you mean memory://x"),
        ("http://host/a", "http:// is not a storage URL"),
        ("https:/host/a", "https:// is not a storage URL"),
        ("foo://host/a", "foo:// is not a storage URL"),
        ("ftp://user:hush@host/a", "ftp:// is not a storage URL"),
        ("s3:/key:hush@bucket/a", "did you mean s3://...?"),
        ("s3://key:hush@bucket/a", "must not hold a key"),
        ("s3://bucket/a?token=hush", "s3://bucket/a: a storage URL has no query"),
        ("s3://bucket/a?version=7", r"leave \?version=7 out"),
        ("s3://bucket/a//b", "no empty folder name"),
        ("s3://", "the bucket is missing"),
        ("s3:///a", "the bucket is missing"),
        ("file://data/train", "three slashes"),
        ("file:///a#b", "%23"),
    ],
)
def test_a_url_that_cannot_be_opened_is_a_wrong_call(url: str | Path, message: str) -> None:
    """The message says what is wrong with it, without a key that it may hold."""
    with pytest.raises(CallError, match=message) as caught:
        Store(url)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("path", ["run:7", "a:b/c", "./s3:/bucket", "C:/x", "2024-01-01T10:00:00", "x/s3://y", "s3"])
def test_a_path_may_hold_colons(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what begins like a storage URL is taken for a misspelt one."""
    monkeypatch.chdir(tmp_path)
    assert local_path(normal_url(path)) == os.path.abspath(path)


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("/a/b?version=7", ("/a/b", "7")),
        ("s3://b/a%20b?version=paper", ("s3://b/a%20b", "paper")),
        ("/a?version=1/b?version=2", ("/a?version=1/b", "2")),
        ("/a?version=1/b", ("/a?version=1/b", None)),
        ("file:///a%3Fversion=1", ("file:///a%3Fversion=1", None)),
    ],
)
def test_only_the_end_of_a_url_names_a_version(url: str, parts: tuple[str, str | None]) -> None:
    """A folder's name may look like it."""
    assert split_version(url) == parts


@pytest.mark.parametrize(
    ("source", "destination", "is_refused"),
    [
        ("a", "a", True),
        ("a", "a/b", True),
        ("a", "a/../a/b/c", True),
        ("a", "link/b", True),
        ("link", "a", True),
        ("a/b", "a", False),
        ("a", "ab", False),
        ("a", "a/../b", False),
        ("s3://x/a", "s3://x/a/", True),
        ("s3://x/a", "s3://x/a/b", True),
        ("s3://x", "s3://x/a", True),
        ("s3://x/a", "s3://x/a%20", False),
        ("s3://x/a", "s3://y/a/b", False),
        ("s3://x/a", "gs://x/a", False),
        ("/", "/a", True),
    ],
)
def test_a_destination_in_its_source_is_refused(
    source: str, destination: str, is_refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it is spelt. A source in the destination is none of the dataset's names, and is read as it is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    urls = normal_url(source), normal_url(destination)
    if not is_refused:
        check_apart(*urls)
        return
    with pytest.raises(CallError, match="choose a folder beside the source"):
        check_apart(*urls)


@given(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1).map("/a/".__add__))
@settings(max_examples=100, deadline=None)
def test_a_path_survives_its_url(path: str) -> None:
    """For any path: its URL leads back to it, and the URL of the URL is the same."""
    url = normal_url(path)
    assert local_path(url) == os.path.abspath(path)
    assert normal_url(url) == url
