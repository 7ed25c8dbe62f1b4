"""A page to try a trained model: type a beginning, watch the story grow, see what else was likely.

    python sample.py --serve                     # opens http://127.0.0.1:8000/

GET / is nanostories/page/page.html. POST /story takes the first line as JSON (without a seed it
draws one) and answers with the others, each sent as soon as its token is sampled:

    {"prompt": "Once", "temperature": 0.8, "top_p": 1, "max_new_tokens": 200, "seed": 7}
    {"seed": 7, "prompt": "Once"}
    {"text": " upon", "p": 0.98, "others": [[" upon", 0.98], [" there", 0.01], ...]}
    {"end": "finished"}                          # or "max_length"

p is the model's probability before temperature and top_p; others are the five likeliest tokens. A
bad request gets 4xx or 503 and {"error": "one line"}. By default only this computer reaches the
page, or who has an SSH tunnel to it; what another website sends through its browser is refused by
its Host, Origin or Content-Type. A proxy may serve it by HTTPS and under any path that ends in "/",
by the names in allow_host.
"""

import codecs
import contextlib
import json
import re
import secrets
import socket
import sys
import threading
import time
import webbrowser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address

import torch

from configs import RANGES, UserError
from nanostories import page
from nanostories.inference.generate import available_tokens
from nanostories.inference.healing import Healer
from nanostories.inference.kv_cache import NO_PENALTIES

MAX_REQUESTS = 8  # stories generated at the same time
MAX_BODY_BYTES = 64 * 1024
MAX_UNREAD = 100  # connections that have not sent a whole request yet


def without_port(host):
    return re.sub(r":\d*$", "", host)


class FairLock:
    """A lock that threads get in the order they came; threading.Lock promises no order."""

    def __init__(self):
        self.changed, self.next_ticket, self.now_serving = threading.Condition(), 0, 0

    def __enter__(self):
        with self.changed:
            ticket, self.next_ticket = self.next_ticket, self.next_ticket + 1
            self.changed.wait_for(lambda: self.now_serving == ticket)

    def __exit__(self, *_):
        with self.changed:
            self.now_serving += 1
            self.changed.notify_all()


class Server(ThreadingHTTPServer):
    """A server at `address`. decoder: of the model of `loaded`, a LoadedModel. title: of the page.
    defaults: a dict of temperature, top_p and max_new_tokens. port: 0 takes a free one. allow_host:
    names that a proxy has for it. stop, top_k, penalties: of every story. Raises UserError if it
    cannot listen."""

    allow_reuse_port = False  # newer Pythons have True, and two servers would share a port
    request_queue_size = MAX_UNREAD

    def __init__(
        self, decoder, loaded, title, defaults, host="127.0.0.1", port=8000, allow_host=(),
        stop=None, top_k=0, penalties=NO_PENALTIES,
    ):  # fmt: skip
        self.decoder, self.loaded = decoder, loaded
        self.stop, self.top_k, self.penalties = stop, top_k, penalties
        settings = defaults | {"title": title, "max_length": loaded.max_length}
        self.page = page.fill("server.js", settings)
        self.model_lock, self.free_slots = FairLock(), threading.Semaphore(MAX_REQUESTS)
        self.unread = {}  # {connection: since when}, the oldest first
        for name in allow_host:
            if not re.fullmatch(r"[\w.-]+(:\d+)?", name):
                raise UserError(f"allow_host is a name such as stories.example, not '{name}'")
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError, TypeError) as error:
            raise UserError(f"no page at {host}, port {port}: {error}; choose another") from None
        bound, port = self.server_address
        self.address, self.is_local = f"http://{host}:{port}/", ip_address(bound).is_loopback
        # The Host headers to accept, whatever their port, as a tunnel may have another; empty: all,
        # as a computer on a network has unknown names. sites: the page's own, port included.
        local = {"localhost", "127.0.0.1", "[::1]", host} if self.is_local or allow_host else set()
        self.sites = {name.lower() for name in allow_host}
        self.names = local | {without_port(site) for site in self.sites}
        self.sites |= {f"{name}:{port}" for name in local} | (local if port == 80 else set())

    def process_request(self, request, client_address):
        self.unread[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        self.unread.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self):
        """End connections that take too long to send a request; where they are too many, the
        oldest: so they keep nobody out."""
        for connection, since in list(self.unread.items()):
            if len(self.unread) > MAX_UNREAD or time.monotonic() - since > Handler.timeout:
                self.unread.pop(connection, None)
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address):
        """Print a traceback, unless the browser only closed the connection."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def parse_body(self, body):
        """The arguments for `generate`, of a request's body; UserError if it is bad."""
        try:
            request = json.loads(body)
            (prompt := request["prompt"]).encode()  # half a surrogate pair is JSON, but no text
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
            raise UserError("the request must be a JSON object with a prompt, valid text") from None
        request.setdefault("seed", secrets.randbelow(2**32))
        max_length = self.loaded.max_length
        for name, kind, low, high in (
            ("temperature", float, 0, 5),
            ("top_p", float, *RANGES["top_p"]),
            ("max_new_tokens", int, 1, max_length),
            ("seed", int, *RANGES["seed"]),
        ):
            # type(), as isinstance takes True for an int. NaN is in no range.
            if type(request.get(name)) not in (int, kind) or not low <= request[name] <= high:
                number = "a number" if kind is float else "a whole number"
                raise UserError(f"{name} must be {number} from {low} to {high}")
        ids = self.loaded.encode_prompt(prompt)
        steps = available_tokens(self.decoder, ids, request["max_new_tokens"], max_length)
        # Rounded, a temperature too close to 0 to divide float32 by is 0: the likeliest token.
        kwargs = {"temperature": round(request["temperature"], 6), "top_p": request["top_p"]}
        kwargs["top_k"] = self.top_k
        return prompt, ids, steps, request["seed"], kwargs

    @torch.no_grad()
    def generate(self, prompt, ids, steps, seed, sampling_kwargs):
        """Yield the objects of an answer. ids: the prompt's; steps: most new tokens."""
        yield {"seed": seed, "prompt": prompt}
        tokenizer, typed = self.loaded.tokenizer, self.loaded.tokenizer.decode_bytes(ids)
        heal = Healer(tokenizer, **sampling_kwargs)
        with self.model_lock:
            cache = self.decoder.new_cache(1, len(ids) + steps, **self.penalties)
            cache.add_requests([ids], [[seed, 0]], heal)  # as the first story of sample.py --seed
        # A token may end inside a character: its bytes wait until the character is complete.
        characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        if text := characters.decode(tokenizer.decode_bytes(ids)[len(typed) :]):
            yield {"text": text, "p": heal.p, "others": []}
        for _ in range(steps):
            with self.model_lock:  # held while computing, never while waiting for a browser
                token = cache.step(**sampling_kwargs).item()
                p = cache.last_logits[0].softmax(-1)  # (vocab_size,)
                others = p.topk(min(5, len(p))).indices.tolist()
                token_p, *others_p = p[[token, *others]].tolist()
            if token == tokenizer.eot:
                break
            others = [[tokenizer.decode([i]), q] for i, q in zip(others, others_p, strict=True)]
            text = characters.decode(tokenizer.decode_bytes([token]))
            yield {"text": text, "p": token_p, "others": others}
            ids.append(token)
            if self.stop and self.stop(ids):
                break
        else:
            return (yield {"end": "max_length"})
        yield {"end": "finished"}


