"""A real ComfyUI server on a temporary base directory, with this pack linked into its custom nodes."""

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..find import PACK

_FOLDERS = ("custom_nodes", "models", "input", "output", "user")
_DONE = {"success", "error"}


class ServerError(RuntimeError):
    """The server did not start, lost the pack, or refused or failed a workflow."""


def pack_failed(log: str) -> bool:
    """True if a server's log says that this pack did not load; what else failed there is not the pack's doing.

    The host writes ``1.2 seconds (IMPORT FAILED): .../custom_nodes/gcfg`` for a pack and ``IMPORT FAILED: nodes_x.py``
    for nodes of its own.
    """
    return re.search(r"\(IMPORT FAILED\): .*[/\\]custom_nodes[/\\]gcfg\s*$", log, re.MULTILINE) is not None


class Server:
    """A running server: ``queue`` runs a workflow in API format, ``image`` fetches what it saved."""

    def __init__(self, url: str, base: Path, process: subprocess.Popen):
        self.url, self.base, self.process = url, base, process

    @property
    def log(self) -> str:
        """Everything that the server has printed so far."""
        return (self.base / "server.log").read_text(errors="replace")

    def request(self, path: str, body: Any = None, timeout: float = 30) -> Any:
        """GET ``path``, or POST ``body`` as JSON to it; the decoded answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise ServerError(f"{path}: {error.code} {error.read().decode(errors='replace')}") from error
        return json.loads(text) if text else None

    def queue(self, workflow: dict, timeout: float = 300) -> dict:
        """Run a workflow in API format to its end; its history entry, whose ``outputs`` are keyed by node.

        A refused or failed workflow raises ``ServerError`` with the node and its message.
        """
        queued = self.request("/prompt", {"prompt": workflow, "client_id": uuid.uuid4().hex})
        if queued.get("node_errors"):
            raise ServerError(f"refused: {json.dumps(queued['node_errors'])}")
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                entry = self.request(f"/history/{queued['prompt_id']}").get(queued["prompt_id"])
            except OSError:  # too busy to answer, or gone, which the check below tells
                entry = None
            if entry and entry["status"]["status_str"] in _DONE:
                _raise_if_failed(entry)
                return entry
            self._check_alive()
            time.sleep(0.1)
        raise ServerError(f"the workflow did not end within {timeout:.0f} s\n{self._tail()}")

    def image(self, reference: dict) -> bytes:
        """The bytes of an image named in a history entry (``filename``, ``subfolder``, ``type``)."""
        with urllib.request.urlopen(f"{self.url}/view?{urllib.parse.urlencode(reference)}", timeout=30) as answer:
            return answer.read()

    def images(self, entry: dict) -> list[bytes]:
        """Every image that a workflow saved or showed."""
        found = [image for output in entry["outputs"].values() for image in output.get("images", [])]
        return [self.image(reference) for reference in found]

    def upload(self, name: str, content: bytes) -> str:
        """Put a file into the server's input folder over HTTP; the name to use in LoadImage."""
        edge = uuid.uuid4().hex
        head = f'--{edge}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
        body = head.encode() + content + f"\r\n--{edge}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={edge}"}
        request = urllib.request.Request(self.url + "/upload/image", body, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())["name"]

    def wait_until_ready(self, timeout: float) -> None:
        """Return when the server answers with the pack loaded; raise with the end of its log otherwise."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            self._check_alive()
            try:
                self.request("/system_stats", timeout=5)
            except OSError:
                time.sleep(0.2)
                continue
            if pack_failed(self.log):
                raise ServerError(f"the pack does not load:\n{self._tail()}")
            return
        raise ServerError(f"the server was not ready within {timeout:.0f} s\n{self._tail()}")

    def _check_alive(self) -> None:
        if self.process.poll() is not None:
            raise ServerError(f"the server ended with code {self.process.returncode}\n{self._tail()}")

    def _tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.splitlines()[-lines:])


@contextmanager
def serve(
    host: Path, base: Path | None = None, cpu: bool = True, options: tuple[str, ...] = (), timeout: float = 240,
    packs: Sequence[Path] = (),
) -> Iterator[Server]:
    """A server of the ComfyUI in ``host``, ready for work; it ends with the block.

    ``base`` is the folder for models, inputs and outputs; without one it is temporary and removed. ``options`` are
    further command line options of the host, ``packs`` folders of other packs beside this one.
    """
    temporary = None if base else Path(tempfile.mkdtemp(prefix="gcfg-comfyui-"))
    base = base or temporary
    for name in _FOLDERS:
        (base / name).mkdir(parents=True, exist_ok=True)
    for name, folder in (("gcfg", PACK), *((pack.name, pack) for pack in packs)):
        link = base / "custom_nodes" / name
        if not link.is_symlink():
            link.symlink_to(folder, target_is_directory=True)
    port = _free_port()
    command = [sys.executable, str(host / "main.py"), "--listen", "127.0.0.1", "--port", str(port)]
    command += ["--disable-api-nodes", "--disable-auto-launch", "--base-directory", str(base)]
    command += ["--database-url", "sqlite:///:memory:", *(["--cpu"] if cpu else []), *options]
    with open(base / "server.log", "wb") as log:
        process = subprocess.Popen(command, cwd=base, env=_environment(host, base), stdout=log, stderr=log)
    try:
        server = Server(f"http://127.0.0.1:{port}", base, process)
        server.wait_until_ready(timeout)
        yield server
    finally:
        _end(process)
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)


def _environment(host: Path, base: Path) -> dict[str, str]:
    """The environment of the server; for an old host beside new template packages, with a stand-in for them.

    Releases before the templates were split serve a folder that the newer package no longer has, and do not start.
    """
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    package = importlib.util.find_spec("comfyui_workflow_templates")
    origin = Path(package.origin).parent if package and package.origin else None
    knows_split = "iter_templates" in (host / "app" / "frontend_management.py").read_text()
    if origin and not knows_split and not (origin / "templates").is_dir():
        stand_in = base / "site" / "comfyui_workflow_templates"
        (stand_in / "templates").mkdir(parents=True, exist_ok=True)
        (stand_in / "__init__.py").touch()
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(base / "site"), os.environ.get("PYTHONPATH"))))
    return environment


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _raise_if_failed(entry: dict) -> None:
    for kind, details in entry["status"].get("messages", []):
        if kind == "execution_error":
            message = details["exception_message"].strip()
            trace = "".join(details.get("traceback", []))
            raise ServerError(f"node {details['node_id']} ({details['node_type']}): {message}\n{trace}")
        if kind == "execution_interrupted":
            raise ServerError("interrupted")
