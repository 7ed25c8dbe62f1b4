"""The model in pretrained/: what generation and interpretability show of one that has learned."""

import itertools
import re

import pytest
import torch
from beside import beside

from configs import ROOT
from eval.interpretability import hooks, neurons
from eval.interpretability.hooks import TaggedStory, Unit
from nanostories.dataset import sources
from nanostories.inference.decoder import Decoder
from nanostories.inference.generate import beam_search, generate, request_seeds
from nanostories.inference.healing import Healer
from nanostories.text.words import STOP_WORDS, dictionary_lemmas, split_words
from nanostories.training import checkpoint


@pytest.fixture(scope="module")
def boxed():
    return checkpoint.load_run(ROOT / "pretrained")


@pytest.fixture(scope="module")
def stories(boxed):
    """80 real stories of at most 150 tokens, that it has not seen."""
    eot, encode = boxed.tokenizer.eot, boxed.tokenizer.encode
    texts = sources.read(str(beside("data", "tinystories", "valid_v2.txt")))
    ids = ([eot, *encode(text)] for text in texts)
    short = (some for some in ids if len(some) <= 150)
    return [TaggedStory(some, next_id=eot) for _, some in zip(range(80), short, strict=False)]


def completions(loaded, prompts, weights="float32", seed=1, **options):
    """[(text after the prompt, whether it ended)]"""
    ids = [loaded.encode_prompt(prompt) for prompt in prompts]
    typed = [len(loaded.tokenizer.decode(some)) for some in ids]
    heal = Healer(loaded.tokenizer, temperature=options.get("temperature", 0.8))
    results = generate(Decoder(loaded.model, weights), ids, loaded.tokenizer.eot,
                       request_seeds(seed, len(ids)), heal=heal, **options)  # fmt: skip
    whole = [
        loaded.tokenizer.decode(some + one.ids) for some, one in zip(ids, results, strict=True)
    ]
    return [(text[n:], one.ended) for text, n, one in zip(whole, typed, results, strict=True)]


# ---- generation --------------------------------------------------------------------------------


def test_stories_are_english_and_end(boxed):
    results = completions(boxed, ["Once upon a time"] * 16, temperature=0.8)
    words = [word for text, _ in results for word in split_words(text)]
    known = [word in STOP_WORDS or bool(dictionary_lemmas(word)) for word in words]
    assert sum(known) > 0.93 * len(words)  # names are in no dictionary
    assert sum(ended for _, ended in results) >= 14
    assert all(60 < len(split_words(text)) < 400 for text, _ in results)


@pytest.mark.parametrize("prompt, expected", [
    ("Tom and his friend Sue went to the park. Tom and", r" Sue\b"),     # whom it has read of
    ("Lily was sad. Her mom gave her a hu", r"g\b"),                     # within a word
    ("The bird could sing. One day, the bir", r"d\b"),
    ("Once upon a ", r"time\b"),                                         # after a blank
])  # fmt: skip
def test_a_prompt_goes_on_as_in_a_story(boxed, prompt, expected):
    [(text, _)] = completions(boxed, [prompt], temperature=0, max_new_tokens=5)
    assert re.match(expected, text), text


def test_a_beam_finds_what_is_likelier(boxed):
    prompt = boxed.encode_prompt("Ben found a box. In the box")
    decoder, eot = Decoder(boxed.model), boxed.tokenizer.eot
    greedy = generate(decoder, [prompt], eot, [0], temperature=0, max_new_tokens=12)[0]
    beam = beam_search(decoder, prompt, eot, beams=5, max_new_tokens=12)

    def mean_log_p(completion):
        ids = torch.tensor([prompt + completion.ids])
        with torch.no_grad():
            log_p = boxed.model(ids)[0].log_softmax(-1)
        steps = range(len(prompt), ids.shape[1])
        return sum(log_p[i - 1, ids[0, i]].item() for i in steps) / len(steps)

    assert mean_log_p(beam) >= mean_log_p(greedy)


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_smaller_weights_write_nearly_the_same(boxed, weights):
    """Of random weights, whose tokens are nearly equally likely, one could not ask this."""
    prompts = ["Once upon a time", "Tom saw a dog. The dog", "It was raining and", "Lily's mom"]
    texts = [completions(boxed, prompts, dtype, temperature=0, max_new_tokens=12)
             for dtype in ("float32", weights)]  # fmt: skip
    assert sum(a == b for a, b in zip(*texts, strict=True)) >= 3


# ---- interpretability --------------------------------------------------------------------------


def test_a_head_that_looks_for_names_is_needed_for_names(boxed):
    """After "Tom and Sue went to the park. Tom was happy. Tom and" comes Sue: the head that looks
    back at her most is one without which the model loses her."""
    model, encode, eot = boxed.model, boxed.tokenizer.encode, boxed.tokenizer.eot
    people, prompts = ["Tom", "Sue", "Ben", "Lily", "Max", "Anna", "Tim", "Mia"], []
    for one, other in itertools.permutations(people, 2):
        text = f"{one} and {other} went to the park. {one} was happy. {one} and"
        [name] = encode(f" {other}")
        prompts.append(TaggedStory([eot, *encode(text)], next_id=name))
    batches = hooks.make_batches(prompts, "cpu")

    def loss():
        """Nats of the name, at the end of each."""
        return sum(row[-1] for row in hooks.token_losses(model, batches)) / len(prompts)

    whole, means = loss(), hooks.mean_activations(model, batches)
    tokens, place = (
        torch.tensor([one.ids for one in prompts]),
        prompts[0].ids.index(encode(" Sue")[0]),
    )
    attention, rise = {}, {}
    for layer, head in itertools.product(range(model.config.n_layer), range(model.config.n_head)):
        patterns = hooks.attention_patterns(model, tokens, layer)  # (B, H, T, T)
        attention[layer, head] = patterns[:, head, -1, place].mean().item()
        with hooks.mean_ablate(model, Unit("head", layer, head), means):
            rise[layer, head] = loss() - whole
    assert whole < 0.1  # it is sure of her
    most, *others = sorted(rise, key=rise.get, reverse=True)
    assert rise[most] > 0.3 and attention[most] > 0.5
    assert sum(rise[head] < 0.1 for head in others) > len(others) / 2


def test_its_neurons_fire_at_words_that_are_alike(boxed, stories):
    """More alike than the tokens of 99 in 100 random sets."""
    top, _ = neurons.top_activations(boxed.model, hooks.make_batches(stories, "cpu"))
    assert neurons.coherence(top, stories)["readable"].mean() > 0.2
