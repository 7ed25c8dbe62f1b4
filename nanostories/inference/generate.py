"""Generating stories, many at a time: continuous batching, streaming, beam search.

    decoder = Decoder(model)
    seeds = request_seeds(1337, len(prompts))
    completions = generate(decoder, prompts, eot, seeds, temperature=0.8)
    for step in stream(decoder, [prompt], eot, [[1337, 0]]):   # token by token

When a story ends, the next prompt takes its slot. A completion depends only on its prompt and seed,
not on the rest of the batch: each request has its own random numbers, the same on every device. (Up
to rounding, which in float32 almost never changes a story; in 8 and 16 bits one row is rounded
differently from many.)
"""

import re
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import torch

from configs import UserError, explained
from nanostories.inference.kv_cache import NO_PENALTIES


def request_seeds(seed, count):
    """The seeds of requests 0 to count - 1 of a run with this seed."""
    return [[seed, number] for number in range(count)]


@dataclass
class Completion:
    """What follows a prompt: the new token ids, and whether <|endoftext|> ended them."""

    ids: list
    ended: bool = False

    def append(self, token):
        """Add one of `stream`'s tokens; None is the end."""
        if token is None:
            self.ended = True
        else:
            self.ids.append(token)


class StopStrings:
    """Whether the last of some token ids completes one of the strings, inside it or at its end, as
    transformers' StopStringCriteria tells."""

    def __init__(self, strings, tokenizer):
        # From a command line, bytes that are no UTF-8 come as surrogates.
        self.strings = [text.encode(errors="surrogateescape") for text in strings]
        self.decode = tokenizer.decode_bytes
        self.longest = max(map(len, self.strings))

    def __call__(self, ids):
        before = self.decode(ids[-self.longest : -1])
        text = before + self.decode(ids[-1:])
        return any(text.find(s, max(0, len(before) - len(s) + 1)) >= 0 for s in self.strings)


def available_tokens(decoder, prompt, max_new_tokens=500, max_length=0):
    """How many tokens may follow the prompt; raises UserError if it fills all positions itself."""
    max_length = min(max_length or decoder.config.block_size, decoder.config.block_size)
    if len(prompt) >= max_length:
        raise UserError(f"the prompt has {len(prompt)} tokens, but the model ends at {max_length}")
    return min(max_new_tokens, max_length - len(prompt))


@torch.no_grad()
def stream(
    decoder, prompts, eot, seeds, max_new_tokens=500, max_length=0, batch_size=64, heal=None,
    stop=None, penalties=NO_PENALTIES, **sampling_kwargs,
):  # fmt: skip
    """Generate a completion for each prompt, `batch_size` at a time, and yield for each step a list
    of (index of the prompt, token id, whether it is the last); the id is None where <|endoftext|>
    ends the story.

    prompts: lists of token ids, with <|endoftext|>, the id `eot`, first where the model expects it.
    max_length: tokens of prompt and completion, default all positions of the model. heal: a
    healing.Healer; it changes `prompts`. stop: StopStrings. penalties: of `sampling.penalize`.
    sampling_kwargs: of `sample_token`. Raises UserError like `available_tokens`."""
    left = [available_tokens(decoder, prompt, max_new_tokens, max_length) for prompt in prompts]
    longest = max((len(p) + new for p, new in zip(prompts, left, strict=True)), default=0)
    cache = decoder.new_cache(min(batch_size, len(prompts)), longest, **penalties)
    waiting, live = deque(range(len(prompts))), []  # prompt indices; `live` by slot
    written = {}  # with `stop`: the ids of each story so far
    while waiting or live:
        free = cache.batch_size - len(live)
        # Prompts are read a few at a time: each prefill costs about as much as a step.
        if waiting and (free >= cache.batch_size / 8 or not live):
            new = [waiting.popleft() for _ in range(min(free, len(waiting)))]
            cache.add_requests([prompts[i] for i in new], [seeds[i] for i in new], heal)
            written |= {i: list(prompts[i]) for i in new if stop}
            live += new
        tokens = cache.step(**sampling_kwargs).tolist()
        for i in live:
            left[i] -= 1
        last = [token == eot or not left[i] for i, token in zip(live, tokens, strict=True)]
        if stop:
            for slot, i in enumerate(live):
                written[i].append(tokens[slot])
                last[slot] |= stop(written[i])
        ids = (None if token == eot else token for token in tokens)
        yield list(zip(live, ids, last, strict=True))
        if finished := [slot for slot, is_last in enumerate(last) if is_last]:
            live = [live[slot] for slot in cache.free_slots(finished)]


