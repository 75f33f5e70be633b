"""What is said about a key that no sample has."""

import pyarrow as pa
import pyarrow.compute as pc

from dray.shards.errors import NotFoundError
from dray.shards.layout import key_of, some
from dray.shards.messages import counted
from dray.shards.parsing.parquet import place_of

MAX_NAMED = 5  # samples of a source


def missing_key(key: str, name: str, samples: pa.Table, left_out: pa.Table | None) -> NotFoundError:
    """Returns the error: it names the reason, the samples of the source with that key, or the key's neighbours.

    Args:
        key: The key.
        name: Name of the version.
        samples: Its table of samples.
        left_out: Its table of inputs without a sample.
    """
    for entry in left_out.to_pylist() if left_out is not None else ():
        if entry["key"] == key:
            fate = "gave no sample in" if entry["fate"] == "empty" else f"was {entry['fate']} by"
            return NotFoundError(f"sample {key!r} {fate} {name}: {entry['error']}")
    if "source" in samples.column_names:
        made = samples.filter(pc.call_function("equal", [samples["source"], pa.scalar(key)]))["key"].to_pylist()
        if made:
            count = counted(len(made), "sample was", "samples were")
            return NotFoundError(f"{key!r} is a source in {name}, of which {count} made: {some(made, MAX_NAMED)}")
    return NotFoundError(f"no sample {key!r} in {name}: {_hint(samples['key'], key)}")


def _hint(keys: pa.ChunkedArray, key: str) -> str:
    """Returns the neighbours of a key in order."""
    place = place_of(keys, key)
    near = keys[max(0, place - 1) : place + 1].to_pylist()
    dots = f"; dots of a name became dashes: {key_of(key)!r}?" if key_of(key) != key else ""
    return f"its neighbours are {' and '.join(map(repr, near)) or 'none'}{dots}"
