"""A client for any server that speaks OpenAI's chat completions. Each reply is paid for once.

    client = Client(settings, "out/ts_cpu/eval/judge_replies.jsonl", version="paper-1")
    text = client.complete([{"role": "user", "content": "Grade this story: ..."}], number=(7, 0))
    grades = client.map(grade, stories)      # grade(story) of each, `concurrency` at a time

Every reply is appended to a file of JSON lines, under a hash of the whole request, and flushed to
the disk before it is used. A request whose reply is in the file is not sent again, so a killed
command loses only the calls in flight.

The server's key is the environment's JUDGE_API_KEY. It goes into one header of the requests to
`base_url` and into nothing that is written or printed. Plain http is for this machine alone.
"""

import contextlib
import json
import math
import os
import random
import re
import threading
import time
from concurrent.futures import Future
from email.utils import mktime_tz, parsedate_tz
from hashlib import blake2b
from multiprocessing.pool import ThreadPool
from pathlib import Path
from urllib.parse import urlsplit

import requests
from tqdm import tqdm

from configs import UserError, require_posix
from eval.llm import settings as judge_settings
from eval.llm.redact import quote, redact
from nanostories.storage import fsync, lock

FIRST_WAIT = 1.0  # seconds before the second try
MAX_REPLY_BYTES = 1 << 22


class _PassingError(Exception):
    """Worth another try. args: the reason, seconds to wait or None, whether it may be charged."""


