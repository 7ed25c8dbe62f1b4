"""python -m eval.reward: three models, the same beginning; measured by hand, judged blind."""

import json
import math
import re
import sys
from types import SimpleNamespace

import pytest
import tiny
import torch
from chat_server import ChatServer
from tiny import settings_for

import prepare
import reward as rewarding
from configs import UserError
from eval import bootstrap, harness, reward
from eval.llm.rubrics import TOPIC, JudgeItem
from eval.reward import compare, summarize, thresholds, verdict
from nanostories.dataset.tokenizer import Tokenizer
from nanostories.inference.generate import Completion
from nanostories.storage import write_json
from nanostories.training import checkpoint


def line(about=True, ended=True, repeated=0, nll=20.0, **more):
    return {"about": about, "ended": ended, "repeated_trigrams": repeated, "trigrams": 10,
            "nll": nll, "tokens": 10, "mentions": 2, "reward": 0.5, "words": 9,
            "text": "A cat ran.", "verdict": "good"} | more  # fmt: skip


def test_verdicts():
    """Each rule fails alone, and two together; not about the word is enough."""
    limits = (0.2, 2.5, 9)
    assert verdict(line(), limits) == "good" == verdict(line(repeated=2, nll=25.0), limits)
    for fails in ({"ended": False}, {"repeated": 3}, {"nll": 26.0}, {"words": 8}):
        assert verdict(line(**fails), limits) == "okay"
        assert verdict(line(about=False, **fails), limits) == "bad"
    assert verdict(line(about=False), limits) == "bad"
    assert verdict(line(repeated=9, nll=99.0), limits) == "bad"


def test_thresholds():
    """Of 100 stories five are more repetitive, five of a higher perplexity, five shorter."""
    lines = [line(repeated=9 * (i < 5), nll=90.0 if i > 94 else 20.0, words=9 - (9 < i < 15))
             for i in range(100)]  # fmt: skip
    repetition, nll, words = limits = thresholds(lines)
    assert 0 <= repetition < 0.9 and 2 <= nll < 9 and 8 <= words <= 9
    assert sum(verdict(one, limits) == "good" for one in lines) >= 85


def test_summarize_by_hand():
    lines = [line(), line(about=False, repeated=5, nll=10.0, verdict="bad", mentions=0)]
    results = summarize(lines, 0)
    assert results["about"]["mean"] == 0.5 and results["mentions"]["mean"] == 1
    assert results["repetition"]["mean"] == pytest.approx(5 / 20)
    assert results["perplexity"]["mean"] == pytest.approx(math.exp(30 / 20))
    assert results["verdicts"] == {"good": 1, "okay": 0, "bad": 1} and results["distinct_2"] is None


def test_against_the_reference():
    """Ratios: twice as repetitive; e times the perplexity. A model against itself is 1."""
    base = [line(repeated=i % 3, nll=20.0 + i % 2) for i in range(60)]
    more = [line(repeated=2 * (i % 3), nll=30.0 + i % 2) for i in range(60)]
    results = compare(more, base, 0)
    assert results["repetition"]["mean"] == pytest.approx(2)
    assert results["perplexity"]["mean"] == pytest.approx(math.e)
    assert results["repetition"]["low"] < 2 < results["repetition"]["high"]
    assert compare(base, base, 0)["perplexity"]["mean"] == pytest.approx(1)
    assert compare(base, base, 0)["repetition"]["low"] < 1  # resampled independently
    never = [one | {"repeated_trigrams": 0} for one in base]
    assert compare(base, never, 0)["repetition"] is None


