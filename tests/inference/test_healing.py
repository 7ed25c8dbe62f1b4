"""Prompts that end in a blank or within a word: through sample.py, and against the definition."""

import json
import sys
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F

import sample
from model import GPT, GPTConfig
from nanostories.dataset import storybook
from nanostories.dataset.tokenizer import build
from nanostories.inference.healing import Healer
from nanostories.training import checkpoint
from train import Settings

STORIES = [
    f"Once upon a time there was a little {who}. The {who} had a {what}.\nThe end."
    for who in ("girl", "boy", "dog", "cat")
    for what in ("ball", "hat", "kite", "cup")
]


@pytest.fixture(scope="module")
def tokenizer():
    """Whose words are tokens, with the blank before them."""
    return build("bpe", 400, [story.text for story in storybook.stories(100)] + STORIES * 50)


@pytest.fixture(scope="module")
def run(tmp_path_factory, tokenizer):
    """A run that has learned the stories."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(tokenizer.vocab_size, 48, 2, 2, 32))
    ids = [[tokenizer.eot, *tokenizer.encode(story), tokenizer.eot] for story in STORIES]
    length = max(map(len, ids))
    batch = torch.tensor([x + [tokenizer.eot] * (length - len(x)) for x in ids])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(60):
        logits = model(batch[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    out = tmp_path_factory.mktemp("out") / "learned"
    checkpoint.create_run_folder(out, model.config, Settings(), tokenizer, {})
    state = {"step": 1, "best_step": 1, "kept_steps": [], "max_length": 48, "data": {}}
    checkpoint.write_checkpoint(
        out, model.state_dict(), {}, state | {"model": asdict(model.config)}
    )
    return out


@pytest.fixture
def stories(run, capsys, monkeypatch):
    """The function that samples texts with sample.py."""

    def call(prompt, *arguments):
        words = ["sample.py", str(run), f"--start={prompt}", "--json", *arguments]
        monkeypatch.setattr(sys, "argv", words)
        sample.main()
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert all(line["prompt"] == prompt and line["text"].startswith(prompt) for line in lines)
        return [line["text"] for line in lines]

    return call


@pytest.mark.parametrize("prompt", [
    "Once upon a time ", "Once upon a time there was a little ", "Once upon a t",
    "Once upon a time there was a litt", "Once upon a time the", "Once ",
])  # fmt: skip
@pytest.mark.parametrize("arguments", [("--num_samples=20",), ("--temperature=0",), ("--beams=3",)])
def test_the_story_goes_on_from_where_the_prompt_ends(stories, prompt, arguments):
    texts = stories(prompt, *arguments)
    right = [text for text in texts if text.startswith("Once upon a time there was a little ")]
    assert len(right) >= 0.9 * len(texts), texts
    assert not any("  " in text for text in texts)


def test_what_the_terminal_shows_is_the_same(run, stories, capsys, monkeypatch):
    words = ["sample.py", str(run), "--start=Once upon a tim", "--num_samples=2"]
    texts = stories("Once upon a tim", "--num_samples=2")
    monkeypatch.setattr(sys, "argv", words)
    sample.main()
    assert capsys.readouterr().out == sample.SEPARATOR.join(texts) + "\n"


def test_blanks_of_the_prompt_stay_as_typed(stories):
    for prompt in ("Once  upon a time  ", "Once\t", "Once\u00a0", " ", "  \n ", "Once upon\n"):
        stories(prompt, "--num_samples=3")


def test_a_whole_word_and_a_line_keep_their_tokens(tokenizer, run):
    """Also where longer tokens begin like it; so seeds give what they gave."""
    loaded = checkpoint.load_run(run)
    for text in ("Once upon a time", "Once upon a time there was a little girl.", "The end.\n"):
        prompt = loaded.encode_prompt(text)
        x = loaded.model.hidden(torch.tensor([prompt]))[0, :-1]
        healed = list(prompt)
        Healer(tokenizer)(Logits(loaded.model.wte.weight), [healed], [0], {tuple(prompt): x})
        assert healed == prompt


class Logits:
    """A decoder whose logits are hidden states times a matrix."""

    def __init__(self, matrix):
        self.matrix = matrix

    def logits(self, x):
        return x @ self.matrix.T


def test_endings_have_the_probability_of_their_tokens(tokenizer):
    """That of the tokens as typed, and of each that spells all their characters and more."""
    torch.manual_seed(0)
    prompt = [tokenizer.eot, *tokenizer.encode("She saw a litt")]
    place = next(i for i in range(1, len(prompt)) if tokenizer.decode(prompt[i:]) == " litt")
    logits = torch.randn(len(prompt) - 1, tokenizer.vocab_size)
    logits[place - 1] += 9 * torch.tensor([t.startswith(b" litt") for t in tokenizer.tokens] + [0])
    log_p, p = logits.log_softmax(-1), {}
    p[tuple(prompt[place:])] = sum(log_p[k - 1, prompt[k]] for k in range(place, len(prompt)))
    for i, token in enumerate(tokenizer.tokens):
        if token.startswith(b" litt"):
            p[i,] = log_p[place - 1, i]
    p = {ending: log_p.exp().item() for ending, log_p in p.items()}
    assert len(prompt) - place > 1 and len(p) > 1
    seen = set()
    for seed in range(30):
        heal, healed = Healer(tokenizer), list(prompt)
        heal(Logits(torch.eye(tokenizer.vocab_size)), [healed], [[seed]], {tuple(prompt): logits})
        ending = tuple(healed[place:])
        assert heal.p == pytest.approx(p[ending] / sum(p.values()), rel=1e-4)
        assert healed[:place] == prompt[:place]
        seen.add(ending)
    assert len(seen) > 1 or len(p) == 2


def test_weights_of_no_use_are_told_as_elsewhere(tokenizer):
    prompt = [tokenizer.eot, *tokenizer.encode_prompt("Once upon a time ")]
    logits = torch.full((len(prompt) - 1, tokenizer.vocab_size), float("nan"))
    decoder = Logits(torch.eye(tokenizer.vocab_size))
    with pytest.raises(FloatingPointError, match="nan or inf"):
        Healer(tokenizer)(decoder, [prompt], [[0]], {tuple(prompt): logits})


def test_stories_do_not_depend_on_the_batch(run, tmp_path, capsys, monkeypatch):
    path, printed = tmp_path / "prompts.txt", []
    path.write_text(
        "Once upon a time \nOnce\nOnce upon a t\nOnce upon a time there was a litt\n" * 3
    )
    for batch_size in (1, 5, 64):
        words = [f"--start=FILE:{path}", "--json", "--temperature=1.5", "--num_samples=2"]
        monkeypatch.setattr(sys, "argv", ["s", str(run), *words, f"--batch_size={batch_size}"])
        sample.main()
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] == printed[2] and printed[0].count("\n") == 24
