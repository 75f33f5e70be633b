"""Finds the datasets that a command is about: those in the folder of its URL, else those one folder below.

The parent folder of a split's groups therefore stands for all of them. A folder with a commit holds a dataset; the
commit is not read, so damaged datasets are found as well. If there is none, the error says what is there instead.
"""

import os
import shlex
from collections.abc import Iterator, Sequence

from dray.shards.errors import CallError, NotFoundError
from dray.shards.layout import DRAY_FOLDER, OLD_FOLDER, Layout, Location, some
from dray.shards.log import numbers_in
from dray.shards.messages import counted
from dray.shards.storage.client import StorageOptions
from dray.shards.storage.store import Store
from dray.shards.storage.urls import split_version

MAX_FOLDERS = 100  # searched if a URL itself holds no dataset
MAX_NAMED = 5  # files, folders or commands in an error


def find_datasets(url: str, prefix: str | None, storage_options: StorageOptions) -> list[Location]:
    """Returns the datasets under a URL, at least one, sorted by folder and prefix.

    Args:
        url: A folder, without a version.
        prefix: Only datasets with this prefix; None: all.
        storage_options: See `Store`.

    Raises:
        NotFoundError: There is none; the message says what is there and what to do.
    """
    store = Store(url, storage_options)
    if prefix is not None:
        Layout(prefix)  # checks the prefix
    found = _found_from(store, prefix, storage_options)
    if not found:
        raise NotFoundError(_what_is_there(store, prefix, storage_options))
    return found


def find_dataset(url: str, prefix: str | None, storage_options: StorageOptions, words: Sequence[str]) -> Location:
    """Returns the only dataset under a URL.

    Args:
        url: As for `find_datasets`.
        prefix: As for `find_datasets`.
        storage_options: As for `find_datasets`.
        words: The command and what follows the URL, such as ("hold", "paper"), for the message of an error.

    Raises:
        CallError: There are several; the message names the command line for each.
        NotFoundError: There is none; the message says what is there and what to do.
    """
    found = find_datasets(url, prefix, storage_options)
    if len(found) == 1:
        return found[0]
    commands = [shlex.join(("dray", words[0], *_words(one, found, prefix), *words[1:])) for one in found[:MAX_NAMED]]
    more = f"; and {len(found) - MAX_NAMED} more, which dray ls lists" if len(found) > MAX_NAMED else ""
    raise CallError(
        f"{Store(url, storage_options).url} holds {len(found)} datasets, and dray {words[0]} takes one: "
        f"{'; '.join(commands)}{more}"
    )


def datasets_below(store: Store, prefix: str, storage_options: StorageOptions) -> list[Location]:
    """Returns the datasets with a prefix in the sub-folders of a folder, sorted; none if the folder does not exist."""
    return [one for folder in _folders(store, storage_options) for one in _directly_in(folder, prefix)]


def without_version(url: str) -> str:
    """Returns the URL of a dataset, for a command that is about all of its versions.

    Raises:
        CallError: The URL names a version.
    """
    directory, pinned = split_version(url)
    if pinned is not None:
        raise CallError(f"{url}: this command is about the dataset, not one version of it: leave ?version={pinned} out")
    return directory


def _words(one: Location, found: Sequence[Location], prefix: str | None) -> list[str]:
    """Returns the arguments that name one of the datasets: its URL, and its prefix if the URL is ambiguous."""
    alone = prefix is None and sum(other.store.url == one.store.url for other in found) == 1
    return [one.store.url] if alone else [one.store.url, "--prefix", one.layout.prefix]


def _found_from(store: Store, prefix: str | None, options: StorageOptions) -> list[Location]:
    if store.local_root is not None and os.path.isfile(store.local_root):
        return []
    found = list(_directly_in(store, prefix))
    return found or [one for folder in _folders(store, options) for one in _directly_in(folder, prefix)]


