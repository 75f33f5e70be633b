"""What each Ray task of a command asks for: the options of build, reshard, index and compact."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Annotated

import typer

from dray.cluster.cli.options import parse_duration, parse_size, parse_storage_options
from dray.pipelines.running.resources import TaskResources, task_resources
from dray.pipelines.running.tasks import runs_in_process
from dray.shards.errors import CallError


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceOptions:
    """What each Ray task of a command asks for."""

    task_cpus: Annotated[float | None, typer.Option(help="CPUs of a Ray task.", show_default="1")] = None
    task_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Memory to reserve for a Ray task, such as 2Gi.", show_default="by the size of shards"
        ),
    ] = None
    task_resource: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=AMOUNT", help="Custom resource that a Ray task takes, as in fast=1; repeatable."),
    ] = None
    task_label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Label that a node must have to run tasks, as in ray.io/market-type=spot; repeatable.",
        ),
    ] = None
    task_timeout: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Time limit for one shard, such as 10m: its worker is then killed, and the shard tried again.",
            show_default="none",
        ),
    ] = None
    max_in_flight: Annotated[
        int | None,
        typer.Option(
            min=1, help="Maximum number of Ray tasks sent at a time.", show_default="twice what the cluster can run"
        ),
    ] = None

    @property
    def given(self) -> list[str]:
        """The options that were given."""
        return [f"--{one.name.replace('_', '-')}" for one in fields(self) if getattr(self, one.name) is not None]

    @contextmanager
    def on(self, address: str | None) -> Iterator[None]:
        """Ray tasks inside this context ask for it.

        Raises:
            CallError: An option was given without a cluster, or has another form.
        """
        if self.given and runs_in_process(address):
            raise CallError(f"{', '.join(self.given)}: of tasks on Ray: give --address as well, such as --address auto")
        with task_resources(self.resources()):
            yield

    def resources(self) -> TaskResources:
        """Returns the resources of a task."""
        amounts = parse_storage_options(self.task_resource, "--task-resource", "fast=1")
        if wrong := [amount for amount in amounts.values() if not re.fullmatch(r"\d+(\.\d+)?", amount)]:
            raise CallError(f"--task-resource: expected NAME=AMOUNT, such as fast=1, found the amount {wrong[0]!r}")
        return TaskResources(
            num_cpus=1 if self.task_cpus is None else self.task_cpus,
            memory_bytes=None if self.task_memory is None else parse_size("--task-memory", self.task_memory),
            max_in_flight=self.max_in_flight,
            resources={name: float(amount) for name, amount in amounts.items()},
            labels=parse_storage_options(self.task_label, "--task-label", "ray.io/market-type=spot"),
            timeout_s=None if self.task_timeout is None else parse_duration(self.task_timeout, "--task-timeout"),
        )
