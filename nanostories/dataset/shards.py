"""
Tokens on disk: how prepare.py writes them and everything else reads them.

    data = Dataset("data/tinystories-bpe", "train")
    ids = data.story(0)                                     # uint16, <|endoftext|> first

data/<name>/ holds, for each split, uint16 little-endian token ids in shards (train_000.bin, ...)
and the int64 start of every story (train_stories.npy); beside them tokenizer.json and
manifest.json, which counts everything and has the sha256 of every file. A story is stored as
<|endoftext|> and its tokens and never crosses a shard.
"""

import contextlib
import itertools
import json
from pathlib import Path

import numpy as np

from configs import UserError
from nanostories.storage import sha256

SHARD_TOKENS = 100_000_000  # 200 MB a file
CHUNK_STORIES, CHUNK_TOKENS = 1 << 16, 1 << 22  # what the writer's last pass holds at a time
_STORY = np.dtype([("tokens", "<u4"), ("bytes", "<u4"), ("answer", "<u4"), ("hash", "<u8", 2)])


# ----------------------------------------------------------------------------------------------
# writer


class Writer:
    """
    One split of a data folder in the making.

    Stories come in any number and are spilled to disk with what is known of them; once all have
    come and prepare.py knows which to drop, `finish` writes the others to shards. In memory: a
    chunk at a time.
    """

    def __init__(self, folder, split):
        self.folder, self.split, self.stories = Path(folder), split, 0
        self.spill, self.index = (self.folder / f"{split}.{x}" for x in ("spill", "index"))
        self.spill.write_bytes(b"")
        self.index.write_bytes(b"")

    def add(self, tokens, lengths, sizes, answers, hashes):
        """
        Append n stories. tokens: uint16, all of them, each with its <|endoftext|> in front;
        lengths, sizes, answers: (n,) tokens, UTF-8 bytes, where the answer starts; hashes: (n, 2)
        uint64, equal only for equal texts.
        """
        rows = np.empty(len(lengths), _STORY)
        rows["tokens"], rows["bytes"], rows["answer"] = lengths, sizes, answers
        rows["hash"] = hashes
        with open(self.spill, "ab") as spill, open(self.index, "ab") as index:
            spill.write(tokens.astype("<u2", copy=False).tobytes())
            index.write(rows.tobytes())
        self.stories += len(rows)

    def rows(self):
        """Yield (number of the first, rows of the index) by chunks."""
        for first in range(0, self.stories, CHUNK_STORIES):
            start = first * _STORY.itemsize
            yield first, np.fromfile(self.index, _STORY, CHUNK_STORIES, offset=start)

    def finish(self, drop, shard_tokens=SHARD_TOKENS, answers=False):
        """
        Write the stories whose `drop` is 0 to shards, and to <split>_stories.npy (answers: and
        <split>_answer.npy) where each begins. Returns the split's part of the manifest.
        """
        shards = _Shards(self.folder, self.split, shard_tokens)
        facts = {"tokens": 0, "stories": int((drop == 0).sum()), "bytes": 0, "shards": shards.names}
        fields = {"stories": "start", "answer": "answer"} if answers else {"stories": "start"}
        with contextlib.ExitStack() as stack:
            spill = stack.enter_context(open(self.spill, "rb"))
            stack.callback(shards.close)
            arrays = {}
            for kind, field in fields.items():
                file = open(self.folder / f"{self.split}_{kind}.npy", "wb")  # noqa: SIM115
                arrays[field] = stack.enter_context(file)
                # Appended to, not mapped: on a full disk a write raises, a mapped page kills.
                header = {"descr": "<i8", "fortran_order": False, "shape": (facts["stories"],)}
                np.lib.format.write_array_header_1_0(file, header)
            for first, rows in self.rows():
                group = np.cumsum(rows["tokens"], dtype=np.int64) // CHUNK_TOKENS
                cuts = np.flatnonzero(np.diff(group)) + 1
                for i, j in itertools.pairwise([0, *cuts, len(rows)]):
                    keep, lengths = drop[first + i : first + j] == 0, rows["tokens"][i:j]
                    tokens = np.fromfile(spill, "<u2", int(lengths.sum(dtype=np.int64)))
                    kept = rows[i:j][keep]
                    starts = facts["tokens"] + shards.write(
                        tokens[np.repeat(keep, lengths)], kept["tokens"]
                    )
                    arrays["start"].write(starts.tobytes())
                    if answers:
                        arrays["answer"].write(kept["answer"].astype("<i8").tobytes())
                    facts["tokens"] += int(kept["tokens"].sum(dtype=np.int64))
                    facts["bytes"] += int(kept["bytes"].sum(dtype=np.int64))
        self.spill.unlink()
        self.index.unlink()
        return facts


class _Shards:
    """The .bin files of a split: a new one is begun where the next story would not fit."""

    def __init__(self, folder, split, limit):
        self.folder, self.split, self.limit = folder, split, limit
        self.names, self.file, self.room = [], None, 0

    def write(self, tokens, lengths):
        """Append stories, uint16 tokens and each one's length; returns their starts in `tokens`."""
        ends = np.cumsum(lengths, dtype=np.int64)
        starts = ends - lengths
        i = 0
        while i < len(lengths):
            fit = int(np.searchsorted(ends, starts[i] + self.room, side="right"))
            if fit == i:
                self.close()
                self.names.append(f"{self.split}_{len(self.names):03}.bin")
                self.file = open(self.folder / self.names[-1], "wb")  # noqa: SIM115
                self.room = max(self.limit, int(lengths[i]))  # a longer story: a shard of its own
            else:
                self.file.write(tokens[starts[i] : ends[fit - 1]].tobytes())
                self.room -= int(ends[fit - 1] - starts[i])
                i = fit
        return starts

    def close(self):
        if self.file:
            self.file.close()


