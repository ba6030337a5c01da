"""A Hub on this machine: serves folders as model repos to the real client, and takes its pushes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

RESOLVE = re.compile(r"/(?P<repo>.+?)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
MODEL = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+?)(?:/revision/(?P<revision>[^/]+))?")
TREE = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)(?:/.*)?")
PREUPLOAD = re.compile(r"/api/(?:models|spaces|datasets)/(?P<repo>[^/]+/[^/]+)/preupload/main")
COMMIT = re.compile(r"/api/(?:models|spaces|datasets)/(?P<repo>[^/]+/[^/]+)/commit/main")


class HubServer:
    """Repos are the folders `root/OWNER/NAME`; `requests` lists what was asked, e.g. `"GET /api/models/a/b"`.

    It can be stopped and started again at the same address: in between, connections are refused.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: list[str] = []
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), handler)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def folder(self, repo: str) -> Path:
        return self.root / repo

    def files(self, repo: str) -> list[str]:
        folder = self.folder(repo)
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

    def sha(self, repo: str) -> str:
        """The commit: any change of a file gives another."""
        digest = hashlib.sha1()
        for name in self.files(repo):
            digest.update(name.encode() + (self.folder(repo) / name).read_bytes())
        return digest.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer

    def do_HEAD(self) -> None:
        self._get()

    def do_GET(self) -> None:
        self._get()

    def _get(self) -> None:
        path = self._path()
        if match := RESOLVE.fullmatch(path):
            return self._resolve(**match.groupdict())
        if match := TREE.fullmatch(path):
            if self._known(**match.groupdict()):
                folder = self.hub.folder(match["repo"])
                entries = [(name, (folder / name).stat().st_size) for name in self.hub.files(match["repo"])]
                self._json([{"type": "file", "path": name, "size": size, "oid": name} for name, size in entries])
            return None
        if match := MODEL.fullmatch(path):
            if self._known(**match.groupdict()):
                repo = match["repo"]
                siblings = [
                    {"rfilename": name, "size": (self.hub.folder(repo) / name).stat().st_size}
                    for name in self.hub.files(repo)
                ]
                self._json({"id": repo, "sha": self.hub.sha(repo), "siblings": siblings, "tags": [], "private": False})
            return None
        return self._missing("EntryNotFound")

    def do_POST(self) -> None:
        path, body = self._path(), self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'someone'}/{asked['name']}"
            self.hub.folder(repo).mkdir(parents=True, exist_ok=True)
            return self._json({"id": repo, "url": f"{self.hub.url}/{repo}"})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if PREUPLOAD.fullmatch(path):
            files = [file["path"] for file in json.loads(body)["files"]]
            return self._json(
                {"files": [{"path": file, "uploadMode": "regular", "shouldIgnore": False} for file in files]}
            )
        if match := COMMIT.fullmatch(path):
            return self._commit(match["repo"], body)
        return self._missing("EntryNotFound")

    def _commit(self, repo: str, body: bytes) -> None:
        for line in filter(None, body.splitlines()):
            operation = json.loads(line)
            if operation["key"] == "file":
                path = self.hub.folder(repo) / operation["value"]["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(base64.b64decode(operation["value"]["content"]))
        sha = self.hub.sha(repo)
        self._json({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo}/commit/{sha}"})

    def _resolve(self, repo: str, revision: str, file: str) -> None:
        if not self._known(repo, revision):
            return None
        path, sha = self.hub.folder(repo) / file, self.hub.sha(repo)
        if not path.is_file():
            return self._missing("EntryNotFound", sha)
        content = path.read_bytes()
        return self._answer(content, {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})

    def _known(self, repo: str, revision: str | None = None) -> bool:
        if not self.hub.folder(repo).is_dir():
            self._missing("RepoNotFound")
            return False
        if revision not in (None, "main", self.hub.sha(repo)):
            self._missing("RevisionNotFound")
            return False
        return True

    def _path(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        return path

    def _json(self, value: object) -> None:
        self._answer(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _missing(self, code: str, sha: str | None = None) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": code} | ({"X-Repo-Commit": sha} if sha else {})
        self._answer(b"", headers, HTTPStatus.NOT_FOUND)

    def _answer(self, body: bytes, headers: dict[str, str], status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""
