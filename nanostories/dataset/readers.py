"""Read stories from files, in the formats of formats.py, and from the Hugging Face hub, as blocks
of about a megabyte.

A block is small to pickle (of a .txt or .jsonl file: a path and two offsets). A worker process of
prepare.py turns it into its `texts`, so memory is bounded whatever the size of the source.
"""

import contextlib
import errno
import re
from dataclasses import dataclass, replace

from configs import UserError
from nanostories.dataset import formats, instruct
from nanostories.dataset.cleaning import ONLY_FINISHED, Rules

BLOCK_BYTES = 1 << 20
_MARKER = re.compile(r"(<\|(?:start|end)oftext\|>)")

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
    column: str = ""  # the story's; "": "text" or "story"
    rules: Rules = ONLY_FINISHED  # for cleaning


def file_blocks(path, column=""):
    """Yield the Blocks of a file, in order."""
    kind = formats.file_format(path)
    with formats.opened(path) as (file, raw):
        if file is not raw or kind not in formats.SEPARATORS:
            yield from row_blocks(path, formats.READERS[kind](file, path, column), raw.tell)
            return
        for start, data, last in formats.pieces(file, path, kind, BLOCK_BYTES):
            if data:
                yield Block(len(data), path, start=start, stop=start + len(data), last=last)


def head(blocks, stories):
    """Yield Blocks of the first `stories` stories."""
    for block in blocks:
        rows = (block.rows or _parse_block(block))[:stories]
        yield replace(block, rows=tuple(rows))
        stories -= len(rows)
        if not stories:
            return


def row_blocks(path, rows, position=None):
    """Yield Blocks of rows. position: returns how far a file is read; without, a row weighs 1."""
    rows, done = iter(rows), 0

    def next_rows():
        size = 0
        for row in rows:
            values = row.values() if isinstance(row, dict) else [row]
            size += sum(len(value) for value in values if isinstance(value, str))
            yield row
            if size >= BLOCK_BYTES:
                return

    while part := tuple(next_rows()):
        before, done = done, max(done, position()) if position else done + len(part)
        yield Block(done - before, path, part)


def texts(block, strict=False):
    """The stories of a block, uncleaned: a list of str, or of instruct.StoryFacts. A byte that is
    not UTF-8 is a lone surrogate, which cleaning.fix_encoding repairs; if `strict`, an error."""
    rows, plain = block.rows or _parse_block(block, strict), not block.facts
    # With most rows of text there is nothing to do.
    return [x if plain and type(x) is str and "<|" not in x else _parse_row(x, block) for x in rows]


def _parse_block(block, strict=False):
    with open(block.path, "rb") as file:
        file.seek(block.start)
        data = file.read(block.stop - block.start)
    return formats.parse_text(data, block.path, block.start, block.last, strict)


def _parse_row(row, block):
    """The story of a row; of facts, as StoryFacts with the words, features, summary it has."""
    fields = row if isinstance(row, dict) else {}
    if fields:
        row = fields[formats.columns_read([*fields], block.path, block.column)[0]]
    story = "" if row is None else row
    if not isinstance(story, str):
        raise UserError(f"'{block.path}': a story is not text but {story!r:.40}")
    story = _strip_markers(story)
    if not block.facts:
        return story
    try:
        return instruct.facts_from_json(story, fields)
    except (AttributeError, TypeError):
        wrong = f"'{block.path}': the words, features or summary of a story are not as in"
        raise UserError(f"{wrong} TinyStories_all_data: {fields!r:.60}") from None


def _strip_markers(story):
    """A story without markers at its ends, which other projects write; within it they are text."""
    parts = _MARKER.split(story)  # text, marker, text ...
    filled = [i for i in range(0, len(parts), 2) if parts[i].strip()] or [0]
    inner = "".join(parts[filled[0] : filled[-1] + 1])
    return story if inner == story else inner.strip()


@contextlib.contextmanager
def hub_errors(source):
    """Turn any failure to reach the hub into one line. A full disk stays what it is."""
    try:
        yield
    except UserError:
        raise
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


def read_hub(source, revision, column):
    """Yield the rows of hub:owner/name, hub:owner/name:split or hub:owner/name:config:split."""
    _, repo, *names = source.split(":")
    *config, split = names or ["train"]
    with hub_errors(source):
        import datasets

        try:
            # Not streamed: a broken download is resumed, and a second run needs no network.
            table = datasets.load_dataset(repo, *config, split=split, revision=revision or None)
        except ValueError as error:  # several configs, and none or no known one is named
            reason = " ".join(str(error).split())[:300]
            wrong = f"'{source}', read as hub:NAME:CONFIG:SPLIT or hub:NAME:SPLIT"
            raise UserError(f"{wrong}: {reason}") from None
    yield from table.select_columns(formats.columns_read(table.column_names, source, column))
