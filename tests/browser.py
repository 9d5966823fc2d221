"""A headless Chromium, spoken to over two pipes with the DevTools protocol: no driver, no port, the standard library alone."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


class Browser:
    """One tab.

    Attributes:
        complaints: uncaught errors and console errors of the pages.
        requests: URLs that the pages asked for, beside their own.
    """

    def __init__(self, write_to: int, read_from: int):
        self._write_to, self._read_from = write_to, read_from
        self._buffer, self._last_id, self._session = b"", 0, ""
        self.complaints: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, *, seconds: float = 60, **parameters: Any) -> Any:
        """The result of one command. Raises RuntimeError where the browser answers with an error or not at all."""
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": parameters} | ({"sessionId": self._session} if self._session else {})
        os.write(self._write_to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + seconds
        while True:
            answer = self._next(deadline)
            if answer.get("id") == self._last_id:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self._hear(answer)

    def evaluate(self, expression: str, *, seconds: float = 60) -> Any:
        """The JSON value of an expression, awaited. Raises RuntimeError with what it threw."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, seconds=seconds)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"].get("exception", {}).get("description", "an exception"))
        return answer["result"].get("value")

    def open(self, page: Path) -> None:
        self.call("Page.navigate", url=page.as_uri())
        self.wait_for("document.readyState === 'complete' && !!document.body.dataset.ready")

    def wait_for(self, condition: str, *, seconds: float = 30) -> None:
        """Raises TimeoutError; its message holds what the page says of itself."""
        deadline = time.monotonic() + seconds
        while not self.evaluate(condition):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{condition}: {self.evaluate('document.body.innerText.slice(0, 500)')} {self.complaints}")
            time.sleep(0.05)

    def screenshot(self, out: Path, *, width: int, height: int, dark: bool = False, top: str | None = None) -> None:
        """What a window of this size shows, from the element ``top`` on (a selector) or from the page's head; the name's suffix decides
        how it is coded (.png, .webp)."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        above = f"document.querySelector({top!r}).getBoundingClientRect().top + scrollY - 12" if top else "0"
        clip = {"x": 0, "y": max(0, self.evaluate(above)), "width": width, "height": height, "scale": 1}
        out.write_bytes(
            base64.b64decode(self.call("Page.captureScreenshot", format=out.suffix[1:], clip=clip, captureBeyondViewport=True)["data"])
        )

    def quit(self) -> None:
        self._session = ""
        self.call("Browser.close")

    def _next(self, deadline: float) -> Any:
        while b"\0" not in self._buffer:
            if not select.select([self._read_from], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise RuntimeError("the browser does not answer")
            part = os.read(self._read_from, 1 << 20)
            if not part:
                raise RuntimeError("the browser has gone")
            self._buffer += part
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)

    def _hear(self, event: Any) -> None:
        method, parameters = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.complaints.append(parameters["exceptionDetails"]["exception"].get("description", "an exception"))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.complaints.append(parameters["entry"]["text"])
        elif method == "Network.requestWillBeSent" and parameters.get("type") != "Document":
            self.requests.append(parameters["request"]["url"])


# DevTools reads descriptor 3 and writes descriptor 4; a small Python in between puts the pipes there.
_START = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"


@contextmanager
def open_browser(profile: Path) -> Iterator[Browser]:
    """Start Chromium with a profile of its own; it ends with the block."""
    assert CHROMIUM is not None
    pipes = [*os.pipe(), *os.pipe()]
    to_read, to_write, from_read, from_write = (fcntl.fcntl(pipe, fcntl.F_DUPFD_CLOEXEC, 10) for pipe in pipes)
    for pipe in pipes:
        os.close(pipe)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}", "--remote-debugging-pipe"]
    command = [sys.executable, "-c", _START, str(to_read), str(from_write), CHROMIUM, *flags]
    process = subprocess.Popen(command, pass_fds=(to_read, from_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(to_read)
    os.close(from_write)
    try:
        browser = Browser(to_write, from_read)
        yield browser
        browser.quit()
    finally:
        os.close(to_write)
        os.close(from_read)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
