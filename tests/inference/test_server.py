"""The server: its answers, its refusals, several requests at a time, and the page in a browser."""

import codecs
import contextlib
import http.client
import itertools
import json
import socket
import socketserver
import struct
import threading
import time

import pytest
import torch
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from configs import UserError
from model import GPT, GPTConfig
from nanostories.dataset.tokenizer import build
from nanostories.inference import server as serve
from nanostories.inference.decoder import Decoder
from nanostories.inference.generate import generate
from nanostories.inference.kv_cache import BatchedKVCache
from nanostories.training.huggingface import LoadedModel

EOT = 256
LOADED = LoadedModel(
    torch.nn.Identity(), build("bytes"), max_length=48, bos_ids=[EOT], out_dir="", provenance={}
)
DEFAULTS = {"temperature": 0.8, "top_p": 0.9, "max_new_tokens": 500}
HOSTILE = "</script><img src=x onerror=alert(1)>"
REQUEST = {"prompt": "Once", "temperature": 1.5, "top_p": 0.95, "max_new_tokens": 40, "seed": 4}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def decoder():
    """Random weights, sharp enough that its choices differ from step to step."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them only wait for each other, in a model of this size
    torch.manual_seed(0)
    model = GPT(GPTConfig(257, 48, 2, 2, 32)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    yield Decoder(model)
    torch.set_num_threads(threads)


@contextlib.contextmanager
def running(capsys, *args, **options):
    """A server in a thread that prints nothing, whatever its visitors do."""
    with serve.Server(*args, **options) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield server
        server.shutdown()
        thread.join()
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def server(decoder, capsys):
    with running(capsys, decoder, LOADED, f"ts {HOSTILE}", DEFAULTS, port=0) as server:
        yield server


@pytest.fixture
def slow(monkeypatch):
    """Steps that take at least 15 ms; a list of the cache of each."""
    step, made = BatchedKVCache.step, []

    def slowly(cache, **sampling_kwargs):
        made.append(cache)
        time.sleep(0.015)
        return step(cache, **sampling_kwargs)

    monkeypatch.setattr(BatchedKVCache, "step", slowly)
    return made


def send(server, method="POST", path="/story", body=b"", headers=JSON):
    """The open response to a request; reading it is up to the caller."""
    connection = http.client.HTTPConnection(*server.server_address, timeout=20)
    body = json.dumps(body).encode() if isinstance(body, dict) else body
    connection.request(method, path, body, headers)
    return connection.getresponse()


def read_lines(response):
    assert response.status == 200
    return [json.loads(line) for line in response]


def expected(decoder, request):
    """(text, end) of a story generated without the server."""
    ids, sampling_kwargs = (
        [EOT, *request["prompt"].encode()],
        {k: request[k] for k in ("temperature", "top_p")},
    )
    steps = request["max_new_tokens"]
    [story] = generate(
        decoder,
        [ids],
        EOT,
        [[request["seed"], 0]],
        max_new_tokens=steps,
        max_length=48,
        **sampling_kwargs,
    )
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(bytes(story.ids))
    return text, "finished" if story.ended else "max_length"


def text_and_end(lines):
    return "".join(line["text"] for line in lines[1:-1]), lines[-1]["end"]


@pytest.fixture(scope="module")
def lasting(decoder):
    """Two requests whose stories reach their 40 tokens, and these stories."""
    every = (REQUEST | {"seed": seed} for seed in range(1000))
    pairs = ((request, expected(decoder, request)) for request in every)
    return list(itertools.islice((pair for pair in pairs if pair[1][1] == "max_length"), 2))


def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.01)
    return value


# ---- stories -----------------------------------------------------------------------------------


def test_a_story(server, decoder):
    ends = set()
    for seed in range(4):
        request = REQUEST | {"seed": seed}
        response = send(server, body=request)
        assert response.headers["Content-Type"].startswith("application/x-ndjson")
        assert response.headers["Connection"] == "close"
        lines = read_lines(response)
        assert lines[0] == {"seed": seed, "prompt": "Once"}
        assert text_and_end(lines) == expected(decoder, request)
        ends.add(lines[-1]["end"])
    assert ends == {"finished", "max_length"}


def test_probabilities_are_the_models_own(server, decoder):
    """Those of temperature 1 and top_p 1, whatever the story is sampled with."""
    request = REQUEST | {"max_new_tokens": 1, "temperature": 0, "top_p": 0.1}
    token = read_lines(send(server, body=request))[1]
    cache = BatchedKVCache(decoder, 1, 48)
    with torch.no_grad():
        cache.add_requests([[EOT, *b"Once"]], [0])
        p, best = cache.logits().softmax(-1)[0].topk(5)
    assert [q for _, q in token["others"]] == pytest.approx(p.tolist())
    decode = build("bytes").decode
    assert [text for text, _ in token["others"]] == [decode([i]) for i in best.tolist()]
    assert token["p"] == pytest.approx(p[0].item())


def test_a_seed_is_drawn_and_reported(server, decoder):
    request = {name: value for name, value in REQUEST.items() if name != "seed"}
    lines, others = read_lines(send(server, body=request)), read_lines(send(server, body=request))
    assert text_and_end(lines) == expected(decoder, request | {"seed": lines[0]["seed"]})
    assert lines[0]["seed"] != others[0]["seed"]


@pytest.mark.parametrize("extreme", [
    {"temperature": 0}, {"temperature": 1e-300}, {"temperature": 5}, {"top_p": 1e-6},
    {"seed": 2**63 - 1}, {"prompt": ""}, {"prompt": "x" * 46}, {"prompt": HOSTILE},
    {"prompt": "\x00é\U0001f600"}, {"max_new_tokens": 48},
])  # fmt: skip
def test_what_is_just_allowed(server, extreme):
    lines = read_lines(send(server, body=REQUEST | extreme))
    assert lines[0]["prompt"] == (REQUEST | extreme)["prompt"] and "end" in lines[-1]


# ---- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("body", "line"), [
    (b"", "JSON object"), (b"{", "JSON object"), (b"[1]", "JSON object"), (b'"x"', "JSON object"),
    (b"\xff\xfe\xfd", "JSON object"), (b"[" * 60_000, "JSON object"), ({}, "JSON object"),
    (b'{"prompt": ' + b"9" * 5000 + b"}", "JSON object"),
    ({"prompt": None}, "a prompt"), ({"prompt": 3}, "a prompt"), ({"prompt": ["x"]}, "a prompt"),
    (REQUEST | {"prompt": "\ud800"}, "valid text"),
    (REQUEST | {"prompt": "x" * 47}, "has 48 tokens"),
    (REQUEST | {"temperature": -0.1}, "temperature must be a number from 0 to 5"),
    *((REQUEST | {"temperature": bad}, "temperature must be")
      for bad in (5.1, float("nan"), float("inf"), True, None, "1", [1], 10**400)),
    *((REQUEST | {"top_p": bad}, "top_p must be") for bad in (0, 1.01, -1, True, float("nan"))),
    *((REQUEST | {"max_new_tokens": bad}, "max_new_tokens must be a whole number from 1 to 48")
      for bad in (0, 49, 1.0, True, "9", float("nan"))),
    *((REQUEST | {"seed": bad}, "seed must be") for bad in (-1, 2**63, 1.5, False, None)),
    ({"prompt": "x"}, "temperature must be"),
])  # fmt: skip
def test_a_bad_request_gets_one_clear_line(server, body, line):
    response = send(server, body=body)
    error = json.loads(response.read())["error"]
    assert response.status == 400 and line in error and "\n" not in error


@pytest.mark.parametrize(("status", "request_"), [
    (403, {"headers": JSON | {"Host": "evil.example"}}),
    (403, {"headers": JSON | {"Host": "localhost"}}),  # without the port
    (403, {"headers": JSON | {"Host": "localhost:1"}}),
    (403, {"method": "GET", "path": "/", "headers": {"Host": "evil.example"}}),
    (403, {"headers": JSON | {"Origin": "http://evil.example"}}),
    (403, {"headers": JSON | {"Origin": "null"}}),
    (403, {"headers": JSON | {"Origin": "http://localhost"}}),
    (403, {"headers": {}}),
    (403, {"headers": {"Content-Type": "text/plain"}}),
    (403, {"headers": {"Content-Type": "text/plain; application/json"}}),
    (403, {"headers": {"Content-Type": "application/x-www-form-urlencoded"}}),
    (413, {"body": b" " * (64 * 1024 + 1)}), (413, {"body": b" " * 900_000}),
    (413, {"headers": JSON | {"Content-Length": "9" * 5000}}),
    (411, {"headers": JSON | {"Content-Length": "-1"}}),
    (411, {"headers": JSON | {"Content-Length": "1_0"}}),
    (411, {"headers": JSON | {"Content-Length": "ten"}}),
    (411, {"headers": JSON | {"Transfer-Encoding": "chunked"}, "body": iter([b"0\r\n"])}),
    (404, {"path": "/else"}), (404, {"method": "GET", "path": "/serve.py"}),
    (404, {"method": "GET", "path": "/../README.md"}), (404, {"method": "GET", "path": "/story"}),
    (404, {"method": "OPTIONS"}),
])  # fmt: skip
def test_who_is_refused(server, status, request_):
    response = send(server, **request_)
    answer = response.read().decode()
    assert response.status == status and answer.count("\n") == 1 and "Traceback" not in answer
    assert response.headers["Content-Security-Policy"].startswith("default-src 'none';")


def test_who_is_not(server):
    for name in ("localhost", "127.0.0.1", "[::1]", "LocalHost"):
        host = f"{name}:{server.server_port}"
        headers = {"Content-Type": "application/json; charset=utf-8", "Host": host}
        read_lines(send(server, body=REQUEST, headers=headers | {"Origin": f"http://{host}"}))


def test_a_tunnel_from_another_port(server):
    """A browser at the end of `ssh -L 9000:localhost:8000` sees localhost:9000."""
    for host in ("localhost:9000", "127.0.0.1:9000", "LOCALHOST:9000", "localhost"):
        assert send(server, "GET", "/", headers={"Host": host}).status == 200
        read_lines(
            send(server, body=REQUEST, headers=JSON | {"Host": host, "Origin": f"http://{host}"})
        )
        for origin in (
            "http://localhost:3000",
            "http://evil.example",
            f"ftp://{host}",
            "null",
            host,
        ):
            headers = JSON | {"Host": host, "Origin": origin}
            assert send(server, body=REQUEST, headers=headers).status == 403


@pytest.fixture
def proxied(decoder, capsys):
    """A server that a proxy has as https://stories.example."""
    options = {"port": 0, "allow_host": ("Stories.example", "lab:8443"), "top_k": 1}
    with running(capsys, decoder, LOADED, "ts", DEFAULTS, **options) as server:
        yield server


