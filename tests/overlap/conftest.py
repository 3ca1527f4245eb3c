"""A real browser for the review page: headless Chromium, spoken to in the DevTools protocol by the standard library alone."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--remote-debugging-pipe", "--no-first-run", "--no-default-browser-check", "--disable-gpu",
    "--disable-dev-shm-usage", "--disable-extensions", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--mute-audio", "--hide-scrollbars", "--window-size=1280,900",
)  # fmt: skip
SECONDS = 60.0
KEY_CODES = {"Tab": 9, "Enter": 13, " ": 32, "ArrowLeft": 37, "ArrowRight": 39}


class Browser:
    """One headless Chromium. Messages are JSON with a NUL at the end; it reads them from its descriptor 3 and answers on 4."""

    def __init__(self, binary: str, profile: Path) -> None:
        read_commands, self._commands = os.pipe()
        self._answers, write_answers = os.pipe()
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (read_commands, write_answers)]  # clear of 3 and 4
        command = 'exec 3<&"$0" 4>&"$1"; shift; exec "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", command, *map(str, theirs), binary, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=theirs,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (read_commands, write_answers, *theirs):
            os.close(end)
        self._last, self._buffer, self._answered = 0, b"", dict[int, dict[str, Any]]()
        self.events: list[dict[str, Any]] = []

    def send(self, method: str, session: str | None = None, **knobs: Any) -> int:
        """Start a command: its number."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": knobs} | ({"sessionId": session} if session else {})
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._commands, data) :]
        return self._last

    def call(self, method: str, session: str | None = None, **knobs: Any) -> dict[str, Any]:
        """Run a command: what it answers. An error of the browser is one of the test."""
        return self.answer(self.send(method, session, **knobs))

    def answer(self, number: int) -> dict[str, Any]:
        self.wait(lambda: number in self._answered, f"an answer to command {number}")
        answer = self._answered.pop(number)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def wait(self, is_there: Callable[[], Any], what: str) -> None:
        """Read messages until something is there."""
        end = time.monotonic() + SECONDS
        while not is_there():
            assert time.monotonic() < end, f"the browser did not give {what}"
            self.read(0.1)

    def read(self, seconds: float) -> None:
        """Take in what the browser says within some seconds."""
        if not select.select([self._answers], [], [], seconds)[0]:
            return
        data = os.read(self._answers, 1 << 20)
        assert data, "the browser has ended"
        *whole, self._buffer = (self._buffer + data).split(b"\0")
        for message in map(json.loads, whole):
            if "id" in message:
                self._answered[message["id"]] = message
            else:
                self.events.append(message)

    def open(self, page: Path) -> "Tab":
        """A tab of its own, with the page loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, session, target)
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            tab.call(f"{domain}.enable")
        tab.call("Emulation.setFocusEmulationEnabled", enabled=True)
        tab.go(page.as_uri())
        return tab

    def close(self) -> None:
        os.close(self._commands)
        os.close(self._answers)
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Tab:
    """One page, used as a person uses it: by pointer and keys."""

    def __init__(self, browser: Browser, session: str, target: str) -> None:
        self.browser, self.session, self.target = browser, session, target

    def call(self, method: str, **knobs: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **knobs)

    def events(self, *methods: str) -> list[dict[str, Any]]:
        found = [event for event in self.browser.events if event.get("sessionId") == self.session]
        return [event["params"] for event in found if event["method"] in methods]

    def go(self, address: str) -> None:
        before = len(self.events("Page.loadEventFired"))
        self.call("Page.navigate", url=address)
        self.browser.wait(lambda: len(self.events("Page.loadEventFired")) > before, "a loaded page")

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, script: str) -> None:
        self.browser.wait(lambda: self.run(script), script)

    def drawn(self) -> None:
        """Wait until the page has drawn what was decided."""
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def number(self, name: str) -> float | None:
        """What a `data` element holds, to the last digit."""
        self.drawn()
        value = self.run(f"document.getElementById({json.dumps(name)}).value")
        return float(value) if value != "" else None

    def text(self, selector: str) -> str:
        self.drawn()
        return self.run(f"document.querySelector({json.dumps(selector)}).textContent")

    def point(self, selector: str, across: float = 0.5) -> tuple[float, float]:
        """A place on an element that is really on top there, after scrolling it into view."""
        name = json.dumps(selector)
        self.run(f"document.querySelector({name}).scrollIntoView({{block: 'center'}})")
        left, top, width, height = self.run(
            f"(() => {{ const b = document.querySelector({name}).getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; }})()"
        )
        x, y = left + across * width, top + height / 2
        assert self.run(f"document.querySelector({name}).contains(document.elementFromPoint({x}, {y}))"), f"{selector} is covered"
        return x, y

    def click(self, selector: str, across: float = 0.5) -> None:
        x, y = self.point(selector, across)
        self._mouse("mousePressed", x, y)
        self._mouse("mouseReleased", x, y)

    def drag(self, selector: str, across: float) -> None:
        """Take a slider by its middle and pull it to a share of its width."""
        (start, y), (end, _) = self.point(selector), self.point(selector, across)
        self._mouse("mousePressed", start, y)
        for step in range(1, 11):
            self._mouse("mouseMoved", start + (end - start) * step / 10, y)
        self._mouse("mouseReleased", end, y)

    def _mouse(self, kind: str, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=int(kind != "mouseReleased"), clickCount=1)

    def press(self, key: str) -> None:
        code = KEY_CODES.get(key, ord(key.upper()[0]))
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def type(self, selector: str, text: str) -> None:
        """Put text in the place of what a field holds."""
        self.click(selector)
        self.run(f"document.querySelector({json.dumps(selector)}).select()")
        self.call("Input.insertText", text=text)

    def give_file(self, selector: str, path: Path) -> None:
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def download(self, selector: str, folder: Path, name: str) -> Path:
        """Click what saves a file: the file."""
        folder.mkdir(exist_ok=True)
        self.browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
        self.click(selector)
        self.browser.wait(lambda: (folder / name).exists(), f"the file {name}")
        return folder / name

    def look(self, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """The screen and the colours that the person prefers."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def shoot(self, path: Path, *, whole: bool = False) -> None:
        picture = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(picture["data"]))

    def complaints(self) -> list[Any]:
        """Errors and warnings of the page, and whatever it printed."""
        return self.events("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")

    def requests(self) -> list[str]:
        """What the page asked for, other than itself and the pictures inside it."""
        asked = [event["request"]["url"] for event in self.events("Network.requestWillBeSent")]
        return [url[:200] for url in asked if not url.startswith(("file:", "data:", "blob:", "about:"))]

    def close(self) -> None:
        self.browser.call("Target.closeTarget", targetId=self.target)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    binary = next((found for name in NAMES if (found := shutil.which(name))), None)
    if binary is None:
        pytest.skip(f"no Chromium on this machine (looked for {', '.join(NAMES)}): the review page is not clicked through")
    started = Browser(binary, tmp_path_factory.mktemp("chromium"))
    yield started
    started.close()
