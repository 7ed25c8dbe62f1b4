"""Read stories from files and from the Hugging Face hub, as blocks of about a megabyte.

    .txt              <|endoftext|> between stories
    .jsonl            a row a line: a string, or an object with its story in "text" or "story"
    .json .tar.gz     arrays of such objects, as in TinyStories_all_data.tar.gz
    .parquet          a table with a column "text" or "story"
    hub:owner/name    any data set of the hub with such a column; downloaded once

A block is small to pickle (of a .txt or .jsonl file: a path and two offsets). A worker process of
prepare.py turns it into its `texts`, so memory is bounded whatever the size of the source.
"""

import codecs
import contextlib
import errno
import gzip
import json
import mmap
import re
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from configs import UserError
from nanostories.dataset import instruct
from nanostories.dataset.cleaning import STRAY_BYTE
from nanostories.dataset.tokenizer import EOT

BLOCK_BYTES = 1 << 20
JSON_CHUNK, MAX_JSON_OBJECT = 1 << 20, 1 << 26  # characters of an array read at a time, of a row
_BETWEEN_OBJECTS = re.compile(r"[\s,\[\]]*")  # in a JSON array
_FACTS = ("summary", "words", "features", "instruction")  # fields that Instruct records need

# Plain text on the hub: repository, the commit we read (so that runs repeat), start of file names.
_REPO = ("roneneldan/TinyStories", "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64")
_INSTRUCT_REPO = ("roneneldan/TinyStoriesInstruct", "ee050ed1f8720795be342921335e821856a2b42e")
NAMED = {
    "tinystories": (*_REPO, "TinyStories"),
    "tinystories-v2": (*_REPO, "TinyStoriesV2-GPT4"),
    "tinystories-instruct": (*_INSTRUCT_REPO, "TinyStories-Instruct"),
}


@dataclass(frozen=True)
class Block:
    """Consecutive stories of a source: `rows`, or the bytes of a file from start to stop."""

    weight: int  # its part of Source.total(), for progress
    path: str  # the file; of rows the source, for errors
    rows: tuple = ()  # str, None, or dicts with the story in "text" or "story"
    start: int = 0
    stop: int = 0
    last: bool = False  # nothing follows in its file
    facts: bool = False  # the stories are wanted as instruct.StoryFacts


def file_blocks(path):
    """The Blocks of a file, in order, an iterator."""
    readers = {".parquet": read_parquet, ".json": read_json}
    readers |= dict.fromkeys((".tar.gz", ".tgz", ".tar"), read_tar)
    for suffix, read in readers.items():
        if path.lower().endswith(suffix):
            return row_blocks(path, read(path))
    return _text_blocks(path, b"\n" if path.lower().endswith(".jsonl") else EOT.encode())


def row_blocks(path, weighted_rows):
    """Yield Blocks of (row, weight) pairs."""
    rows, size, weight = [], 0, 0
    for row, part in weighted_rows:
        rows.append(row)
        weight += part
        values = row.values() if isinstance(row, dict) else [row]
        size += sum(len(value) for value in values if isinstance(value, str))
        if size >= BLOCK_BYTES:
            yield Block(weight, path, tuple(rows))
            rows, size, weight = [], 0, 0
    if rows:
        yield Block(weight, path, tuple(rows))


def _text_blocks(path, separator):
    """Yield Blocks of a file that is cut only at separators."""
    start, size = 0, Path(path).stat().st_size
    if not size:  # an empty file cannot be mapped
        return
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        while start < size:
            stop = data.find(separator, start + BLOCK_BYTES)
            stop = size if stop < 0 else stop
            yield Block(stop - start, path, start=start, stop=stop, last=stop == size)
            start = stop + len(separator)


def texts(block, strict=False):
    """The stories of a block, uncleaned: a list of str, or of instruct.StoryFacts. A byte that is
    not UTF-8 is a lone surrogate, which cleaning.fix_encoding repairs; if `strict`, an error."""
    rows = block.rows or _parse_file(block, strict)
    return [_parse_row(row, block.path, block.facts) for row in rows]