def test_behind_a_proxy(proxied):
    """By HTTPS, with the outer name passed on or not, with the path passed on or not."""
    own = f"127.0.0.1:{proxied.server_port}"
    for host, origin, prefix in (
        ("stories.example", "https://stories.example", "/"),
        ("stories.example", "https://stories.example", "/models/a/"),
        (own, "https://stories.example", "/"),
        ("lab:8443", "https://lab:8443", "/?a=/b"),
        ("stories.example", None, "/"),
        (own, None, "/"),
    ):
        headers = {"Host": host} | ({"Origin": origin} if origin else {})
        response = send(proxied, "GET", prefix, headers=headers)
        assert response.status == 200 and response.headers["X-Accel-Buffering"] == "no"
        path = prefix.partition("?")[0] + "story"
        read_lines(send(proxied, path=path, body=REQUEST, headers=JSON | headers))
    for host, origin in (
        ("evil.example", "https://evil.example"), ("stories.example.evil", None),
        ("stories.example", "https://evil.example"), (own, "https://evil.example"),
        (own, "https://stories.example:444"), ("lab:8443", "https://stories.example.evil"),
        ("stories.example:80@evil.example", None), ("", None),
    ):  # fmt: skip
        headers = JSON | {"Host": host} | ({"Origin": origin} if origin else {})
        assert send(proxied, body=REQUEST, headers=headers).status == 403
    for name in ("https://stories.example", "", "*", "a b", "stories.example/x"):
        with pytest.raises(UserError, match="allow_host is a name such as"):
            serve.Server(None, LOADED, "", DEFAULTS, allow_host=(name,))