def test_the_judge_is_read():
    item = JudgeItem(" a cat.", "There was", "the word 'cat'")
    assert "about the word 'cat'" in TOPIC.prompt(0, item)
    assert TOPIC.parse(f"Fine. {item.verdict_nonce} Rating: okay", item) == {"rating": "okay"}
    assert TOPIC.parse("no idea", item) is None


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """A base run, a run of reward.py from it, and one of Instruct records."""
    folder = tmp_path_factory.mktemp("runs")
    tiny.train(settings_for(data, folder / "base", max_iters=60))
    settings = rewarding.Settings(
        word="dog", init_from=str(folder / "base"), out_dir=str(folder / "reward"), batch_size=4,
        start="One day", max_new_tokens=30, max_iters=1, min_words=5, device="cpu",
    )  # fmt: skip
    settings = rewarding.complete(settings, dict.fromkeys(vars(settings), "default"))
    rewarding.train(settings)
    records = str(folder / "records")
    prepare.prepare(
        prepare.Settings(
            source="instruct:storybook", tokenizer=data, stories=100, val_fraction=0.1,
            out=records, workers=1,
        )
    )  # fmt: skip
    tiny.train(settings_for(records, folder / "instruct", max_iters=20))
    return folder


def call(*words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["reward.py", "--device=cpu", "--stories=6", *map(str, words)])
        reward.main()


def test_the_command(runs, capsys):
    call(runs / "reward", f"--instruct={runs / 'instruct'}")
    results = json.loads((runs / "reward" / "eval" / "reward.json").read_text())
    assert list(results["models"]) == ["reference", "reward", "instruct"]
    assert results["word"] == "dog" and results["start"] == "One day"
    lines = [json.loads(x) for x in (runs / "reward/eval/reward.jsonl").read_text().splitlines()]
    assert [x["model"] for x in lines] == ["reference"] * 6 + ["reward"] * 6 + ["instruct"] * 6
    assert all(x["start"] == "One day" and not x["text"].startswith("One day") for x in lines)
    # The perplexity is the reference's own loss on the whole story, with its end.
    loaded = checkpoint.load_model(str(runs / "base"))
    one = lines[7]
    ids = loaded.encode_prompt(one["start"]) + loaded.tokenizer.encode(one["text"])
    ids += [loaded.tokenizer.eot] * one["ended"]
    logs = loaded.model(torch.tensor([ids[:-1]])).log_softmax(-1)[0]
    first = len(loaded.encode_prompt(one["start"])) - 1
    nll = -sum(logs[i, ids[i + 1]].item() for i in range(first, len(ids) - 1))
    assert one["nll"] == pytest.approx(nll, rel=1e-4) and one["tokens"] == len(ids) - 1 - first
    about = [x["about"] for x in lines[6:12]]
    assert results["models"]["reward"]["about"] == bootstrap.mean(about, results["seed"])
    out = capsys.readouterr().out
    for label in ("about", "repetition, x reference", "good, okay, bad", "--- instruct"):
        assert label in out, label
    assert "by the judge" not in out


def test_a_run_that_was_trained_on_a_gpu_is_evaluated_elsewhere(runs, monkeypatch):
    stored = reward.read_settings(runs / "reward") | {"attn": "triton"}
    monkeypatch.setattr(reward, "read_settings", lambda out_dir: stored)
    _, run_settings = reward.complete(reward.Settings(out_dir=str(runs / "reward")))
    assert run_settings.attn == "auto" and run_settings.word == "dog"


def sampling(**changes):
    return reward.Settings(**{"max_new_tokens": 30, "batch_size": 8, "temperature": 0.8} | changes)


def test_a_story_continues_the_prompt(runs):
    """With the blank between them, so that its tokens are almost always those sampled."""
    loaded = checkpoint.load_model(str(runs / "base"))
    stories = reward.generate_stories(loaded, ["One day"] * 8, sampling(seed=1))
    assert sum(text.startswith((" ", ",")) for text, _ in stories) >= 6
    assert all(text for text, _ in stories)


def test_another_reference_is_refused(runs, monkeypatch):
    read = checkpoint.read_state
    other = {"reference": {"step": 1, "sha256": "another"}}
    monkeypatch.setattr(checkpoint, "read_state", lambda *args: read(*args) | other)
    with pytest.raises(UserError, match="is no longer the model"):
        call(runs / "reward")


