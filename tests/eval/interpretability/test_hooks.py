"""Hooks read what the model computes with, and ablation takes away what it should."""

import math

import numpy as np
import planted
import pytest
import torch
import torch.nn.functional as F

from eval.interpretability import hooks
from eval.interpretability.attention_heads import classify
from eval.interpretability.hooks import (
    TaggedStory,
    Unit,
    attention_patterns,
    make_batches,
    mean_ablate,
    mean_activations,
    token_losses,
)
from model import GPT, GPTConfig

EOT = 0


def random_model(**changes):
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "block_size": 32, "n_layer": 2, "n_head": 2, "n_embd": 32}
    model = GPT(GPTConfig(**sizes | changes)).eval()
    with torch.no_grad():  # far from the small weights of the beginning, that nothing is even
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
    return model


def some_stories(count=5, seed=0, vocab_size=50):
    rng = np.random.default_rng(seed)
    ids = [rng.integers(1, vocab_size, 5 + 4 * i).tolist() for i in range(count)]
    return [TaggedStory([EOT, *one]) for one in ids]


def activations(model, tokens):
    by_layer = []
    hooks.neuron_activations(model, tokens, lambda layer, values: by_layer.insert(layer, values))
    return by_layer


def by_hand(model, tokens, layer):
    """The weights of a layer's heads, pair by pair from the formula, and the input of its MLP."""
    config = model.config
    x = model.wte.weight[tokens] + model.wpe.weight[: len(tokens)]
    for number, block in enumerate(model.h):
        T, H, D = len(tokens), config.n_head, config.n_embd // config.n_head
        q, k, v = F.linear(
            F.layer_norm(x, [config.n_embd], block.ln_1.weight, block.ln_1.bias),
            block.attn.c_attn.weight, block.attn.c_attn.bias,
        ).chunk(3, dim=-1)  # fmt: skip
        maps, output = torch.zeros(H, T, T), torch.zeros(T, config.n_embd)
        for h in range(H):
            columns = slice(h * D, (h + 1) * D)
            for i in range(T):
                first = max(0, i - config.window + 1) if config.window and number % 2 else 0
                scores = [q[i, columns] @ k[j, columns] for j in range(first, i + 1)]
                scale = 1 / math.sqrt(D) if config.scale_attention else 1
                maps[h, i, first : i + 1] = (torch.stack(scores) * scale).softmax(0)
            output[:, columns] = maps[h] @ v[:, columns]
        x = x + F.linear(output, block.attn.c_proj.weight, block.attn.c_proj.bias)
        y = F.layer_norm(x, [config.n_embd], block.ln_2.weight, block.ln_2.bias)
        y = F.linear(y, block.mlp.c_fc.weight, block.mlp.c_fc.bias)
        neurons = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        if number == layer:
            return maps, neurons
        x = x + F.linear(neurons, block.mlp.c_proj.weight, block.mlp.c_proj.bias)


NEO = {"window": 4, "scale_attention": False, "qkv_bias": False}


@pytest.mark.parametrize("changes", [{}, NEO], ids=["gpt2", "neo"])
def test_the_true_tensors(changes):
    """Attention maps and neurons are those of a hand computation, GPT-Neo's windows included."""
    model, tokens = random_model(**changes), some_stories()[2].ids
    for layer in (0, 1):
        with torch.no_grad():
            maps, neurons = by_hand(model, tokens, layer)
        found = attention_patterns(model, torch.tensor([tokens]), layer)[0]
        assert torch.allclose(found, maps, atol=1e-5)
        assert torch.allclose(found.sum(-1), torch.ones(2, len(tokens)))
        assert torch.allclose(activations(model, torch.tensor([tokens]))[layer][0], neurons,
                              atol=1e-4)  # fmt: skip


