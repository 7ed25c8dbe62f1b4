"""Clean stories: repair their encoding, drop those that are empty or cut off, and hash the rest.

Only the encoding is repaired: cp1252 read as UTF-8 or the reverse, stray bytes, lone surrogates.
Quotes, ligatures, HTML and line ends stay as they are.
"""

import functools
import hashlib
import re
from collections import Counter

import ftfy

from nanostories.dataset import instruct

# A story that ends in anything else was cut off when it was generated.
ENDINGS = (".", "!", "?", '"', "'", "”", "’", "»")
# Most non-ASCII stories have only these. ftfy never changes them, but takes 0.6 ms to decide.
TYPOGRAPHY = dict.fromkeys(map(ord, "‘’“”–—…"), "'")
STRAY_BYTE = re.compile("[\udc80-\udcff]")  # how surrogateescape decodes a byte of invalid UTF-8


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
    """`story` repaired, or None to drop it; counts["repaired"], "empty" or "truncated" goes up."""
    story = fix_encoding(story, counts)
    return story if _is_whole(story, counts) else None


def _is_whole(story, counts):
    """Whether a repaired story is neither empty nor cut off; if not, counts it."""
    if story.endswith(ENDINGS):
        return True
    counts["truncated" if story else "empty"] += 1
    return False


def clean_record(text, seed, counts):
    """The instruct.Record of a text, or one that `seed` makes of StoryFacts; None to drop it.

    counts: as of `clean`, and "unreadable" (no record), "trailing" (a field after the story).
    """
    if isinstance(text, instruct.StoryFacts):
        facts = fix_facts(text, counts)
        story, record = facts.story, instruct.make_record(facts, seed)
    else:
        record = instruct.parse_record(fix_encoding(text, counts))
        story = record.story if record else None
    if story is not None and not _is_whole(story, counts):
        return None
    counts["unreadable"] += record is None
    counts["trailing"] += bool(record and record.trailing)
    return record


def fix_facts(facts, counts):
    """StoryFacts with the encoding of every text repaired; counts: of the story alone."""
    fix = functools.partial(fix_encoding, counts=Counter())
    words, features = tuple(map(fix, facts.words)), tuple(map(fix, facts.features))
    story = fix_encoding(facts.story, counts)
    return instruct.StoryFacts(story, words, features, fix(facts.summary))


def clean_all(texts, counts, seed=None):
    """Those of `texts` (as of readers.texts) that are kept, cleaned: a list of str; with a seed,
    they are Instruct records or StoryFacts to make some of: a list of instruct.Record."""
    function = clean if seed is None else functools.partial(clean_record, seed=seed)
    return [kept for text in texts if (kept := function(text, counts=counts)) is not None]


def story_hash(text, seed):
    """16 bytes that identify a story, salted with `seed`; text: a str, its UTF-8, or a Record."""
    if isinstance(text, instruct.Record):
        text = text.story  # stories that differ in their instruction are duplicates
    data = text.encode() if isinstance(text, str) else text
    salt = seed.to_bytes(8, "little", signed=True)
    return hashlib.blake2b(data, digest_size=16, salt=salt).digest()
