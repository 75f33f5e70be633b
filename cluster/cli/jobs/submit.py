"""`dray submit`: a command of dray, or a script, as a job on a Ray cluster."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dray.cluster.cli.exits import ExitCode
from dray.cluster.cli.options import ClusterOptions
from dray.cluster.jobs.identity import JobName, secrets_in
from dray.cluster.jobs.ship import Ship
from dray.cluster.jobs.user_code import UserCode, choose
from dray.pipelines.progress import say
from dray.shards.errors import CallError

if TYPE_CHECKING:
    from dray.cluster.jobs.client import JobClient
    from dray.cluster.jobs.submit import Attempts, Job

COMMANDS = ("build", "index", "reshard", "compact", "verify", "gc")
SCRIPT = "run"
CONTEXT_SETTINGS = {"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]}
"""Options that are not those of `submit` are the command's."""

_PLACES = (
    "source",
    "destination",
    "url",
    "names",
    "into",
    "unpack_to",
    "data_url",
    "record",
)  # parameters that name files
_IN_CODE = ("names",)  # of these, those that may be a file that travels


def submit(
    command: Annotated[
        list[str],
        typer.Argument(
            metavar="COMMAND...",
            help="A command of dray with its arguments: build, index, reshard, compact, verify or gc; or "
            "[bold]run[/] SCRIPT.py with its own.",
        ),
    ],
    cluster: ClusterOptions,
    *,
    ship: Annotated[
        Ship,
        typer.Option(
            help="Whether dray's package travels: [bold]auto[/] if the cluster has another version or none, "
            "[bold]always[/], or [bold]never[/]. The packages that dray needs must be installed on the nodes."
        ),
    ] = Ship.auto,
    with_code: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="DIR",
            help="Folder of your own code that the job imports, as --transform does; repeatable. .git, .env, keys, "
            "credentials and files that git ignores stay here; the files are listed before they are sent.",
        ),
    ] = None,
    record: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Folder for the record of progress that [bold]dray jobs URL[/] reads: a script has none without it.",
            show_default="beside the dataset",
        ),
    ] = None,
    no_follow: Annotated[
        bool, typer.Option("--no-follow", help="Print the id of the job and return, instead of following it.")
    ] = False,
    stop_on_interrupt: Annotated[
        bool, typer.Option("--stop-on-interrupt", help="Stop the job on Ctrl-C, instead of leaving it running.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Run a job that is done once more: a build then packs what has changed.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check the command, and list the files that would be sent.")
    ] = False,
) -> None:
    r"""Run a command of dray, or a script, as a job on a Ray cluster.

    The job runs on without this machine. The same command line is the same job: while it runs, submitting it again
    follows it; if it failed, was stopped or got lost, it is resumed, and does only what is missing.

    The exit code is that of the job's command. Nothing of this machine's environment is sent: give the nodes their
    credentials by an instance role, files, or Kubernetes secrets.

    [bold]Examples[/]

    [cyan]dray submit build s3://lab/raw s3://lab/shards --suffix tensor.pyd --address http://head:8265[/]

    With a transform in the folder lab/, which travels:

    [cyan]dray submit --with . build s3://lab/raw s3://lab/embedded --suffix jpg --transform lab.embed:Embed \
      --transform-version 3 --address http://localhost:8265[/]

    A script with Ray Data:

    [cyan]dray submit run prepare.py --record s3://lab/prepared --address http://head:8265[/]
    """
    code = [choose(folder) for folder in with_code or ()]
    job = _job(command, record, ship, code)
    from dray.cluster.jobs.submit import Attempts, show_code, start  # loads Ray

    show_code(code, job.script)
    if dry_run:
        typer.echo(f"{job.name.text}: nothing was submitted")
        return
    client = cluster.client()
    found = Attempts.of(client, job.name)
    if found.is_done and not again:
        _say_done(found)
        return
    if found.runs and found.last is not None:
        submission_id = found.last.submission_id or ""
        say(f"{submission_id} runs already: following it")
    else:
        _say_resumed(found)
        submission_id = start(client, job, found.next_number)
        say(f"{submission_id} is submitted to {client.get_address()}")
    if no_follow:
        typer.echo(submission_id)
        return
    _follow(client, submission_id, stops=stop_on_interrupt)