def write_manifest(folder, facts):
    """manifest.json of a finished folder: `facts`, and size and sha256 of every file in it."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(Path(folder).iterdir())
    }
    manifest = {"format": 1, **facts, "files": files}
    Path(folder, "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


# ----------------------------------------------------------------------------------------------
# reader


class InMemoryDataset:
    """
    Stories in memory, read as a Dataset is. Attributes: ids, tokens, starts, answers.

    ids: uint16, every story from its <|endoftext|> on. starts: int64 (stories + 1,). answers: see
    Dataset.
    """

    def __init__(self, ids, starts, answers=None):
        self.ids, self.starts, self.tokens, self.shards = ids, starts, len(ids), [ids]
        self.stories, self.answers = len(starts) - 1, answers

    def read(self, offset, length):
        """`length` tokens from token `offset` on, uint16."""
        return self.ids[offset : offset + length]

    def story(self, i):
        """Story number i as stored, uint16 (n,): <|endoftext|>, then its tokens."""
        return self.read(self.starts[i], int(self.starts[i + 1] - self.starts[i]))

    def prompt(self, i):
        """What record number i of Instruct begins with, up to its story, uint16 (n,)."""
        return self.story(i)[: self.answers[i]]

    def answer_bytes(self, sizes):
        """The bytes of the stories of Instruct's records. sizes: (vocab_size,) of a token."""
        return sum(int(sizes[self.story(i)[at:]].sum()) for i, at in enumerate(self.answers))


class Dataset(InMemoryDataset):
    """
    One split of a data folder, opened for reading.

    folder: as prepare.py writes it. split: "train" or "val". Attributes: tokens, stories, bytes
    (UTF-8 bytes of the stories as stored), starts (int64, each story's first token; one more at
    the end), answers (int64, the token of each record at which its story begins; None where there
    are no Instruct records), manifest. Raises UserError where the folder or a file is missing, or a
    size is wrong; `verify()` checks the hashes too.
    """

    def __init__(self, folder, split):
        self.folder, self.split = Path(folder), split
        self.manifest = read_manifest(folder)
        counts = self.manifest["splits"][split]
        self.tokens, self.stories, self.bytes = (
            counts[name] for name in ("tokens", "stories", "bytes")
        )
        files, answers = self.manifest["files"], f"{split}_answer.npy"
        instruct = [answers] if answers in files else []
        for name in [*counts["shards"], f"{split}_stories.npy", *instruct]:
            _check_size(self.folder / name, files[name]["bytes"])
        starts = _load(self.folder / f"{split}_stories.npy")
        self.answers = _load(self.folder / answers) if instruct else None
        self.starts = np.append(starts, self.tokens)
        self.shards = [
            np.memmap(self.folder / name, dtype="<u2", mode="r").view(np.ndarray)
            for name in counts["shards"]  # plain arrays: a memmap's own slices cost 10 times
        ]
        self.shard_ends = np.cumsum([len(shard) for shard in self.shards])
        if len(starts) != self.stories or self.shard_ends[-1] != self.tokens:
            raise UserError(f"{folder}: {split} holds other counts than its manifest.json says")

    def read(self, offset, length):
        """`length` tokens from global token `offset` on, uint16; they must lie in one shard."""
        shard = int(np.searchsorted(self.shard_ends, offset, side="right"))
        first = offset - (self.shard_ends[shard - 1] if shard else 0)
        return self.shards[shard][first : first + length]

    def subset(self, count):
        """`count` of its stories, evenly spread over all, as Stories."""
        chosen = np.linspace(0, self.stories - 1, count).astype(np.int64)
        stories = [self.story(i) for i in chosen]
        answers = None if self.answers is None else self.answers[chosen]
        return InMemoryDataset(np.concatenate(stories), np.cumsum([0, *map(len, stories)]), answers)

    def verify(self):
        """Compare every file of this split with its sha256; raises UserError naming one."""
        for name, facts in self.manifest["files"].items():
            if name.startswith(self.split) and sha256(self.folder / name) != facts["sha256"]:
                raise UserError(f"{self.folder / name} does not match the sha256 in manifest.json")


def read_manifest(folder):
    """The manifest of a data folder; raises UserError where there is none."""
    path = Path(folder) / "manifest.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"no data in '{folder}' (no manifest.json); make it with prepare.py"
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None


def _load(path):
    """The array in a .npy file, mapped; raises UserError where there is none."""
    try:
        return np.load(path, mmap_mode="r")
    except ValueError as error:  # no array, or a pickle, which is not opened
        raise UserError(f"{path} is damaged: {error}") from None


def _check_size(path, size):
    if not path.is_file():
        raise UserError(f"{path} is missing; run prepare.py again")
    if path.stat().st_size != size:
        raise UserError(
            f"{path} has {path.stat().st_size:,} bytes where manifest.json says {size:,}; "
            "run prepare.py again"
        )
