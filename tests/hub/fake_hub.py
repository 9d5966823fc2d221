"""A local HTTP server that answers like the Hugging Face hub, as far as the library asks, and that can be told to misbehave."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "1" * 40
NEXT_COMMIT = "2" * 40


class FakeHub(ThreadingHTTPServer):
    """Serves ``files[repo][path]`` at one commit.

    Attributes:
        truncate: path to how many answers break off in their middle.
        truncate_after: path to the byte from which on every answer does so.
        stall: path to how many answers stop in their middle and leave the line open.
        lies: paths whose content is not what the hub states.
        gone: paths that are listed and not given.
        no_ranges: whether a request for a part is answered with the whole.
        gated: whether a repository's owner would have to let us in.
        asked: (method, path) of every request.
        sent: (path, range) of every request for content that was answered with some.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.commit = COMMIT
        self.truncate: Counter[str] = Counter()
        self.truncate_after: dict[str, int] = {}
        self.stall: Counter[str] = Counter()
        self.lies: set[str] = set()
        self.gone: set[str] = set()
        self.no_ranges = False
        self.gated = False
        self.asked: list[tuple[str, str]] = []
        self.sent: list[tuple[str, str | None]] = []
        self.closing = threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def stop(self) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def ranges_of(self, path: str) -> list[str | None]:
        return [asked for at, asked in self.sent if at.endswith(path)]


def entry(path: str, data: bytes) -> dict[str, object]:
    """What the hub states of a file: a SHA-256 of large (here: binary) ones, git's hash of the others."""
    found: dict[str, object] = {"type": "file", "path": path, "size": len(data), "oid": git_hash(data)}
    if is_large(path):
        found["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return found


def is_large(path: str) -> bool:
    return path.endswith((".bin", ".model", ".jsonl"))


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append((self.command, path))
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.server.files.setdefault(name, {})
            self.json({"url": f"{self.server.url}/{name}"})
        elif path == "/api/validate-yaml":
            self.json({"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/(?:datasets|models)/([^/]+/[^/]+)(?:/([a-z-]+)(?:/([^/]+)(?:/(.+))?)?)?", path):
            self.api(*found.groups(), body)
        elif found := re.fullmatch(r"(?:/datasets)?/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            self.resolve(*found.groups())
        elif found := re.fullmatch(r"/elsewhere/([^/]+/[^/]+)/(.+)", path):
            self.send_content(found[2], self.server.files[found[1]][found[2]])
        else:
            self.refuse("EntryNotFound")

    def api(self, repo: str, verb: str | None, revision: str | None, path: str | None, body: bytes) -> None:
        files = self.server.files.get(repo)
        if self.server.gated:
            self.refuse("GatedRepo", 403)
        elif files is None:
            self.refuse("RepoNotFound")
        elif verb in (None, "revision"):
            self.json({"id": repo, "sha": self.server.commit, "siblings": [{"rfilename": at} for at in files]})
        elif verb == "tree":
            inside = [entry(at, data) for at, data in files.items() if not path or at.startswith(f"{path}/")]
            self.json(inside) if inside else self.refuse("EntryNotFound")
        elif verb == "paths-info":
            wanted = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode())["paths"]
            self.json([entry(at, files[at]) for at in wanted if at in files])
        elif verb == "preupload":
            wanted = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self.json({"files": wanted})
        elif verb == "commit":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.server.commit = NEXT_COMMIT
            self.json({"commitUrl": f"{self.server.url}/{repo}/commit/{NEXT_COMMIT}", "commitOid": NEXT_COMMIT, "success": True})
        else:
            self.refuse("EntryNotFound")

    def resolve(self, repo: str, path: str) -> None:
        """A small file, or the place where a large one lies."""
        files = self.server.files.get(repo)
        if files is None or path not in files or path in self.server.gone:
            self.refuse("RepoNotFound" if files is None else "EntryNotFound")
        elif not is_large(path):
            self.send_content(path, files[path], {"ETag": f'"{git_hash(files[path])}"', "X-Repo-Commit": self.server.commit})
        else:
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.server.server_address[1]}/elsewhere/{repo}/{path}")  # another host
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(files[path]).hexdigest()}"')
            self.send_header("X-Linked-Size", str(len(files[path])))
            self.send_header("X-Repo-Commit", self.server.commit)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def send_content(self, path: str, whole: bytes, headers: dict[str, str] | None = None) -> None:
        sent = bytes(len(whole)) if path in self.server.lies else whole
        asked = self.headers.get("Range")
        found = None if self.server.no_ranges else re.fullmatch(r"bytes=(\d+)-(\d*)", asked or "")
        first, last = (int(found[1]), int(found[2] or len(sent) - 1)) if found else (0, len(sent) - 1)
        part = sent[first : last + 1]
        self.send_response(206 if found else 200)
        self.send_header("Content-Length", str(len(part)))
        if found:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(sent)}")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.server.sent.append((path, asked))
            self.send_part(path, first, part)

    def send_part(self, path: str, first: int, part: bytes) -> None:
        breaks, stalls = self.server.truncate[path] > 0, self.server.stall[path] > 0
        self.server.truncate[path] -= breaks
        self.server.stall[path] -= stalls
        breaks |= first >= self.server.truncate_after.get(path, first + 1)
        end = len(part) // 2 if breaks or stalls else len(part)
        try:
            self.wfile.write(part[:end])
            self.wfile.flush()
            if stalls:
                self.server.closing.wait(20)
        except OSError:  # the client went away
            self.close_connection = True
        if breaks or stalls:
            self.close_connection = True

    def json(self, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, code: str, status: int = 404) -> None:
        data = b'{"error": "refused"}'
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", "refused")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
