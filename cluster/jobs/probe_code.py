"""Prints what a worker has. A job runs it as text, with Ray alone: dray and its packages may be missing there."""

import json
import logging
import os
import sys
from typing import Any

MARK = "dray-probe:"  # precedes the report in the job's log


def look(names: list[str]) -> dict[str, Any]:
    """Returns the worker's Python, platform and Ray, its dray, and which of the packages are missing."""
    import importlib.util
    import sysconfig

    import ray

    found = None
    try:
        import dray.cluster.jobs.entry  # noqa: F401
        from dray.pipelines.running.node import identity

        found = identity()
    except Exception:  # noqa: BLE001, S110  none, an older one, or one whose packages are missing
        pass
    return {
        "python": ".".join(map(str, sys.version_info[:3])),
        "executable": sys.executable,
        "platform": sysconfig.get_platform(),
        "extension": sysconfig.get_config_var("EXT_SUFFIX"),
        "ray": ray.__version__,
        "dray": found,
        "missing": [name for name in names if importlib.util.find_spec(name) is None],
    }


def main() -> None:
    """Print the report of a worker; of the head if no CPU is free in time."""
    import ray

    names, timeout_s = json.loads(sys.argv[1]), float(sys.argv[2])
    ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    task: Any = ray.remote(max_retries=0)(look)
    asked = task.options(num_cpus=1).remote(names)
    ready, _ = ray.wait([asked], timeout=timeout_s)
    answer: Any = asked if ready else task.options(num_cpus=0).remote(names)
    found: Any = ray.get(answer)
    found["is_worker"] = bool(ready)
    if not os.path.exists(found["executable"]):  # another image than the head's, where the job's driver runs
        found["executable"] = sys.executable
    print(MARK + json.dumps(found), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
