"""Temporary objects in a store: below one hidden folder with a random name, and removed at the end."""

import os
import secrets
from contextlib import suppress
from pathlib import Path

from dray.shards.storage.store import Store


class Scratch:
    """The temporary objects of a doctor; readers, builds and `*.tar` patterns do not see their folder.

    Args:
        store: Where they are.
        folder: The folder of another doctor, whose objects this one reads; None: a new one.

    Attributes:
        folder: Its name below the store's URL.
    """

    def __init__(self, store: Store, folder: str | None = None) -> None:
        self.store = store
        self.folder = folder or f".dray-doctor-{secrets.token_hex(8)}"
        self._names: list[str] = []
        self._new_folders = _missing_folders(Path(store.local_root, self.folder)) if store.local_root else []

    @property
    def url(self) -> str:
        """URL of the folder."""
        return self.store.url_of(self.folder)

    @property
    def is_empty(self) -> bool:
        """Whether no object was named yet."""
        return not self._names

    def name(self, label: str) -> str:
        """Returns the name of an object, which `clean_up` will delete."""
        name = f"{self.folder}/{label}"
        self._names.append(name)
        return name

    def clean_up(self) -> list[str]:
        """Deletes the objects and the folders that they were the first to need; returns what is still there.

        Raises:
            StoreError: The store does not delete, or does not answer.
        """
        self.store.delete(self._names)
        self.store.delete([info.name for info in self.store.leftovers(self.folder)])
        for folder in self._new_folders:
            with suppress(OSError):  # somebody else has put something into it
                os.rmdir(folder)
        return [info.name for info in self.store.list_folder(self.folder)]


def _missing_folders(path: Path) -> list[Path]:
    """Returns the folders on the way to a path that do not exist, the innermost first."""
    return [folder for folder in (path, *path.parents) if not folder.exists()]
