"""A small HTTP server for a folder that misbehaves on request."""

import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class FileServer:
    """Serves the files of a folder at `url`, until `stop`; `start` goes on at the same port.

    Attributes:
        asked: how often each file was asked for.
        faults: what is wrong with the next answers for a file, in turn: `cut` (half of it, then the end), `garbage`
            (some bytes are others), `short` (half of it as if that were all), an HTTP status such as 503 or 403.
        hangs: whether answers stop after the first half of a file until this is False again.
        rate: bytes a second of each answer, None for all at once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: Counter[str] = Counter()
        self.served: list[str] = []  # files sent in full, in turn
        self.faults: dict[str, list[str | int]] = {}
        self.hangs = False
        self.rate: float | None = None
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/{self.folder.name}"

    def __enter__(self) -> "FileServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._up = True
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Like a killed server: answers on their way are cut, new connections are refused."""
        self._up = False
        self._server.shutdown()
        self._server.server_close()

    def tars(self) -> list[str]:
        """Tars sent in full, in turn."""
        return [name for name in self.served if name.endswith(".tar")]

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        name = request.path.rpartition("/")[2]
        self.asked[name] += 1
        path = self.folder / name
        fault = self.faults[name].pop(0) if self.faults.get(name) else None
        if isinstance(fault, int) or not path.is_file():
            request.send_error(fault if isinstance(fault, int) else 404)
            return
        content = path.read_bytes()
        half = len(content) // 2
        length = len(content)
        if fault == "garbage":
            content = content[:half] + bytes(b ^ 255 for b in content[half : half + 64]) + content[half + 64 :]
        elif fault == "short":
            content, length = content[:half], half
        elif fault == "cut":
            content = content[:half]
        request.send_response(200)
        request.send_header("Content-Length", str(length))
        request.end_headers()
        try:
            self._send(request, content)
        except OSError:  # the client went away
            return
        if fault is None:
            self.served.append(name)

    def _send(self, request: BaseHTTPRequestHandler, content: bytes) -> None:
        chunk = len(content) if self.rate is None else max(int(self.rate / 50), 1)
        if self.hangs:
            chunk = min(chunk, len(content) // 2 + 1)
        for first in range(0, len(content), chunk):
            while self.hangs and first and self._up:
                time.sleep(0.01)
            if not self._up:
                raise ConnectionAbortedError
            request.wfile.write(content[first : first + chunk])
            if self.rate is not None:
                time.sleep(chunk / self.rate)