@pytest.mark.parametrize("changes", [{}, NEO], ids=["gpt2", "neo"])
def test_whichever_attention_the_model_runs(changes):
    """The fused kernels' models give the maps of the written-out formula's, in both layers."""
    model, tokens = random_model(**changes), torch.tensor([some_stories()[4].ids])
    maps = {}
    for name in ("math", "sdpa", "triton"):
        model.attn = name
        maps[name] = [attention_patterns(model, tokens, layer) for layer in (0, 1)]
    for name in ("sdpa", "triton"):
        for pattern, reference in zip(maps[name], maps["math"], strict=True):
            assert torch.allclose(pattern, reference, atol=1e-5), name
            assert torch.equal(pattern > 0, reference > 0)


def test_rows():
    """Stories of like length together; targets are the next tokens, what follows, then none."""
    stories = [
        TaggedStory([0, 5, 6], next_id=EOT),
        TaggedStory([0, 7], next_id=EOT),
        TaggedStory([0, 8, 9, 3], next_id=4),
    ]
    [(indices, batch)] = make_batches(stories, "cpu")
    assert indices == [1, 0, 2] and batch.completion_mask.sum(1).tolist() == [2, 3, 4]
    assert batch.tokens.tolist() == [[0, 7, 0, 0], [0, 5, 6, 0], [0, 8, 9, 3]]
    assert batch.targets.tolist() == [[7, 0, -1, -1], [5, 6, 0, -1], [8, 9, 3, 4]]
    assert sum(len(indices) for indices, _ in make_batches(stories * 9, "cpu")) == 27


def test_losses_of_padded_rows():
    """Each story's losses are those of the story by itself."""
    model, stories = random_model(), some_stories()
    losses = token_losses(model, make_batches(stories, "cpu"))
    for story, batched in zip(stories, losses, strict=True):
        alone = token_losses(model, make_batches([story], "cpu"))[0]
        logits = model(torch.tensor([story.ids]))[0]
        expected = F.cross_entropy(logits, torch.tensor([*story.ids[1:], EOT]), reduction="none")
        assert np.allclose(batched, expected.detach(), atol=1e-4) and np.allclose(batched, alone)


def test_mean_activations():
    """The means are over the stories' tokens and over no padding."""
    model, stories = random_model(), some_stories()
    means = mean_activations(model, make_batches(stories, "cpu"))
    neurons = torch.cat([activations(model, torch.tensor([one.ids]))[1][0] for one in stories])
    assert torch.allclose(means["neuron", 1], neurons.mean(0), atol=1e-5)
    assert means["head", 0].shape == (32,) and means["neuron", 0].shape == (128,)


def test_mean_residuals():
    """The mean over each token's occurrences, at each layer; over all tokens for unknown ones."""
    model, stories = random_model(), [TaggedStory([EOT, 7, 8, 7]), TaggedStory([EOT, 8])]
    row_of, residuals = hooks.mean_residuals(model, make_batches(stories, "cpu"), [7, 8, 9])
    taken = []
    hook = model.h[1].ln_1.register_forward_hook(lambda _, args, y: taken.append(args[0][0]))
    for story in stories:
        model(torch.tensor([story.ids]))
    hook.remove()
    x, y = taken
    assert torch.allclose(residuals[1][row_of[7]], (x[1] + x[3]) / 2, atol=1e-5)
    assert torch.allclose(residuals[1][row_of[8]], (x[2] + y[1]) / 2, atol=1e-5)
    assert torch.allclose(residuals[1][row_of[9]], torch.cat([x, y]).mean(0), atol=1e-5)
    # In the first layer the average of a token that stands at one place is the token there.
    row_of, residuals = hooks.mean_residuals(
        model, make_batches([TaggedStory([EOT, 7, 8])], "cpu"), [EOT, 7, 8]
    )
    tokens = torch.tensor([[EOT, 7, 8]])
    scores = hooks.content_scores(model, 0, residuals[0][row_of[[EOT, 7, 8]]])
    mask = torch.ones(3, 3).tril() == 0
    maps = scores.masked_fill(mask, float("-inf")).softmax(-1)
    assert torch.allclose(maps, attention_patterns(model, tokens, 0)[0], atol=1e-5)


