"""Generate stories with a trained model, or with a published one.

    python sample.py --start "Once upon a time"            # the newest run in out/
    python sample.py --out_dir=out/ts_cpu --num_samples=3 --temperature=0.8 --top_p=0.95
    python sample.py --init_from=roneneldan/TinyStories-33M --start "Once upon a time"
    python sample.py --drafts=64                           # the best of many drafts, by sentences
    python sample.py --start=FILE:prompts.txt --beams=5    # a prompt on each line; beam search
    python sample.py --json > stories.jsonl
    python sample.py --words "come, road, sad" --features dialogue    # for an Instruct model
    python sample.py --serve                               # a page to try it, in the browser

Stories are generated `batch_size` at a time; the terminal shows them in order, token by token. A
prompt may end in a blank or within a word: nanostories/inference/healing.py goes on from there.
words, sentence, features and summary make an instruction in the format that Instruct models are
trained on; `start` is then how the story begins.
"""

import codecs
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from configs import UserError, explained, load, pick, printable, run
from nanostories.dataset import instruct
from nanostories.inference import generate
from nanostories.inference.decoder import open_decoder
from nanostories.inference.drafts import write_with_drafts
from nanostories.inference.healing import Healer
from nanostories.inference.kv_cache import NO_PENALTIES
from nanostories.training import checkpoint, model_settings
from nanostories.training.device import pick_device

SEPARATOR = "\n\n" + "-" * 60 + "\n"  # between stories on the terminal


@dataclass(frozen=True)
class Settings(model_settings.ModelSettings):
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
    repetition_penalty: float = 1.0  # above 1, tokens that occurred are less likely; try 1.2
    no_repeat_ngram: int = 0  # tokens in a sequence that may not occur twice; 0: all may
    stop: tuple = ()  # a text that ends a story, too; may be given several times
    drafts: int = 1  # of each sentence; the best go on. 64 make stories more coherent, and slower
    beams: int = 0  # width of a beam search in place of sampling; the paper's tables used 5
    seed: int = 1337  # of the sampling
    batch_size: int = 64  # stories generated at a time
    json: bool = False  # print one JSON line for each story
    serve: bool = False  # open a page to try the model in the browser
    host: str = "127.0.0.1"  # for serve: 0.0.0.0 lets the whole network in
    port: int = 8000  # for serve
    allow_host: tuple = ()  # for serve: a name that a proxy has for it; may be given several times
    device: str = "auto"  # cpu, cuda, mps; auto takes the best there is
    weights: str = "auto"  # float32, bfloat16 or, on CPUs, int8; auto: bfloat16 on CUDA

    repetition_penalty_range = 1e-2, 100  # reward.py's is another


def make_instruction(settings):
    """The instruction that the settings make, up to where its story begins; "" without one."""
    fields = pick(settings, *instruct.LABELS)
    if not any(value.strip() for value in fields.values()):
        return ""
    with explained("", ValueError):
        return instruct.make_instruction(**fields).prompt()


def check_settings(settings, origin):
    """Raise UserError for settings that mean nothing beside the others."""
    if "" in settings.stop:
        raise UserError("stop must be a text, not nothing")
    named = {name for name, where in origin.items() if where == "command line"}
    greedy = settings.temperature == 0 or settings.top_k == 1
    for applies, names, why in (
        (settings.beams, {"temperature", "top_k", "top_p", "seed"}, "a beam search draws nothing"),
        (settings.beams or greedy, {"num_samples", "drafts"}, "without sampling all are the same"),
        (
            settings.serve,
            {"start", "num_samples", "drafts", "beams", "seed", "json"},
            "serve opens a page",
        ),
        (settings.drafts > 1, {"batch_size"}, "the drafts of one story are a batch"),
        (not settings.serve, {"host", "port", "allow_host"}, "it is for --serve"),
        (not settings.init_from, {"revision"}, "it is for --init_from"),
    ):
        for name in sorted(names & named) if applies else ():
            if getattr(settings, name) != getattr(Settings, name):
                raise UserError(f"{name} has no effect here: {why}")


def fitting_prompts(decoder, loaded, prompts):
    """[(prompt, its token ids)] of those in {name: prompt} that leave room for a story; the others
    are named on stderr. UserError if there is none."""
    fitting, problems = [], []
    for name, prompt in prompts.items():
        ids = loaded.encode_prompt(prompt)
        try:
            generate.available_tokens(decoder, ids, max_length=loaded.max_length)
            fitting.append((prompt, ids))
        except UserError as error:
            problems.append(f"{name}{error}")
    if not fitting:
        raise UserError(problems[0])
    for problem in problems:
        print(f"{problem}; it is left out", file=sys.stderr, flush=True)
    return fitting


