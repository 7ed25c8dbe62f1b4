"""
Read stories from files and from the Hugging Face hub, as blocks of about a megabyte.

    .txt              <|endoftext|> between stories
    .jsonl            a row a line: a string, or an object with its story in "text" or "story"
    .json .tar.gz     arrays of such objects, as in TinyStories_all_data.tar.gz
    .parquet          a table with a column "text" or "story"
    hub:owner/name    any data set of the hub with such a column

A block is small to pickle (of a .txt or .jsonl file: a path and two offsets). `texts` turns it into
its stories, in a worker process of prepare.py. So the parent stays idle, and memory is bounded
whatever the size of the source.

A row is read as its story, or with `facts` as instruct.StoryFacts: the story with the words,
features and summary that the row has, to make an Instruct record of.
"""

import codecs
import contextlib
import errno
import json
import mmap
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

from configs import UserError
from nanostories.dataset import instruct
from nanostories.dataset.cleaning import STRAY_BYTE
from nanostories.dataset.tokenizer import EOT

BLOCK_BYTES = 1 << 20
JSON_CHUNK, MAX_JSON_OBJECT = 1 << 20, 1 << 26  # characters of an array read at a time, of a row
_BETWEEN_OBJECTS = re.compile(r"[\s,\[\]]*")  # in a JSON array

# Plain text on the hub: repository, the commit we read (so that runs repeat), start of file names.
_REPO = ("roneneldan/TinyStories", "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64")
_INSTRUCT_REPO = ("roneneldan/TinyStoriesInstruct", "ee050ed1f8720795be342921335e821856a2b42e")
NAMED = {
    "tinystories": (*_REPO, "TinyStories"),
    "tinystories-v2": (*_REPO, "TinyStoriesV2-GPT4"),
    "tinystories-instruct": (*_INSTRUCT_REPO, "TinyStories-Instruct"),
}


# ----------------------------------------------------------------------------------------------
# blocks


@dataclass(frozen=True)
class Block:
    """
    Consecutive stories of a source: `rows`, or the bytes of a file from start to stop.

    weight: its part of Source.total(), for progress. last: nothing follows in its file. facts: its
    stories are wanted as instruct.StoryFacts.
    """

    weight: int
    rows: tuple = ()
    path: str = ""
    start: int = 0
    stop: int = 0
    last: bool = False
    facts: bool = False


def file_blocks(path, facts=False):
    """Yield the Blocks of a file, in order."""
    kind = _kind(path)
    if kind in _ROW_READERS:
        yield from row_blocks(_ROW_READERS[kind](path, facts), facts)
    else:
        yield from _span_blocks(path, EOT.encode() if kind == "txt" else b"\n", facts)


def row_blocks(weighted_rows, facts=False):
    """Yield Blocks of (row, weight) pairs; a row is a str or instruct.StoryFacts."""
    rows, size, weight = [], 0, 0
    for row, part in weighted_rows:
        rows.append(row)
        size += len(row if isinstance(row, str) else row.story)
        weight += part
        if size >= BLOCK_BYTES:
            yield Block(weight, tuple(rows), facts=facts)
            rows, size, weight = [], 0, 0
    if rows:
        yield Block(weight, tuple(rows), facts=facts)


def _span_blocks(path, separator, facts):
    """Yield Blocks of a file that is cut only at separators."""
    start, size = 0, Path(path).stat().st_size
    if not size:  # an empty file cannot be mapped
        return
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        while start < size:
            stop = data.find(separator, start + BLOCK_BYTES)
            stop = size if stop < 0 else stop
            yield Block(stop - start, (), str(path), start, stop, stop == size, facts)
            start = stop + len(separator)


def _kind(path):
    name = Path(path).name.lower()
    if name.endswith((".tar.gz", ".tgz", ".tar")):
        return "tar"
    suffix = Path(name).suffix[1:]
    return suffix if suffix in ("jsonl", "json", "parquet") else "txt"


# ----------------------------------------------------------------------------------------------
# from blocks to stories


def texts(block, strict=False):
    """
    The stories of a block, uncleaned: a list of str, or of instruct.StoryFacts.

    A byte that is not UTF-8 becomes a lone surrogate, which cleaning.fix_encoding repairs; with
    `strict` it is an error. Raises UserError for a file that is not text.
    """
    stories = _file_stories(block, strict) if block.path else block.rows
    if block.facts:
        return [instruct.StoryFacts(one) if isinstance(one, str) else one for one in stories]
    return list(stories)


def _file_stories(block, strict):
    with open(block.path, "rb") as file:
        file.seek(block.start)
        data = file.read(block.stop - block.start)
    if block.start == 0:
        data = data.removeprefix(codecs.BOM_UTF8)
    text = _decode(data, block, strict)
    if _kind(block.path) == "jsonl":
        lines = (line for line in text.split("\n") if line.strip())
        return [_parse_line(line, block.path, block.facts) for line in lines]
    stories = [story.strip() for story in text.split(EOT)]
    # Nothing before the first separator, or after the last, is not an empty story.
    if block.last and not stories[-1]:
        stories.pop()
    if block.start == 0 and stories and not stories[0]:
        stories.pop(0)
    return stories


