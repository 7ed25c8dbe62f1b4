"""
Packed batches: rows of whole stories, made from the tokens on disk.

    batches = PackedDataLoader(data, eot, block_size=512, row_tokens=1024, batch_size=8, seed=1337)
    batch = batches[0]                                  # a pure function of the seed and the number
    for batch in batches.stream([(0, 8), (8, 16)]): ... # any rows, prepared ahead in a thread

A token attends only within its own story, and positions count from the story's first token, so a
packed batch computes exactly what one story a row would, without the padding.
"""

import bisect
import collections
import functools
import itertools
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from configs import UserError
from kernels.cross_entropy import IGNORE_INDEX
from nanostories.dataset.shards import Dataset
from nanostories.dataset.tokenizer import Tokenizer


@dataclass(frozen=True)
class Batch:
    """
    Rows of whole stories, each (B, row_tokens); `targets` is IGNORE_INDEX where nothing counts.
    """

    tokens: torch.Tensor  # int64
    targets: torch.Tensor  # int64
    positions: torch.Tensor  # int64, from 0 in each story
    start: torch.Tensor  # int32, the column of the token's story's first token
    count: int  # targets that count


class PackedDataLoader:
    """
    The packed batches of a split: batch number i is a pure function of (seed, i).

    A story of n tokens, separator included, gives n inputs and n targets, the last <|endoftext|>.
    One longer than block_size is cut into pieces that begin `stride` tokens apart; a piece counts
    only the targets that no piece before it did, so every token counts once whatever the stride.
    Training uses stride = block_size; evaluation half of it, for context. Positions begin at 0 in
    every piece. With `answers`, int64 (stories,), only the targets from that token of each story on
    count: of an Instruct record, those of its story.

    Pieces fill rows of row_tokens by best fit decreasing, among 1,024 pieces drawn together by the
    seed; each epoch takes all rows in an order of its own, and the epochs make one endless stream
    of rows. With shuffle=False the rows come once and in order. Batch i is rows i * batch_size on;
    `stream` gives any ranges of rows.

    device: where batches are made. On a GPU the corpus lies there too, as uint16, if it takes no
    more than a tenth of the memory: then a batch is gathered there, and only each piece's place
    and length travel.
    """

    def __init__(
        self, data, eot, block_size, row_tokens, batch_size, seed, stride=0, shuffle=True,
        device="cpu", answers=None,
    ):  # fmt: skip
        if row_tokens < block_size:
            raise UserError(f"row_tokens {row_tokens} is less than block_size {block_size}")
        self.data, self.eot, self.row_tokens = data, eot, row_tokens
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        pieces = split_into_pieces(data.starts, block_size, stride or block_size, answers)
        order = np.random.default_rng([seed, 0]).permutation(pieces.shape[1])
        rows = pack(pieces[1], order if shuffle else np.sort(order), row_tokens)
        self.pieces = pieces[:, np.concatenate(rows)]  # row after row
        self.ends = np.cumsum([len(row) for row in rows])  # of each row among the pieces
        counted = np.cumsum(self.pieces[1] - self.pieces[2])[self.ends - 1]
        self.counts = np.diff(counted, prepend=0)  # targets of each row
        self.sizes = np.diff(np.cumsum(self.pieces[1])[self.ends - 1], prepend=0)  # and tokens
        self.device = torch.device(device)
        self.corpus = None
        if self.device.type == "cuda":
            memory = torch.cuda.get_device_properties(self.device).total_memory
            if 2 * data.tokens < memory / 10:
                self.corpus = self._resident()
        self._order = functools.lru_cache(2)(self._order)

    def _resident(self):
        """All tokens on the device, as the int16 that torch can gather, and one more."""
        shards = [torch.from_numpy(np.array(shard)).view(torch.int16) for shard in self.data.shards]
        return torch.cat([*shards, torch.zeros(1, dtype=torch.int16)]).to(self.device)

    @property
    def padding(self):
        """The share of the rows' places that hold no token."""
        return 1 - self.pieces[1].sum() / (len(self.ends) * self.row_tokens)

    @property
    def context(self):
        """How many tokens before it a token sees, on average."""
        length = self.pieces[1]
        return float(length / length.sum() @ length) / 2

    def __len__(self):
        """PackedDataLoader in one epoch; the last may be short, or run into the next epoch."""
        return -(-len(self.ends) // self.batch_size)

    def _order(self, epoch):
        """The rows of an epoch, (rows,) int64, as it takes them."""
        rows = len(self.ends)
        if not self.shuffle:
            return np.arange(rows)
        return np.random.default_rng([self.seed, 1, epoch]).permutation(rows)

    def rows(self, first, last):
        """Numbers `first` to `last` - 1 of the stream, as the rows they are: (last - first,)."""
        epoch, place = np.divmod(np.arange(first, last), len(self.ends))
        return np.array([self._order(e)[i] for e, i in zip(epoch, place, strict=True)], np.int64)

    def count(self, first, last):
        """The targets that count in this range of the stream of rows."""
        return int(self.counts[self.rows(first, last)].sum())

    def size(self, first, last):
        """The tokens in this range of the stream of rows, padding left aside."""
        return int(self.sizes[self.rows(first, last)].sum())

    def range(self, i):
        """(first, last) rows of batch number i."""
        last = (i + 1) * self.batch_size
        return i * self.batch_size, last if self.shuffle else min(last, len(self.ends))

    def __getitem__(self, i):
        """Batch number i, i >= 0, past the first epoch too."""
        if not self.shuffle and not 0 <= i < len(self):
            raise IndexError(i)
        return self._gather(*self._plan(*self.range(i)))

    def stream(self, ranges, ahead=4):
        """Yield the Batch of each (first, last); a thread prepares the next ones meanwhile."""
        with ThreadPoolExecutor(1) as worker:
            plans = collections.deque()
            for first, last in ranges:
                plans.append(worker.submit(self._plan, first, last))
                if len(plans) > ahead:
                    yield self._gather(*plans.popleft().result())
            while plans:
                yield self._gather(*plans.popleft().result())

    def _plan(self, first, last):
        """
        What `_gather` makes a batch of: pieces that tile its rows, and tokens to gather them from.

        Returns pieces (4, P) int64, as `split_into_pieces` has them, tokens (int16 bits of uint16)
        or None where the corpus is on the device, and how many rows and targets. Padding is a piece
        that skips all of its targets.
        """
        columns, rows = [], self.rows(first, last)
        for row in rows:
            inside = self.pieces[:, self.ends[row - 1] if row else 0 : self.ends[row]]
            room = self.row_tokens - inside[1].sum()
            columns += [inside, np.array([[0], [room], [room], [0]])]
        pieces = np.concatenate(columns, axis=1)
        tokens = None
        if self.corpus is None:
            # One token more than inputs, the last target; there is none after <|endoftext|>.
            sizes = (pieces[1] + 1 - pieces[3]) * (pieces[1] > pieces[2])
            texts = [self.data.read(at, n) for at, n in zip(pieces[0], sizes, strict=True) if n]
            pieces[0] = (np.cumsum(sizes) - sizes) * (sizes > 0)
            tokens = np.concatenate([*texts, np.zeros(1, np.uint16)]).view(np.int16)
            tokens = self._pinned(torch.from_numpy(tokens))
        return self._pinned(torch.from_numpy(pieces)), tokens, len(rows), self.counts[rows].sum()

    def _pinned(self, tensor):
        """Where a GPU is fed, the same in memory that it copies from without anyone waiting."""
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def _gather(self, pieces, tokens, rows, count):
        """The Batch of a plan, on the device."""
        pieces = pieces.to(self.device, non_blocking=True)
        tokens = self.corpus if tokens is None else tokens.to(self.device, non_blocking=True)
        size = rows * self.row_tokens
        offset, length, skip, last = pieces  # each (P,)
        at = length.cumsum(0) - length  # where each piece begins in the rows, laid end to end
        piece = torch.repeat_interleave(length, output_size=size)  # (size,) of each token
        place = torch.arange(size, device=self.device) - at[piece]
        real = (skip < length)[piece]
        place = place.where(real, 0)  # padding is <|endoftext|> at position 0, again and again
        source = offset[piece] + place
        following = tokens[source + 1].long() & 0xFFFF
        ends = last.bool()[piece] & (place == length[piece] - 1)
        targets = following.where(~ends, self.eot).where(place >= skip[piece], IGNORE_INDEX)
        shaped = (rows, self.row_tokens)
        return Batch(
            tokens=(tokens[source].long() & 0xFFFF).where(real, self.eot).view(shaped),
            targets=targets.view(shaped),
            positions=place.view(shaped),
            start=(at % self.row_tokens).int()[piece].view(shaped),
            count=int(count),
        )


def split_into_pieces(starts, block_size, stride, answers=None):
    """
    Pieces of at most block_size tokens that begin `stride` tokens apart in each story.

    starts: int64 (stories + 1,), the last the end of all. answers: int64 (stories,), the token of
    each story that is the first target to count; None: all count. Returns (4, pieces) int64: the
    offset of the piece's first token; its length; skip, the tokens whose target does not count, or
    was counted by a piece before it; and 1 if its last target is the story's <|endoftext|>, else 0.
    A piece without a target that counts is left out.
    """
    length = np.diff(starts)
    pieces = 1 + -(-np.maximum(length - block_size, 0) // stride)  # of each story
    story = np.repeat(np.arange(len(length)), pieces)
    number = np.arange(len(story)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    begin = number * stride
    end = np.minimum(begin + block_size, length[story])
    skip = np.where(number > 0, block_size - stride, 0)
    if answers is not None:
        skip = np.maximum(skip, answers[story] - 1 - begin)  # the token before it has it for target
    found = np.stack([starts[story] + begin, end - begin, skip, end == length[story]])
    return found[:, skip < end - begin]


def pack(length, order, row_tokens, window=1024):
    """
    Rows of at most row_tokens tokens: best fit decreasing among `window` pieces at a time.

    length: (pieces,) int. order: (pieces,) int, the pieces as drawn. Returns a list of rows, each
    a list of piece numbers.
    """
    rows = []
    for first in range(0, len(order), window):
        drawn = order[first : first + window]
        free = []  # (tokens free, row number), sorted: the tightest fit is found by bisection
        for piece in drawn[np.argsort(-length[drawn], kind="stable")].tolist():
            n = int(length[piece])
            at = bisect.bisect_left(free, (n, -1))
            if at == len(free):
                space, row = row_tokens, len(rows)
                rows.append([])
            else:
                space, row = free.pop(at)
            rows[row].append(piece)
            bisect.insort(free, (space - n, row))
    return rows


def split_rows_across_ranks(rows, batch_size, rank, ranks):
    """
    The rows of a step that one rank computes, as (first, last) for each of its passes.

    The ranks' shares differ by a row at most, and so do the passes of a rank, none of which is
    larger than batch_size: whatever the number of ranks, together they compute the same rows.
    """
    first, last = rows * rank // ranks, rows * (rank + 1) // ranks
    passes = -(-(last - first) // batch_size)
    edges = [first + (last - first) * i // passes for i in range(passes + 1)]
    return list(itertools.pairwise(edges))


@dataclass
class PaddedBatch:
    """
    Stories as rows, padded behind. tokens, targets: (N, T) int64, IGNORE_INDEX but where one told.
    """

    tokens: torch.Tensor
    targets: torch.Tensor

    @property
    def told(self):
        """(N, T) bool: where a token of a story, or its end, is the target."""
        return self.targets != IGNORE_INDEX


def pad_batch(prompts, stories, eot, device):
    """Rows of the prompts, lists of ids, and the generation.Story told to each."""
    lines = []
    for prompt, story in zip(prompts, stories, strict=True):
        told = story.ids + [eot] * story.ended
        whole = [*prompt, *told]
        lines.append((whole[:-1], [IGNORE_INDEX] * (len(prompt) - 1) + told))
    width = max(len(tokens) for tokens, _ in lines)
    padded = [
        (tokens + [eot] * (width - len(tokens)), targets + [IGNORE_INDEX] * (width - len(targets)))
        for tokens, targets in lines
    ]
    tokens, targets = zip(*padded, strict=True)
    return PaddedBatch(torch.tensor(tokens, device=device), torch.tensor(targets, device=device))


def open_data(settings):
    """(train Dataset, val Dataset, Tokenizer) of the token folder, or the command that makes it."""
    if not (Path(settings.dataset) / "manifest.json").exists():
        how = f"--source={settings.source} --tokenizer={settings.tokenizer}"
        how = next((word for word in sys.argv[1:] if word.endswith(".py")), how)
        if "-without-" in settings.dataset:
            how += f" --hold_out={settings.dataset.rpartition('-without-')[2]}"
        raise UserError(f"no data in '{settings.dataset}'; make it with: python prepare.py {how}")
    train, val = (Dataset(settings.dataset, split) for split in ("train", "val"))
    for data in (train, val):
        data.verify()  # a second for a gigabyte, against days of training on damaged tokens
    return train, val, Tokenizer.load(settings.dataset)


def make_loaders(settings, train, val, tokenizer, device):
    """
    (PackedDataLoader to train on, PackedDataLoader of val to evaluate on, the bytes of these that
    count) from the two Datasets, on the device. A separator counts as one byte.

    Raises UserError where only the stories of Instruct's records are to count, and there are none.
    """
    if settings.loss_on == "story" and train.answers is None:
        raise UserError(
            f"loss_on=story needs Instruct's records, which '{settings.dataset}' has none of; "
            "prepare.py --source=instruct:... makes some"
        )
    shape = (settings.block_size, settings.row_tokens, settings.batch_size, settings.seed)
    half, size, answers = max(1, settings.block_size // 2), val.bytes + val.stories, [None, None]
    if 0 < settings.eval_stories < val.stories:
        val = val.some(settings.eval_stories)
        size = int(tokenizer.sizes[val.ids].sum())
    if settings.loss_on == "story":
        answers = [train.answers, val.answers]
        size = val.answer_bytes(tokenizer.sizes) + val.stories
    return (
        PackedDataLoader(train, tokenizer.eot, *shape, device=device, answers=answers[0]),
        PackedDataLoader(
            val, tokenizer.eot, *shape, half, False, device=device, answers=answers[1]
        ),
        size,
    )
