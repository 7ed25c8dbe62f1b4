"""
Where stories come from, and how they are cleaned.

    storybook                            the built-in grammar, no network needed
    tinystories, tinystories-v2,
    tinystories-instruct                 the real data sets, from the hub at a pinned revision
    hub:owner/name, hub:owner/name:split any text data set of the hub (column text or story)
    stories.txt, "data/*.jsonl"          local files: .txt with <|endoftext|> between stories,
                                         .jsonl, .json, .parquet, TinyStories_all_data.tar.gz
    instruct:<any of these>              Instruct records made of its stories (instruct.py)

A source is read as blocks of about a megabyte. A block is small to pickle (a text file's is a path
and two offsets) and becomes its stories, in order, wherever `texts` is called: in prepare.py's
worker processes, which keeps the parent idle and memory bounded whatever the size of the source.
"""

import difflib
import glob
import itertools
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import ftfy

from configs import UserError
from nanostories.dataset import hub, instruct, readers, storybook
from nanostories.dataset.tokenizer import EOT

BLOCK_BYTES, SCAN_BYTES = 1 << 20, 1 << 16  # of a block; of a look for its end
_STRAY = re.compile("[\udc80-\udcff]")  # how Python decodes a byte that is no UTF-8


MADE = "instruct:"  # before a source: Instruct records made of its stories


def slug(source):
    """A short name for a source: a file's stem, a glob's folder, a hub data set's name."""
    if source.startswith(MADE):
        return f"instruct-{slug(source.removeprefix(MADE))}"
    if source in hub.NAMED or source == "storybook":
        return source
    if source.startswith("hub:"):
        return source.split(":")[1].rpartition("/")[2]
    path = Path(source)
    if _is_glob(source):
        fixed = itertools.takewhile(lambda part: not _is_glob(part), path.parts)
        return Path(*fixed).resolve().name
    return path.name.split(".")[0] or path.name


def dataset_folder(source, tokenizer):
    """Where prepare.py puts `source` tokenized by `tokenizer` unless told: data/<slug>-<name>."""
    path = Path(tokenizer)
    if path.name == "tokenizer.json":  # a run's own tokenizer goes by the run's name
        path = path.parent
    return f"data/{slug(source)}-{path.name}"


def is_instruct(source):
    """Whether the records of the source are TinyStories-Instruct's, with their story at the end."""
    return "instruct" in slug(source).lower()


def _is_glob(source):
    return any(char in source for char in "*?[") and not Path(source).exists()


# ----------------------------------------------------------------------------------------------
# blocks


@dataclass(frozen=True)
class Block:
    """
    Some consecutive stories of a source: `stories`, or what stands in a file from start to stop.

    weight: its part of the source's `total`, for progress. last: nothing follows in its file.
    seed: where Instruct records are to be made of the stories, which `stories` then holds as Facts.
    """

    weight: int
    stories: tuple = ()
    path: str = ""
    start: int = 0
    stop: int = 0
    last: bool = False
    seed: int | None = None


@dataclass(frozen=True)
class Source:
    """
    A named place where stories come from; everything here raises UserError where they do not.

    split: "train" or "val", of the sources that have both. stories: how many storybook tells.
    seed: of storybook, and of the instructions made. revision: of a hub source, another commit than
    the pinned one.
    """

    name: str
    split: str = "train"
    stories: int = 1000
    seed: int = 0
    revision: str = ""

    def __str__(self):
        return f"{self.name}@{self.revision}" if self.revision else self.name

    @property
    def base(self):
        """The name of the source that the stories come from."""
        return self.name.removeprefix(MADE)

    def pinned(self):
        """The same source at a definite commit: the pinned one, or the newest there is now."""
        revision = self.revision if self.base.startswith("hub:") else ""
        if self.base in hub.NAMED:
            revision = self.revision or hub.NAMED[self.base][1]
        elif self.base.startswith("hub:") and not re.fullmatch("[0-9a-f]{40}", revision):
            with hub.reaching(self.base):
                revision = hub.commit(self.base.split(":")[1], revision)
        return replace(self, revision=revision)

    def files(self):
        """The local files of the source, a list of paths; downloads those of a named data set."""
        if self.base in hub.NAMED:
            return [hub.download(self.base, self.split, self.revision)]
        return _local_files(self.base)

    def total(self):
        """The sum of the blocks' weights: bytes of files, or stories; None where unknown."""
        if self.base == "storybook":
            return self.stories
        if self.base.startswith("hub:"):
            return None
        return sum(Path(path).stat().st_size for path in self.files())

    def blocks(self):
        """Yield the blocks of the source, in order."""
        made = self.name.startswith(MADE)
        blocks = self._blocks(readers.facts_of if made else readers.text_of)
        yield from (replace(block, seed=self.seed) for block in blocks) if made else blocks

    def _blocks(self, read):
        """read: what to read a row as, see readers.py."""
        if self.base == "storybook":
            # Other stories for val than for train, of the same seed.
            told = storybook.stories(self.stories, self.seed + (self.split == "val"))
            yield from _batches((read({"text": s.text} | vars(s), self.base), 1) for s in told)
        elif self.base.startswith("hub:"):
            yield from _batches((row, 1) for row in hub.read(self.base, self.revision, read))
        else:
            for path in self.files():
                yield from _file_blocks(path, read)


