"""Packed batches: every token once, in whole stories, the same for the same (seed, number)."""

from dataclasses import dataclass

import numpy as np
import pytest
import tiktoken
import torch
from beside import beside

from configs import UserError
from kernels.cross_entropy import IGNORE_INDEX
from nanostories.dataset.packing import PackedDataLoader, pack, split_into_chunks
from nanostories.dataset.shards import Dataset

EOT = 60_000


@dataclass
class Stories:
    """Made-up stories whose token number i (globally) is i, so that a batch shows what it read."""

    lengths: list

    def __post_init__(self):
        self.starts = np.cumsum([0, *self.lengths])

    def read(self, offset, length):
        return np.arange(offset, offset + length).astype(np.uint16)


def lengths(n, longest, seed=0):
    rng = np.random.default_rng(seed)
    return np.clip(rng.lognormal(5.15, 0.45, n).astype(int), 2, longest).tolist()


def epoch_targets(batches):
    """All (token, position, target) of one epoch where a target counts, as three arrays."""
    epoch = [batches[i] for i in range(len(batches))]
    mask = [b.targets != IGNORE_INDEX for b in epoch]
    return [
        torch.cat([getattr(b, name)[m] for b, m in zip(epoch, mask, strict=True)]).numpy()
        for name in ("tokens", "positions", "targets")
    ]


@pytest.mark.parametrize("stride", [0, 32, 50])
def test_an_epoch_counts_every_token_once(stride):
    data = Stories([1, 5, 64, 65, 66, 200, 3, 129, 97])
    batches = PackedDataLoader(data, EOT, 64, 128, 1, seed=3, stride=stride, shuffle=not stride)
    tokens, positions, targets = epoch_targets(batches)
    order = np.argsort(tokens)
    assert tokens[order].tolist() == list(range(data.starts[-1]))
    # The target is the token that follows; of a story's last, <|endoftext|>.
    expected = np.arange(1, data.starts[-1] + 1)
    expected[data.starts[1:] - 1] = EOT
    assert targets[order].tolist() == expected.tolist()
    in_story = np.concatenate([np.arange(n) for n in data.lengths])
    if not stride:  # cut at block_size, each chunk from position 0
        assert positions[order].tolist() == (in_story % 64).tolist()
    else:  # as much context as the window allows: at least block_size - stride
        assert (positions[order] >= np.minimum(in_story, 64 - stride)).all()


@pytest.mark.parametrize("stride", [0, 32])
def test_only_answers_count(stride):
    data = Stories([5, 64, 70, 200, 90, 3])
    answers = np.array([2, 1, 66, 130, 89, 3])  # the last has none but its <|endoftext|>
    batches = PackedDataLoader(
        data, EOT, 64, 128, 1, seed=3, stride=stride, shuffle=not stride, answers=answers
    )
    tokens, _, targets = epoch_targets(batches)
    expected = [
        (i, i + 1 if i + 1 < end else EOT)
        for start, end, answer in zip(data.starts, data.starts[1:], answers, strict=False)
        for i in range(start + answer - 1, end)
    ]
    assert sorted(zip(tokens.tolist(), targets.tolist(), strict=True)) == expected
    assert batches.row_targets.sum() == len(expected)
    assert sum(batches[i].target_count for i in range(len(batches))) == len(expected)


def test_chunks_without_an_answer_are_left_out():
    starts, answers = np.array([0, 200]), np.array([150])
    assert split_into_chunks(starts, 64, 64, answers).tolist() == [
        [128, 192],
        [64, 8],
        [21, 0],
        [0, 1],
    ]


def test_stories_do_not_mix_and_padding_is_apart():
    data = Stories(lengths(200, 300))
    batches = PackedDataLoader(data, EOT, 128, 256, 4, seed=0)
    story_of = np.repeat(np.arange(200), data.lengths)
    for i in range(len(batches)):
        b = batches[i]
        start, column = b.doc_start.long(), torch.arange(256)
        assert ((start >= 0) & (start <= column)).all() and (start.diff(dim=1) >= 0).all()
        assert torch.equal(
            b.positions[b.targets != IGNORE_INDEX], (column - start)[b.targets != IGNORE_INDEX]
        )
        stories = torch.from_numpy(story_of)[b.tokens.clamp(max=len(story_of) - 1)]
        counted = b.targets != IGNORE_INDEX
        assert torch.equal(stories[counted], stories.gather(1, start)[counted])
        # Nothing that counts lies at or after the padding's start.
        first_pad = torch.where(counted, column, -1).amax(1) + 1
        assert (start.gather(1, first_pad[:, None].clamp(max=255))[first_pad < 256] ==
                first_pad[first_pad < 256][:, None]).all()  # fmt: skip


@pytest.mark.parametrize("block_size, max_padding", [(512, 0.03), (256, 0.03)])
def test_padding_is_under_three_percent(block_size, max_padding):
    data = Stories(lengths(20_000, 1200))
    batches = PackedDataLoader(data, EOT, block_size, 1024, 4, seed=0)
    assert batches.padding < max_padding


