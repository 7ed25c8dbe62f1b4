"""Where stories come from.

storybook                            the built-in grammar, no network needed
tinystories, tinystories-v2,
tinystories-instruct                 the real data sets, from the hub at a pinned revision
hub:owner/name, hub:owner/name:split, hub:owner/name:config:split
                                     any data set of the hub with a column of text
stories.txt, "data/*.jsonl"          local files, in the formats of formats.py; ~ is your home
instruct:<any of these>              Instruct records made of its stories (instruct.py)
"""

import contextlib
import difflib
import glob
import hashlib
import itertools
import os
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from configs import UserError
from nanostories.dataset import formats, instruct, readers, storybook
from nanostories.dataset.cleaning import Rules, fix_facts, join_surrogates
from nanostories.dataset.shards import read_manifest
from nanostories.storage import sha256

INSTRUCT = "instruct:"  # before the name of a source: Instruct records made of its stories


def slug(source):
    """A short name for a source: a file's stem, a glob's folder, a hub data set's name."""
    if source.startswith(INSTRUCT):
        return f"instruct-{slug(source.removeprefix(INSTRUCT))}"
    if source.startswith("hub:"):
        _, repo, *names = source.split(":")
        return "-".join([repo.rpartition("/")[2], *names[:-1]])
    path = Path(source).expanduser()
    if _is_glob(path):
        return _glob_folder(path).resolve().name
    return path.name.split(".")[0] or path.name


def dataset_folder(source, tokenizer):
    """Where prepare.py writes `source` tokenized by `tokenizer` by default: data/<slug>-<name>."""
    path = Path(tokenizer)  # a run's own tokenizer goes by the run's name
    name = path.parent.name if path.name == "tokenizer.json" else path.name
    return f"data/{slug(source)}-{name}"


def is_instruct(source):
    """Whether the source consists of TinyStories-Instruct's records, not of plain stories."""
    return "instruct" in slug(source).lower()


def cleaning_rules(source, keep_unfinished=None, min_length=0):
    """The Rules for a source. keep_unfinished: None keeps stories without an end, unless the source
    is TinyStories by its name or folder: there they were cut off when they were generated."""
    *folders, name = Path(source).parts or [""]
    folders = [folder for folder in folders if folder not in ("*", "**")]
    tinystories = "tinystories" in "/".join([*folders[-1:], name]).lower()
    if keep_unfinished or (keep_unfinished is None and not tinystories):
        return Rules("", min_length)
    return Rules("tinystories" if tinystories else "any script", min_length)


