"""Generation: against the model itself, one by one against batches, sampling, beam search."""

import itertools
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import LAYOUTS, random_model

from configs import UserError
from model import GPT, GPTConfig
from nanostories.inference.compiled import CompiledDecoder
from nanostories.inference.decoder import Decoder
from nanostories.inference.generate import (
    Completion,
    available_tokens,
    beam_search,
    generate,
    request_seeds,
    stream,
)
from nanostories.inference.kv_cache import BatchedKVCache
from nanostories.inference.sampling import sample_token

EOT = 256
PROMPT = [EOT, 10, 20, 30]


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture(scope="module", params=[Decoder, CompiledDecoder], ids=["torch", "c"])
def make(request):
    """Makes a decoder of a model: in torch, or in C."""
    return request.param


@pytest.fixture(scope="module")
def decoder(make, model):
    return make(model)


def mixed_prompts(count, longest=20, seed=0):
    """Prompts of 1 to `longest` tokens, every third one equal to the one before it."""
    generator = torch.Generator().manual_seed(seed)
    prompts = []
    for i in range(count):
        n = int(torch.randint(longest, (1,), generator=generator))
        prompts.append([EOT, *torch.randint(256, (n,), generator=generator).tolist()])
        if i % 3 == 2:
            prompts[-1] = list(prompts[-2])
    return prompts


# ---- the same as the model ---------------------------------------------------------------------


@torch.no_grad()
def greedy(model, prompt, steps):
    """Greedy decoding that computes everything anew for each token."""
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        if ids[-1] == EOT:
            break
    return [i for i in ids[len(prompt) :] if i != EOT]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_greedy_equals_the_model(make, layout):
    model = random_model(**LAYOUTS[layout])
    prompts = [[EOT, first] for first in range(20)]
    completions = generate(make(model), prompts, EOT, request_seeds(0, 20), temperature=0)
    assert [story.ids for story in completions] == [greedy(model, prompt, 46) for prompt in prompts]


@pytest.mark.parametrize(
    "shape",
    [
        {"n_embd": 96, "n_head": 2},  # a head of 48
        {"vocab_size": 4099, "n_layer": 3},  # not a multiple of anything
        # three layers: what the second, local one reads in a prompt shows in the third
        {
            "block_size": 300,
            "n_layer": 3,
            "window": 256,
            "scale_attention": False,
            "qkv_bias": False,
        },
    ],
    ids=str,
)
@torch.no_grad()
def test_logits_of_every_step_are_the_models(make, shape):
    """Rows of different lengths: each row's logits are those of its own story, to 1e-4."""
    model = random_model(**shape)
    prompts = mixed_prompts(5, longest=30)
    if model.config.window == 256:  # long enough to look past the window
        prompts[1] = torch.randint(256, (280,)).tolist()
    cache = make(model).new_cache(5, model.config.block_size)
    cache.add_requests(prompts, request_seeds(0, 5))
    stories = [list(prompt) for prompt in prompts]
    for _ in range(15):
        chosen = cache.step(temperature=0)
        for row, story in enumerate(stories):
            expected = model(torch.tensor([story]))[0, -1]
            torch.testing.assert_close(cache.last_logits[row], expected, atol=1e-4, rtol=1e-4)
            story.append(int(chosen[row]))


@torch.no_grad()
def test_a_window_in_a_cache_of_exactly_the_needed_length(make):
    """The last column is used, and the one that is too far back is not confused with it."""
    model = random_model(**LAYOUTS["neo"])
    cache = make(model).new_cache(1, 12)
    cache.add_requests([[EOT]], [0])
    story = [EOT]
    for _ in range(12):
        chosen = cache.step(temperature=0)
        expected = model(torch.tensor([story]))[0, -1]
        torch.testing.assert_close(cache.last_logits[0], expected, atol=1e-4, rtol=1e-4)
        story.append(int(chosen))


