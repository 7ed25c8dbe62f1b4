"""Neurons: where they are highest, how alike that is, and parts of speech."""

import numpy as np
import planted
import pytest
import torch

from eval.interpretability import hooks, neurons
from eval.interpretability.hooks import TaggedStory
from eval.interpretability.neurons import (
    TopActivations,
    coherence,
    entropies,
    examples,
    rank,
    top_activations,
)
from nanostories.dataset.tokenizer import build
from nanostories.text.pos_tags import POS, tag_tokens


def stories_of(count, rng, length=planted.LENGTH):
    ids = rng.integers(1, planted.VOCAB, (count, length))
    ids[:, 0] = planted.EOT
    return [TaggedStory(one, ["end", *(POS[i % 5] for i in one[1:])]) for one in ids.tolist()]


def values_of(model, story):
    values = []
    hooks.neuron_activations(model, torch.tensor([story.ids]), lambda layer, x: values.append(x[0]))
    return values[0]


@pytest.fixture(scope="module")
def world():
    """(the made model, stories, their batches, the two TopActivations)."""
    model, stories = planted.model(), stories_of(120, np.random.default_rng(0))
    batches = hooks.make_batches(stories, "cpu")
    return model, stories, batches, top_activations(model, batches)


def test_a_planted_neuron_is_found_first(world):
    """Of 576 neurons the only one that fires at a word, not at a place, is ranked first."""
    model, stories, _, halves = world
    for half in halves:
        scores = coherence(half, stories)
        assert rank(scores)[0] == planted.NEURON
        assert scores["coherence"][planted.NEURON] == 1 and scores["readable"][planted.NEURON]
        assert scores["token_entropy"][planted.NEURON] == scores["pos_entropy"][planted.NEURON] == 0
        others = np.delete(scores["coherence"], planted.NEURON)
        assert abs(np.median(others)) < 0.15
    rows = examples(model, stories, halves[0], [planted.NEURON], "cpu")[planted.NEURON]
    assert [row["ids"][row["peak"]] for row in rows] == [planted.WORD] * neurons.TOP


def test_top_activations_are_by_story(world):
    """A story's highest place, once; even stories in one half, odd in the other; the highest."""
    model, stories, batches, halves = world
    best = np.array([
        values_of(model, one)[1:].max(0).values.numpy()
        for one in stories
    ])  # fmt: skip
    for half, tops in enumerate(halves):
        assert (tops.stories % 2 == half).all()
        assert all(len(set(row)) == neurons.TOP for row in tops.stories.tolist())
        expected = -np.sort(-best[half::2].T, axis=1)[:, : neurons.TOP]
        assert np.allclose(tops.values, expected, atol=1e-5)
    # In any order and any grouping of the stories.
    again = top_activations(model, batches[::-1])
    assert all(np.allclose(a.values, b.values) for a, b in zip(halves, again, strict=True))


def test_padding_never_counts():
    """Neurons that fire at late places find none after a story's end."""
    model, rng = planted.model(), np.random.default_rng(1)
    stories = [*stories_of(3, rng, 5), *stories_of(3, rng)]
    rows = hooks.make_batches(stories, "cpu")
    for tops in top_activations(model, rows):
        for s, t in zip(tops.stories.flatten(), tops.tokens.flatten(), strict=True):
            assert t < len(stories[s].ids)


def test_examples(world):
    """The tokens around each place with the neuron's own values there, highest first."""
    model, stories, _, halves = world
    neuron = planted.NEURON
    for before in (4, 30):  # some begin where the story does
        rows = examples(model, stories, halves[1], [neuron, 3], "cpu", before, after=2)[neuron]
        peaks = [row["values"][row["peak"]] for row in rows]
        assert np.allclose(peaks, halves[1].values[neuron], atol=1e-3)
        places = zip(rows, halves[1].stories[neuron], halves[1].tokens[neuron], strict=True)
        for row, s, t in places:
            assert row["story"] == s and row["peak"] == min(before, t)
            span = slice(max(0, t - before), t + 3)
            assert row["ids"] == stories[s].ids[span]
            assert np.allclose(row["values"], values_of(model, stories[s])[span, neuron], atol=1e-3)


def test_entropies():
    """Four alike: 0 bits. Two and two: 1. Three and one: 0.811. All different: 2."""
    kinds = np.array([[5, 5, 5, 5], [1, 0, 1, 0], [7, 7, 2, 7], [3, 1, 2, 0]])
    assert np.allclose(entropies(kinds), [0, 1, 0.8113, 2], atol=1e-4)


