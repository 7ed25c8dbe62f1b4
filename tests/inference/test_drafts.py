"""Drafts of sentences: against a search that computes everything anew, and what a story is."""

import itertools
from dataclasses import dataclass

import pytest
import torch
from tiny import random_model

from configs import ROOT, UserError
from nanostories.dataset.tokenizer import build
from nanostories.inference import drafts
from nanostories.inference.compiled import CompiledDecoder
from nanostories.inference.decoder import Decoder, open_decoder
from nanostories.inference.drafts import BEAMS, ends_of_sentences, score, write_with_drafts
from nanostories.inference.generate import Completion, StopStrings, generate, request_seeds
from nanostories.inference.healing import Healer
from nanostories.training import checkpoint

EOT = 256
PROMPT = [EOT, 10, 20, 30]


@dataclass(frozen=True)
class Tokenizer:
    """One of every eight tokens ends a sentence."""

    tokens: tuple = tuple(b"x." if i % 8 == 0 else b"x" for i in range(257))
    eot: int = EOT

    def decode_bytes(self, ids):
        return bytes(i % 256 for i in ids)


@pytest.fixture(scope="module", params=[Decoder, CompiledDecoder], ids=["torch", "c"])
def decoder(request):
    return request.param(random_model(block_size=72))


def write(decoder, prompt=PROMPT, number=0, count=12, **options):
    steps = list(write_with_drafts(decoder, Tokenizer(), prompt, [1, number], count, **options))
    assert [is_last for _, is_last in steps] == [False] * (len(steps) - 1) + [True]
    return [completion for completion, _ in steps]


# ---- the search --------------------------------------------------------------------------------


@torch.no_grad()
def anew(decoder, model, number, count, temperature):
    """The same search by `generate` and the model itself."""

    def sentence(prefix, seed):
        [story] = generate(decoder, [prefix], EOT, [seed], temperature=temperature)
        ids = [*story.ids, EOT] if story.ended else story.ids
        end = next((i for i, token in enumerate(ids, 1) if token % 8 == 0), len(ids))
        return ids[: min(end, drafts.LONGEST)]

    def judge(ids):
        log_p = model(torch.tensor([PROMPT + ids]))[0].log_softmax(-1)
        at = range(len(opening), len(ids))
        values = sorted(log_p[len(PROMPT) + i - 1, ids[i]].item() for i in at)[:10]
        return -sum(values) / max(1, len(values))

    def is_over(ids):
        return ids[-1] == EOT or len(PROMPT + ids) == 72

    opening = sentence(PROMPT, [1, number, 0])
    best, step = [opening], 1
    while not all(map(is_over, best)):
        live = [ids for ids in best if not is_over(ids)]
        grown = [ids for ids in best if is_over(ids)]
        for i in range(count):
            prefix = live[i % len(live)]
            grown.append(prefix + sentence(PROMPT + prefix, [1, number, step, i]))
        best = sorted(map(list, dict.fromkeys(map(tuple, grown))), key=judge)[:BEAMS]
        step += 1
    return best[0]


def test_it_keeps_the_beginnings_without_a_slip(decoder):
    model, several = random_model(block_size=72), 0
    for number in range(3):
        *_, story = write(decoder, number=number, count=6, temperature=0.7)
        ids = anew(decoder, model, number, 6, 0.7)
        assert (story.ids, story.ended) == ([i for i in ids if i != EOT], ids[-1] == EOT)
        several += sum(token % 8 == 0 for token in ids) > 3
    assert several > 1  # sentences


def test_what_is_shown_stays(decoder):
    """The opening at once, then what all beginnings share; nothing is taken back."""
    early = 0
    for number in range(4):
        steps = write(decoder, number=number)
        for before, after in itertools.pairwise(steps):
            assert after.ids[: len(before.ids)] == before.ids and not before.ended
        early += sum(0 < len(one.ids) < len(steps[-1].ids) for one in steps[1:-1])
    assert early > 0


def test_the_opening_is_not_chosen(decoder):
    """With or without drafts, a story is about the same; and the seed decides it."""
    alone = [write(decoder, number=number, count=1)[0].ids for number in range(4)]
    assert [write(decoder, number=number, count=8)[0].ids for number in range(4)] == alone
    assert len(set(map(tuple, alone))) == 4
    assert write(decoder, number=1) == write(decoder, number=1)


