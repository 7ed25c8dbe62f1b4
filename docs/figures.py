"""The pictures of the pages in docs/, drawn from the project's own code.

    TRITON_INTERPRET=1 python -m docs.figures        # all of them, in seconds, on a Linux CPU

Triton's interpreter runs the attention kernels on the CPU. Which blocks a kernel loads, and in
which order, is recorded while it runs.
"""

import functools
import itertools
import statistics
from unittest import mock

import numpy as np
import torch

import train
from configs import CHOICES, ROOT, UserError, run
from eval import reward_frontier
from kernels import attention, attention_backward, backend, tile
from model import GPT, GPTConfig, rotation
from nanostories.dataset import storybook, tokenizer
from nanostories.dataset.packing import PackedDataLoader
from nanostories.dataset.shards import InMemoryDataset
from nanostories.inference import generate
from nanostories.inference.decoder import Decoder
from nanostories.plotting import plot_to
from nanostories.rl import policy_gradient
from nanostories.text.words import ngrams, words_and_marks
from nanostories.training.schedule import decay_progress, get_lr

T, D = 512, 16  # tokens and head size of the pictures of attention


@functools.cache
def packed_batch():
    """(Batch of four rows, Tokenizer) of storybook's stories, as train.py packs them."""
    texts = [story.text for story in storybook.stories(400, seed=1)]
    bpe = tokenizer.build("bpe", 1024, texts)
    ids, lengths = bpe.encode_stories(texts)
    data = InMemoryDataset(ids, np.cumsum([0, *lengths]))
    return PackedDataLoader(data, bpe.eot, 256, 2 * T, batch_size=4, seed=1)[0], bpe


def visited_blocks(start):
    """(forward, keys, queries): the blocks that the kernels load for T tokens and one head.

    start: (1, T) int32 or None. forward: [(query block, its key blocks), ...], in order; of the
    backward's sweeps keys: [(key block, its query blocks), ...], queries: as forward. A block goes
    by the number of its first row."""
    qkv = torch.randn(1, T, 3, 1, D).bfloat16()
    load, store, sweeps = tile.load, tile.store, [[]]

    def recording_load(matrix, rows, *rest):
        sweeps[-1].append(int(rows.handle.data[0]))
        return load(matrix, rows, *rest)

    def recording_store(*args):  # a sweep ends by storing its sums
        sweeps.append([])
        store(*args)

    span, scale = attention.attention_span(start, "triton"), D**-0.5
    with mock.patch.multiple(tile, load=recording_load, store=recording_store):
        out, lse = attention.flash_attention(qkv, *span, scale)
        forward = [(query, keys[::2]) for query, *keys in filter(None, sweeps)]
        sweeps[:] = [[]]
        # `_delta` has no sweep: it is left out, and the gradients are of no use.
        changes = {"_delta": mock.MagicMock(), "one_pass_programs": lambda *_: 0}
        with mock.patch.multiple(attention_backward, **changes), np.errstate(all="ignore"):
            attention.flash_attention_backward(out, qkv, out, lse, *span, scale)
    # A sweep loads two tiles of its own block, then two for each step.
    both = [(own, others[::2]) for own, _, *others in filter(None, sweeps)]
    return forward, both[0::2], both[1::2]


def draw_blocks(axes, start, blocks, title):
    """Which keys each query attends to, in blue; blocks: (key, query, width, height), outlined."""
    from matplotlib.colors import ListedColormap  # writes to the user's home when it is imported
    from matplotlib.patches import Rectangle

    start = torch.zeros(1, T, dtype=torch.int32) if start is None else start
    colors, ticks = ListedColormap(["white", "#b7cbe8"]), range(0, T + 1, 128)
    axes.imshow(attention.attention_mask(start)[0, 0], colors, interpolation="nearest")
    axes.set(xlabel="key", ylabel="query", xlim=(0, T), ylim=(T, 0), xticks=ticks, yticks=ticks)
    axes.set_title(title, fontsize=10)
    for number, (key, query, width, height) in enumerate(blocks, 1):
        axes.add_patch(Rectangle((key, query), width, height, fill=False, ec="#c44e52", lw=1.5))
        axes.text(key + width / 2, query + height / 2, number, ha="center", va="center", size=9)


