""""""

import torch


def sample_token(logits, luck, temperature=1.0, top_k=0, top_p=1.0):
    """
    One token for each row of logits (B, V), as int64 (B,).

    luck: (B,) uniform in [0, 1 - 2^-20], decides the draw: the token at which the cumulative
    probability passes it. (Closer to 1, and its product with a sum could be rounded to that sum,
    which nothing passes.) temperature 0 takes the likeliest. top_k, then top_p (the smallest set of
    likeliest tokens that holds that probability; Holtzman et al. 2020) cut the rest off before.
    """
    if temperature < 1e-5:  # nearer to 0, a division by it would overflow
        return logits.argmax(-1)
    p = (logits / temperature).softmax(-1)
    if not top_k and top_p >= 1:
        return _draw(p, luck)
    V = p.shape[-1]
    # A few likeliest tokens nearly always hold top_p: all of them are ranked only where they do
    # not. Elsewhere than on CPUs, to look would be to wait.
    guesses = (top_k,) if top_k else (64, 512, V) if p.device.type == "cpu" else (V,)
    for guess in guesses:
        ranked, order = p.topk(min(guess, V))  # (B, guess), the likeliest first
        if guess >= V or top_k or (ranked.sum(-1) > top_p).all():
            break
    if top_p < 1:
        total = ranked.sum(-1, keepdim=True) if top_k else 1.0
        beyond = ranked.cumsum(-1) - ranked >= top_p * total  # the set was full before this token
        ranked[:, 1:].masked_fill_(beyond[:, 1:], 0)
    return order.gather(-1, _draw(ranked, luck)[:, None])[:, 0]


def _draw(p, luck):
    """The place in each row of p (B, K), not normalized, where its running sum passes `luck`."""
    running = p.cumsum(-1)
    return torch.searchsorted(running, running[:, -1:] * luck[:, None], right=True)[:, 0]
