"""`reshard`: a copy of a dataset, or of anyone's tars, in another size, order, choice or encoding."""

import os
from collections.abc import Collection, Iterable

from dray.pipelines.building.report import BuildReport
from dray.pipelines.inputs.encoder import Encode
from dray.pipelines.resharding.choose import Choice, Predicate
from dray.pipelines.resharding.keys import UniqueKeys
from dray.pipelines.resharding.plan import Shape
from dray.pipelines.resharding.reshard import CopySpec
from dray.pipelines.resharding.reshard import reshard as make_copy
from dray.pipelines.resharding.source import open_source
from dray.pipelines.versions.retention import DAY_S, Retention
from dray.shards.layout import Layout, Location, check_suffixes
from dray.shards.reading.tar_files import DataUrl
from dray.shards.snapshot import DEFAULT_PREFIX
from dray.shards.storage.client import StorageOptions
from dray.shards.storage.store import Store


def reshard(
    source: DataUrl,
    url: str | os.PathLike[str],
    *,
    source_prefix: str = DEFAULT_PREFIX,
    prefix: str = DEFAULT_PREFIX,
    version: int | str | None = None,
    samples_per_shard: int | None = None,
    shard_bytes: int | None = None,
    num_shards: int | None = None,
    shuffle_seed: int | None = None,
    keys: Iterable[str] | None = None,
    where: Predicate | None = None,
    parts: str | Iterable[str] | None = None,
    unique_keys: str | None = None,
    encode: Encode | None = None,
    allow: Collection[str] = (),
    allow_pickle: bool = False,
    address: str | None = None,
    storage_options: StorageOptions | None = None,
    source_storage_options: StorageOptions | None = None,
    data_url: str | os.PathLike[str] | None = None,
    data_storage_options: StorageOptions | None = None,
    keep: int | None = 2,
    grace_s: float = DAY_S,
    progress: bool = True,
) -> BuildReport:
    """Copy the samples of a dataset into shards of another size, order, choice or encoding.

    The source is any dataset of dray, or a folder of tars that other programs made; it is only read. Parts are copied
    as they are, each checked against its index, and none is decoded unless `encode` asks for it.

    The copy is a version of a dataset of its own: it appears whole or not at all. Equal arguments and an equal source
    give equal bytes. A rerun writes nothing if nothing changed; after a failure it copies only the shards that are
    missing; and if the source has a new version, it keeps the shards whose samples did not change.

    Args:
        source: Directory of the source, a path or an object-storage URL; `?version=7` at its end names a version. Or
            tars on a disk: their folder, one, a pattern such as `train-{000..099}.tar` or `*.tar`, or a list of these.
        url: Directory of the copy.
        source_prefix: Prefix of the source, or of the tars in a folder; "" for all of them.
        prefix: Prefix of the copy.
        version: Number of a version of the source, or the name of a hold; None: the last one.
        samples_per_shard: Number of samples in a shard; the last one may have fewer.
        shard_bytes: Maximum size of a shard in bytes. Without any of these three: 256 MiB, and at most 100,000 samples.
        num_shards: Number of shards, equal to one sample.
        shuffle_seed: Shuffle the samples over all shards, by a hash of the key under this seed; None: the order of the
            source. Each sample is then a request of its own on object storage.
        keys: Keys of the samples to copy; None: all.
        where: `f(key, sizes)`, whether to copy a sample; `sizes` has suffix -> bytes of each of its parts.
        parts: Suffixes of the parts to copy; None: all.
        unique_keys: What to do about samples of foreign tars that share a key. "prefix" puts the path of its tar before
            each key, as in `train/00012/cat`; "join" makes one sample of those that share a key, if no two have the
            same suffix. None: they are an error.
        encode: Encoding of pickled parts, as for `pickles_to_tars`: "auto", or suffix -> format.
        allow: Full names (`pkg.module.Class`) that pickles may use besides the safe list while they are encoded.
        allow_pickle: Let pickles run any code while they are encoded: only for data that you made yourself.
        address: Address of a Ray cluster, as for `pickles_to_tars`.
        storage_options: Options of `url`: see `dray.shards.Store`.
        source_storage_options: Options of `source`; None: the same as `storage_options`.
        data_url: Where the tars of an indexed source are, if they are outside its folder: they are read there only if
            you say so.
        data_storage_options: Options of `data_url`, which gets none of the others.
        keep: Number of versions of the copy that stay readable; older ones are deleted unless held. None: all.
        grace_s: Seconds for which a superseded version is kept.
        progress: Show progress on standard error.

    Returns:
        Version, shards, samples, bytes, shards reused, seconds.

    Raises:
        CallError: An argument is invalid; no sample is left; or `url` is the source, or a dataset that another program
            made.
        NotFoundError: There is no such dataset, version or tar.
        InputError: Samples share a key; a key is asked for that no sample has; or a part cannot be encoded.
        DamagedError: A sample of the source differs from its index; names tar, key and suffix. No version is made.
        ConflictError: Another writer committed a version of the copy meanwhile.
    """
    opened = open_source(
        source,
        source_prefix,
        version,
        storage_options=storage_options if source_storage_options is None else source_storage_options,
        data_url=data_url,
        data_storage_options=data_storage_options,
        show=progress,
    )
    spec = CopySpec(
        source=opened,
        location=Location(Store(url, storage_options), Layout(prefix)),
        shape=Shape.of(samples_per_shard, shard_bytes, num_shards, shuffle_seed),
        choice=Choice.of(keys, where),
        parts=None if parts is None else check_suffixes(parts),
        unique_keys=None if unique_keys is None else UniqueKeys.of(unique_keys),
        encode=encode,
        allow=tuple(allow),
        allow_pickle=allow_pickle,
        address=address,
        progress=progress,
    )
    return make_copy(spec, retention=None if keep is None else Retention(keep=keep, grace_s=grace_s))
