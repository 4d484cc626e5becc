"""A small server that speaks the part of the Hugging Face Hub's HTTP that its client uses here, and fails when told to.

Repositories live in memory. Large files (LFS) are those of LARGE bytes and more, and `.safetensors` and `.pt` files.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LARGE = 100_000
TOKEN = "hf_canary_of_the_tests"
READER = "hf_reader_of_the_tests"
"""A token that may read only."""


@dataclass
class Repo:
    private: bool = True
    commits: list[tuple[str, str, dict[str, bytes]]] = field(default_factory=list)
    """(sha, message, whole tree) in their order."""

    def tree(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return self.commits[-1][0], self.commits[-1][2]
        return next(((sha, files) for sha, _, files in self.commits if sha == revision), None)

    def commit(self, message: str, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits.append((sha, message, files))
        return sha


@dataclass
class Fault:
    """What the next requests meet whose line (`POST /api/…`) matches."""

    pattern: str
    kind: int | str
    """A status; or `drop`: the connection is closed, `drop-after`: done, but the answer is lost, `half`: half of the
    answer, `corrupt`: another first byte of it, `stall`: for `seconds`."""
    times: int = 1
    seconds: float = 0.0


class HubServer:
    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        """LFS objects by SHA-256."""
        self.uploads: Counter[str] = Counter()
        """How often the content of each object came."""
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        # How often it looks whether it is to stop: each stop waits for that.
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, repo_id: str, files: dict[str, bytes], kind: str = "models") -> None:
        """A repository that is there before."""
        self.repos[f"{kind}/{repo_id}"] = repo = Repo(private=False)
        repo.commit("initial commit", {})
        for content in files.values():
            self.large[hashlib.sha256(content).hexdigest()] = content
        repo.commit("files", files)

    def fault_for(self, line: str) -> Fault | None:
        with self.lock:
            self.requests.append(line)
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, line):
                    fault.times -= 1
                    return fault
        return None


def is_large(path: str, size: int) -> bool:
    return size >= LARGE or path.endswith((".safetensors", ".pt", ".zip"))


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def describe(path: str, content: bytes) -> dict[str, Any]:
    info: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
    if is_large(path, len(content)):
        info["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return info


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    fault: int | str | None = None
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def handle_any(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        line = f"{self.command} {path}"
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.hub.fault_for(line)
        if fault is not None:
            if fault.kind == "stall":
                time.sleep(fault.seconds)
            elif fault.kind == "drop":
                self.close_connection = True
                return
            elif isinstance(fault.kind, int):
                self.answer({"error": "told to fail"}, fault.kind)
                return
        for pattern, method in ROUTES:
            match = re.fullmatch(pattern, line)
            if match:
                self.query = parse_qs(parts.query)
                self.fault = fault.kind if fault is not None else None
                method(self, body, *match.groups())
                return
        self.answer({"error": f"no route for {line}"}, 404)

    do_GET = do_POST = do_PUT = do_HEAD = handle_any

    # Answers

    def answer(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        fault, self.fault = self.fault, None
        if fault == "drop-after":
            self.close_connection = True
            return
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        if fault == "corrupt":
            content = bytes([content[0] ^ 1]) + content[1:]
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", "1")
        for name, header in (headers or {}).items():
            self.send_header(name, header)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if fault == "half" else content)
            self.close_connection = fault == "half"

    def allowed(self, write: bool = True) -> bool:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in (TOKEN, READER):
            self.answer({"error": "Invalid credentials"}, 401)
        elif write and token != TOKEN:
            self.answer({"error": "Forbidden"}, 403)
        else:
            return True
        return False

    def found(self, kind: str, repo_id: str, revision: str = "main") -> tuple[str, dict[str, bytes]] | None:
        repo = self.hub.repos.get(f"{kind}/{repo_id}")
        if repo is None:
            self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return None
        if repo.private and not self.allowed(write=False):
            return None
        tree = repo.tree(revision)
        if tree is None:
            self.answer({"error": "Revision not found"}, 404, {"X-Error-Code": "RevisionNotFound"})
        return tree

    # Routes

    def whoami(self, _: bytes) -> None:
        if self.allowed(write=False):
            self.answer({"type": "user", "name": "someone", "auth": {"accessToken": {"role": "write"}}})

    def auth_check(self, _: bytes, kind: str, repo_id: str) -> None:
        if self.allowed():
            self.answer({})

    def create(self, body: bytes) -> None:
        if not self.allowed():
            return
        wanted = json.loads(body)
        repo_id = f"{wanted.get('organization') or 'someone'}/{wanted['name']}"
        key = f"{wanted.get('type', 'model')}s/{repo_id}"
        if key in self.hub.repos:
            self.answer({"error": "exists", "url": f"{self.hub.uri}/{repo_id}"}, 409)
            return
        private = wanted.get("private", wanted.get("visibility") != "public")
        self.hub.repos[key] = Repo(private=bool(private))
        self.hub.repos[key].commit("initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.answer({"url": f"{self.hub.uri}/{repo_id}", "name": repo_id, "id": repo_id})

    def validate_yaml(self, body: bytes) -> None:
        """Whether a README.md's metadata are sound."""
        metadata = json.loads(body)["content"].split("---\n")[1]
        self.answer({"errors": [] if yaml.safe_load(metadata) else [{"message": "no metadata"}], "warnings": []})

    def info(self, _: bytes, kind: str, repo_id: str, revision: str | None = None) -> None:
        found = self.found(kind, repo_id, revision or "main")
        if found:
            sha, files = found
            siblings = [{"rfilename": path} for path in files]
            self.answer({"id": repo_id, "modelId": repo_id, "sha": sha, "siblings": siblings, "private": False})

    def tree(self, _: bytes, kind: str, repo_id: str, revision: str, folder: str | None) -> None:
        found = self.found(kind, repo_id, revision)
        if not found:
            return
        prefix = f"{folder.strip('/')}/" if folder and folder.strip("/") else ""
        files = [describe(path, content) for path, content in found[1].items() if path.startswith(prefix)]
        if prefix and not files:
            self.answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        else:
            self.answer(files)

    def paths_info(self, body: bytes, kind: str, repo_id: str, revision: str) -> None:
        found = self.found(kind, repo_id, revision)
        if found:
            wanted = parse_qs(body.decode())["paths"]
            self.answer([describe(path, found[1][path]) for path in wanted if path in found[1]])

    def preupload(self, body: bytes, kind: str, repo_id: str, revision: str) -> None:
        found = self.found(kind, repo_id, revision)
        if found and self.allowed():
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if is_large(file["path"], file["size"]) else "regular",
                    "shouldIgnore": False,
                    "oid": git_oid(found[1][file["path"]]) if file["path"] in found[1] else None,
                }
                for file in json.loads(body)["files"]
            ]
            self.answer({"files": files})

    def lfs_batch(self, body: bytes, repo_id: str) -> None:
        if not self.allowed():
            return
        objects = []
        for wanted in json.loads(body)["objects"]:
            item = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.large:
                item["actions"] = {
                    "upload": {"href": f"{self.hub.uri}/lfs/{wanted['oid']}", "header": {}},
                    "verify": {"href": f"{self.hub.uri}/lfs/{wanted['oid']}/verify", "header": {}},
                }
            objects.append(item)
        self.answer({"transfer": "basic", "objects": objects})

    def lfs_put(self, body: bytes, oid: str) -> None:
        self.hub.uploads[oid] += 1
        if hashlib.sha256(body).hexdigest() != oid:
            self.answer({"error": "other bytes than announced"}, 400)
        else:
            self.hub.large[oid] = body
            self.answer(b"")

    def lfs_verify(self, body: bytes, oid: str) -> None:
        wanted = json.loads(body)
        fine = len(self.hub.large.get(oid, b"")) == wanted["size"]
        self.answer({}, 200 if fine else 404)

    def commit(self, body: bytes, kind: str, repo_id: str, revision: str) -> None:
        found = self.found(kind, repo_id, revision)
        if not found or not self.allowed():
            return
        files, message = dict(found[1]), ""
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.hub.large:
                    self.answer({"error": f"{value['path']}: its content never came"}, 400)
                    return
                files[value["path"]] = self.hub.large[value["oid"]]
        with self.hub.lock:
            sha = self.hub.repos[f"{kind}/{repo_id}"].commit(message, files)
        self.answer({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.uri}/{repo_id}/commit/{sha}"})

    def resolve(self, _: bytes, prefix: str | None, repo_id: str, revision: str, path: str) -> None:
        found = self.found("datasets" if prefix else "models", repo_id, revision)
        if not found:
            return
        sha, files = found
        if path not in files:
            self.answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
            return
        content = files[path]
        info = describe(path, content)
        etag = info["lfs"]["oid"] if "lfs" in info else info["oid"]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if start:
            first = int(start[1])
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            self.answer(content[first:], 206, headers)
        else:
            self.answer(content, 200, headers)


_REPO = r"([\w.-]+/[\w.-]+)"
ROUTES: list[tuple[str, Callable[..., None]]] = [
    ("GET /api/whoami-v2", _Handler.whoami),
    (f"GET /api/(models|datasets)/{_REPO}/auth-check(?:/write)?", _Handler.auth_check),
    ("POST /api/repos/create", _Handler.create),
    ("POST /api/validate-yaml", _Handler.validate_yaml),
    (f"GET /api/(models|datasets)/{_REPO}(?:/revision/([^/]+))?", _Handler.info),
    (f"GET /api/(models|datasets)/{_REPO}/tree/([^/]+)(/.*)?", _Handler.tree),
    (f"POST /api/(models|datasets)/{_REPO}/paths-info/([^/]+)", _Handler.paths_info),
    (f"POST /api/(models|datasets)/{_REPO}/preupload/([^/]+)", _Handler.preupload),
    (f"POST /{_REPO}\\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT /lfs/([0-9a-f]{64})", _Handler.lfs_put),
    ("POST /lfs/([0-9a-f]{64})/verify", _Handler.lfs_verify),
    (f"POST /api/(models|datasets)/{_REPO}/commit/([^/]+)", _Handler.commit),
    (f"(?:GET|HEAD) /(datasets/)?{_REPO}/resolve/([^/]+)/(.+)", _Handler.resolve),
]
