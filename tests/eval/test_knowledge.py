"""The knowledge prompts, and the score that needs no judge."""

import re

import pytest
import torch
import torch.nn.functional as F

from eval import harness, knowledge
from eval.prompts import knowledge_prompts
from model import GPT, GPTConfig
from nanostories.dataset import storybook
from nanostories.dataset.tokenizer import Tokenizer, build
from nanostories.training.huggingface import LoadedModel


@pytest.fixture(scope="module")
def loaded():
    """An untrained model with a tokenizer of its own."""
    tokenizer = build("bpe", 400, [story.text for story in storybook.stories(50, 0)])
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=400, block_size=256, n_layer=2, n_head=2, n_embd=32)).eval()
    return LoadedModel(model, tokenizer, 256, [tokenizer.eot], "out/none", {}, [])


def test_the_papers_prompts():
    prompts = knowledge_prompts.paper()
    kinds = [prompt.kind for prompt in prompts]
    assert [kinds.count(kind) for kind in knowledge_prompts.KINDS] == [6, 9, 9]
    assert len({prompt.text for prompt in prompts}) == 24
    for prompt in prompts:
        assert "\n" not in prompt.text and prompt.text == prompt.text.strip()
        assert len(prompt.pairs) >= 2
        for right, wrong in prompt.pairs:
            assert right != wrong and right[0] in " ," and wrong[0] in " ,"
    assert prompts[3].pairs[0] == (" the carrot", " the apple")


def test_the_prompts_of_the_slides():
    hungry, pets = knowledge_prompts.paper("slides")
    assert hungry.text == "Jack was hungry, so he went looking for" and hungry.kind == "facts"
    assert pets.kind == "reasoning" and pets.pairs[0] == (" got a cat", " got a dog")


@pytest.mark.parametrize("name", ["gpt2", "bpe"])
def test_a_continuation_has_the_tokens_it_would_have_in_the_text(name):
    texts = [p.text + c for p in knowledge_prompts.paper() for pair in p.pairs for c in pair]
    tokenizer = build(name, 600, texts) if name == "bpe" else build(name, 0, [])
    assert isinstance(tokenizer, Tokenizer)
    for prompt in [*knowledge_prompts.paper(), *knowledge_prompts.made(20, 0)]:
        for text in (text for pair in prompt.pairs for text in pair):
            apart = tokenizer.encode_prompt(prompt.text) + tokenizer.encode(text)
            assert apart == tokenizer.encode(prompt.text + text)


def test_margins_are_differences_of_log_probabilities(loaded):
    """By hand, one continuation at a time and one token at a time."""
    prompt = knowledge_prompts.Prompt(
        "context", "Tom has a red", ((" kite", " ball and bat"), (" a", " b"))
    )
    start = loaded.encode_prompt(prompt.text)

    def log_p(text):
        ids, total = list(start), 0.0
        for token in loaded.tokenizer.encode(text):
            with torch.no_grad():
                logits = loaded.model(torch.tensor([ids]))[0, -1]
            total += F.log_softmax(logits.double(), -1)[token].item()
            ids.append(token)
        return total

    by_hand = [log_p(right) - log_p(wrong) for right, wrong in prompt.pairs]
    [margins] = harness.log_likelihood_margins(loaded, [prompt])
    assert margins == pytest.approx(by_hand, abs=1e-4)


def test_verdicts_of_margins():
    assert knowledge.verdict_of([1.0, 0.5]) == "success"
    assert knowledge.verdict_of([1.0, -0.5]) == "partial"
    assert knowledge.verdict_of([-1.0, 0.0]) == "failure"  # equal is not correct


def test_made_prompts_ask_what_the_story_has_said():
    prompts = knowledge_prompts.made(100, 7)
    assert prompts == knowledge_prompts.made(100, 7) != knowledge_prompts.made(100, 8)
    assert len({prompt.text for prompt in prompts}) == 100
    kinds = set()
    for prompt in prompts:
        ((right, wrong),) = prompt.pairs
        right, wrong = right.strip(), wrong.strip()
        assert re.search(rf"\b{right}\b", prompt.text)
        assert not re.search(rf"\b{wrong}\b", prompt.text)
        kinds_of_word = [k for k, words in storybook.VALUES.items() if right in words and k != "Y"]
        assert len(kinds_of_word) == 1 and wrong in storybook.VALUES[kinds_of_word[0]]
        kinds.add(kinds_of_word[0])
    assert {"X", "TOY", "ADJ"} <= kinds


def test_scores_by_hand():
    """Two prompts of two pairs: 1 and 1/2 of them right, margins 2 and -1 on average."""
    rows = [
        {"kind": "context", "margins": [1.0, 3.0], "rating": "success"},
        {"kind": "facts", "margins": [1.0, -3.0], "rating": None},
    ]
    scores = knowledge.scores(rows, 0)
    assert scores["accuracy"]["mean"] == 0.75 and scores["margin"]["mean"] == 0.5
    assert scores["accuracy"]["low"] == 0.5 and scores["accuracy"]["high"] == 1.0
    assert scores["rating"]["mean"] == 1.0 and scores["rating"]["n"] == 1
    assert knowledge.scores(rows, 0, "facts")["accuracy"]["mean"] == 0.5
    assert "rating" not in knowledge.scores([{"kind": "facts", "margins": [1.0]}], 0)
    other = [rows[0] | {"margins": [-1.0, 1.0]}, rows[1]]
    tables = [{"model": "a", "completions": rows}, {"model": "b", "completions": other}]
    gap = knowledge.differences(tables, 0)["b"]
    assert gap["accuracy"]["mean"] == 0.25 and gap["margin"]["mean"] == 1.0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (" a cat. It ran", " a cat."), (" a cat", " a cat"), (' a cat!" said Tom. No', ' a cat!"'),
        (" 3.5 cats? No.", " 3.5 cats?"), ("", ""), ("...\nNo.", "..."),
    ],
)  # fmt: skip
def test_a_completion_ends_with_its_sentence(text, sentence):
    assert knowledge.first_sentence(text) == sentence
