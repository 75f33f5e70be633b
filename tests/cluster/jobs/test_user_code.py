"""Which files of a folder travel: code, and neither secrets, nor links out of it, nor what git ignores."""

import subprocess
from pathlib import Path

import pytest

from dray.cluster.jobs import user_code
from dray.cluster.jobs.user_code import choose
from dray.shards.errors import CallError

SECRETS = [
    *(
        ".env",
        ".env.local",
        "prod.env",
        "key.pem",
        "tls.key",
        "id_rsa",
        "id_ed25519.pub",
        "credentials",
        "secrets.yaml",
    ),
    *("aws-credentials.json", "my_service_account.json", ".netrc", ".pypirc", "secrets.py", "a/b/.env", "KEY.PEM"),
]
ASIDE = [".git/config", ".venv/lib/x.py", "__pycache__/a.pyc", ".aws/credentials", ".ssh/id", ".gitignore"]


def write(top: Path, *names: str) -> None:
    for name in names:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text("x")


def test_code_travels_and_secrets_stay(tmp_path: Path) -> None:
    """Those that stay are listed, except for the folders of tools."""
    write(tmp_path, "embed.py", "lab/__init__.py", "lab/secret_santa.py", "config.yaml", *SECRETS, *ASIDE)
    (tmp_path / "notes.txt").write_text("-----BEGIN RSA PRIVATE KEY-----")
    (tmp_path / "passwords").symlink_to("/etc/passwd")
    code = choose(str(tmp_path))
    assert code.sent == ("config.yaml", "embed.py", "lab/__init__.py", "lab/secret_santa.py")
    assert set(code.left_out) == {*SECRETS, "notes.txt", "passwords"}


@pytest.mark.parametrize("has_repository", [False, True])
def test_what_git_ignores_stays(tmp_path: Path, has_repository: bool) -> None:
    """Also by the rules of a folder above, and in a folder without a repository."""
    top = tmp_path / "project" if has_repository else tmp_path
    write(top, "embed.py", "data.bin", "new.py")
    (tmp_path / ".gitignore").write_text("*.bin\n")
    if has_repository:
        subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    assert choose(str(top)).sent == ("embed.py", "new.py")


def test_a_package_keeps_its_name_and_a_project_gives_its_content(tmp_path: Path) -> None:
    """As `import` finds them."""
    write(tmp_path / "lab", "__init__.py", "embed.py")
    write(tmp_path / "project", "tool.py", "lab2/embed.py")
    for folder in ("lab", "project"):
        choose(str(tmp_path / folder)).copy_to(tmp_path / "sent")
    found = [str(path.relative_to(tmp_path / "sent")) for path in (tmp_path / "sent").rglob("*.py")]
    assert sorted(found) == ["lab/__init__.py", "lab/embed.py", "lab2/embed.py", "tool.py"]
    with pytest.raises(CallError, match="is in another folder"):
        choose(str(tmp_path / "project")).copy_to(tmp_path / "sent")


def test_too_much_is_refused_before_it_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest file is named."""
    write(tmp_path, "a.py")
    (tmp_path / "big.npy").write_bytes(bytes(20))
    monkeypatch.setattr(user_code, "MAX_BYTES", 10)
    with pytest.raises(CallError, match=r"the largest file is big\.npy"):
        choose(str(tmp_path))
    with pytest.raises(CallError, match="expected a folder"):
        choose(str(tmp_path / "a.py"))
