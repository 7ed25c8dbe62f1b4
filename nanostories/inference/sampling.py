"""Sampling: the next token of each row, by temperature, top-k and top-p.

    scores = penalize(logits, history, lengths, repetition_penalty=1.2)          # (B, V)
    tokens = sample_token(scores, uniform_noise, temperature=0.8, top_p=0.95)    # (B, V) -> (B,)

The uniform numbers come from outside, one a row, so a row's token depends on nothing else in the
batch, and is the same on every device.
"""

import torch
import torch.nn.functional as F


def penalize(scores, history, lengths, repetition_penalty=1.0, no_repeat_ngram=0):
    """The scores (B, V) after transformers' two processors against repetition.

    history: (B, T) int64; in each row the first `lengths` (B,) are the tokens so far, prompt
    included. repetition_penalty divides positive scores of these tokens and multiplies negative
    ones (Keskar et al. 2019). no_repeat_ngram: the number of tokens in a sequence that may not
    occur twice; where that leaves no token at all, the row is not held to it."""
    T = history.shape[1]
    end = torch.arange(1, T + 1, device=history.device)  # the tokens up to and with each column
    # Columns that are not filled yet repeat the first token.
    history = torch.where(end <= lengths[:, None], history, history[:, :1])
    if repetition_penalty != 1:
        seen = scores.gather(1, history)
        seen = torch.where(seen < 0, seen * repetition_penalty, seen / repetition_penalty)
        scores = scores.scatter(1, history, seen)
    if 0 < (n := no_repeat_ngram) <= T:
        last = lengths[:, None] - end[: n - 1].flip(0)  # columns of the n - 1 latest tokens
        ngrams = history.unfold(1, n, 1)  # (B, T - n + 1, n)
        repeats = (ngrams[..., :-1] == history.gather(1, last.clamp(min=0))[:, None]).all(-1)
        repeats &= end[n - 1 :] <= lengths[:, None]
        banned = torch.where(repeats, ngrams[..., -1], scores.shape[1])  # V: none, a column to drop
        left = F.pad(scores, (0, 1)).scatter(1, banned, float("-inf"))[:, :-1]
        scores = torch.where((left > float("-inf")).any(-1, keepdim=True), left, scores)
    return scores


def sample_token(logits, uniform_noise, temperature=1.0, top_k=0, top_p=1.0):
    """One token for each row of logits (B, V), as int64 (B,).

    uniform_noise: (B,) in [0, 1 - 2^-20]; the token drawn is the first whose cumulative probability
    is above it. (Closer to 1, its product with a sum could be rounded to that sum, and no token
    would be drawn.) temperature 0 takes the likeliest token. top_k keeps the k likeliest tokens;
    top_p then keeps the smallest set of likeliest tokens that holds this much of the probability
    (nucleus sampling; Holtzman et al. 2020)."""
    if temperature < 1e-5:  # nearer to 0, a division by it would overflow
        return logits.argmax(-1)
    p = (logits / temperature).softmax(-1)
    if not top_k and top_p >= 1:
        return _draw(p, uniform_noise)
    V = p.shape[-1]
    # A few likeliest tokens nearly always hold top_p: all V are sorted only where they do not. On a
    # GPU, looking at the sum would mean waiting for it.
    sizes = (top_k,) if top_k else (64, 512, V) if p.device.type == "cpu" else (V,)
    for k in sizes:
        sorted_p, order = p.topk(min(k, V))  # (B, k), the likeliest first
        if k >= V or top_k or (sorted_p.sum(-1) > top_p).all():
            break
    if top_p < 1:
        total = sorted_p.sum(-1, keepdim=True) if top_k else 1.0
        removed = sorted_p.cumsum(-1) - sorted_p >= top_p * total  # those before it hold top_p
        sorted_p[:, 1:].masked_fill_(removed[:, 1:], 0)
    return order.gather(-1, _draw(sorted_p, uniform_noise)[:, None])[:, 0]


def _draw(p, uniform_noise):
    """The first index in each row of p (B, K), not normalized, whose cumulative sum is above it."""
    cumulative = p.cumsum(-1)
    threshold = cumulative[:, -1:] * uniform_noise[:, None]
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0].clamp(max=p.shape[1] - 1)
