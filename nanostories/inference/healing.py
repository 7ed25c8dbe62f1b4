"""Token healing: a prompt that ends in a blank, or within a word, goes on as in a story.

"Once upon a time" ends in the token " time", so no model has learned to go on from the token " "
after "Once upon a". Therefore the last tokens of a prompt compete with all tokens that spell the
same characters and more, here " time", " day" and every other with a blank, each by its
probability, and the one sampled takes their place. Within a word likewise: "a litt", by itself
" lit" and "t", becomes " little". A whole word keeps its tokens, and so does the end of a line, for
which `Tokenizer.encode_prompt` has the right ones.
"""

import functools
import math
from bisect import bisect_left

import numpy as np
import torch

from nanostories.inference.kv_cache import check_finite
from nanostories.inference.sampling import sample_token

WINDOW = 8  # the last tokens of a prompt, of which some may be exchanged
WHOLE_WORD = 0.01  # a word stays as typed if that is as likely as this, of all it may become


@functools.cache
def sorted_tokens(tokenizer):
    """(The tokens, bytes, in order, the id of each): those that begin alike stand together."""
    ids = sorted(range(len(tokenizer.tokens)), key=tokenizer.tokens.__getitem__)
    return [tokenizer.tokens[i] for i in ids], ids


class Healer:
    """Exchanges the last tokens of prompts. sampling_kwargs: of `sample_token`."""

    def __init__(self, tokenizer, **sampling_kwargs):
        self.tokenizer, self.sampling_kwargs = tokenizer, sampling_kwargs
        self.p = 1.0  # the probability of the latest exchange

    def longer(self, prompt):
        """(place, ids of the tokens that spell all that the prompt has from there on, and more),
        of the first place that has any; else None."""
        candidates, tail = None, b""
        tokens, ids = sorted_tokens(self.tokenizer)
        for place in range(len(prompt) - 1, max(0, len(prompt) - 1 - WINDOW), -1):
            tail = self.tokenizer.tokens[prompt[place]] + tail
            first, end = bisect_left(tokens, tail), bisect_left(tokens, tail + b"\xff")
            more = ids[first + (tokens[first : first + 1] == [tail]) : end]
            if more and not tail.endswith(b"\n"):
                candidates = place, more
        return candidates

    def __call__(self, decoder, prompts, seeds, hidden):
        """Exchange tokens of `prompts`, lists, in place. hidden: {prompt: (tokens - 1, C)}."""
        candidates = {prompt: longer for prompt in hidden if (longer := self.longer(prompt))}
        if not candidates:
            return
        x = [hidden[prompt][place - 1 :] for prompt, (place, _) in candidates.items()]
        log_p = decoder.logits(torch.cat(x)).log_softmax(-1)
        check_finite(log_p[:, 0])
        log_p = log_p.split(list(map(len, x)))
        for (prompt, (place, ids)), rows in zip(list(candidates.items()), log_p, strict=True):
            typed = torch.tensor(prompt[place:], device=rows.device)
            typed = rows.gather(1, typed[:, None]).sum(0)  # log-probability of the tokens as typed
            scores = torch.cat([typed, rows[0, ids]])
            in_word = not self.tokenizer.tokens[prompt[-1]][-1:].isspace()
            if in_word and typed > scores.logsumexp(0) + math.log(WHOLE_WORD):
                del candidates[prompt]
            else:
                candidates[prompt] = place, [prompt[place:], *([i] for i in ids)], scores[None]
        for prompt, seed in zip(prompts, seeds, strict=True):
            if tuple(prompt) in candidates:
                place, endings, scores = candidates[tuple(prompt)]
                noise = np.random.default_rng([*np.atleast_1d(seed), 1]).random(1, np.float32)
                noise = torch.from_numpy(noise * (1 - 2**-20)).to(scores.device)
                choice = sample_token(scores, noise, **self.sampling_kwargs).item()
                prompt[place:], self.p = endings[choice], scores.softmax(-1)[0, choice].item()
