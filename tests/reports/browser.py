"""A headless Chromium, driven over its own pipe: pages are opened, asked, clicked and pictured."""

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--no-first-run", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
# What a key is to the browser, beyond its name.
_KEYS = {"Tab": 9, "Enter": 13, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowUp": 38,
         "ArrowRight": 39, "ArrowDown": 40}  # fmt: skip


class Browser:
    """One Chromium with one tab; use it as a context.

    Args:
        profile: a folder for what it stores.
    """

    def __init__(self, profile: Path) -> None:
        self._profile = profile
        self._number = 0
        self._events: list[dict[str, Any]] = []
        self._rest = b""
        self._session: str | None = None

    def __enter__(self) -> "Browser":
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()

        def place() -> None:  # the browser reads from 3 and writes to 4
            spare = os.dup(theirs_out), os.dup(theirs_in)
            os.dup2(spare[1], 3)
            os.dup2(spare[0], 4)

        self._process = subprocess.Popen(
            [str(CHROMIUM), *FLAGS, f"--user-data-dir={self._profile}", "about:blank"],
            preexec_fn=place, close_fds=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        tab = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self._session = None
        self.send("Browser.close")
        self._process.wait(30)
        os.close(self._in)
        os.close(self._out)

    def send(self, method: str, **parameters: Any) -> Any:
        """Return what the browser answers to a command of its protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self._events.append(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._in, 1 << 16)
            assert more, "the browser has ended"
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def open(
        self, path: Path, fragment: str = "", *, width: int = 1280, dark: bool = False,
        script: bool = True,
    ) -> None:  # fmt: skip
        """Open a page and wait until it has loaded.

        Args:
            path: of the page.
            fragment: of its address.
            width: of the window; one of a phone is told that it is one.
            dark: whether the user prefers dark colours.
            script: whether scripts run.
        """
        phone = width < 600
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1,
            mobile=phone,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Emulation.setScriptExecutionDisabled", value=not script)
        for url in ("about:blank", path.as_uri() + fragment):  # the first, so that it loads anew
            self._events.clear()
            self.send("Page.navigate", url=url)
            self.wait_for("Page.loadEventFired")

    def wait_for(self, event: str) -> None:
        """Wait until the browser has told of an event."""
        while not any(told.get("method") == event for told in self._events):
            self._events.append(self._next())

    @property
    def console(self) -> list[str]:
        """What its console says since the page was opened."""
        kinds = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [json.dumps(e["params"]) for e in self._events if e.get("method") in kinds]

    def ask(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript, as JSON types."""
        answer = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key and let it go."""
        code = _KEYS[key]
        for kind in ("rawKeyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code
            )
        self.settle()

    def settle(self) -> None:
        """Wait until what has been started is drawn."""
        self.ask("new Promise(done => requestAnimationFrame(() => setTimeout(done, 60)))")

    def picture(self, path: Path, clip: dict[str, float] | None = None) -> bytes:
        """Write a picture as PNG, and return it.

        Args:
            path: of the file.
            clip: which part of the page; by default what is in the window.
        """
        more = {} if clip is None else {"clip": {**clip, "scale": 1}, "captureBeyondViewport": True}
        shot = self.send("Page.captureScreenshot", format="png", **more)
        content = base64.b64decode(shot["data"])
        path.write_bytes(content)
        return content
