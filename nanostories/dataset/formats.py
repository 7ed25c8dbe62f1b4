"""The rows of a file, by its format: str, None, or dicts with the story in one column.

    .txt              <|endoftext|> between stories
    .jsonl            a row a line: a string, or an object with its story in "text" or "story"
    .csv .tsv         a row a line, after a line that names the columns
    .json .tar        arrays of such objects, as in TinyStories_all_data.tar.gz
    .parquet          a table with a column "text" or "story"

All but .parquet may be packed (.txt.gz, .jsonl.zst), and may be UTF-16 with its byte order mark.
"""

import codecs
import contextlib
import csv
import functools
import io
import itertools
import json
import re
import tarfile
from pathlib import Path

from configs import UserError
from nanostories.dataset.cleaning import STRAY_BYTE
from nanostories.dataset.tokenizer import EOT

CHUNK = 1 << 20  # bytes that are read at a time
MAX_STORY, MAX_ROW = 1 << 23, 1 << 26  # bytes: .txt is cut there; a longer row is an error
SEPARATORS = {".txt": (EOT.encode(), MAX_STORY), ".jsonl": (b"\n", MAX_ROW)}
PACKED = {".gz": "gzip", ".tgz": "gzip", ".zst": "zstd"}  # as pyarrow calls them
MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
         codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}  # fmt: skip
_BETWEEN_OBJECTS = re.compile(r"[\s,\[\]\ufeff]*")  # in a JSON array
_FACTS = ("summary", "words", "features", "instruction")  # fields that Instruct records need


def file_format(path):
    """A suffix of READERS, by a file's name (none: ".txt"); UserError for an unknown one."""
    name = Path(path).name.lower()
    packed = next(filter(name.endswith, PACKED), "")
    suffix = ".tar" if packed == ".tgz" else Path(name.removesuffix(packed)).suffix or ".txt"
    if suffix not in READERS or (packed and suffix == ".parquet"):
        known = f"{', '.join(READERS)} or one of these packed, as .txt.gz and .jsonl.zst are"
        raise UserError(f"'{path}' is not {known}; rename it to .txt if it is plain text")
    return suffix


@contextlib.contextmanager
def opened(path):
    """Give (file, raw): the bytes of a file, unpacked and as UTF-8, and the file as it is, whose
    tell() shows how far reading has come."""
    with open(path, "rb") as raw:
        file, packed = raw, PACKED.get(Path(path).suffix.lower())
        try:
            if packed:
                import pyarrow

                stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw), packed)
                file = io.BufferedReader(stream)
            if mark := next(filter(file.peek(4).startswith, MARKS), None):
                file = codecs.EncodedFile(file, "utf-8", MARKS[mark], "replace")
            yield file, raw
        except (tarfile.TarError, EOFError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise UserError(f"'{path}' is a damaged archive ({error})") from None


# ---- text --------------------------------------------------------------------------------------


def decode(data, path, start=0, strict=False):
    """The text of the bytes at `start` of a file, without the byte order marks of joined files. A
    byte that is not UTF-8 becomes a lone surrogate; if `strict`, it is a UserError."""
    if b"\0" in data:
        binary = "is a binary file, or UTF-16 without a byte order mark (it has NUL bytes)"
        raise UserError(f"'{path}' {binary}: save it as UTF-8 text")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        text = data.decode(errors="surrogateescape")
        # Stray bytes are damage; more than 1 % of them is another encoding, or no text.
        if strict or len(STRAY_BYTE.findall(text)) > max(1, len(data) // 100):
            byte = f"byte {data[error.start]:#x} at offset {start + error.start:,}"
            wrong = f"'{path}' is not UTF-8 text: {byte}"
            raise UserError(f"{wrong}; convert it, or name another source") from None
    return text.replace("\ufeff", "")


_print_once = functools.cache(print)


def pieces(file, path, kind, size):
    """Yield (start, bytes, whether they are the last) of a file, cut at the first separator after
    `size` bytes; a story of a .txt file that is too long, at a blank."""
    start, data, (separator, limit) = 0, bytearray(), SEPARATORS[kind]
    while more := file.read(CHUNK):
        data += more
        while (stop := data.find(separator, size)) >= 0 or len(data) > limit + len(separator):
            after = stop + len(separator)
            if not 0 <= stop <= limit:
                over = f"{limit >> 20} MiB"
                stop = after = max(data.rfind(blank, 1, limit) for blank in (b" ", b"\n"))
                if separator == b"\n" or stop < 0:
                    wrong = "without a line end, too long for a row or a word"
                    raise UserError(f"'{path}' has {over} {wrong}")
                _print_once(f"'{path}' has a story of over {over}: it is cut into parts")
            yield start, data[:stop], False
            start += after
            del data[:after]
    yield start, data, True


def parse_text(data, path, start, last, strict=False):
    """The rows of bytes from `start` on, `last` or not, of a .txt or .jsonl file; see `decode`."""
    if file_format(path) == ".jsonl":
        return _parse_lines(decode(data, path, start, strict), path, start)
    try:
        if b"\0" in data or codecs.BOM_UTF8 in data:
            raise ValueError
        stories = [story.decode().strip() for story in data.split(EOT.encode())]
    except ValueError:  # a UnicodeDecodeError is one
        stories = [story.strip() for story in decode(data, path, start, strict).split(EOT)]
    # Nothing before the first separator, or after the last, is not an empty story.
    if last and not stories[-1]:
        stories.pop()
    if start == 0 and stories and not stories[0]:
        stories.pop(0)
    return stories


def _parse_lines(text, path, start):
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except (ValueError, RecursionError) as error:
            with opened(path) as (file, _):
                ends = itertools.accumulate(map(len, file))
                number += sum(1 for _ in itertools.takewhile(start.__ge__, ends))
            wrong = f"'{path}': line {number:,} is not JSON ({error}): {line[:40]!r}"
            raise UserError(wrong) from None
    return rows


def read_text(file, path, column):
    """Yield the rows of a .txt or .jsonl file, from its beginning to its end."""
    for start, data, last in pieces(file, path, file_format(path), CHUNK):
        yield from parse_text(data, path, start, last)


# ---- rows with columns -------------------------------------------------------------------------


def columns_read(names, path, wanted=""):
    """Those of the columns `names` that are read: first the story's, then what is known of it."""
    wanted = [wanted] if wanted else ["text", "story"]
    alike = {name.strip().casefold(): name for name in reversed(names)} | {n: n for n in names}
    story = next((alike[x] for want in wanted for x in (want, want.casefold()) if x in alike), None)
    if story is None:
        missing = f"'{path}' has no {' or '.join(map(repr, wanted))}, only {', '.join(names)}"
        hint = "--text_column of prepare.py names the right one"
        raise UserError(f"{' '.join(missing.split()):.300}; {hint}")
    return [story, *(name for name in _FACTS if name in names)]


def read_table(file, path, column):
    """Yield {column: field} of each row of a .csv or .tsv."""
    csv.field_size_limit(MAX_ROW)
    parts = pieces(file, path, ".jsonl", CHUNK)
    texts = (decode(data, path, start) + "\n" for start, data, _ in parts)
    lines = (line for text in texts for line in io.StringIO(text, newline=""))
    first = next(lines, "")
    delimiter = "\t" if file_format(path) == ".tsv" else max(",;\t", key=first.count)
    table = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
    try:
        names = next(table, [])
        places = {name: names.index(name) for name in columns_read(names, path, column)}
        for row in filter(None, table):
            if len(row) != len(names):
                raise csv.Error(f"{len(row)} fields, but the first line has {len(names)}")
            yield {name: row[i] for name, i in places.items()}
    except csv.Error as error:
        rule = "a field with a delimiter, a quote or a line end stands in double quotes"
        raise UserError(f"'{path}', line {table.line_num:,}: {error}; {rule}") from None


def read_parquet(file, path, column):
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file, page_checksum_verification=True) as table:
            columns = columns_read(table.schema_arrow.names, path, column)
            for batch in table.iter_batches(batch_size=1024, columns=columns):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' is not a readable parquet file ({error})") from None


def read_tar(file, path, column):
    """Yield the rows of every .json in an archive. macOS puts a hidden file beside each."""
    has_json = False
    with tarfile.open(fileobj=file, mode="r|*") as archive:
        for name, member in ((Path(member.name).name.lower(), member) for member in archive):
            if member.isfile() and name.endswith(".json") and not name.startswith("."):
                has_json = True
                yield from read_json(archive.extractfile(member), path, column)
    if not has_json:
        raise UserError(f"'{path}' has no .json file, all that is read in archives: unpack it")
    while file.read(CHUNK):  # the checksum of a packed file comes last
        pass


def read_json(file, path, column):
    """Yield each object of a JSON array, a part of which is held at a time."""
    decoder, buffer, depth = json.JSONDecoder(), "", 0
    reader = codecs.getreader("utf-8")(file, errors="surrogateescape")
    while len(buffer) <= MAX_ROW and (more := reader.read(CHUNK)):
        buffer, place = buffer + more, 0
        # An object that is not complete yet, or a number, waits for the next part.
        with contextlib.suppress(ValueError, RecursionError):
            while place < len(buffer):
                between = _BETWEEN_OBJECTS.match(buffer, place)
                depth += between[0].count("[") - between[0].count("]")
                if (place := between.end()) < len(buffer):
                    row, place = decoder.raw_decode(buffer, place)
                    yield row
        buffer = buffer[place:]
    if buffer or depth:
        wrong = f"no object of at most {MAX_ROW >> 20} MiB at {buffer[:40]!r}"
        wrong = wrong if buffer else "its end is missing, as after a broken download"
        raise UserError(f"'{path}' is not a whole JSON array: {wrong}")


READERS = {".txt": read_text, ".jsonl": read_text, ".csv": read_table, ".tsv": read_table,
           ".json": read_json, ".tar": read_tar, ".parquet": read_parquet}  # fmt: skip
