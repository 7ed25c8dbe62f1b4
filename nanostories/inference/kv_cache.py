"""The key-value cache: what the stories being generated have computed so far, and one step of all.

    cache = BatchedKVCache(decoder, batch_size=64, max_length=512)
    cache.add_requests(prompts, seeds)          # as many as there are free slots
    tokens = cache.step(temperature=0.8)        # (n,): the next token of each
    cache.free_slots([3, 5])                    # these stories have ended

The cache never moves or grows, so on CUDA a step is one captured graph: replaying it costs no
Python.
"""

import numpy as np
import torch

from kernels.attention import attention, attention_span, windowed
from nanostories.inference.sampling import penalize, sample_token

PREFILL = 4096  # tokens of prompts computed in one pass
NO_NUMBERS = "the model's output is nan or inf: its weights are of no use"
NO_PENALTIES = {"repetition_penalty": 1.0, "no_repeat_ngram": 0}


class BatchedKVCache:
    """One slot for each story being generated: slots 0 to n - 1 are live, the others are free.

    batch_size: the number of slots. max_length: tokens of the longest story, its prompt included.
    penalties: of `sampling.penalize`."""

    def __init__(self, decoder, batch_size, max_length, **penalties):
        device, self.decoder = decoder.device, decoder
        self.batch_size, self.max_length, self.penalties = batch_size, max_length, penalties
        floats = {"device": device, "dtype": decoder.cache_dtype}
        self.kv = self._new_kv(floats)
        self.masks = self._new_masks(floats)
        # As tensors: a Python number written through an index would make a GPU wait.
        self.zero, self.minus_inf = torch.zeros((), **floats), torch.tensor(-torch.inf, **floats)
        self.last_tokens = torch.zeros(batch_size, device=device, dtype=torch.int64)  # to read next
        self.positions = torch.zeros_like(self.last_tokens)  # of these; all before are cached
        # By position the prompt's tokens and, where `penalize` needs them, those generated.
        self.history = torch.zeros(batch_size, max_length, device=device, dtype=torch.int64)
        self.uniform_noise = torch.zeros(batch_size, max_length, device=device)  # by position
        self.slots = torch.arange(batch_size, device=device)
        self.lengths = []  # cached tokens of each live slot: its position, as the host knows it
        self.last_logits = None  # float32 (n, vocab_size) of the latest step
        self.views, self.graphs, self.graph_pool = (None,), {}, None

    def add_requests(self, prompts, seeds, heal=None):
        """Start a story in each of the next free slots; equal prompts are computed once.

        prompts: lists of token ids. seeds: an int or a list of int for each; it decides every draw.
        heal: a healing.Healer, which may exchange the last tokens of prompts, in place."""
        first, device, hidden = len(self.lengths), self.slots.device, {}
        group, size = [], 0
        for prompt in dict.fromkeys(map(tuple, prompts)):
            if group and size + len(prompt) > PREFILL:
                hidden |= self._prefill(group, prompts, first)
                group, size = [], 0
            group, size = [*group, prompt], size + len(prompt)
        hidden |= self._prefill(group, prompts, first)
        if heal:
            heal(self.decoder, prompts, seeds, hidden)

        lengths = [len(prompt) - 1 for prompt in prompts]  # the last token is read by the next step
        new = slice(first, first + len(prompts))
        noise = np.zeros((len(prompts), self.max_length), np.float32)
        history = np.zeros(noise.shape, np.int64)
        for row, (length, seed) in enumerate(zip(lengths, seeds, strict=True)):
            rng = np.random.default_rng(seed)
            noise[row, length:] = rng.random(self.max_length - length, np.float32)
            history[row, : length + 1] = prompts[row]
        noise *= 1 - 2**-20  # `sample_token` says why
        self.uniform_noise[new] = torch.from_numpy(noise).to(device)
        self.history[new] = torch.from_numpy(history).to(device)
        self.last_tokens[new] = torch.tensor([prompt[-1] for prompt in prompts]).to(device)
        self.positions[new] = positions = torch.tensor(lengths).to(device)
        self._show_columns(new, positions)
        self.lengths += lengths

    def _new_kv(self, floats):
        """Keys and values of each layer, (n_layer, 2, batch, H, D, T): with the tokens of a head
        side by side, both products are row vectors times matrices, on CPUs 1.5 to 2 times as fast
        as any other layout tried."""
        config = self.decoder.config
        shape = config.n_head, config.n_embd // config.n_head, self.max_length
        return torch.zeros(config.n_layer, 2, self.batch_size, *shape, **floats)

    def _columns(self, n):
        """A view of `kv` with at least the first n tokens of each slot."""
        return self.kv[..., :n]

    def _new_masks(self, floats):
        """(causal, window) masks, (batch_size, H, max_length): added to the attention scores, they
        are 0 where a slot attends to a column, else -inf. One row for each head, as the scores have
        it. The second is for GPT-Neo's local layers; without such it is the first."""
        shape = self.batch_size, self.decoder.config.n_head, self.max_length
        causal = torch.full(shape, float("-inf"), **floats)
        return causal, causal.clone() if self.decoder.config.window else causal

    def _show_columns(self, new, positions):
        """Let the masks of new slots, a slice, show the columns before these positions."""
        columns = torch.arange(self.max_length, device=positions.device)
        distance = positions[:, None] - columns
        window = self.decoder.config.window or self.max_length
        for mask, limit in zip(self.masks, (self.max_length, window), strict=True):
            visible = (distance > 0) & (distance < limit)
            mask[new] = torch.where(visible, 0.0, float("-inf"))[:, None].to(mask.dtype)

    def _prefill(self, group, prompts, first):
        """Compute the keys and values of a group of distinct prompts, without their last tokens,
        packed into one row of N tokens; `prompts`, all of them, take slots from `first` on.
        Returns {prompt: what the last layer gives for its tokens}."""
        lengths = torch.tensor([len(prompt) - 1 for prompt in group])
        N, decoder, device = int(lengths.sum()), self.decoder, self.decoder.device
        if not N:
            return {}
        offsets = lengths.cumsum(0) - lengths
        doc_start = offsets.repeat_interleave(lengths)  # (N,)
        positions = (torch.arange(N) - doc_start).to(device)
        start = doc_start[None].int().to(device)  # (1, N)
        spans = {
            window: attention_span(windowed(start, window, (1, N), device), decoder.attn)
            for window in {0, decoder.config.window}
        }
        # Which of the packed tokens each slot gets: equal prompts get the same ones.
        row = {prompt: i for i, prompt in enumerate(group)}
        copies = [(slot, row[tuple(p)]) for slot, p in enumerate(prompts, first) if tuple(p) in row]
        slots, rows = torch.tensor(copies).unbind(1)
        slots = slots.repeat_interleave(lengths[rows]).to(device)
        source = torch.arange(N).split(lengths.tolist())
        source = torch.cat([source[i] for i in rows.tolist()]).to(device)
        columns = positions[source]

        def attend(layer, qkv):
            qkv = qkv.view(N, 3, decoder.config.n_head, -1)
            self.kv[layer][:, slots, :, :, columns] = qkv[source, 1:].to(decoder.cache_dtype)
            start, end = spans[decoder.window(layer)]
            return attention(qkv[None], start, decoder.scale, decoder.attn, end).reshape(N, -1)

        tokens = torch.tensor([token for prompt in group for token in prompt[:-1]], device=device)
        x = decoder.hidden(tokens, positions, attend)
        return dict(zip(group, x.split(lengths.tolist()), strict=True))

    def logits(self):
        """Read each live slot's last token: float32 (n, vocab_size), for the token after it."""
        logits = self._logits(*self._advance())
        check_finite(logits[:, 0])
        return logits

    def step(self, **sampling_kwargs):
        """The next token of each live slot, int64 (n,); sampling_kwargs: of `sample_token`."""
        n, S, position = self._advance()
        if self.decoder.device.type != "cuda":
            tokens = self._step(n, S, position, sampling_kwargs)
        else:
            with torch.cuda.device(self.decoder.device):  # threads begin on the first one
                tokens = self._graph_step(n, S, sampling_kwargs)
        check_finite(self.last_logits[:n, 0])  # one nan in a hidden state is nan in all its logits
        return tokens

    def _advance(self):
        """(live slots n, cached columns S they attend to, their position if all share one)."""
        positions = set(self.lengths)
        S, position = max(positions) + 1, positions.pop() if len(positions) == 1 else None
        self.lengths = [length + 1 for length in self.lengths]
        return len(self.lengths), min(_round_up(S, 32), self.max_length), position

    def _graph_step(self, n, S, sampling_kwargs):
        """`step` on CUDA, in a few sizes: each runs as it is at first, then as a captured graph."""
        live, n = n, min(1 << (n - 1).bit_length(), self.batch_size)
        S = min(_round_up(S, 128), self.max_length)
        key = (n, S, *sampling_kwargs.items())
        if key not in self.graphs:
            self.graphs[key] = None
            return self._step(n, S, None, sampling_kwargs)[:live]
        if self.graphs[key] is None:
            # One pool for all: what a graph computed is read before the next one runs.
            self.graph_pool = self.graph_pool or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            # thread_local: meanwhile another thread may free memory.
            with torch.cuda.graph(graph, self.graph_pool, capture_error_mode="thread_local"):
                tokens = self._step(n, S, None, sampling_kwargs)
            self.graphs[key] = graph, tokens, self.last_logits
        graph, tokens, self.last_logits = self.graphs[key]
        graph.replay()
        return tokens[:live]

    def _step(self, n, S, position, sampling_kwargs):
        if position is None:  # sizes are round: free slots are computed too, and stay within S
            self.positions[:n].clamp_(max=S - 1)
            noise = self.uniform_noise[self.slots[:n], self.positions[:n]]
        else:
            noise = self.uniform_noise[:n, position]
        self.last_logits = self._logits(n, S, position)
        scores = self.penalize(self.last_logits)
        self.last_tokens[:n] = tokens = sample_token(scores, noise, **sampling_kwargs)
        return tokens

    def penalize(self, scores):
        """The scores (n, V) that `logits` led to after `sampling.penalize`."""
        if self.penalties in ({}, NO_PENALTIES):
            return scores
        n, positions = len(scores), self.positions[: len(scores)]
        self.history[self.slots[:n], positions - 1] = self.last_tokens[:n]
        return penalize(scores, self.history[:n], positions, **self.penalties)

    def _logits(self, n, S, position):
        """`logits` of the first n slots over S columns; a `position` they share saves indexing."""
        decoder, slots, positions = self.decoder, self.slots[:n], self.positions[:n]
        H, scale, window = decoder.config.n_head, decoder.scale, decoder.config.window
        causal_mask, window_mask = self.masks
        if window:  # until a column leaves the window, the index is -1: the last, still hidden one
            window_mask[slots, :, (positions - window).clamp(min=-1)] = self.minus_inf
            window_mask[slots, :, positions] = self.zero
        if position is None:
            causal_mask[slots, :, positions] = self.zero
        else:
            causal_mask[:n, :, position] = 0
            new_kv = self.kv[:, :, :n, ..., position].transpose(1, 2).unbind(0)  # (n, 2, H, D) each
        layers = self._layer_views(n, S)

        def attend(layer, qkv):
            qkv = qkv.to(decoder.cache_dtype).view(n, 3, H, -1)
            if position is None:
                self.kv[layer][:, slots, :, :, positions] = qkv[:, 1:]
            else:
                new_kv[layer].copy_(qkv[:, 1:])
            keys, values, mask = layers[layer]
            q = qkv[:, 0].reshape(n * H, 1, -1)
            scores = torch.baddbmm(mask, q, keys, alpha=scale)  # (n H, 1, S)
            return torch.bmm(scores.softmax(-1), values).view(n, -1).to(decoder.dtype)

        x = decoder.hidden(self.last_tokens[:n], positions, attend)
        positions += 1
        return decoder.logits(x)

    def _layer_views(self, n, S):
        """For each layer (keys (n H, D, S), values (n H, S, D), mask (n H, 1, S)), all views."""
        if self.views[0] != (n, S):
            masks = [mask[:n, :, None, :S].flatten(0, 1) for mask in self.masks]
            keys, values = self.kv[:, :, :n, ..., :S].flatten(2, 3).unbind(1)
            masks = [masks[bool(self.decoder.window(layer))] for layer in range(len(keys))]
            self.views = (n, S), list(zip(keys, values.mT, masks, strict=True))
        return self.views[1]

    def free_slots(self, finished):
        """Free these slots; the last live ones move in. Returns each live one's old slot."""
        order = list(range(len(self.lengths)))
        for slot in sorted(finished, reverse=True):
            order[slot] = order[-1]
            order.pop()
        self.reorder(order)
        return order

    def reorder(self, order):
        """Slot i becomes what slot order[i] was; order: a list of int, repeats allowed."""
        S, device = max(self.lengths, default=0), self.slots.device
        moved = [i for i, slot in enumerate(order) if i != slot]
        self.lengths = [self.lengths[slot] for slot in order]
        if not moved:
            return
        target = torch.tensor(moved, device=device)
        source = torch.tensor([order[i] for i in moved], device=device)
        kv = self._columns(S)
        kv[:, :, target] = kv[:, :, source]
        states = {self.last_tokens, self.positions, self.uniform_noise, self.history}
        for state in states | {*self.masks}:  # one mask where there is no window
            state[target] = state[source]


def check_finite(output):
    """Raise FloatingPointError where numbers that a model computed are nan or infinite."""
    if not output.isfinite().all():
        raise FloatingPointError(NO_NUMBERS)


def _round_up(number, unit):
    return -(-number // unit) * unit