def test_coherence_by_hand():
    """Two neurons with two examples each in stories of two equally frequent tokens, parts alike.

    A random pair has both tokens alike half of the time: H is 0 or 1, half a bit on average. One
    neuron's are alike, coherence 1 - 0 / 0.5; the other's are not, 1 - 1 / 0.5.
    """
    stories = [TaggedStory([0, 1, 2]), TaggedStory([0, 2, 1])]
    tops = TopActivations(np.zeros((2, 2)), np.array([[0, 1], [0, 1]]), np.array([[1, 2], [1, 1]]))
    scores = coherence(tops, stories)
    assert scores["coherence"] == pytest.approx([1, -1], abs=0.1) and "pos_entropy" not in scores
    assert scores["threshold"] == pytest.approx(1) and not scores["readable"].any()
    assert scores["rarity"].tolist() == [1, 1]  # bits: each token is half of all
    assert rank(scores).tolist() == [0, 1]
    both = {"coherence": np.array([0.5, 1, 1]), "rarity": np.array([9, 1, 3])}
    assert rank(both).tolist() == [2, 1, 0]


def test_parts_of_speech_count_as_much_as_tokens():
    """Two tokens of one part of speech: nothing is lost by half of the measure."""
    stories = stories_of(40, np.random.default_rng(5))
    at = [next(t for t, i in enumerate(one.ids) if i in (1, 6)) for one in stories]
    where = np.arange(40)[None, :20]
    scores = coherence(TopActivations(where, where, np.array(at)[None, :20]), stories)
    [tokens], [pos] = scores["token_entropy"], scores["pos_entropy"]
    typical = np.log2(planted.VOCAB - 1)  # random tokens: all but <|endoftext|>, equally frequent
    assert pos == 0 and 0.8 < tokens <= 1
    assert scores["coherence"][0] == pytest.approx(1 - tokens / typical / 2, abs=0.03)


def test_random_neurons_are_rarely_readable():
    """Places drawn at random pass for readable once in a hundred."""
    rng = np.random.default_rng(3)
    stories = stories_of(200, rng)
    where = np.array([rng.choice(200, neurons.TOP, replace=False) for _ in range(2000)])
    at = rng.integers(1, planted.LENGTH, size=where.shape)
    readable = coherence(TopActivations(at, where, at), stories)["readable"].mean()
    assert 0.002 < readable < 0.03


# ---- parts of speech ---------------------------------------------------------------------------


def parts(text, tokenizer):
    ids = [tokenizer.eot, *tokenizer.encode(text)]
    return list(zip((tokenizer.decode([i]) for i in ids), tag_tokens(ids, tokenizer), strict=True))


def test_parts_of_speech(nltk_data):
    found = parts("Lily smiled. A girl named Lily saw the big park. Don't cry!", build("gpt2"))
    assert found == [
        ("<|endoftext|>", "end"), ("L", "name"), ("ily", "name"), (" smiled", "verb"),
        (".", "mark"), (" A", "article"), (" girl", "noun"), (" named", "verb"), (" Lily", "name"),
        (" saw", "verb"), (" the", "article"), (" big", "adjective"), (" park", "noun"),
        (".", "mark"), (" Don", "verb"), ("'t", "verb"), (" cry", "verb"), ("!", "mark"),
    ]  # fmt: skip


def test_names_and_sentences(nltk_data):
    """What begins a sentence is no name, after whatever mark; nor is a function word anywhere."""
    for text in ("Tom said, 'The dog is here.' The cat ran.", "(The end) - The dog saw the cat.",
                 "The Big Bad Wolf and The cat.", "“Oh!” said Tom. ‘The dog’ ran."):  # fmt: skip
        found = parts(text, build("gpt2"))
        assert {part for token, part in found if token.strip().lower() == "the"} == {"article"}
        assert {part for token, part in found if token.strip() == "Wolf"} <= {"name"}


def test_parts_of_pieces_of_characters(nltk_data):
    """Byte by byte, damaged text too: each belongs to its word, blanks to none."""
    tokenizer = build("bytes")
    found = [part for _, part in parts("é cafés\n\n’", tokenizer)]
    assert len(found) == 1 + len("é cafés\n\n’".encode())
    assert found[3] == "blank" and found[-5:-3] == ["blank"] * 2 and found[-3:] == ["mark"] * 3
    assert len(set(found[4:10])) == 1
    broken = [tokenizer.eot, 0xC3, 0x20, 0x41, 0xFF]
    assert len(tag_tokens(broken, tokenizer)) == 5 and set(tag_tokens(broken, tokenizer)) <= set(
        POS
    )
    assert tag_tokens([], tokenizer) == []