class Client(contextlib.AbstractContextManager):
    """path: the file of replies. version: of the prompts; a new one gets new replies. With the
    setting dry_run nothing is called or written."""

    def __init__(self, settings, path, version):
        judge_settings.check_judge(settings)
        self.settings, self.version, self.api_key = settings, version, judge_settings.api_key()
        self.request = judge_settings.request_fields(settings)
        self.accepted = self.request  # without what the server has refused
        self.url = settings.base_url.rstrip("/") + "/chat/completions"
        no_file = settings.dry_run and not Path(path).exists()
        self.replies = None if no_file else ReplyFile(path)
        self.calls = self.cache_hits = self.truncated = self.empty = 0
        self.tokens_to_read = 0  # of a dry run
        self.cost = 0.0  # of the calls that have ended
        self.reserved = []  # the most that each of the calls in flight may cost
        self.locks = {}  # of the requests, by their keys
        self.changed, self.stop = threading.Condition(), threading.Event()
        self.resume_at = 0.0  # no call begins before: a server asked for a pause

    def __exit__(self, *_):
        self.stop.set()
        if self.replies:
            self.replies.close()

    def cached(self, messages, number=0):
        """The cached line of the reply to these messages, a dict, or None."""
        return self.replies and self.replies.get(self._hash(messages, number))

    def _hash(self, messages, number):
        request = [self.url, self.version, self.request, messages, number]
        return blake2b(json.dumps(request, sort_keys=True).encode(), digest_size=16).hexdigest()

    def complete(self, messages, number=0):
        """The reply to a conversation, a str, from the cache or from the server.

        messages: dicts with "role" and "content". number: any JSON value that tells apart equal
        conversations that need a reply each. Raises UserError where the server refuses or keeps
        failing, and at --max_calls and --max_cost."""
        key = self._hash(messages, number)
        with self.locks.setdefault(key, threading.Lock()):  # of equal requests, one is paid for
            line = self.cached(messages, number)
            hit = line is not None
            if not hit and self.settings.dry_run:
                with self.changed:
                    self.calls += 1
                    self.tokens_to_read += judge_settings.count_tokens(messages)
                return "x" * 4 * self.settings.max_tokens  # as long as a reply may be
            line = line or self._call(messages, number)
        self.locks.pop(key, None)
        with self.changed:
            self.accepted = line.get("request", self.accepted)
            self.cache_hits += hit
            self.truncated += line.get("finish") == "length"
            self.empty += not line["reply"].strip()
        return line["reply"]

    def _call(self, messages, number):
        """Send a request, `tries` times if need be, and cache the reply; returns its line."""
        bytes_to_read = 4 * judge_settings.count_tokens(messages)  # a token has at least one
        longest = judge_settings.reply_limit(self.settings) or 0
        worst = judge_settings.cost(self.settings, bytes_to_read, longest)
        line = {"key": self._hash(messages, number), "version": self.version, "url": self.url,
                "request": self.request, "number": number, "messages": messages}  # fmt: skip
        for attempt in range(self.settings.tries):
            self._begin_call(worst)
            spent = 0.0
            try:
                line |= self._post(messages)
                spent = judge_settings.cost(self.settings, **line["usage"])
                line["time"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                self.replies.append(line)
                return line
            except _PassingError as error:
                reason, delay, billed = error.args
                spent = worst if billed else 0.0
            finally:
                with self.changed:
                    self.cost += spent
                    self.reserved.remove(worst)
                    self.changed.notify_all()
            if delay is not None and delay > judge_settings.MAX_WAIT:
                raise UserError(f"{reason}; the server asks to wait {delay:.0f} seconds: come back")
            backoff = min(FIRST_WAIT * 2 ** min(attempt, 6), 60.0) * random.uniform(0.5, 1)
            with self.changed:  # an overloaded server is so for every thread
                self.resume_at = max(self.resume_at, time.monotonic() + (delay or backoff))
        raise UserError(f"gave up after {self.settings.tries} tries: {reason}; {self._progress()}")

    def _begin_call(self, worst):
        """Wait for a pause to end, then count a call that may cost `worst`."""
        while (pause := self.resume_at - time.monotonic()) > 0 and not self.stop.wait(pause):
            pass
        max_calls, max_cost = self.settings.max_calls, self.settings.max_cost or math.inf
        with self.changed:
            # Calls in flight may cost less than reserved: wait until what is left is known.
            while not (fits := self.cost + sum(self.reserved) + worst <= max_cost):
                if not self.reserved or self.stop.is_set():
                    break
                self.changed.wait()
            if self.stop.is_set():
                raise UserError("stopped")
            if max_calls and self.calls >= max_calls:
                raise UserError(f"stopped at max_calls, {max_calls}: {self._progress()}")
            if not fits:
                costs = f"{self.cost:.4f} is spent, and the next call could cost {worst:.4f}"
                raise UserError(f"stopped at max_cost, {max_cost:g}: {costs}: {self._progress()}")
            self.calls += 1
            self.reserved.append(worst)

    def _progress(self):
        return f"{len(self.replies.lines)} replies are cached, the same command continues"

    def _post(self, messages):
        """{"request", "reply", "finish", "usage"} of one request, in the form the server takes."""
        timeout, changed = self.settings.timeout, self.accepted
        while changed:
            self.accepted = request = changed
            # The thread is left behind at the timeout, whatever the server sends it until then.
            answer, fields = Future(), request | {"messages": messages}
            threading.Thread(target=self._send, args=(fields, answer), daemon=True).start()
            try:
                status, delay, text = answer.result(timeout)
            except TimeoutError:
                raise _PassingError(f"no reply in {timeout:g} seconds", None, True) from None
            changed = status in (400, 422) and judge_settings.without_refused(request, text)
        message = quote(_error_message(text), self.api_key)
        if status in (408, 429) or status >= 500:
            raise _PassingError(f"the server answers {status}: {message}", delay, False)
        if status != 200:
            hint = " (redirects are not followed)" if 300 <= status < 400 else ""
            if status in (401, 403) and not self.api_key:
                hint = f" (${judge_settings.KEY_VARIABLE} is not set)"
            raise UserError(f"{self.url} refused, {status}: {message}{hint}")
        try:
            return {"request": request} | self._parse(json.loads(text), messages)
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            reason = f"the server's reply is no chat completion: {message}"
            raise _PassingError(reason, None, True) from None

    def _send(self, fields, answer):
        """Give a Future (status, seconds to wait or None, text), the server's answer to fields."""
        timeout, body = self.settings.timeout, bytearray()
        try:
            session = requests.Session()  # a new one: threads must not share them
            host = urlsplit(self.url).hostname
            session.trust_env = not judge_settings.is_loopback(host)  # no proxy to here
            session.get_redirect_target = lambda _: None  # not even parsed
            if self.api_key:  # the only place that it goes to
                session.headers["Authorization"] = f"Bearer {self.api_key}"
            with session, session.post(
                self.url, json=fields, stream=True, allow_redirects=False,
                auth=lambda prepared: prepared,  # else a .netrc would replace the key
                timeout=(min(10, timeout), timeout),
            ) as response:  # fmt: skip
                for data in response.iter_content(1024):
                    body += data
                    if len(body) > MAX_REPLY_BYTES:
                        raise UserError(f"{self.url}: the server's reply has no end")
            delay = _seconds(response.headers.get("Retry-After"))
            answer.set_result((response.status_code, delay, body.decode("utf-8-sig", "replace")))
        except UserError as error:
            answer.set_exception(error)
        except Exception as error:  # requests lets some of urllib3 and http.client through
            begun = (requests.ReadTimeout, requests.exceptions.ChunkedEncodingError)
            cause = quote(f"{type(error).__name__}: {error}", self.api_key, 2000)
            errno = re.search(r"\[Errno -?\d+\] [^'\")]+", cause)  # inside three other errors
            cause = f"{self.url}: {(errno[0] if errno else cause)[:200]}"
            answer.set_exception(_PassingError(cause, None, isinstance(error, begun)))

    def _parse(self, answer, messages):
        """The fields of a chat completion that matter. Raises all sorts of errors for others."""
        choice, usage = answer["choices"][0], answer.get("usage")
        reply = choice["message"].get("content") or ""  # null: a refusal, or all was reasoning
        if not isinstance(reply, str):
            raise TypeError
        estimates = {
            "prompt_tokens": judge_settings.count_tokens(messages),
            "completion_tokens": len(reply.encode("utf-8", "replace")) // 4 + 1,
        }
        counts = {
            name: n if type(n := usage.get(name)) is int and 0 <= n < 10**9 else estimate
            for name, estimate in estimates.items()
        } if isinstance(usage, dict) else estimates  # fmt: skip
        finish = quote(str(choice.get("finish_reason")), self.api_key)
        return {"reply": redact(reply, self.api_key), "finish": finish, "usage": counts}

    def map(self, function, items):
        """[function(item)], `concurrency` at a time. An error ends it after the calls in flight;
        Ctrl-C at once, as the threads are daemons."""
        numbers, results, errors = iter(range(len(items))), {}, []
        count = min(self.settings.concurrency, len(items)) or 1
        bar = tqdm(total=len(items), unit="story", disable=None)

        def work(_):
            while not self.stop.is_set() and (i := next(numbers, None)) is not None:
                try:
                    results[i] = function(items[i])
                except BaseException as error:
                    errors.append(error)
                    self.stop.set()  # no new call begins
                with self.changed:
                    bar.set_postfix_str(self.summary(), refresh=False)
                    bar.update(not errors)

        with ThreadPool(count) as pool, bar:
            try:
                pool.map(work, range(count), 1)
            except KeyboardInterrupt:
                self.stop.set()
                raise
        if errors:
            raise errors[0]
        return [results[i] for i in range(len(items))]

    def summary(self):
        """Calls (retries included), cost and cached replies, so far or of a dry run, in words."""
        settings, calls, read = self.settings, self.calls, self.tokens_to_read
        has_price = settings.price_in + settings.price_out > 0
        if settings.dry_run:
            written = calls * (judge_settings.reply_limit(settings) or settings.max_tokens)
            price = f", cost at most about {judge_settings.cost(settings, read, written):.2f}"
            return (
                f"{calls} calls ({self.cache_hits} cached replies), about {read:,} tokens to read, "
                f"at most {written:,} to write{price * has_price}"
            )
        parts = [f"{calls} calls", f"{self.cache_hits} cached replies"]
        if self.accepted != self.request:
            parts.append(f"sent with no more than {', '.join(self.accepted)}")
        if has_price:
            parts.insert(1, f"cost {self.cost:.4f}")
        faults = {"cut off by max_tokens": self.truncated, "empty": self.empty}
        return ", ".join(parts + [f"{count} {name}" for name, count in faults.items() if count])


def _error_message(text):
    """What a server says of an error."""
    with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
        error = json.loads(text)["error"]
        text = error if isinstance(error, str) else str(error["message"])
    return text


def _seconds(retry_after):
    """A Retry-After header, seconds or a date, as seconds from now; None where there is none."""
    with contextlib.suppress(ValueError, TypeError):
        return min(max(0.0, float(retry_after)), 1e9)
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return max(0.0, mktime_tz(parsedate_tz(retry_after)) - time.time())
    return None


# ---- the cache of paid replies -----------------------------------------------------------------


class ReplyFile:
    """JSON lines, each with a "key". Half a line at the end, of a killed command, is removed."""

    def __init__(self, path):
        require_posix("a judge")
        self.lines, self.size, self.lock = {}, 0, threading.Lock()  # {key: (offset, length)}
        with contextlib.ExitStack() as stack:
            stack.enter_context(lock(path))
            self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            stack.callback(self._close)
            with open(path, "rb") as lines:
                for number, line in enumerate(lines, 1):
                    try:
                        _, key = (reply := json.loads(line))["reply"].strip, reply["key"]
                        self._index(key, line)
                    except (ValueError, LookupError, TypeError, AttributeError):
                        if not line.endswith(b"\n"):
                            os.ftruncate(self.file, self.size)
                            break
                        what = f"line {number} is damaged; remove it to pay for it again"
                        raise UserError(f"{path}: {what}") from None
            if self.size and os.pread(self.file, 1, self.size - 1) != b"\n":
                self.size += os.write(self.file, b"\n")
            fsync(Path(path).parent)
            self.close = stack.pop_all().close  # lets other commands have the file

    def _index(self, key, line):
        self.lines[key] = (self.size, len(line))
        self.size += len(line)

    def get(self, key):
        """The line of a key as a dict, or None."""
        place = self.lines.get(key)
        return place and json.loads(os.pread(self.file, place[1], place[0]))

    def append(self, line):
        """Add a dict with a "key"; it is on the disk when this returns."""
        data = json.dumps(line).encode() + b"\n"  # ASCII: any text, half surrogates too
        with self.lock:
            try:
                if os.write(self.file, data) < len(data):
                    raise OSError(28, "No space left on device")
                os.fsync(self.file)
            except OSError:
                os.ftruncate(self.file, self.size)
                raise
            self._index(line["key"], data)

    def _close(self):
        with self.lock:  # a thread that Ctrl-C has left behind writes nothing any more
            os.close(self.file)
            self.file = -1
