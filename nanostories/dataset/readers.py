"""
Rows of files that hold more than text: .jsonl, .json, .parquet, TinyStories_all_data.tar.gz.

A row is read as `text_of` it, the story alone, or as `facts_of` it: the story with the words,
features and summary that the row has, for Instruct.
"""

import codecs
import contextlib
import json
import re
import tarfile
from pathlib import Path

from configs import UserError
from nanostories.dataset import instruct

CHUNK_BYTES, LONGEST = 1 << 20, 1 << 26  # of a JSON array, read at a time; of one of its objects
_SKIP = re.compile(r"[\s,\[\]]*")  # what stands around the objects of a JSON array


def text_of(record, path):
    """The story of one record: a string, nothing (which is an empty one), or an object's text."""
    if isinstance(record, dict):
        record = record[field_of(record, path)]
    if not isinstance(record, str | None):
        raise UserError(f"'{path}': a story is not text but {record!r:.40}")
    return record or ""


def facts_of(record, path):
    """The instruct.StoryFacts of one record: of an object, with what it says of its story."""
    story = text_of(record, path)
    try:
        return instruct.facts_from_json(story, record if isinstance(record, dict) else {})
    except (AttributeError, TypeError):
        raise UserError(
            f"'{path}': the words, features or summary of a story are not as in "
            f"TinyStories_all_data: {record!r:.60}"
        ) from None


def field_of(names, path):
    """Which of the `names` of fields or columns holds the story."""
    for name in ("text", "story"):
        if name in names:
            return name
    raise UserError(f"'{path}' has no 'text' or 'story', only {', '.join(names)}")


def columns(names, path, read):
    """Which of the columns `names` of a table `read` needs."""
    known = ("summary", "words", "features", "instruction") if read is facts_of else ()
    return [field_of(names, path), *(name for name in known if name in names)]


def of_line(line, path, read=text_of):
    """The row of one line of a .jsonl file."""
    try:
        return read(json.loads(line), path)
    except ValueError as error:
        raise UserError(f"'{path}': a line is not JSON ({error}): {line[:40]!r}") from None


def of_parquet(path, read=text_of):
    """(row, its share of the file's bytes) of each row."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            part = Path(path).stat().st_size // max(1, file.metadata.num_rows)
            needed = columns(file.schema_arrow.names, path, read)
            for batch in file.iter_batches(batch_size=1024, columns=needed):
                yield from ((read(record, path), part) for record in batch.to_pylist())
    except pyarrow.ArrowException as error:
        raise UserError(f"'{path}' is not a readable parquet file ({error})") from None


def of_tar(path, read=text_of):
    """The rows of every .json of an archive with the layout of TinyStories_all_data.tar.gz."""
    try:
        with open(path, "rb") as raw, tarfile.open(fileobj=raw, mode="r|*") as archive:
            before = 0
            for member in archive:
                if member.isfile() and member.name.endswith(".json"):
                    for row, _ in of_json(path, read, archive.extractfile(member)):
                        # Weighed by how far the compressed file is read.
                        yield row, raw.tell() - before
                        before = raw.tell()
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"'{path}' is a damaged archive ({error})") from None


def of_json(path, read=text_of, file=None):
    """(row, its bytes) of each object of a JSON array, never holding more than a chunk of it."""
    decoder, buffer = json.JSONDecoder(), ""
    with file or open(path, "rb") as raw:
        reader = codecs.getreader("utf-8")(raw, errors="surrogateescape")
        while chunk := reader.read(CHUNK_BYTES):
            buffer += chunk
            place = _SKIP.match(buffer).end()
            # An object that is not whole yet, or a number, waits for the next chunk.
            with contextlib.suppress(ValueError):
                while place < len(buffer):
                    record, stop = decoder.raw_decode(buffer, place)
                    yield read(record, path), stop - place
                    place = _SKIP.match(buffer, stop).end()
            buffer = buffer[place:]
            if len(buffer) > LONGEST:
                break  # no story is that long
    if buffer:
        raise UserError(f"'{path}' is not a whole JSON array: no object at {buffer[:40]!r}")


OF_FILE = {"parquet": of_parquet, "tar": of_tar, "json": of_json}
