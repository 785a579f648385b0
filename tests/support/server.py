"""An OpenAI-compatible endpoint on loopback that does what a test tells it, also what no endpoint should."""

import contextlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Say:
    """What the server does with one request.

    Attributes:
        text: the content; None is JSON's null.
        status: of HTTP.
        headers: more of them.
        message: more fields of the message.
        body: the whole body, instead of a completion.
        wait_seconds: before anything is sent.
        cut: close the connection in the middle of the body.
        trickle: send the "head" or the "body" a byte at a time, for a minute.
    """

    text: str | None = "Good. Rating: [[7]]"
    status: int = 200
    headers: dict = field(default_factory=dict)
    message: dict = field(default_factory=dict)
    finish_reason: str = "stop"
    body: bytes | None = None
    wait_seconds: float = 0
    cut: bool = False
    trickle: str = ""
    model: str = "judge-2026-01-01"


class Server:
    """`reply(request_body)` says what to do; `bodies` and `headers` have what came, in order."""

    def __init__(self):
        self.reply: Callable[[dict], Say] = lambda body: Say()
        self.bodies: list[dict] = []
        self.headers: list[dict] = []
        self.times: list[float] = []
        lock, server = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle(self):
                with contextlib.suppress(ConnectionError):
                    super().handle()

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    server.bodies.append(body)
                    server.headers.append({name.lower(): value for name, value in self.headers.items()})
                    server.times.append(time.monotonic())
                    say = server.reply(body)
                time.sleep(say.wait_seconds)
                if say.trickle:
                    self._trickle(say.trickle)
                    return
                content = say.body if say.body is not None else json.dumps(_completion(say)).encode()
                try:
                    self.send_response(say.status)
                    for name, value in {"Content-Type": "application/json", **say.headers}.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content[: len(content) // 2] if say.cut else content)
                except ConnectionError:
                    self.close_connection = True
                if say.cut:
                    self.close_connection = True

            def _trickle(self, part):
                self.close_connection = True
                head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n"
                try:
                    self.wfile.write(head + (b"\r\n" if part == "body" else b"X-Slow: "))
                    for _ in range(600):
                        self.wfile.write(b" ")
                        time.sleep(0.1)
                except ConnectionError:
                    pass

            def log_message(self, *_):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, daemon=True, kwargs={"poll_interval": 0.02}).start()
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    @property
    def prompts(self) -> list[str]:
        """The last message of each request."""
        return [body["messages"][-1]["content"] for body in self.bodies]

    def forget(self) -> None:
        """As if nothing had come."""
        for seen in (self.bodies, self.headers, self.times):
            seen.clear()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


def _completion(say: Say) -> dict:
    if say.status != 200:
        return {"error": {"message": f"status {say.status}", "type": "test"}}
    message = {"role": "assistant", "content": say.text, **say.message}
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": say.model,
        "choices": [{"index": 0, "message": message, "finish_reason": say.finish_reason}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }
