"""Tokens on disk: how prepare.py writes them and everything else reads them.

    data = Dataset("data/tinystories-bpe", "train")
    ids = data.story(0)                                     # uint16, <|endoftext|> first

data/<name>/ holds, for each split, uint16 little-endian token ids in shards (train_000.bin, ...)
and the int64 start of every story (train_stories.npy); beside them tokenizer.json and
manifest.json, which counts everything and has the sha256 of every file. A story is stored as
<|endoftext|> and its tokens and never crosses a shard.
"""

import hashlib
import io
from pathlib import Path

import numpy as np

from configs import UserError, explained
from nanostories.storage import read_json, sha256, write_json

SHARD_TOKENS = 100_000_000  # 200 MB a file
HASHED = 1 << 18  # of them at a time, which a cache holds
ENTRIES = {"format", "tokenizer", "vocab_size", "splits", "files"}  # of every manifest.json
# Of a story being written: its length in tokens and in UTF-8 bytes, the token where its answer
# starts, cleaning.ends_hash, and a hash that only equal stories share.
STORY = np.dtype([("tokens", "<u4"), ("bytes", "<u4"), ("answer", "<u4"), ("ends", "<u4"),
                  ("hash", "<u8", 2)])  # fmt: skip


class Writer:
    """Writes one split of a data folder: `add` appends stories to temporary files, and `finish`,
    once the duplicates are known, writes the others to shards. Memory: about 80 bytes a story."""

    def __init__(self, folder, split):
        self.folder, self.split, self.stories = Path(folder), split, 0
        self.spill, self.index = (self.folder / f"{split}.{x}" for x in ("spill", "index"))
        self.spill.write_bytes(b"")
        self.index.write_bytes(b"")

    def add(self, tokens, index):
        """Append stories. tokens: uint16, each with <|endoftext|> in front. index: STORY (n,)."""
        with open(self.spill, "ab") as spill, open(self.index, "ab") as file:
            spill.write(tokens.astype("<u2", copy=False).tobytes())
            file.write(index.tobytes())
        self.stories += len(index)

    def finish(self, drop, shard_tokens=SHARD_TOKENS, answers=False):
        """Write the stories whose `drop` is 0 to shards, and where each begins to
        <split>_stories.npy (answers: and where its answer does to <split>_answer.npy). Returns the
        split's part of the manifest."""
        index, kept = np.fromfile(self.index, STORY), np.flatnonzero(drop == 0)
        spill_ends = np.cumsum(index["tokens"], dtype=np.int64)  # of every story
        ends = np.cumsum(index["tokens"][kept], dtype=np.int64)  # of those that are kept
        starts = ends - index["tokens"][kept]
        self._save_array("stories", starts)
        if answers:
            self._save_array("answer", index["answer"][kept].astype(np.int64))
        shards, first = [], 0
        while first < len(kept):
            # As many stories as fit; one that is longer than a shard has a shard of its own.
            fit = int(np.searchsorted(ends, starts[first] + shard_tokens, side="right"))
            stories, first = kept[first : max(fit, first + 1)], max(fit, first + 1)
            shards.append(f"{self.split}_{len(shards):03}.bin")
            spill = np.memmap(self.spill, "<u2", mode="r")
            with open(self.folder / shards[-1], "wb") as file:
                for run in np.split(stories, np.flatnonzero(np.diff(stories) > 1) + 1):
                    begin = spill_ends[run[0]] - index["tokens"][run[0]]
                    file.write(spill[begin : spill_ends[run[-1]]])
        spill = None  # closed: Windows removes no file that is open
        self.spill.unlink()
        self.index.unlink()
        tokens, size = (int(index[x][kept].sum(dtype=np.int64)) for x in ("tokens", "bytes"))
        return {"tokens": tokens, "stories": len(kept), "bytes": size, "shards": shards}

    def _save_array(self, name, array):
        buffer = io.BytesIO()  # not the file: on a full disk the error of np.save has no errno
        np.save(buffer, array)
        (self.folder / f"{self.split}_{name}.npy").write_bytes(buffer.getbuffer())


def write_manifest(folder, facts):
    """manifest.json of a finished folder: `facts`, and size and sha256 of every file in it."""
    files = {}
    for path in sorted(Path(folder).iterdir()):
        files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    write_json(Path(folder) / "manifest.json", {"format": 1, **facts, "files": files})


