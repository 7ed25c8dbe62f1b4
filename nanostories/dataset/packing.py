"""Packed batches: rows of whole stories, made from the tokens on disk.

    loader = PackedDataLoader(data, eot, block_size=512, row_tokens=1024, batch_size=8, seed=1337)
    batch = loader[0]                                   # a pure function of the seed and the number
    for batch in loader.stream([(0, 8), (8, 16)]): ...  # any rows, planned ahead in a thread

A chunk is a whole story, or a part of one that is longer than block_size. A token attends only
within its own chunk, and positions count from the chunk's first token, so a packed batch computes
exactly what one chunk a row would, without the padding.
"""

import bisect
import functools
import itertools
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from configs import UserError
from kernels.cross_entropy import IGNORE_INDEX
from nanostories.dataset.shards import Dataset
from nanostories.dataset.sources import Source, dataset_folder
from nanostories.dataset.tokenizer import Tokenizer
from nanostories.dataset.workers import in_order


@dataclass(frozen=True)
class Batch:
    """Rows of several chunks, four tensors of shape (B, row_tokens)."""

    tokens: torch.Tensor  # int64
    targets: torch.Tensor  # int64, the next token; IGNORE_INDEX where no loss is computed
    positions: torch.Tensor  # int64, from 0 in each chunk; 0 in padding
    doc_start: torch.Tensor  # int32, the column where the token's chunk begins
    target_count: int  # targets that are not IGNORE_INDEX