def test_the_judge_is_blind(runs, capsys):
    """It sees each story once, shuffled, and not which model wrote it."""
    seen = []

    def teacher(body, number):
        (text,) = (message["content"] for message in body["messages"])
        seen.append(text)
        nonce = re.search(r"^(\w{16}) Rating", text, re.MULTILINE)[1]
        return f"{nonce} Rating: {'good' if 'dog' in text.split(']')[1] else 'bad'}"

    with ChatServer(teacher) as server:
        call(runs / "reward", "--judge=tiny", f"--base_url={server.url}", "--concurrency=1")
    lines = [json.loads(x) for x in (runs / "reward/eval/reward.jsonl").read_text().splitlines()]
    assert len(seen) == 12 and not any("reference" in x or "reward" in x for x in seen)
    order = [next(i for i, x in enumerate(lines) if x["text"] in text) for text in seen]
    assert sorted(order) != order
    for one in lines:
        assert one["judge"] == ("good" if "dog" in one["start"] + one["text"] else "bad")
    results = json.loads((runs / "reward" / "eval" / "reward.json").read_text())
    assert sum(results["models"]["reward"]["judged"].values()) == 6
    assert "by the judge" in capsys.readouterr().out
    call(runs / "reward", "--judge=tiny", "--dry_run")
    assert "12 calls" in capsys.readouterr().out


@pytest.mark.parametrize("words, why", [
    ([], "usage: python -m eval.reward"),
    (["{runs}/base"], "is not a run of reward.py"),
    (["nowhere"], "no run in 'nowhere'"),
    (["{runs}/reward", "--instruct=./none"], "none"),
    (["{runs}/reward", "--stories=1"], "stories must be at least 2"),
    (["{runs}/reward", "--temperature=-1"], "temperature must be 0 or more"),
])  # fmt: skip
def test_what_it_refuses(words, why, runs):
    with pytest.raises(UserError, match=re.escape(why)) as error:
        call(*(word.format(runs=runs) for word in words))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("written, text, ended", [
    (" The dog ran.\n\nSummary: A dog runs.", " The dog ran.", True),
    (" The dog ran.", " The dog ran.", False),
])  # fmt: skip
def test_a_summary_ends_a_story(written, text, ended, data, monkeypatch):
    """A model of the raw Instruct file writes one after the story."""
    loaded = SimpleNamespace(tokenizer=Tokenizer.load(data))
    completion = Completion(loaded.tokenizer.encode(written), ended=False)
    monkeypatch.setattr(harness, "generate_completions", lambda *_: [[completion]])
    assert reward.generate_stories(loaded, ["One day"], sampling()) == [(text, ended)]


def test_only_an_instruct_model_gets_an_instruction(runs, monkeypatch):
    seen, generate_stories = [], reward.generate_stories
    monkeypatch.setattr(
        reward,
        "generate_stories",
        lambda loaded, prompts, settings: (
            seen.append(prompts) or generate_stories(loaded, prompts, settings)
        ),
    )
    call(runs / "reward", f"--instruct={runs / 'instruct'}")
    assert seen[0] == seen[1] == ["One day"] * 6
    assert all("Words: dog" in text and text.endswith("One day") for text in seen[2])


def test_what_exceeds_the_reference_is_left_out(runs):
    loaded = checkpoint.load_model(str(runs / "base"))
    stories = [(" The dog ran." * 99, True)]
    [(nll, count)] = reward.reference_nlls(loaded, ["One day"], stories, batch_size=1)
    assert count == loaded.max_length - len(loaded.encode_prompt("One day")) + 1 and nll > 0


def test_an_older_run_is_refused(tmp_path):
    write_json(tmp_path / "config.json", {"train": {"kl_factor": 0.1, "enough": 1.0}})
    with pytest.raises(UserError, match="one of an older version"):
        call(tmp_path)
