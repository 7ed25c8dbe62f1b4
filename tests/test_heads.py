"""Heads with planted behaviour: what explains them, what they are called, what they look at."""

import numpy as np
import pytest
import torch

from eval import heads
from eval.heads import PRIOR, Model, Pairs, Story, bucket, classify
from eval.speech import PARTS

VOCAB = 30
NAMES = (3, 4)  # tokens that a semantic head looks at
LENGTH, STORIES = 40, 24


def story(rng):
    """Tokens at random, with the parts of speech that they always have here."""
    ids = [0, *rng.integers(1, VOCAB, LENGTH).tolist()]
    return Story(ids, ["end", *(PARTS[i % 7] for i in ids[1:])])


def planted(scores, one, rng):
    """The softmax of scores(i, j) and a little noise over the tokens of a story, (T, T)."""
    n = len(one.ids)
    s = np.array([[scores(one, i, j) for j in range(n)] for i in range(n)], np.float64)
    s += 0.1 * rng.standard_normal((n, n))
    s[np.triu_indices(n, 1)] = -np.inf
    s = np.exp(s - s.max(1, keepdims=True))
    return s / s.sum(1, keepdims=True)


def follows(one, i, j):
    return 0 < j < i and one.ids[j - 1] == one.ids[i]


def links(one, i, j):
    return one.parts[i] == "name" and one.parts[j] == "noun"


HEADS = {
    "distance 3": lambda one, i, j: 7 * (i - j == 3),
    "previous token": lambda one, i, j: 7 * (i - j == 1),
    "near by": lambda one, i, j: -0.4 * (i - j),
    # With nothing to say, these rest on the first token.
    "induction": lambda one, i, j: 9 * follows(one, i, j) + 4 * (j == 0),
    "duplicate": lambda one, i, j: 9 * (j < i and one.ids[j] == one.ids[i]) + 4 * (j == 0),
    "semantic": lambda one, i, j: 6 * (one.ids[j] in NAMES),
    "semantic by part": lambda one, i, j: 6 * links(one, i, j) + 3 * (j == 0),
    "rests": lambda one, i, j: 9 * (j == 0),
    "mixed": lambda one, i, j: 0,
}
TABLE = np.random.default_rng(7).standard_normal((VOCAB, VOCAB))


def words_of(name, one):
    """What a head's words score by themselves: where they are not what it goes by, anything."""
    n = len(one.ids)
    if name.startswith("semantic"):
        return [[HEADS[name](one, i, j) / 3 for j in range(n)] for i in range(n)]
    return TABLE[np.ix_(one.ids, one.ids)]


@pytest.fixture(scope="module")
def world():
    """(stories, maps (H, T, T) of each, the rows of `classify` by the names of HEADS)."""
    rng = np.random.default_rng(0)
    stories = [story(rng) for _ in range(STORIES)]
    maps = [
        torch.tensor(np.stack([planted(x, one, rng) for x in HEADS.values()]), dtype=torch.float32)
        for one in stories
    ]
    scores = [
        torch.tensor(np.stack([words_of(x, one) for x in HEADS]), dtype=torch.float32)
        for one in stories
    ]
    return stories, maps, dict(zip(HEADS, classify(maps, scores, stories), strict=True))


def test_what_was_planted_is_named(world):
    rows = world[2]
    kinds = {name: row["kind"] for name, row in rows.items()}
    assert kinds == {
        "distance 3": "distance", "previous token": "previous token", "near by": "distance",
        "induction": "induction", "duplicate": "duplicate", "semantic": "semantic",
        "semantic by part": "semantic", "rests": "rests", "mixed": "mixed",
    }  # fmt: skip
    assert rows["distance 3"]["peak"] == 3 and rows["previous token"]["peak"] == 1
    assert rows["near by"]["peak"] == 0


def test_what_explains_it(world):
    """A planted head is explained nearly whole by what was planted, and by nothing else."""
    rows = world[2]
    for name, by in {"distance 3": "distance", "previous token": "distance",
                     "near by": "distance", "induction": "repetition", "duplicate": "repetition",
                     "semantic": "words", "semantic by part": "words"}.items():  # fmt: skip
        assert rows[name][by]["mean"] > 0.85, name
        for other in {*heads.MODELS} - {by}:
            assert abs(rows[name][other]["mean"]) < 0.1, (name, other)
    assert all(abs(rows["mixed"][name]["mean"]) < 0.1 for name in heads.MODELS)
    assert rows["rests"]["first"]["mean"] > 0.99 > rows["induction"]["first"]["mean"]
    assert rows["duplicate"]["duplicate"]["mean"] > 0.9
    assert rows["duplicate"]["duplicate_by_distance"]["mean"] < 0.5
    assert rows["induction"]["induction"]["mean"] > 0.9 > 2 * rows["duplicate"]["induction"]["mean"]


