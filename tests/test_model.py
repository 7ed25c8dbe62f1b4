"""The architecture against transformers' own, and the properties every later part relies on."""

import math
from unittest import mock

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
)

from kernels.attention import attention, attention_mask, attention_scores, windowed
from kernels.backend import launch
from kernels.cross_entropy import IGNORE_INDEX, linear_cross_entropy
from model import GPT, GPTConfig, rotate, rotation
from nanostories.training.hub_layouts import ACTIVATIONS, from_hub_tensors

SMALL = {"vocab_size": 301, "block_size": 64, "n_layer": 3, "n_head": 4, "n_embd": 32}


def small(**changes):
    torch.manual_seed(0)
    return GPT(GPTConfig(**SMALL | changes)).eval()


ROTARY = {"positions": "rope", "gelu": "erf"}


def packed_batch(lengths, row_tokens, seed=0):
    """One row of stories with these lengths and padding after them: tokens, targets, ..."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(SMALL["vocab_size"], (1, row_tokens), generator=generator)
    targets = torch.randint(SMALL["vocab_size"], (1, row_tokens), generator=generator)
    positions, start, at = (
        torch.zeros_like(tokens),
        torch.zeros(1, row_tokens, dtype=torch.int32),
        0,
    )
    for n in lengths:
        positions[0, at : at + n], start[0, at : at + n] = torch.arange(n), at
        at += n
    targets[0, at:], start[0, at:] = IGNORE_INDEX, at
    return tokens, targets, positions, start


# ---- the same numbers as transformers ----------------------------------------------------------


def copy_gpt2(theirs, ours):
    """Write transformers' GPT-2 weights into ours: its Conv1D keeps weights transposed."""
    state = {}
    for name, value in theirs.transformer.state_dict().items():
        conv = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
        state[name] = value.T if conv else value
    padded = torch.randn(ours.wte.weight.shape)  # what stands in the padding must not matter
    padded[: len(state["wte.weight"])] = state["wte.weight"]
    ours.load_state_dict(state | {"wte.weight": padded})


def copy_neo(theirs, ours):
    """Write GPT-Neo's weights into ours: separate q, k, v, and other names."""
    state, theirs = {}, theirs.transformer.state_dict()
    for name in ours.state_dict():
        neo = name.replace("attn.c_proj", "attn.attention.out_proj")
        if "attn.c_attn" in name:
            parts = [name.replace("attn.c_attn", f"attn.attention.{x}_proj") for x in "qkv"]
            state[name] = torch.cat([theirs[part] for part in parts])
        else:
            state[name] = theirs[neo]
    padded = torch.randn(ours.wte.weight.shape)
    padded[: len(state["wte.weight"])] = state["wte.weight"]
    ours.load_state_dict(state | {"wte.weight": padded})