def _decode(data, block, strict):
    if b"\0" in data:
        raise UserError(f"'{block.path}' is a binary file, not text (it has NUL bytes)")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        text = data.decode(errors="surrogateescape")
        # Stray bytes are damage; more than 1 % of them is another encoding, or no text.
        if strict or len(STRAY_BYTE.findall(text)) > max(1, len(data) // 100):
            raise UserError(
                f"'{block.path}' is not UTF-8 text: byte {data[error.start]:#x} at offset "
                f"{block.start + error.start:,}; convert it, or name another source"
            ) from None
        return text


# ----------------------------------------------------------------------------------------------
# rows


def parse_row(row, path, facts=False):
    """
    The story of a row, a str or None or a dict with one; with `facts`, its instruct.StoryFacts.

    path: the file, for errors. Raises UserError for any other row.
    """
    story, fields = row, {}
    if isinstance(row, dict):
        story, fields = row[_story_field(row, path)], row
    if not isinstance(story, str | None):
        raise UserError(f"'{path}': a story is not text but {story!r:.40}")
    if not facts:
        return story or ""
    try:
        return instruct.facts_from_json(story or "", fields)
    except (AttributeError, TypeError):
        raise UserError(
            f"'{path}': the words, features or summary of a story are not as in "
            f"TinyStories_all_data: {row!r:.60}"
        ) from None


def _story_field(names, path):
    """Which of the `names` of fields or columns holds the story."""
    for name in ("text", "story"):
        if name in names:
            return name
    raise UserError(f"'{path}' has no 'text' or 'story', only {', '.join(names)}")


def _columns(names, path, facts):
    """Which of the columns `names` of a table are needed."""
    more = ("summary", "words", "features", "instruction") if facts else ()
    return [_story_field(names, path), *(name for name in more if name in names)]


def _parse_line(line, path, facts):
    try:
        return parse_row(json.loads(line), path, facts)
    except ValueError as error:
        raise UserError(f"'{path}': a line is not JSON ({error}): {line[:40]!r}") from None


def read_parquet(path, facts=False):
    """Yield (row, its part of the file's bytes) of each row."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            part = Path(path).stat().st_size // max(1, file.metadata.num_rows)
            columns = _columns(file.schema_arrow.names, path, facts)
            for batch in file.iter_batches(batch_size=1024, columns=columns):
                yield from ((parse_row(row, path, facts), part) for row in batch.to_pylist())
    except pyarrow.ArrowException as error:
        raise UserError(f"'{path}' is not a readable parquet file ({error})") from None


def read_tar(path, facts=False):
    """Yield (row, its part of the compressed bytes) of every .json in an archive."""
    try:
        with open(path, "rb") as raw, tarfile.open(fileobj=raw, mode="r|*") as archive:
            before = 0
            for member in archive:
                if member.isfile() and member.name.endswith(".json"):
                    for row, _ in read_json(path, facts, archive.extractfile(member)):
                        yield row, raw.tell() - before
                        before = raw.tell()
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"'{path}' is a damaged archive ({error})") from None


def read_json(path, facts=False, file=None):
    """Yield (row, its characters) of each object of a JSON array, holding only a chunk of it."""
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
                    yield parse_row(row, path, facts), stop - place
                    place = _BETWEEN_OBJECTS.match(buffer, stop).end()
            buffer = buffer[place:]
    if buffer:
        raise UserError(f"'{path}' is not a whole JSON array: no object at {buffer[:40]!r}")


_ROW_READERS = {"parquet": read_parquet, "tar": read_tar, "json": read_json}


# ----------------------------------------------------------------------------------------------
# the hub; what was downloaded once needs no network again


@contextlib.contextmanager
def hub_errors(source):
    """Turn any failure to reach the hub into one line. A full disk stays what it is."""
    try:
        yield
    except Exception as error:  # of several HTTP libraries, with no common ancestor
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise UserError(
            f"'{source}' cannot be had from the hub ({reason[0]}); without a network, use "
            "--source=storybook or a local file"
        ) from error


def hub_commit(repo, revision):
    """The commit hash of a data set at a branch, a tag, a commit or, for "", now."""
    from huggingface_hub import HfApi

    return HfApi().dataset_info(repo, revision=revision or None, timeout=20).sha


def download_split(name, split, revision):
    """The local path of a named data set's text file."""
    return download(
        name, f"{NAMED[name][2]}-{'train' if split == 'train' else 'valid'}.txt", revision
    )


def download(name, file, revision=""):
    """The local path of any file of a named data set's repository; broken downloads resume."""
    repo, pinned, _ = NAMED[name]
    request = {"repo_id": repo, "repo_type": "dataset", "filename": file}
    request["revision"] = revision or pinned
    with hub_errors(name):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            return hf_hub_download(**request, local_files_only=True)
        except LocalEntryNotFoundError:
            hub_commit(repo, request["revision"])  # fails at once without a network
            return hf_hub_download(**request)


def read_hub(source, revision, facts=False):
    """Yield (row, 1) of hub:owner/name, or of the split named in hub:owner/name:split."""
    _, repo, *split = source.split(":")
    with hub_errors(source):
        import datasets

        # Not streamed: a broken download is resumed, and a second run needs no network.
        split = (split or ["train"])[0]
        table = datasets.load_dataset(repo, split=split, revision=revision or None)
    table = table.select_columns(_columns(table.column_names, source, facts))
    yield from ((parse_row(row, source, facts), 1) for row in table)
