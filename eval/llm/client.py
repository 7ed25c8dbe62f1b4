"""
A client for any server that speaks OpenAI's chat completions: each reply is paid for once.

    client = Client(settings, "out/ts_cpu/eval/judge_replies.jsonl", version="paper-1")
    text = client.ask([{"role": "user", "content": "Grade this story: ..."}], number=(7, 0))
    for item, result in client.each(grade, stories): ...      # `concurrency` of them at a time

Every reply is appended to a file of JSON lines and flushed to the disk before it is used, under a
key made of all that was asked. What is in the file is not asked again: a killed command goes on
where it was, having lost only the calls that were under way, one for each of `concurrency`.

The key of the service is JUDGE_API_KEY of the environment. It goes into one header of requests to
`base_url`, and into nothing that is written or shown. Plain http is for this machine alone.
"""

import contextlib
import email.utils
import itertools
import json
import random
import re
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from hashlib import blake2b
from urllib.parse import urlsplit

import requests
from tqdm import tqdm

from configs import UserError
from eval.llm.endpoint import (
    KEY,
    LONGEST_WAIT,
    body_of,
    check,
    cost_of,
    is_loopback,
    key_of_environment,
    longest,
    tokens_of,
)
from eval.llm.replies import Replies


@dataclass(frozen=True)
class JudgeSettings:
    """The model that grades or writes, its server, and what a command may spend on it."""

    judge: str = ""  # the model, by the name its server gives it
    base_url: str = "https://api.openai.com/v1"  # the server; its key is $JUDGE_API_KEY
    allow_http: bool = False  # plain http to another machine too: others can read and change it
    judge_temperature: float = 0.0  # of the model
    max_tokens: int = 500  # most tokens of a reply
    extra: str = ""  # more of the request, as JSON: '{"reasoning_effort": "low"}'; null: leave out
    concurrency: int = 4  # calls at a time
    tries: int = 6  # of a call that fails for a passing reason
    timeout: float = 120.0  # seconds for a reply
    max_calls: int = 0  # most new calls of this command; 0: any number
    max_cost: float = 0.0  # most that this command may spend; 0: any amount
    price_in: float = 0.0  # of a million tokens read by the model
    price_out: float = 0.0  # of a million tokens written by it
    dry_run: bool = False  # print one full prompt, the calls, tokens and cost; call nothing


FIRST_WAIT = 1.0  # seconds before the second try
LONGEST_REPLY = 1 << 22  # bytes


class Limit(UserError):
    """--max_calls or --max_cost is reached."""


class _Again(Exception):
    """
    A failure that may pass. after: seconds the server asks to wait, or None. billed: the service
    may have written a reply, and count it.
    """

    def __init__(self, why, after=None, billed=False):
        super().__init__(why)
        self.after, self.billed = after, billed


