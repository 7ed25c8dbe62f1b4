"""
A page to try a trained model: give it a beginning, watch the story grow, see what it wavered over.

    python sample.py --serve                     # opens http://127.0.0.1:8000/

GET / is page.html. POST /story takes the first line as JSON (a random seed if it has none) and
answers with the others, each sent as soon as its token is chosen:

    {"prompt": "Once", "temperature": 0.8, "top_p": 1, "max_new_tokens": 200, "seed": 7}
    {"seed": 7, "prompt": "Once"}
    {"text": " upon", "p": 0.98, "others": [[" upon", 0.98], [" there", 0.01], ...]}
    {"end": "finished"}                          # or "max_length"

p is the model's own, before temperature and top_p; others are the five likeliest. A mistake gets
4xx or 503 and {"error": "one line"}. Only this machine reaches the page by default; what other
sites in its browser send fails at Host (a name made to lead here), Origin or Content-Type.
"""

import codecs
import json
import secrets
import socket
import sys
import threading
import webbrowser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

import torch

from configs import UserError
from nanostories.inference.generate import available_tokens
from nanostories.inference.kv_cache import BatchedKVCache

PLACES = 8  # stories told at the same time
LONGEST_BODY = 64 * 1024  # bytes of a request


class Turns:
    """A lock for `with` that is taken in the order of asking; threading.Lock promises none."""

    def __init__(self):
        self.changed, self.tickets, self.turn = threading.Condition(), 0, 0

    def __enter__(self):
        with self.changed:
            mine, self.tickets = self.tickets, self.tickets + 1
            self.changed.wait_for(lambda: self.turn == mine)

    def __exit__(self, *_):
        with self.changed:
            self.turn += 1
            self.changed.notify_all()


class Server(ThreadingHTTPServer):
    """What all requests share; see `make_server`."""

    allow_reuse_port = False  # newer Pythons have True, and two servers would share a port

    def __init__(self, decoder, found, name, defaults, host, port):
        self.decoder, self.found, self.max_length = decoder, found, found.max_length
        # The facts stand in a script element, where nothing but "<" could end the JSON.
        facts = json.dumps(defaults | {"name": name, "max_length": self.max_length}).replace(
            "<", "\\u003c"
        )
        page = Path(__file__).with_name("page.html").read_text("utf-8")
        self.page = page.replace("{facts}", facts)
        self.turns, self.places = Turns(), threading.Semaphore(PLACES)
        super().__init__((host, port), Handler)
        bound, port = self.server_address
        self.address = f"http://{host}:{port}/"
        local = {"localhost", "127.0.0.1", "[::1]", host}
        names = local if ip_address(bound).is_loopback else set()
        # What a Host header may say; empty: anything, for nobody knows all names of a machine.
        self.hosts = {f"{name}:{port}" for name in names} | (names if port == 80 else set())

    def handle_error(self, request, client_address):
        """Print a traceback, unless it is that the visitor went away, in one of several ways."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def understand(self, body):
        """The arguments for `tell` of a request's body (bytes); UserError for a line to mend."""
        try:
            asked = json.loads(body)
            (prompt := asked["prompt"]).encode()  # half of a surrogate pair is JSON, but no text
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
            raise UserError("the request must be a JSON object with a prompt, valid text") from None
        asked.setdefault("seed", secrets.randbelow(2**32))
        for name, kinds, low, high in (
            ("temperature", (int, float), 0, 5), ("top_p", (int, float), 1e-6, 1),
            ("max_new_tokens", (int,), 1, self.max_length), ("seed", (int,), 0, 2**63 - 1),
        ):  # fmt: skip
            # type(), as isinstance takes True for an int. NaN is in no range.
            if type(asked.get(name)) not in kinds or not low <= asked[name] <= high:
                number = "a number" if float in kinds else "a whole number"
                raise UserError(f"{name} must be {number} from {low} to {high}")
        ids = self.found.encode_prompt(prompt)
        steps = available_tokens(self.decoder, ids, asked["max_new_tokens"], self.max_length)
        # Rounded, a temperature too close to 0 to divide float32 by is 0: the likeliest token.
        return prompt, ids, steps, asked["seed"], round(asked["temperature"], 6), asked["top_p"]

    @torch.no_grad()
    def tell(self, prompt, ids, steps, seed, temperature, top_p):
        """Yield the objects of an answer. ids: the prompt's; steps: new ones at most."""
        yield {"seed": seed, "prompt": prompt}
        with self.turns:
            cache = BatchedKVCache(self.decoder, 1, len(ids) + steps)
            cache.add_requests([ids], [[seed, 0]])  # as the first story of sample.py --seed
        tokenizer = self.found.tokenizer
        # A token may end inside a character: its bytes wait until it is whole.
        text = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for _ in range(steps):
            with self.turns:  # for all that computes, and for nothing that waits for a visitor
                token = cache.step(temperature=temperature, top_p=top_p).item()
                p = cache.last_logits[0].softmax(-1)  # (vocab_size,)
                others = p.topk(min(5, len(p))).indices.tolist()
                chosen, *ranked = p[[token, *others]].tolist()
            if token == tokenizer.eot:
                break
            others = [[tokenizer.decode([i]), q] for i, q in zip(others, ranked, strict=True)]
            piece = text.decode(tokenizer.decode_bytes([token]))
            yield {"text": piece, "p": chosen, "others": others}
        yield {"end": "finished" if token == tokenizer.eot else "max_length"}


