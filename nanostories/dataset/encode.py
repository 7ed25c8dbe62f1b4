"""
From blocks of a source to encoded stories, on all cores: what prepare.py's workers do.

    with worker_pool(Encoder(tokenizer), workers=0) as encode:
        for block, (stories, counts) in encode(source.blocks()): ...
"""

import contextlib
import functools
import hashlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import numpy as np

from configs import UserError
from nanostories.dataset import instruct, sources


class Stories(NamedTuple):
    """Encoded stories, as shards.Writer.add takes them."""

    tokens: np.ndarray  # uint16, of all of them, each with <|endoftext|> in front
    lengths: np.ndarray  # int64 (n,), tokens of each
    sizes: np.ndarray  # int64 (n,), UTF-8 bytes of each
    answers: np.ndarray  # int64 (n,), the token of each where its answer starts
    hashes: np.ndarray  # uint64 (n, 2), equal for equal texts only

    def where(self, mask):
        """Those stories whose `mask`, bool (n,), is true."""
        return Stories(self.tokens[np.repeat(mask, self.lengths)], *(x[mask] for x in self[1:]))


def hash_of(text, seed):
    """16 bytes that stand for a story's UTF-8 `text`, salted with `seed`."""
    salt = seed.to_bytes(8, "little", signed=True)
    return hashlib.blake2b(text, digest_size=16, salt=salt).digest()


def cleaned(texts, counts, seed=None):
    """
    Those of `texts`, from corpus.texts, that are to be kept, mended: a list of str; or with a seed,
    for those that are to be made, of instruct.Record. counts: a Counter of the rules, to go up.
    """
    if seed is None:
        kept = (sources.clean(text, counts) for text in texts)
    else:
        kept = (sources.record_of(text, seed, counts) for text in texts)
    return [one for one in kept if one is not None]


def story_of(kept):
    """The story of what `cleaned` kept: by it alone are equals known, whatever the instruction."""
    return kept if isinstance(kept, str) else kept.story


class Encoder:
    """
    Cleans and tokenizes a block, in a worker process.

    seed: of the hashes, and of instructions to be made. records: the texts are Instruct's records,
    whose answer is the story.
    """

    def __init__(self, tokenizer, seed=0, records=False):
        self.tokenizer, self.seed, self.records = tokenizer, seed, records

    def __call__(self, block, apart=(), val_limit=0):
        """
        (Stories, Counter of the cleaning) of a block. apart: names of fields that are not to stand
        together in an instruction, but in those of val: of stories with a hash below val_limit.
        """
        found, counts = sources.texts(block), Counter()
        kept = cleaned(found, counts, self.seed if self.records else None)
        counts["read"] = len(found)
        hashes = b"".join(hash_of(story_of(one).encode(), self.seed) for one in kept)
        hashes = np.frombuffer(hashes, "<u8").reshape(-1, 2)
        answers = np.ones(len(kept), np.int64)
        if self.records:
            if apart:
                train = hashes[:, 0] >= val_limit
                kept = [
                    instruct.drop_one_field(record, apart, self.seed) if trained else record
                    for record, trained in zip(kept, train, strict=True)
                ]
            prompts = [self.tokenizer.encode_prompt(one.prompt()) for one in kept]
            answers += np.array([len(ids) for ids in prompts], np.int64)
            kept = [record.text() for record in kept]
        tokens, lengths = self.tokenizer.encode_stories(kept)
        sizes = np.array([len(text.encode()) for text in kept], np.int64)
        return Stories(tokens, lengths, sizes, answers, hashes), counts


_encode = None  # the Encoder of a worker process


def _start_worker(encoder):
    global _encode
    _encode = encoder
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    """Else the workers of a killed command would wait for ever for more blocks."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _work(*args):
    return _encode(*args)


def cores():
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def worker_pool(encoder, workers):
    """
    A function from blocks, and what else the encoder takes, to (block, its result), in order; on so
    many processes, 0: all.
    """
    workers = workers or cores()
    if workers == 1:
        yield lambda blocks, *how: ((block, encoder(block, *how)) for block in blocks)
        return
    # Spawned, as the threads that rustbpe leaves behind do not survive a fork.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (encoder,))
    try:
        # Ctrl-C is ours to handle: started while it is ignored, the workers never see it.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        for _ in range(workers):
            pool.submit(os.getpid)  # each starts a process, as none is idle yet
        signal.signal(signal.SIGINT, handler)
        yield functools.partial(_in_order, pool, 2 * workers + 64)
    except BrokenProcessPool:
        raise UserError("a worker died, probably of too little memory: lower --workers") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(pool, ahead, blocks, *how):
    """Set the workers to `ahead` blocks at once; each result that is taken lets one more in."""
    blocks = iter(blocks)

    def submitted(n):
        return [(block, pool.submit(_work, block, *how)) for block in itertools.islice(blocks, n)]

    def results(waiting):
        while waiting:
            block, result = waiting.popleft()
            waiting.extend(submitted(1))
            yield block, result.result()

    return results(deque(submitted(ahead)))
