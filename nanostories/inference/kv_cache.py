""""""

import numpy as np
import torch

from kernels.attention import attention, span_ends, windowed
from nanostories.inference.sampling import sample_token

PREFILL = 4096  # tokens of prompts computed in one pass


class BatchedKVCache:
    """
    Stories being told, a row each: rows 0 to n - 1 are live, the others are free.

    count: rows there are. tokens: how long a story may get at the most, its prompt included.
    """

    def __init__(self, decoder, count, tokens):
        config, self.decoder = decoder.config, decoder
        self.count, self.tokens = count, tokens
        H, D = config.n_head, config.n_embd // config.n_head
        where = {"device": decoder.device, "dtype": decoder.cache_dtype}
        # Keys and values of a layer, the tokens of a head side by side: so both products with them
        # are row vectors times matrices, on CPUs 1.5 to 2 times as fast as anything else tried.
        self.kv = torch.zeros(config.n_layer, 2, count, H, D, tokens, **where)
        # Added to the scores: 0 where a row sees a column of the cache, else -inf. A head's row
        # each, as the product of queries and keys has it.
        self.wide = torch.full((count, H, tokens), float("-inf"), **where)
        self.near = self.wide.clone() if config.window else self.wide
        # As tensors: a Python number written through an index would make a GPU wait.
        self.seen, self.unseen = torch.zeros((), **where), torch.full((), float("-inf"), **where)
        counts = {"device": decoder.device, "dtype": torch.int64}
        self.last = torch.zeros(count, **counts)  # the token a row reads next
        self.at = torch.zeros(count, **counts)  # its place in the story; those before are cached
        self.luck = torch.zeros(count, tokens, device=decoder.device)  # for the token after each
        self.row = torch.arange(count, device=decoder.device)
        self.places = []  # `at` of the live rows, as the host knows it
        self.views, self.graphs, self.pool = (None,), {}, None

    def admit(self, prompts, seeds):
        """
        Let stories begin in the rows after the live ones; equal prompts are computed once.

        prompts: lists of int, each from its first token on. seeds: what decides their draws, each
        an int or a list of int.
        """
        first = len(self.places)
        places = [len(prompt) - 1 for prompt in prompts]
        new = slice(first, first + len(prompts))
        luck = np.zeros((len(prompts), self.tokens), np.float32)
        for line, at, seed in zip(luck, places, seeds, strict=True):
            line[at:] = np.random.default_rng(seed).random(self.tokens - at, np.float32)
        luck *= 1 - 2**-20
        self.luck[new] = torch.from_numpy(luck).to(self.luck.device)
        self.last[new] = torch.tensor([prompt[-1] for prompt in prompts]).to(self.last.device)
        self.at[new] = at = torch.tensor(places).to(self.at.device)
        past = at[:, None] - torch.arange(self.tokens, device=at.device)  # how far back a column is
        for mask, window in ((self.wide, 0), (self.near, self.decoder.config.window)):
            seen = (past > 0) & (past < window) if window else past > 0
            mask[new] = torch.where(seen, 0.0, float("-inf"))[:, None].to(mask.dtype)
        self.places += places

        group, size = [], 0
        for prompt in dict.fromkeys(map(tuple, prompts)):
            if group and size + len(prompt) > PREFILL:
                self._prefill(group, prompts, first)
                group, size = [], 0
            group, size = [*group, prompt], size + len(prompt)
        self._prefill(group, prompts, first)

    def _prefill(self, group, prompts, first):
        """Keys and values of distinct prompts but for their last tokens, packed in one row."""
        lengths = [len(prompt) - 1 for prompt in group]
        if not any(lengths):
            return
        begins = dict(zip(group, np.cumsum([0, *lengths]), strict=False))
        N, decoder = sum(lengths), self.decoder
        device = decoder.device
        start = np.repeat(list(begins.values()), lengths)
        positions = torch.from_numpy(np.arange(N) - start).to(device)
        start = torch.from_numpy(start[None].astype(np.int32)).to(device)  # (1, N)
        near = start
        if decoder.config.window:
            near = windowed(start, decoder.config.window, (1, N), device)
        bands = [(s, span_ends(s) if decoder.attn == "triton" else None) for s in (start, near)]
        # Which row and column of the cache takes which of the packed tokens.
        mine = [(first + i, begins[tuple(p)], len(p) - 1) for i, p in enumerate(prompts)
                if tuple(p) in begins]  # fmt: skip
        n = [count for *_, count in mine]
        rows = torch.from_numpy(np.repeat([row for row, *_ in mine], n)).to(device)
        columns = np.concatenate([np.arange(count) for count in n])
        source = torch.from_numpy(columns + np.repeat([at for _, at, _ in mine], n)).to(device)
        columns = torch.from_numpy(columns).to(device)

        def attend(i, qkv):
            qkv = qkv.view(N, 3, decoder.config.n_head, -1)
            self.kv[i][:, rows, :, :, columns] = qkv[source, 1:].to(decoder.cache_dtype)
            start, end = bands[bool(decoder.window(i))]
            return attention(qkv[None], start, decoder.scale, decoder.attn, end).reshape(N, -1)

        tokens = torch.tensor([i for prompt in group for i in prompt[:-1]], device=device)
        decoder.hidden(tokens, positions, attend)

    def logits(self):
        """Let each live row read its last token: float32 (n, vocab_size) for the one after it."""
        return self._logits(*self._advance())

    def step(self, **how):
        """The next token of each live row, chosen as `sample_token` does: int64 (n,)."""
        n, S, place = self._advance()
        if self.decoder.device.type != "cuda":
            return self._step(n, S, place, how)
        with torch.cuda.device(self.decoder.device):  # threads begin on the first one
            return self._graph_step(n, S, how)

    def _graph_step(self, n, S, how):
        """`step` on CUDA: few sizes, each run as it is at first, then captured, then replayed."""
        n, S, live = min(1 << (n - 1).bit_length(), self.count), min(_up(S, 128), self.tokens), n
        key = (n, S, *how.items())
        if key not in self.graphs:
            self.graphs[key] = None
            return self._step(n, S, None, how)[:live]
        if self.graphs[key] is None:
            # One pool for all: what a graph computed is read before the next one runs.
            self.pool = self.pool or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            # thread_local: meanwhile another thread may free memory.
            with torch.cuda.graph(graph, self.pool, capture_error_mode="thread_local"):
                chosen = self._step(n, S, None, how)
            self.graphs[key] = graph, chosen, self.shown
        graph, chosen, self.shown = self.graphs[key]
        graph.replay()
        return chosen[:live]

    def _advance(self):
        """(live rows, columns of the cache they see next, their place where all have the same)."""
        places = set(self.places)
        S, place = max(places) + 1, places.pop() if len(places) == 1 else None
        self.places = [at + 1 for at in self.places]
        return len(self.places), min(_up(S, 32), self.tokens), place

    def _step(self, n, S, place, how):
        if place is None:  # free rows are computed too where sizes are round: they stay inside
            self.at[:n].clamp_(max=S - 1)
        luck = self.luck[self.row[:n], self.at[:n]] if place is None else self.luck[:n, place]
        self.shown = self._logits(n, S, place)
        self.last[:n] = chosen = sample_token(self.shown, luck, **how)
        return chosen

    def _logits(self, n, S, place):
        """`logits` of the first n rows over S columns. place: see `_advance`; it saves indexing."""
        decoder, row, at = self.decoder, self.row[:n], self.at[:n]
        H, scale, window = decoder.config.n_head, decoder.scale, decoder.config.window
        if window:  # before the column is too far back, it is -1: the last one, seen by none yet
            self.near[row, :, (at - window).clamp(min=-1)] = self.unseen
            self.near[row, :, at] = self.seen
        if place is None:
            self.wide[row, :, at] = self.seen
        else:
            self.wide[:n, :, place] = 0
            spots = self.kv[:, :, :n, ..., place].transpose(1, 2).unbind(0)  # (n, 2, H, D) each
        cache = self._cache(n, S)

        def attend(i, qkv):
            qkv = qkv.to(decoder.cache_dtype).view(n, 3, H, -1)
            if place is None:
                self.kv[i][:, row, :, :, at] = qkv[:, 1:]
            else:
                spots[i].copy_(qkv[:, 1:])
            keys, values, mask = cache[i]
            q = qkv[:, 0].reshape(n * H, 1, -1)
            scores = torch.baddbmm(mask, q, keys, alpha=scale)  # (n H, 1, S)
            return torch.bmm(scores.softmax(-1), values).view(n, -1).to(decoder.dtype)

        x = decoder.hidden(self.last[:n], at, attend)
        at += 1
        return decoder.logits(x)

    def _cache(self, n, S):
        """Of each layer (keys (n H, D, S), values (n H, S, D), mask (n H, 1, S)), views."""
        if self.views[0] != (n, S):
            masks = [mask[:n, :, None, :S].flatten(0, 1) for mask in (self.wide, self.near)]
            keys, values = self.kv[:, :, :n, ..., :S].flatten(2, 3).unbind(1)
            seen = [masks[bool(self.decoder.window(i))] for i in range(len(keys))]
            self.views = (n, S), list(zip(keys, values.mT, seen, strict=True))
        return self.views[1]

    def release(self, done):
        """Free these rows; the last take their places. Returns which row each live one was."""
        order = list(range(len(self.places)))
        for row in sorted(done, reverse=True):
            order[row] = order[-1]
            order.pop()
        self.keep(order)
        return order

    def keep(self, order):
        """Row i becomes what row order[i] was; order: a list of int, repeats allowed."""
        S, device = max(self.places, default=0), self.row.device
        moved = [i for i, row in enumerate(order) if i != row]
        self.places = [self.places[row] for row in order]
        if not moved:
            return
        target = torch.tensor(moved, device=device)
        source = torch.tensor([order[i] for i in moved], device=device)
        self.kv[:, :, target, ..., :S] = self.kv[:, :, source, ..., :S]
        for facts in {self.last, self.at, self.luck, self.wide, self.near}:
            facts[target] = facts[source]


def _up(number, unit):
    return -(-number // unit) * unit
