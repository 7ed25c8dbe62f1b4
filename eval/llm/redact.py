"""What a server or a story says, made safe to print and to keep."""

import html
import re
from base64 import b64encode

from configs import printable

PART = 8  # characters of a key in a row that give too much of it away
ESCAPED = re.compile(r"(?:[%=]|\\u00|\\x)([0-9a-f]{2})", re.IGNORECASE)  # %2d, =2d, \u002d, \x2d


def quote(text, key, limit=300):
    """A server's words in one line of at most `limit` characters."""
    text = printable(" ".join(redact(text, key).split()))  # redacted first: a cut hides a key
    return text[: limit - 3] + "..." if len(text) > limit else text or "nothing"


def redact(text, key):
    """The text with *** for each part of the key of PART characters or more; *** alone where one
    has other characters between, or is in other case, escaped, in hexadecimal or base64."""
    if len(key) < PART:  # local servers take any key, such as "x" or "none": a word and no secret
        return text
    parts = "|".join(map(re.escape, _parts(key)))
    text = plain = re.sub(rf"(?s)(?:(?=(?:{parts})).)+.{{{PART - 1}}}", "***", text)
    if len(key) < 16 and not re.search("[0-9]", key):  # such as "not-needed"
        return text
    data = key.encode()
    for _ in range(3):  # escapes of escapes
        plain = html.unescape(ESCAPED.sub(lambda match: chr(int(match[1], 16)), plain))
    codes = [key, data.hex(), *(b64encode(b"?" * n + data).decode() for n in range(3))]
    plain, *codes = (re.sub("[^A-Za-z0-9]+", "", one).lower() for one in (plain, *codes))
    return "***" if any(part in plain for code in codes for part in _parts(code)) else text


def _parts(text):
    """All runs of PART characters of a text."""
    return (text[i : i + PART] for i in range(len(text) - PART + 1))
