"""The recipe of a dataset: everything but the sources that decides its bytes."""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from dray.pipelines.inputs.encoder import Encoder
from dray.shards.arguments import as_int, as_seed
from dray.shards.index import digest_of

DEFAULT_SHARD_BYTES = 256 << 20
MAX_SHARD_SAMPLES = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything but the sources that decides the bytes of a dataset."""

    suffixes: tuple[str, ...]
    transform: str | None = None  # declared version of the user's function; None: parts are the files as they are
    num_shards: int | None = None  # number of shards of a first build; None: by size
    shard_bytes: int = DEFAULT_SHARD_BYTES  # maximum size of a shard, if dealt by size
    shard_samples: int = MAX_SHARD_SAMPLES  # maximum number of samples in a shard, if dealt by size
    shuffle_seed: int | None = None  # seed of the hash of the keys that orders the samples; None: as given
    encoder: Encoder | None = None  # None: pickled parts stay pickles
    leaves_out_bad: bool = False  # whether a shard may lack samples that cannot be packed
    recursive: bool = False  # whether the samples were found by a scan of the input folder and its sub-folders

    def __post_init__(self) -> None:
        if self.num_shards is not None:
            object.__setattr__(self, "num_shards", as_int("min_num_shards", self.num_shards, 1))
        if self.shuffle_seed is not None:
            object.__setattr__(self, "shuffle_seed", as_seed("shuffle_seed", self.shuffle_seed))

    def to_json(self) -> dict[str, Any]:
        """Returns the fields that the manifest records: shards are kept only while these stay equal."""
        values = {**asdict(replace(self, encoder=None)), "suffixes": list(self.suffixes)}
        del values["leaves_out_bad"], values["encoder"]
        if not self.recursive:
            del values["recursive"]
        return values if self.encoder is None else values | self.encoder.to_json()

    def content_digest(self) -> str:
        """Returns the digest of what decides the bytes of a shard, given its samples."""
        encoding = [] if self.encoder is None else [self.encoder.to_json()]
        return digest_of(json.dumps([self.suffixes, self.transform, self.leaves_out_bad, *encoding]).encode())
