"""
Tell stories with a trained model.

    python sample.py --start "Once upon a time"            # the newest run in out/
    python sample.py --out_dir=out/ts_cpu --num_samples=3 --temperature=0.8 --top_p=0.95
    python sample.py --start=FILE:prompts.txt --beams=5    # a prompt a line, best of five beams
    python sample.py --json > stories.jsonl

The first story of a prompt streams to the terminal token by token, the others of the same pass
follow whole. Every model sees <|endoftext|> first, as in training, and a story ends with it.
"""

import codecs
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

import checkpoint
from configs import UserError, load, run
from machine import pick_device


@dataclass(frozen=True)
class Settings:
    out_dir: str = ""  # run folder; default: the newest in out/
    checkpoint: str = "latest"  # latest or best
    start: str = ""  # the prompt; FILE:prompts.txt takes one from each line; empty: a new story
    num_samples: int = 1  # stories of each prompt, told in one pass
    max_new_tokens: int = 500  # tokens added at the most
    temperature: float = 0.8  # 0: the likeliest token always; below 1: safer, above: wilder
    top_k: int = 0  # choose among the k likeliest tokens; 0: all
    top_p: float = 1.0  # choose among the likeliest tokens that hold this share of probability
    beams: int = 0  # beam search of this width, without chance; the paper's prompt tables used 5
    seed: int = 1337  # decides every choice
    json: bool = False  # one JSON line for each story instead of text
    device: str = "auto"  # cpu, cuda, mps; auto takes the best there is


# ----------------------------------------------------------------------------------------------
# choosing tokens