def completions_in_order(decoder, loaded, ids, settings, options):
    """Yield (index of the prompt, bytes of the story since the last time, Completion or None), one
    prompt after the other; the last item of each has the finished Completion. ids: of the prompts,
    lists, of which healing exchanges the last tokens. options: stop and penalties."""
    tokenizer, eot = loaded.tokenizer, loaded.tokenizer.eot
    options |= {"max_new_tokens": settings.max_new_tokens, "max_length": loaded.max_length}
    typed = [len(tokenizer.decode_bytes(prompt)) for prompt in ids]
    completions, finished = [generate.Completion([]) for _ in ids], set()

    def story(i, first=0):
        """The bytes of story i from its token `first` on; 0: from where the prompt ends."""
        new = tokenizer.decode_bytes(completions[i].ids[first:])
        return new if first else tokenizer.decode_bytes(ids[i])[typed[i] :] + new

    if settings.beams:
        options["heal"] = Healer(tokenizer, temperature=0)
        for i, prompt in enumerate(ids):
            completions[i] = generate.beam_search(decoder, prompt, eot, settings.beams, **options)
            yield i, story(i), completions[i]
        return
    sampling = pick(settings, "temperature", "top_k", "top_p")
    options |= {"heal": Healer(tokenizer, **sampling)} | sampling
    current, shown = 0, 0  # the first prompt not yet finished, and how many of its ids were yielded
    seeds = generate.request_seeds(settings.seed, len(ids))
    if settings.drafts > 1:
        for i, (prompt, seed) in enumerate(zip(ids, seeds, strict=True)):
            steps = write_with_drafts(decoder, tokenizer, prompt, seed, settings.drafts, **options)
            for completions[i], is_last in steps:
                yield i, story(i, shown), completions[i] if is_last else None
                shown = 0 if is_last else len(completions[i].ids)
        return
    options["batch_size"] = settings.batch_size
    for step in generate.stream(decoder, ids, eot, seeds, **options):
        for i, token, is_last in step:
            completions[i].append(token)
            if is_last:
                finished.add(i)
        while current in finished:
            yield current, story(current, shown), completions[current]
            current, shown = current + 1, 0
        if current < len(ids) and completions[current].ids:
            yield current, story(current, shown), None
            shown = len(completions[current].ids)


def print_stories(loaded, prompts, ids, items):
    """Print each story while it is generated; items: of `completions_in_order`."""
    current, shown = None, printable if sys.stdout.isatty() else str  # a file gets all characters
    for i, data, completion in items:
        if i != current:
            # A token may end inside a character: its bytes wait until the character is complete.
            characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
            print((SEPARATOR if i else "") + shown(prompts[i]), end="", flush=True)
            current = i
        text = characters.decode(data, final=completion is not None)
        print(shown(text), end="", flush=True)
        if completion and not completion.ended:
            length = len(ids[i]) + len(completion.ids)
            if length >= loaded.max_length:
                note = f"\n[stopped at {length} tokens, the longest story in training]"
                print(note, end="", file=sys.stderr, flush=True)
    print()


def print_json(loaded, prompts, ids, items):
    """Print each story as a JSON line when it is complete; items: of `completions_in_order`."""
    story, ascii_only = b"", not sys.stdout.encoding.lower().startswith("utf")
    for i, data, completion in items:
        story += data
        if completion:
            text = prompts[i] + story.decode("utf-8", errors="replace")
            line = {"prompt": prompts[i], "text": text, "ended": completion.ended}
            print(json.dumps(line, ensure_ascii=ascii_only), flush=True)
            story = b""


def main():
    settings, origin = load(Settings, positional="out_dir")
    check_settings(settings, origin)

    # 1. The prompts.
    instruction = make_instruction(settings)
    starts = generate.read_prompts(settings.start)
    prompts = {name: instruction + start for name, start in starts.items()}
    if settings.dry_run:
        print(*prompts.values(), sep=SEPARATOR)
        return
    if settings.serve and instruction:
        raise UserError("serve takes no instruction: write it on the page, as --dry_run prints it")

    # 2. The model.
    device = pick_device(settings.device)
    loaded = model_settings.load_from_settings(settings, origin, device)
    if instruction and loaded.is_run():
        data = checkpoint.read_state(loaded.out_dir, settings.checkpoint)["data"]
        if "train_answer.npy" not in data:
            print(f"note: {loaded.out_dir} was not trained on instructions", file=sys.stderr)
    decoder = open_decoder(loaded.model, settings.weights, device)

    # 3. The stories: in the browser, as JSON lines, or on the terminal.
    stop = generate.StopStrings(settings.stop, loaded.tokenizer) if settings.stop else None
    options = {"stop": stop, "penalties": pick(settings, *NO_PENALTIES)}
    if settings.serve:
        from nanostories.inference.server import serve

        defaults = pick(settings, "temperature", "top_p", "max_new_tokens")
        options |= pick(settings, "host", "port", "allow_host", "top_k")
        serve(decoder, loaded, Path(loaded.out_dir).name, defaults, **options)
        return
    requests = fitting_prompts(decoder, loaded, prompts)
    texts = [text for text, _ in requests for _ in range(settings.num_samples)]
    ids = [list(ids) for _, ids in requests for _ in range(settings.num_samples)]
    show = print_json if settings.json else print_stories
    show(loaded, texts, ids, completions_in_order(decoder, loaded, ids, settings, options))
    if len(requests) < len(prompts):
        sys.exit(1)  # `fitting_prompts` said why


if __name__ == "__main__":
    run(main)
