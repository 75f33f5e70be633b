"""A version whose samples a function makes of input files, batch by batch."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import chain, islice

from dray.pipelines.building.report import BuildReport
from dray.pipelines.building.survey import BuildSpec
from dray.pipelines.events import report_bad
from dray.pipelines.inputs.sources import BadInput, Sources, try_files
from dray.pipelines.progress import sample_progress, say
from dray.pipelines.running.ray_session import ray_session
from dray.pipelines.running.tasks import runs_in_process
from dray.pipelines.versions.retention import Retention
from dray.pipelines.writing.batches import BatchTransform, Input, Made, Workers, in_batches
from dray.pipelines.writing.shard import Sample, ShardSize, WrittenShard, store_in_order
from dray.pipelines.writing.sourced import SourcedPlan
from dray.pipelines.writing.survey import plan_sourced
from dray.shards.errors import InputError
from dray.shards.layout import key_of
from dray.shards.storage.store import Store


def build_transformed(
    spec: BuildSpec,
    transform: BatchTransform,
    transform_version: str,
    size: ShardSize,
    workers: Workers,
    *,
    retention: Retention | None,
) -> BuildReport:
    """Plan and make the next version, in this process or on Ray; see `build_dataset` for arguments and errors."""
    is_here = runs_in_process(spec.address)
    if is_here:
        workers.check_in_process()
    plan = plan_sourced(spec, transform.recipe(spec.recipe.suffixes, transform_version))
    say(f"{spec.job.location.url}: {plan}", show=spec.progress)
    if not plan.has_work:
        return plan.unchanged()
    if is_here:
        return write_transformed(plan, transform, size, batch_size=workers.batch_size, retention=retention)
    from dray.pipelines.ray_data.transform import write_on_ray  # imports Ray

    with ray_session(spec.address):
        return write_on_ray(plan, transform, size, workers, retention=retention)


def write_transformed(
    plan: SourcedPlan, transform: BatchTransform, size: ShardSize, *, batch_size: int, retention: Retention | None
) -> BuildReport:
    """Make the version of a plan in this process. Atomic; what a failed run stored is found by the next plan.

    Args:
        plan: What to make.
        transform: Makes samples of batches of inputs.
        size: When a shard is full.
        batch_size: Number of inputs in a batch.
        retention: Which versions to keep; None: all.

    Raises:
        InputError: More inputs could not be read or transformed than are accepted.
    """
    writing = plan.announce(retention)
    bad: list[BadInput] = []
    title, total = f"writing {writing.location.prefix}", len(plan.to_make)
    written: list[WrittenShard] = []
    with sample_progress(title, total=total or None, unit="samples", show=writing.progress) as advance:
        samples = chain(_made(plan, transform, batch_size, bad), plan.read_copies())
        with closing(store_in_order(writing.location, samples, writing.intent.numbers, size, transform.name)) as stored:
            for shard in stored:
                written.append(shard)
                advance(len(shard.keys), shard.num_bytes)
    return plan.commit(writing, written, size, bad=bad, renamed=transform.renamed)


def _made(plan: SourcedPlan, transform: BatchTransform, batch_size: int, bad: list[BadInput]) -> Iterator[Sample]:
    """Yields the samples of the sources to make; adds those that cannot be made to `bad`."""
    spec, numbers = plan.spec, plan.numbers()
    sources = plan.sources.take(plan.to_make)
    names = dict(zip(sources.keys(), sources.names, strict=True))
    for batch in in_batches(_readable(spec.job.inputs, sources, bad), batch_size):
        for one, made in attempt(transform, batch, bad, names, leaves_out=spec.tolerance.leaves_out):
            yield Sample(made.key, made.parts, numbers[one.key])
        spec.tolerance.check(bad, len(plan.sources), sources.url)
    spec.tolerance.check(bad, len(plan.sources), sources.url)


def _readable(inputs: Store, sources: Sources, bad: list[BadInput]) -> Iterator[Input]:
    """Yields the inputs that can be read, in order, and adds the others to `bad`; the next ones are read meanwhile."""
    files = try_files(inputs, sources)
    for name in sources.names:
        parts = dict(zip(sources.suffixes, islice(files, len(sources.suffixes)), strict=True))
        failed = next(((suffix, data) for suffix, data in parts.items() if isinstance(data, InputError)), None)
        if failed is None:
            yield Input(key_of(name), {suffix: data for suffix, data in parts.items() if isinstance(data, bytes)})
        else:
            bad.append(BadInput(name=name, file=f"{name}.{failed[0]}", stage="read", error=str(failed[1])))
            report_bad(bad[-1:])


def attempt(
    transform: BatchTransform, batch: Sequence[Input], bad: list[BadInput], names: dict[str, str], *, leaves_out: bool
) -> Iterator[tuple[Input, Made]]:
    """Yields the samples of a batch with their inputs.

    If it fails and the version may lack inputs, each input is tried alone; those that fail are added to `bad`.
    """
    try:
        yield from ((batch[made.place], made) for made in transform(batch))
    except InputError as exc:
        if not leaves_out:
            raise
        if len(batch) > 1:
            for one in batch:
                yield from attempt(transform, [one], bad, names, leaves_out=True)
            return
        bad.append(BadInput(name=names[batch[0].key], file="", stage="transform", error=str(exc)))
        report_bad(bad[-1:])