def choose(logits, temperature=1.0, top_k=0, top_p=1.0, generator=None):
    """
    One token for each row of logits (B, V), as int64 (B,).

    temperature 0 takes the likeliest. top_k, then top_p (the smallest set of likeliest tokens that
    holds that probability; Holtzman et al. 2020) cut the rest off before the draw.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if top_k:
        floor = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < floor, float("-inf"))
    probabilities = logits.softmax(-1)
    if top_p < 1:
        ranked, order = probabilities.sort(-1, descending=True)
        beyond = ranked.cumsum(-1) - ranked >= top_p  # the set was full before this token
        probabilities = ranked.masked_fill(beyond, 0).gather(-1, order.argsort(-1))
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


def room(model, prompt, max_new_tokens, limit):
    """How many tokens may follow the prompt; raises UserError for one that fills all positions."""
    limit = min(limit or model.config.block_size, model.config.block_size)
    if len(prompt) >= limit:
        raise UserError(f"the prompt has {len(prompt)} tokens, but the model ends at {limit}")
    return min(max_new_tokens, limit - len(prompt))


@torch.no_grad()
def stream(model, prompt, eot, num_samples=1, max_new_tokens=500, limit=0, generator=None, **how):
    """
    Continue a prompt num_samples times in one pass; yields each step's tokens as they are chosen.

    prompt: token ids, a list of int, from <|endoftext|> on. eot: the id that ends a story. limit:
    positions to fill at the most, default all the model has. how: temperature, top_k, top_p.
    Yields lists of num_samples ids, None for a story that has ended. Raises UserError for a prompt
    that fills all positions.
    """
    steps = room(model, prompt, max_new_tokens, limit)
    cache = model.new_cache(num_samples, len(prompt) + steps)
    tokens = torch.tensor([prompt] * num_samples, device=model.wte.weight.device)
    alive = [True] * num_samples
    for _ in range(steps):
        chosen = choose(model(tokens, cache=cache)[:, -1], generator=generator, **how)
        told = chosen.tolist()
        alive = [was and token != eot for was, token in zip(alive, told, strict=True)]
        yield [token if on else None for on, token in zip(alive, told, strict=True)]
        if not any(alive):
            return
        tokens = chosen[:, None]


def generate(model, prompt, eot, num_samples=1, **options):
    """
    As `stream`, but whole: a list of num_samples pairs (new token ids, whether the story ended).
    """
    told = [[] for _ in range(num_samples)]
    ended = [False] * num_samples
    for step in stream(model, prompt, eot, num_samples, **options):
        for i, token in enumerate(step):
            if token is None:
                ended[i] = True
            else:
                told[i].append(token)
    return list(zip(told, ended, strict=True))


@torch.no_grad()
def beam_search(model, prompt, eot, beams=5, max_new_tokens=500, limit=0):
    """
    The likeliest continuation that a search of `beams` hypotheses finds.

    prompt, eot, limit: as in `stream`. A hypothesis that ends is set aside with its log-probability
    divided by its length in tokens, <|endoftext|> included (the length penalty 1 that transformers
    has by default); the search stops when `beams` have ended, or at the limit. Returns
    (new token ids, whether the story ended).
    """
    steps = room(model, prompt, max_new_tokens, limit)
    device = model.wte.weight.device
    cache = model.new_cache(1, len(prompt) + steps)
    log_p = model(torch.tensor([prompt], device=device), cache=cache)[:, -1].float().log_softmax(-1)
    told, scores, done = [[]], torch.zeros(1, device=device), []
    for step in range(1, steps + 1):
        total = (scores[:, None] + log_p).flatten()  # (live beams * V,)
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
        rows = torch.tensor([row for _, row, _ in live], device=device)
        for layer in cache:
            layer.keep(rows)
        scores = torch.tensor([score for score, _, _ in live], device=device)
        tokens = torch.tensor([[token] for _, _, token in live], device=device)
        log_p = model(tokens, cache=cache)[:, -1].float().log_softmax(-1)
    done += [(live[i][0] / step, ids, False) for i, ids in enumerate(told)]
    finished = [story for story in done if story[2]] or done
    _, ids, ended = max(finished, key=lambda story: story[0])
    return ids, ended


# ----------------------------------------------------------------------------------------------
# the script


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


def check(settings):
    """Refuse settings that mean nothing."""
    for name in ("num_samples", "max_new_tokens"):
        if getattr(settings, name) < 1:
            raise UserError(f"{name} must be at least 1")
    for name in ("temperature", "top_k", "beams"):
        if getattr(settings, name) < 0:
            raise UserError(f"{name} must not be negative")
    if not 0 < settings.top_p <= 1:
        raise UserError("top_p must be above 0 and at most 1")


def tell(model, tokenizer, prompt, settings, limit, generator):
    """All stories of one prompt: yields (story text, whether it ended); streams the first."""
    ids = [tokenizer.eot, *tokenizer.encode(prompt)]
    shared = {"max_new_tokens": settings.max_new_tokens, "limit": limit}
    show = not settings.json
    if settings.beams:
        told, ended = beam_search(model, ids, tokenizer.eot, settings.beams, **shared)
        print(prompt + tokenizer.decode(told) if show else "", end="")
        yield prompt + tokenizer.decode(told), ended
        return
    shared |= {name: getattr(settings, name) for name in ("temperature", "top_k", "top_p")}
    steps = stream(model, ids, tokenizer.eot, settings.num_samples, generator=generator, **shared)
    told = [[] for _ in range(settings.num_samples)]
    ended = [False] * settings.num_samples
    # A token may end inside a character: the decoder holds bytes back until it is whole.
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    print(prompt if show else "", end="", flush=True)
    for step in steps:
        for i, token in enumerate(step):
            ended[i] |= token is None
            told[i] += [] if token is None else [token]
        if show and step[0] is not None:
            print(decoder.decode(tokenizer.decode_bytes(step[:1])), end="", flush=True)
    for i, story in enumerate(told):
        text = prompt + tokenizer.decode(story)
        if show and i > 0:
            print(f"{_RULE}{text}", end="")
        yield text, ended[i]


_RULE = "\n\n" + "-" * 60 + "\n"


def main():
    settings, _ = load(Settings, positional="out_dir")
    check(settings)
    device = pick_device(settings.device)
    out_dir = settings.out_dir or checkpoint.newest_run()
    model, tokenizer = checkpoint.load_model(out_dir, settings.checkpoint, device)
    limit = checkpoint.read_state(out_dir, settings.checkpoint)["longest"]
    generator = torch.Generator(device).manual_seed(settings.seed)
    prompts = prompts_of(settings.start)
    for number, prompt in enumerate(prompts):
        if number and not settings.json:
            print(_RULE, end="")
        for text, ended in tell(model, tokenizer, prompt, settings, limit, generator):
            if settings.json:
                line = {"prompt": prompt, "text": text, "ended": ended}
                print(json.dumps(line, ensure_ascii=False), flush=True)
            elif not ended and len(tokenizer.encode(text)) + 1 >= limit:
                note = f"[stopped at {limit} tokens, the longest story in training]"
                print(f"\n{note}", end="", file=sys.stderr, flush=True)
    if not settings.json:
        print()


if __name__ == "__main__":
    run(main)
