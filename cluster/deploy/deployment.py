"""The options from which all manifests and scripts are rendered, and their checks."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from dray.cluster.jobs.identity import secrets_in
from dray.shards.errors import CallError

RUN = "run"  # `run script.py ARGUMENTS`: a Python program instead of a command of dray

_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*")
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")  # KubeRay appends to it, and a name has at most 63 characters
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KUBERNETES_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")
_SECRET_KEY = re.compile(r"[-._A-Za-z0-9]{1,253}")
_SECRET_VARIABLE = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|KEY|SAS", re.IGNORECASE)


class SecretRef(NamedTuple):
    """One value of a Kubernetes Secret."""

    name: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A Ray cluster, and the command that it runs if there is one.

    Raises:
        CallError: A field has a wrong form, or holds what looks like a secret.
    """

    image: str = ""
    """Reference of the container image that all nodes run; empty where there are no containers."""
    name: str = "dray"
    """Name of the cluster or job: at most 40 lower-case letters, digits and hyphens, the first one a letter."""
    workers: int = 2
    """Number of nodes that do the work; the maximum where the cluster grows and shrinks. At least 1."""
    min_workers: int | None = None
    """Number of workers that an autoscaled cluster keeps, at most `workers`; None: all for a program, else 0."""
    cpus: int = 4
    """CPUs of a worker. At least 1."""
    memory_gib: int = 16
    """Memory of a worker, in GiB. At least 2: Ray itself takes 1."""
    gpus: int = 0
    """GPUs of a worker."""
    words: tuple[str, ...] = ()
    """Arguments of `dray`, such as ("build", "s3://lab/raw", ...), or ("run", "script.py", ...); empty: no job."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of all nodes, none of them secret."""
    secrets: Mapping[str, SecretRef] = field(default_factory=dict)
    """Environment variable -> the value in a Kubernetes Secret that it takes."""
    service_account: str | None = None
    """Kubernetes service account of all nodes, whose cloud role they have; None: the namespace's default."""
    time_limit_s: int | None = None
    """Seconds after which the job is stopped; None: no limit."""
    venv: str | None = None
    """Folder of the virtual environment on the nodes; None: what is on PATH."""

    def __post_init__(self) -> None:
        _check_form("name", self.name, _NAME, "at most 40 of a-z, 0-9 and -, the first one a letter")
        if self.image:
            _check_form("image", self.image, _IMAGE, "a reference such as registry.example.com/lab/dray:0.1.0")
        if self.service_account is not None:
            _check_form("service_account", self.service_account, _KUBERNETES_NAME, "the name of a Kubernetes object")
        _check_at_least("workers", self.workers, 1)
        _check_at_least("cpus", self.cpus, 1)
        _check_at_least("memory_gib", self.memory_gib, 2)
        _check_at_least("gpus", self.gpus, 0)
        if self.time_limit_s is not None:
            _check_at_least("time_limit_s", self.time_limit_s, 1)
        if not 0 <= self.kept_workers <= self.workers:
            raise CallError(f"min_workers={self.min_workers}: expected 0 to {self.workers}, the number of workers")
        for text in (*self.words, *self.env.values(), self.venv or ""):
            _check_text(text)
        _check_no_secret(self.words)
        self._check_variables()

    @property
    def is_program(self) -> bool:
        """Whether the job is a Python program, such as a training, and no command of dray."""
        return self.words[:1] == (RUN,)

    @property
    def kept_workers(self) -> int:
        """Number of workers that exist also without work. A training needs all at once."""
        if self.min_workers is not None:
            return self.min_workers
        return self.workers if self.is_program else 0

    @property
    def command(self) -> tuple[str, ...]:
        """The words of the command line that does the work, and keeps a record of it beside the dataset."""
        return ("python", "-u", "-m", "dray.cluster.jobs.entry", self.name, "--", *self.words)

    def _check_variables(self) -> None:
        for name in (*self.env, *self.secrets):
            _check_form("env", name, _VARIABLE, "the name of an environment variable")
        for name in self.env:
            if _SECRET_VARIABLE.search(name):
                raise CallError(f"env={{{name!r}: ...}}: looks like a secret, which anyone could read in a manifest")
        for name, key in self.secrets.values():
            _check_form("secret", name, _KUBERNETES_NAME, "the name of a Kubernetes Secret")
            _check_form("secret", key, _SECRET_KEY, "a key in a Kubernetes Secret")


def _check_form(keyword: str, found: str, form: re.Pattern[str], expected: str) -> None:
    if not form.fullmatch(found):
        raise CallError(f"{keyword}={found!r}: expected {expected}")


def _check_at_least(keyword: str, found: int, least: int) -> None:
    if found < least:
        raise CallError(f"{keyword}={found}: expected at least {least}")


def _check_text(text: str) -> None:
    """Check that a text can be an argument or a variable of a process, and be written as UTF-8."""
    if "\0" in text:
        raise CallError(f"{text!r}: expected text without null bytes")
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise CallError(f"{text!r}: expected UTF-8 text") from exc


def _check_no_secret(words: tuple[str, ...]) -> None:
    if problems := secrets_in(words):
        raise CallError(
            f"what looks like a secret is in the command ({'; '.join(problems)}), and Ray, Kubernetes and Slurm show "
            "it to others: keep secrets in the environment of the nodes, or give the nodes a role"
        )
