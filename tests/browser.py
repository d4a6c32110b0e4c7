"""A page as a browser shows it: its size, its colours, and pictures of it.

Chromium is spoken to through two pipes in its DevTools protocol: one process shows every width and
scheme, and a page that allows no script can be measured.
"""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import RawIOBase
from pathlib import Path
from typing import Any, BinaryIO

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe"),
)


class Browser:
    """One tab of a browser."""

    def __init__(self, ask: RawIOBase, answer: BinaryIO) -> None:
        self.ask, self.answer = ask, answer
        self.number = 0
        self.session: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")
        tab = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self.session = {"sessionId": tab["sessionId"]}
        self.call("Page.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """What the browser answers to one command of the protocol."""
        self.number += 1
        command = {"id": self.number, "method": method, "params": parameters, **self.session}
        self.ask.write(json.dumps(command).encode() + b"\0")
        while (said := self._said()).get("id") != self.number:
            pass
        assert "error" not in said, said
        return said["result"]

    def show(self, page: Path | str, width: int, scheme: str, height: int = 900) -> None:
        """Opens the page, a file or an address, in a window of this size, `light` or `dark`."""
        self.size(width, height)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])
        self.call("Page.navigate", url=page if isinstance(page, str) else page.as_uri())
        while self._said().get("method") != "Page.loadEventFired":
            pass

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

    def _said(self) -> Any:
        text = bytearray()
        while (byte := self.answer.read(1)) != b"\0":
            assert byte, "the browser ended"
            text += byte
        return json.loads(text)


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser whose profile lies in this folder."""
    assert CHROMIUM, "install a browser: apt-get install chromium"
    (theirs, ask), (answer, their_answer) = os.pipe(), os.pipe()

    def as_3_and_4() -> None:
        for of, pipe in enumerate([os.dup(theirs), os.dup(their_answer)], start=3):
            os.dup2(pipe, of)

    process = subprocess.Popen(
        [CHROMIUM, *OPTIONS, f"--user-data-dir={profile}"],
        pass_fds=(3, 4),
        preexec_fn=as_3_and_4,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs)
    os.close(their_answer)
    with open(ask, "wb", 0) as to, open(answer, "rb") as back:
        try:
            yield Browser(to, back)
        finally:
            process.kill()
            process.wait()