class Handler(BaseHTTPRequestHandler):
    """One request. The base class speaks HTTP/1.0: a reply ends when the connection closes."""

    timeout = 30  # seconds without progress in reading or writing
    disable_nagle_algorithm = True  # a token is sent at once

    def answer(self):
        # Before the last "/" stands what a proxy has the page under, if it passes that on.
        routes = {("GET", ""): self.send_page, ("POST", "story"): self.send_story}
        action = routes.get((self.command, self.path.partition("?")[0].rpartition("/")[2]))
        self.host, names = self.headers.get("Host", "").lower(), self.server.names
        try:
            if names and without_port(self.host) not in names:
                raise UserError(f"the page is at {self.server.address} only, or --allow_host", 403)
            if not action:
                raise UserError(f"nothing is here; the page is at {self.server.address}", 404)
            action()
        except UserError as error:
            self.refuse(*error.args)

    do_GET = do_POST = do_OPTIONS = answer  # OPTIONS: may another site post? No.

    def send_page(self):
        nonce = secrets.token_hex(16)  # on the page's own script and style, so no other runs
        own = f"script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
        page = self.server.page.replace("{nonce}", nonce)
        self.reply(200, "text/html", page, own + "img-src data:; connect-src 'self'; ")

    def send_story(self):
        origin, length = self.headers.get("Origin"), self.headers.get("Content-Length", "")
        if self.headers.get_content_type() != "application/json":
            raise UserError("the Content-Type must be application/json", 403)
        # A browser says where the page is from that posts. What says nothing has to know the port.
        scheme, _, site = (origin or f"http://{self.host}").lower().partition("://")
        sites = self.server.sites | ({self.host} if origin or not self.server.names else set())
        if scheme not in ("http", "https") or site not in sites:
            raise UserError("other sites may not post here", 403)
        if not length.isdecimal():
            raise UserError("the Content-Length must be a number of bytes", 411)
        if len(length) > 9 or int(length) > MAX_BODY_BYTES:
            raise UserError(f"the request is longer than {MAX_BODY_BYTES:,} bytes", 413)
        request = self.server.parse_body(self.rfile.read(int(length)))
        if not self.server.free_slots.acquire(blocking=False):
            raise UserError(f"{MAX_REQUESTS} stories are being generated already; try again", 503)
        self.server.unread.pop(self.connection, None)
        patience = self.timeout  # seconds that all the writing may wait for the browser
        try:
            self.reply(200, "application/x-ndjson")
            for line in self.server.generate(*request):
                start = time.monotonic()
                self.wfile.write(json.dumps(line).encode() + b"\n")
                patience = max(1e-3, patience - (time.monotonic() - start))
                self.connection.settimeout(patience)
        finally:
            self.server.free_slots.release()

    def reply(self, status, kind, text="", policy=""):
        self.send_response(status)
        policy += "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Security-Policy", f"default-src 'none'; {policy}")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Accel-Buffering", "no")  # a proxy shall pass on each token at once
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(text.encode())

    def refuse(self, line, status=400):
        if self.command != "POST":
            return self.reply(status, "text/plain", line + "\n")
        self.reply(status, "application/json", json.dumps({"error": line}) + "\n")
        # A connection closed with its body unread is reset, and the answer may be lost.
        self.connection.shutdown(socket.SHUT_WR)
        self.rfile.read(16 * MAX_BODY_BYTES)

    def log_message(self, *_):
        """Print nothing: the terminal is for the address."""


def serve(*args, **options):
    """Start a Server(*args, **options), open its page in the browser, and run until Ctrl-C."""
    with Server(*args, **options) as server:
        print(f"the page is at {server.address} (Ctrl-C ends it)", flush=True)
        if not server.is_local:
            print("warning: anybody on the network can reach it", file=sys.stderr, flush=True)
        # In a thread: a browser in the terminal returns only when the user quits it.
        threading.Thread(target=webbrowser.open, args=[server.address], daemon=True).start()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            server.model_lock.__enter__()  # for good: Python must not end in the middle of a step
