"""Asks each node of a Ray cluster what it has; a program of its own, run as a job or as a child process.

It imports only the standard library and Ray, because it also runs where dray is missing. It reads a request from a file
or standard input, and prints one line of JSON after a mark.
"""

import json
import logging
import sys
from typing import Any

MARK = "dray-doctor-answer: "


def ask_nodes(request: dict[str, Any]) -> dict[str, Any]:
    """Returns the answer of each node that can run tasks: `nodes`, `silent` (names), `driver` (findings)."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.init(address=request["address"], log_to_driver=False, logging_level=logging.ERROR)
    seen, findings = open_folder(request)
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    tasks = {}
    remote = ray.remote(examine_node)
    for node in nodes:
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": here, "name": "dray.doctor"}
        tasks[remote.options(**options).remote(request, seen.folder if seen else None)] = node
    done, late = ray.wait(list(tasks), num_returns=len(tasks), timeout=request["timeout_s"]) if tasks else ([], [])
    answers = [answer_of(ray, reference, tasks[reference]) for reference in done]
    if seen is not None:
        findings += seen.close()
    return {"nodes": answers, "silent": [name_of(tasks[one]) for one in late], "driver": findings}


def open_folder(request: dict[str, Any]) -> tuple[Any, list[dict[str, Any]]]:
    """Returns what was written for the nodes to read, if this process has dray and a URL was given, and findings."""
    if request["url"] is None:
        return None, []
    try:
        from dray.cluster.doctor.on_node import Witness
    except Exception:  # noqa: BLE001  a broken install may raise anything; the nodes report it
        return None, []
    return Witness.write(request)


def answer_of(ray: Any, reference: Any, node: dict[str, Any]) -> dict[str, Any]:
    """Returns the answer of one node, or that it failed."""
    try:
        answer: dict[str, Any] = ray.get(reference)
    except Exception as exc:  # noqa: BLE001  the node died, or its worker did not start
        return {"node": name_of(node), "error": f"{type(exc).__name__}: {str(exc).splitlines()[0]}"}
    return answer


def name_of(node: dict[str, Any]) -> str:
    """Returns the name of a node as its own tasks say it."""
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, id {node['NodeID'][:8]})"


def examine_node(request: dict[str, Any], folder: str | None) -> dict[str, Any]:
    """Returns what a node has; runs there, sent by value."""
    import platform

    import ray

    node_id = ray.get_runtime_context().get_node_id()
    node = f"{platform.node()} ({ray.util.get_node_ip_address()}, id {node_id[:8]})"
    answer = {"node": node, "ray": ray.__version__, "python": platform.python_version(), "dray": "", "findings": []}
    try:
        from dray.pipelines.running.node import identity, is_fit
    except Exception as exc:  # noqa: BLE001  a broken install may raise anything
        return {**answer, "dray": f"cannot import dray ({type(exc).__name__}: {exc})", "lacks": True}
    if not is_fit(request["identity"]):
        return {**answer, "dray": f"has {identity()}"}
    from dray.cluster.doctor.on_node import examine

    return {**answer, "findings": examine(request, folder)}


def main() -> None:
    """Print the answer to the request that a file, or standard input, holds."""
    if sys.argv[1] == "-":
        request = json.load(sys.stdin)
    else:
        with open(sys.argv[1]) as file:
            request = json.load(file)
    print(MARK + json.dumps(ask_nodes(request)), flush=True)  # noqa: T201  the answer


if __name__ == "__main__":
    main()
