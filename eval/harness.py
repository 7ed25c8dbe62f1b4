"""
What a judge is given: beginnings with a model's completions of them, or stories to instructions.

    texts = beginnings("ours")                       # our 50 in beginnings.txt, cut in mid-sentence
    told = completions(found, texts, settings, samples=10, folder="out/ts_cpu/eval")
"""

import contextlib
import json
import random
from hashlib import blake2b
from pathlib import Path

import torch

from configs import ROOT, UserError
from eval import harness
from kernels.cross_entropy import linear_cross_entropy
from nanostories import storage
from nanostories.dataset import hub, instruct, sources
from nanostories.dataset.packing import pad_batch
from nanostories.inference.decoder import open_decoder
from nanostories.inference.generate import Completion, beam_search, generate, seeds_of
from nanostories.text import wordnet

MARKED = 0.3  # share of a story's content words that `marked` marks
YAML = "Evaluation prompts.yaml"  # the authors' 44 beginnings, in the data set's repository


def beginnings(name):
    """
    The beginnings that a name stands for, a list of str: "ours" or "" (beginnings.txt here),
    "paper" (the authors' 44, from the hub), or a file: .yaml with a list, or any of prepare.py's.
    """
    if name == "paper":
        try:
            name = hub.download_file("tinystories", YAML)
        except UserError as error:
            why = str(error).partition("(")[2].rpartition(")")[0]
            raise UserError(
                f"the authors' beginnings cannot be had from the hub ({why}); use --prompts=ours, "
                f"or a copy of '{YAML}'"
            ) from None
    if str(name).endswith((".yaml", ".yml")):
        import yaml

        try:
            texts = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"'{name}' cannot be read: {error}".replace("\n", " ")) from None
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise UserError(f"'{name}' is no list of beginnings")
    else:
        path = ROOT / "eval" / "prompts" / "beginnings.txt" if name in ("", "ours") else name
        texts = list(sources.read(str(path)))
    texts = [text.strip() for text in texts if text.strip()]  # no token begins a word after " "
    if not texts:
        raise UserError(f"no beginnings in '{name}'")
    return texts


def names_of(settings):
    """The models that the setting `beside` names, a list."""
    return [name.strip() for name in settings.beside.split(",") if name.strip()]


def requirements(record):
    """An instruction in the paper's words: "Write a short story. The story should contain ..." """
    said = {
        "words": "The story should contain the words: {}.",
        "sentence": 'The story should contain the following sentence: "{}"',
        "features": "The story should have the following features: {}.",
        "summary": "The general plot of the story should be: {} (feel free to expand beyond this "
        "general plot).",
    }
    parts = (said[name].format(value) for name, value in record.fields)
    return " ".join(["Write a short story.", *parts])


def complete(found, texts, settings, samples):
    """
    `samples` completions of each of the texts, a list of lists of str, as they follow the text.

    settings: temperature, top_p, beams (if not 0, of a beam search instead), max_new_tokens, seed,
    rows, weights.
    """
    decoder = open_decoder(found.model, settings.weights, found.model.wte.weight.device)
    ids = [found.prompt(text) for text in texts for _ in range(samples)]
    eot = found.tokenizer.eot
    how = {"max_new_tokens": settings.max_new_tokens, "limit": found.limit}
    if settings.beams:
        stories = [beam_search(decoder, prompt, eot, settings.beams, **how) for prompt in ids]
    else:
        how |= {name: getattr(settings, name) for name in ("temperature", "top_p", "rows")}
        stories = generate(decoder, ids, eot, seeds_of(settings.seed, len(ids)), **how)
    told = [found.tokenizer.decode(story.ids) for story in stories]
    return [told[i : i + samples] for i in range(0, len(told), samples)]


def whole(found, story):
    """
    (the text of a generation.Story, whether it came to its end). A model of the raw Instruct file
    goes on with a Summary: there its story has ended.
    """
    text, rest = instruct.split_story(found.tokenizer.decode(story.ids))
    return text, story.ended or bool(rest)


