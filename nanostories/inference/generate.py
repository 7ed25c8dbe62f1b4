"""
Telling stories, many in one pass: batches that refill themselves, streaming, beam search.

    decoder = Decoder(model)
    stories = generate(decoder, prompts, eot, seeds_of(1337, len(prompts)), temperature=0.8)
    for step in stream(decoder, [prompt], eot, [[1337, 0]]):   # token by token

A story that ends leaves its row to the next prompt. What it tells depends on its prompt and seed
alone, not on what is told beside it: each has its own random numbers, the same on every device. (Up
to rounding, which in float32 changes a story about never; 8 and 16 bits round one row otherwise
than many.)
"""

from collections import deque
from dataclasses import dataclass
from pathlib import Path

import torch

from configs import UserError
from nanostories.inference.kv_cache import BatchedKVCache


def check(settings):
    """Refuse a script's settings of telling, those that it has, that mean nothing: UserError."""
    for name in ("num_samples", "max_new_tokens", "rows", "batch_size"):
        if getattr(settings, name, 1) < 1:
            raise UserError(f"{name} must be at least 1")
    for name in ("temperature", "top_k", "beams", "seed"):
        if not getattr(settings, name, 0) >= 0:  # nor nan
            raise UserError(f"{name} must not be negative")
    if not 0 < settings.top_p <= 1:
        raise UserError("top_p must be above 0 and at most 1")
    if settings.weights not in ("auto", "float32", "bfloat16", "int8"):
        raise UserError(f"weights must be auto, float32, bfloat16 or int8: '{settings.weights}'")


def seeds_of(seed, count):
    """The seeds of stories 0 to count - 1 of a run with this seed."""
    return [[seed, number] for number in range(count)]


@dataclass
class Completion:
    """What was told: the new token ids, and whether it came to its end."""

    ids: list
    ended: bool = False

    def add(self, token):
        """One more of `stream`'s ids; None is the end."""
        if token is None:
            self.ended = True
        else:
            self.ids.append(token)


def room(decoder, prompt, max_new_tokens=500, limit=0):
    """How many tokens may follow the prompt; raises UserError for one that fills all positions."""
    limit = min(limit or decoder.config.block_size, decoder.config.block_size)
    if len(prompt) >= limit:
        raise UserError(f"the prompt has {len(prompt)} tokens, but the model ends at {limit}")
    return min(max_new_tokens, limit - len(prompt))


@torch.no_grad()
def stream(decoder, prompts, eot, seeds, max_new_tokens=500, limit=0, rows=64, **how):
    """
    Tell a story for each prompt, `rows` of them at a time; yields each step's tokens.

    prompts: lists of token ids, from <|endoftext|> on where the model begins with it. eot: the id
    that ends a story. seeds: one for each story. limit: positions a story may fill, default all
    the model has. how: temperature, top_k, top_p. Yields lists of (story number, id, whether it is
    the story's last), with None for an id where the story has come to its end. Raises UserError for
    a prompt that fills all positions.
    """
    left = [room(decoder, prompt, max_new_tokens, limit) for prompt in prompts]
    tokens = max((len(p) + steps for p, steps in zip(prompts, left, strict=True)), default=0)
    batch = BatchedKVCache(decoder, min(rows, len(prompts)), tokens)
    waiting, live = deque(range(len(prompts))), []  # story numbers; of the live rows, in order
    while waiting or live:
        free = batch.count - len(live)
        # Prompts are read a few at a time: each reading costs about as much as a step.
        if waiting and (free >= batch.count / 8 or not live):
            new = [waiting.popleft() for _ in range(min(free, len(waiting)))]
            batch.admit([prompts[i] for i in new], [seeds[i] for i in new])
            live += new
        chosen = batch.step(**how).tolist()
        for i in live:
            left[i] -= 1
        last = [token == eot or not left[i] for i, token in zip(live, chosen, strict=True)]
        ids = (None if token == eot else token for token in chosen)
        yield list(zip(live, ids, last, strict=True))
        if done := [row for row, over in enumerate(last) if over]:
            live = [live[row] for row in batch.release(done)]


def generate(decoder, prompts, eot, seeds, **options):
    """As `stream`, but whole: a list of Story, one for each prompt."""
    stories = [Completion([]) for _ in prompts]
    for step in stream(decoder, prompts, eot, seeds, **options):
        for i, token, _ in step:
            stories[i].add(token)
    return stories


@torch.no_grad()
def beam_search(decoder, prompt, eot, beams=5, max_new_tokens=500, limit=0):
    """
    The likeliest continuation that a search of `beams` hypotheses finds, as a Story.

    prompt, eot, limit: as in `stream`. A hypothesis that ends is set aside with its log-probability
    divided by its length in tokens, <|endoftext|> included (the length penalty 1 that transformers
    has by default); the search stops when `beams` have ended, or at the limit.
    """
    steps = room(decoder, prompt, max_new_tokens, limit)
    rows = BatchedKVCache(decoder, beams, len(prompt) + steps)
    rows.admit([prompt], [0])
    told, scores, done = [[]], torch.zeros(1, device=decoder.device), []
    for step in range(1, steps + 1):
        log_p = rows.logits().log_softmax(-1)  # (live beams, V)
        total = (scores[:, None] + log_p).flatten()
        # Twice as many as beams: at most `beams` of them can be endings, so enough live on.
        best, index = total.topk(min(2 * beams, len(total)))
        live = []  # (log-probability, row, token), best first
        for score, i in zip(best.tolist(), index.tolist(), strict=True):
            row, token = divmod(i, log_p.shape[-1])
            if token == eot:
                done.append((score / step, told[row], True))
            elif len(live) < beams:
                live.append((score, row, token))
        told = [[*told[row], token] for _, row, token in live]
        if len(done) >= beams or step == steps:
            break
        rows.keep([row for _, row, _ in live])
        rows.last[: len(live)] = torch.tensor([token for *_, token in live])
        scores = torch.tensor([score for score, *_ in live], device=decoder.device)
    done += [(live[i][0] / step, ids, False) for i, ids in enumerate(told)]
    finished = [story for story in done if story[2]] or done
    _, ids, ended = max(finished, key=lambda story: story[0])
    return Completion(ids, ended)


def prompts_of(start):
    """The prompts that --start names: itself, or the lines of FILE:path that are not empty."""
    if not start.startswith("FILE:"):
        return [start]
    path = Path(start.removeprefix("FILE:"))
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts cannot be read from '{path}': {error}") from None
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"no prompts in '{path}'")
    return prompts