def test_one_slip_counts_as_much_in_a_long_story():
    assert score([-1.0] * 12) == -1.0 and score([]) == 0.0 and score([-3.0, -1.0]) == -2.0
    slip = [-0.1] * 9 + [-8.0]
    assert score(slip) == pytest.approx(score(slip + [-0.1] * 90))
    assert score(slip) < score([-0.5] * 100)


def test_ends_of_sentences():
    tokenizer = checkpoint.load_run(ROOT / "pretrained").tokenizer
    ends = {tokenizer.tokens[i] for i in ends_of_sentences(tokenizer) - {tokenizer.eot}}
    assert {b".", b"!", b"?", b"\n", b'."', b'!"'} <= ends
    assert all(token.endswith((b".", b"!", b"?", b'"', b"'")) or b"\n" in token for token in ends)
    assert not ends & {b'"', b"'", b",", b" the", b" "}
    assert tokenizer.eot in ends_of_sentences(tokenizer)
    assert len(ends_of_sentences(build("bytes"))) == 5  # . ! ? \n and the end of the story


# ---- where a story ends ------------------------------------------------------------------------


def test_limits(decoder):
    for options in ({"max_new_tokens": 20}, {"max_length": 24}, {"max_new_tokens": 1}):
        *_, story = write(decoder, temperature=0.3, **options)
        limit = options.get("max_new_tokens", 20)
        assert len(story.ids) == limit or (story.ended and len(story.ids) < limit)
    with pytest.raises(UserError, match="the prompt has 72 tokens, but the model ends at 72"):
        write(decoder, [5] * 72)


def test_a_sentence_that_does_not_end_is_cut(decoder, monkeypatch):
    monkeypatch.setattr(drafts, "ends_of_sentences", lambda tokenizer: {EOT})
    steps = write(decoder, temperature=0.3)
    assert len(steps[0].ids) == drafts.LONGEST < len(steps[-1].ids)


def test_stop_strings_and_penalties(decoder):
    *_, plain = write(decoder, temperature=0.4)
    assert len(set(plain.ids)) < len(plain.ids)
    stop = StopStrings([""], Tokenizer())
    stop.strings = [bytes([plain.ids[1]])]  # it comes in the opening, the same with and without
    *_, stopped = write(decoder, temperature=0.4, stop=stop)
    assert stopped == Completion(plain.ids[:2])
    penalties = {"repetition_penalty": 1.0, "no_repeat_ngram": 1}
    *_, other = write(decoder, temperature=0.4, penalties=penalties)
    assert len(set(PROMPT + other.ids)) == len(PROMPT + other.ids)


# ---- with a model that has learned -------------------------------------------------------------


@pytest.fixture(scope="module")
def boxed():
    loaded = checkpoint.load_run(ROOT / "pretrained")
    return loaded, open_decoder(loaded.model, "float32", torch.device("cpu"))


def test_a_prompt_that_ends_in_a_blank(boxed):
    loaded, decoder = boxed
    prompt, heal = loaded.encode_prompt("Once upon a "), Healer(loaded.tokenizer, temperature=0)
    *_, (story, _) = write_with_drafts(
        decoder, loaded.tokenizer, prompt, [1], 4, heal=heal, max_new_tokens=9
    )
    assert loaded.tokenizer.decode(prompt[1:] + story.ids).startswith("Once upon a time")


def test_stories_of_many_drafts_have_fewer_slips(boxed):
    """By their ten unlikeliest tokens, beside stories without drafts."""
    loaded, decoder = boxed
    prompt, eot = loaded.encode_prompt("Once upon a time"), loaded.tokenizer.eot

    def judge(story):
        ids = torch.tensor([prompt + story.ids])
        with torch.no_grad():
            log_p = loaded.model(ids)[0].log_softmax(-1)
        at = range(len(prompt), ids.shape[1])
        return score([log_p[i - 1, ids[0, i]].item() for i in at])

    for seed in request_seeds(3, 2):
        *_, (story, _) = write_with_drafts(
            decoder, loaded.tokenizer, prompt, seed, 16, temperature=0.8
        )
        plain = generate(decoder, [prompt] * 8, eot, request_seeds(9, 8), temperature=0.8)
        assert story.ended and judge(story) > max(map(judge, plain))
