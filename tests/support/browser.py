"""A real browser without a driver: Chromium, spoken to over the pipe of its DevTools protocol."""

import json
import os
import select
import shutil
import subprocess
import sys
import time

# Chromium reads commands from descriptor 3 and answers on 4; here they may lie anywhere, even on one another's.
LAUNCH = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def executable():
    """Where Chromium is, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One headless Chromium with one page. ``faults`` are the errors of its console, in the order they came."""

    def __init__(self, profile, timeout_s=60.0):
        self.timeout_s, self.faults, self._last_id, self._unread, self._events = timeout_s, [], 0, b"", []
        commands, self._write = os.pipe()
        self._read, answers = os.pipe()
        flags = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions",
                 "--disable-background-networking", "--remote-debugging-pipe", f"--user-data-dir={profile}",
        )  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-ISc", LAUNCH, str(commands), str(answers), executable(), *flags, "about:blank"],
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        target = self._call("Target.createTarget", {"url": "about:blank"})["targetId"]
        self._session = None
        self._session = self._call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def close(self):
        """End the browser that was started here."""
        self._session = None
        self._call("Browser.close")
        os.close(self._write)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)

    def open(self, path, width=1280, height=900, scheme="light"):
        """Show a file in a window of that width, in the light or the dark scheme, and wait until it is loaded."""
        self.faults.clear()
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", metrics)
        scheme_feature = {"name": "prefers-color-scheme", "value": scheme}
        self._call("Emulation.setEmulatedMedia", {"media": "", "features": [scheme_feature]})
        self._events.clear()
        self._call("Page.navigate", {"url": path.resolve().as_uri()})
        self._wait_for("Page.loadEventFired")

    def value(self, expression):
        """What a JavaScript expression gives; promises are awaited."""
        asked = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        answer = self._call("Runtime.evaluate", asked)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key, text=""):
        """Press and release a key."""
        code = {"Enter": 13, "Escape": 27}[key]
        for kind in ("keyDown", "keyUp"):
            event = {"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code}
            self._call("Input.dispatchKeyEvent", event | ({"text": text} if text and kind == "keyDown" else {}))

    def call(self, method, **params):
        """Any command of the protocol for this page."""
        return self._call(method, params)

    def _call(self, method, params=None):
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": params or {}}
        session = getattr(self, "_session", None)
        os.write(self._write, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        deadline = time.monotonic() + self.timeout_s
        while True:
            answer = self._next(deadline)
            if answer.get("id") == self._last_id:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def _wait_for(self, event):
        deadline = time.monotonic() + self.timeout_s
        while event not in self._events:
            self._note(self._next(deadline))

    def _note(self, event):
        method, params = event.get("method", ""), event.get("params", {})
        self._events.append(method)
        if method == "Runtime.exceptionThrown":
            self.faults.append(params["exceptionDetails"])
        if method == "Runtime.consoleAPICalled" and params["type"] in {"error", "warning", "assert"}:
            self.faults.append(params["args"])
        if method == "Log.entryAdded" and params["entry"]["level"] in {"error", "warning"}:
            self.faults.append(params["entry"])

    def _next(self, deadline):
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError("the browser does not answer")
            chunk = os.read(self._read, 1 << 20)
            if not chunk:
                raise ConnectionError("the browser has ended")
            self._unread += chunk
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)
