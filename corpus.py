"""
Where stories come from, and how they are cleaned.

    storybook                            the built-in grammar, no network needed
    tinystories, tinystories-v2,
    tinystories-instruct                 the real data sets, from the hub at a pinned revision
    hub:owner/name, hub:owner/name:split any text data set of the hub (column text or story)
    stories.txt, "data/*.jsonl"          local files: .txt with <|endoftext|> between stories,
                                         .jsonl, .json, .parquet, TinyStories_all_data.tar.gz

A source is read as blocks of about a megabyte. A block is small to pickle (a text file's is a path
and two offsets) and becomes its stories, in order, wherever `texts` is called: in prepare.py's
worker processes, which keeps the parent idle and memory bounded whatever the size of the source.
"""

import codecs
import contextlib
import difflib
import errno
import glob
import itertools
import json
import re
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path

import ftfy

from configs import UserError
from tokenizer import EOT

BLOCK_BYTES, SCAN_BYTES = 1 << 20, 1 << 16  # of a block; of a look for its end
OFFLINE = "without a network, use --source=storybook or a local file"
_SKIP = re.compile(r"[\s,\[\]]*")  # what stands around the objects of a JSON array
_STRAY = re.compile("[\udc80-\udcff]")  # how Python decodes a byte that is no UTF-8


# Plain text on the hub: repository, the commit we read (so that runs repeat), start of file names.
_REPO = ("roneneldan/TinyStories", "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64")
_INSTRUCT_REPO = ("roneneldan/TinyStoriesInstruct", "ee050ed1f8720795be342921335e821856a2b42e")
HUB = {
    "tinystories": (*_REPO, "TinyStories"),
    "tinystories-v2": (*_REPO, "TinyStoriesV2-GPT4"),
    "tinystories-instruct": (*_INSTRUCT_REPO, "TinyStories-Instruct"),
}


def slug(source):
    """A short name for a source: a file's stem, a glob's folder, a hub data set's name."""
    if source in HUB or source == "storybook":
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
    """

    weight: int
    stories: tuple = ()
    path: str = ""
    start: int = 0
    stop: int = 0
    last: bool = False


@dataclass(frozen=True)
class Source:
    """
    A named place where stories come from; everything here raises UserError where they do not.

    split: "train" or "val", of the sources that have both. stories, seed: how many stories
    storybook tells, from which seed. revision: of a hub source, another commit than the pinned one.
    """

    name: str
    split: str = "train"
    stories: int = 1000
    seed: int = 0
    revision: str = ""

    def __str__(self):
        return f"{self.name}@{self.revision}" if self.revision else self.name

    def pinned(self):
        """The same source at a definite commit: the pinned one, or the newest there is now."""
        revision = self.revision if self.name.startswith("hub:") else ""
        if self.name in HUB:
            revision = self.revision or HUB[self.name][1]
        elif self.name.startswith("hub:") and not re.fullmatch("[0-9a-f]{40}", revision):
            with _reaching_hub(self.name):
                revision = _commit(self.name.split(":")[1], revision)
        return replace(self, revision=revision)

    def files(self):
        """The local files of the source, a list of paths; downloads those of a named data set."""
        if self.name in HUB:
            return [_download(self.name, self.split, self.revision)]
        return _local_files(self.name)

    def total(self):
        """The sum of the blocks' weights: bytes of files, or stories; None where unknown."""
        if self.name == "storybook":
            return self.stories
        if self.name.startswith("hub:"):
            return None
        return sum(Path(path).stat().st_size for path in self.files())

    def blocks(self):
        """Yield the blocks of the source, in order."""
        if self.name == "storybook":
            import storybook

            # Other stories for val than for train, of the same seed.
            told = storybook.stories(self.stories, self.seed + (self.split == "val"))
            yield from _batches((story.text, 1) for story in told)
        elif self.name.startswith("hub:"):
            yield from _batches((text, 1) for text in _hub_rows(self.name, self.revision))
        else:
            for path in self.files():
                yield from _file_blocks(path)