def attention_blocks(path):
    """Which blocks of the scores the forward pass computes, numbered in their order."""
    block, step, *_ = tile.tiles(D, torch.bfloat16, False, "cpu").values()
    with plot_to(path, 1, 2, size=(9, 4.6)) as (_, axes):
        for panel, start in zip(axes, (None, packed_batch()[0].doc_start[:1, :T]), strict=True):
            programs = visited_blocks(start)[0]
            blocks = [(key, query, step, block) for query, keys in programs for key in keys]
            stories = "one story" if start is None else f"{len(start.unique())} stories"
            of_all = f"{len(blocks)} of {T**2 // block // step} blocks"
            draw_blocks(panel, start, blocks, f"{stories}: {of_all} are computed")


def backward_sweeps(path):
    """The two sweeps of one program of the backward pass, numbered in their order."""
    block, step, *_ = tile.tiles(D, torch.bfloat16, True, "cpu").values()
    start = packed_batch()[0].doc_start[:1, :T]
    (first, queries), (_, keys) = (sweep[3] for sweep in visited_blocks(start)[1:])
    with plot_to(path, 1, 2, size=(9, 4.6)) as (_, (left, right)):
        blocks = [(first, query, block, step) for query in queries]
        draw_blocks(left, start, blocks, f"first sweep: dK and dV of keys from {first} on")
        blocks = [(key, first, step, block) for key in keys]
        draw_blocks(right, start, blocks, f"second sweep: dQ of queries from {first} on")


def running_maximum(path, step=64):
    """One query's softmax in one sweep over its keys: m and m + log z after each block."""
    qkv = torch.randn(1, T, 3, 1, D, generator=torch.Generator().manual_seed(5))
    scores = attention.attention_scores(qkv, scale=0.6)[0, 0, -1]
    m, z, lines = torch.tensor(-torch.inf), torch.tensor(0.0), []
    for block in scores.split(step):
        new_m = torch.maximum(m, block.max())
        z, m = z * torch.exp(m - new_m) + torch.exp(block - new_m).sum(), new_m
        lines.append([m, m + z.log()])
    with plot_to(path, size=(9, 4)) as (_, axes):
        axes.plot(scores, ".", color="gray", label="score of each key")
        edges = np.arange(0, T + 1, step)
        for i, name in enumerate(("running maximum m", "m + log z")):
            axes.stairs([line[i] for line in lines], edges, baseline=None, label=name, lw=2)
        axes.set(xlabel="key", xticks=edges, xlim=(0, T), ylabel="score")
        axes.legend(loc="lower right", ncols=3)


def packed_rows(path):
    """A packed batch: the position of each token, and the four tensors at the first seam."""
    batch, bpe = packed_batch()
    seam = int(batch.doc_start[0].unique()[1])
    with plot_to(path, 2, 1, size=(9, 5.5)) as (figure, (top, bottom)):
        image = top.imshow(batch.positions, "viridis", aspect="auto", interpolation="nearest")
        figure.colorbar(image, label="position")
        top.set(yticks=range(4), xlabel="column", ylabel="row")
        names, columns = ("tokens", "targets", "positions", "doc_start"), range(seam - 5, seam + 5)
        rows = [getattr(batch, name)[0, columns].tolist() for name in names]
        rows[:2] = [["<eot>" if i == bpe.eot else bpe.decode([i]) for i in row] for row in rows[:2]]
        where = {"rowLabels": ["column", *names], "loc": "center", "cellLoc": "center"}
        bottom.table([columns, *rows], **where).scale(1, 1.6)
        bottom.set_axis_off()