@dataclass(frozen=True)
class Source:
    """A named place where stories come from. Methods raise UserError where there are none."""

    name: str
    split: str = "train"  # or "val", of the sources that have both
    stories: int = 1000  # how many storybook generates
    seed: int = 0  # of storybook, and of the instructions that are made
    revision: str = ""  # of a hub source: another commit than the pinned one
    text_column: str = ""  # where the stories are; "": in text or story
    max_stories: int = 0  # only the first ones; 0: all
    rules: Rules | None = None  # for cleaning; None: as cleaning_rules has them

    def __str__(self):
        return f"{self.name}@{self.revision}" if self.revision else self.name

    @property
    def base(self):
        """The name of the source that the stories come from, without instruct: in front."""
        return self.name.removeprefix(INSTRUCT)

    def pinned(self):
        """The same source at a definite commit: the pinned one, or the newest there is now."""
        revision = self.revision if self.base.startswith("hub:") else ""
        if self.base in readers.NAMED:
            revision = self.revision or readers.NAMED[self.base][1]
        elif self.base.startswith("hub:") and not re.fullmatch("[0-9a-f]{40}", revision):
            with readers.hub_errors(self.base):
                revision = readers.hub_commit(self.base.split(":")[1], revision)
        return replace(self, revision=revision)

    def files(self):
        """The local files of the source, a list of paths; a named data set is downloaded."""
        name = os.path.expanduser(self.base)
        if name in readers.NAMED:
            split = "train" if self.split == "train" else "valid"
            return [readers.download(name, f"{readers.NAMED[name][2]}-{split}.txt", self.revision)]
        if _is_glob(name):
            folder = _glob_folder(name)  # whose own name may hold a [
            pattern = str(Path(glob.escape(str(folder)), Path(name).relative_to(folder)))
            paths = sorted(filter(os.path.isfile, glob.glob(pattern, recursive=True)))
            if not paths:
                raise UserError(f"no file matches '{name}'")
        elif os.path.isfile(name):
            paths = [name]
        elif os.path.isdir(name):
            raise UserError(f"'{name}' is a folder; name its files, as in '{name}/*.txt'")
        else:
            known = [*readers.NAMED, "storybook"]
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"nor one of {', '.join(known)}"
            raise UserError(f"no source '{name}': it is no file here; {hint}")
        if not any(Path(path).stat().st_size for path in paths):
            raise UserError(f"'{name}' is empty")
        for path in paths:
            formats.file_format(path)  # raises for one that is not read
        return paths

    def total(self):
        """The sum of the blocks' weights: bytes of files, or stories; None where unknown."""
        if self.base == "storybook":
            return self.stories
        if self.base.startswith("hub:"):
            return None
        return sum(Path(path).stat().st_size for path in self.files())

    def fingerprint(self):
        """{"bytes", "sha256"} of all its local files together, {} of another source."""
        if self.base in (*readers.NAMED, "storybook") or self.base.startswith("hub:"):
            return {}
        hashes = "".join([self.name.removesuffix(self.base), *map(sha256, self.files())])
        return {"bytes": self.total(), "sha256": hashlib.sha256(hashes.encode()).hexdigest()}

    def is_source_of(self, folder):
        """Whether a data folder was made of this source, its local files as they are now. Of files
        that are gone, or data of an older version, only the name is compared."""
        manifest = read_manifest(folder)
        stored, before = manifest["source"], manifest.get("source_files")
        same_name = stored == self.name or stored.startswith(f"{self.name}@")  # its commit follows
        if before and self.base not in readers.NAMED:
            with contextlib.suppress(UserError):  # a second a gigabyte
                return self.fingerprint() == before
        return same_name

    def blocks(self):
        """Yield the readers.Blocks of the source, in order."""
        if self.base == "storybook":
            # Other stories for val than for train, of the same seed.
            stories = storybook.stories(self.stories, self.seed + (self.split == "val"))
            names = ("text", "words", "features", "summary")
            rows = ({name: getattr(story, name) for name in names} for story in stories)
            blocks = readers.row_blocks(self.base, rows)
        elif self.base.startswith("hub:"):
            rows = readers.read_hub(self.base, self.revision, self.text_column)
            blocks = readers.row_blocks(self.base, rows)
        else:
            files = (readers.file_blocks(path, self.text_column) for path in self.files())
            blocks = itertools.chain.from_iterable(files)
        if self.max_stories:
            blocks = readers.head(blocks, self.max_stories)
        fields = {"rules": self.rules or cleaning_rules(self.name), "column": self.text_column}
        fields |= {"facts": self.name.startswith(INSTRUCT)}
        return (replace(block, **fields) for block in blocks)


def read(source, **settings):
    """Yield the texts of a Source(source, **settings) uncleaned; split is "val" by default. A byte
    that is not UTF-8 is a UserError. Stories that instruct:... makes records of are repaired."""
    source = Source(source, **{"split": "val"} | settings)
    for block in source.blocks():
        for story in readers.texts(block, strict=True):
            if block.facts:
                record = instruct.make_record(fix_facts(story, Counter()), source.seed)
                story = record.text() if record else story.story
            yield story if story.isascii() else join_surrogates(story)


def _is_glob(path):
    return any(char in str(path) for char in "*?[") and not os.path.exists(path)


def _glob_folder(pattern):
    """The folder that all matches of a glob are in."""
    return next(folder for folder in Path(pattern).parents if not _is_glob(folder))