@torch.no_grad()
def test_free_slots_beside_live_ones_are_harmless():
    """A GPU's sizes are round: free slots are computed too, at old positions past the window."""
    model = random_model(**LAYOUTS["neo"] | {"vocab_size": 384})
    cache = BatchedKVCache(Decoder(model), 2, 48)
    cache.add_requests([[EOT], [EOT] * 40], [0, 1])
    cache.step()
    cache.free_slots([1])
    chosen = cache._step(2, 32, None, {})
    assert cache._logits(2, 32, None).isfinite().all() and chosen.max() < 384
    assert cache.kv.isfinite().all()
    cache.free_slots([0])
    cache.add_requests([PROMPT] * 2, [0, 0])
    cache.step()
    expected = model(torch.tensor([PROMPT]))[0, -1]
    torch.testing.assert_close(cache.last_logits, expected.expand(2, -1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype, tolerance", [("bfloat16", 0.03), ("int8", 0.05)])
@torch.no_grad()
def test_smaller_weights_are_nearly_the_same_model(make, model, dtype, tolerance):
    """In the norm of the logits, for one row and for many, which take different ways."""
    decoder = make(model, dtype)
    for count in (1, 20):
        cache = decoder.new_cache(count, 48)
        cache.add_requests([PROMPT] * count, [0] * count)
        cache.step()
        expected = model(torch.tensor([PROMPT]))[0, -1]
        error = (cache.last_logits - expected).norm(dim=-1) / expected.norm()
        assert error.max() < tolerance
        assert error.max() > 1e-5  # or else nothing was rounded


def test_dtypes_that_are_none(make, model):
    with pytest.raises(UserError, match="dtype must be float32, bfloat16 or int8, not 'int4'"):
        make(model, "int4")
    with torch.device("meta"):
        elsewhere = GPT(model.config)
    with pytest.raises(UserError, match="int8 weights run on CPUs, not on meta"):
        Decoder(elsewhere, "int8")


# ---- batches against one by one ----------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_batched_equals_one_by_one(make, layout, batch_size):
    """Mixed lengths and seeds, fewer slots than stories: slots are refilled while others go on."""
    decoder = make(random_model(**LAYOUTS[layout]))
    prompts, seeds = mixed_prompts(16), request_seeds(7, 16)
    kwargs = {"temperature": 1.5, "max_new_tokens": 25, "top_p": 0.99 if batch_size == 3 else 1}
    completions = generate(decoder, prompts, EOT, seeds, **kwargs)
    eot, _ = Counter(token for story in completions for token in story.ids).most_common(1)[0]
    alone = [
        generate(decoder, [prompt], eot, [seed], **kwargs)[0]
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    assert generate(decoder, prompts, eot, seeds, batch_size=batch_size, **kwargs) == alone
    assert len({len(story.ids) for story in alone}) > 3  # they did end at different times
    assert any(story.ended for story in alone) and not all(story.ended for story in alone)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_round_sizes_generate_the_same(layout, run_in_round_sizes):
    """What a GPU computes, free slots and columns included, without its graphs."""
    decoder = Decoder(random_model(**LAYOUTS[layout]))
    prompts, seeds = mixed_prompts(20), request_seeds(7, 20)
    kwargs = {"temperature": 1.5, "batch_size": 6}
    expected = generate(decoder, prompts, 10, seeds, **kwargs)

    run_in_round_sizes()
    assert generate(decoder, prompts, 10, seeds, **kwargs) == expected


def test_free_slots_are_refilled(decoder):
    """While stories wait, slots stay free only until they are an eighth of all."""
    prompts = mixed_prompts(60)
    live, seen = [], set()
    kwargs = {"batch_size": 16, "temperature": 5.0, "max_new_tokens": 20}
    for step in stream(decoder, prompts, EOT, request_seeds(0, 60), **kwargs):
        live.append(len(step))
        seen |= {i for i, *_ in step}
        if len(seen) < 60:
            assert len(step) >= 15
    assert seen == set(range(60)) and max(live) == 16
    assert live[-1] < 15 and sorted(live, reverse=True)[:5] == [16] * 5


def test_equal_prompts_are_computed_once(decoder, monkeypatch):
    sizes, hidden = [], decoder.hidden
    positions = 3 if isinstance(decoder, CompiledDecoder) else 1  # which argument has them
    monkeypatch.setattr(decoder, "hidden", lambda *a: sizes.append(len(a[positions])) or hidden(*a))
    prompt, other = list(range(12)), list(range(5))
    cache = decoder.new_cache(50, 48)
    cache.add_requests([prompt, other] * 25, [0] * 50)
    assert sizes == [11 + 4]


def test_prompts_are_read_in_parts_that_fit(decoder, monkeypatch):
    """More tokens of prompts than are computed in one pass, the last one alone in its part."""
    prompts = [p for i, p in enumerate(mixed_prompts(9)) if i % 3 < 2]
    whole = generate(decoder, prompts, EOT, request_seeds(0, 6))
    monkeypatch.setattr("nanostories.inference.kv_cache.PREFILL", 21)
    assert generate(decoder, prompts, EOT, request_seeds(0, 6)) == whole


def test_a_story_does_not_depend_on_how_long_others_may_be(decoder):
    one = generate(decoder, [[EOT]], EOT, [[3, 0]], max_new_tokens=10, temperature=2.0)[0]
    longer = generate(decoder, [[EOT]], EOT, [[3, 0]], max_new_tokens=40, temperature=2.0)[0]
    assert longer.ids[:10] == one.ids


# ---- ends --------------------------------------------------------------------------------------


def test_it_stops_where_the_positions_end(decoder):
    [story] = generate(decoder, [PROMPT], EOT, [0], temperature=0, max_length=12)
    assert len(story.ids) == 8 and not story.ended
    [story] = generate(decoder, [PROMPT], EOT, [0], temperature=0, max_length=999)
    assert len(story.ids) <= 44
    with pytest.raises(UserError, match="the prompt has 4 tokens, but the model ends at 4"):
        generate(decoder, [PROMPT], EOT, [0], max_length=4)
    assert available_tokens(decoder, PROMPT) == 44 and available_tokens(decoder, PROMPT, 7) == 7


def test_stories_end_on_their_own(decoder):
    """A story that has ended yields no more tokens while the others go on."""
    tokens, over = [[] for _ in range(64)], set()
    for step in stream(decoder, [[EOT]] * 64, EOT, request_seeds(0, 64), temperature=5.0):
        for i, token, last in step:
            assert i not in over and token != EOT and (last or token is not None)
            tokens[i].append(token)
            over |= {i} if last else set()
    assert over == set(range(64))
    assert any(ids[-1] is None for ids in tokens) and any(len(ids) == 47 for ids in tokens)


def test_no_prompts_no_stories(decoder):
    assert generate(decoder, [], EOT, []) == []


def test_the_seed_decides(decoder):
    def completions(seed):
        return generate(decoder, [PROMPT] * 2, EOT, request_seeds(seed, 2))

    assert completions(1) == completions(1) != completions(2)
    assert completions(1)[0] != completions(1)[1]


# ---- sampling ----------------------------------------------------------------------------------


def frequencies(logits, **sampling_kwargs):
    rows = torch.tensor([logits]).repeat(4000, 1)
    noise = (torch.arange(4000) + 0.5) / 4000  # evenly spaced
    chosen = sample_token(rows, noise[torch.randperm(4000)], **sampling_kwargs)
    return (torch.bincount(chosen, minlength=len(logits)) / 4000).tolist()


def test_sampled_frequencies():
    p = [0.1, 0.5, 0.15, 0.25]
    logits = torch.tensor(p).log().tolist()
    assert frequencies(logits) == pytest.approx(p, abs=1e-3)
    assert frequencies(logits, temperature=0)[1] == 1
    assert frequencies(logits, top_k=1)[1] == 1
    assert frequencies(logits, top_k=2) == pytest.approx([0, 2 / 3, 0, 1 / 3], abs=1e-3)
    assert frequencies(logits, top_k=9) == pytest.approx(p, abs=1e-3)
    assert frequencies(logits, top_p=0.75) == pytest.approx([0, 2 / 3, 0, 1 / 3], abs=1e-3)
    assert frequencies(logits, top_p=0.76)[2] > 0  # the token that crosses the line belongs to it
    assert frequencies(logits, top_k=2, top_p=0.6)[1] == 1  # of the two, 0.5 / 0.75 is enough
    assert frequencies(logits, top_p=1e-9)[1] == frequencies(logits, top_p=1e-50)[1] == 1
    assert (
        frequencies(logits, temperature=1e-5)[1] == frequencies(logits, temperature=1e-45)[1] == 1
    )
    squared = [x * x for x in p]
    expected = [x / sum(squared) for x in squared]
    assert frequencies(logits, temperature=0.5) == pytest.approx(expected, abs=1e-3)


def test_noise_at_its_ends_draws_possible_tokens():
    """Never a token of probability 0, and never past the last one, however sums are rounded."""
    torch.manual_seed(0)
    logits = torch.randn(2000, 97)
    logits[:, 0] = logits[:, -1] = float("-inf")
    for edge in (0.0, 1 - 2**-20):
        chosen = sample_token(logits, torch.full((2000,), edge))
        assert chosen.min() > 0 and chosen.max() < 96


def test_noise_stays_below_1(decoder, monkeypatch):
    """Also where a generator draws the number next to 1."""
    generator = SimpleNamespace(random=lambda count, dtype: np.full(count, 1 - 2**-24, dtype))
    monkeypatch.setattr(
        "nanostories.inference.kv_cache.np.random.default_rng", lambda seed: generator
    )
    cache = decoder.new_cache(1, 48)
    cache.add_requests([PROMPT], [0])
    assert 0.9999 < cache.uniform_noise.max() <= 1 - 2**-20


def test_nucleus_of_a_flat_distribution():
    """A nucleus larger than the first sizes tried."""
    logits = torch.zeros(1, 3000)
    noise = torch.linspace(0, 0.999, 500)
    chosen = sample_token(logits.repeat(500, 1), noise, top_p=0.5)
    assert len(set(chosen.tolist())) == 500  # all but none twice: 500 of 1,500 equal ones
    peaked = logits.clone()
    peaked[0, 5] = 20
    assert sample_token(peaked, torch.tensor([0.9]), top_p=0.5).item() == 5


# ---- beam search -------------------------------------------------------------------------------


@torch.no_grad()
def test_beam_search_finds_the_best_of_all():
    """As wide as the whole tree, it must find the best of every story of up to 4 tokens."""
    torch.manual_seed(3)
    vocab, eot = 5, 4
    model = GPT(GPTConfig(vocab, 8, 1, 1, 16)).eval()
    for weight in model.parameters():
        weight.add_(torch.randn_like(weight) * 0.5)
    log_p = {}
    for length in range(4):
        for story in itertools.product(range(vocab - 1), repeat=length):
            ids = [eot, *story, eot]
            rows = model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
            log_p[story] = sum(rows[i, ids[i + 1]].item() for i in range(length + 1)) / (length + 1)
    best = max(log_p, key=log_p.get)
    completion = beam_search(Decoder(model), [eot], eot, beams=4**4, max_new_tokens=4)
    assert completion == Completion(list(best), ended=True)


@torch.no_grad()
def test_beams_keep_their_own_cache(model, decoder):
    """Against a search that computes every hypothesis anew; here no story ends."""
    for first in range(4):
        live = [(0.0, [EOT, first])]
        for _ in range(12):
            grown = []
            for score, ids in live:
                log_p = model(torch.tensor([ids]))[0, -1].log_softmax(-1)
                grown += [(score + log_p[i].item(), [*ids, i]) for i in range(257)]
            live = sorted(grown, reverse=True)[:3]
        story = beam_search(decoder, [EOT, first], -1, beams=3, max_new_tokens=12)
        assert story.ids == live[0][1][2:]


def test_one_beam_is_greedy(decoder):
    for first in range(5):
        story = beam_search(decoder, [EOT, first], EOT, beams=1, max_length=30)
        assert story == generate(decoder, [[EOT, first]], EOT, [0], temperature=0, max_length=30)[0]


# ---- on a GPU ----------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_captured_steps_generate_what_a_cpu_does(layout):
    """Rows leave and are refilled between graphs of several sizes, which are run again."""
    torch.set_float32_matmul_precision("highest")  # a training before this test had TF32
    model = random_model(**LAYOUTS[layout] | {"block_size": 300})
    prompts, kwargs = mixed_prompts(40, longest=150), {"temperature": 1.5, "batch_size": 16}
    expected = generate(Decoder(model), prompts, EOT, request_seeds(0, 40), **kwargs)
    assert generate(Decoder(model.cuda()), prompts, EOT, request_seeds(0, 40), **kwargs) == expected
