"""The names of all objects, and the names that builds accept."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dray.shards.errors import CallError
from dray.shards.layout import (
    WEBDATASET_META,
    Layout,
    bad_names,
    check_names,
    check_suffixes,
    is_path,
    key_of,
    record_number,
    some,
)


def test_every_object_has_its_place() -> None:
    """The layout matches docs/design.md."""
    layout = Layout("wdshards")
    assert [layout.shard(7), layout.index(7), layout.commit(7), layout.intent(7)] == [
        "wdshards-000007.tar",
        "__dray__/wdshards/index/000007.arrow",
        "__dray__/wdshards/commits/0000000007.json",
        "__dray__/wdshards/intents/0000000007.json",
    ]
    assert layout.manifest(3, "ab") == "__dray__/wdshards/manifests/0000000003-ab.json"
    assert layout.table(3, "ab") == "__dray__/wdshards/manifests/0000000003-ab.parquet"


@pytest.mark.parametrize("prefix", ["wdshards", "a.b", "a b", "ü", "100%", "a-0", "__draya__", "x" * 200])
def test_a_file_name_is_a_prefix(prefix: str) -> None:
    """Most file names are accepted."""
    assert Layout(prefix).shard(0) == f"{prefix}-000000.tar"


@pytest.mark.parametrize("prefix", ["", "__dray__", "a/b", "/a", ".", "..", "a\n", "a\0", "a#1", "\ud800"])
def test_a_prefix_is_a_plain_file_name(prefix: str) -> None:
    """Anything else would be in another folder, or could not be listed."""
    with pytest.raises(CallError, match="prefix"):
        Layout(prefix)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("a-000007.tar", 7),
        ("a-1234567.tar", 1234567),
        ("a-00007.tar", None),
        ("a-000007.tar.gz", None),
        ("a-000007.tar\n", None),
        ("b-000007.tar", None),
        ("ba-000007.tar", None),
        ("x/a-000007.tar", None),
        ("a--00007.tar", None),
        ("a-00000\u0667.tar", None),
        ("a-000007.TAR", None),
        ("", None),
    ],
)
def test_a_tar_is_known_by_its_name(name: str, number: int | None) -> None:
    """The number has at least six digits, with nothing before or after."""
    assert Layout("a").shard_number(name) == number


@given(st.sampled_from(["a", "a.b", "a+b", "(a", "a-1"]), st.integers(0, 10**12))
@settings(max_examples=100, deadline=None)
def test_a_shard_number_comes_back_from_its_name(prefix: str, number: int) -> None:
    """This holds for any prefix, including special characters of patterns."""
    assert Layout(prefix).shard_number(Layout(prefix).shard(number)) == number


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("0000000007.json", 7),
        ("a/b/0000000007.json", 7),
        ("000000007.json", None),
        ("00000000007.json", None),
        ("0000000007.json.tmp", None),
        ("x0000000007.json", None),
        ("000000000\u0667.json", None),
    ],
)
def test_a_record_is_known_by_its_name(name: str, number: int | None) -> None:
    """The number has ten digits."""
    assert record_number(name) == number


@pytest.mark.parametrize(
    ("numbers", "pattern"),
    [
        ([0], "a-000000.tar"),
        ([0, 1, 2], "a-{000000..000002}.tar"),
        ([7, 8], "a-{000007..000008}.tar"),
        ([999998, 999999], "a-{999998..999999}.tar"),
        ([999999, 1000000], None),  # a shell pads these differently
        ([0, 2], None),
        ([1, 0], None),
        ([0, 0], None),
        ([], None),
    ],
)
def test_one_ascending_run_has_a_brace_pattern(numbers: Sequence[int], pattern: str | None) -> None:
    """Any other set of tars has no pattern."""
    assert Layout("a").brace_pattern(numbers) == pattern


@pytest.mark.parametrize(
    "name", ["a", "a/b", "a b", "a.b/c.d", ".hidden", "...", "a/..b", "-", "日本/ü", "_a_", "a\\b"]
)
def test_a_relative_path_is_a_name(name: str) -> None:
    """Dots, spaces and all scripts are accepted."""
    check_names([name])


@pytest.mark.parametrize(
    "name",
    [
        *("", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/..", "a/./b", "a/../b"),
        *("a\nb", "a\0", "\x7f", "a\u2028b", "\ud800"),
        *("__a__", "__a__/b", "____"),
    ],
)
def test_a_name_that_steps_out_or_hides_is_refused(name: str) -> None:
    """No path leaves its directory, and readers skip no sample."""
    with pytest.raises(CallError, match="a name is a relative path") as caught:
        check_names(["good", name])
    assert repr(name) in str(caught.value)
    assert "good" not in str(caught.value)


def test_a_message_lists_twenty_names_and_counts_the_rest() -> None:
    """Even a million bad names give a short message."""
    with pytest.raises(CallError, match=r"'/19' and 999980 more: a name is"):
        check_names(f"/{number}" for number in range(1_000_000))
    assert some(["a", "b"]) == "'a', 'b'"


@pytest.mark.parametrize(
    ("suffixes", "found"),
    [
        ("cls", ("cls",)),
        (["tensor.pyd", "cls"], ("tensor.pyd", "cls")),
        (iter(["b", "a"]), ("b", "a")),
        ("a b", ("a b",)),
        ("JPG", ("JPG",)),
        ("a__b", ("a__b",)),
    ],
)
def test_suffixes_come_back_in_order(suffixes: str | Sequence[str], found: tuple[str, ...]) -> None:
    """A string is one suffix."""
    assert check_suffixes(suffixes) == found


@pytest.mark.parametrize(
    "suffixes", ["", [], [""], ".cls", "a/b", "..", "a\n", "x__", ["a", "a"], ["jpg", "JPG"], ["a", "/"]]
)
def test_a_suffix_that_readers_would_miss_is_refused(suffixes: str | list[str]) -> None:
    """Empty, duplicate and invalid suffixes raise CallError."""
    with pytest.raises(CallError, match="suffix"):
        check_suffixes(suffixes)


@pytest.mark.parametrize("suffixes", [None, 5, [5], ["a", None], b"cls"])
def test_a_suffix_is_a_string(suffixes: object) -> None:
    """Any other type raises an error about the type."""
    with pytest.raises(TypeError, match="a suffix is a string"):
        check_suffixes(suffixes)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize(
    ("name", "key"), [("a", "a"), ("a.b", "a-b"), ("d.e/f.g.h", "d.e/f-g-h"), (".a", "-a"), ("v1.2/.a", "v1.2/-a")]
)
def test_a_key_holds_dots_in_its_folders_alone(name: str, key: str) -> None:
    """WebDataset ends the key at the first dot after the last slash."""
    assert key_of(name) == key


@given(st.lists(st.text(alphabet="ab_.-/ \n0", max_size=8)))
def test_names_that_are_plainly_valid_are_judged_like_all_others(names: list[str]) -> None:
    """A first look lets most of millions of names pass; it must not let a bad one pass."""
    assert bad_names(names) == [name for name in names if not is_path(name) or WEBDATASET_META.match(name)]


def test_a_name_without_dots_is_its_own_key() -> None:
    """The same object: millions of keys take no memory beside the names."""
    for name in ("folder/sample-1", "sample-1", "folder.d/sample-1"):
        assert key_of(name) is name
    assert key_of("folder.d/sample.1") == "folder.d/sample-1"
