"""The client of the judge: pays once, waits as asked, keeps its key, and stops in time."""
# ruff: noqa: SIM117 - a server, a client of it, and what that raises

import email.utils
import json
import os
import threading
import time
from dataclasses import dataclass

import pytest
from chat_server import ChatServer, completion

from configs import UserError
from eval.llm import client, settings
from eval.llm.client import Client
from eval.llm.settings import KEY_VARIABLE, JudgeSettings

SECRET = "sk-secret-0123456789"


@dataclass(frozen=True)
class Settings(JudgeSettings):
    judge: str = "tiny"
    max_tokens: int = 50
    concurrency: int = 1
    tries: int = 4
    timeout: float = 5.0


def settings_for(url, **changes):
    return Settings(base_url=url, **changes)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Waits of milliseconds, and a key."""
    monkeypatch.setattr(client, "FIRST_WAIT", 0.01)
    monkeypatch.setenv(KEY_VARIABLE, SECRET)


def user(text):
    return [{"role": "user", "content": text}]


def open_client(server, path, **changes):
    return Client(settings_for(server.url, **changes), path / "replies.jsonl", "test-1")


def lines(path):
    return [json.loads(line) for line in (path / "replies.jsonl").read_text().splitlines()]


# ---- once --------------------------------------------------------------------------------------


def test_a_reply_is_paid_for_once(tmp_path):
    with ChatServer(lambda body, n: f"reply {n}") as server:
        with open_client(server, tmp_path) as judge:
            replies = [judge.complete(user(text)) for text in "aab"]
            assert replies == ["reply 0", "reply 0", "reply 1"]
            # Equal conversations with a number of their own are sent again.
            assert (
                judge.complete(user("a"), (1, 2)) == "reply 2"
                and judge.complete(user("a"), (1, 3)) == "reply 3"
            )
        with open_client(server, tmp_path) as judge:  # another command
            assert (
                judge.complete(user("a"), (1, 2)) == "reply 2"
                and judge.calls == 0
                and judge.cache_hits == 1
            )
        # Other parameters, another version, another judge: another reply.
        for changes in ({"judge_temperature": 1.0}, {"max_tokens": 9}, {"extra": '{"seed": 1}'},
                        {"judge": "other"}):  # fmt: skip
            with open_client(server, tmp_path, **changes) as judge:
                judge.complete(user("a"))
        with Client(settings_for(server.url), tmp_path / "replies.jsonl", "test-2") as judge:
            judge.complete(user("a"))
        assert len(server.bodies) == 9
        assert server.paths == ["/v1/chat/completions"] * 9
        assert server.bodies[0] == {
            "model": "tiny", "temperature": 0.0, "max_tokens": 50, "messages": user("a"),
        }  # fmt: skip
        assert server.bodies[6]["seed"] == 1 and server.bodies[7]["model"] == "other"
    kept = lines(tmp_path)
    assert len(kept) == 9 and kept[0]["reply"] == "reply 0" and kept[0]["messages"] == user("a")
    assert kept[2]["number"] == [1, 2] and kept[8]["version"] == "test-2"
    assert kept[0]["usage"] == {"prompt_tokens": 100, "completion_tokens": 20}


def test_any_text_comes_back_as_it_was(tmp_path):
    """What a second command reads is what the first received: half surrogates and all."""
    text = 'é "q" \n\t\ud83d </s> \u2028 \0'
    with ChatServer(lambda body, n: text) as server:
        with open_client(server, tmp_path) as judge:
            first = judge.complete(user(text))
        with open_client(server, tmp_path) as judge:
            assert judge.complete(user(text)) == first == text and judge.calls == 0


def test_a_byte_order_mark_is_no_part_of_a_reply(tmp_path):
    body = b"\xef\xbb\xbf" + json.dumps(completion("fine")).encode()
    with ChatServer(lambda *_: (200, body, {})) as server, open_client(server, tmp_path) as judge:
        assert judge.complete(user("hello")) == "fine"


def test_null_content_is_an_empty_reply(tmp_path):
    with ChatServer(lambda body, n: completion(None, "content_filter")) as server:
        with open_client(server, tmp_path) as judge:
            assert judge.complete(user("a")) == "" and judge.complete(user("a")) == ""
    assert lines(tmp_path)[0]["finish"] == "content_filter" and len(server.bodies) == 1


def test_half_a_line_of_a_killed_command_is_removed(tmp_path):
    with ChatServer(lambda body, n: f"reply {n}") as server:
        with open_client(server, tmp_path) as judge:
            judge.complete(user("a"))
            judge.complete(user("b"))
        path = tmp_path / "replies.jsonl"
        path.write_bytes(path.read_bytes()[:-30])
        with open_client(server, tmp_path) as judge:
            assert judge.complete(user("a")) == "reply 0" and judge.complete(user("b")) == "reply 2"
        assert [line["reply"] for line in lines(tmp_path)] == ["reply 0", "reply 2"]


def test_a_damaged_line_is_named_and_nothing_is_lost(tmp_path):
    path = tmp_path / "replies.jsonl"
    path.write_text('{"key": "a", "reply": ""}\nnonsense\n{"key": "b"}\n')
    with pytest.raises(UserError, match=r"line 2 is damaged"):
        Client(settings_for("http://127.0.0.1:1"), path, "")
    assert "nonsense" in path.read_text()


def test_two_commands_do_not_write_the_same_file(tmp_path):
    with Client(settings_for("http://127.0.0.1:1"), tmp_path / "replies.jsonl", ""):
        with pytest.raises(UserError, match="another command is writing"):
            Client(settings_for("http://127.0.0.1:1"), tmp_path / "replies.jsonl", "")
    Client(settings_for("http://127.0.0.1:1"), tmp_path / "replies.jsonl", "").replies.close()


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    with ChatServer(lambda body, n: f"reply {n}") as server, open_client(server, tmp_path) as judge:
        judge.complete(user("a"))
        write = os.write
        monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:10]))
        with pytest.raises(OSError, match="No space"):
            judge.complete(user("b"))
        monkeypatch.undo()
        assert [line["reply"] for line in lines(tmp_path)] == ["reply 0"]


def test_a_reply_is_on_the_disk_before_it_is_used(tmp_path, monkeypatch):
    done = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (fsync(file), done.append(lines(tmp_path))))
    with ChatServer(lambda body, n: "yes") as server, open_client(server, tmp_path) as judge:
        judge.complete(user("a"))
    assert done[-1][0]["reply"] == "yes"


# ---- again -------------------------------------------------------------------------------------


BUSY = (503, {"error": {"message": "busy"}}, {})


@pytest.mark.parametrize(
    "trouble",
    [
        (408, b"", {}), (429, {"error": {"message": "slow down"}}, {}), (500, b"oops", {}), BUSY,
        (504, b"<html>", {}), "HALF", "CLOSE", (200, b"garbage", {}), (200, b'{"choices": []}', {}),
        (200, [1, 2], {}), (200, {"choices": [{"message": {"content": 5}}]}, {}),
        (200, {"choices": [{"text": "a completion"}]}, {}), (200, b"[" * 20_000, {}),
    ],
)  # fmt: skip
def test_what_may_pass_is_tried_again(tmp_path, trouble):
    with ChatServer(lambda body, n: trouble if n < 2 else "at last") as server:
        with open_client(server, tmp_path) as judge:
            assert judge.complete(user("a")) == "at last"
    assert len(server.bodies) == 3 and len(lines(tmp_path)) == 1


@pytest.mark.parametrize("trouble", ["HANG", "DRIP"])
def test_a_server_that_hangs_is_given_up_in_time(tmp_path, trouble):
    with ChatServer(lambda body, n: trouble if n < 1 else "at last") as server:
        with open_client(server, tmp_path, timeout=0.5) as judge:
            begin = time.monotonic()
            assert judge.complete(user("a")) == "at last"
            assert 0.5 <= time.monotonic() - begin < 10
    assert len(server.bodies) == 2


def test_in_the_end_it_gives_up(tmp_path):
    with (
        ChatServer(lambda body, n: BUSY) as server,
        open_client(server, tmp_path, tries=3) as judge,
    ):
        with pytest.raises(UserError, match=r"gave up after 3 tries: the server answers 503: busy"):
            judge.complete(user("a"))
    assert len(server.bodies) == 3 and lines(tmp_path) == []


def test_a_server_that_is_not_there_is_named(tmp_path):
    with ChatServer(lambda body, n: "yes") as server:
        pass  # nobody listens any more
    with open_client(server, tmp_path, tries=2, price_out=1e6) as judge:
        with pytest.raises(UserError) as error:
            judge.complete(user("a"))
        assert judge.cost == 0
    assert f"{server.url}/chat/completions: [Errno" in str(error.value)
    assert "refused; 0 replies are cached" in str(error.value) and "\n" not in str(error.value)


def test_waits_grow(tmp_path, monkeypatch):
    monkeypatch.setattr(client, "FIRST_WAIT", 0.1)
    with ChatServer(lambda body, n: BUSY if n < 3 else "yes") as server:
        with open_client(server, tmp_path) as judge:
            judge.complete(user("a"))
    gaps = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
    for number, gap in enumerate(gaps):
        assert 0.05 * 2**number <= gap < 0.1 * 2**number + 1


@pytest.mark.parametrize("kind", ["seconds", "date"])
def test_retry_after_is_honoured_by_all(tmp_path, kind):
    """The first reply asks to wait; no request comes before that."""

    def script(body, n):
        later = email.utils.formatdate(time.time() + 2, usegmt=True)  # in whole seconds
        after = {"Retry-After": "1" if kind == "seconds" else later}
        if n == 1:
            time.sleep(0.5)  # it ends when the first is known to be refused
        return "yes" if n else (429, {"error": {"message": "slow down"}}, after)

    with ChatServer(script, delay=0.05) as server:
        with open_client(server, tmp_path, concurrency=2) as judge:
            judge.map(lambda i: judge.complete(user(str(i))), range(4))
    assert len(server.bodies) == 5
    waited = [when - server.times[0] for when in server.times]
    assert sum(when < 0.9 for when in waited) <= 2  # the two that were under way


def test_a_wait_of_an_hour_is_not_waited_for(tmp_path):
    busy = (429, {"error": "limit"}, {"Retry-After": "3600"})
    with ChatServer(lambda body, n: busy) as server, open_client(server, tmp_path) as judge:
        with pytest.raises(UserError, match="asks to wait 3600 seconds"):
            judge.complete(user("a"))
    assert len(server.bodies) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 301])
def test_a_refusal_ends_it_at_once_in_the_servers_words(tmp_path, status):
    refused = (status, {"error": {"message": f"no\n such {SECRET} model"}}, {"Location": "/else"})
    with ChatServer(lambda body, n: refused) as server, open_client(server, tmp_path) as judge:
        with pytest.raises(UserError) as error:
            judge.complete(user("a"))
    hint = " (redirects are not followed)" if status == 301 else ""
    address = f"{server.url}/chat/completions"
    assert str(error.value) == f"{address} refused, {status}: no such *** model{hint}"
    assert len(server.bodies) == 1


# ---- many, and limits --------------------------------------------------------------------------


def test_so_many_at_a_time_and_no_more(tmp_path):
    with ChatServer(lambda body, n: "yes", delay=0.05) as server:
        with open_client(server, tmp_path, concurrency=3) as judge:
            replies = judge.map(lambda i: (i, judge.complete(user(str(i)))), range(12))
    assert replies == [(i, "yes") for i in range(12)]
    assert server.most == 3 and len(server.bodies) == 12


def test_one_error_stops_all_and_keeps_what_was_under_way(tmp_path):
    def script(body, n):
        if body["messages"][0]["content"] == "2":
            return (401, {"error": {"message": "no key"}}, {})
        time.sleep(0.2)
        return "yes"

    with ChatServer(script) as server, open_client(server, tmp_path, concurrency=3) as judge:
        with pytest.raises(UserError, match="refused, 401: no key"):
            judge.map(lambda i: judge.complete(user(str(i))), range(50))
        assert len(server.bodies) == 3 and len(lines(tmp_path)) == 2


def test_an_error_does_not_wait_for_the_patience_of_others(tmp_path):
    both, sent = threading.Barrier(2), threading.Event()

    def script(body, n):
        both.wait(20)  # both calls are under way
        if body["messages"][0]["content"] == "0":
            sent.set()
            return (429, b"", {"Retry-After": "60"})
        sent.wait(20)
        time.sleep(0.2)  # the other one waits by now
        return (403, b"never", {})

    begin = time.monotonic()
    with (
        ChatServer(script) as server,
        open_client(server, tmp_path, concurrency=2, timeout=30) as judge,
    ):
        with pytest.raises(UserError, match="refused, 403: never"):
            judge.map(lambda i: judge.complete(user(str(i))), range(2))
    assert time.monotonic() - begin < 40


def test_max_calls(tmp_path):
    with ChatServer(lambda body, n: "yes") as server:
        with open_client(server, tmp_path, max_calls=3, concurrency=2) as judge:
            with pytest.raises(UserError, match="stopped at max_calls, 3"):
                judge.map(lambda i: judge.complete(user(str(i))), range(9))
        assert len(server.bodies) == 3 == len(lines(tmp_path))
        # What is kept does not count.
        with (
            open_client(server, tmp_path, max_calls=3) as judge,
            pytest.raises(UserError, match="stopped at max_calls, 3"),
        ):
            judge.map(lambda i: judge.complete(user(str(i))), range(9))
        assert len(server.bodies) == 6


def test_max_cost_is_never_passed(tmp_path):
    """A call costs 100 tokens in and 20 out; the next one must fit at its worst, 50 out."""
    prices = {"price_in": 1e4, "price_out": 1e5}  # 1 and 2 for a call, 5 at most to write
    with ChatServer(lambda body, n: "yes") as server:
        with open_client(server, tmp_path, max_cost=20.0, concurrency=4, **prices) as judge:
            with pytest.raises(UserError, match="stopped at max_cost"):
                judge.map(lambda i: judge.complete(user(str(i))), range(99))
            assert judge.cost == 3.0 * len(server.bodies) <= 20
    assert len(server.bodies) == 5  # 15 spent, and 5.08 more could be 20.08


def test_tries_that_may_have_been_billed_count(tmp_path):
    """Garbage may have been paid for: at its worst, 1.04 to read and 5 to write."""
    prices = {"price_in": 1e4, "price_out": 1e5}
    with ChatServer(lambda body, n: (200, b"garbage", {})) as server:
        with open_client(server, tmp_path, max_cost=12.0, tries=6, **prices) as judge:
            with pytest.raises(UserError, match="stopped at max_cost"):
                judge.complete(user("a" * 300))
            assert len(server.bodies) == 1 and 6 < judge.cost < 12
    with ChatServer(lambda body, n: BUSY) as server:
        with open_client(server, tmp_path, max_calls=3, tries=6, **prices) as judge:
            with pytest.raises(UserError, match="stopped at max_calls, 3"):
                judge.complete(user("a"))
            assert len(server.bodies) == 3 and judge.cost == 0


@pytest.mark.parametrize("usage", [(-(10**9), 5), (10**400, 5), (True, 5), ("9", 5), (0.5, 5)])
def test_usage_that_cannot_be_is_estimated(tmp_path, usage):
    with ChatServer(lambda body, n: completion("y" * 39, usage=usage)) as server:
        with open_client(server, tmp_path, price_in=1e6, price_out=1e6) as judge:
            judge.complete(user("x" * 40))
            assert judge.cost == (10 + 4) + 5 and len(lines(tmp_path)) == 1


@pytest.mark.parametrize("usage", [[], [5], "none", 5, 0.5, True, float("nan")])
def test_a_reply_with_a_usage_that_is_none_is_paid_for_once(tmp_path, usage):
    with ChatServer(lambda body, n: completion("y" * 39) | {"usage": usage}) as server:
        with open_client(server, tmp_path, price_in=1e6, price_out=1e6) as judge:
            assert judge.complete(user("x" * 40)) == "y" * 39
            assert judge.cost == (10 + 4) + 10 and len(server.bodies) == 1


def test_truncated_and_empty_replies_are_counted(tmp_path):
    replies = [completion("", "stop"), completion("abc", "length"), completion("abc", "stop")]
    with ChatServer(lambda body, n: replies[n]) as server:
        with open_client(server, tmp_path) as judge:
            for i in range(3):
                judge.complete(user(str(i)))
            assert judge.summary() == "3 calls, 0 cached replies, 1 cut off by max_tokens, 1 empty"


def test_an_address_is_the_same_with_and_without_a_slash(tmp_path):
    with ChatServer(lambda body, n: "yes") as server:
        for url in (server.url, server.url + "/"):
            with Client(settings_for(url), tmp_path / "replies.jsonl", "") as judge:
                judge.complete(user("a"))
    assert len(server.bodies) == 1


def test_servers_that_count_nothing_are_estimated(tmp_path):
    with ChatServer(lambda body, n: completion("y" * 39, usage=None)) as server:
        with open_client(server, tmp_path, price_in=1e6, price_out=1e6) as judge:
            judge.complete(user("x" * 40))
            assert judge.cost == (10 + 4) + 10


# ---- the key, and where it may go --------------------------------------------------------------


def test_the_key_goes_to_the_server_and_nowhere_else(tmp_path, capfd, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with ChatServer(lambda body, n: f"your key is {SECRET}") as server:
        with open_client(server, tmp_path, concurrency=2) as judge:
            replies = judge.map(lambda i: judge.complete(user(str(i))), range(2))
    assert [headers["Authorization"] for headers in server.headers] == [f"Bearer {SECRET}"] * 2
    assert replies == ["your key is ***"] * 2
    assert SECRET not in (tmp_path / "replies.jsonl").read_text() + "".join(capfd.readouterr())


def test_the_key_is_not_let_in_by_escapes(tmp_path):
    escaped = "".join(f"\\u{ord(c):04x}" for c in SECRET)
    text = f'{{"choices": [{{"message": {{"content": "it is {escaped}"}}}}]}}'
    refused = (401, f'{{"error": {{"message": "not {escaped}"}}}}'.encode(), {})
    with ChatServer(lambda body, n: refused if n else (200, text.encode(), {})) as server:
        with open_client(server, tmp_path) as judge:
            assert judge.complete(user("a")) == "it is ***"
            with pytest.raises(UserError, match=r"refused, 401: not \*\*\*$"):
                judge.complete(user("b"))
    assert SECRET not in (tmp_path / "replies.jsonl").read_text()


def test_a_key_that_is_a_word_changes_no_reply(tmp_path, monkeypatch):
    """Local servers want any key, and are given "x" or "content"."""
    for key in ("x", "content"):
        monkeypatch.setenv(KEY_VARIABLE, key)
        with ChatServer(lambda body, n: "the next fox content") as server:
            with open_client(server, tmp_path) as judge:
                assert judge.complete(user(key)) == "the next fox content"


@pytest.mark.parametrize("where", ["http://[bad", "/x\xff", "http://127.0.0.1:1/"])
def test_redirects_lead_nowhere(tmp_path, where):
    moved = (302, b"x" * 100, {"Location": where})
    with ChatServer(lambda body, n: moved) as server, open_client(server, tmp_path) as judge:
        with pytest.raises(UserError, match=r"refused, 302: x+ \(redirects are not followed\)"):
            judge.complete(user("a"))
    assert len(server.bodies) == 1


def test_without_a_key_a_refusal_says_so(tmp_path, monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE)
    with (
        ChatServer(lambda body, n: (401, b"", {})) as server,
        open_client(server, tmp_path) as judge,
    ):
        with pytest.raises(UserError, match=r"401: nothing \(\$JUDGE_API_KEY is not set\)"):
            judge.complete(user("a"))


def test_without_a_key_none_is_sent(tmp_path, monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE)
    monkeypatch.setenv("OPENAI_API_KEY", "another service's")
    with ChatServer(lambda body, n: "yes") as server, open_client(server, tmp_path) as judge:
        judge.complete(user("a"))
    assert "Authorization" not in server.headers[0]


def test_a_loopback_server_is_not_called_through_a_proxy(tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with ChatServer(lambda body, n: "yes") as server, open_client(server, tmp_path) as judge:
        assert judge.complete(user("a")) == "yes"


@pytest.mark.parametrize("key", ["two words", "k\u00e9y", "a\x00b"])
def test_a_key_that_cannot_be_sent_is_refused_unseen(monkeypatch, key):
    monkeypatch.setattr(settings.os, "environ", {KEY_VARIABLE: key})
    with pytest.raises(UserError) as error:
        settings.api_key()
    assert key not in str(error.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://example.com/v1", "plain http"), ("http://10.0.0.1:8000", "plain http"),
        ("http://localhost.evil.com", "plain http"), ("https://me:pw@example.com", "must hold no"),
        ("https://example.com/v1?key=abc", "must hold no"), ("ftp://example.com", "must be like"),
        ("example.com/v1", "must be like"), ("https://", "must be like"),
        ("http://[bad", "is no address"), ("http://localhost:999999", "is no address"),
    ],
)  # fmt: skip
def test_addresses_that_are_refused(url, message):
    with pytest.raises(UserError, match=message) as error:
        settings.check_url(url)
    assert "pw" not in str(error.value) and "abc" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/v1",
        "http://localhost:11434/v1",
        "http://127.8.9.1",
        "http://[::1]:8000",
    ],
)
def test_addresses_that_are_taken(url):
    settings.check_url(url)
    settings.check_url("http://example.com", allow_http=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"judge": ""}, "--judge="), ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"tries": 0}, "tries must be"), ({"max_tokens": 0}, "max_tokens must be"),
        ({"timeout": 0.0}, "timeout must be"), ({"timeout": float("nan")}, "timeout must be"),
        ({"max_cost": 1.0}, "max_cost needs prices"), ({"price_in": -1.0}, "price_in must be 0"),
        ({"max_cost": float("nan")}, "max_cost must be 0 or more"),
        ({"extra": "no"}, "extra must be a JSON"),
        ({"judge_temperature": float("nan")}, "judge_temperature must be 0 or more, not nan"),
        ({"extra": '{"max_tokens": "500"}'}, "max_tokens must be a whole number"),
        ({"extra": '{"max_tokens": null}', "max_cost": 1.0, "price_in": 1.0}, "needs a limit"),
        ({"extra": '{"seed": NaN}'}, "extra must be a JSON"),
        ({"extra": "[1]"}, "extra must be a JSON"), ({"extra": "[" * 9999}, "extra must be a JSON"),
        ({"extra": '{"stream": true}'}, "must not set"),
        ({"extra": '{"messages": []}'}, "must not set"), ({"extra": '{"n": 2}'}, "must not set"),
    ],
)  # fmt: skip
def test_settings_that_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        settings.check_judge(settings_for("https://example.com", **changes))


def test_extra_can_leave_out_and_rename(tmp_path):
    """Newer models of OpenAI take neither temperature nor max_tokens."""
    extra = '{"temperature": null, "max_tokens": null, "max_completion_tokens": 70}'
    these = settings_for("https://example.com", extra=extra, dry_run=True)
    assert settings.request_fields(these) == {"model": "tiny", "max_completion_tokens": 70}
    with Client(these, tmp_path / "replies.jsonl", "") as judge:
        judge.complete(user("a")), judge.complete(user("b"))
    assert "at most 140 to write" in judge.summary()