class Handler(BaseHTTPRequestHandler):
    """One request. The base class speaks HTTP/1.0: a reply ends where the connection does."""

    timeout = 30  # seconds that reading or writing may stand still
    disable_nagle_algorithm = True  # a token is sent at once

    def answer(self):
        routes = {("GET", "/"): self.show_page, ("POST", "/story"): self.tell_story}
        try:
            if self.server.hosts and self.headers.get("Host", "").lower() not in self.server.hosts:
                raise UserError(f"the page is at {self.server.address} only", 403)
            if not (action := routes.get((self.command, self.path))):
                raise UserError(f"nothing is here; the page is at {self.server.address}", 404)
            action()
        except UserError as error:
            self.refuse(*error.args)

    do_GET = do_POST = do_OPTIONS = answer  # OPTIONS asks if another site may post: it may not

    def show_page(self):
        nonce = secrets.token_hex(16)  # the page's own script and style have it, no others
        own = f"script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
        page = self.server.page.replace("{nonce}", nonce)
        self.reply(200, "text/html", page, own + "img-src data:; connect-src 'self'; ")

    def tell_story(self):
        origin, length = self.headers.get("Origin"), self.headers.get("Content-Length", "")
        if self.headers.get_content_type() != "application/json":
            raise UserError("the Content-Type must be application/json", 403)
        if origin not in (None, f"http://{self.headers.get('Host')}"):
            raise UserError("other sites may not post here", 403)
        if not length.isdecimal():
            raise UserError("the Content-Length must be a number of bytes", 411)
        if len(length) > 9 or int(length) > LONGEST_BODY:
            raise UserError(f"the request is longer than {LONGEST_BODY:,} bytes", 413)
        wish = self.server.understand(self.rfile.read(int(length)))
        if not self.server.places.acquire(blocking=False):
            raise UserError(f"{PLACES} stories are being told already; try again soon", 503)
        try:
            self.reply(200, "application/x-ndjson")
            for line in self.server.tell(*wish):
                self.wfile.write(json.dumps(line).encode() + b"\n")
        finally:
            self.server.places.release()

    def reply(self, status, kind, text="", policy=""):
        self.send_response(status)
        policy += "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Security-Policy", f"default-src 'none'; {policy}")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(text.encode())

    def refuse(self, line, status=400):
        if self.command != "POST":
            return self.reply(status, "text/plain", line + "\n")
        self.reply(status, "application/json", json.dumps({"error": line}) + "\n")
        # Closed with its body unread, a connection is reset and the visitor may miss the answer.
        self.connection.shutdown(socket.SHUT_WR)
        self.rfile.read(16 * LONGEST_BODY)

    def log_message(self, *_):
        """Say nothing: the terminal is for the address."""


def make_server(decoder, found, name, defaults, host="127.0.0.1", port=8000):
    """
    A server that listens at `address` and answers within `serve_forever()`.

    found: a pretrained.Trained; decoder: the Decoder of its model. name: for the title. defaults: a
    dict of temperature, top_p and max_new_tokens. port: 0 takes a free one. Raises UserError where
    it cannot listen.
    """
    try:
        return Server(decoder, found, name, defaults, host, port)
    except (OSError, OverflowError) as error:
        raise UserError(f"no page at {host}, port {port}: {error}; choose another port") from None


def serve(*args, **options):
    """Open what `make_server` makes in the browser and keep it up until Ctrl-C."""
    with make_server(*args, **options) as server:
        print(f"the page is at {server.address} (Ctrl-C ends it)", flush=True)
        if not server.hosts:
            print("warning: anybody on the network can reach it", file=sys.stderr, flush=True)
        # In a thread: a browser in the terminal returns only when it is left.
        threading.Thread(target=webbrowser.open, args=[server.address], daemon=True).start()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            server.turns.__enter__()  # for good: Python must not end in the middle of a step