def test_settings_of_every_story(proxied, decoder):
    """top_k of 1 is the likeliest token, whatever the temperature."""
    lines = read_lines(send(proxied, body=REQUEST))
    assert text_and_end(lines) == expected(decoder, REQUEST | {"temperature": 0})


def test_silent_connections_keep_nobody_out(server):
    """More of them than the server lets wait: the oldest give way."""
    silent = [socket.create_connection(server.server_address, timeout=20) for _ in range(250)]
    for number, visitor in enumerate(silent):
        with contextlib.suppress(OSError):
            visitor.sendall(b"POST /story HTTP/1.1\r\nHost: "[: number % 30])
    assert read_lines(send(server, body=REQUEST))
    until(lambda: len(server.unread) <= serve.MAX_UNREAD)
    assert silent[0].recv(100) == b""  # closed
    for visitor in silent:
        visitor.close()
    until(lambda: not server.unread)


def test_a_request_that_drips(server, monkeypatch):
    """Each byte is in time, the whole is not."""
    monkeypatch.setattr(serve.Handler, "timeout", 0.6)
    start = time.monotonic()
    visitor = socket.create_connection(server.server_address, timeout=20)
    with visitor, contextlib.suppress(OSError):
        for _ in range(40):
            visitor.sendall(b"G")
            time.sleep(0.1)
            if not server.unread:
                break
    assert time.monotonic() - start < 3


