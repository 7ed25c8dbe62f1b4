"""Files and folders that appear whole or not at all, their hashes, and the lock of their writer.

    with atomic_file("out/run/loss.png") as part:      # write to `part`; it becomes the file
        figure.savefig(part, format="png")
    with atomic_folder("data/mine") as part:           # the same for a folder
        (part / "a.txt").write_text("...")
    write_json("out/run/eval/loss.json", {"loss": 1.2})
    with lock("out/run"): ...                          # a second writer is refused meanwhile

Each is written under a temporary name beside its place, flushed and renamed last: a process killed
at any moment leaves the old one (a folder perhaps under a hidden name) or the new, never half.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import platform
import shutil
import sys
from pathlib import Path

from filelock import FileLock, Timeout

from configs import UserError


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path):
    """Flush a file or a folder to the disk, where its file system can: Drive and SMB may not."""
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
            raise


def _name(error, path):
    """Let an OSError of write() or fsync(), which name no file, name one."""
    if isinstance(error, OSError) and error.errno and not error.filename:
        error.filename = str(path)


@contextlib.contextmanager
def atomic_file(path):
    """Give the path to write to; when the block ends well, `path` becomes that file."""
    part = Path(f"{path}.{os.getpid()}.part")  # its own, where two commands write the file
    try:
        yield part
        fsync(part)
        os.replace(part, path)
    except OSError as error:
        _name(error, path)
        raise
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path, part=None):
    """Give an empty folder to write to; when the block ends well, `path` becomes that folder. part:
    its temporary name, default one of this process beside `path`. An older folder at `path` steps
    aside only when the new one is complete, and comes back if the rename fails. When the block
    raises, nothing of the new folder is left."""
    named, path = Path(path), Path(path).resolve()  # a link to another disk stays one
    if path.exists() and not named.exists():  # "missing/..": nobody has looked what is in it
        raise UserError(f"'{named}' would replace '{path}': name that, or another folder")
    temporary = f".{path.name}.{os.getpid()}"
    part, old = Path(part or path.with_name(f"{temporary}.new")), path.with_name(f"{temporary}.old")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        yield part
        for written in [*part.rglob("*"), part]:
            if written.is_file():  # safetensors makes files that nobody else may read
                with contextlib.suppress(OSError):
                    written.chmod(part.stat().st_mode & 0o666)
            fsync(written)
        # A folder cannot replace another in one step, so the old one steps aside.
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)  # of a killed process that had this number
            path.rename(old)
        part.rename(path)
        fsync(path.parent)
    except BaseException as error:
        _name(error, path)
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def lock(path, wait=False):
    """Let no other command write to `path`, a file or a folder, while the block runs. UserError
    where one does; wait: waits for its end. The lock is on a hidden file beside `path`, which may
    thus be replaced or removed, and ends with this process, however that ends. Gives a list of its
    descriptor: a process that gets it as pass_fds holds the lock, too."""
    real, handles, holder, timeout = Path(os.path.realpath(path)), [], "", 0
    file, parent_is_new = real.parent / f".{real.name}.lock", not real.parent.exists()
    held = FileLock(file, mode=0o664, thread_local=False, on_acquired=handles.append)
    while not handles:
        try:
            with contextlib.suppress(FileExistsError):
                file.parent.mkdir(parents=True)
            with contextlib.suppress(FileNotFoundError):  # another command removed it, still empty
                held.acquire(timeout=timeout)
        except Timeout:
            with contextlib.suppress(OSError):
                holder = file.read_text().rstrip()
            line = f"another command is writing '{path}'{holder}, or one that it started"
            if not wait:
                raise UserError(f"{line} has not ended yet: wait for it, or stop it") from None
            print(f"{line}: waiting for its end ...", flush=True)
            timeout = -1
        except (OSError, NotImplementedError) as error:  # a read-only folder, or no locks there
            print(f"note: '{path}' is not locked, write nothing else: {error}", file=sys.stderr)
            break
    try:
        with contextlib.suppress(OSError, IndexError):  # a full disk, no lock
            holder = f" (process {os.getpid()} on {platform.node()})".ljust(99)
            os.write(handles[0], holder.encode())
        yield handles
    finally:
        with contextlib.suppress(OSError):  # a parent folder that is in use
            if held.is_locked or not handles:  # else this is a forked process
                file.unlink(missing_ok=True)
            if parent_is_new:
                file.parent.rmdir()
        held.release()


def write_text(path, text):
    """Write a text file atomically; its folder is made if it is missing."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")  # as JSON escapes them


def to_json(value, path, **options):
    """A value as JSON text for a file; UserError for nan or infinity, which JSON does not have."""
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        what = "a number in it is nan or infinite, as of a model whose weights are far too large"
        raise UserError(f"{path} is not written: {what}") from None


def from_json(text):
    """The value of a JSON text; ValueError for other text, nan and infinity included."""
    return json.loads(text, parse_float=_finite, parse_constant=_finite)


def _finite(text):
    if math.isfinite(number := float(text)):
        return number
    raise ValueError(f"{text:.20} is no finite number")


def write_json(path, value):
    """`write_text` of a value as JSON."""
    write_text(path, to_json(value, path, indent=2, ensure_ascii=False) + "\n")


def read_json(path, missing=None, lines=False):
    """The value in a JSON file, with `lines` a list of each line's; UserError where it cannot be
    read, with the line `missing` where there is no file."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        return [*map(from_json, filter(None, text.split("\n")))] if lines else from_json(text)
    except OSError as error:
        raise UserError(missing or f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
