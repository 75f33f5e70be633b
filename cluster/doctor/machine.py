"""Checks of the machine, or the container, in which this process runs."""

import importlib
import os
import platform
import resource
import secrets
from contextlib import suppress
from pathlib import Path

from dray.cluster.doctor.finding import Finding, bad, good, warning
from dray.cluster.doctor.running import Check
from dray.pipelines.running.node import identity

COMPILED = ("dray.loaders.batching.gather", "dray.shards.codecs.pickles.scan")
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  the place that POSIX systems agree on
FEW_OPEN_FILES, ENOUGH_OPEN_FILES = 1024, 4096  # Ray asks for the second
LEAST_SHARED_BYTES, ENOUGH_SHARED_BYTES = 64 << 20, 1 << 30  # the first is tried; loader workers send batches in it


def machine_checks(shared_memory: Path = SHARED_MEMORY) -> list[Check]:
    """Returns the checks of this machine.

    Args:
        shared_memory: The folder that is checked as the machine's shared memory.
    """
    return [
        Check("dray", lambda: [_dray()]),
        Check("cores", lambda: [_cores()]),
        Check("open files", lambda: [_open_files()]),
        Check("shared memory", lambda: [_shared_memory(shared_memory)]),
        Check("compiled modules", lambda: [_compiled()]),
    ]


def _dray() -> Finding:
    return good("dray", f"{identity()}, Python {platform.python_version()}, {platform.machine()}")


def _cores() -> Finding:
    """Compares the cores with the CPU time that a container may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = _cpu_limit()
    if limit is not None and limit < cores:
        return warning(
            "cores",
            f"{cores} cores, of which this container may use {limit:.1f}",
            f"raise the container's CPU limit, or give loaders at most {max(1, int(limit))} workers",
            cores=cores,
            cpu_limit=limit,
        )
    return good("cores", f"{cores} usable", cores=cores)


def _cpu_limit() -> float | None:
    """Returns the number of CPUs that the container's cgroup allows; None if there is no limit."""
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return int(quota) / int(period)  # "max": no limit
    with suppress(OSError, ValueError):
        folder = Path("/sys/fs/cgroup/cpu")
        quota_us = int((folder / "cpu.cfs_quota_us").read_text())
        return quota_us / int((folder / "cpu.cfs_period_us").read_text()) if quota_us > 0 else None
    return None


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = soft if soft != resource.RLIM_INFINITY else 1 << 30
    if limit >= ENOUGH_OPEN_FILES:
        return good("open files", f"at most {limit:,}", open_files=limit)
    can_raise = hard == resource.RLIM_INFINITY or hard >= ENOUGH_OPEN_FILES
    advice = (
        "ulimit -n 65536 in the shell that starts it"
        if can_raise
        else "raise the hard limit: LimitNOFILE of systemd, --ulimit nofile=65536 of Docker, /etc/security/limits.conf"
    )
    kind = bad if limit < FEW_OPEN_FILES else warning
    return kind("open files", f"at most {limit:,}; expected {ENOUGH_OPEN_FILES:,} or more", advice, open_files=limit)


def _shared_memory(folder: Path) -> Finding:
    """Takes 64 MiB of it for a moment: a limit of the container's memory does not show in the free space."""
    check = "shared memory"
    advice = "free it (ls -l /dev/shm), or enlarge it: --shm-size=8g of Docker, an emptyDir in Memory on Kubernetes"
    try:
        info = os.statvfs(folder)
        _take(folder)
    except OSError as exc:
        wanted = f"{LEAST_SHARED_BYTES >> 20} MiB in {folder} cannot be had: {exc.strerror}"
        return bad(check, f"{wanted}; loaders with workers, and Ray, need it", advice)
    free, size = info.f_bavail * info.f_frsize, info.f_blocks * info.f_frsize
    found = f"{free / 1e9:,.1f} of {size / 1e9:,.1f} GB free in {folder}"
    if free < ENOUGH_SHARED_BYTES:
        return warning(check, f"{found}; loaders with several workers may need more", advice, free_bytes=free)
    return good(check, found, free_bytes=free)


def _take(folder: Path) -> None:
    path = folder / f"dray-doctor-{secrets.token_hex(8)}"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.unlink(path)  # a crash leaves nothing
        _allocate(descriptor)
    finally:
        os.close(descriptor)


def _allocate(descriptor: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, LEAST_SHARED_BYTES)
        return
    for _ in range(LEAST_SHARED_BYTES >> 20):
        os.write(descriptor, bytes(1 << 20))


def _compiled() -> Finding:
    missing = {name: why for name in COMPILED if (why := _why_not(name))}
    if not missing:
        return good("compiled modules", "all can be imported")
    return warning(
        "compiled modules",
        "; ".join(f"{name}: {why}" for name, why in missing.items()) + ": Python does their work; loading is slower",
        "install a C compiler (gcc or clang) and Python's headers, then install dray again",
    )


def _why_not(module: str) -> str:
    """Returns why a module cannot be imported; "" if it can."""
    try:
        importlib.import_module(module)
    except ImportError as exc:
        return str(exc)
    return ""