def test_one_unit_is_replaced_by_its_mean():
    """Only its columns change, only within the context, and no hook stays."""
    model, tokens = random_model(), torch.tensor([some_stories()[3].ids])
    means = mean_activations(model, make_batches(some_stories(), "cpu"))
    before, first = model(tokens), activations(model, tokens)[0]
    with mean_ablate(model, Unit("neuron", 1, 9), means):
        assert torch.equal(activations(model, tokens)[0], first)
        changed = activations(model, tokens)[1]
        assert not torch.equal(model(tokens), before)
    whole = activations(model, tokens)[1]
    assert torch.equal(model(tokens), before)
    assert (changed[..., 9] == means["neuron", 1][9]).all()
    rest = [i for i in range(128) if i != 9]
    assert torch.equal(changed[..., rest], whole[..., rest])
    # A head's columns are those of its values.
    assert Unit("head", 0, 1).columns(model.config) == slice(16, 32)
    assert Unit("neuron", 0, 5).columns(model.config) == slice(5, 6)
    with pytest.raises(ZeroDivisionError), mean_ablate(model, Unit("head", 0, 0), means):
        _ = 1 / 0
    assert torch.equal(model(tokens), before)


# ---- a model whose heads and neuron do what they were made for ---------------------------------


@pytest.fixture(scope="module")
def made():
    model, rng = planted.model(), np.random.default_rng(0)
    ids = [[EOT, *rng.integers(1, planted.VOCAB, planted.LENGTH - 1).tolist()] for _ in range(24)]
    return model, [TaggedStory(one) for one in ids]


def test_heads_of_a_made_model(made):
    """Weights that look 3 back, 1 back, at one word, at the same word: so they are classified."""
    model, stories = made
    maps = [attention_patterns(model, torch.tensor([one.ids]), 0)[0] for one in stories]
    row_of, [residuals] = hooks.mean_residuals(
        model, make_batches(stories, "cpu"), range(planted.VOCAB)
    )
    scores = [hooks.content_scores(model, 0, residuals[row_of[one.ids]]) for one in stories]
    rows = classify(maps, scores, stories)
    kinds = [row["kind"] for row in rows]
    assert kinds[planted.DISTANCE] == "distance" and rows[planted.DISTANCE]["peak_distance"] == 3
    assert kinds[planted.PREVIOUS] == "previous token"
    assert kinds[planted.CONTENT] == "semantic"
    assert rows[planted.CONTENT]["top_keys"][0][0] == planted.KEY_TOKEN
    assert kinds[planted.DUPLICATE] == "duplicate"


def test_ablating_the_head_that_knows_it(made):
    """Two alternating tokens: the next is the one before. Head PREVIOUS outputs it, and without it
    the model cannot know; the others output nothing, and without them nothing changes.
    """
    model, _ = made
    stories = [TaggedStory([EOT, *([a, b] * 11)]) for a in (1, 4, 6) for b in (5, 7, 8)]
    batches = make_batches(stories, "cpu")
    means, intact = mean_activations(model, batches), token_losses(model, batches)
    known = np.concatenate([one[3:-1] for one in intact])  # the first two and the end are not known
    assert known.max() < 0.1
    for head in range(4):
        with mean_ablate(model, Unit("head", 0, head), means):
            ablated = np.concatenate([one[3:-1] for one in token_losses(model, batches)])
        if head == planted.PREVIOUS:
            assert (ablated - known).min() > 1
        else:
            assert np.allclose(ablated, known, atol=1e-4)


def test_ablating_the_neuron_that_knows_it(made):
    """After WORD comes NEXT: NEURON predicts it, no other does."""
    model, _ = made
    stories = [TaggedStory([EOT, x, planted.WORD, planted.NEXT, x]) for x in (1, 4, 6, 7)]
    batches = make_batches(stories, "cpu")
    means, intact = mean_activations(model, batches), token_losses(model, batches)
    for neuron in (planted.NEURON, planted.NEURON + 1):
        with mean_ablate(model, Unit("neuron", 0, neuron), means):
            ablated = token_losses(model, batches)
        rises = np.array([b[2] - a[2] for a, b in zip(intact, ablated, strict=True)])
        assert rises.min() > 1 if neuron == planted.NEURON else np.allclose(rises, 0, atol=1e-4)
