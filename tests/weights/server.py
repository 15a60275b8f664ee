"""A stand-in for the hub on 127.0.0.1 that can serve parts, break off, refuse, and remember what was asked."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Hub:
    """`files` by path; `break_after` bytes the connection ends, that many times (`breaks`)."""

    files: dict[str, bytes] = field(default_factory=dict)
    break_after: int = 0
    breaks: int = 0
    ranges: bool = True
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # path, Range
    url: str = ""

    def add_model(self, repo: str, files: dict[str, bytes], revision: str = "abc") -> None:
        """A repository with the answer of the hub's API about it."""
        siblings: list[dict[str, Any]] = []
        for name, content in files.items():
            self.files[f"/{repo}/resolve/{revision}/{name}"] = content
            lfs = {"sha256": sha256(content).hexdigest(), "size": len(content), "pointerSize": 100}
            large = name.endswith(".safetensors")
            siblings.append({"rfilename": name, "size": len(content)} | ({"lfs": lfs} if large else {}))
        info = {"id": repo, "sha": revision, "siblings": siblings, "tags": [], "private": False, "downloads": 0}
        self.files[f"/api/models/{repo}"] = json.dumps(info).encode()


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serve in a thread for as long as the block runs."""

    class Handler(_Handler):
        served = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    served: Hub

    def do_GET(self) -> None:
        hub, path = self.served, self.path.partition("?")[0]
        hub.requests.append((path, self.headers["Range"]))
        content = hub.files.get(path)
        if content is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = self._start() if hub.ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        part = content[start:]
        if hub.breaks:
            hub.breaks -= 1
            part = part[: hub.break_after]
            self.close_connection = True
        self.wfile.write(part)

    def _start(self) -> int:
        found = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        return int(found[1]) if found else 0

    def log_message(self, format: str, *args: Any) -> None:
        pass