class InMemoryDataset:
    """Stories in memory. ids: uint16, of all of them. starts, answers: see Dataset."""

    def __init__(self, ids, starts, answers=None):
        self.ids, self.starts, self.tokens, self.shards = ids, starts, len(ids), [ids]
        self.stories, self.answers = len(starts) - 1, answers

    def read(self, offset, length):
        return self.ids[offset : offset + length]

    def story(self, i):
        """Story number i as stored, uint16 (n,): <|endoftext|>, then its tokens."""
        return self.read(self.starts[i], int(self.starts[i + 1] - self.starts[i]))

    def prompt(self, i):
        """Instruct record number i up to where its story begins, uint16 (n,)."""
        return self.story(i)[: self.answers[i]]

    def answer_bytes(self, sizes):
        """The bytes of the stories of all Instruct records. sizes: bytes a token, (vocab_size,)."""
        return sum(int(sizes[self.story(i)[at:]].sum()) for i, at in enumerate(self.answers))

    def subset(self, count):
        """`count` of the stories, evenly spread over all, as an InMemoryDataset."""
        chosen = np.linspace(0, self.stories - 1, count).astype(np.int64)
        stories = [self.story(i) for i in chosen]
        answers = None if self.answers is None else self.answers[chosen]
        return InMemoryDataset(np.concatenate(stories), np.cumsum([0, *map(len, stories)]), answers)


class Dataset(InMemoryDataset):
    """One split, "train" or "val", of a data folder, opened for reading. UserError where a file is
    missing or has a wrong size; `verify` checks the hashes too. Attributes: tokens, stories, bytes
    (counts; UTF-8 bytes of the stories as stored), starts (int64 (stories + 1,), each story's first
    token and the end of all), answers (int64 (stories,), the token of each Instruct record at which
    its story begins; else None), manifest."""

    def __init__(self, folder, split):
        self.folder, self.split = Path(folder), split
        self.manifest = read_manifest(folder)
        counts, files = self.manifest["splits"][split], self.manifest["files"]
        self.tokens, self.stories, self.bytes = map(counts.get, ("tokens", "stories", "bytes"))
        for path in (self.folder / name for name in files if name.startswith(f"{split}_")):
            if not path.is_file():
                raise UserError(f"{path} is missing; run prepare.py again")
            if (size := path.stat().st_size) != (stated := files[path.name]["bytes"]):
                wrong = f"{path} has {size:,} bytes where manifest.json says {stated:,}"
                raise UserError(f"{wrong}; run prepare.py again")
        starts = _load(self.folder / f"{split}_stories.npy")
        answer = f"{split}_answer.npy"
        self.answers = _load(self.folder / answer) if answer in files else None
        self.starts = np.append(starts, self.tokens)
        shards = (np.memmap(self.folder / name, "<u2", mode="r") for name in counts["shards"])
        self.shards = [shard.view(np.ndarray) for shard in shards]  # slices of these cost a tenth
        self.shard_ends = np.cumsum([len(shard) for shard in self.shards])
        if len(starts) != self.stories or self.shard_ends[-1] != self.tokens:
            raise UserError(f"{folder}: the {split} files do not hold what manifest.json counts")

    def read(self, offset, length):
        """`length` tokens from token `offset` on, uint16; they must lie in one shard."""
        shard = int(np.searchsorted(self.shard_ends, offset, side="right"))
        first = offset - (self.shard_ends[shard - 1] if shard else 0)
        return self.shards[shard][first : first + length]

    def verify(self):
        """Compare every file of this split with its sha256, and the tokens with the vocabulary;
        raises UserError naming a file. Returns the Dataset."""
        for name in (name for name in self.manifest["files"] if name.startswith(f"{self.split}_")):
            path, digest, highest = self.folder / name, hashlib.sha256(), 0
            words = np.memmap(path, "<u2", "r").view(np.ndarray)  # arrays, too, have an even size
            for first in range(0, len(words), HASHED):
                digest.update(part := words[first : first + HASHED])
                highest = max(highest, int(part.max()))  # costs nothing beside the hash
            if digest.hexdigest() != self.manifest["files"][name]["sha256"]:
                raise UserError(f"{path} does not match the sha256 in manifest.json")
            if path.suffix == ".bin" and highest >= (size := self.manifest["vocab_size"]):
                raise UserError(f"{path} has token {highest}, of a vocabulary of {size}")
        return self


def read_manifest(folder):
    """manifest.json of a data folder; UserError where there is none that `write_manifest` wrote."""
    path = Path(folder) / "manifest.json"
    manifest = read_json(path, f"no data in '{folder}' (no manifest.json); make it with prepare.py")
    ours = isinstance(manifest, dict) and not ENTRIES - manifest.keys()
    if not ours or not all(isinstance(manifest[name], dict) for name in ("splits", "files")):
        raise UserError(f"'{folder}' is no data folder: {path} is not one of prepare.py's")
    return manifest


def _load(path):
    with explained(f"{path} is damaged: ", ValueError):  # no array, or a pickle: not opened
        return np.load(path, mmap_mode="r")
