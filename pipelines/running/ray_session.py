"""One connection to Ray, shared by several builds: starting or joining a cluster takes seconds."""

import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from dray.shards.errors import CallError, ClusterError

IN_PROCESS = "none"
CONNECT_TIMEOUT_S = 10


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Every build in this context runs on one cluster; a connection that it opened is closed at its end.

    Args:
        address: The address of a running cluster; `local` starts one on this machine; `none` or None connects to none.

    Raises:
        CallError: It is a dashboard's address, which takes jobs but no driver's connection.
        ClusterError: No cluster answers.
    """
    if address in (None, IN_PROCESS):
        yield
        return
    import ray  # slow to import

    if ray.is_initialized():
        yield
        return
    check_address(address)
    if address == "local":  # it warns about a token that asks for no action
        logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    dashboard = False if address == "local" else None  # None: Ray's own choice
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, include_dashboard=dashboard, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError) as exc:
        raise ClusterError(f"cannot connect to Ray at {address}: {exc}") from exc
    if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray installs one that prints a C++ stack
    try:
        yield
    finally:
        ray.shutdown()


def check_address(address: str) -> None:
    """Check that an address answers, at once: Ray itself would retry for minutes.

    Raises:
        CallError: It is a dashboard's.
        ClusterError: Nothing answers.
    """
    if address.startswith("http"):
        raise CallError(
            f"address={address!r}: expected HOST:PORT of a cluster (often port 6379), local or none; {address} looks "
            f"like a dashboard: dray submit build ... --address {address}"
        )
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():  # local, auto
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
    except OSError as exc:
        raise ClusterError(f"address={address!r}: no Ray cluster answers there ({exc}); is it running?") from exc
