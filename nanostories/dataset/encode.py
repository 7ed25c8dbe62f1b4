"""From a block of a source to encoded stories: what prepare.py's worker processes do."""

from collections import Counter

import numpy as np

from nanostories.dataset import instruct, readers
from nanostories.dataset.cleaning import clean_all, story_hash
from nanostories.dataset.shards import STORY


class Encoder:
    """Cleans and tokenizes a block.

    seed: of the hashes and of the instructions that are made. records: the texts are Instruct
    records, whose answer is the story.
    """

    def __init__(self, tokenizer, seed=0, records=False):
        self.tokenizer, self.seed, self.records = tokenizer, seed, records

    def __call__(self, block, held_out=(), val_limit=0):
        """(tokens, index, counts) of a block: the first two as of shards.Writer.add, and a Counter.

        held_out: names of Instruct fields that never occur together in one train instruction. A
        story is in val if the first 8 bytes of its hash are below val_limit.
        """
        texts, counts = readers.texts(block), Counter()
        kept = clean_all(texts, counts, self.seed if self.records else None)
        counts["read"] = len(texts)
        index = np.ones(len(kept), STORY)
        hashes = b"".join(story_hash(text, self.seed) for text in kept)
        index["hash"] = np.frombuffer(hashes, "<u8").reshape(-1, 2)
        if self.records:
            for i in np.flatnonzero(index["hash"][:, 0] >= val_limit) if held_out else ():
                kept[i] = instruct.drop_one_field(kept[i], held_out, self.seed)
            prompts = [self.tokenizer.encode_prompt(record.prompt()) for record in kept]
            index["answer"] = [1 + len(ids) for ids in prompts]  # <|endoftext|> is in front
            kept = [record.text() for record in kept]
        tokens, index["tokens"] = self.tokenizer.encode_stories(kept)
        index["bytes"] = [len(text.encode()) for text in kept]
        return tokens, index, counts