def rotary_positions(path, head_size=96):
    """How far each pair of channels has turned, and what that does to a query that meets itself."""
    distances = torch.arange(61)
    cos, _ = rotation(distances, head_size)
    cos = cos.squeeze()  # (distances, D / 2)
    with plot_to(path, columns=2, size=(10, 3.5)) as (_, (left, right)):
        for pair in (0, 8, 16, 24, 40):
            left.plot(distances, cos[:, pair], label=f"channels {pair}, {pair + head_size // 2}")
        left.set(xlabel="distance of two tokens", ylabel="cosine of the angle between them")
        left.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, fontsize=8)
        right.plot(distances, cos.mean(-1))
        right.set(xlabel="distance of query and key", ylim=(-0.1, 1.05),
                  ylabel="product of a vector of ones\nwith itself, divided by D")  # fmt: skip


def learning_rate(path):
    """The schedules of nanostories/training/schedule.py, over 1,000 steps."""
    with plot_to(path, size=(9, 3.5)) as (_, axes):
        for name in CHOICES["schedule"]:
            settings = train.Settings(schedule=name, lr_decay_iters=1000)
            rates = [get_lr(settings, i, decay_progress(settings, i, 0)) for i in range(1001)]
            axes.plot(rates, label=f"--schedule={name}")
        axes.set(xlabel="step", ylabel="learning rate")
        axes.legend()


def policy_gradient_advantages(path):
    """The advantages of eight completions by each method, for three groups of rewards."""
    rewards = torch.tensor([0.02, 0.05, 0.10, 0.15, 0.25, 0.30, 0.45, 0.60])
    groups = {
        "rewards of 0.02 to 0.60": rewards,
        "the same plus 0.5": rewards + 0.5,
        "a tenth of their differences": 0.24 + (rewards - rewards.mean()) / 10,
    }
    n, width = len(rewards), 0.2
    with plot_to(path, 1, len(groups), size=(12, 3.8), dpi=100) as (_, panels):
        for axes, (title, group) in zip(panels, groups.items(), strict=True):
            for i, method in enumerate(policy_gradient.METHODS):
                advantages = policy_gradient.advantages(method, group, torch.zeros(n), 0.0, n)
                axes.bar(np.arange(n) + (i - 1.5) * width, advantages, width, label=method)
            axes.axhline(0, color="black", lw=0.8)
            axes.set_xticks(range(n), [f"{reward:.3g}" for reward in group], fontsize=8)
            axes.set(title=title, xlabel="reward of the completion", ylim=(-1.4, 2.1))
        panels[0].set_ylabel("advantage")
        panels[0].legend(loc="upper left")


def kl_optimum(path):
    """The optimum of reward less KL penalty: which stories it makes likely, and what they cost."""
    bell = statistics.NormalDist(0.2, 0.12)
    rewards = np.array([bell.inv_cdf((i + 0.5) / 4096) for i in range(4096)])
    with plot_to(path, 1, 2, size=(11, 4), dpi=100) as (_, (left, right)):
        for beta in (np.inf, 0.3, 0.15, 0.08):
            weights = np.exp((rewards - rewards.max()) / beta)
            label = "the reference" if beta == np.inf else f"the optimum, beta = {beta:g}"
            bins, weights = np.linspace(-0.2, 0.56, 39), weights / weights.sum()
            left.hist(rewards, bins, weights=weights, histtype="step", label=label)
        left.set(xlabel="reward of the story", ylabel="probability")
        left.set_title("ref(y) exp(R(y) / beta) / Z")
        left.legend(loc="upper left", fontsize=8)
        optimum = [reward_frontier.optimum(rewards, beta) for beta in reward_frontier.BETAS]
        optimum = [point for point in optimum if point]
        right.plot(*zip(*optimum, strict=True), ":", color="black", label="the optimum")
        best = [reward_frontier.best_of_n(rewards, n) for n in reward_frontier.NS]
        right.plot(*zip(*best, strict=True), "--o", ms=3, label="best of n")
        for n, point in zip(reward_frontier.NS, best, strict=True):
            right.annotate(n, point, fontsize=8, xytext=(3, -11), textcoords="offset points")
        right.set(xlabel="KL from the reference, nats", ylabel="expected reward")
        right.set_title("what a nat buys")
        right.legend(loc="lower right")