def test_a_reader_who_dawdles_frees_the_place(server, lasting, monkeypatch):
    """Each line is taken in time, the whole story is not."""
    monkeypatch.setattr(serve.Handler, "timeout", 0.5)
    write, lines = socketserver._SocketWriter.write, []

    def slowly(writer, data):
        lines.append(data)
        time.sleep(0.15 if data.startswith(b"{") else 0)
        if writer._sock.gettimeout() < 0.01:
            raise TimeoutError
        return write(writer, data)

    monkeypatch.setattr(socketserver._SocketWriter, "write", slowly)
    send(server, body=lasting[0][0]).read()
    until(lambda: server.free_slots._value == serve.MAX_REQUESTS)
    assert len(lines) < 15


def test_a_body_that_ends_early(server):
    with socket.create_connection(server.server_address, timeout=20) as visitor:
        head = f"POST /story HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\n"
        head += "Content-Type: application/json\r\nContent-Length: 9\r\n\r\n"
        visitor.sendall(head.encode() + b"{")
        visitor.shutdown(socket.SHUT_WR)
        assert b" 400 " in visitor.recv(100)


def test_a_body_that_never_comes(server, monkeypatch):
    monkeypatch.setattr(serve.Handler, "timeout", 0.2)
    start = time.monotonic()
    with pytest.raises(http.client.HTTPException):
        send(server, headers=JSON | {"Content-Length": "9"})
    assert time.monotonic() - start < 5


