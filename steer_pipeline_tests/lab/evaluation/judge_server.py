"""OpenAI-compatible endpoints on loopback: a scripted one that remembers what it was asked, and a real one."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

NOW = {"retry-after-ms": "20"}  # come back in 20 ms


@dataclass(frozen=True)
class Step:
    """What one request gets: a judge's text, or a failure."""

    text: str | None = "85"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drop: bool = False  # close the connection without a word
    body: str | None = None  # in place of a chat completion
    usage: dict | None = None  # tokens, and perhaps cost


@dataclass(frozen=True)
class Request:
    """What was asked; `attempt` counts from 0 for each prompt."""

    at: float
    prompt: str
    attempt: int
    body: dict
    key: str


class ScriptedJudge:
    """`script(request) -> Step` decides; as a context manager it serves at `url` until the end."""

    def __init__(self, script: Callable[[Request], Step] = lambda request: Step()) -> None:
        self.script = script
        self.requests: list[Request] = []
        self.most_at_once = 0
        self._now, self._attempts, self._lock = 0, Counter(), threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> "ScriptedJudge":
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def prompts(self) -> list[str]:
        return [request.prompt for request in self.requests]

    def _step(self, body: dict, key: str) -> Step:
        prompt = body["messages"][0]["content"]
        with self._lock:
            request = Request(time.monotonic(), prompt, self._attempts[prompt], body, key)
            self._attempts[prompt] += 1
            self.requests.append(request)
        return self.script(request)

    def _handler(judge) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                with judge._lock:
                    judge._now += 1
                    judge.most_at_once = max(judge.most_at_once, judge._now)
                try:
                    self._answer()
                finally:
                    with judge._lock:
                        judge._now -= 1

            def _answer(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                step = judge._step(body, self.headers["Authorization"])
                time.sleep(step.delay)
                if step.drop:
                    self.close_connection = True
                    return
                data = (step.body if step.body is not None else completion(step)).encode()
                self.send_response(step.status)
                for name, value in {"Content-Type": "application/json", **step.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def completion(step: Step) -> str:
    if step.status != 200:
        return json.dumps({"error": {"message": step.text}})
    message = {"role": "assistant", "content": step.text}
    return json.dumps(
        {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "scripted",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            **({} if step.usage is None else {"usage": step.usage}),
        }
    )


@contextmanager
def mlx_server(model: Path, log: Path) -> Iterator[str]:
    """The address of mlx_lm's OpenAI-compatible server with a model; skips the test where mlx_lm is not installed."""
    pytest.importorskip("mlx_lm")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(model), "--port", str(port)]
    with log.open("w") as said:
        server = subprocess.Popen(
            command, stdout=said, stderr=said, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
    try:
        deadline = time.monotonic() + 240  # it needs four seconds of processor time; machines are shared
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.kill()
        server.wait()
