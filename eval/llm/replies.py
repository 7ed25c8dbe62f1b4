"""The file that every reply of a server is kept in, so that none is paid for twice."""

import fcntl
import json
import os
import threading
from pathlib import Path

from configs import UserError
from nanostories.storage import fsync


class Replies:
    """
    The file of all replies: JSON lines, each with a "key". Raises UserError where another command
    has it open, or where it is damaged; half a line at its end, of a killed command, is removed.
    """

    def __init__(self, path):
        self.path, self.places, self.lock = Path(path), {}, threading.Lock()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self.file)
            raise UserError(f"another command is writing '{path}': wait for it") from None
        self.size = 0
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    os.ftruncate(self.file, self.size)
                    break
                try:
                    key = json.loads(line)["key"]
                except (ValueError, KeyError, TypeError):
                    os.close(self.file)
                    raise UserError(
                        f"{path}: line {number} is damaged; remove that line to pay for it again"
                    ) from None
                self.places[key] = (self.size, len(line))
                self.size += len(line)
        fsync(self.path.parent)

    def get(self, key):
        """The line of a key as a dict, or None."""
        place = self.places.get(key)
        return place and json.loads(os.pread(self.file, place[1], place[0]))

    def add(self, line):
        """Append a dict with a "key"; it is on the disk when this returns."""
        data = json.dumps(line).encode() + b"\n"  # ASCII: any text, half surrogates too
        with self.lock:
            try:
                if os.write(self.file, data) < len(data):
                    raise OSError(28, "No space left on device")
                os.fsync(self.file)
            except OSError:
                os.ftruncate(self.file, self.size)
                raise
            self.places[line["key"]] = (self.size, len(data))
            self.size += len(data)

    def close(self):
        """Let others have the file."""
        os.close(self.file)
