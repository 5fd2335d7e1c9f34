"""A small Hugging Face hub on loopback: repositories from memory, behind the endpoints that huggingface_hub calls."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Files by path for each `models/ORG/NAME` or `datasets/ORG/NAME`, all at `COMMIT`, tagged v1.0, on branch dev."""

    repositories: dict[str, dict[str, bytes]]
    requests: list[str] = field(default_factory=list)
    url: str = ""


@contextmanager
def serve(repositories: dict[str, dict[str, bytes]]) -> Iterator[Hub]:
    """Serve `repositories` while this lasts."""
    hub = Hub(repositories)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    """Answers for the hub of its server."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        path = unquote(urlparse(self.path).path)
        if found := re.fullmatch(r"/api/((?:models|datasets)/[^/]+/[^/]+)(?:/(\w+(?:-\w+)*)(?:/(.*))?)?", path):
            self.api(*found.groups())
        elif found := re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.*)", path):
            name = found.group(1)
            self.file(name if name.startswith("datasets/") else f"models/{name}", found.group(3))
        else:
            self.missing("EntryNotFound")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def api(self, name: str, what: str | None, rest: str | None) -> None:
        files = self.hub.repositories.get(name)
        if files is None:
            return self.missing("RepoNotFound")
        if what == "refs":
            ref = {"ref": "refs/heads/dev", "name": "dev", "targetCommit": COMMIT}
            return self.json({"branches": [ref], "tags": [{**ref, "name": "v1.0"}], "converts": []})
        if what == "paths-info":
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            wanted = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
            return self.json([_entry(path, files[path]) for path in wanted if path in files])
        revision = (rest or "").partition("/")[0]
        if revision and revision not in (COMMIT, "v1.0", "dev"):
            return self.missing("RevisionNotFound")
        if what == "tree":
            folder = rest.partition("/")[2] if rest else ""
            return self.json([_entry(path, data) for path, data in files.items() if path.startswith(folder)])
        siblings = [{"rfilename": path} for path in files]
        card = {"license": "cc-by-4.0"} if "README.md" in files else {}
        return self.json(
            {"_id": "1", "id": name.partition("/")[2], "sha": COMMIT, "private": False, "gated": False,
             "disabled": False, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings, "cardData": card}
        )  # fmt: skip

    def file(self, name: str, path: str) -> None:
        data = self.hub.repositories.get(name, {}).get(path)
        if data is None:
            return self.missing("EntryNotFound")
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        total, status = len(data), 200
        if found := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(found.group(1)), min(int(found.group(2) or total - 1), total - 1)
            data, status = data[start : end + 1], 206
            headers["Content-Range"] = f"bytes {start}-{end}/{total}"
        return self.reply(status, data, headers)

    def missing(self, code: str) -> None:
        self.reply(404, b"{}", {"X-Error-Code": code, "X-Error-Message": f"{code} here"})

    def json(self, value: Any) -> None:
        self.reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def reply(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


def _entry(path: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