def test_a_port_in_use(server, decoder):
    with pytest.raises(UserError, match=r"port [0-9]+: .*in use; choose another"):
        serve.Server(decoder, LOADED, "", DEFAULTS, port=server.server_port)
    with pytest.raises(UserError, match="port must be 0-65535"):
        serve.Server(decoder, LOADED, "", DEFAULTS, port=70_000)


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_serve_until_ctrl_c(decoder, monkeypatch, capsys, host, warned):
    def interrupted(_):
        raise KeyboardInterrupt

    opened = threading.Event()
    monkeypatch.setattr(serve.webbrowser, "open", lambda address: opened.set())
    monkeypatch.setattr(serve.Server, "serve_forever", interrupted)
    serve.serve(decoder, LOADED, "ts", DEFAULTS, host=host, port=0)
    printed = capsys.readouterr()
    assert opened.wait(5) and f"http://{host}:" in printed.out and printed.out.count("\n") == 1
    assert ("anybody on the network" in printed.err) == warned


# ---- several visitors --------------------------------------------------------------------------


def test_the_lock_is_taken_in_the_order_of_arrival():
    lock, order = serve.FairLock(), []

    def visit(number):
        with lock:
            order.append(number)

    visitors = [threading.Thread(target=visit, args=[number]) for number in range(20)]
    with lock:
        for number, visitor in enumerate(visitors):
            visitor.start()
            until(lambda number=number: lock.next_ticket == number + 2)
        assert not order
    for visitor in visitors:
        visitor.join()
    assert order == list(range(20))


def test_two_visitors_take_turns(server, lasting, slow):
    with server.model_lock:  # so that neither has a start
        responses = [send(server, body=request) for request, _ in lasting]
        until(lambda: server.model_lock.next_ticket == 3)
    # Meanwhile the first one's lines wait in its socket.
    stories = [read_lines(response) for response in responses]
    first = slow[0]
    assert [cache is first for cache in slow].count(True) == 40 and len(slow) == 80
    changes = sum(a is not b for a, b in itertools.pairwise(slow))
    assert changes > 60  # of 79; one story after the other would be 1
    assert [text_and_end(story) for story in stories] == [story for _, story in lasting]


def test_the_ninth_visitor_is_refused(server, decoder):
    with server.model_lock:
        responses = [send(server, body=REQUEST) for _ in range(8)]
        ninth = send(server, body=REQUEST)
        assert ninth.status == 503
        assert "8 stories are being generated already" in json.loads(ninth.read())["error"]
    for response in responses:
        assert text_and_end(read_lines(response)) == expected(decoder, REQUEST)
    assert read_lines(send(server, body=REQUEST))


def test_a_visitor_who_leaves_frees_the_place(server, lasting, slow, monkeypatch):
    request = lasting[0][0]
    monkeypatch.setattr(server, "free_slots", threading.Semaphore(1))
    with socket.create_connection(server.server_address, timeout=20) as visitor:
        body = json.dumps(request)
        head = f"POST /story HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        visitor.sendall((head + body).encode())
        received = b""
        while b'"text"' not in received:
            received += visitor.recv(4096)
        assert send(server, body=request).status == 503
        # Closed at once, as by a browser that is killed.
        visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    first = slow[0]
    until(lambda: server.free_slots._value)
    assert [cache is first for cache in slow].count(True) < 40
    read_lines(send(server, body=REQUEST | {"max_new_tokens": 1}))


# ---- the page ----------------------------------------------------------------------------------


def test_the_page_is_sent_whole_and_locked(server):
    response = send(server, "GET", "/", headers={})
    page, policy = response.read().decode(), response.headers["Content-Security-Policy"]
    nonce = policy.partition("script-src 'nonce-")[2].partition("'")[0]
    assert page.count(f'nonce="{nonce}"') == page.count("<script") + page.count("<style") == 3
    assert nonce not in send(server, "GET", "/", headers={}).read().decode()
    for part in ("default-src 'none'", "connect-src 'self'", "base-uri 'none'",
                 "form-action 'none'", "frame-ancestors 'none'"):  # fmt: skip
        assert part in policy
    assert "unsafe" not in policy and HOSTILE not in page
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Referrer-Policy"] == "no-referrer"