@pytest.mark.parametrize("block_size", [256, 512])
def test_real_stories_pad_under_three_percent(block_size, gpt2_files):
    """TinyStories' own lengths, in GPT-2's tokens."""
    text = beside("data", "tinystories", "valid_v2.txt").read_text(encoding="utf-8")
    encoded = tiktoken.get_encoding("gpt2").encode_ordinary_batch(text.split("<|endoftext|>"))
    batches = PackedDataLoader(
        Stories([1 + len(ids) for ids in encoded]), EOT, block_size, 1024, 4, seed=0
    )
    assert 0 < batches.padding < 0.03


def test_batches_are_a_pure_function_of_seed_and_number():
    data = Stories(lengths(300, 200))
    one, other = (PackedDataLoader(data, EOT, 128, 256, 3, seed=5) for _ in range(2))
    far = 2 * len(one) + 3  # in the third epoch
    other[far], other[0]  # reading elsewhere leaves no trace
    for i in (0, 7, far):
        assert torch.equal(one[i].tokens, other[i].tokens)
    assert not torch.equal(
        one[0].tokens, PackedDataLoader(data, EOT, 128, 256, 3, seed=6)[0].tokens
    )
    first, second = (
        {int(t) for i in range(n, n + 20) for t in one[i].tokens[:, 0]} for n in (0, 100)
    )
    assert first != second


def test_every_epoch_has_an_order_of_its_own():
    batches = PackedDataLoader(Stories(lengths(300, 200)), EOT, 128, 256, 1, seed=5)
    n = len(batches)
    first, second = (
        [int(batches[i].tokens[0, 0]) for i in range(start, start + n)] for start in (0, n)
    )
    assert sorted(first) == sorted(second) and first != second


def test_a_larger_batch_is_the_smaller_ones_together():
    """What data-parallel ranks and accumulation rely on."""
    data = Stories(lengths(300, 200))
    small, large = (PackedDataLoader(data, EOT, 128, 256, size, seed=5) for size in (2, 6))
    assert torch.equal(large[3].tokens, torch.cat([small[i].tokens for i in (9, 10, 11)]))


def test_pack_fits_and_keeps_every_chunk():
    length = np.array(lengths(3000, 256))
    order = np.random.default_rng(0).permutation(3000)
    rows = pack(length, order, 256)
    assert sorted(chunk for row in rows for chunk in row) == list(range(3000))
    assert max(sum(length[chunk] for chunk in row) for row in rows) <= 256


def test_cut_example():
    offset, length, skip, last = split_into_chunks(np.array([0, 10, 14]), 4, 2)
    assert offset.tolist() == [0, 2, 4, 6, 10]
    assert length.tolist() == [4, 4, 4, 4, 4]
    assert skip.tolist() == [0, 2, 2, 2, 0]
    assert last.tolist() == [False, False, False, True, True]


def test_rows_shorter_than_a_chunk_are_refused():
    with pytest.raises(UserError, match="row_tokens 64 is less than block_size 128"):
        PackedDataLoader(Stories([10]), EOT, 128, 64, 1, seed=0)


def test_a_stream_gives_the_requested_rows_in_order():
    batches = PackedDataLoader(Stories(lengths(300, 200)), EOT, 128, 256, 2, seed=5)
    ranges = [(0, 2), (7, 8), (300, 303), *((i, i + 1) for i in range(9))]
    streamed = list(batches.stream(iter(ranges)))
    for (first, last), batch in zip(ranges, streamed, strict=True):
        rows = [
            PackedDataLoader(batches.data, EOT, 128, 256, 1, seed=5)[i] for i in range(first, last)
        ]
        assert torch.equal(batch.tokens, torch.cat([row.tokens for row in rows]))
        assert torch.equal(batch.targets, torch.cat([row.targets for row in rows]))
        assert (
            batch.target_count
            == int((batch.targets != IGNORE_INDEX).sum())
            == batches.target_count(first, last)
        )


def test_a_stream_passes_on_what_goes_wrong_in_its_thread():
    data = Stories(lengths(50, 200))
    batches = PackedDataLoader(data, EOT, 128, 256, 2, seed=5)
    data.read = None
    with pytest.raises(TypeError):
        next(batches.stream([(0, 2)]))


def test_a_corpus_on_the_device_gives_the_same_batches(data):
    """What a GPU does, here on the CPU: gather from all tokens, not from those a batch needs."""
    tokens = Dataset(data, "train")
    there, here = (PackedDataLoader(tokens, 511, 64, 128, 3, seed=5) for _ in range(2))
    there.device_tokens = there._load_to_device()
    assert there.device_tokens.dtype == torch.int16
    last = len(there) - 1  # among them the row with the last story of all
    for i in (0, 1, last, last + 1):
        for name in ("tokens", "targets", "positions", "doc_start"):
            assert torch.equal(getattr(there[i], name), getattr(here[i], name)), name