def _file_blocks(path):
    kind = _kind(path)
    if kind in _ROWS:
        yield from _batches(_ROWS[kind](path))
    else:
        yield from _spans(path, EOT.encode() if kind == "txt" else b"\n")


def _kind(path):
    name = Path(path).name.lower()
    if name.endswith((".tar.gz", ".tgz", ".tar")):
        return "tar"
    suffix = Path(name).suffix[1:]
    return suffix if suffix in ("jsonl", "json", "parquet") else "txt"


def _batches(rows):
    """Blocks of the (text, weight) pairs that `rows` yields."""
    stories, size, weight = [], 0, 0
    for text, part in rows:
        stories.append(text)
        size, weight = size + len(text), weight + part
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
    The stories of a block, a list of str, uncleaned.

    A byte that is no UTF-8 becomes a lone surrogate, which `clean` repairs; strict: it is an
    error. Raises UserError for a file that is no text at all.
    """
    if not block.path:
        return list(block.stories)
    with open(block.path, "rb") as file:
        file.seek(block.start)
        data = file.read(block.stop - block.start)
    if block.start == 0:
        data = data.removeprefix(b"\xef\xbb\xbf")  # a byte order mark is no part of the text
    text = _decode(data, block, strict)
    if _kind(block.path) == "jsonl":
        return [_json_story(line, block.path) for line in text.split("\n") if line.strip()]
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


def _json_story(line, path):
    try:
        return _story(json.loads(line), path)
    except ValueError as error:
        raise UserError(f"'{path}': a line is not JSON ({error}): {line[:40]!r}") from None


def _story(record, path):
    """The text of one record: a string, nothing (which is an empty one), or an object's text."""
    if isinstance(record, dict):
        record = record[_field(record, path)]
    if not isinstance(record, str | None):
        raise UserError(f"'{path}': a story is not text but {record!r:.40}")
    return record or ""


def _field(names, path):
    """Which of the `names` of fields or columns holds the story."""
    for name in ("text", "story"):
        if name in names:
            return name
    raise UserError(f"'{path}' has no 'text' or 'story', only {', '.join(names)}")