def generate(decoder, prompts, eot, seeds, **options):
    """A list of one Completion for each prompt; arguments as for `stream`."""
    completions = [Completion([]) for _ in prompts]
    for step in stream(decoder, prompts, eot, seeds, **options):
        for i, token, _ in step:
            completions[i].append(token)
    return completions


@torch.no_grad()
def beam_search(
    decoder, prompt, eot, beams=5, max_new_tokens=500, max_length=0, heal=None, stop=None,
    penalties=NO_PENALTIES,
):  # fmt: skip
    """The likeliest Completion that beam search with `beams` hypotheses finds.

    The score of a finished hypothesis is its log-probability divided by its length in tokens,
    <|endoftext|> included (length_penalty=1, the default of transformers). The search stops when
    `beams` have finished, or at max_length. heal, stop, penalties: as for `stream`."""
    steps = available_tokens(decoder, prompt, max_new_tokens, max_length)
    cache = decoder.new_cache(beams, len(prompt) + steps, **penalties)
    cache.add_requests([prompt], [0], heal)
    hypotheses, scores, finished = [[]], torch.zeros(1, device=decoder.device), []
    for step in range(1, steps + 1):
        log_p = cache.penalize(cache.logits().log_softmax(-1))  # (live beams, V)
        total = (scores[:, None] + log_p).flatten()
        # The best 2 x beams: at most `beams` of them end with <|endoftext|>, so enough stay live.
        best, index = total.topk(min(2 * beams, len(total)))
        live = []  # (log-probability, slot, hypothesis), best first
        for score, i in zip(best.tolist(), index.tolist(), strict=True):
            slot, token = divmod(i, log_p.shape[-1])
            ids = [*hypotheses[slot], token]
            if token == eot:
                finished.append((score / step, hypotheses[slot], True))
            elif stop and stop(prompt + ids):
                finished.append((score / step, ids, False))
            elif len(live) < beams and score > float("-inf"):
                live.append((score, slot, ids))
        hypotheses = [ids for *_, ids in live]
        if len(finished) >= beams or step == steps or not live:
            break
        cache.reorder([slot for _, slot, _ in live])
        cache.last_tokens[: len(live)] = torch.tensor([ids[-1] for *_, ids in live])
        scores = torch.tensor([score for score, *_ in live], device=decoder.device)
    if not finished:
        finished = [(score / step, ids, False) for score, _, ids in live]
    _, ids, ended = max(finished, key=lambda hypothesis: hypothesis[0])
    return Completion(ids, ended)


def read_prompts(start):
    """{name: prompt} of --start: {"": itself}, or the lines of FILE:path that are not empty. A line
    ends as in any text file, not at the other characters of str.splitlines."""
    if not start.startswith("FILE:"):
        return {"": start}
    path = Path(start.removeprefix("FILE:")).expanduser()
    with explained(f"prompts cannot be read from '{path}': ", OSError, UnicodeDecodeError):
        data = path.read_bytes()
        encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        lines = re.split("\r\n?|\n", data.decode(encoding))
    numbered = ((f"{path}, line {n}: ", line) for n, line in enumerate(lines, 1))
    if prompts := {name: line for name, line in numbered if line.strip()}:
        return prompts
    raise UserError(f"no prompts in '{path}'")
