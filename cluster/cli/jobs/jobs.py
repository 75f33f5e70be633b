"""`dray jobs`: list, follow and stop jobs, by their records or on a cluster."""

import json
import time
from typing import Annotated

import typer

from dray.cluster.cli.exits import ExitCode
from dray.cluster.cli.options import ClusterOptions, StorageOptionList, parse_storage_options
from dray.cluster.jobs.listing import Job, find_job, jobs_in
from dray.cluster.jobs.record import JobRecord, JobState
from dray.shards.errors import CallError
from dray.shards.storage.store import Store

POLL_S = 2.0
_ACTIONS = ("status", "logs", "stop")


def jobs(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[URL] | status ID [URL] | logs ID | stop ID",
            help="URL: folder of a dataset, whose records need no cluster. Without URL: the jobs of --address.",
            show_default=False,
        ),
    ] = None,
    *,
    cluster: ClusterOptions,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: a list of jobs, or with status one a line.")] = (
        False
    ),
    storage_option: StorageOptionList = None,
) -> None:
    """List jobs; show or follow one, print its log, or stop it.

    A record beside the dataset says how far a job is: it needs no cluster. Logs and stopping need --address.
    With --follow, the exit code is that of the job.

    [bold]Examples[/]

    [cyan]dray jobs s3://lab/digits[/]

    [cyan]dray jobs status dray-build-0f3a9c21b7d4-1 s3://lab/digits -f[/]

    [cyan]dray jobs stop dray-build-0f3a9c21b7d4-1 --address http://head:8265[/]
    """
    given = list(words or ())
    options = parse_storage_options(storage_option)
    if not given or given[0] not in _ACTIONS:
        if len(given) > 1:
            raise CallError(f"expected one URL, or one of {', '.join(_ACTIONS)} with an id; found {given!r}")
        _list(Store(given[0], options) if given else None, cluster, as_json=as_json)
    elif not 2 <= len(given) <= (3 if given[0] == "status" else 2):
        raise CallError(f"dray jobs {given[0]}: expected the id of a job, found {given[1:]!r}; dray jobs lists them")
    elif len(given) == 3:
        _show(Store(given[2], options), given[1], follow=follow, as_json=as_json)
    else:
        _on_cluster(given[0], given[1], cluster, follow=follow, as_json=as_json)


def _list(store: Store | None, cluster: ClusterOptions, *, as_json: bool) -> None:
    if store is not None:
        found = jobs_in(store)
        facts, lines = [job.facts() for job in found], [_line(job.record) for job in found]
    else:
        details = [one for one in cluster.client().list_jobs() if one.submission_id]
        facts = [{"id": one.submission_id, "state": one.status.lower()} for one in details]
        lines = [f"{one.submission_id}  {one.status.lower()}" for one in details]
    typer.echo(json.dumps(facts, indent=1) if as_json else "\n".join(lines or ["no jobs"]))


def _show(store: Store, job_id: str, *, follow: bool, as_json: bool) -> None:
    last = ""
    while True:
        job = find_job(store, job_id)
        if (text := _text(job, as_json=as_json)) != last:
            typer.echo(last := text)
        if not follow or job.record.state != JobState.RUNNING:
            break
        time.sleep(POLL_S)
    if follow:
        raise typer.Exit(ExitCode.CLUSTER if job.record.exit_code is None else job.record.exit_code)


def _text(job: Job, *, as_json: bool) -> str:
    return json.dumps(job.facts()) if as_json else _line(job.record)


def _on_cluster(action: str, job_id: str, cluster: ClusterOptions, *, follow: bool, as_json: bool) -> None:
    client = cluster.client()
    if action == "stop":
        client.stop_job(job_id)
        typer.echo(f"{job_id} is asked to stop; the same dray submit continues it")
    elif follow:
        from dray.cluster.jobs.follow import follow as follow_job  # loads Ray

        raise typer.Exit(follow_job(client, job_id).exit_code)
    elif action == "logs":
        typer.echo(client.get_job_logs(job_id), nl=False)
    else:
        state = client.get_job_status(job_id).lower()
        typer.echo(json.dumps({"id": job_id, "state": state}) if as_json else f"{job_id}  {state}")


def _line(record: JobRecord) -> str:
    """Returns how far a job is, on one line."""
    parts = [f"{record.id}  {record.state}", f"{record.command} since {record.started}"]
    if record.stage is not None:
        of = "" if record.total is None else f" of {record.total:,}"
        parts.append(f"{record.stage}: {record.done:,}{of} {record.unit}, {record.num_bytes / 1e6:,.0f} MB")
        parts.append(f"{record.rate:,.1f} a second")
    if record.remaining_s is not None:
        parts.append(f"{record.remaining_s:,} s left")
    counts = (("retries", record.retries), ("nodes lost", record.lost_nodes), ("bad inputs", record.bad_inputs))
    parts += [f"{count:,} {name}" for name, count in counts if count]
    if record.exit_code is not None:
        parts.append(f"exit code {record.exit_code}")
    parts += [text for text in (record.waiting, record.error) if text]
    return ", ".join(parts)
