"""Private names of other packages are used through a room's compat.py alone, and are where it expects them."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

from tests.repo.test_house import ROOMS, ROOT, files_of

PICKLES = "shards/codecs/pickles/compat.py"
LOADERS = "loaders/compat.py"
RAY_DATA = "pipelines/ray_data/compat.py"
RAY_JOBS = "cluster/jobs/client.py"
DOCUMENTED = {"os._exit"}  # part of the public interface in spite of its name
PRIVATE = [
    (PICKLES, "pickle", "_Unpickler"),
    (PICKLES, "copyreg", "_reconstructor"),
    (PICKLES, "_compat_pickle", "IMPORT_MAPPING"),
    (PICKLES, "_compat_pickle", "NAME_MAPPING"),
    (PICKLES, "torch._utils", "_rebuild_tensor_v2"),
    (PICKLES, "torch._utils", "_rebuild_tensor_v3"),
    (PICKLES, "torch._utils", "_rebuild_parameter"),
    (PICKLES, "torch.storage", "_load_from_bytes"),
    (LOADERS, "torch", "UntypedStorage._new_shared"),
    (LOADERS, "torch.utils.data._utils.pin_memory", "pin_memory"),
    (LOADERS, "torch.utils.data._utils.signal_handling", "_remove_worker_pids"),
    (LOADERS, "torch.utils.data.dataloader", "DataLoader._get_iterator"),
    (LOADERS, "torch.utils.data.dataloader", "_BaseDataLoaderIter"),
    (LOADERS, "torch.utils.data.dataloader", "_MultiProcessingDataLoaderIter._try_get_data"),
    (LOADERS, "torch.utils.data.dataloader", "_MultiProcessingDataLoaderIter._shutdown_workers"),
    (LOADERS, "concurrent.futures.thread", "_threads_queues"),
    (LOADERS, "sys", "_current_frames"),
    (RAY_DATA, "ray.data._internal.logical.interfaces", "LogicalOperator._apply_transform"),
    (RAY_DATA, "ray.data._internal.logical.interfaces", "LogicalPlan"),
    (RAY_DATA, "ray.data._internal.logical.interfaces", "Rule"),
    (RAY_DATA, "ray.data._internal.logical.operators", "Limit"),
    (RAY_DATA, "ray.data._internal.logical.operators", "Read"),
    (RAY_DATA, "ray.data._internal.logical.optimizers", "get_logical_ruleset"),
    (RAY_DATA, "ray.data._internal.logical.rules", "LimitPushdownRule"),
    (RAY_JOBS, "ray.job_submission", "JobSubmissionClient._do_request"),
    (RAY_JOBS, "ray.job_submission", "JobSubmissionClient._raise_error"),
]


@pytest.mark.parametrize(("file", "module", "name"), PRIVATE)
def test_private_names_have_not_moved(file: str, module: str, name: str) -> None:
    """If this fails after an upgrade, the named file needs the new place of the name."""
    found = importlib.import_module(module)
    for part in name.split("."):
        assert hasattr(found, part), f"{module}.{name} has moved: correct {file}"
        found = getattr(found, part)


def test_private_attributes_have_not_moved() -> None:
    """Attributes of the standard unpickler and of torch's iterator that subclasses use."""
    unpickler = importlib.import_module("pickle")._Unpickler
    missing = {"dispatch", "find_class", "persistent_load", "pop_mark", "load_build"} - set(dir(unpickler))
    assert not missing, f"pickle._Unpickler lost {missing}: correct shards/codecs/pickles/machine.py"
    source = inspect.getsource(importlib.import_module("torch.utils.data.dataloader")._MultiProcessingDataLoaderIter)
    missing = {name for name in ("_workers", "_task_info", "_rcvd_idx", "_worker_pids_set") if name not in source}
    assert not missing, f"torch's iterator over workers lost {missing}: correct loaders/workers/processes.py"


def is_private(dotted: str) -> bool:
    """Whether any part of a dotted name begins with one underscore."""
    return any(part.startswith("_") and not part.startswith("__") for part in dotted.split("."))


def private_uses(path: Path) -> list[str]:
    """Private names that a file imports from, or reads from, a module outside dray."""
    nodes, found, modules = list(ast.walk(ast.parse(path.read_text()))), [], set()
    for node in nodes:
        if isinstance(node, ast.Import):
            modules |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
            found += [alias.name for alias in node.names if is_private(alias.name)]
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("dray"):
            found += [name for alias in node.names if is_private(name := f"{node.module}.{alias.name}")]
    for node in nodes:
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            used = ast.unparse(node)
            found += [used] if used.split(".")[0] in modules and used not in DOCUMENTED else []
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_private_names_are_in_compat_alone(room: str) -> None:
    """One place to look when a new version of a package breaks dray."""
    found = {str(path.relative_to(ROOT)): private_uses(path) for path in files_of(room) if path.name != "compat.py"}
    assert not {path: names for path, names in found.items() if names}