def _parse_file(block, strict):
    with open(block.path, "rb") as file:
        file.seek(block.start)
        data = file.read(block.stop - block.start)
    if block.start == 0:
        data = data.removeprefix(codecs.BOM_UTF8)
    if b"\0" in data:
        raise UserError(f"'{block.path}' is a binary file, not text (it has NUL bytes)")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        text = data.decode(errors="surrogateescape")
        # Stray bytes are damage; more than 1 % of them is another encoding, or no text.
        if strict or len(STRAY_BYTE.findall(text)) > max(1, len(data) // 100):
            byte = f"byte {data[error.start]:#x} at offset {block.start + error.start:,}"
            wrong = f"'{block.path}' is not UTF-8 text: {byte}"
            raise UserError(f"{wrong}; convert it, or name another source") from None
    if block.path.lower().endswith(".jsonl"):
        try:
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        except json.JSONDecodeError as error:
            line = f"{error.doc[:40]!r}"
            raise UserError(f"'{block.path}': a line is not JSON ({error}): {line}") from None
    stories = [story.strip() for story in text.split(EOT)]
    # Nothing before the first separator, or after the last, is not an empty story.
    if block.last and not stories[-1]:
        stories.pop()
    if block.start == 0 and stories and not stories[0]:
        stories.pop(0)
    return stories


def _parse_row(row, path, facts):
    """The story of a row; with `facts`, as StoryFacts with the words, features, summary it has."""
    story = row[_columns(row, path)[0]] if isinstance(row, dict) else row
    if not isinstance(story, str | None):
        raise UserError(f"'{path}': a story is not text but {story!r:.40}")
    if not facts:
        return story or ""
    try:
        return instruct.facts_from_json(story or "", row if isinstance(row, dict) else {})
    except (AttributeError, TypeError):
        wrong = f"'{path}': the words, features or summary of a story are not as in"
        raise UserError(f"{wrong} TinyStories_all_data: {row!r:.60}") from None


def _columns(names, path):
    """Those of the columns `names` that are read: first the story's, then what is known of it."""
    story = next((name for name in ("text", "story") if name in names), None)
    if story is None:
        raise UserError(f"'{path}' has no 'text' or 'story', only {', '.join(names)}")
    return [story, *(name for name in _FACTS if name in names)]


def read_parquet(path):
    """Yield (row, its part of the file's bytes), as read_tar and read_json do."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            weight = Path(path).stat().st_size // max(1, file.metadata.num_rows)
            columns = _columns(file.schema_arrow.names, path)
            for batch in file.iter_batches(batch_size=1024, columns=columns):
                yield from ((row, weight) for row in batch.to_pylist())
    except pyarrow.ArrowException as error:
        raise UserError(f"'{path}' is not a readable parquet file ({error})") from None


def read_tar(path):
    """Yield (row, weight) of every .json in an archive; the weight is in compressed bytes."""
    try:
        with open(path, "rb") as raw:
            # tarfile's own gzip compares no checksum.
            stream = gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == b"\x1f\x8b" else raw
            with tarfile.open(fileobj=stream, mode="r|*") as archive:
                before = 0
                for member in archive:
                    if member.isfile() and member.name.endswith(".json"):
                        for row, _ in read_json(path, archive.extractfile(member)):
                            yield row, raw.tell() - before
                            before = raw.tell()
            while stream.read(BLOCK_BYTES):  # to the end: there is the checksum
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"'{path}' is a damaged archive ({error})") from None


def read_json(path, file=None):
    """Yield (row, weight) of each object of a JSON array, a chunk of which is held at a time."""
    decoder, buffer = json.JSONDecoder(), ""
    with file or open(path, "rb") as raw:
        reader = codecs.getreader("utf-8")(raw, errors="surrogateescape")
        while len(buffer) <= MAX_JSON_OBJECT and (chunk := reader.read(JSON_CHUNK)):
            buffer += chunk
            place = _BETWEEN_OBJECTS.match(buffer).end()
            # An object that is not complete yet, or a number, waits for the next chunk.
            with contextlib.suppress(ValueError):
                while place < len(buffer):
                    row, stop = decoder.raw_decode(buffer, place)
                    yield row, stop - place
                    place = _BETWEEN_OBJECTS.match(buffer, stop).end()
            buffer = buffer[place:]
    if buffer:
        raise UserError(f"'{path}' is not a whole JSON array: no object at {buffer[:40]!r}")


@contextlib.contextmanager
def hub_errors(source):
    """Turn any failure to reach the hub into one line. A full disk stays what it is."""
    try:
        yield
    except Exception as error:  # of several HTTP libraries, with no common ancestor
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        offline = "without a network, use --source=storybook or a local file"
        raise UserError(f"'{source}' cannot be had from the hub ({reason}); {offline}") from error


def hub_commit(repo, revision):
    """The commit hash of a data set at a branch, a tag, a commit or, for "", now."""
    from huggingface_hub import HfApi

    return HfApi().dataset_info(repo, revision=revision or None, timeout=20).sha


def download(name, file, revision=""):
    """The local path of a file of a named data set's repository. Broken downloads are resumed."""
    repo, pinned, _ = NAMED[name]
    request = {"repo_id": repo, "repo_type": "dataset", "revision": revision or pinned}
    with hub_errors(name):
        import huggingface_hub

        if not huggingface_hub.try_to_load_from_cache(filename=file, **request):
            hub_commit(repo, request["revision"])  # without a network this fails at once
        return huggingface_hub.hf_hub_download(filename=file, **request)


def read_hub(source, revision):
    """Yield (row, 1) of hub:owner/name, or of the split named in hub:owner/name:split."""
    _, repo, split, *_ = [*source.split(":"), "train"]
    with hub_errors(source):
        import datasets

        # Not streamed: a broken download is resumed, and a second run needs no network.
        table = datasets.load_dataset(repo, split=split, revision=revision or None)
    table = table.select_columns(_columns(table.column_names, source))
    yield from ((row, 1) for row in table)
