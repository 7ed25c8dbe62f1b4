"""Generate stories with a trained model, or with a published one.

    python sample.py --start "Once upon a time"            # the newest run in out/
    python sample.py --out_dir=out/ts_cpu --num_samples=3 --temperature=0.8 --top_p=0.95
    python sample.py --init_from=roneneldan/TinyStories-33M --start "Once upon a time"
    python sample.py --start=FILE:prompts.txt --beams=5    # a prompt on each line; beam search
    python sample.py --json > stories.jsonl
    python sample.py --words "come, road, sad" --features dialogue    # for an Instruct model
    python sample.py --serve                               # a page to try it, in the browser

Stories are generated `batch_size` at a time; the terminal shows them in order, token by token.
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

SEPARATOR = "\n\n" + "-" * 60 + "\n"  # between stories on the terminal


@dataclass(frozen=True)
class Settings(checkpoint.ModelSettings):
    start: str = ""  # the prompt; FILE:prompts.txt takes one from each line; empty: a new story
    words: str = ""  # for an Instruct model: words to use, "come, road, sad"
    sentence: str = ""  # a sentence that the story must contain
    features: str = ""  # dialogue, bad ending, moral value, twist, foreshadowing, conflict
    summary: str = ""  # what happens, in a line or two
    dry_run: bool = False  # print the prompt and exit
    num_samples: int = 1  # stories for each prompt
    max_new_tokens: int = 500  # most tokens of a completion
    temperature: float = 0.8  # 0: always the likeliest token; higher: more surprising stories
    top_k: int = 0  # sample from the k likeliest tokens; 0: from all
    top_p: float = 1.0  # sample from the likeliest tokens that together have this probability
    beams: int = 0  # width of a beam search in place of sampling; the paper's tables used 5
    seed: int = 1337  # of the sampling
    batch_size: int = 64  # stories generated at a time
    json: bool = False  # print one JSON line for each story
    serve: bool = False  # open a page to try the model in the browser
    host: str = "127.0.0.1"  # for serve: 0.0.0.0 lets the whole network in
    port: int = 8000  # for serve
    device: str = "auto"  # cpu, cuda, mps; auto takes the best there is
    weights: str = "auto"  # float32, bfloat16 or, on CPUs, int8; auto: bfloat16 on CUDA


def make_instruction(settings):
    """The instruction that the settings make, up to where its story begins; "" without one."""
    fields = {name: getattr(settings, name) for name in instruct.LABELS}
    if not any(value.strip() for value in fields.values()):
        return ""
    try:
        return instruct.make_instruction(**fields).prompt()
    except ValueError as error:
        raise UserError(str(error)) from None


def completions_in_order(decoder, loaded, prompts, settings):
    """Yield (index of the prompt, its token ids since the last time, Completion or None), one
    prompt after the other; the last item of each has the finished Completion.
    """
    ids, eot = [loaded.encode_prompt(prompt) for prompt in prompts], loaded.tokenizer.eot
    lengths = {"max_new_tokens": settings.max_new_tokens, "max_length": loaded.max_length}
    if settings.beams:
        for i, prompt in enumerate(ids):
            completion = beam_search(decoder, prompt, eot, settings.beams, **lengths)
            yield i, completion.ids, completion
        return
    names = ("temperature", "top_k", "top_p", "batch_size")
    sampling_kwargs = {name: getattr(settings, name) for name in names}
    completions, finished = [Completion([]) for _ in ids], set()
    current, shown = 0, 0  # the first prompt not yet finished, and how many of its ids were yielded
    seeds = request_seeds(settings.seed, len(ids))
    for step in stream(decoder, ids, eot, seeds, **lengths, **sampling_kwargs):
        for i, token, is_last in step:
            completions[i].append(token)
            if is_last:
                finished.add(i)
        while current in finished:
            yield current, completions[current].ids[shown:], completions[current]
            current, shown = current + 1, 0
        if current < len(ids):
            yield current, completions[current].ids[shown:], None
            shown = len(completions[current].ids)


def print_stories(loaded, prompts, items):
    """Print each story while it is generated; items: of `completions_in_order`."""
    current = None
    for i, ids, completion in items:
        if i != current:
            # A token may end inside a character: its bytes wait until the character is complete.
            characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
            print((SEPARATOR if i else "") + prompts[i], end="", flush=True)
            current = i
        data = loaded.tokenizer.decode_bytes(ids)
        print(characters.decode(data, final=completion is not None), end="", flush=True)
        if completion and not completion.ended:
            length = len(loaded.encode_prompt(prompts[i])) + len(completion.ids)
            if length >= loaded.max_length:
                note = f"\n[stopped at {length} tokens, the longest story in training]"
                print(note, end="", file=sys.stderr, flush=True)
    print()


def print_json(loaded, prompts, items):
    """Print each story as a JSON line when it is complete; items: of `completions_in_order`."""
    for i, _, completion in items:
        if completion:
            text = prompts[i] + loaded.tokenizer.decode(completion.ids)
            line = {"prompt": prompts[i], "text": text, "ended": completion.ended}
            print(json.dumps(line, ensure_ascii=False), flush=True)


def main():
    settings, origin = load(Settings, positional="out_dir")
    check_sampling_settings(settings)

    # 1. The prompts.
    instruction = make_instruction(settings)
    prompts = [instruction + start for start in read_prompts(settings.start)]
    if settings.dry_run:
        print(*prompts, sep=SEPARATOR)
        return
    if settings.serve and instruction:
        raise UserError("serve takes no instruction: write it on the page, as --dry_run prints it")
    prompts = [prompt for prompt in prompts for _ in range(settings.num_samples)]

    # 2. The model.
    device = pick_device(settings.device)
    loaded = checkpoint.load_from_settings(settings, origin, device)
    if instruction and loaded.is_run():
        data = checkpoint.read_state(loaded.out_dir, settings.checkpoint)["data"]
        if "train_answer.npy" not in data:
            print(f"note: {loaded.out_dir} was not trained on instructions", file=sys.stderr)
    decoder = open_decoder(loaded.model, settings.weights, device)

    # 3. The stories: in the browser, as JSON lines, or on the terminal.
    if settings.serve:
        from nanostories.inference.server import serve

        names = ("temperature", "top_p", "max_new_tokens")
        defaults = {name: getattr(settings, name) for name in names}
        title = Path(loaded.out_dir).name
        serve(decoder, loaded, title, defaults, host=settings.host, port=settings.port)
        return
    show = print_json if settings.json else print_stories
    show(loaded, prompts, completions_in_order(decoder, loaded, prompts, settings))


if __name__ == "__main__":
    run(main)