def _file_blocks(path, read):
    kind = _kind(path)
    if kind in readers.OF_FILE:
        yield from _batches(readers.OF_FILE[kind](path, read))
    else:
        yield from _spans(path, EOT.encode() if kind == "txt" else b"\n")


def _kind(path):
    name = Path(path).name.lower()
    if name.endswith((".tar.gz", ".tgz", ".tar")):
        return "tar"
    suffix = Path(name).suffix[1:]
    return suffix if suffix in ("jsonl", "json", "parquet") else "txt"


def _batches(pairs):
    """Blocks of the (row, weight) pairs that `pairs` yields; a row is a text, or Facts."""
    stories, size, weight = [], 0, 0
    for row, part in pairs:
        stories.append(row)
        size += len(row if isinstance(row, str) else row.story)
        weight += part
        if size >= BLOCK_BYTES:
            yield Block(weight, tuple(stories))
            stories, size, weight = [], 0, 0
    if stories:
        yield Block(weight, tuple(stories))


def _spans(path, separator):
    """Blocks of a file that is cut only at separators, found by reading just around each cut."""
    start, size = 0, Path(path).stat().st_size
    with open(path, "rb") as file:
        while start < size:
            stop = _find(file, separator, start + BLOCK_BYTES, size)
            yield Block(stop - start, path=str(path), start=start, stop=stop, last=stop == size)
            start = stop + len(separator)


def _find(file, separator, start, size):
    """The offset of the first separator at or after `start`, or `size`."""
    kept = b""  # the end of what was searched, as a separator may begin in it
    file.seek(start)
    while data := file.read(SCAN_BYTES):
        found = (kept + data).find(separator)
        if found >= 0:
            return start - len(kept) + found
        start += len(data)
        kept = (kept + data)[1 - len(separator) :] if len(separator) > 1 else b""
    return size


# ----------------------------------------------------------------------------------------------
# from blocks to stories


def texts(block, strict=False):
    """
    The stories of a block, a list of str, uncleaned; or of StoryFacts, where Instruct records are
    to be made of them (`record_of`).

    A byte that is no UTF-8 becomes a lone surrogate, which `clean` repairs; strict: it is an
    error. Raises UserError for a file that is no text at all.
    """
    found = _stories(block, strict) if block.path else list(block.stories)
    if block.seed is None:
        return found
    return [instruct.StoryFacts(one) if isinstance(one, str) else one for one in found]


def record_of(text, seed, counts):
    """
    The instruct.Record that a text is, or that is made of Facts; None where it is to be dropped.
    counts: as of `clean`, with "unreadable" and "trailing" (a field after the story).
    """
    made = isinstance(text, instruct.StoryFacts)
    if made:
        facts = _mended(text, counts)
        story, record = facts.story, instruct.make_record(facts, seed)
    else:
        record = instruct.parse_record(mend(text, counts))
        story = record.story if record else ""
    if (made or record) and (why := unfit(story)):
        counts[why] += 1
    elif record:
        counts["trailing"] += bool(record.trailing)
        return record
    else:
        counts["unreadable"] += 1
    return None


def _mended(facts, counts):
    """instruct.StoryFacts with all of its texts mended; counts: a Counter, of the story alone."""
    words, features = (
        tuple(mend(text, Counter()) for text in texts) for texts in (facts.words, facts.features)
    )
    summary = mend(facts.summary, Counter())
    return instruct.StoryFacts(mend(facts.story, counts), words, features, summary)


