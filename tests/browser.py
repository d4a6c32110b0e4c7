"""A page as a browser shows it: its size, its colours, and pictures of it.

Chromium is spoken to through two pipes in its DevTools protocol: one process shows every width and
scheme, and a page that allows no script can be measured.
"""

import base64
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe"),
)
MOST_SILENT_S = 60


class Chromium:
    """A browser that runs, spoken to through this socket."""

    def __init__(self, pipes: socket.socket) -> None:
        self.pipes = pipes
        self.number = 0
        self.heard = b""

    def call(self, method: str, session: str | None = None, **parameters: Any) -> Any:
        """What the browser, or one of its tabs, answers to a command of the protocol."""
        self.number += 1
        command = {"id": self.number, "method": method, "params": parameters}
        to = {"sessionId": session} if session else {}
        self.pipes.sendall(json.dumps(command | to).encode() + b"\0")
        while (said := self.said()).get("id") != self.number:
            pass
        assert "error" not in said, said
        return said["result"]

    def said(self) -> Any:
        """The next answer or event."""
        while b"\0" not in self.heard:
            more = self.pipes.recv(1 << 20)
            if not more:
                raise ConnectionError("the browser ended")
            self.heard += more
        text, _, self.heard = self.heard.partition(b"\0")
        return json.loads(text)


class Tab:
    """One tab of a browser."""

    def __init__(self, chromium: Chromium) -> None:
        self.chromium = chromium
        self.target = chromium.call("Target.createTarget", url="about:blank")["targetId"]
        at = chromium.call("Target.attachToTarget", targetId=self.target, flatten=True)
        self.session = at["sessionId"]
        self.call("Page.enable")
        self.call("Page.setLifecycleEventsEnabled", enabled=True)

    def call(self, method: str, **parameters: Any) -> Any:
        """What the tab answers to one command of the protocol."""
        return self.chromium.call(method, self.session, **parameters)

    def show(self, page: Path | str, width: int, scheme: str, height: int = 900) -> None:
        """Opens the page, a file or an address, in a window of this size, `light` or `dark`."""
        self.look(width, scheme, height)
        address = page if isinstance(page, str) else page.as_uri()
        loader = self.call("Page.navigate", url=address)["loaderId"]
        loaded = {"loaderId": loader, "name": "load"}
        while not loaded.items() <= self.chromium.said().get("params", {}).items():
            pass

    def look(self, width: int, scheme: str, height: int = 900) -> None:
        """Gives the window this size and scheme, whatever it shows."""
        self.size(width, height)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def size(self, width: int, height: int) -> None:
        """The size of the window, in pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def value(self, expression: str) -> Any:
        """What an expression in JavaScript gives on the page."""
        said = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    def until(self, expression: str, most_s: float = 30) -> None:
        """Waits until an expression is true on the page."""
        begun = time.monotonic()
        while not self.value(f"Boolean({expression})"):
            assert time.monotonic() < begun + most_s, f"never: {expression}"
            time.sleep(0.02)

    def mouse(self, kind: str, x: float, y: float, held: bool = False) -> None:
        """Moves, presses or releases the mouse: `mouseMoved`, `mousePressed`, `mouseReleased`."""
        button = {"button": "left"} if held or kind != "mouseMoved" else {}
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, clickCount=1, **button)

    def key(self, name: str, code: int) -> None:
        """Presses a key by its name and its number."""
        of = {"key": name, "code": name, "windowsVirtualKeyCode": code}
        typed = {"text": "\r"} if name == "Enter" else {}  # without it no button is pressed
        self.call("Input.dispatchKeyEvent", type="keyDown", **of, **typed)
        self.call("Input.dispatchKeyEvent", type="keyUp", **of)

    def picture(self) -> bytes:
        """What stands in the window, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])


@contextmanager
def started(path: str) -> Iterator[Chromium]:
    """A browser with a profile of its own. Raises OSError: why it doesn't start, or has ended."""
    ours, theirs = socket.socketpair()
    ours.settimeout(MOST_SILENT_S)

    def as_3_and_4() -> None:
        pipe = os.dup(theirs.fileno())
        os.dup2(pipe, 3)
        os.dup2(pipe, 4)

    scratch = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # where a browser still ends
    with ours, scratch as folder, Path(folder, "words").open("w+", errors="replace") as words:
        with theirs:
            process = subprocess.Popen(
                [path, *OPTIONS, f"--user-data-dir={folder}/profile"],
                pass_fds=(3, 4),
                preexec_fn=as_3_and_4,
                stdout=subprocess.DEVNULL,
                stderr=words,
            )
        try:
            yield Chromium(ours)
        except ConnectionError as ended:
            words.seek(0)
            last = words.read().strip().rpartition("\n")[2]
            raise ConnectionError(last or "it ended without a word") from ended
        finally:
            process.kill()
            process.wait()
