"""Which part of a sample a wanted suffix means: `tensor.pyd`, or just its end, `pyd`; in any case of letters."""

from collections.abc import Collection, Sequence

from dray.loaders.catalog import Catalog
from dray.shards.columns import Columns


def match(suffix: str, names: Collection[str]) -> Sequence[str]:
    """The part of that suffix, else all parts whose suffix ends so; `a;b` is either, the first that is there."""
    wanted = suffix.lower().split(";")  # WebDataset reads suffixes in lower case
    found = {name.lower(): name for name in names}
    exact = [found[name] for name in wanted if name in found]
    return exact[:1] or [name for low, name in found.items() if low.endswith(tuple(f".{end}" for end in wanted))]


class PartCatalog(Catalog):
    """A catalog whose `parts` may be the ends of suffixes: what a shard has of them is read."""

    def wanted(self, columns: Columns) -> Sequence[str]:
        """The suffixes to read of a shard: for samples that lack a part, those that may stand for it as well."""
        found: list[str] = []
        for suffix in self.parts or ():
            names = list(columns.offsets)
            while matching := match(suffix, names):
                found += matching
                if not any((columns.offsets[name] == 0).any() for name in matching):
                    break
                names = [name for name in names if name not in matching]
        return tuple(dict.fromkeys(found))
