"""The house: packages, directions of imports, public names, and the same checkers everywhere."""

import ast
import importlib
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections import Counter
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from tests.support.mutants import LIST, read_mutants

ROOT = Path(__file__).parents[2]
ROOMS = ("shards", "pipelines", "loaders", "cluster")
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
COMPILED = SETTINGS["tool"]["setuptools"]["ext-modules"]
MAY_IMPORT = {
    "shards": {"shards"},
    "pipelines": {"shards", "pipelines"},
    "loaders": {"shards", "pipelines", "loaders"},
    "cluster": set(ROOMS),
}
PACKAGE_DIR = {ROOT / path: name for name, path in SETTINGS["tool"]["setuptools"]["package-dir"].items()}


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


def files_of(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def package_of(folder: Path) -> str:
    """The name that a folder's modules are imported by."""
    return PACKAGE_DIR.get(folder) or f"dray.{'.'.join(folder.relative_to(ROOT).parts)}"


def test_every_package_is_listed_and_every_listed_package_exists() -> None:
    """An unlisted package works in a checkout, but is missing from the wheel."""
    packages = {package_of(path.parent) for room in ROOMS for path in files_of(room)}
    assert packages == set(SETTINGS["tool"]["setuptools"]["packages"])


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room: str) -> None:
    """Cluster -> loaders -> pipelines -> shards, without exceptions."""
    for path in files_of(room):
        used = {name.split(".")[1] for name in imports_of(path) if name.startswith("dray.")}
        assert used <= MAY_IMPORT[room], path


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("dray.shards", ("ray", "torch")),
        ("dray.pipelines", ("ray", "torch")),
        ("dray.loaders", ("ray", "torch")),
        ("dray.shards.codecs.pickles.unpickle", ("ray", "lightning", "webdataset")),  # a task that packs needs it
    ],
)
def test_light_rooms_load_no_heavy_package(module: str, absent: tuple[str, ...]) -> None:
    """Importing them loads neither Ray nor torch, and what a packing task needs no Lightning."""
    code = f"import sys, {module}; print([name for name in {absent} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize("room", ROOMS)
def test_public_names_are_sorted_and_exist(room: str) -> None:
    """`__all__` is the truth about what a room offers."""
    module = importlib.import_module(f"dray.{room}")
    names = module.__all__
    assert names == sorted(names)
    assert all(hasattr(module, name) for name in names)  # those that are imported when they are asked for
    public = {
        name for name, value in vars(module).items() if not name.startswith("_") and not isinstance(value, type(ast))
    }
    assert public == set(names)


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mypy"],
        ["pyright", "--pythonpath", sys.executable],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_the_checkers_have_nothing_to_say(command: list[str]) -> None:
    """One place for them: here, so that everybody and CI run the same."""
    found = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def copy_of_source(folder: Path) -> Path:
    """Copy the checkout to `folder`, without what earlier builds left in it."""
    unwanted = shutil.ignore_patterns(".*", "build", "*.egg-info", "*.so")
    return Path(shutil.copytree(ROOT, folder, ignore=unwanted, symlinks=True))


def test_the_wheel_holds_every_module(tmp_path: Path) -> None:
    """What is installed is what lies in the rooms, and no common top-level name is claimed."""
    source = copy_of_source(tmp_path / "source")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", tmp_path, source]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("dray-*.whl")
    with zipfile.ZipFile(wheel) as content:
        names = {name for name in content.namelist() if not name.split("/")[0].endswith(".dist-info")}
    expected = {
        f"{package_of(path.parent).replace('.', '/')}/{path.name}"
        for room in ROOMS
        for path in (*files_of(room), *(ROOT / room).rglob("*.pyi"), *(ROOT / room).rglob("py.typed"))
    }
    expected |= {module["name"].replace(".", "/") + EXTENSION_SUFFIXES[0] for module in COMPILED}
    expected |= {
        f"{package.replace('.', '/')}/{name}"
        for package, names_of_data in SETTINGS["tool"]["setuptools"]["package-data"].items()
        if package != "*"
        for name in names_of_data
    }
    assert names == expected


def test_the_source_package_holds_what_is_compiled(tmp_path: Path) -> None:
    """Whoever installs from it needs the C files."""
    source = copy_of_source(tmp_path / "source")
    code = "import setuptools.build_meta as backend; backend.build_sdist('..')"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=source)
    (sdist,) = tmp_path.glob("dray-*.tar.gz")
    with tarfile.open(sdist) as content:
        names = {name.partition("/")[2] for name in content.getnames()}
    assert names >= {path for module in COMPILED for path in (*module["sources"], *module.get("depends", ()))}


MAX_FILES, MAX_LINES, MAX_BODY = 14, 350, 40
CODE = [path for room in (*ROOMS, "tests") for path in (*files_of(room), *sorted((ROOT / room).rglob("*.c")))]


def test_no_folder_holds_too_many_files() -> None:
    """Divide a folder that grows past the limit into rooms."""
    folders = Counter(path.parent for path in CODE if path.name != "__init__.py")
    assert not {str(folder.relative_to(ROOT)): count for folder, count in folders.items() if count > MAX_FILES}


def test_no_file_is_too_long() -> None:
    """Divide it, or give the reason near its top: `long: one translation unit`."""
    lines = {path: path.read_text().splitlines() for path in CODE}
    long = {path: len(found) for path, found in lines.items() if len(found) > MAX_LINES}
    assert not {str(path.relative_to(ROOT)): n for path, n in long.items() if not has_reason(lines[path][:50])}


def test_no_function_is_too_long() -> None:
    """Divide it, or give the reason beside it: `# long: a table of cases`. Docstring and signature do not count."""
    found = {}
    for path in CODE:
        if path.suffix != ".py":
            continue
        lines = path.read_text().splitlines()
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = (node.end_lineno or 0) - body_start(node) + 1
                if count > MAX_BODY and not has_reason(lines[node.lineno - 1 : node.end_lineno]):
                    found[f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"] = count
    assert not found


def body_start(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Number of the first line of a function's body after its docstring."""
    has_docstring = ast.get_docstring(node, clean=False) is not None
    return (node.body[0].end_lineno or 0) + 1 if has_docstring else node.body[0].lineno


def has_reason(lines: list[str]) -> bool:
    """Whether one of the lines says why something is long."""
    return any(re.search(r"\b[Ll]ong: \w+", line) for line in lines)


def test_the_list_of_mutants_is_up_to_date() -> None:
    """Each change still fits its file; one stale entry would keep the whole list from running."""
    assert read_mutants(LIST, "")
