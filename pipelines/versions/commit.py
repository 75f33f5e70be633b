"""Committing a version: one small conditional write after which every reader sees it.

Whatever else was committed meanwhile is looked at first: a plan may be committed where the version that it started from
is still the last, and nothing that it names was given up by a gc.
"""

from dataclasses import replace

from dray.pipelines.versions.retention import Retention, retain
from dray.shards.index import digest_of
from dray.shards.layout import Location
from dray.shards.log import Commit, Operation, append_commit, new_write_id, now, put_content
from dray.shards.manifest import Manifest
from dray.shards.snapshot import Snapshot


def commit_version(
    location: Location,
    manifest: Manifest,
    base: Snapshot | None,
    *,
    operation: Operation = Operation.BUILD,
    retention: Retention | None,
) -> Snapshot | None:
    """Commit a manifest as the next version. Atomic, durable.

    Args:
        location: Where the dataset is.
        manifest: The content of the version; its shards, indexes and tables are stored.
        base: The version that the plan started from, with the last commit that the caller knows.
        operation: The operation that made it.
        retention: Which versions and intents the commit keeps; None: all that were kept.

    Returns:
        The version, where it stands: made here, or by another builder that did the same. None where the dataset moved
        on: plan again.
    """
    body = manifest.to_bytes()
    digest = digest_of(body)
    put_content(location.store, location.layout.manifest(manifest.intent, digest), body)
    standing: Commit | None = None

    def next_of(head: Commit | None) -> Commit | None:
        nonlocal standing
        if head is not None and (head.intent, head.manifest) == (manifest.intent, digest):
            standing = head
            return None
        if not _may_follow(head, manifest, base):
            return None
        number = head.number + 1 if head else 1
        commit = Commit(
            number=number,
            operation=operation,
            version=number,
            intent=manifest.intent,
            manifest=digest,
            num_samples=manifest.num_samples,
            num_shards=len(manifest.shards),
            num_bytes=sum(shard.num_bytes for shard in manifest.shards),
            write_id=new_write_id(),
            created=now(),
        )
        if head is not None:
            commit = replace(
                commit,
                kept_from=head.kept_from,
                holds=head.holds,
                open_intent=head.open_intent,
                open_shard=head.open_shard,
            )
        return retain(location, commit, retention) if retention else commit

    commit = append_commit(location, base.commit if base else None, next_of) or standing
    return Snapshot(location, commit, manifest) if commit else None


def _may_follow(head: Commit | None, manifest: Manifest, base: Snapshot | None) -> bool:
    """Whether a plan made for `base` may be committed after `head`."""
    if (head.version if head else 0) != (base.version if base else 0):
        return False
    reused = {shard.number for shard in (base.shards if base else ())}
    return head is None or (
        manifest.intent >= head.open_intent
        and all(shard.number >= head.open_shard or shard.number in reused for shard in manifest.shards)
    )
