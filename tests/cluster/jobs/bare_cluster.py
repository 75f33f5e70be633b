"""A Ray cluster with a token, in a process of its own, whose Python has every package but dray."""

import os
import secrets
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HEAD = """
import tempfile
from pathlib import Path
from ray.cluster_utils import Cluster
free_ports = {"dashboard_port": 0, "dashboard_agent_listen_port": 0}
# A job finds its cluster by a file in Ray's temporary folder, which is that of all clusters if none is given.
own = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)
dashboard = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "temp_dir": own.name, **free_ports}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80 << 20, **dashboard})
Path(own.name, "ray_current_cluster").write_text(cluster.address)
nodes = [cluster.add_node(num_cpus=1, object_store_memory=80 << 20) for _ in range(2)]
print(cluster.head_node.webui_url, flush=True)
while (words := input()) != "end":
    if words == "kill":
        cluster.remove_node(nodes.pop(), allow_graceful=False)
    print(words, flush=True)
cluster.shutdown()
"""


@dataclass(frozen=True, slots=True)
class BareCluster:
    """A running one."""

    url: str
    environment: dict[str, str]  # of a client that has its token
    process: "subprocess.Popen[str]"

    def kill_node(self) -> None:
        """One of the two nodes dies."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("kill\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "kill\n"

    def dray(self, *words: object) -> "subprocess.CompletedProcess[str]":
        """Runs a command line of dray on this machine."""
        command = [sys.executable, "-m", "dray", *map(str, words)]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=240)


def python_without_dray(folder: Path) -> Path:
    """Makes an environment with links to all installed packages except dray; returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (target,) = folder.glob("lib/python*/site-packages")
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if "dray" not in path.name and path.suffix != ".pth":
            (target / path.name).symlink_to(path)
    return folder / "bin" / "python"


@contextmanager
def bare_cluster(folder: Path) -> Iterator[BareCluster]:
    """A head without CPUs and two nodes with one CPU each."""
    python = python_without_dray(folder / "venv")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = kept | token | {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    head = [str(python), "-c", HEAD]
    with subprocess.Popen(head, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield BareCluster(f"http://{process.stdout.readline().strip()}", kept | token, process)
        process.stdin.write("end\n")  # and the `with` waits for its end
