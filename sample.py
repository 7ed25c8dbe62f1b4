"""
Tell stories with a trained model, or with a published one.

    python sample.py --start "Once upon a time"            # the newest run in out/
    python sample.py --out_dir=out/ts_cpu --num_samples=3 --temperature=0.8 --top_p=0.95
    python sample.py --init_from=roneneldan/TinyStories-33M --start "Once upon a time"
    python sample.py --start=FILE:prompts.txt --beams=5    # a prompt a line, best of five beams
    python sample.py --json > stories.jsonl
    python sample.py --words "come, road, sad" --features dialogue    # told to order: instruct.py
    python sample.py --serve                               # a page to try it, in the browser

All stories are told in one pass, `rows` at a time; the terminal shows them in order, each as
far as it is told. A story ends with <|endoftext|>, and models trained here see it first.

words, sentence, features and summary make an instruction in the format that Instruct models are
trained on; `start` is then how the story begins.
"""

import codecs
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from configs import UserError, load, run
from nanostories.dataset import instruct
from nanostories.inference.decoder import open_decoder
from nanostories.inference.generate import (
    Completion,
    beam_search,
    check_sampling_settings,
    read_prompts,
    request_seeds,
    stream,
)
from nanostories.training import checkpoint
from nanostories.training.device import pick_device


@dataclass(frozen=True)
class Settings:
    out_dir: str = ""  # run folder; default: the newest in out/
    checkpoint: str = "latest"  # latest or best
    init_from: str = ""  # instead of a run: gpt2, a model of the hub, or a folder with one
    revision: str = ""  # which commit, tag or branch of a model of the hub
    start: str = ""  # the prompt; FILE:prompts.txt takes one from each line; empty: a new story
    words: str = ""  # of an Instruct model: words to use, "come, road, sad"
    sentence: str = ""  # a sentence that must stand in the story
    features: str = ""  # dialogue, bad ending, moral value, twist, foreshadowing, conflict
    summary: str = ""  # what happens, in a line or two
    dry_run: bool = False  # print the prompt, and only that
    num_samples: int = 1  # stories of each prompt
    max_new_tokens: int = 500  # tokens added at the most
    temperature: float = 0.8  # 0: the likeliest token always; below 1: safer, above: wilder
    top_k: int = 0  # choose among the k likeliest tokens; 0: all
    top_p: float = 1.0  # choose among the likeliest tokens that hold this share of probability
    beams: int = 0  # beam search of this width, without chance; the paper's prompt tables used 5
    seed: int = 1337  # decides every choice
    batch_size: int = 64  # stories generated at a time
    json: bool = False  # one JSON line for each story instead of text
    serve: bool = False  # open a page to try it instead
    host: str = "127.0.0.1"  # for serve: 0.0.0.0 lets the whole network in
    port: int = 8000  # for serve
    device: str = "auto"  # cpu, cuda, mps; auto takes the best there is
    weights: str = "auto"  # float32, bfloat16 or, on CPUs, int8; auto: bfloat16 on CUDA


def asked(settings):
    """The instruction that the settings make, up to where its story begins; "" without one."""
    fields = {name: getattr(settings, name) for name in instruct.LABELS}
    if not any(value.strip() for value in fields.values()):
        return ""
    try:
        return instruct.make_instruction(**fields).prompt()
    except ValueError as error:
        raise UserError(str(error)) from None


def tell(decoder, found, prompts, settings):
    """
    Tell a story for each prompt; yields (number, new token ids, Story or None) in their order.

    The ids are those that came since the last time; with the last of them comes the whole Story.
    """
    ids, eot = [found.encode_prompt(prompt) for prompt in prompts], found.tokenizer.eot
    shared = {"max_new_tokens": settings.max_new_tokens, "max_length": found.max_length}
    if settings.beams:
        for i, prompt in enumerate(ids):
            story = beam_search(decoder, prompt, eot, settings.beams, **shared)
            yield i, story.ids, story
        return
    shared |= {name: getattr(settings, name) for name in ("temperature", "top_k", "top_p")}
    shared |= {"batch_size": settings.batch_size}
    stories, told = [Completion([]) for _ in ids], [False] * len(ids)
    now, shown = 0, 0  # the story that is being shown, and how many of its tokens
    for step in stream(decoder, ids, eot, request_seeds(settings.seed, len(ids)), **shared):
        for i, token, last in step:
            stories[i].append(token)
            told[i] = last
        while now < len(ids):
            story, fresh = stories[now], stories[now].ids[shown:]
            yield now, fresh, story if told[now] else None
            if not told[now]:
                shown += len(fresh)
                break
            now, shown = now + 1, 0


_RULE = "\n\n" + "-" * 60 + "\n"


def show(decoder, found, prompts, settings):
    """Print the stories as they are told."""
    tokenizer, current = found.tokenizer, None
    for i, ids, story in tell(decoder, found, prompts, settings):
        if i != current:
            # A token may end inside a character: the decoder holds bytes back until it is whole.
            characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
            print((_RULE if i else "") + prompts[i], end="", flush=True)
            current = i
        text = characters.decode(tokenizer.decode_bytes(ids), final=story is not None)
        print(text, end="", flush=True)
        if story and not story.ended and _full(found, prompts[i], story):
            note = f"[stopped at {found.max_length} tokens, the longest story in training]"
            print(f"\n{note}", end="", file=sys.stderr, flush=True)
    print()


def _full(found, prompt, story):
    """Whether a story ended because it was as long as any may be."""
    return len(found.encode_prompt(prompt)) + len(story.ids) >= found.max_length


def main():
    settings, origin = load(Settings, positional="out_dir")
    check_sampling_settings(settings)
    instruction = asked(settings)
    prompts = [instruction + start for start in read_prompts(settings.start)]
    if settings.dry_run:
        print(*prompts, sep=_RULE)
        return
    if settings.serve and instruction:
        raise UserError("serve takes no instruction: write it on the page, as --dry_run prints it")
    device = pick_device(settings.device)
    prompts = [prompt for prompt in prompts for _ in range(settings.num_samples)]
    found = checkpoint.load_from_settings(settings, origin, device)
    if instruction and found.is_run():
        data = checkpoint.read_state(found.out_dir, settings.checkpoint)["data"]
        if "train_answer.npy" not in data:
            print(f"note: {found.out_dir} was not trained on instructions", file=sys.stderr)
    decoder = open_decoder(found.model, settings.weights, device)
    if settings.serve:
        from nanostories.inference.server import serve

        names = ("temperature", "top_p", "max_new_tokens")
        defaults = {name: getattr(settings, name) for name in names}
        name, where = Path(found.out_dir).name, {"host": settings.host, "port": settings.port}
        serve(decoder, found, name, defaults, **where)
    elif settings.json:
        for i, _, story in tell(decoder, found, prompts, settings):
            if story:
                text = prompts[i] + found.tokenizer.decode(story.ids)
                line = {"prompt": prompts[i], "text": text, "ended": story.ended}
                print(json.dumps(line, ensure_ascii=False), flush=True)
    else:
        show(decoder, found, prompts, settings)


if __name__ == "__main__":
    run(main)