def test_the_page_in_a_browser(server, lasting, slow, browser):
    wait = WebDriverWait(browser, 10, 0.02)
    (one, (text, _)), (two, _) = lasting

    def find(css):
        return browser.find_elements(By.CSS_SELECTOR, css)

    def by_id(name):
        return browser.find_element(By.ID, name)

    def fill(name, value):
        by_id(name).clear()
        by_id(name).send_keys(value)

    def slide(name, value):
        browser.execute_script(
            "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))",
            by_id(name), value,
        )  # fmt: skip

    browser.get(server.address + "under/a/path/")
    assert browser.title == f"ts {HOSTILE} – nanoStories"
    assert by_id("max_new_tokens").get_attribute("value") == "48"
    assert by_id("temperature").get_attribute("value") == "0.8"

    # A story grows, token by token.
    slide("temperature", 1.5)
    slide("top_p", 0.95)
    fill("max_new_tokens", "40")
    fill("prompt", one["prompt"])
    fill("seed", str(one["seed"]))
    by_id("generate").click()
    few = wait.until(lambda _: len(find(".token")))
    assert few < 40 and not by_id("generate").is_enabled() and by_id("stop").is_enabled()
    wait.until(lambda _: by_id("generate").is_enabled())
    tokens = find(".token")
    assert len(tokens) == 40 and by_id("status").text == "at the maximum length"
    assert (
        browser.execute_script("return document.querySelector('.story').textContent")
        == one["prompt"] + text
    )

    # Paler is surer.
    shades = browser.execute_script(
        "return [...document.querySelectorAll('.token')].map(t => [t.token.p, "
        "+(getComputedStyle(t).backgroundColor.split(/[,/] /).pop().slice(0, -1))])"
    )
    for p, shade in shades:
        assert shade == pytest.approx(0.55 * (1 - p), abs=0.004)
    assert max(shade for _, shade in shades) - min(shade for _, shade in shades) > 0.05

    # Pointing at a token shows what else there was; leaving it, nothing.
    tip = by_id("tip")
    assert not tip.is_displayed()
    seen = next(token for token in tokens if token.text.strip())
    ActionChains(browser).move_to_element(seen).perform()
    wait.until(lambda _: tip.is_displayed())
    assert len(tip.text.split("%")) == 7 and find("#tip .chosen")
    ActionChains(browser).move_to_element(by_id("generate")).perform()
    wait.until(lambda _: not tip.is_displayed())
    # By keyboard: Tab enters the story, arrows walk.
    browser.execute_script("document.querySelector('.token[tabindex=\"0\"]').focus()")
    wait.until(lambda _: tip.is_displayed())
    before = browser.switch_to.active_element
    ActionChains(browser).send_keys(Keys.ARROW_RIGHT).perform()
    assert browser.switch_to.active_element != before and tip.is_displayed()

    # A hostile prompt is text. Ctrl+Enter tells; Stop stops.
    fill("prompt", HOSTILE[:8])
    fill("seed", str(two["seed"]))
    by_id("prompt").send_keys(Keys.CONTROL, Keys.ENTER)
    wait.until(lambda _: len(find("li")) == 2 and find("li:first-child .token"))
    by_id("stop").click()
    wait.until(lambda _: by_id("generate").is_enabled())
    assert len(find("li:first-child .token")) < 39
    assert "· stopped" in find("li:first-child .settings")[0].text
    assert f"seed {one['seed']} ·" in find("li:last-child .settings")[0].text
    fill("prompt", HOSTILE)
    by_id("generate").click()
    wait.until(lambda _: len(find("li")) == 3 and by_id("generate").is_enabled())
    assert [bold.text for bold in find("li b")] == [HOSTILE, HOSTILE[:8], "Once"]
    assert not find("img") and len(find("script")) == 2
    assert browser.get_log("browser") == []

    # What the server refuses is said in words.
    fill("prompt", "x" * 100)
    by_id("generate").click()
    wait.until(lambda _: by_id("error").text)
    assert by_id("error").text == "the prompt has 101 tokens, but the model ends at 48"
    assert len(find("li")) == 3 and by_id("generate").is_enabled()
    [logged] = browser.get_log("browser")
    assert "400 (Bad Request)" in logged["message"]
