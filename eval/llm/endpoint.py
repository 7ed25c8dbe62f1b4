"""
The server of the judge: its address and key, what a request to it says, and what that costs.

All of it comes from a script's settings: judge, base_url, judge_temperature, max_tokens, extra,
concurrency, tries, timeout, max_calls, max_cost, price_in, price_out, allow_http.
"""

import contextlib
import ipaddress
import json
import os
from urllib.parse import urlsplit

from configs import UserError

KEY = "JUDGE_API_KEY"
LONGEST_WAIT = 600.0  # seconds; more is not waited for


def tokens_of(messages):
    """About how many tokens the messages have, for plans: English has four bytes to a token."""
    return sum(len(message["content"].encode("utf-8", "replace")) // 4 + 4 for message in messages)


def cost_of(settings, read, written):
    """US dollars, or whatever the prices are in, for tokens read and written."""
    return (read * settings.price_in + written * settings.price_out) / 1e6


def longest(body):
    """How many tokens a reply to a request's body may have at the most; None where none says so."""
    limits = [body[name] for name in ("max_tokens", "max_completion_tokens") if name in body]
    return max(limits, default=None)


def promise(settings, calls, kept, read):
    """What --dry_run says of so many new calls that read so many tokens."""
    written = calls * (longest(body_of(settings)) or settings.max_tokens)
    cost = f", cost at most about {cost_of(settings, read, written):.2f}"
    return (
        f"{calls} calls ({kept} replies kept from before), about {read:,} tokens to read, "
        f"at most {written:,} to write" + cost * bool(settings.price_in + settings.price_out)
    )


# ----------------------------------------------------------------------------------------------
# settings


def check(settings):
    """Refuse settings of the client that mean nothing, or would be unsafe: UserError."""
    if not settings.judge:
        raise UserError("name the model that the server is to use: --judge=<model>")
    for name in ("concurrency", "tries", "max_tokens"):
        if getattr(settings, name) < 1:
            raise UserError(f"{name} must be at least 1")
    for name in ("max_calls", "max_cost", "price_in", "price_out"):
        if not getattr(settings, name) >= 0:
            raise UserError(f"{name} must not be negative")
    if not 0 < settings.timeout <= LONGEST_WAIT:
        raise UserError(f"timeout must be above 0 and at most {LONGEST_WAIT:g} seconds")
    if settings.max_cost and not settings.price_in + settings.price_out:
        raise UserError("max_cost needs prices: --price_in and --price_out, per million tokens")
    if longest(body_of(settings)) is None and settings.max_cost:
        raise UserError("max_cost needs a bound on replies: max_tokens or max_completion_tokens")
    key_of_environment()
    check_url(settings.base_url, settings.allow_http)


def check_url(url, allow_http=False):
    """Refuse an address that is none, that holds secrets, or that others could listen to."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise UserError("base_url is no address; it looks like https://api.openai.com/v1") from None
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UserError(f"base_url must hold no name, password or query; a key goes into ${KEY}")
    if parts.scheme not in ("http", "https") or not host:
        raise UserError(f"base_url must be like https://api.openai.com/v1, not '{url}'")
    if parts.scheme == "http" and not is_loopback(host) and not allow_http:
        raise UserError(
            f"base_url is plain http, so that all on the way to {host} could read the key and "
            "change the grades; use https, or --allow_http in a network that you trust"
        )


def is_loopback(host):
    """Whether a host is this machine itself."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def key_of_environment():
    """The service's key, "" without one; UserError for one that cannot be sent."""
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"${KEY} has characters that no key has")
    return key


def body_of(settings):
    """What a request says besides its messages: model, temperature, max_tokens, and `extra`."""
    body = {"model": settings.judge, "temperature": settings.judge_temperature}
    body["max_tokens"] = settings.max_tokens
    try:
        extra = json.loads(settings.extra or "{}")
        if "messages" in extra or extra.get("stream") or extra.get("n", 1) != 1:
            raise UserError("extra must not set messages, stream or n")
        body |= extra
    except (ValueError, TypeError, AttributeError):
        raise UserError(
            """extra must be a JSON object, as in '{"reasoning_effort": "low"}'"""
        ) from None
    body = {name: value for name, value in body.items() if value is not None}
    try:
        json.dumps(body, allow_nan=False)
    except ValueError:
        raise UserError("judge_temperature and extra must not hold nan or infinity") from None
    for name in ("max_tokens", "max_completion_tokens"):
        if name in body and (type(body[name]) is not int or body[name] < 1):
            raise UserError(f"{name} must be a whole number of at least 1, not {body[name]!r}")
    return body