class PackedDataLoader:
    """The packed batches of a split. Batch number i depends on the arguments and i alone.

    A story of n tokens, <|endoftext|> in front included, gives n inputs and n targets; the last
    target is <|endoftext|>. A longer story than block_size is cut into chunks that begin `stride`
    tokens apart (0: block_size; evaluation takes half of it, for context). Loss is computed only on
    targets that no earlier chunk has, so every token is a target once.

    Chunks are packed into rows of row_tokens here, for good. Each epoch visits the rows in an order
    of its own, and the epochs make one endless stream of rows. Batch i is rows i * batch_size to
    (i + 1) * batch_size - 1 of it. With shuffle=False there is one epoch, in the order of packing.

    data: a Dataset. answers: int64 (stories,), where the answer of each Instruct record begins; if
    given, only targets from there on count. device: where batches are made; a GPU keeps the
    corpus too, if that takes at most a tenth of its memory, and then only chunk tables are copied.
    """

    def __init__(
        self, data, eot, block_size, row_tokens, batch_size, seed, stride=0, shuffle=True,
        device="cpu", answers=None,
    ):  # fmt: skip
        if row_tokens < block_size:
            raise UserError(f"row_tokens {row_tokens} is less than block_size {block_size}")
        self.data, self.eot, self.row_tokens = data, eot, row_tokens
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        chunks = split_into_chunks(data.starts, block_size, stride or block_size, answers)
        order = np.random.default_rng([seed, 0]).permutation(chunks.shape[1])
        rows = pack(chunks[1], order if shuffle else np.sort(order), row_tokens)
        # (4, chunks), row after row: offset, length, skip, is_end; see split_into_chunks.
        self.chunks = chunks[:, np.concatenate(rows)]
        self.row_ends = np.cumsum([len(row) for row in rows])  # row i: chunks up to row_ends[i]
        self.num_rows = len(rows)
        _, length, skip, _ = self.chunks
        self.row_lengths = np.diff(np.cumsum(length)[self.row_ends - 1], prepend=0)  # in tokens
        self.row_targets = np.diff(np.cumsum(length - skip)[self.row_ends - 1], prepend=0)
        self.longest_chunk = int(length.max())  # in tokens
        self.padding = 1 - length.sum() / (self.num_rows * row_tokens)  # fraction of all positions
        # About how many tokens a token attends to, on average: sum(length^2) / sum(length) / 2.
        self.mean_context = float(length / length.sum() @ length) / 2
        self.device = torch.device(device)
        self.device_tokens = None
        if self.device.type == "cuda":
            memory = torch.cuda.get_device_properties(self.device).total_memory
            if 2 * data.tokens <= memory / 10:  # two bytes each
                self.device_tokens = self._load_to_device()
        # Cached for two epochs: a batch may cross from one into the next.
        self._epoch_order = functools.lru_cache(2)(self._epoch_order)

    def _load_to_device(self):
        """All tokens on the device as int16, for torch cannot index uint16; one zero at the end."""
        shards = [torch.from_numpy(np.array(shard)).view(torch.int16) for shard in self.data.shards]
        return torch.cat([*shards, torch.zeros(1, dtype=torch.int16)]).to(self.device)

    def __len__(self):
        """Batches in one epoch. The last may be short (unshuffled) or run into the next epoch."""
        return -(-self.num_rows // self.batch_size)

    def _epoch_order(self, epoch):
        """The rows of an epoch in their order, int64 (num_rows,)."""
        rng = np.random.default_rng([self.seed, 1, epoch])
        return rng.permutation(self.num_rows) if self.shuffle else np.arange(self.num_rows)

    def _rows(self, first, last):
        """Which rows are numbers `first` to `last` - 1 of the stream, int64 (last - first,)."""
        places = (divmod(number, self.num_rows) for number in range(first, last))
        return np.array([self._epoch_order(epoch)[i] for epoch, i in places], np.int64)

    def target_count(self, first, last):
        """The targets in this range of the stream of rows, without those ignored."""
        return int(self.row_targets[self._rows(first, last)].sum())

    def token_count(self, first, last):
        """The tokens in this range of the stream of rows, without padding."""
        return int(self.row_lengths[self._rows(first, last)].sum())

    def row_range(self, i):
        """(first, last) of batch number i in the stream of rows, last not included."""
        last = (i + 1) * self.batch_size
        return i * self.batch_size, last if self.shuffle else min(last, self.num_rows)

    def __getitem__(self, i):
        """Batch number i >= 0; past the first epoch too, if shuffled."""
        if not self.shuffle and not 0 <= i < len(self):
            raise IndexError(i)
        return self._make_batch(*self._plan(*self.row_range(i)))

    def stream(self, ranges, prefetch=4):
        """Yield the Batch of each (first, last); a thread plans the next ones meanwhile."""
        with ThreadPoolExecutor(1) as worker:
            plans = in_order(lambda rows: worker.submit(self._plan, *rows), ranges, prefetch)
            yield from (self._make_batch(*plan) for plan in plans)

    def _plan(self, first, last):
        """The arguments of `_make_batch` for these rows: (1) chunks (4, n) as in self.chunks, the
        padding of a row a chunk with skip = length; (2) the tokens that the offsets index, int16
        bits of uint16, or None where they are on the device; (3) how many rows; (4) targets."""
        columns, rows = [], self._rows(first, last)
        for row in rows:
            chunks = self.chunks[:, self.row_ends[row - 1] if row else 0 : self.row_ends[row]]
            free = self.row_tokens - chunks[1].sum()
            columns += [chunks, np.array([[0], [free], [free], [0]])]
        chunks = np.concatenate(columns, axis=1)
        tokens = None
        if self.device_tokens is None:
            # Read length + 1 tokens: the last one is the last target. A story's last chunk needs
            # no extra one, its last target being <|endoftext|>. Padding reads nothing.
            sizes = (chunks[1] + 1 - chunks[3]) * (chunks[1] > chunks[2])
            parts = [self.data.read(at, n) for at, n in zip(chunks[0], sizes, strict=True) if n]
            chunks[0] = (np.cumsum(sizes) - sizes) * (sizes > 0)
            tokens = np.concatenate([*parts, np.zeros(1, np.uint16)]).view(np.int16)
            tokens = self._pin(torch.from_numpy(tokens))
        return self._pin(torch.from_numpy(chunks)), tokens, len(rows), self.row_targets[rows].sum()

    def _pin(self, tensor):
        """The tensor, for a GPU in pinned memory, so that copying it does not block."""
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def _make_batch(self, chunks, tokens, num_rows, target_count):
        chunks = chunks.to(self.device, non_blocking=True)
        tokens = self.device_tokens if tokens is None else tokens.to(self.device, non_blocking=True)
        size = num_rows * self.row_tokens
        offset, length, skip, is_end = chunks  # each (n,)
        begin = length.cumsum(0) - length  # where each chunk begins in the rows, laid end to end
        # (size,) the chunk of each token: 0, 0, 0, 1, 1, ... Given its size, the CPU need not wait.
        chunk = torch.repeat_interleave(length, output_size=size)
        position = torch.arange(size, device=self.device) - begin[chunk]
        not_padding = (skip < length)[chunk]
        position = position.where(not_padding, 0)  # padding is <|endoftext|> at position 0
        source = offset[chunk] + position
        next_token = tokens[source + 1].long() & 0xFFFF  # the bits as uint16 again
        # After a story comes <|endoftext|>: put in, for not every story is followed by another.
        is_last = is_end.bool()[chunk] & (position == length[chunk] - 1)
        targets = next_token.where(~is_last, self.eot).where(position >= skip[chunk], IGNORE_INDEX)
        shape = (num_rows, self.row_tokens)
        return Batch(
            tokens=(tokens[source].long() & 0xFFFF).where(not_padding, self.eot).view(shape),
            targets=targets.view(shape),
            positions=position.view(shape),
            doc_start=(begin % self.row_tokens).int()[chunk].view(shape),
            target_count=int(target_count),
        )


def split_into_chunks(starts, block_size, stride, answers=None):
    """Chunks of at most block_size tokens that begin `stride` tokens apart in each story, without
    those that have no target that counts. starts, answers: see Dataset. Returns int64 (4, chunks):
    offset of the first token; length; skip, how many of the first targets an earlier chunk has or
    `answers` excludes; is_end, 1 if the last target is the story's <|endoftext|>."""
    story_length = np.diff(starts)
    chunks_per_story = 1 + -(-np.maximum(story_length - block_size, 0) // stride)
    story = np.repeat(np.arange(len(story_length)), chunks_per_story)  # of each chunk
    first_chunk = np.cumsum(chunks_per_story) - chunks_per_story  # of each story
    number = np.arange(len(story)) - first_chunk[story]  # of the chunk within its story
    begin = number * stride  # in the story, like end
    end = np.minimum(begin + block_size, story_length[story])
    skip = np.where(number > 0, block_size - stride, 0)
    if answers is not None:
        # The answer's first token is the target of the token before it.
        skip = np.maximum(skip, answers[story] - 1 - begin)
    is_end = end == story_length[story]
    chunks = np.stack([starts[story] + begin, end - begin, skip, is_end])
    return chunks[:, skip < end - begin]


def pack(length, order, row_tokens, window=1024):
    """Rows of at most row_tokens tokens: best fit decreasing in each `window` chunks of the order;
    no row spans two windows. length: int (chunks,). order: int (chunks,), the chunks as drawn.
    Returns a list of rows, each a list of chunk numbers."""
    rows = []
    for first in range(0, len(order), window):
        drawn = order[first : first + window]
        free = []  # (free tokens, row number), sorted: bisection finds the tightest fit
        for chunk in drawn[np.argsort(-length[drawn], kind="stable")].tolist():
            n = int(length[chunk])
            at = bisect.bisect_left(free, (n, -1))
            if at == len(free):
                space, row = row_tokens, len(rows)
                rows.append([])
            else:
                space, row = free.pop(at)
            rows[row].append(chunk)
            bisect.insort(free, (space - n, row))
    return rows


def split_rows_across_ranks(rows, batch_size, rank, world_size):
    """One rank's part of the `rows` rows of a step, counted from its first: [(first, last), ...],
    one for each micro-batch of at most batch_size rows, `last` not included. Ranks, and the
    micro-batches of a rank, differ by a row at most. rows: at least world_size."""
    first, last = rows * rank // world_size, rows * (rank + 1) // world_size
    passes = -(-(last - first) // batch_size)
    edges = [first + (last - first) * i // passes for i in range(passes + 1)]
    return list(itertools.pairwise(edges))


@dataclass
class PaddedBatch:
    """Prompts with their completions, a row each, padded on the right (for reward training)."""

    tokens: torch.Tensor  # int64 (N, T)
    targets: torch.Tensor  # int64 (N, T), IGNORE_INDEX outside the completion

    @property
    def completion_mask(self):
        """bool (N, T): where the target is a token of the completion, or its <|endoftext|>."""
        return self.targets != IGNORE_INDEX


def pad_batch(prompts, completions, eot, device):
    """The PaddedBatch of prompts, lists of ids, and one generate.Completion of each."""
    tokens, targets = [], []
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = completion.ids + [eot] * completion.ended
        tokens.append(torch.tensor([*prompt, *ids][:-1], dtype=torch.int64))
        targets.append(torch.tensor([IGNORE_INDEX] * (len(prompt) - 1) + ids, dtype=torch.int64))
    tokens = pad_sequence(tokens, batch_first=True, padding_value=eot)
    targets = pad_sequence(targets, batch_first=True, padding_value=IGNORE_INDEX)
    return PaddedBatch(tokens.to(device), targets.to(device))


def open_data(settings):
    """(train Dataset, val Dataset, Tokenizer) of settings.dataset. UserError where a new run's
    default folder was not made of the run's source and tokenizer, as they are now."""
    folder, named = settings.dataset, settings.tokenizer
    default, problem = dataset_folder(settings.source, named), ""
    if not (Path(folder) / "manifest.json").exists():
        problem = f"no data in '{folder}'"
    elif folder == default and not settings.resume:  # sources may share the name of a folder
        if not Source(settings.source).is_source_of(folder):
            problem = f"'{folder}' was not made of '{settings.source}' as it is now"
        elif Path(named).exists() and not Tokenizer.load(named).same_as(Tokenizer.load(folder)):
            problem = f"'{folder}' has another tokenizer than '{named}'"
    if problem:
        words = [word for word in sys.argv[1:] if word.endswith(".py")]
        words += [f"--source={settings.source}", f"--tokenizer={named}"]
        if "+" in (held_out := folder.rpartition("-without-")[2]):
            words.append(f"--hold_out={held_out}")
        elif folder != default:
            words.append(f"--out={folder}")
        raise UserError(f"{problem}; make it with: {shlex.join(['python', 'prepare.py', *words])}")
    # It takes a second a gigabyte; damaged tokens would cost days.
    train, val = (Dataset(folder, split).verify() for split in ("train", "val"))
    return train, val, Tokenizer.load(folder)


def make_loaders(settings, train, val, tokenizer, device):
    """(PackedDataLoader of train, PackedDataLoader of val, the denominator of bits per byte:
    the UTF-8 bytes of the val text that is scored, and one a story for <|endoftext|>)."""
    train_answers = val_answers = None
    val_bytes = val.bytes + val.stories
    if 0 < settings.eval_stories < val.stories:
        val = val.subset(settings.eval_stories)
        val_bytes = int(tokenizer.token_bytes[val.ids].sum())  # <|endoftext|> counts as one
    if settings.loss_on == "story":
        train_answers, val_answers = train.answers, val.answers
        if train_answers is None:
            none = f"loss_on=story needs Instruct's records, and '{settings.dataset}' has none"
            raise UserError(f"{none}; prepare.py --source=instruct:... makes some")
        val_bytes = val.answer_bytes(tokenizer.token_bytes) + val.stories
    shape = (settings.block_size, settings.row_tokens, settings.batch_size, settings.seed)
    make = functools.partial(PackedDataLoader, device=device)
    train_loader = make(train, tokenizer.eot, *shape, answers=train_answers)
    overlap = {"stride": max(1, settings.block_size // 2), "shuffle": False}
    val_loader = make(val, tokenizer.eot, *shape, answers=val_answers, **overlap)
    return train_loader, val_loader, val_bytes
