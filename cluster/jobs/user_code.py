"""The files of a folder that travel with a job: code, and neither secrets nor what git ignores."""

import fnmatch
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from dray.shards.errors import CallError

MAX_BYTES = 100 << 20  # what the cluster's dashboard accepts in one request
_LEFT_OUT_DIRS = {
    ".git",
    ".hg",
    ".svn",
    ".ssh",
    ".aws",
    ".azure",
    ".gcloud",
    ".kube",
    ".docker",
    ".gnupg",
    ".venv",
    "venv",
}
_LEFT_OUT_DIRS |= {"__pycache__", "node_modules", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".ipynb_checkpoints"}
_LEFT_OUT = {".gitignore", ".gitattributes", ".rayignore", ".gitmodules"}
_SECRETS = (
    *(".env", ".env.*", "*.env", ".envrc", ".netrc", "_netrc", ".npmrc", ".pypirc", ".pgpass", ".git-credentials"),
    *("*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.ppk", "*.asc", "*.gpg", "*.p8"),
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*credential*", "*secret*", "*service*account*.json"),
    *("kubeconfig*", "*.kubeconfig", "*.tfstate*", "*.tfvars", "auth_token", "*.token", "htpasswd", ".htpasswd"),
)
_ALWAYS_SECRETS = ("credentials.*", "secrets.*")  # also of Python, unlike the patterns above
_CODE = (".py", ".pyi")
_PRIVATE_KEY = b"PRIVATE KEY-----"


@dataclass(frozen=True, slots=True)
class UserCode:
    """What is sent of a folder, and what is not."""

    folder: Path
    sent: tuple[str, ...]  # paths below the folder, sorted
    left_out: tuple[str, ...]  # those that may hold secrets, or are links out of the folder

    @property
    def num_bytes(self) -> int:
        """Size of the files that are sent."""
        return sum((self.folder / name).stat().st_size for name in self.sent)

    def copy_to(self, target: Path) -> None:
        """Copies the files: below the folder's own name if it is a package, as `import NAME` needs it."""
        top = target / self.folder.name if (self.folder / "__init__.py").exists() else target
        for name in self.sent:
            if (top / name).exists():
                raise CallError(f"--with {self.folder}: {name} is in another folder that is sent as well: rename one")
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.folder / name, top / name)


def choose(folder: str) -> UserCode:
    """Returns the files of a folder that travel.

    Raises:
        CallError: It is no folder, or its files are too large to send.
    """
    top = Path(folder).resolve()
    if not top.is_dir():
        raise CallError(f"--with {folder!r}: expected a folder of code on this machine")
    names = sorted(name for name in _listed(top) if not _is_aside(name))
    left_out = [name for name in names if _is_secret(top, name)]
    code = UserCode(top, tuple(name for name in names if name not in set(left_out)), tuple(left_out))
    if (size := code.num_bytes) > MAX_BYTES:
        largest = max(code.sent, key=lambda name: (top / name).stat().st_size)
        raise CallError(
            f"--with {folder}: {size / 1e6:,.0f} MB in {len(code.sent):,} files, and at most {MAX_BYTES / 1e6:,.0f} MB "
            f"travel: put data where the nodes see it, or let git ignore it; the largest file is {largest}"
        )
    return code


def _listed(top: Path) -> list[str]:
    """Returns the files below a folder that git does not ignore."""
    with tempfile.TemporaryDirectory() as empty:
        inside = _git(top, "rev-parse", "--is-inside-work-tree") is not None
        options = [] if inside else ["--git-dir", f"{empty}/.git", "--work-tree", str(top)]
        if not inside:  # rules of .gitignore hold in a folder without a repository, too
            _git(Path(empty), "init", "-q")
        found = _git(top, *options, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if found is not None:
        return [name for name in found.split("\0") if name and (top / name).is_file()]
    if any(top.rglob(".gitignore")):
        raise CallError(f"--with {top}: git, which knows what .gitignore leaves out, cannot be run on this machine")
    walked = [Path(root, name) for root, _, names in os.walk(top) for name in names]
    return [str(path.relative_to(top)) for path in walked if path.is_file()]


def _git(folder: Path, *words: str) -> str | None:
    """Returns what git prints; None if it fails or is missing."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, env=environment)  # noqa: S603, S607
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def _is_aside(name: str) -> bool:
    """Whether a file belongs to tools and is never code."""
    *folders, last = Path(name).parts
    return last in _LEFT_OUT or not _LEFT_OUT_DIRS.isdisjoint(folders) or last.endswith(".pyc")


def _is_secret(top: Path, name: str) -> bool:
    """Whether a file may hold secrets, or leads out of the folder."""
    path = top / name
    if not path.resolve().is_relative_to(top):
        return True
    last = path.name.lower()
    patterns = _ALWAYS_SECRETS if last.endswith(_CODE) else (*_ALWAYS_SECRETS, *_SECRETS)
    if any(fnmatch.fnmatch(last, pattern) for pattern in patterns):
        return True
    return _PRIVATE_KEY in path.read_bytes()