def completions(found, texts, settings, samples, folder):
    """
    `complete`, kept in a file of `folder`: a command that was killed goes on with the very same
    stories, also where another number of threads would round otherwise.
    """
    names = ("temperature", "top_p", "beams", "max_new_tokens", "seed", "weights")
    asked = {"checkpoint": found.identity(), "prompts": texts, "samples": samples}
    asked |= {name: getattr(settings, name) for name in names}
    # Every way to ask has a file of its own: none overwrites what another has paid for.
    key = blake2b(json.dumps(asked, sort_keys=True).encode(), digest_size=6).hexdigest()
    path = Path(folder) / f"completions-{key}.json"
    with contextlib.suppress(OSError, ValueError, KeyError):
        return json.loads(path.read_text(encoding="utf-8"))["stories"]
    stories = complete(found, texts, settings, samples)
    storage.write_json(path, {"asked": asked, "stories": stories})
    return stories


def marked(text, seed, most=8):
    """
    (the text with MARKED of its content words, of those that have synonyms, in < and >; the lines
    "word: synonyms", at most `most` each). The text's own < and > become parentheses: they mark
    nothing.
    """
    text = text.replace("<", "(").replace(">", ")")
    words = wordnet.content_words(text)
    known = [word for word in words if wordnet.synonyms(word.text, word.pos)]
    count = min(len(known), max(1, round(MARKED * len(words))))
    chosen = sorted(random.Random(f"{seed} {text}").sample(known, count), key=lambda w: w.start)
    pieces, last = [], 0
    for word in chosen:
        pieces += [text[last : word.start], f"<{word.text}>"]
        last = word.stop
    lines = dict.fromkeys(
        f"{word.text}: {', '.join(wordnet.synonyms(word.text, word.pos)[:most])}" for word in chosen
    )
    return "".join([*pieces, text[last:]]), "\n".join(lines) or "(none)"


def surprise(model, prompts, stories, eot, size):
    """
    [(nats, tokens)] of each generation.Story given its prompt, a list of ids, at temperature 1: its
    end counts, where it has one. In passes of at most `size` rows of about the same length.
    """
    found, device = [None] * len(prompts), model.wte.weight.device
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(stories[i].ids))
    for first in range(0, len(order), size):
        some = order[first : first + size]
        rows = pad_batch([prompts[i] for i in some], [stories[i] for i in some], eot, device)
        told = rows.completion_mask  # (n, T)
        losses = torch.zeros(rows.targets.shape, device=device)
        with torch.no_grad():
            hidden = model.hidden(rows.tokens)[told]  # the head is asked where one told alone
            head, words = model.wte.weight, model.config.vocab_size
            losses[told] = linear_cross_entropy(hidden, head, rows.targets[told], words, mean=False)
        sums = zip(losses.double().sum(1).tolist(), told.sum(1).tolist(), strict=True)
        for i, pair in zip(some, sums, strict=True):
            found[i] = pair
    return found


ROWS = 32  # continuations that are read in one pass


def log_probabilities(found, asked):
    """
    log p(continuation | prompt) in nats of a pretrained.Trained, a list of float.

    asked: (ids of a prompt, ids of its continuation) each. Raises UserError where both together are
    longer than the model can read.
    """
    limit = found.model.config.block_size
    longest = max(len(prompt) + len(rest) for prompt, rest in asked)
    if longest > limit:
        raise UserError(f"a prompt has {longest} tokens, but the model ends at {limit}")
    prompts, rests = zip(*asked, strict=True)
    stories = [Completion(rest, ended=False) for rest in rests]
    told = harness.surprise(found.model, prompts, stories, found.tokenizer.eot, ROWS)
    return [-nats for nats, _ in told]


def margins_of(found, prompts):
    """[margin] of each pair, in nats, for each of some Prompts: a list of lists of float."""
    encode = found.tokenizer.encode
    nats = iter(log_probabilities(found, [
        (found.prompt(prompt.text), encode(text))
        for prompt in prompts for pair in prompt.pairs for text in pair
    ]))  # fmt: skip
    return [[next(nats) - next(nats) for _ in prompt.pairs] for prompt in prompts]
