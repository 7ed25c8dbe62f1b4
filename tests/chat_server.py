"""A server on loopback that speaks OpenAI's chat completions, and misbehaves on cue."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def completion(text, finish="stop", usage=(100, 20)):
    """The JSON of a reply."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    answer = {"object": "chat.completion", "choices": [choice | {"finish_reason": finish}]}
    if usage:
        answer["usage"] = dict(zip(("prompt_tokens", "completion_tokens"), usage, strict=True))
    return answer


class ChatServer:
    """with ChatServer(script) as server: server.url, server.bodies, server.headers, server.times

    script(body, number) says what request `number` gets: a str, the text of a reply; a dict, the
    JSON of one; (status, JSON or bytes, headers); a function that answers with the handler it is
    given; or "HANG", "HALF", "DRIP", "CLOSE".
    """

    def __init__(self, script, delay=0.0):
        self.script, self.delay, self.lock = script, delay, threading.Lock()
        self.bodies, self.headers, self.times, self.paths = [], [], [], []
        self.now = self.most = 0  # requests at this time, and at the most
        self.closing = threading.Event()
        handler = type("Handler", (_Handler,), {"chat": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        chat = self.chat
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with chat.lock:
            number = len(chat.bodies)
            chat.bodies.append(body)
            chat.headers.append(dict(self.headers))
            chat.paths.append(self.path)
            chat.times.append(time.monotonic())
            chat.now += 1
            chat.most = max(chat.most, chat.now)
        try:
            time.sleep(chat.delay)
            self.answer(chat.script(body, number))
        finally:
            with chat.lock:
                chat.now -= 1

    def answer(self, what):
        if callable(what):
            self.close_connection = True
            with contextlib.suppress(OSError):
                what(self)
            return
        if what == "CLOSE":
            self.close_connection = True
            return
        if what == "HANG":
            self.chat.closing.wait(20)
            self.close_connection = True
            return
        if what in ("HALF", "DRIP"):
            data = json.dumps(completion("all of it")).encode()
            self.head(200, {}, len(data))
            if what == "HALF":
                self.wfile.write(data[:40])
            else:
                for byte in data:
                    if self.chat.closing.wait(0.1):
                        break
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
            self.close_connection = True
            return
        if isinstance(what, str):
            what = completion(what)
        status, data, headers = what if isinstance(what, tuple) else (200, what, {})
        data = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.head(status, headers, len(data))
        self.wfile.write(data)

    def head(self, status, headers, length):
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
