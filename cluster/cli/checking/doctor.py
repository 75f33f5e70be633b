"""`dray doctor`: check this machine, a store and a Ray cluster before work is given to them."""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated

import typer
from rich.console import Console

from dray.cluster.cli.options import StorageOptionList, parse_storage_options
from dray.cluster.doctor.cluster import cluster_checks
from dray.cluster.doctor.finding import Finding, Level
from dray.cluster.doctor.machine import machine_checks
from dray.cluster.doctor.report import Report, Subject
from dray.cluster.doctor.running import Check, Stuck, run_checks
from dray.cluster.doctor.store import StoreChecks, open_store
from dray.shards.messages import counted

_STYLES = {Level.GOOD: "green", Level.WARNING: "yellow", Level.BAD: "bold red", Level.UNCHECKED: "dim"}
_CLEAN_UP_S = 20.0  # time limit for removing temporary objects after an interrupt


def doctor(
    url: Annotated[
        str | None,
        typer.Argument(
            metavar="[URL]",
            help="Folder to check, as inputs and datasets have it: a path or a URL such as s3://bucket/shards.",
            show_default=False,
        ),
    ] = None,
    *,
    address: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster to check: the URL of its dashboard, such as http://head:8265, or HOST:PORT.",
            show_default="none",
        ),
    ] = None,
    speed: Annotated[
        bool, typer.Option(help="Measure latency and bandwidth of the store: moves up to 100 MB in each direction.")
    ] = True,
    timeout: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="Time limit for the store, and another for the cluster.")
    ] = 90,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: one object.")] = False,
    storage_option: StorageOptionList = None,
) -> None:
    """Check this machine, a store and a Ray cluster: what was found, is it good, and what to do.

    [bold]This machine[/]: dray, cores, open files, shared memory, compiled modules.

    [bold]The store at URL[/]: which kind of credentials is in use; can it list, create, read, create without
    overwriting, delete; does its clock agree with this machine's; latency; bandwidth of one stream and of many.
    Temporary objects in a hidden folder below URL are deleted at the end.

    [bold]The cluster at --address[/]: does it answer, does it ask for a token; on each node: versions of Ray and dray,
    open files, shared memory, compiled modules; can each node read and write URL. Nothing secret is sent by a job.

    [bold]Exit codes[/]: 0 if nothing is bad; 3 if this machine or the store is unfit, 4 if the cluster is.

    [bold]Examples[/]

    [cyan]dray doctor[/]

    [cyan]dray doctor s3://lab/digits --storage-option region=eu-west-1[/]

    [cyan]dray doctor s3://lab/digits --address http://head:8265[/]
    """
    options = parse_storage_options(storage_option)
    run = _Run(timeout, silent=as_json)
    run.check(Subject.MACHINE, "this machine", machine_checks())
    if url is not None:
        _check_store(run, url, options, speed=speed)
    if address is not None:
        run.check(Subject.CLUSTER, address, cluster_checks(address, url, options, timeout))
    typer.echo(json.dumps(run.report.as_json(), indent=1) if as_json else _summary(run.report))
    _exit(run.report)


def _check_store(run: "_Run", url: str, options: dict[str, str], *, speed: bool) -> None:
    """Check a store; its temporary objects are deleted also after an interrupt and after a check that hangs."""
    found = StoreChecks(open_store(url, options), options, speed=speed)
    try:
        run.check(Subject.STORE, found.store.url, found.checks())
    finally:
        if not found.is_clean:
            run.check(Subject.STORE, "", [found.clean_up()], _CLEAN_UP_S)


class _Run:
    """A report in the making, which is also printed.

    Args:
        timeout_s: Time limit of the checks of one subject.
        silent: Whether to print nothing.
    """

    def __init__(self, timeout_s: float, *, silent: bool) -> None:
        self.report = Report()
        self._timeout_s = timeout_s
        self._console = None if silent else Console(highlight=False, soft_wrap=True)

    def check(self, subject: Subject, title: str, checks: Sequence[Check], timeout_s: float | None = None) -> None:
        """Make checks under a title."""
        if self._console and title:
            self._console.print(title, markup=False, style="bold")
        try:
            for finding in run_checks(checks, timeout_s or self._timeout_s):
                self.report.findings.append((subject, finding))
                if self._console:
                    _print_finding(self._console, finding)
        except Stuck:
            self.report.is_stuck = True


def _print_finding(console: Console, finding: Finding) -> None:
    console.print(f"  [{_STYLES[finding.level]}]{finding.level:9}[/] {finding.check:24} ", end="")
    console.print(finding.found, markup=False)
    if finding.advice:
        console.print(f"{'':36} -> {finding.advice}", markup=False)


def _summary(report: Report) -> str:
    bad, warnings = report.count(Level.BAD), report.count(Level.WARNING)
    parts = [counted(bad, "trouble")] if bad else []
    parts += [counted(warnings, "warning")] if warnings else []
    return ", ".join(parts) if parts else "everything is good"


def _exit(report: Report) -> None:
    """Exit with the report's code, also if a check that hangs keeps a thread alive."""
    if report.is_stuck:
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(report.exit_code)
    raise typer.Exit(report.exit_code)
