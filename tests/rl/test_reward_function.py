"""How close a story is to a word, sentence by sentence, and the guards of the reward."""

import sys
from types import SimpleNamespace

import pytest
import torch

from configs import UserError
from nanostories.dataset import tokenizer
from nanostories.rl.reward_function import RewardFunction, SentenceEmbedder, TokenEmbedder
from nanostories.text.words import sentences

WORDS = ["cat", "dog", "sat", "the"]


def embed(texts):
    """A word's own axis each; a text is the mean of its words."""
    words = [text.strip(".! ").lower().split() for text in texts]
    found = torch.stack([torch.eye(4)[[WORDS.index(w) for w in text]].mean(0) for text in words])
    return torch.nn.functional.normalize(found, dim=1)


@pytest.mark.parametrize("text, parts", [
    ("A cat sat. It ran!", ["A cat sat.", "It ran!"]),
    ('"Oh!" said Tom.\n\nHe ran.', ['"Oh!" said Tom.', "He ran."]),
    ("Mr. Cat saw Mrs. Cat. Oh! dear.", ["Mr. Cat saw Mrs. Cat.", "Oh!", "dear."]),
    ("“Hi.” She went. ", ["“Hi.”", "She went."]),
    ("no end", ["no end"]), ("", []), (" \n", []), ("Mr.Big 3.5 ran.", ["Mr.Big 3.5 ran."]),
])  # fmt: skip
def test_sentences(text, parts):
    assert sentences(text) == parts


def test_by_hand():
    """ "the cat" has a cosine of 1 / sqrt 2 with "cat", "dog" of 0: mean, and mean of the best."""
    text, half = "Dog. The cat. Cat!", 0.5**0.5

    def rewards(texts, word="cat", **settings):
        return RewardFunction(word, embed, **settings)(texts)

    assert rewards([text]) == pytest.approx([(1 + half) / 3])
    assert rewards([text, ""], top_sentences=1) == pytest.approx([1, 0])
    assert rewards([text, "Cat."], top_sentences=2) == pytest.approx([(1 + half) / 2, 0.5])
    capped = {"top_sentences": 2, "max_similarity": 0.3}
    assert rewards([text], **capped) == pytest.approx([0.3])
    assert rewards([text], "dog", **capped) == pytest.approx([0.15])


def test_the_guard_against_short_stories():
    """The fraction of min_words that a story lacks is taken off: "cat" alone is no good story."""
    reward_function = RewardFunction("cat", embed, min_words=4)
    short, long, longer = reward_function(["Cat.", "Cat cat cat cat.", "Cat cat cat cat cat."])
    assert (short, long, longer) == pytest.approx((0.25, 1, 1))
    assert reward_function([""]) == [-1]


def test_the_guard_against_repetition():
    """Repetition beyond the usual costs reward: of "cat" seven times four of five 3-grams."""
    text = "Cat cat cat cat cat cat cat"
    for penalty, usual, lost in ((0, 0.0, 0.0), (0.5, 0.0, 0.4), (0.5, 0.6, 0.1), (0.5, 0.9, 0.0)):
        reward_function = RewardFunction(
            "cat", embed, repetition_penalty=penalty, usual_repetition=usual
        )
        assert reward_function([text, "Cat cat", ""]) == pytest.approx([1 - lost, 1, 0])


@pytest.fixture
def loaded():
    """A model of bytes with random embeddings, of which the unused ones are far off."""
    bytewise = tokenizer.build("bytes")
    torch.manual_seed(0)
    weight = torch.randn(384, 16) + 5.0
    weight[:32] += 100.0
    wte = SimpleNamespace(weight=torch.nn.Parameter(weight))
    return SimpleNamespace(tokenizer=bytewise, model=SimpleNamespace(wte=wte))


def test_the_models_own_embeddings(loaded):
    """The mean embedding of the tokens, less the mean over the stories' tokens, in standard
    deviations of each direction; a text is encoded as inside a story.
    """
    texts = ["the cat sat", "on a mat"]
    embedder, weight = TokenEmbedder(loaded, texts), loaded.model.wte.weight.detach()
    ids = [i for text in texts for i in text.encode()]
    known = weight[ids].double()
    cov = torch.cov(known.T, correction=0)
    cov += 0.1 * cov.trace() / len(cov) * torch.eye(len(cov))
    vectors = embedder(["cat", "a mat"]).double()
    cat, mat = (weight[list(text.encode())].double().mean(0) - known.mean(0)
                for text in (" cat", " a mat"))  # fmt: skip
    inverse = torch.linalg.inv(cov)  # so that products are Mahalanobis'
    norms = [(x @ inverse @ x).sqrt() for x in (cat, mat)]
    assert (vectors[0] @ vectors[1]).item() == pytest.approx(
        ((cat @ inverse @ mat) / norms[0] / norms[1]).item(), abs=1e-5)  # fmt: skip
    assert vectors.norm(dim=1).tolist() == pytest.approx([1, 1], abs=1e-5)
    # Without the mean all would be alike.
    assert (embedder(["cat"]) @ embedder(["zzz"]).T).item() < 0.9
    assert RewardFunction("cat", embedder)(["cat cat. cat"])[0] > 0.8
    with pytest.raises(UserError, match="completions are empty"):
        TokenEmbedder(loaded, ["", ""])


@pytest.mark.slow
def test_a_model_of_sentences(tmp_path):
    """Any of the library's, offline: here one with random weights."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]))
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = BertModel(BertConfig(vocab_size=8, intermediate_size=16, **shape))
    bert.save_pretrained(tmp_path / "bert")
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    reward_function = RewardFunction("cat", SentenceEmbedder(str(tmp_path / "bert"), "cpu"))
    same, other = reward_function(["cat", "the dog sat. the dog"])
    assert same == pytest.approx(1) and other < 0.999


def test_a_model_that_cannot_be_loaded(monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"embedder '.*' cannot be loaded") as error:
        SentenceEmbedder(str(tmp_path / "nothing"), "cpu")
    assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UserError, match="pip install sentence-transformers"):
        SentenceEmbedder("all-MiniLM-L6-v2", "cpu")
