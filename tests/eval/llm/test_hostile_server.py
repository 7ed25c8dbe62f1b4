"""A server that does its worst: it echoes the key, never ends, and refuses what it is sent."""
# ruff: noqa: SIM117 - a server, a client of it, and what that raises

import base64
import json
import os
import random
import signal
import string
import subprocess
import sys
import threading
import time
import urllib.parse

import pytest
from chat_server import ChatServer, completion

from configs import ROOT, UserError, printable
from eval.llm import client, grading, rubrics
from eval.llm.redact import redact
from eval.llm.settings import KEY_VARIABLE, JudgeSettings, without_refused

LETTERS = string.ascii_letters + string.digits
KEY = "sk-proj-" + "".join(random.Random(1).choices(LETTERS + "-_", k=48))


def open_client(server, path, **changes):
    settings = {"judge": "tiny", "max_tokens": 50, "concurrency": 1, "timeout": 5.0} | changes
    settings = JudgeSettings(base_url=server.url, **settings)
    return client.Client(settings, path / "replies.jsonl", "test-1")


def user(text):
    return [{"role": "user", "content": text}]


def lines(path):
    return [json.loads(line) for line in (path / "replies.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(client, "FIRST_WAIT", 0.01)
    monkeypatch.setenv(KEY_VARIABLE, KEY)


# ----------------------------------------------------------------------------------------------
# the key, however it is echoed

escaped = "".join(f"\\u{ord(c):04x}" for c in KEY)
ECHOES = {
    "whole": KEY, "twice": KEY * 2, "lower case": KEY.lower(),
    "cut": KEY[:26], "middle": KEY[9:17], "end": KEY[-8:],
    "in chunks": " ".join(KEY[i : i + 4] for i in range(0, 56, 4)), "in lines": "\n".join(KEY),
    "in a list": str([KEY[i : i + 5] for i in range(0, 56, 5)]), "between dots": ".".join(KEY),
    "between escape sequences": "\x1b[0m".join(KEY[i : i + 7] for i in range(0, 56, 7)),
    "between zero-widths": "\u200b".join(KEY), "joined by its own marks": "-".join(KEY),
    "base64": base64.b64encode(KEY.encode()).decode(),
    "base64 of the header": base64.urlsafe_b64encode(f"Bearer {KEY}".encode()).decode(),
    "base64 of a cut": base64.b64encode(KEY[5:17].encode()).decode(),
    "base64 in lines": base64.encodebytes(KEY.encode()).decode(), "hex": KEY.encode().hex(),
    "URL": urllib.parse.quote(KEY, safe=""), "percent": "".join(f"%{ord(c):02X}" for c in KEY),
    "percent twice": "".join(f"%25{ord(c):02X}" for c in KEY), "JSON": escaped,
    "JSON in JSON": json.dumps(json.dumps(escaped)), "marks escaped": KEY.replace("-", "\\u002d"),
    "HTML": "".join(f"&#x{ord(c):x};" for c in KEY),
    "quoted-printable": "".join(f"={ord(c):02X}" for c in KEY),
    "UTF-16": "\0".join(KEY),
    "decimal": "".join(f"&#{ord(c)};" for c in KEY),
    "base64 in a URL": urllib.parse.quote(base64.b64encode(b":" + KEY.encode()).decode(), safe=""),
}  # fmt: skip


def holds_key(text):
    """Whether a part of the key is in a text: 8 characters in a row, plain or in some code."""
    codes = [KEY, KEY.lower(), escaped, ECHOES["percent"], ECHOES["HTML"], KEY.encode().hex(),
             ECHOES["decimal"]]  # fmt: skip
    codes += [base64.b64encode(b"?" * n + KEY.encode()).decode()[n + 1 :] for n in range(3)]
    sizes = [8, 8, 48, 24, 48, 16, 40, 12, 12, 12]
    text += "".join(c for c in text if c.isascii() and (c.isalnum() or c in "-_"))  # in chunks
    return any(
        code[i : i + size] in text
        for code, size in zip(codes, sizes, strict=True) for i in range(len(code) - size + 1)
    )  # fmt: skip


@pytest.mark.parametrize("name", ECHOES)
@pytest.mark.parametrize("before", [0, 250, 285, 297, 1010])
def test_no_part_of_the_key_is_let_out(tmp_path, capfd, name, before):
    """In replies, in what the server says of an error, in its reason for ending, and in JSON."""
    text = "x" * before + " " + ECHOES[name] + " it was"
    answers = [
        text, completion("yes", text), (401, {"error": {"message": text}}, {}),
        (403, {"error": text}, {}), (400, {"detail": [{"input": text}]}, {}),
        (500, text.encode(), {}), (200, text.encode(), {}), (200, {"choices": text}, {}),
        (404, {"error": {"message": [text]}}, {}),
    ]  # fmt: skip
    said = []
    with ChatServer(lambda body, n: answers[int(body["messages"][0]["content"])]) as server:
        with open_client(server, tmp_path, tries=1) as judge:
            for i in range(len(answers)):
                try:
                    said.append(judge.complete(user(str(i))))
                except UserError as error:
                    said.append(str(error))
                    assert "\n" not in said[-1] and len(said[-1]) < 500
    said += [*capfd.readouterr(), *map(str, lines(tmp_path))]
    assert len(said) == len(answers) + 4 and not any(map(holds_key, said))


def test_a_story_keeps_its_words_whatever_the_key():
    """Local servers take any key; a part of one in a story is a word as long as it can be."""
    for key in ("x", "not-needed", "anything", "no-key-required", "lm-studio", "token-abc123"):
        text = "Anything was possible. A key was not needed, no more than 123 tokens or a studio."
        assert redact(text, key) == text
    assert redact(f"Bearer {KEY}, {KEY}; sk-proj-****abcd", KEY) == "Bearer ***, ***; *******abcd"


@pytest.mark.parametrize("part", ["a b ", "sk-proj", "s", "%41", "%25", "\\", "\\u00", KEY, "A\0"])
def test_a_megabyte_is_redacted_in_a_second(part):
    begin = time.process_time()
    redact(part * (1_000_000 // len(part)), KEY)
    assert time.process_time() - begin < 1


# ----------------------------------------------------------------------------------------------
# what a terminal obeys

OBEYED = "\x1b]0;title\x07\x1b[2J\x9b31m\r\b\x7f\u202e\u2066\u200f\u2028\x85\x00\ud800\U000e0041"


def test_no_escape_sequence_reaches_the_terminal(tmp_path):
    assert printable(f"a{OBEYED}b\n\tc d é 猫 \U0001f600").replace("\ufffd", "") == (
        "a]0;title[2J31mb\n\tc d é 猫 \U0001f600"
    )
    answers = [
        (401, {"error": {"message": OBEYED}}, {}), (500, OBEYED.encode("utf-8", "replace"), {}),
        (200, {"choices": OBEYED}, {}), (302, b"\x1b[2J", {"Location": "\x1b[2J"}),
        lambda handler: handler.wfile.write(b"HTTP/1.1 \x1b[2J\x9b31m no status\r\n\r\n"),
        lambda handler: handler.wfile.write(b"\x1b]0;title\x07\r\n\r\n"),
        lambda handler: handler.wfile.write(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n[Errno 1] \x1b[2J" + KEY.encode()
            + b"\r\nno chunk\r\n"
        ),
    ]  # fmt: skip
    with ChatServer(lambda body, n: answers[n]) as server:
        with open_client(server, tmp_path, tries=1) as judge:
            for i in range(len(answers)):
                with pytest.raises(UserError) as error:
                    judge.complete(user(str(i)))
                assert str(error.value).isprintable() and not holds_key(str(error.value))


def test_no_story_commands_the_terminal(tmp_path, capfd):
    """Neither in the prompt of a dry run, nor in the tables of knowledge and reward."""
    from eval import knowledge, reward  # here: the commands of other tests need no torch

    settings = JudgeSettings(judge="tiny", base_url="http://127.0.0.1:9", dry_run=True)
    grading.grade(settings, rubrics.REPORT, [rubrics.JudgeItem(OBEYED, OBEYED)], tmp_path / "none")
    row = {"kind": "facts", "prompt": OBEYED, "completion": OBEYED, "verdict": "success"}
    row["margins"] = [1.0]
    scores = {"all": dict.fromkeys(("accuracy", "margin", "rating"))}
    knowledge.print_tables([{"model": "a", "completions": [row], "scores": scores}])
    model = dict.fromkeys(reward.METRICS) | {"relative_to_reference": {}, "distinct_2": None}
    line = {"model": "a", "verdict": "good", "start": OBEYED, "text": OBEYED}
    reward.show({"models": {"a": model}}, [line], 1)
    out = capfd.readouterr().out
    assert out.count("]0;title") == 6 and out.replace("\n", "").replace("\t", "").isprintable()


# ----------------------------------------------------------------------------------------------
# a server without an end


def endless(data, head=b""):
    """An answer of `head`, and then `data` again and again."""

    def answer(handler):
        handler.wfile.write(head)
        while not handler.chat.closing.wait(0.02):
            handler.wfile.write(data)
            handler.wfile.flush()

    return answer


def flood(handler):
    """100-Continue as fast as it can be sent."""
    while not handler.chat.closing.is_set():
        handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)


OK = b"HTTP/1.1 200 OK\r\n"
ENDLESS = {
    "flood": flood,
    "100-continue": endless(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "status line": endless(b"H"),
    "header by header": endless(b"a", OK + b"X-A: "),
    "slow body": endless(b" ", OK + b"Content-Length: 1000000\r\n\r\n"),
    "body without a length": endless(b" ", OK + b"\r\n"),
    "chunks": endless(b"1\r\n \r\n", OK + b"Transfer-Encoding: chunked\r\n\r\n"),
    "chunk extension": endless(b"a", OK + b"Transfer-Encoding: chunked\r\n\r\n1;"),
    "trailers": endless(b"a: b\r\n", OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n"),
    "slow refusal": endless(b" ", b"HTTP/1.1 503 Busy\r\n\r\n"),
    "slow redirect": endless(b" ", b"HTTP/1.1 302 Moved\r\nLocation: /\r\n\r\n"),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_call_ends_at_its_timeout(tmp_path, name):
    with ChatServer(lambda body, n: "at last" if n else ENDLESS[name]) as server:
        with open_client(server, tmp_path, timeout=0.5, price_out=1e6) as judge:
            begin = time.monotonic()
            assert judge.complete(user("a")) == "at last"
            assert 0.5 <= time.monotonic() - begin < 10
            assert judge.cost == 20 + 50  # the first one may have been paid for


HUGE = {
    "header line": OK + b"X-A: " + b"a" * (1 << 20) + b"\r\n\r\n",
    "headers": OK + b"X-A: a\r\n" * 200_000 + b"\r\n",
    "status line": b"HTTP/1.1 200 " + b"a" * (1 << 20) + b"\r\n\r\n",
    "no HTTP": b"SSH-2.0-OpenSSH\r\n\r\n", "no status": b"HTTP/1.1 abc OK\r\n\r\n",
    "encoding": OK + b"Content-Encoding: gzip\r\n\r\nno gzip", "nothing": b"",
    "chunk size": OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n",
    "negative length": OK + b"Content-Length: -5\r\n\r\n",
    "charset": OK + b"Content-Type: text/plain; charset=\xff\r\n\r\n\xff\xfe",
}  # fmt: skip


@pytest.mark.parametrize("name", HUGE)
def test_broken_http_is_one_line(tmp_path, name):
    with ChatServer(lambda body, n: lambda handler: handler.wfile.write(HUGE[name])) as server:
        with open_client(server, tmp_path, tries=2) as judge:
            with pytest.raises(UserError, match="gave up after 2 tries") as error:
                judge.complete(user("a"))
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)


@pytest.mark.parametrize("status", [200, 503])
def test_a_reply_over_the_cap_is_refused(tmp_path, status):
    answer = (status, b'{"a": "' + b"x" * client.MAX_REPLY_BYTES, {})
    with ChatServer(lambda body, n: answer) as server, open_client(server, tmp_path) as judge:
        with pytest.raises(UserError, match="reply has no end"):
            judge.complete(user("a"))
    assert len(server.bodies) == 1 and lines(tmp_path) == []


def test_a_reply_of_a_megabyte_is_taken(tmp_path):
    with ChatServer(lambda body, n: "word " * 200_000) as server:
        with open_client(server, tmp_path) as judge:
            begin = time.process_time()
            assert judge.complete(user("a")) == "word " * 200_000
            assert time.process_time() - begin < 2


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [
        ("1e300", "1000000000"), ("inf", "1000000000"), ("9" * 5000, "1000000000"),
        ("315360000", "315360000"), ("Fri, 31 Dec 2100 23:59:59 GMT", r"\d{10}"),
        ("Fri, 31 Dec 2100 23:59:59", r"\d{10}"), ("Fri, 31 Dec 9999 23:59:59 GMT", r"\d+"),
    ],
)  # fmt: skip
def test_a_wait_of_years_ends_it(tmp_path, retry_after, seconds):
    busy = (429, {"error": "limit"}, {"Retry-After": retry_after})
    with ChatServer(lambda body, n: busy) as server, open_client(server, tmp_path) as judge:
        with pytest.raises(UserError, match=f"asks to wait {seconds} seconds"):
            judge.complete(user("a"))
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "retry_after",
    ["nan", "-5", "-inf", "soon", "", "Fri, 31 Dec 1999 23:59:59 GMT", "99999999999999 Dec 1",
     "Fri, 31 Dec 99999 23:59:59 GMT", "\xff\xfe", "0x10"],
)  # fmt: skip
def test_a_wait_that_is_none_is_our_own(tmp_path, retry_after):
    busy = (429, {"error": "limit"}, {"Retry-After": retry_after})
    with ChatServer(lambda body, n: "yes" if n else busy) as server:
        with open_client(server, tmp_path) as judge:
            assert judge.complete(user("a")) == "yes"


# ----------------------------------------------------------------------------------------------
# Ctrl-C

COMMAND = """
import os, sys
sys.path[:0] = {folders}
from test_hostile_server import client, open_client, user
from pathlib import Path
from types import SimpleNamespace
from configs import run
def main():
    server = SimpleNamespace(url={url!r})
    with open_client(server, Path({path!r}), concurrency=4, timeout=60.0) as judge:
        try:
            judge.map(lambda i: judge.complete(user(str(i))), range(99))
        finally:
            print("kept", len(judge.replies.lines))
run(main)
"""


@pytest.mark.parametrize("name", ["flood", "100-continue", "slow body", "hang", "wait"])
def test_ctrl_c_ends_at_once_and_keeps_what_is_paid(tmp_path, name):
    """Whatever the calls in flight wait for: a server, or the pause that it asked for."""
    stuck, four = threading.Semaphore(0), ENDLESS.get(name, "HANG")
    if name == "wait":
        four = (429, b"", {"Retry-After": "60"})

    def script(body, number):
        if number < 5:
            return "yes"
        stuck.release()
        return four

    folders = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "eval" / "llm")]
    with ChatServer(script) as server:
        text = COMMAND.format(folders=folders, url=server.url, path=str(tmp_path))
        process = subprocess.Popen(
            [sys.executable, "-c", text], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(1 if name == "wait" else 4):
            assert stuck.acquire(timeout=60)
        time.sleep(0.5)
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert time.monotonic() - begin < 12 and process.returncode == 130  # not 20 or 60
    assert out == b"kept 5\n" and b"Traceback" not in err
    assert len(lines(tmp_path)) == 5


# ----------------------------------------------------------------------------------------------
# paid for once


def test_equal_requests_at_the_same_time_are_sent_once(tmp_path):
    with ChatServer(lambda body, n: f"reply {n}", delay=0.1) as server:
        with open_client(server, tmp_path, concurrency=8) as judge:
            replies = judge.map(lambda i: judge.complete(user("a")), range(8))
    assert replies == ["reply 0"] * 8 and len(server.bodies) == 1 == len(lines(tmp_path))


def test_a_whole_last_line_without_a_newline_is_kept(tmp_path):
    with ChatServer(lambda body, n: f"reply {n}") as server:
        with open_client(server, tmp_path) as judge:
            judge.complete(user("a")), judge.complete(user("b"))
        path = tmp_path / "replies.jsonl"
        path.write_bytes(path.read_bytes()[:-1])
        with open_client(server, tmp_path) as judge:
            replies = [judge.complete(user(text)) for text in "abc"]
        with open_client(server, tmp_path) as judge:
            assert [judge.complete(user(text)) for text in "abc"] == replies
    assert replies == ["reply 0", "reply 1", "reply 2"] and len(server.bodies) == 3
    assert [line["reply"] for line in lines(tmp_path)] == replies


@pytest.mark.parametrize("cut", [2, 10, 200])
def test_a_torn_last_line_is_removed(tmp_path, cut):
    with ChatServer(lambda body, n: f"reply {n}") as server:
        with open_client(server, tmp_path) as judge:
            judge.complete(user("a")), judge.complete(user("b"))
        path = tmp_path / "replies.jsonl"
        path.write_bytes(path.read_bytes()[:-cut])
        with open_client(server, tmp_path) as judge:
            assert [judge.complete(user(text)) for text in "ab"] == ["reply 0", "reply 2"]
    assert len(lines(tmp_path)) == 2


@pytest.mark.parametrize(
    "line",
    ["[]", "5", "null", '{"key": "a"}', '{"key": [], "reply": ""}', '{"key": "a", "reply": 5}', "",
     "\0\0"],
)  # fmt: skip
def test_a_line_that_is_no_reply_is_named(tmp_path, line):
    path = tmp_path / "replies.jsonl"
    path.write_text(f'{{"key": "a", "reply": ""}}\n{{"key": "a", "reply": ""}}\n{line}\n')
    with ChatServer(lambda body, n: "yes") as server:
        with pytest.raises(UserError, match="line 3 is damaged"):
            open_client(server, tmp_path)
    assert path.read_text().endswith(f"\n{line}\n")


def test_a_thread_left_behind_writes_nowhere(tmp_path):
    """The file is closed, and its number may be another file's by now."""
    with ChatServer(lambda body, n: "yes") as server:
        with open_client(server, tmp_path) as judge:
            judge.complete(user("a"))
        with open(tmp_path / "other", "w") as other:
            with pytest.raises(OSError, match="Bad file descriptor"):
                judge.replies.append({"key": "b"})
            assert os.fstat(other.fileno()).st_size == 0
    assert len(lines(tmp_path)) == 1


def test_a_cap_holds_in_any_language(tmp_path):
    """A token may be one byte: 3 KB of Chinese are up to 3,000 tokens, which cost 30."""

    def script(body, n):
        return completion("yes", usage=(len(body["messages"][0]["content"].encode()), 50))

    with ChatServer(script) as server:
        options = {"price_in": 1e4, "max_cost": 40.0, "concurrency": 4}
        with open_client(server, tmp_path, **options) as judge:
            with pytest.raises(UserError, match="stopped at max_cost"):
                judge.map(lambda i: judge.complete(user(f"猫{i}" * 750)), range(9))
            assert judge.cost <= 40


# ----------------------------------------------------------------------------------------------
# newer models

NEW_NAME = ("Unsupported parameter: 'max_tokens' is not supported with this model. Use "
            "'max_completion_tokens' instead.")  # fmt: skip
ONE_TEMPERATURE = ("Unsupported value: 'temperature' does not support 0.0 with this model. Only "
                   "the default (1) value is supported.")  # fmt: skip


def strict(body, number):
    """A server that has the newer models' fields alone, and names the first that it refuses."""
    for name, message in (("max_tokens", NEW_NAME), ("temperature", ONE_TEMPERATURE)):
        if name in body:
            return (400, {"error": {"message": message, "param": name}}, {})
    return "yes"


def test_newer_models_get_what_they_take(tmp_path):
    with ChatServer(strict) as server:
        with open_client(server, tmp_path, tries=1) as judge:
            assert [judge.complete(user(text)) for text in "abc"] == ["yes"] * 3
            summary = judge.summary()
        assert summary == (
            "3 calls, 0 cached replies, sent with no more than max_completion_tokens, model"
        )
        assert len(server.bodies) == 5  # learnt once
        sent = {"max_completion_tokens": 50, "model": "tiny"}
        assert server.bodies[-1] == sent | {"messages": user("c")}
        assert lines(tmp_path)[0]["request"] == sent
        # The same settings find the replies again, and say what was sent.
        with open_client(server, tmp_path) as judge:
            assert [judge.complete(user(text)) for text in "abcd"] == ["yes"] * 4
            assert judge.summary() == summary.replace("3 calls, 0", "1 calls, 3")
        assert len(server.bodies) == 6


@pytest.mark.parametrize(
    "message",
    [
        "Unsupported parameter: 'temperature' is not supported with this model.",
        "Model incompatible request argument supplied: temperature",
        "`temperature` is deprecated for this model.", "temperature: must be 1.0 for this model",
        "invalid temperature: only 1 is allowed for this model",
        "Unrecognized request argument supplied: temperature", "It doesn't support temperature",
        "temperature: Extra inputs are not permitted", "Unknown field: temperature",
    ],
)  # fmt: skip
def test_a_temperature_that_is_refused_is_left_out(message):
    fields = {"model": "a", "temperature": 0.0, "max_tokens": 5}
    assert without_refused(fields, message) == {"model": "a", "max_tokens": 5}


def test_results_name_the_request_that_was_accepted(tmp_path):
    facts = {"model": "tiny", "request": {}}
    with ChatServer(lambda body, n: strict(body, n)) as server:
        settings = JudgeSettings(judge="tiny", base_url=server.url)
        item = rubrics.JudgeItem("a", "b")
        for _ in range(2):  # from the server, then from the cache
            grading.grade(settings, rubrics.TOPIC, [item], tmp_path / "replies.jsonl", facts)
            assert facts.pop("request") == {"model": "tiny", "max_completion_tokens": 500}


def test_many_threads_learn_it_together(tmp_path):
    with ChatServer(strict, delay=0.05) as server:
        with open_client(server, tmp_path, concurrency=4) as judge:
            judge.map(lambda i: judge.complete(user(str(i))), range(12))
    assert len(lines(tmp_path)) == 12 and len(server.bodies) <= 12 + 8


@pytest.mark.parametrize(
    "message",
    [
        "temperature must be between 0 and 1", "max_tokens is too large: 500. At most 100.",
        "the model does not exist", NEW_NAME.replace("max_", "most_"),
    ],
)  # fmt: skip
def test_other_refusals_end_it(tmp_path, message):
    refused = (400, {"error": {"message": message}}, {})
    with ChatServer(lambda body, n: refused) as server, open_client(server, tmp_path) as judge:
        with pytest.raises(UserError, match="refused, 400"):
            judge.complete(user("a"))
    assert len(server.bodies) == 1


def test_a_server_that_refuses_all_is_given_up(tmp_path):
    refused = (400, {"error": {"message": NEW_NAME + ONE_TEMPERATURE}}, {})
    with ChatServer(lambda body, n: refused) as server, open_client(server, tmp_path) as judge:
        with pytest.raises(UserError, match="refused, 400"):
            judge.complete(user("a"))
    assert len(server.bodies) == 3


def test_a_limit_of_the_users_own_stays():
    fields = {"model": "a", "max_tokens": 5, "max_completion_tokens": 7}
    assert without_refused(fields, NEW_NAME) == {"model": "a", "max_completion_tokens": 7}
    assert without_refused({"model": "a"}, NEW_NAME + ONE_TEMPERATURE) is None
