"""What the nodes of a cluster answered, as a few findings: one for each check, whatever the number of nodes."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dray.cluster.doctor.finding import Finding, Level, bad, good, warning
from dray.pipelines.running.node import identity
from dray.shards.messages import counted

MOST_NAMED = 5  # nodes that a finding names
_ORDER = (Level.BAD, Level.WARNING, Level.UNCHECKED, Level.GOOD)


def findings_of(answer: Mapping[str, Any], ray_version: str, *, can_ship: bool) -> Iterator[Finding]:
    """Yields findings about all nodes.

    Args:
        answer: The answer of `node_probe`.
        ray_version: Ray's version on this machine.
        can_ship: Whether dray travels with jobs to this cluster: `dray submit`.
    """
    nodes = answer["nodes"]
    failed = [*answer["silent"], *(f"{node['node']}: {node['error']}" for node in nodes if "error" in node)]
    answered = [node for node in nodes if "error" not in node]
    if failed:
        advice = "look at ray status and at the node's raylet.log; restart the node"
        yield bad("nodes", f"{counted(len(failed), 'node')} gave no answer: {_named(failed)}", advice)
    elif not nodes:
        yield warning("nodes", "no node offers CPUs", "start one, unless the cluster adds nodes by itself")
    else:
        yield good("nodes", f"{counted(len(nodes), 'node')} answered", nodes=len(nodes))
    if answered:
        yield _ray(answered, ray_version)
        yield _dray(answered, can_ship=can_ship)
    yield from (Finding.from_json(fields) for fields in answer["driver"])
    yield from _by_check(answered)


def _ray(nodes: Sequence[Mapping[str, Any]], own: str) -> Finding:
    found = sorted({f"Ray {node['ray']}, Python {node['python']}" for node in nodes})
    if len(found) > 1:
        groups = _groups((node["node"], f"Ray {node['ray']}, Python {node['python']}") for node in nodes)
        return bad("Ray on nodes", f"the nodes differ: {groups}", "install the same Ray and Python on all nodes")
    if nodes[0]["ray"] != own:
        advice = f"pip install 'ray=={nodes[0]['ray']}' here: a driver must have the cluster's version, a job need not"
        return warning("Ray on nodes", f"{found[0]}; this machine has Ray {own}", advice)
    return good("Ray on nodes", found[0])


def _dray(nodes: Sequence[Mapping[str, Any]], *, can_ship: bool) -> Finding:
    unfit = [(node["node"], node["dray"]) for node in nodes if node["dray"]]
    if not unfit:
        return good("dray on nodes", f"the same as here on {counted(len(nodes), 'node')}")
    found = f"{counted(len(unfit), 'node')} of {len(nodes)}: {_groups(unfit)}; this machine has {identity()}"
    if can_ship and len(unfit) == len(nodes) and all(node.get("lacks") for node in nodes):
        return warning("dray on nodes", found, "none is needed: dray submit sends it along (--ship auto)")
    return bad(
        "dray on nodes", found, "install the same dray on all nodes, or send it along: dray submit --ship always"
    )


def _by_check(nodes: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Yields the worst finding of each check, with the nodes that made it."""
    by_check: defaultdict[str, list[tuple[str, Finding]]] = defaultdict(list)
    for node in nodes:
        for fields in node["findings"]:
            finding = Finding.from_json(fields)
            by_check[finding.check].append((node["node"], finding))
    for check, found in by_check.items():
        level = next(level for level in _ORDER if any(finding.level is level for _, finding in found))
        worst = [(node, finding.found) for node, finding in found if finding.level is level]
        advice = next(finding.advice for _, finding in found if finding.level is level)
        yield Finding(f"{check}, nodes" if "node" not in check else check, level, _summary(worst, len(found)), advice)


def _summary(found: Sequence[tuple[str, str]], total: int) -> str:
    """Returns one text for equal findings of all nodes, else the nodes of each text."""
    texts = {text for _, text in found}
    if len(found) == total and len(texts) == 1:
        return f"{texts.pop()} (on {counted(total, 'node')})"
    return f"{counted(len(found), 'node')} of {total}: {_groups(found)}"


def _groups(found: Any) -> str:
    """Returns each distinct text with the nodes that said it."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for node, text in found:
        groups[text].append(node)
    return "; ".join(f"{_named(nodes)} {text}" for text, nodes in groups.items())


def _named(nodes: Sequence[str]) -> str:
    more = f" and {len(nodes) - MOST_NAMED} more" if len(nodes) > MOST_NAMED else ""
    return ", ".join(nodes[:MOST_NAMED]) + more