def test_which_words(world):
    """The semantic head's words are found; of the one by parts of speech, which look at which."""
    rows = world[2]
    keys = [token for token, *_ in rows["semantic"]["keys"]]
    assert set(keys[:2]) == set(NAMES)
    assert all(times > 3 for _, _, times in rows["semantic"]["keys"][:2])
    assert rows["semantic by part"]["parts"][0][:2] == ("name", "noun")
    assert all(k in NAMES for _, k, *_ in rows["semantic"]["links"][:4])


def test_the_masked_triangle_counts_for_nothing():
    """
    An even head has no variance to explain, and distance explains none of it. Over the whole square
    it would: half of that is zeros, all at negative distances.
    """
    rng = np.random.default_rng(1)
    stories = [story(rng) for _ in range(6)]
    even = torch.ones(1, LENGTH + 1, LENGTH + 1).tril()
    [row] = classify([even / even.sum(-1, keepdim=True)] * 6, [even] * 6, stories)
    assert row["kind"] == "mixed" and row["distance"] is None


def test_the_share_is_of_stories_not_fitted():
    """Heads of pure noise: their own noise is no explanation, nor is that of their words."""
    rng = np.random.default_rng(2)
    stories = [story(rng) for _ in range(8)]
    noise = lambda one, i, j: 3 * rng.standard_normal()  # noqa: E731
    maps = [torch.tensor(planted(noise, one, rng)[None], dtype=torch.float32) for one in stories]
    scores = [torch.tensor(words_of("", one)[None], dtype=torch.float32) for one in stories]
    [row] = classify(maps, scores, stories)
    assert all(row[name]["mean"] < 0.05 for name in heads.MODELS) and row["kind"] == "mixed"


def test_one_step_by_hand():
    """
    Tokens 0 | 1 1, no parts of speech: query 2 sees keys 1 and 2 at distances 1 and 0, and gives
    them 0.6 and 0.2 of its attention; query 1 gives all, 0.9, to itself. After the scaling the
    expected attention is what was seen, but for the prior.
    """
    pairs = Pairs(Story([0, 1, 1], None))
    attention = torch.tensor([[[0.9, 0.0], [0.6, 0.2]]])
    model = Model("distance", 1, "cpu").fit([attention], [pairs])
    near, far = model.factors["distance"][0, :2].tolist()
    expected = model.expect(pairs, attention.sum(-1))[0]
    assert expected[0].tolist() == pytest.approx([0.9, 0])
    assert expected[1].sum().item() == pytest.approx(0.8)
    assert expected[1, 0].item() == pytest.approx(0.8 * far / (near + far))
    # The prior's fixed point: seen + a = factor (expected / factor + a).
    seen = {0: 0.9 + 0.2, 1: 0.6}
    masses = {0: 0.9 + expected[1, 1].item(), 1: expected[1, 0].item()}
    for d, factor in enumerate((near, far)):
        assert seen[d] + PRIOR == pytest.approx(masses[d] + PRIOR * factor, abs=0.02)


def test_pairs():
    """Tokens 0 | 7 8 7 9 8: what is the same, and what follows the same, over the causal region."""
    pairs = Pairs(Story([0, 7, 8, 7, 9, 8], None))
    where = lambda x: {tuple(pair) for pair in x.nonzero().tolist()}  # noqa: E731
    assert where(pairs.same) == {(2, 0), (4, 1)}
    assert where(pairs.follows) == {(2, 1), (4, 2)}
    assert where(pairs.visible) == {(i, j) for i in range(5) for j in range(i + 1)}
    near = Pairs(Story([0, 7, 8, 7, 9, 8], None), None, window=2)
    assert where(near.visible) == {(i, j) for i in range(5) for j in range(max(0, i - 1), i + 1)}
    assert where(near.same) == set() and where(near.follows) == {(2, 1)}
    # The first token itself may be what a key follows: GPT-2's has no <|endoftext|>.
    assert where(Pairs(Story([7, 8, 7], None)).follows) == {(1, 0)}


def test_buckets():
    distances = torch.tensor([0, 1, 31, 32, 33, 63, 64, 2047])
    assert bucket(distances).tolist() == [0, 1, 31, 32, 32, 35, 36, 55]


def test_how_steep_the_words_are(world):
    """The planted scores are three times those given: t is 3 there, and 0 for words at random."""
    stories, maps, _ = world
    for name, t in (("semantic", 3), ("near by", 0)):
        h = list(HEADS).index(name)
        text = [x[h : h + 1, 1:, 1:] for x in maps]
        scores = [torch.tensor(np.array(words_of(name, one)))[None, 1:, 1:] for one in stories]
        pairs = [Pairs(one, x.float()) for one, x in zip(stories, scores, strict=True)]
        model = Model("words", 1, "cpu").fit(text, pairs)
        assert model.words.item() == pytest.approx(t, abs=0.1)


def test_too_few_stories():
    with pytest.raises(ValueError):
        classify([torch.ones(1, 3, 3)], [torch.ones(1, 3, 3)], [Story([0, 1, 2], None)])