def _directly_in(store: Store, prefix: str | None) -> Iterator[Location]:
    prefixes = [prefix] if prefix is not None else _begun(store)
    layouts = (Layout(name) for name in prefixes)
    return (Location(store, layout) for layout in layouts if numbers_in(store, layout.commits))


def _begun(store: Store) -> list[str]:
    """Returns the prefixes under which dray has stored anything in a folder."""
    return [folder.removeprefix(f"{DRAY_FOLDER}/") for folder in store.list_folders(DRAY_FOLDER)]


def _folders(store: Store, options: StorageOptions) -> list[Store]:
    names = [name for name in store.list_folders() if name != DRAY_FOLDER]
    return [Store(store.url_of(name), options) for name in names[:MAX_FOLDERS]]


# ---- if there is none ----


def _what_is_there(store: Store, prefix: str | None, options: StorageOptions) -> str:
    """Returns the error message."""
    url = store.url
    missing = f"no dataset{'' if prefix is None else f' with prefix {prefix!r}'} in {url}"
    dataset, own, _ = url.partition(f"/{DRAY_FOLDER}")
    if own:
        return f"{missing}: this is a folder of dray's own records: {_ls(dataset)}"
    if (parent := _parent_of_file(store, options)) is not None:
        return f"{missing}: this is a file, and a dataset is a folder: {_ls(parent)}"
    if prefix is not None and (others := _found_from(store, None, options)):
        there = "; ".join(map(str, others[:MAX_NAMED]))
        return f"{missing}, but there is {there}: leave --prefix out, or list all with {_ls(url)}"
    if old := store.list_folders(OLD_FOLDER):
        return f"{missing}: {store.url_of(old[0])} was written by an older dray; rebuild it"
    if begun := _begun(store):
        return (
            f"{missing}: a build of {some(begun)} started there but made no version yet: run the same dray build again"
        )
    return missing + _content(store, options)


def _content(store: Store, options: StorageOptions) -> str:
    if store.local_root is not None and not os.path.isdir(store.local_root):
        return f", as the folder does not exist: check the URL, or make a dataset there: {_build('SRC', store.url)}"
    files, folders = [info.name for info in store.list_folder()], _folders(store, options)
    if deeper := [folder.url for folder in folders if _is_parent(folder, options)]:
        return f" nor in its sub-folders, but deeper: {'; '.join(map(_ls, deeper[:MAX_NAMED]))}"
    tars = [name for name in files if name.endswith(".tar")]
    if tars:
        return (
            f"; it holds {_counted(tars, 'tar')}, not built by dray: to make a dataset of them, which rewrites none: "
            f"{shlex.join(('dray', 'index', store.url))}"
        )
    if files:
        suffix = files[0].partition(".")[2] or "SUFFIX"
        return f"; it holds {_counted(files, 'file')}; to pack them: {_build(store.url, 'DEST', suffix)}"
    if folders:
        names = [folder.url.rpartition("/")[2] for folder in folders]
        return f" nor in its sub-folders ({some(names, MAX_NAMED)}): check the URL"
    return f": the folder is empty or does not exist; to make a dataset: {_build('SRC', store.url)}"


def _parent_of_file(store: Store, options: StorageOptions) -> str | None:
    """Returns the folder of the file that a URL names; None if the URL names no file."""
    parent, _, name = store.url.rpartition("/")
    if store.local_root is not None:
        return parent if os.path.isfile(store.local_root) else None
    return parent if not parent.endswith("/") and Store(parent, options).head(name) else None


def _is_parent(store: Store, options: StorageOptions) -> bool:
    """Returns whether a sub-folder holds anything that dray stored."""
    return any(map(_begun, _folders(store, options)))


def _counted(names: Sequence[str], noun: str) -> str:
    return f"{counted(len(names), noun)} ({names[0]!r}{', ...' if len(names) > 1 else ''})"


def _ls(url: str) -> str:
    return shlex.join(("dray", "ls", url))


def _build(source: str, destination: str, suffix: str = "SUFFIX") -> str:
    return shlex.join(("dray", "build", source, destination, "--suffix", suffix))
