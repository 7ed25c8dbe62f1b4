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
# A byte that is not UTF-8, as surrogateescape decodes it: most often Windows' typography.
STRAY_BYTE = re.compile("[\udc80-\udcff]")
WINDOWS = {0xDC00 + i: bytes([i]).decode("cp1252", "replace") for i in range(0x80, 0x100)}


def fix_encoding(text, counts):
    """`text` repaired and stripped; a repair adds one to counts["repaired"], counts a Counter."""
    if not text.isascii() and not text.translate(TYPOGRAPHY).isascii():
        fixed = ftfy.fix_encoding(join_surrogates(text.translate(WINDOWS)))
        counts["repaired"] += fixed != text
        text = fixed
    return text.strip()


def join_surrogates(text):
    """Pairs of surrogates become the character they encode, lone ones U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def clean(text, counts, seed=None):
    """A text of readers.texts repaired, or None to drop it. With a seed the text is an Instruct
    record, or StoryFacts to make one of: its instruct.Record. counts: a Counter of "repaired",
    "empty", "truncated"; also "unreadable" (no record), "trailing" (a field after the story)."""
    if seed is None:
        kept = story = fix_encoding(text, counts)
    elif isinstance(text, instruct.StoryFacts):
        facts = fix_facts(text, counts)
        story, kept = facts.story, instruct.make_record(facts, seed)
    else:
        kept = instruct.parse_record(fix_encoding(text, counts))
        story = kept.story if kept else None
    if story is not None and not story.endswith(ENDINGS):
        counts["truncated" if story else "empty"] += 1
        return None
    if seed is not None:
        counts["unreadable"] += kept is None
        counts["trailing"] += bool(kept and kept.trailing)
    return kept


def fix_facts(facts, counts):
    """StoryFacts with the encoding of every text repaired; counts: of the story alone."""
    fix = functools.partial(fix_encoding, counts=Counter())
    words, features = tuple(map(fix, facts.words)), tuple(map(fix, facts.features))
    story = fix_encoding(facts.story, counts)
    return instruct.StoryFacts(story, words, features, fix(facts.summary))


def story_hash(text, seed):
    """16 bytes that identify a story, salted with `seed`; text: a str, its UTF-8, or a Record."""
    if isinstance(text, instruct.Record):
        text = text.story  # stories that differ in their instruction are duplicates
    data = text.encode() if isinstance(text, str) else text
    salt = seed.to_bytes(8, "little", signed=True)
    return hashlib.blake2b(data, digest_size=16, salt=salt).digest()