def _stories(block, strict):
    """The stories, or Facts, of a block of a file."""
    with open(block.path, "rb") as file:
        file.seek(block.start)
        data = file.read(block.stop - block.start)
    if block.start == 0:
        data = data.removeprefix(b"\xef\xbb\xbf")  # a byte order mark is no part of the text
    text = _decode(data, block, strict)
    if _kind(block.path) == "jsonl":
        read = readers.text_of if block.seed is None else readers.facts_of
        lines = (line for line in text.split("\n") if line.strip())
        return [readers.of_line(line, block.path, read) for line in lines]
    stories = [story.strip() for story in text.split(EOT)]
    # Before the first separator and after the last there may be nothing: that is no empty story.
    if block.last and not stories[-1]:
        stories.pop()
    if block.start == 0 and stories and not stories[0]:
        stories.pop(0)
    return stories


def _decode(data, block, strict):
    try:
        if b"\0" in data:
            raise UserError(f"'{block.path}' is a binary file, not text (it has NUL bytes)")
        return data.decode()
    except UnicodeDecodeError as error:
        text = data.decode(errors="surrogateescape")
        # Stray bytes are damage; more than 1 % of them is another encoding, or no text.
        if strict or len(_STRAY.findall(text)) > max(1, len(data) // 100):
            raise UserError(
                f"'{block.path}' is not UTF-8 text: byte {data[error.start]:#x} at offset "
                f"{block.start + error.start:,}; convert it, or name another source"
            ) from None
        return text


# ----------------------------------------------------------------------------------------------
# files, here and on the hub


def _local_files(name):
    if _is_glob(name):
        found = sorted(path for path in glob.glob(name, recursive=True) if Path(path).is_file())
        if not found:
            raise UserError(f"no file matches '{name}'")
    elif Path(name).is_file():
        found = [name]
    elif Path(name).is_dir():
        raise UserError(f"'{name}' is a folder; name its files, as in '{name}/*.txt'")
    else:
        near = difflib.get_close_matches(name, [*hub.NAMED, "storybook"], n=1)
        hint = (
            f"did you mean '{near[0]}'?"
            if near
            else f"nor one of {', '.join(hub.NAMED)}, storybook"
        )
        raise UserError(f"no source '{name}': it is no file here; {hint}")
    if not any(Path(path).stat().st_size for path in found):
        raise UserError(f"'{name}' is empty")
    return found


# ----------------------------------------------------------------------------------------------
# cleaning


def read(source, **settings):
    """
    Yield the stories of any source exactly as they are, uncleaned (but records are made of mended
    ones); settings: those of `Source`, of which split is "val" unless told. Raises UserError, also
    for a byte that is no UTF-8.
    """
    for block in Source(source, **{"split": "val"} | settings).blocks():
        for story in texts(block, strict=True):
            if block.seed is not None:
                record = instruct.make_record(_mended(story, Counter()), block.seed)
                story = record.text() if record else story.story
            yield story if story.isascii() else _without_surrogates(story)


# A story that ends in anything else was cut off when it was generated.
ENDINGS = (".", "!", "?", '"', "'", "”", "’", "»")
# Most non-ASCII stories hold these alone. ftfy never objects to them, but takes 0.6 ms to say so.
TYPOGRAPHY = dict.fromkeys(map(ord, "‘’“”–—…"), "'")


def mend(text, counts):
    """
    `text` repaired and without surrounding whitespace. counts: a Counter, see `clean`.

    Repair is of the encoding alone: cp1252 read as UTF-8 or the reverse, stray bytes, lone
    surrogates. Quotes, ligatures, HTML and line ends stay as they are.
    """
    if not text.isascii() and not text.translate(TYPOGRAPHY).isascii():
        mended = ftfy.fix_encoding(_without_surrogates(_STRAY.sub(_as_cp1252, text)))
        counts["repaired"] += mended != text
        text = mended
    return text.strip()


def clean(story, counts):
    """
    `story` mended, or None where it is to be dropped.

    counts: a Counter; its "repaired" (encoding mended), "empty" or "truncated" goes up by one.
    """
    story = mend(story, counts)
    if why := unfit(story):
        counts[why] += 1
        return None
    return story


def unfit(story):
    """Why a mended story is to be dropped: "empty" or "truncated", or None where it is not."""
    if not story:
        return "empty"
    return None if story.endswith(ENDINGS) else "truncated"


def _as_cp1252(stray):
    """The character of a byte that was no UTF-8, which is most often Windows' typography."""
    return bytes([ord(stray[0]) - 0xDC00]).decode("cp1252", errors="replace")


def _without_surrogates(text):
    """Pairs of surrogates joined to the character they stand for, lone ones U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
