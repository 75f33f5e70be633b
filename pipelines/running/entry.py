"""The function that Ray runs on a node, even if dray is not installed there."""

from collections.abc import Callable
from typing import Any

Entry = Callable[..., tuple[str, str, Any]]


def make_entry() -> Entry:
    """Returns a function that Ray sends by value, because it is nested: a node without dray can run it and say so."""

    def run_on_node(wanted: str, body: bytes, stores: bytes, tasks: bytes, *blocks: Any) -> tuple[str, str, Any]:
        """Returns (node, what is wrong with its dray or "", outcome of the tasks); without tasks it only checks."""
        import platform

        import ray

        node_id = ray.get_runtime_context().get_node_id()
        node = f"{platform.node()} ({ray.util.get_node_ip_address()}, id {node_id[:8]})"
        try:
            from dray.pipelines.running.node import identity, is_fit
            from dray.pipelines.running.worker import run_group
        except Exception as exc:  # noqa: BLE001  a broken install may raise anything
            return node, f"cannot import dray ({type(exc).__name__}: {exc})", None
        if not is_fit(wanted):
            return node, f"has {identity()}", None
        return node, "", run_group(body, stores, tasks, *blocks) if tasks else None

    return run_on_node