def scramble(model):
    """Random weights everywhere: at its initial zeros a swapped bias would go unseen."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)


def assert_same_logits_and_gradients(ours, theirs, tokens):
    logits = ours(tokens)
    torch.testing.assert_close(logits, theirs(tokens).logits, atol=2e-5, rtol=1e-4)
    logits.square().mean().backward()
    theirs(tokens).logits.square().mean().backward()
    gradient = theirs.get_input_embeddings().weight.grad
    torch.testing.assert_close(
        ours.wte.weight.grad[: len(gradient)], gradient, atol=1e-5, rtol=1e-3
    )


def test_gpt2_parity():
    names = {"block_size": "n_positions"}
    theirs = GPT2LMHeadModel(GPT2Config(**{names.get(k, k): v for k, v in SMALL.items()})).eval()
    scramble(theirs)
    ours = small()
    copy_gpt2(theirs, ours)
    tokens = torch.randint(SMALL["vocab_size"], (2, 50))
    assert_same_logits_and_gradients(ours, theirs, tokens)


@pytest.mark.parametrize("length", [7, 50])
def test_gpt_neo_parity(length):
    config = GPTNeoConfig(
        vocab_size=SMALL["vocab_size"],
        max_position_embeddings=SMALL["block_size"],
        hidden_size=SMALL["n_embd"],
        num_layers=4,
        num_heads=SMALL["n_head"],
        attention_types=[[["global", "local"], 2]],
        window_size=9,
    )
    theirs = GPTNeoForCausalLM(config).eval()
    scramble(theirs)
    ours = small(n_layer=4, window=9, scale_attention=False, qkv_bias=False)
    copy_neo(theirs, ours)
    tokens = torch.randint(SMALL["vocab_size"], (2, length))
    assert_same_logits_and_gradients(ours, theirs, tokens)


@pytest.mark.parametrize("gelu", ["tanh", "erf"])
def test_gpt_neox_parity(gelu):
    config = GPTNeoXConfig(
        vocab_size=SMALL["vocab_size"], max_position_embeddings=SMALL["block_size"],
        hidden_size=SMALL["n_embd"], num_hidden_layers=2, num_attention_heads=SMALL["n_head"],
        intermediate_size=4 * SMALL["n_embd"], hidden_act=ACTIVATIONS[gelu][0],
        use_parallel_residual=False, rotary_pct=1.0, tie_word_embeddings=True,
    )  # fmt: skip
    theirs = GPTNeoXForCausalLM(config).eval()
    scramble(theirs)
    ours = small(n_layer=2, positions="rope", gelu=gelu)
    ours.load_state_dict(from_hub_tensors(theirs.state_dict(), ours.config))
    tokens = torch.randint(SMALL["vocab_size"], (2, 50))
    assert_same_logits_and_gradients(ours, theirs, tokens)


def test_rotation_depends_on_distance_alone():
    """Shifted by any number of positions, a story has the same scores; reversed, it has others."""
    qkv = torch.randn(1, 30, 3, 2, 16)
    places = torch.arange(30)
    scores = [attention_scores(rotate(qkv, *rotation(p, 16))) for p in (places, places + 1000)]
    torch.testing.assert_close(*scores, atol=1e-3, rtol=1e-3)
    backwards = attention_scores(rotate(qkv, *rotation(places.flip(0), 16)))
    assert not torch.allclose(scores[0], backwards, atol=0.1)
    assert torch.equal(rotate(qkv, *rotation(places, 16))[:, :, 2], qkv[:, :, 2])  # not the values


def test_initial_weights_are_gpt2s():
    model = small(n_embd=128, n_layer=8)
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            std = 0.02 / math.sqrt(16) if "c_proj" in name else 0.02
            assert weight.std().item() == pytest.approx(std, rel=0.05), name
        else:
            assert torch.equal(weight, torch.full_like(weight, name.endswith("weight"))), name


# ---- attention and loss ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (2, 97), (1, 128), (3, 200)])
@pytest.mark.parametrize("head", [16, 48])
def test_sdpa_equals_math(shape, head):
    torch.manual_seed(0)
    B, T = shape
    start = torch.zeros(B, T, dtype=torch.int32)
    for b in range(B):
        for cut in sorted(torch.randint(T, (3,)).tolist()):
            start[b, cut:] = cut
    wide = torch.randn(B, T, 3, 2, head + 5)  # a slice of it: not contiguous
    for mask in (
        None,
        start,
        windowed(start, 20, (B, T), "cpu"),
        windowed(None, 20, (B, T), "cpu"),
    ):
        results = []
        for implementation in ("math", "sdpa"):
            qkv = wide.clone()[..., :head].requires_grad_()
            out = attention(qkv, mask, implementation=implementation)
            out.square().sum().backward()
            results.append((out, qkv.grad))
        torch.testing.assert_close(*(r[0] for r in results), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(*(r[1] for r in results), atol=1e-4, rtol=1e-3)


def test_window_masks_what_it_should():
    start = torch.tensor([[0, 0, 0, 0, 4, 4, 4, 4]], dtype=torch.int32)
    seen = attention_mask(windowed(start, 3, (1, 8), "cpu"))[0, 0]
    assert [row.nonzero().flatten().tolist() for row in seen] == [
        [0], [0, 1], [0, 1, 2], [1, 2, 3], [4], [4, 5], [4, 5, 6], [5, 6, 7],
    ]  # fmt: skip


@pytest.mark.parametrize("n", [1, 511, 1200])
def test_chunked_loss_equals_torch(n):
    torch.manual_seed(0)
    hidden = torch.randn(n, 24, requires_grad=True)
    weight = torch.randn(384, 24, requires_grad=True)
    targets = torch.randint(300, (n,))
    targets[1::3] = IGNORE_INDEX
    plain = torch.nn.functional.cross_entropy(
        hidden @ weight[:300].T, targets, ignore_index=IGNORE_INDEX, reduction="none"
    )
    mean = plain.sum() / (targets != IGNORE_INDEX).sum()
    expected = torch.autograd.grad(3 * mean, (hidden, weight))
    loss = linear_cross_entropy(hidden, weight, targets, 300, IGNORE_INDEX)
    gradients = torch.autograd.grad(3 * loss, (hidden, weight))
    torch.testing.assert_close(loss, mean)
    torch.testing.assert_close(gradients, expected, atol=1e-6, rtol=1e-4)
    each = linear_cross_entropy(hidden, weight, targets, 300, IGNORE_INDEX, mean=False)
    torch.testing.assert_close(each, plain)
    assert gradients[1][300:].abs().max() == 0  # padding is never trained


# ---- what every later part relies on -----------------------------------------------------------


@pytest.mark.parametrize("config", [{}, {"window": 9, "scale_attention": False}, ROTARY])
def test_packed_equals_one_story_a_row(config):
    model = small(**config)
    lengths = [20, 1, 33, 10]
    tokens, targets, positions, start = packed_batch(lengths, 70)
    packed = model(tokens, targets, positions=positions, doc_start=start, mean=False)[0]
    at = 0
    for n in lengths:
        alone = model(tokens[:, at : at + n], targets[:, at : at + n], mean=False)[0]
        torch.testing.assert_close(packed[at : at + n], alone, atol=1e-5, rtol=1e-5)
        at += n
    assert packed[at:].abs().max() == 0
    mean = model(tokens, targets, positions=positions, doc_start=start)
    torch.testing.assert_close(mean, packed.sum() / at)


def test_a_later_token_does_not_change_the_past():
    model = small(window=9)
    tokens = torch.randint(SMALL["vocab_size"], (1, 40))
    before = model(tokens)
    tokens[0, 25] = (tokens[0, 25] + 1) % SMALL["vocab_size"]
    after = model(tokens)
    assert torch.equal(before[0, :25], after[0, :25])
    assert not torch.allclose(before[0, 25:], after[0, 25:])


def test_first_loss_is_about_ln_v():
    tokens, targets, positions, start = packed_batch([64, 60, 64], 188)
    loss = small(n_embd=64)(tokens, targets, positions=positions, doc_start=start)
    assert loss.item() == pytest.approx(math.log(SMALL["vocab_size"]), abs=0.1)


def test_one_batch_overfits():
    model = small().train()
    tokens, targets, positions, start = packed_batch([30, 30], 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        loss = model(tokens, targets, positions=positions, doc_start=start)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("config", [{}, {"window": 9, "scale_attention": False} | ROTARY])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_one_compiled_graph_is_the_eager_model(backend, config):
    """fullgraph: torch.compile finds nothing in the model, kernels included, that breaks it."""
    model = small(**config)
    model.attn, model.fused_mlp = "triton", True
    tokens, targets, positions, start = packed_batch([20, 1, 33], 60)
    results = []
    for run in (model, torch.compile(model, fullgraph=True, backend=backend)):
        model.zero_grad()
        loss = run(tokens, targets, positions=positions, doc_start=start)
        loss.backward()
        results.append((loss.detach(), *[p.grad.clone() for p in model.parameters()]))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, atol=1e-6, rtol=1e-4)


def test_the_residual_in_bfloat16_is_the_same_model_roughly():
    """Layers add to a sum in bfloat16; the loss and its gradients stay near those in float32."""
    model, dtypes = small(), []
    scramble(model)
    tokens, targets, positions, start = packed_batch([20, 1, 33], 60)
    model.h[0].register_forward_hook(lambda _, __, x: dtypes.append(x.dtype))
    results = []
    for model.residual_dtype in (None, torch.bfloat16):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(tokens, targets, positions=positions, doc_start=start)
        loss.backward()
        results.append((loss.detach(), model.wte.weight.grad.clone()))
    assert dtypes == [torch.float32, torch.bfloat16]
    (loss, gradient), (rounded, other) = results
    assert rounded.item() == pytest.approx(loss.item(), rel=0.01)
    assert (other - gradient).norm() < 0.05 * gradient.norm()
    assert not torch.equal(other, gradient)


def test_triton_attention_is_the_same_model():
    for config in ({}, {"window": 9, "scale_attention": False, "qkv_bias": False}, ROTARY):
        model = small(**config)
        scramble(model)
        tokens, targets, positions, start = packed_batch([20, 1, 33], 60)
        results = []
        for name in ("math", "triton"):
            assert model.use_attention(name, torch.float32) == "as set"
            model.zero_grad()
            loss = model(tokens, targets, positions=positions, doc_start=start, mean=False)
            loss.sum().backward()
            results.append((loss.detach(), *[p.grad.clone() for p in model.parameters()]))
        for expected, found in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("gelu", ["tanh", "erf"])
def test_fused_mlp_is_the_same_model(gelu):
    model = small(gelu=gelu)
    scramble(model)
    tokens, targets, positions, start = packed_batch([20, 1, 33], 60)
    results = []
    for model.fused_mlp in (False, True):
        model.zero_grad()
        with mock.patch("kernels.mlp.launch", wraps=launch) as launches:
            loss = model(tokens, targets, positions=positions, doc_start=start)
            loss.backward()
        assert launches.call_count == (6 if model.fused_mlp else 0)  # two for each of three layers
        results.append((loss.detach(), *[p.grad.clone() for p in model.parameters()]))
    for expected, result in zip(*results, strict=True):
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-4)


def test_too_long_is_refused():
    with pytest.raises(ValueError, match="65 tokens, but block_size is 64"):
        small()(torch.zeros(1, 65, dtype=torch.long))


@pytest.mark.parametrize(
    "shape, millions", [((768, 4, 2048), 68.5), ((64, 8, 2048), 3.75), ((768, 12, 1024), 124.4)]
)
def test_parameter_counts(shape, millions):
    """The released 33M and 1M with their embeddings, and GPT-2."""
    n_embd, n_layer, block_size = shape
    with torch.device("meta"):
        model = GPT(GPTConfig(50257, block_size, n_layer, 4, n_embd))
    assert model.num_params() / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize("positions, embedded", [("learned", 64), ("rope", 0)])
def test_only_learned_positions_have_parameters(positions, embedded):
    model = small(positions=positions)
    blocks = sum(p.numel() for p in (*model.h.parameters(), *model.ln_f.parameters()))
    head = SMALL["vocab_size"] * SMALL["n_embd"]
    assert model.num_params(embeddings=False) == blocks
    assert model.num_matmul_params() == blocks + head
    assert model.num_params() == blocks + head + embedded * SMALL["n_embd"]
