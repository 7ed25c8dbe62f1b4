"""Turn stories into tokens: any source to the shards of data/<name>/, in the format of shards.py.

    python prepare.py --source=storybook --tokenizer=bpe       # no network needed
    python prepare.py --source=tinystories-v2                  # from the hub, with GPT-2's tokens
    python prepare.py --source="my/*.txt" --tokenizer=out/ts_cpu/tokenizer.json   # to fine-tune
    python prepare.py configs/ts_cpu.py                        # what that config trains on

Stories are repaired (encoding only). Those that are empty, repeated, or both in train and in val
are dropped; so are those of TinyStories, any source with that in its name or folder, that were cut
off. Each rule's count is printed and kept in manifest.json. The folder appears when it is complete,
and only then replaces one of the same name.
"""

from dataclasses import dataclass
from pathlib import Path

import configs
from configs import UserError
from nanostories.dataset import instruct, readers, sources
from nanostories.dataset.build import build_dataset, make_tokenizer
from nanostories.dataset.sources import Source
from nanostories.storage import lock


@dataclass(frozen=True)
class Settings:
    source: str = "tinystories"  # storybook, a data set's name, hub:owner/name, a file, a glob
    val_source: str = ""  # where val comes from; "": the data set's own, or val_fraction of source
    val_fraction: float = 0.01  # part of the stories held out for val, where it has no source
    tokenizer: str = "gpt2"  # gpt2, gpt2-10k, bpe, bytes, or the path of a tokenizer.json
    vocab_size: int = 4096  # of bpe, <|endoftext|> included
    out: str = ""  # folder to write; "": data/<source>-<tokenizer>
    stories: int = 100_000  # how many stories storybook generates
    text_column: str = ""  # of a table, where its stories are; "": text or story
    max_stories: int = 0  # only the first stories of source; 0: all
    max_val_stories: int = 0  # only the first of val_source, or of the data set's own val; 0: all
    keep_unfinished: bool | None = None  # ends without punctuation; None: not of TinyStories
    min_length: int = 0  # characters that a story has at least
    near_duplicates: str = "keep"  # or drop: of stories that differ in a few words, the first stays
    seed: int = 0  # of storybook, of generated instructions, and of the choice of val stories
    hold_out: str = ""  # words+summary: Instruct fields never together in train; adds a control
    revision: str = ""  # commit of a source of the hub; "": the pinned one
    workers: int = 0  # processes; 0: one a core


def prepare(settings):
    """Make the data folder that the settings describe; returns its path."""
    # 1. settings
    configs.check_ranges(settings)
    held_out = settings.hold_out.split("+") if settings.hold_out else []
    wants = "hold_out" if held_out else f"val_source={settings.val_source}"
    if (held_out or sources.INSTRUCT in wants) and not sources.is_instruct(settings.source):
        none = f"{wants} is for Instruct records, which '{settings.source}' has none of"
        raise UserError(f"{none}; --source={sources.INSTRUCT}{settings.source} makes some")
    if held_out and (len(set(held_out)) < 2 or not set(held_out) <= set(instruct.LABELS)):
        raise UserError(f"hold_out takes two or more of {', '.join(instruct.LABELS)}, joined by +")

    # 2. sources: downloaded, or reported missing, before anything is made
    shared = configs.pick(settings, "stories", "seed", "revision", "text_column")

    def open_source(name, split, max_stories):
        rules = sources.cleaning_rules(name, settings.keep_unfinished, settings.min_length)
        source = Source(name, split, max_stories=max_stories, rules=rules, **shared).pinned()
        source.total()
        return source

    train, val = open_source(settings.source, "train", settings.max_stories), None
    val_name = settings.val_source or train.name
    if Source(val_name, "val").base.split(":")[:2] != train.base.split(":")[:2]:
        shared["revision"] = ""  # of another data set: the commit is of source's
    if settings.val_source or train.base in readers.NAMED:
        val = open_source(val_name, "val", settings.max_val_stories)
    elif settings.max_val_stories:
        raise UserError("max_val_stories is for a val_source; val_fraction is held out of source")

    # 3. tokenizer: made from stories of train only
    shared = {"seed": settings.seed, "val_fraction": 0.0 if val else settings.val_fraction}
    tokenizer = make_tokenizer(settings.tokenizer, settings.vocab_size, train, **shared)
    shared |= {"near_duplicates": settings.near_duplicates, "workers": settings.workers}

    # 4. data folder; with hold_out a second one for the experiment, and the first is its control
    out = Path(settings.out or sources.dataset_folder(settings.source, settings.tokenizer))
    with lock(out):
        build_dataset(out, train, val, tokenizer, **shared)
    if held_out:
        second = out.with_name(f"{out.name}-without-{settings.hold_out}")
        with lock(second):
            build_dataset(second, train, val, tokenizer, held_out, **shared)
    return out


def main():
    configs.clean_up_when_killed()
    settings, origin = configs.load(Settings)
    configs.show(settings, origin)
    prepare(settings)


if __name__ == "__main__":
    configs.run(main)
