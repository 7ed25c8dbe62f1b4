"""From a block of a source to encoded stories: what prepare.py's worker processes do."""

from collections import Counter
from typing import NamedTuple

import numpy as np

from nanostories.dataset import instruct, readers
from nanostories.dataset.cleaning import clean_all, story_hash


class EncodedStories(NamedTuple):
    """The encoded stories of a block, as shards.Writer.add takes them."""

    tokens: np.ndarray  # uint16, of all of them, each with <|endoftext|> in front
    lengths: np.ndarray  # int64 (n,), tokens of each
    sizes: np.ndarray  # int64 (n,), UTF-8 bytes of each
    answers: np.ndarray  # int64 (n,), the token of each where its answer starts
    hashes: np.ndarray  # uint64 (n, 2), equal for equal stories only

    def where(self, mask):
        """Those stories whose `mask`, bool (n,), is true."""
        tokens = self.tokens[np.repeat(mask, self.lengths)]
        return EncodedStories(tokens, *(array[mask] for array in self[1:]))


class Encoder:
    """
    Cleans and tokenizes a block.

    seed: of the hashes and of the instructions that are made. records: the texts are Instruct
    records, whose answer is the story.
    """

    def __init__(self, tokenizer, seed=0, records=False):
        self.tokenizer, self.seed, self.records = tokenizer, seed, records

    def __call__(self, block, held_out=(), val_limit=0):
        """
        (EncodedStories, Counter of the cleaning) of a block.

        held_out: names of Instruct fields that never occur together in one train instruction. A
        story is in val if the first 8 bytes of its hash are below val_limit.
        """
        texts, counts = readers.texts(block), Counter()
        kept = clean_all(texts, counts, self.seed if self.records else None)
        counts["read"] = len(texts)
        hashes = b"".join(story_hash(text, self.seed) for text in kept)
        hashes = np.frombuffer(hashes, "<u8").reshape(-1, 2)
        answers = np.ones(len(kept), np.int64)
        if self.records:
            if held_out:
                kept = [
                    instruct.drop_one_field(record, held_out, self.seed)
                    if first >= val_limit
                    else record
                    for record, first in zip(kept, hashes[:, 0].tolist(), strict=True)
                ]
            for i, record in enumerate(kept):
                answers[i] += len(self.tokenizer.encode_prompt(record.prompt()))
            kept = [record.text() for record in kept]
        tokens, lengths = self.tokenizer.encode_stories(kept)
        sizes = np.array([len(text.encode()) for text in kept], np.int64)
        return EncodedStories(tokens, lengths, sizes, answers, hashes), counts
