"""Clean stories: repair their encoding, drop those that are empty, cut off or short, hash the rest.

Only the encoding is repaired: cp1252 read as UTF-8 or the reverse, stray bytes, lone surrogates.
Quotes, ligatures, HTML and line ends stay as they are.
"""

import functools
import hashlib
import re
import unicodedata
import zlib
from collections import Counter
from dataclasses import dataclass

import ftfy

from nanostories.dataset import instruct

# A story of TinyStories that ends in anything else was cut off when it was generated.
ENDINGS = (".", "!", "?", '"', "'", "”", "’", "»", *"।॥۔؟。！？」』")  # it has translations
_THE_END = re.compile(r"\bthe end\W*$", re.IGNORECASE)
# Most non-ASCII stories have only these. ftfy never changes them, but takes 0.6 ms to decide.
TYPOGRAPHY = dict.fromkeys(map(ord, "‘’“”–—…"), "'")
# A byte that is not UTF-8, as surrogateescape decodes it: most often Windows' typography.
STRAY_BYTE = re.compile("[\udc80-\udcff]")
WINDOWS = {0xDC00 + i: bytes([i]).decode("cp1252", "replace") for i in range(0x80, 0x100)}


@dataclass(frozen=True)
class Rules:
    """Which stories `clean` drops, besides empty ones."""

    unfinished: str = "tinystories"  # without ENDINGS; "any script": not is_finished; "": none
    min_length: int = 0  # of fewer characters


ONLY_FINISHED = Rules()


def is_finished(story):
    """Whether it ends as texts of any language do: in punctuation, but no comma, colon or opening
    bracket, in an emoji, or in "The End"."""
    if story.endswith(ENDINGS) or _THE_END.search(story[-20:]):
        return True
    # Some languages close with the quote that opens in others: what stands before it decides.
    last = story.rstrip("“‘«‹„_\ufe0f\u200d\u200e\u200f ")[-1:] or " "
    punctuation = unicodedata.category(last) in ("Po", "Pe", "Pf", "So")
    return punctuation and not re.search("COMMA|COLON|TSHEG", unicodedata.name(last, ""))


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


def clean(text, counts, seed=None, rules=ONLY_FINISHED):
    """A text of readers.texts repaired, or None to drop it. With a seed the text is an Instruct
    record, or StoryFacts to make one of: its instruct.Record. counts: a Counter of "repaired",
    "empty", "truncated", "short", "unreadable" (no record), "trailing" (a field after a story)."""
    if seed is None:
        kept = story = fix_encoding(text, counts)
    elif isinstance(text, instruct.StoryFacts):
        facts = fix_facts(text, counts)
        story, kept = facts.story, instruct.make_record(facts, seed)
    else:
        kept = instruct.parse_record(fix_encoding(text, counts))
        story = kept.story if kept else None
    if story is not None:
        cut = rules.unfinished and not story.endswith(ENDINGS)
        if not story:
            reason = "empty"
        elif cut and (rules.unfinished == "tinystories" or not is_finished(story)):
            reason = "truncated"
        else:
            reason = "short" if len(story) < rules.min_length else ""
        if reason:
            counts[reason] += 1
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
    """16 bytes that identify a story, salted with `seed`; text: a str, its UTF-8, or a Record. Line
    ends of Windows change nothing."""
    if isinstance(text, instruct.Record):
        text = text.story  # stories that differ in their instruction are duplicates
    data = text.encode() if isinstance(text, str) else text
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    salt = seed.to_bytes(8, "little", signed=True)
    return hashlib.blake2b(data, digest_size=16, salt=salt).digest()


def bare_hash(story):
    """16 bytes that only stories share which are equal but for their white space."""
    return hashlib.blake2b("".join(story.split()).encode(), digest_size=16).digest()


def ends_hash(story):
    """A number that stories share which are equal but for their white space, and few others: of the
    first and last 24 bytes of what is not white in the first and last 64 characters, so unless they
    have dozens of blanks there. bare_hash takes ten times as long."""
    story = getattr(story, "story", story)  # of a Record
    bare = "".join(f"{story[:64]}\0{story[-64:]}".split())
    first, _, last = bare.encode().partition(b"\0")
    return zlib.crc32(first[:24] + last[-24:])