def _job(words: Sequence[str], record: str | None, ship: Ship, code: Sequence[UserCode]) -> "Job":
    """Returns the job of a command line.

    Raises:
        CallError: It is no command that runs as a job, would show a secret, or names files that no node can see.
    """
    from dray.cluster.jobs.submit import Job

    if problems := secrets_in((*words, record or "")):
        raise CallError(
            f"{'; '.join(problems)}: Ray's job list shows the command line to everybody on the cluster; give the nodes "
            "their credentials by an instance role, files on the nodes, or Kubernetes secrets"
        )
    name, *arguments = words
    _check_places({"record": record}, ())
    if name == SCRIPT:
        script = _script(arguments)
        identity = JobName.of(SCRIPT, {"words": arguments}, script.read_bytes())
        line = [SCRIPT, script.name, *arguments[1:]]
        return Job(name=identity, words=line, record=record, ship=ship, code=code, script=script)
    if name not in COMMANDS:
        raise CallError(f"{name!r}: expected one of {', '.join(COMMANDS)}, or run SCRIPT.py")
    params = _params(name, arguments)
    _check_places(params, code)
    return Job(name=JobName.of(name, params), words=words, record=record, ship=ship, code=code)


def _script(arguments: Sequence[str]) -> Path:
    if not arguments or not Path(arguments[0]).is_file():
        raise CallError(f"run {' '.join(arguments[:1])}: expected a Python script on this machine")
    return Path(arguments[0])


def _params(name: str, arguments: Sequence[str]) -> Mapping[str, Any]:
    """Returns the parameters of a command line of dray; one that it does not take ends as the command itself would."""
    from dray.cluster.cli.app import command_line

    group = command_line()
    context: Any = group.make_context("dray", [name, *arguments], resilient_parsing=True)
    command = group.get_command(context, name)
    found: Any = command.make_context(name, list(arguments)) if command else context
    return dict(found.params)


def _check_places(params: Mapping[str, Any], code: Sequence[UserCode]) -> None:
    """Check that the nodes can see the files that a command names; warn of paths that all of them must see."""
    sent = {name for each in code for name in each.sent}
    for name in _PLACES:
        value = params.get(name)
        if not isinstance(value, str) or (name in _IN_CODE and value in sent):
            continue
        if value == "-" and name in _IN_CODE:
            raise CallError("names='-': standard input does not travel: write the names to a file that the nodes see")
        if value.startswith("memory://"):
            raise CallError(f"{value!r} is in the memory of one process: the nodes need a URL or a shared folder")
        path = value.removeprefix("file://")
        if "://" in path:
            continue
        if not os.path.isabs(path):
            raise CallError(
                f"{value!r}: a job runs in another folder, on other machines: give a URL such as s3://lab/shards, or "
                "the absolute path of a folder that every node sees"
            )
        say(f"warning: every node of the cluster must see {path}: a shared file system, not a folder of this machine")


def _say_done(found: "Attempts") -> None:
    last = found.last
    typer.echo(f"{last.submission_id if last else ''} is done; --again runs it once more")


def _say_resumed(found: "Attempts") -> None:
    last = found.last
    if last is not None:
        say(f"{last.submission_id} {last.status.lower()}: attempt {found.next_number} does what is missing")


def _follow(client: "JobClient", submission_id: str, *, stops: bool) -> None:
    """Follow a job; exit with the code of its command, or with 130 after Ctrl-C."""
    from dray.cluster.jobs.follow import follow, stop

    try:
        end = follow(client, submission_id)
    except KeyboardInterrupt:
        if stops:
            say(f"stopping {submission_id}")
            stop(client, submission_id)
            say(f"{submission_id} is stopped; what it has stored is kept: the same command resumes it")
        else:
            say(f"{submission_id} goes on: the same command follows it again, and so does")
            say(f"  dray jobs logs -f {submission_id} --address {client.get_address()}")
            say(f"  dray jobs stop {submission_id} --address {client.get_address()}  stops it")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    say(f"{submission_id} {end.status.lower()}" + (f" with exit code {end.exit_code}" if end.exit_code else ""))
    raise typer.Exit(end.exit_code)
