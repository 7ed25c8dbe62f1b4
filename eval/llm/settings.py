"""The settings of a judge: its server and key, what a request to it holds, and what that costs.

A script that calls one declares `class Settings(JudgeSettings)`.
"""

import contextlib
import ipaddress
import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from configs import UserError, check_ranges
from nanostories.storage import from_json

KEY_VARIABLE = "JUDGE_API_KEY"
MAX_WAIT = 600.0  # seconds; a server that asks for a longer wait ends the command
TOKEN_LIMITS = ("max_tokens", "max_completion_tokens")  # of a reply, in a request
# What newer models refuse, by a pattern of their refusal.
REFUSED = {
    "max_tokens": "max_completion_tokens",
    "temperature": "(?i)unsupp|n.t (supp|perm|all)|only|must be 1|un(kno|exp|rec)|incompat|depr",
}


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


def request_fields(settings):
    """A request without its messages: model, temperature, max_tokens, and `extra`; or UserError."""
    fields = {"model": settings.judge, "temperature": settings.judge_temperature,
              "max_tokens": settings.max_tokens}  # fmt: skip
    try:
        fields |= (extra := from_json(settings.extra or "{}"))
        if "messages" in extra or extra.get("stream") or extra.get("n", 1) != 1:
            raise UserError("extra must not set messages, stream or n")
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise UserError("""extra must be a JSON object: '{"reasoning_effort": "low"}'""") from None
    fields = {name: value for name, value in fields.items() if value is not None}
    for name in TOKEN_LIMITS:
        if name in fields and (type(fields[name]) is not int or fields[name] < 1):
            raise UserError(f"{name} must be a whole number of at least 1, not {fields[name]!r}")
    return fields


def without_refused(fields, refusal):
    """A request's fields as a newer model takes them, by a server's refusal; None for others."""
    for name, pattern in REFUSED.items():
        if name in fields and name in refusal and re.search(pattern, refusal):
            renamed = {"max_completion_tokens": fields[name]} if name == "max_tokens" else {}
            return {key: value for key, value in (renamed | fields).items() if key != name}
    return None


def reply_limit(settings):
    """The most tokens that a request allows its reply; None where it sets no limit."""
    fields = request_fields(settings)
    return max((fields[name] for name in TOKEN_LIMITS if name in fields), default=None)


def count_tokens(messages):
    """An estimate of the tokens of the messages: English has about four bytes to a token."""
    return sum(len(message["content"].encode("utf-8", "replace")) // 4 + 4 for message in messages)


def cost(settings, prompt_tokens, completion_tokens):
    """The price of tokens read and written, in the currency of price_in and price_out."""
    return (prompt_tokens * settings.price_in + completion_tokens * settings.price_out) / 1e6


def check_judge(settings):
    """Raise UserError for JudgeSettings that mean nothing, or would be unsafe."""
    if not settings.judge:
        raise UserError("name the model that the server is to use: --judge=<model>")
    check_ranges(settings)
    if settings.max_cost and not settings.price_in + settings.price_out:
        raise UserError("max_cost needs prices: --price_in and --price_out, per million tokens")
    if reply_limit(settings) is None and settings.max_cost:
        raise UserError("max_cost needs a limit on replies: max_tokens or max_completion_tokens")
    api_key()
    check_url(settings.base_url, settings.allow_http)


def check_url(url, allow_http=False):
    """Raise UserError for an address that is invalid, holds secrets, or can be listened to."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        is_address = host and parts.scheme in ("http", "https")
    except ValueError:
        is_address = False
    if not is_address:
        raise UserError("base_url is no address; it must be like https://api.openai.com/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UserError(f"base_url must hold no password or query; a key goes into ${KEY_VARIABLE}")
    if parts.scheme == "http" and not is_loopback(host) and not allow_http:
        raise UserError("base_url is plain http, readable on the way: use https, or --allow_http")


def is_loopback(host):
    """Whether a host is this machine itself."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def api_key():
    """The server's key, "" without one; UserError for one that cannot be sent."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"${KEY_VARIABLE} has characters that no key has")
    return key