def _parquet_rows(path):
    """(text, its share of the file's bytes) of each row."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            part = Path(path).stat().st_size // max(1, file.metadata.num_rows)
            column = _field(file.schema_arrow.names, path)
            for batch in file.iter_batches(batch_size=1024, columns=[column]):
                yield from ((_story(text, path), part) for text in batch.column(0).to_pylist())
    except pyarrow.ArrowException as error:
        raise UserError(f"'{path}' is not a readable parquet file ({error})") from None


def _tar_rows(path):
    """The rows of every .json of an archive with the layout of TinyStories_all_data.tar.gz."""
    try:
        with open(path, "rb") as raw, tarfile.open(fileobj=raw, mode="r|*") as archive:
            before = 0
            for member in archive:
                if member.isfile() and member.name.endswith(".json"):
                    for text, _ in _json_rows(path, archive.extractfile(member)):
                        # Weighed by how far the compressed file is read.
                        yield text, raw.tell() - before
                        before = raw.tell()
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"'{path}' is a damaged archive ({error})") from None


def _json_rows(path, file=None):
    """(text, its bytes) of each object of a JSON array, never holding more than a chunk of it."""
    decoder, buffer = json.JSONDecoder(), ""
    with file or open(path, "rb") as raw:
        reader = codecs.getreader("utf-8")(raw, errors="surrogateescape")
        while chunk := reader.read(BLOCK_BYTES):
            buffer += chunk
            place = _SKIP.match(buffer).end()
            # An object that is not whole yet, or a number, waits for the next chunk.
            with contextlib.suppress(ValueError):
                while place < len(buffer):
                    record, stop = decoder.raw_decode(buffer, place)
                    yield _story(record, path), stop - place
                    place = _SKIP.match(buffer, stop).end()
            buffer = buffer[place:]
            if len(buffer) > 64 * BLOCK_BYTES:
                break  # no story is that long
    if buffer:
        raise UserError(f"'{path}' is not a whole JSON array: no object at {buffer[:40]!r}")


_ROWS = {"parquet": _parquet_rows, "tar": _tar_rows, "json": _json_rows}


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
        near = difflib.get_close_matches(name, [*HUB, "storybook"], n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"nor one of {', '.join(HUB)}, storybook"
        raise UserError(f"no source '{name}': it is no file here; {hint}")
    if not any(Path(path).stat().st_size for path in found):
        raise UserError(f"'{name}' is empty")
    return found


def _commit(repo, revision):
    """The commit hash of a data set at a branch, a tag, a commit or, for "", now."""
    from huggingface_hub import HfApi

    return HfApi().dataset_info(repo, revision=revision or None, timeout=20).sha


def _download(name, split, revision):
    """The path of a named data set's file in the hub's cache. A broken download is resumed."""
    repo, pinned, stem = HUB[name]
    what = {
        "repo_id": repo,
        "repo_type": "dataset",
        "revision": revision or pinned,
        "filename": f"{stem}-{'train' if split == 'train' else 'valid'}.txt",
    }
    with _reaching_hub(name):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            return hf_hub_download(**what, local_files_only=True)
        except LocalEntryNotFoundError:
            _commit(repo, what["revision"])  # without a network it fails at once, a download later
            return hf_hub_download(**what)


def _hub_rows(source, revision):
    """The stories of hub:owner/name, or of the split named in hub:owner/name:split."""
    _, repo, *split = source.split(":")
    with _reaching_hub(source):
        import datasets

        # Not streamed: a download that breaks is resumed, and a second run needs no network.
        rows = datasets.load_dataset(repo, split=(split or ["train"])[0], revision=revision or None)
    column = _field(rows.column_names, source)
    for batch in rows.select_columns([column]).iter(batch_size=1024):
        yield from (_story(text, source) for text in batch[column])


@contextlib.contextmanager
def _reaching_hub(source):
    """Turn what goes wrong on the way to the hub into one line. A full disk stays what it is."""
    try:
        yield
    except Exception as error:  # of several HTTP libraries, with no common ancestor
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        why = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise UserError(f"'{source}' cannot be had from the hub ({why[0]}); {OFFLINE}") from error


# ----------------------------------------------------------------------------------------------
# cleaning


def read(source, **settings):
    """
    Yield the stories of any source exactly as they are, uncleaned; settings: those of `Source`, of
    which split is "val" unless told. Raises UserError, also for a byte that is no UTF-8.
    """
    for block in Source(source, **{"split": "val"} | settings).blocks():
        for story in texts(block, strict=True):
            yield story if story.isascii() else _without_surrogates(story)


# A story that ends in anything else was cut off when it was generated.
ENDINGS = (".", "!", "?", '"', "'", "”", "’", "»")
# Most non-ASCII stories hold these alone. ftfy never objects to them, but takes 0.6 ms to say so.
TYPOGRAPHY = dict.fromkeys(map(ord, "‘’“”–—…"), "'")


def clean(story, counts):
    """
    `story` repaired and without surrounding whitespace, or None where it is to be dropped.

    counts: a Counter; its "repaired" (encoding mended), "empty" or "truncated" goes up by one.
    Repair is of the encoding alone: cp1252 read as UTF-8 or the reverse, stray bytes, lone
    surrogates. Quotes, ligatures, HTML and line ends stay as they are.
    """
    if not story.isascii() and not story.translate(TYPOGRAPHY).isascii():
        mended = ftfy.fix_encoding(_without_surrogates(_STRAY.sub(_as_cp1252, story)))
        counts["repaired"] += mended != story
        story = mended
    story = story.strip()
    if not story:
        counts["empty"] += 1
    elif not story.endswith(ENDINGS):
        counts["truncated"] += 1
    else:
        return story
    return None


def _as_cp1252(stray):
    """The character of a byte that was no UTF-8, which is most often Windows' typography."""
    return bytes([ord(stray[0]) - 0xDC00]).decode("cp1252", errors="replace")


def _without_surrogates(text):
    """Pairs of surrogates joined to the character they stand for, lone ones U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
