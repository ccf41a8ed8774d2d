"""Chromium, driven over its own protocol (https://chromedevtools.github.io/devtools-protocol).

By `websockets`, which the tests need anyway: what they do with a page are a dozen commands, and a driver for all
browsers would be the largest package of all.
"""

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from websockets.sync.client import ClientConnection, connect

START_SECONDS: Final = 30
SECONDS: Final = 60
"""Seconds that a page gets for what is waited for."""
_UNBOUNDED: Final[dict[str, Any]] = {"max_size": None, "max_queue": None, "ping_interval": None}
"""Of a connection: what nobody reads for a minute waits, and is no reason to hang up."""
KEYS: Final = {"Enter": ("\r", 13), "Escape": ("", 27), "/": ("/", 191), "?": ("?", 191)}


def axe_core() -> Path | None:
    """Return axe-core, where `make test` installs it or NODE_PATH leads to it."""
    folders = [Path(folder) for folder in os.environ.get("NODE_PATH", "").split(os.pathsep) if folder]
    paths = [each / "axe-core" / "axe.min.js" for each in [Path(sys.prefix) / "node" / "node_modules", *folders]]
    return next((path for path in paths if path.exists()), None)


def chromium() -> str | None:
    """Return the path of a Chromium, if there is one."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """One tab, with cookies of its own."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []
        """What the browser told: console messages and errors."""
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a command, and return its result."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=SECONDS))
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                result: dict[str, Any] = message["result"]
                return result
            self.events.append(message)

    def evaluate(self, script: str) -> Any:
        """Return the value of an expression; a promise's, if it is one."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def open(self, url: str) -> None:
        """Open a page as if its address was typed in, and wait until it is there."""
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def wait(self, condition: str, seconds: float = SECONDS) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(AssertionError):  # the page is being replaced
                if self.evaluate(f"Boolean({condition})"):
                    return
            time.sleep(0.02)
        raise AssertionError(f"not within {seconds} s: {condition}; the page says:\n{self.text()}")

    def text(self, selector: str = "body") -> str:
        """Return the text of an element, as it is seen."""
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def click(self, selector: str) -> None:
        """Click on the middle of an element."""
        place = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}}); "
            "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2] })()"
        )
        self.point(*place)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def point(self, x: float, y: float) -> None:
        """Move the pointer."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def press(self, *keys: str) -> None:
        """Press keys, one after the other."""
        for key in keys:
            text, code = KEYS.get(key, (key, ord(key.upper()[0])))
            values = {"key": key, "windowsVirtualKeyCode": code}
            self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **values)
            self.call("Input.dispatchKeyEvent", type="keyUp", **values)

    def theme(self, scheme: str) -> None:
        """Prefer `dark` or `light`."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def size(self, width: int, height: int, scale: float = 1) -> None:
        """Set the size of the window, in pixels of CSS."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )

    def screenshot(self, path: Path) -> None:
        """Write a PNG of what is seen."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def axe(self, *rules: str) -> list[str]:
        """Return what axe-core finds that is against WCAG 2.2 A or AA, or only against these of its rules.

        https://github.com/dequelabs/axe-core/blob/develop/doc/rule-descriptions.md
        """
        script = axe_core()
        assert script is not None
        if not self.evaluate("'axe' in window"):
            self.evaluate(script.read_text())
        tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
        options = {"runOnly": rules or tags, "resultTypes": ["violations"]}  # the others take most of the time
        found = self.evaluate(f"axe.run(document, {json.dumps(options)})")
        return [
            f"{each['id']}: {node['target']} {node['failureSummary']}"
            for each in found["violations"]
            for node in each["nodes"]
        ]

    def faults(self) -> list[str]:
        """Return what the browser complained of: errors of scripts, and what the security policy forbade."""
        found = []
        for event in self.events:
            match event:
                case {"method": "Runtime.exceptionThrown", "params": params}:
                    found.append(str(params["exceptionDetails"]))
                case {"method": "Log.entryAdded", "params": {"entry": {"level": "error", "source": source} as entry}}:
                    if source in {"security", "javascript", "violation"}:
                        found.append(str(entry["text"]))
        return found


class Browser:
    """A Chromium without a window."""

    def __init__(self, root: ClientConnection, address: str) -> None:
        self._root = root
        self._address = address
        self._numbers = itertools.count(1)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._root.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (message := json.loads(self._root.recv(timeout=SECONDS))).get("id") != number:
            pass
        result: dict[str, Any] = message["result"]
        return result

    @contextlib.contextmanager
    def page(self) -> Iterator[Page]:
        """Open a tab, as of a browser that knows nothing yet."""
        context = self._call("Target.createBrowserContext")["browserContextId"]
        target = self._call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        host = self._address.split("/")[2]
        try:
            with connect(f"ws://{host}/devtools/page/{target}", **_UNBOUNDED) as socket:
                yield Page(socket)
        finally:
            self._call("Target.disposeBrowserContext", browserContextId=context)


@contextlib.contextmanager
def running_browser() -> Iterator[Browser]:
    """Run a Chromium."""
    program = chromium()
    assert program is not None
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        options = [
            *("--headless=new", "--remote-debugging-port=0", f"--user-data-dir={profile}", "--no-first-run"),
            *("--disable-gpu", "--disable-extensions", "--disable-background-networking", "--no-default-browser-check"),
            *("--disable-dev-shm-usage", "--disable-component-update", "--disable-sync", "--mute-audio"),
        ]
        if os.geteuid() == 0:  # its sandbox needs another user
            options.append("--no-sandbox")
        with subprocess.Popen([program, *options, "about:blank"], stderr=subprocess.DEVNULL) as process:
            try:
                address = _address(Path(profile) / "DevToolsActivePort", process)
                with connect(address, **_UNBOUNDED) as root:
                    yield Browser(root, address)
            finally:
                process.terminate()


def _address(file: Path, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError, ValueError):
            port, path = file.read_text().split("\n")
            return f"ws://127.0.0.1:{port}{path}"
        time.sleep(0.02)
    raise AssertionError("Chromium did not start")
