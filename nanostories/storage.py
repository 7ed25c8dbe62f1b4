"""Files and folders that appear whole or not at all, and their hashes.

    with atomic_file("out/run/loss.png") as part:      # write to `part`; it becomes the file
        figure.savefig(part, format="png")
    with atomic_folder("data/mine") as part:           # the same for a folder
        (part / "a.txt").write_text("...")
    write_json("out/run/eval/loss.json", {"loss": 1.2})

Each is written under a temporary name beside its place, flushed to the disk and renamed last: a
process killed at any moment leaves the old one or the new one, never half of one.
"""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path

from configs import UserError


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path):
    """Flush a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def atomic_file(path):
    """Give the path to write to; when the block ends well, `path` becomes that file."""
    part = Path(f"{path}.part")
    yield part
    fsync(part)
    os.replace(part, path)


@contextlib.contextmanager
def atomic_folder(path, part=None):
    """Give an empty folder to write to; when the block ends well, `path` becomes that folder.

    part: its temporary name, default one of this process beside `path`. An older folder at `path`
    steps aside only when the new one is complete, and comes back if the rename fails. When the
    block raises, nothing of the new folder is left, nor a parent folder made for it.
    """
    path = Path(path)
    temporary = f".{path.name}.{os.getpid()}"
    part, old = Path(part or path.with_name(f"{temporary}.new")), path.with_name(f"{temporary}.old")
    parent_is_new = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        yield part
        for written in [*part.rglob("*"), part]:
            fsync(written)
        # A folder cannot replace another in one step, so the old one steps aside.
        if path.exists():
            path.rename(old)
        part.rename(path)
        fsync(path.parent)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(part, ignore_errors=True)
        if parent_is_new:
            with contextlib.suppress(OSError):
                path.parent.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_text(path, text):
    """Write a text file atomically; its folder is made if it is missing."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path, value):
    """`write_text` of a value as JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path, missing=None):
    """The value in a JSON file; or UserError, with the line `missing` where there is no file."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(missing or f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None
