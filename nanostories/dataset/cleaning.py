"""
Clean stories: repair their encoding, drop those that are empty or cut off, and hash the rest.

Only the encoding is repaired: cp1252 read as UTF-8 or the reverse, stray bytes, lone surrogates.
Quotes, ligatures, HTML and line ends stay as they are.
"""

import hashlib
import re
from collections import Counter

import ftfy

from nanostories.dataset import instruct

# A story that ends in anything else was cut off when it was generated.
ENDINGS = (".", "!", "?", '"', "'", "”", "’", "»")
# Most non-ASCII stories have only these. ftfy never changes them, but takes 0.6 ms to decide.
TYPOGRAPHY = dict.fromkeys(map(ord, "‘’“”–—…"), "'")
STRAY_BYTE = re.compile("[\udc80-\udcff]")  # how Python's surrogateescape decodes invalid UTF-8


def fix_encoding(text, counts):
    """`text` repaired and stripped; a repair adds one to counts["repaired"], counts a Counter."""
    if not text.isascii() and not text.translate(TYPOGRAPHY).isascii():
        fixed = ftfy.fix_encoding(join_surrogates(STRAY_BYTE.sub(_as_cp1252, text)))
        counts["repaired"] += fixed != text
        text = fixed
    return text.strip()


def _as_cp1252(stray):
    """The character of a byte that is not UTF-8: most often typography in Windows' encoding."""
    return bytes([ord(stray[0]) - 0xDC00]).decode("cp1252", errors="replace")


def join_surrogates(text):
    """Pairs of surrogates become the character they encode, lone ones U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def clean(story, counts):
    """
    `story` repaired, or None if it is to be dropped.

    counts: a Counter; its "repaired", "empty" or "truncated" goes up by one.
    """
    story = fix_encoding(story, counts)
    if reason := _drop_reason(story):
        counts[reason] += 1
        return None
    return story


def _drop_reason(story):
    if not story:
        return "empty"
    return None if story.endswith(ENDINGS) else "truncated"


def clean_record(text, seed, counts):
    """
    The instruct.Record of a text, or one that `seed` makes of StoryFacts; None to drop it.

    counts: as of `clean`, and "unreadable" (no record), "trailing" (a field after the story).
    """
    if isinstance(text, instruct.StoryFacts):
        facts = fix_facts(text, counts)
        story, record = facts.story, instruct.make_record(facts, seed)
    else:
        record = instruct.parse_record(fix_encoding(text, counts))
        story = record.story if record else None
    if story is not None and (reason := _drop_reason(story)):
        counts[reason] += 1
        return None
    counts["unreadable"] += record is None
    counts["trailing"] += bool(record and record.trailing)
    return record


def fix_facts(facts, counts):
    """instruct.StoryFacts with the encoding of every text repaired; counts: of the story alone."""
    words, features = (
        tuple(fix_encoding(text, Counter()) for text in texts)
        for texts in (facts.words, facts.features)
    )
    summary = fix_encoding(facts.summary, Counter())
    return instruct.StoryFacts(fix_encoding(facts.story, counts), words, features, summary)


def clean_all(texts, counts, seed=None):
    """
    Those of `texts`, as of readers.texts, that are kept, cleaned: a list of str.

    With a seed the texts are Instruct records, or Facts to make some of: a list of instruct.Record.
    """
    if seed is None:
        cleaned = (clean(text, counts) for text in texts)
    else:
        cleaned = (clean_record(text, seed, counts) for text in texts)
    return [text for text in cleaned if text is not None]


def story_hash(text, seed):
    """
    16 bytes that identify a story, salted with `seed`; text: a str, its UTF-8, or a Record.

    Of a Record only the story is hashed: stories that differ in their instruction are duplicates.
    """
    if isinstance(text, instruct.Record):
        text = text.story
    data = text.encode() if isinstance(text, str) else text
    salt = seed.to_bytes(8, "little", signed=True)
    return hashlib.blake2b(data, digest_size=16, salt=salt).digest()