def kv_cache(path, tokens=12):
    """What each step computes without and with a key-value cache; ten stories in four slots.

    The slots are those of generate.stream, with random weights: its stories end by chance."""
    torch.manual_seed(0)
    decoder = Decoder(GPT(GPTConfig(vocab_size=16, block_size=32, n_layer=1, n_head=1, n_embd=16)))
    prompts, seeds = [[0, 1]] * 10, generate.request_seeds(3, 10)
    stream = generate.stream(decoder, prompts, 0, seeds, batch_size=4)
    steps = [[story for story, *_ in step] for step in stream]
    with plot_to(path, 1, 3, size=(12, 3.6), dpi=100) as (_, (*both, slots)):
        for axes, cached in zip(both, (False, True), strict=True):
            for t in range(tokens):
                axes.broken_barh([(0, t + 1)], (t + 0.1, 0.8), color="0.85")
                new = (t, 1) if cached else (0, t + 1)
                axes.broken_barh([new], (t + 0.1, 0.8), color="C1")
            passes = tokens if cached else tokens * (tokens + 1) // 2
            name = "with" if cached else "without"
            axes.set(title=f"{name} a cache: {passes} passes of a token", ylim=(tokens, 0))
            axes.set(xlabel="token", ylabel="step")
        both[0].plot([], "s", color="C1", label="computed in this step")
        both[0].plot([], "s", color="0.85", label="read from the cache")
        both[0].legend(loc="upper right")
        for slot in range(4):
            row = [step[slot] if slot < len(step) else None for step in steps]
            for story, group in itertools.groupby(enumerate(row), lambda pair: pair[1]):
                at = [t for t, _ in group]
                if story is not None:
                    slots.broken_barh([(at[0], len(at))], (slot + 0.1, 0.8), color=f"C{story}")
                    if len(at) > 1:  # room for its number
                        slots.text(at[0] + 0.3, slot + 0.5, story, color="white", va="center")
        slots.set(title="10 stories in 4 slots", xlabel="step", ylabel="slot", ylim=(4, 0))
        slots.set_yticks(np.arange(4) + 0.5, range(4))


def posting_lists(path, count=20_000):
    """The posting lists of a story's bigrams, and the most that an unmet story can still match."""
    texts = (story.text for story in storybook.stories(count + 1, seed=3))
    text, *stories = (dict.fromkeys(ngrams(words_and_marks(text), 2)) for text in texts)
    lists = sorted(([i for i, one in enumerate(stories) if pair in one] for pair in text), key=len)
    best = np.bincount(np.concatenate(lists)).max()
    left = len(lists) - 1 - np.arange(len(lists))  # bigrams after each list
    added = left >= best  # before these, a story not met yet could still win
    sizes = np.array([len(one) for one in lists])
    with plot_to(path, size=(10, 3.8), dpi=110) as (_, axes):
        axes.bar(np.flatnonzero(added), sizes[added], label="lists that are added up")
        label = "lists that are looked up for the stories that can win"
        axes.bar(np.flatnonzero(~added), sizes[~added], color="0.75", label=label)
        axes.set(xlabel="posting list, the shortest first", ylabel="stories in the list")
        right = axes.twinx()
        right.plot(left, color="C1", label="bigrams left: the most that an unmet story can match")
        right.axhline(best, color="C3", ls="--", label=f"best match: {best} of {len(text)} bigrams")
        right.set(ylabel="bigrams", ylim=(0, None))
        right.legend(handles=[*axes.containers, *right.lines], loc=(0.02, 0.12))


def main():
    if not backend.interpreted():
        raise UserError("Triton's interpreter is needed: TRITON_INTERPRET=1 python -m docs.figures")
    pictures = (attention_blocks, backward_sweeps, running_maximum, packed_rows, rotary_positions,
                learning_rate, policy_gradient_advantages, kl_optimum, kv_cache,
                posting_lists)  # fmt: skip
    for picture in pictures:
        picture(ROOT / "docs" / "images" / f"{picture.__name__}.png")


if __name__ == "__main__":
    run(main)
