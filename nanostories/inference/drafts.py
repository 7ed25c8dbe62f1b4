"""Drafts: a beam search over sentences, for stories that stay coherent for longer.

    for completion, is_last in write_with_drafts(decoder, tokenizer, prompt, [1337, 0], drafts=64):
        ...     # what is decided of the story so far, and at the end all of it

A small model slips somewhere in most stories, and goes on from the slip. Here each next sentence is
sampled many times, and only the beginnings without an unlikely token go on, so that a slip costs a
draft and not the story. The opening, the rest of the first sentence, is sampled once: it decides
what the story is about, and the likeliest one is nearly always the same.
"""

import functools
import re
from itertools import takewhile

import numpy as np
import torch

from nanostories.inference.generate import Completion, available_tokens
from nanostories.inference.kv_cache import NO_PENALTIES

BEAMS = 4  # beginnings that go on; each is continued by a share of the drafts
UNLIKELIEST = 10  # tokens that a beginning is judged by
LONGEST = 64  # tokens of a draft, where no sentence ends


@functools.cache
def ends_of_sentences(tokenizer):
    """The ids of tokens that end a sentence or a line, a set; <|endoftext|> is one of them."""
    end = re.compile(rb"""[.!?]["'\s]*$|\n""")
    return {i for i, token in enumerate(tokenizer.tokens) if end.search(token)} | {tokenizer.eot}


def score(log_p):
    """The mean of a beginning's UNLIKELIEST lowest log-probabilities: 0 is best. One slip counts as
    much in a long story as in a short one; in the mean of all tokens it would be lost."""
    return float(np.sort(log_p)[:UNLIKELIEST].mean()) if log_p else 0.0


def draft_sentences(
    decoder, tokenizer, prompts, seeds, longest, heal=None, stop=None, penalties=NO_PENALTIES,
    **sampling,
):  # fmt: skip
    """Sample a sentence after each prompt, a list of ids: a list of (ids, their log-probabilities
    at temperature 1, whether the story is over). At most `longest` tokens in all."""
    room = min(longest, max(map(len, prompts)) + LONGEST)
    cache = decoder.new_cache(len(prompts), room, **penalties)
    cache.add_requests(prompts, seeds, heal)
    live, ends = list(range(len(prompts))), ends_of_sentences(tokenizer)  # `live` by slot
    ids, log_p, over = [[] for _ in prompts], [[] for _ in prompts], [False] * len(prompts)
    while live:
        tokens = cache.step(**sampling)
        values = cache.last_logits[: len(live)].log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        for i, token, value in zip(live, tokens.tolist(), values.tolist(), strict=True):
            ids[i].append(token)
            log_p[i].append(value)
            over[i] = token == tokenizer.eot or len(prompts[i]) + len(ids[i]) >= longest
            over[i] |= bool(stop and stop(prompts[i] + ids[i]))
        is_done = [over[i] or ids[i][-1] in ends or len(ids[i]) == LONGEST for i in live]
        if finished := [slot for slot, done in enumerate(is_done) if done]:
            live = [live[slot] for slot in cache.free_slots(finished)]
    return list(zip(ids, log_p, over, strict=True))


@torch.no_grad()
def write_with_drafts(
    decoder, tokenizer, prompt, seed, drafts, max_new_tokens=500, max_length=0, heal=None,
    stop=None, penalties=NO_PENALTIES, **sampling,
):  # fmt: skip
    """Write one story: after each sentence yield (a Completion of the ids that all beginnings
    share, False), and at the end (the story's, True).

    drafts: of each sentence. seed: a list of int, as of `generate.request_seeds`. The rest as for
    `generate.stream`; heal changes `prompt`, before the first yield. Raises UserError where the
    prompt leaves no room."""
    longest = len(prompt) + available_tokens(decoder, prompt, max_new_tokens, max_length)
    beams = min(BEAMS, drafts)
    draft = functools.partial(
        draft_sentences, decoder, tokenizer, longest=longest, stop=stop, penalties=penalties,
        **sampling,
    )  # fmt: skip
    [(opening, _, over)] = draft([prompt], [[*seed, 0]], heal=heal)
    # Each beginning: its ids after the prompt, the log-probabilities of those after the opening,
    # and whether the story is over.
    beginnings, number = [(opening, [], over)], 1
    while not all(over for *_, over in beginnings):
        columns = zip(*(ids for ids, *_ in beginnings), strict=False)
        shared = takewhile(lambda column: len(set(column)) == 1, columns)
        yield Completion([column[0] for column in shared]), False
        live = [beginning for beginning in beginnings if not beginning[2]]
        sources = [live[i % len(live)] for i in range(drafts)]
        prompts = [prompt + ids for ids, *_ in sources]
        seeds = [[*seed, number, i] for i in range(drafts)]
        grown = [beginning for beginning in beginnings if beginning[2]]
        drafted = draft(prompts, seeds)
        for (ids, log_p, _), (more, values, over) in zip(sources, drafted, strict=True):
            grown.append((ids + more, log_p + values, over))
        distinct = {tuple(one[0]): one for one in grown}
        beginnings = sorted(distinct.values(), key=lambda one: -score(one[1]))[:beams]
        number += 1
    ids = beginnings[0][0]
    ended = ids[-1] == tokenizer.eot
    yield Completion(ids[:-1] if ended else ids, ended), True