class Client:
    """
    See the top of this file. settings: judge, base_url, judge_temperature, max_tokens, extra,
    concurrency, tries, timeout, max_calls, max_cost, price_in, price_out, allow_http. path: where
    the replies are kept. version: of the prompts, so that new ones are asked anew.
    """

    def __init__(self, settings, path, version):
        check(settings)
        self.settings, self.version, self.body = settings, version, body_of(settings)
        self.url = settings.base_url.rstrip("/") + "/chat/completions"
        self.key, self.replies = key_of_environment(), Replies(path)
        self.calls, self.found, self.cost = 0, 0, 0.0
        self.cut, self.empty = 0, 0  # replies that max_tokens cut or of nothing, kept ones too
        self.running, self.reserved = 0, 0.0  # calls under way, and what they may cost
        self.changed, self.local = threading.Condition(), threading.local()
        self.stop = threading.Event()
        self.quiet_until = 0.0  # no call begins before: a server asked for a pause

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.replies.close()

    def identity(self, messages, number):
        """The key of a reply: whom was asked what, and for which time."""
        what = [self.url, self.version, self.body, messages, number]
        return blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=16).hexdigest()

    def kept(self, messages, number=0):
        """The line of the reply to these messages, a dict, or None where it is not there yet."""
        return self.replies.get(self.identity(messages, number))

    def ask(self, messages, number=0):
        """
        The reply to a conversation, a str: the kept one, or a new one, which is kept.

        messages: dicts with "role" and "content". number: tells equal conversations apart that are
        to have replies of their own; anything JSON holds. Raises UserError where the server refuses
        or does not get better, and Limit.
        """
        key = self.identity(messages, number)
        if line := self.replies.get(key):
            with self.changed:
                self.found += 1
            self._look(line)
            return line["reply"]
        most = cost_of(self.settings, tokens_of(messages) * 4 / 3, longest(self.body) or 0)
        line = {"key": key, "version": self.version, "url": self.url}
        line |= {"request": self.body, "number": number, "messages": messages}
        for turn in range(self.settings.tries):
            self._pause()
            self._reserve(most)
            spent = 0.0
            try:
                line |= self._post(self.body | {"messages": messages})
                line["time"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                self.replies.add(line)
                usage = line["usage"]
                spent = cost_of(self.settings, usage["prompt_tokens"], usage["completion_tokens"])
                self._look(line)
                return line["reply"]
            except _Again as again:
                why, after = self._redacted(str(again)), again.after
                spent = most if again.billed else 0.0
            finally:
                self._release(most, spent)
            if after is not None and after > LONGEST_WAIT:
                raise UserError(f"{why}; the server asks to wait {after:.0f} seconds: come back")
            wait_now = min(FIRST_WAIT * 2**turn, 60.0) * random.uniform(0.5, 1)
            with self.changed:  # a server that is overrun is so for all
                self.quiet_until = max(self.quiet_until, time.monotonic() + (after or wait_now))
        raise UserError(f"gave up after {self.settings.tries} tries: {why}; {self._kept()}")

    def _look(self, line):
        """Count replies that were cut off, or say nothing."""
        with self.changed:
            self.cut += line["finish"] == "length"
            self.empty += not line["reply"].strip()

    def _reserve(self, most):
        """Count a call that may cost `most`, or raise Limit."""
        settings = self.settings
        with self.changed:
            # What is under way may cost less than it could: the money that is left is known then.
            while self.running and settings.max_cost and not self.stop.is_set():
                if self.cost + self.reserved + most <= settings.max_cost:
                    break
                self.changed.wait()
            if self.stop.is_set():
                raise UserError("stopped")
            if settings.max_calls and self.calls >= settings.max_calls:
                raise Limit(f"stopped at max_calls, {settings.max_calls}: {self._kept()}")
            if settings.max_cost and self.cost + self.reserved + most > settings.max_cost:
                raise Limit(
                    f"stopped at max_cost: {self.cost:.4f} spent, and the next call could cost "
                    f"{most:.4f} of what is left of {settings.max_cost:g}: {self._kept()}"
                )
            self.calls += 1
            self.running += 1
            self.reserved += most

    def _release(self, most, spent):
        """The end of what `_reserve` began: it cost `spent`."""
        with self.changed:
            self.cost += spent
            self.running -= 1
            self.reserved -= most
            self.changed.notify_all()

    def _kept(self):
        return f"{len(self.replies.places)} replies are kept, the same command goes on"

    def _pause(self):
        """Return when calls may be made again, or the command is to stop."""
        while (left := self.quiet_until - time.monotonic()) > 0:
            if self.stop.wait(left):
                break

    def _post(self, body):
        """
        {"reply", "finish", "usage"} of one request; raises _Again or UserError. `timeout` bounds
        the wait for the reply to begin, for each of its bytes, and for all of its body.
        """
        deadline = time.monotonic() + self.settings.timeout
        try:
            with self._session().post(
                self.url, json=body, auth=self._sign, allow_redirects=False, stream=True,
                timeout=(min(10, self.settings.timeout), self.settings.timeout),
            ) as answer:  # fmt: skip
                data = bytearray()
                # Byte by byte, else a server that drips would be waited for until a block is full.
                for piece in answer.iter_content(1):
                    data += piece
                    if time.monotonic() > deadline:
                        raise _Again(f"no reply in {self.settings.timeout:g} seconds", billed=True)
                    if len(data) > LONGEST_REPLY:
                        raise UserError("the server's reply has no end")
                status, after = answer.status_code, answer.headers.get("Retry-After")
        except (requests.RequestException, ValueError) as error:
            begun = (requests.ReadTimeout, requests.exceptions.ChunkedEncodingError)
            cause = re.search(r"\[Errno -?\d+\] [^'\")]+", str(error))  # behind three others' words
            why = f"{self.url}: {cause[0] if cause else f'{type(error).__name__}: {error}'[:200]}"
            raise _Again(why, billed=isinstance(error, begun)) from None
        text = data.decode("utf-8", "replace")
        words = self._redacted(_words(text))
        if status in (408, 429) or status >= 500:
            raise _Again(f"the server said {status}: {words}", _seconds(after))
        if status != 200:
            hint = " (redirects are not followed)" if 300 <= status < 400 else ""
            if status in (401, 403) and not self.key:
                hint = f" (${KEY} is not set)"
            raise UserError(f"{self.url} refused, {status}: {words}{hint}")
        return self._read(text, body["messages"])

    def _session(self):
        """A session for each thread: they are not made to be shared."""
        if not hasattr(self.local, "session"):
            self.local.session = requests.Session()
            # What stays on this machine is not sent through a proxy.
            self.local.session.get_redirect_target = lambda _: None  # nor looked at
            self.local.session.trust_env = not is_loopback(urlsplit(self.url).hostname)
        return self.local.session

    def _sign(self, request):
        """The only place the key goes to. As `auth`, so that no .netrc replaces it."""
        if self.key:
            request.headers["Authorization"] = f"Bearer {self.key}"
        return request

    def _redacted(self, text):
        # What local servers are given for a key, such as "x" or "none", is no secret but a word.
        return text.replace(self.key, "***") if len(self.key) >= 8 else text

    def _read(self, text, messages):
        """The parts of a reply's JSON that matter; _Again where it is none."""
        try:
            answer = json.loads(text)
            choice = answer["choices"][0]
            reply = choice["message"].get("content") or ""  # null: a refusal, or all was thought
            usage = answer.get("usage") or {}
            if not isinstance(reply, str):
                raise TypeError
            about = (tokens_of(messages), len(reply.encode("utf-8", "replace")) // 4 + 1)
            counted = {
                name: said if type(said := usage.get(name)) is int and 0 <= said < 10**9 else guess
                for name, guess in zip(("prompt_tokens", "completion_tokens"), about, strict=True)
            }
            finish = str(choice.get("finish_reason"))
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            why = f"the server's reply is no chat completion: {_words(text)}"
            raise _Again(why, billed=True) from None
        return {"reply": self._redacted(reply), "finish": self._redacted(finish), "usage": counted}

    # ---- many

    def each(self, work, items, total=None, unit="story"):
        """
        Yield (item, work(item)) as they get done, `concurrency` at a time. The first error stops
        all: what is under way is still kept, then the error is raised.
        """
        items, running = iter(items), {}
        bar = tqdm(total=total, unit=unit, disable=None)
        with ThreadPoolExecutor(self.settings.concurrency) as pool, bar:
            try:
                while True:
                    for item in itertools.islice(items, self.settings.concurrency - len(running)):
                        running[pool.submit(work, item)] = item
                    if not running:
                        return
                    for one in wait(running, return_when=FIRST_COMPLETED).done:
                        result = one.result()
                        bar.set_postfix_str(self.spent(), refresh=False)
                        bar.update()
                        yield running.pop(one), result
            except BaseException:
                self.stop.set()  # no new call begins
                raise

    def spent(self):
        """What the command has asked and spent so far, in words; retries are calls too."""
        cost = f", cost {self.cost:.4f}" if self.settings.price_in + self.settings.price_out else ""
        lost = [f"{self.cut} cut off by max_tokens"] * bool(self.cut)
        lost += [f"{self.empty} empty"] * bool(self.empty)
        return ", ".join([f"{self.calls} calls{cost}", f"{self.found} kept from before", *lost])


def kept_before(settings, path, version):
    """A context with the Client of a file of replies, or with None where there is none yet."""
    return Client(settings, path, version) if path.exists() else contextlib.nullcontext()


def _words(text):
    """What a server says of an error, in one short line."""
    with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
        error = json.loads(text)["error"]
        text = error if isinstance(error, str) else str(error["message"])
    text = " ".join(text.split())
    return text[:297] + "..." if len(text) > 300 else text or "nothing"


def _seconds(after):
    """A Retry-After header, seconds or a date, as seconds from now; None where there is none."""
    if after is None:
        return None
    with contextlib.suppress(ValueError):
        return max(0.0, float(after))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(after).timestamp() - time.time())
    return None
