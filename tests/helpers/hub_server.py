"""A stand-in of the Hugging Face hub on loopback: what huggingface_hub asks to push and to pull.

Written against huggingface_hub 2.4.0: repositories with commits, files by git and by LFS, reading
at a branch or a commit. Without xet: HF_HUB_DISABLE_XET=1.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_token-of-the-tests"
Files = dict[str, bytes]


class Hub:
    """What the server holds and has been asked.

    Attributes:
        address: for HF_ENDPOINT.
        repositories: files by commit, the newest last, by repository.
        private: repositories that only the token's owner sees.
        requests: method and path of each.
    """

    def __init__(self) -> None:
        self.address = ""
        self.repositories: dict[str, dict[str, Files]] = {}
        self.private: set[str] = set()
        self.requests: list[str] = []
        self.large: dict[str, bytes] = {}

    def commit(self, repository: str, files: Files) -> str:
        """Add a commit; its hash."""
        commits = self.repositories.setdefault(repository, {})
        name = hashlib.sha1(f"{repository}{len(commits)}".encode()).hexdigest()
        commits[name] = files
        return name

    def files(self, repository: str, revision: str = "main") -> tuple[str, Files]:
        """Hash and files of a commit, or of the newest."""
        commits = self.repositories[repository]
        name = revision if revision in commits else next(reversed(commits))
        return name, commits[name]


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        for pattern, answer in _ROUTES:
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                answer(self, *found.groups())
                return
        self._answer(404, {"error": f"no such path {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, status: int, content: Any = b"", **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    @property
    def _owns(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _missing(self, repository: str) -> bool:
        known = repository in self.hub.repositories
        if known and (self._owns or repository not in self.hub.private):
            return False
        self._answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        return True

    def _refused(self) -> bool:
        if not self._owns:
            self._answer(401, {"error": "Invalid credentials"})
        return not self._owns

    def create(self) -> None:
        if self._refused():
            return
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'somebody'}/{asked['name']}"
        if name in self.hub.repositories:
            self._answer(409, {"error": "exists", "url": f"{self.hub.address}/{name}"})
            return
        self.hub.commit(name, {})
        if asked.get("private") or asked.get("visibility") == "private":
            self.hub.private.add(name)
        self._answer(200, {"url": f"{self.hub.address}/{name}", "id": name, "name": name})

    def preupload(self, repository: str, _revision: str) -> None:
        if self._refused() or self._missing(repository):
            return
        files = [
            {
                "path": item["path"],
                "uploadMode": "lfs" if item["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for item in json.loads(self.body)["files"]
        ]
        self._answer(200, {"files": files})

    def validate_card(self) -> None:
        fields = json.loads(self.body)
        assert fields["repoType"] == "model"
        assert fields["content"].startswith("---\n")
        self._answer(200, {"errors": [], "warnings": []})

    def batch(self, _repository: str) -> None:
        if self._refused():
            return
        objects = [
            {
                "oid": item["oid"],
                "size": item["size"],
                "actions": {"upload": {"href": f"{self.hub.address}/lfs/{item['oid']}"}},
            }
            for item in json.loads(self.body)["objects"]
        ]
        self._answer(200, {"transfer": "basic", "objects": objects})

    def store_large(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.large[oid] = self.body
        self._answer(200)

    def take_commit(self, repository: str, _revision: str) -> None:
        if self._refused() or self._missing(repository):
            return
        files = dict(self.hub.files(repository)[1])
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        name = self.hub.commit(repository, files)
        url = f"{self.hub.address}/{repository}/commit/{name}"
        self._answer(200, {"success": True, "commitOid": name, "commitUrl": url})

    def info(self, repository: str, revision: str | None = None) -> None:
        if self._missing(repository):
            return
        name, files = self.hub.files(repository, revision or "main")
        siblings = [{"rfilename": path} for path in sorted(files)]
        self._answer(200, {"id": repository, "sha": name, "siblings": siblings, "private": False})

    def tree(self, repository: str, revision: str) -> None:
        if self._missing(repository):
            return
        _, files = self.hub.files(repository, revision)
        entries = [
            {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for path, data in sorted(files.items())
        ]
        self._answer(200, entries)

    def resolve(self, repository: str, revision: str, path: str) -> None:
        if self._missing(repository):
            return
        name, files = self.hub.files(repository, revision)
        if path not in files:
            self._answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
            return
        data = files[path]
        tag = f'"{hashlib.sha256(data).hexdigest()}"'
        self._answer(200, data, ETag=tag, X_Repo_Commit=name, X_Linked_Size=str(len(data)))


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES = (
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.validate_card),
    (rf"POST /api/models/{_NAME}/preupload/(.+)", _Handler.preupload),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    (r"PUT /lfs/(\w+)", _Handler.store_large),
    (rf"POST /api/models/{_NAME}/commit/(.+)", _Handler.take_commit),
    (rf"GET /api/models/{_NAME}/tree/([^/]+)", _Handler.tree),
    (rf"GET /api/models/{_NAME}/revision/(.+)", _Handler.info),
    (rf"GET /api/models/{_NAME}", _Handler.info),
    (rf"(?:GET|HEAD) /{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
)


@contextlib.contextmanager
def hub_server() -> Iterator[Hub]:
    """A running hub."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
