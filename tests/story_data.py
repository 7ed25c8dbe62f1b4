"""Data folders of given stories, made in milliseconds, for the tests that need exactly those."""

from pathlib import Path

import numpy as np

from nanostories.dataset import shards, tokenizer
from nanostories.dataset.shards import Dataset


def made(folder, train, val=(), prompts=None, shard_tokens=shards.SHARD_TOKENS):
    """The train Dataset of a new data folder of these texts, in bytes. prompts: of Instruct's
    records, what comes before each text of train.
    """
    folder = Path(folder)
    folder.mkdir(parents=True)
    bytewise = tokenizer.build("bytes")
    bytewise.save(folder / "tokenizer.json")
    splits = {}
    for split, texts in {"train": train, "val": val}.items():
        before = prompts if prompts and split == "train" else [""] * len(texts)
        whole = [prompt + text for prompt, text in zip(before, texts, strict=True)]
        tokens, lengths = bytewise.encode_stories(whole)
        index = np.zeros(len(whole), shards.STORY)
        index["tokens"] = lengths
        index["bytes"] = [len(text.encode()) for text in whole]
        index["answer"] = [1 + len(prompt.encode()) for prompt in before]
        writer = shards.Writer(folder, split)
        writer.add(tokens, index)
        drop = np.zeros(len(whole), np.uint8)
        splits[split] = writer.finish(drop, shard_tokens, answers=bool(prompts))
    facts = {"tokenizer": "bytes", "vocab_size": bytewise.vocab_size, "splits": splits}
    shards.write_manifest(folder, facts)
    return Dataset(folder, "train")
