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
from eval import bootstrap, reward
from eval.llm.rubrics import TOPIC, JudgeItem
from eval.reward import against, summary, usual_of, verdict
from nanostories.dataset.tokenizer import Tokenizer
from nanostories.inference.generate import Completion
from nanostories.training import checkpoint


def line(about=True, ended=True, repeated=0, nats=20.0, **more):
    return {"about": about, "ended": ended, "repeated": repeated, "grams": 10, "nats": nats,
            "tokens": 10, "mentions": 2, "reward": 0.5, "words": 9, "text": "A cat ran.",
            "verdict": "good"} | more  # fmt: skip


def test_verdicts():
    """Each rule fails alone, and two together; not to be about the word is enough."""
    usual = (0.2, 2.5, 9)
    assert verdict(line(), usual) == "good" == verdict(line(repeated=2, nats=25.0), usual)
    for fails in ({"ended": False}, {"repeated": 3}, {"nats": 26.0}, {"words": 8}):
        assert verdict(line(**fails), usual) == "okay"
        assert verdict(line(about=False, **fails), usual) == "bad"
    assert verdict(line(about=False), usual) == "bad"
    assert verdict(line(repeated=9, nats=99.0), usual) == "bad"


def test_what_is_usual():
    """Of a hundred stories five are more repetitive, five more surprising and five shorter."""
    lines = [line(repeated=9 * (i < 5), nats=90.0 if i > 94 else 20.0, words=9 - (9 < i < 15))
             for i in range(100)]  # fmt: skip
    repeated, surprised, words = usual = usual_of(lines)
    assert 0 <= repeated < 0.9 and 2 <= surprised < 9 and 8 <= words <= 9
    assert sum(verdict(one, usual) == "good" for one in lines) >= 85


def test_summary_by_hand():
    lines = [line(), line(about=False, repeated=5, nats=10.0, verdict="bad", mentions=0)]
    found = summary(lines, 0)
    assert found["about"]["mean"] == 0.5 and found["mentions"]["mean"] == 1
    assert found["repetition"]["mean"] == pytest.approx(5 / 20)
    assert found["perplexity"]["mean"] == pytest.approx(math.exp(30 / 20))
    assert found["verdicts"] == {"good": 1, "okay": 0, "bad": 1} and found["distinct_2"] is None


def test_against_the_reference():
    """Ratios: twice as repetitive; e times as surprising. A model against itself is 1."""
    base = [line(repeated=i % 3, nats=20.0 + i % 2) for i in range(60)]
    more = [one | {"repeated": 2 * one["repeated"], "nats": one["nats"] + 10} for one in base]
    found = against(more, base, 0)
    assert found["repetition"]["mean"] == pytest.approx(2)
    assert found["perplexity"]["mean"] == pytest.approx(math.e)
    assert found["repetition"]["low"] < 2 < found["repetition"]["high"]
    assert against(base, base, 0)["perplexity"]["mean"] == pytest.approx(1)
    assert against(base, base, 0)["repetition"]["low"] < 1  # drawn apart, not together
    never = [one | {"repeated": 0} for one in base]
    assert against(base, never, 0)["repetition"] is None


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
    asked = rewarding.Settings(
        word="dog", init_from=str(folder / "base"), out_dir=str(folder / "reward"), batch_size=4,
        start="One day", max_new_tokens=30, max_iters=1, min_words=5, device="cpu",
    )  # fmt: skip
    asked = rewarding.complete(asked, dict.fromkeys(vars(asked), "default"))
    rewarding.train(asked)
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
    # The perplexity is the reference's own loss on the whole story, end included.
    found = checkpoint.load_model(str(runs / "base"))
    one = lines[7]
    ids = found.encode_prompt(one["start"]) + found.tokenizer.encode(one["text"])
    ids += [found.tokenizer.eot] * one["ended"]
    logs = found.model(torch.tensor([ids[:-1]])).log_softmax(-1)[0]
    first = len(found.encode_prompt(one["start"])) - 1
    nats = -sum(logs[i, ids[i + 1]].item() for i in range(first, len(ids) - 1))
    assert one["nats"] == pytest.approx(nats, rel=1e-4) and one["tokens"] == len(ids) - 1 - first
    about = [x["about"] for x in lines[6:12]]
    assert results["models"]["reward"]["about"] == bootstrap.mean(about, results["seed"])
    out = capsys.readouterr().out
    for label in ("about", "repetition, x reference", "good, okay, bad", "--- instruct"):
        assert label in out, label
    assert "the judge" not in out


def test_what_was_told_goes_on_from_the_beginning(runs):
    """With its blank: the tokens measured are, but for how a word may be cut, those sampled."""
    found = checkpoint.load_model(str(runs / "base"))
    asked = SimpleNamespace(max_new_tokens=30, batch_size=8, seed=1, temperature=0.8,
                            weights="float32", device=torch.device("cpu"))  # fmt: skip
    told = reward.tell(found, ["One day"] * 8, asked)
    assert sum(text.startswith((" ", ",")) for text, _ in told) >= 6
    assert all(text for text, _ in told)


def test_another_reference_is_refused(runs, monkeypatch):
    read = checkpoint.read_state
    other = {"reference": {"step": 1, "sha256": "another"}}
    monkeypatch.setattr(checkpoint, "read_state", lambda *args: read(*args) | other)
    with pytest.raises(UserError, match="is no longer the model"):
        call(runs / "reward")


def test_the_judge_is_blind(runs, capsys):
    """It sees each story once, shuffled, and nothing of whose it is."""
    seen = []

    def teacher(body, number):
        (text,) = (message["content"] for message in body["messages"])
        seen.append(text)
        seal = re.search(r"^(\w{16}) Rating", text, re.MULTILINE)[1]
        return f"{seal} Rating: {'good' if 'dog' in text.split(']')[1] else 'bad'}"

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
    assert "the judge" in capsys.readouterr().out
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


@pytest.mark.parametrize("said, text, ended", [
    (" The dog ran.\n\nSummary: A dog runs.", " The dog ran.", True),
    (" The dog ran.", " The dog ran.", False),
])  # fmt: skip
def test_a_summary_ends_a_story(said, text, ended, data, monkeypatch):
    """As a model of the raw Instruct file goes on: what it adds is no story."""
    found = SimpleNamespace(
        tokenizer=Tokenizer.load(data), model=None, max_length=99, encode_prompt=lambda text: [0]
    )
    monkeypatch.setattr(reward, "open_decoder", lambda *_: None)
    story = Completion(found.tokenizer.encode(said), ended=False)
    monkeypatch.setattr(reward, "generate", lambda *_, **__: [story])
    asked = SimpleNamespace(weights="float32", device="cpu", max_new_tokens=9, batch_size=1, seed=0,
                            temperature=1.0)  # fmt: skip
    assert reward.tell(found, ["One day"], asked) == [(text, ended)]


def test_only_an_instruct_model_is_told_what_to_do(runs, monkeypatch):
    asked, tell = [], reward.tell
    monkeypatch.setattr(
        reward,
        "tell",
        lambda found, prompts, how: asked.append(prompts) or tell(found, prompts, how),
    )
    call(runs / "reward", f"--instruct={runs / 'instruct'}")
    assert asked[0] == asked[1] == ["One day"] * 6
    assert all("Words: dog" in text and text.endswith("One day") for text in asked[2])


def test_of_a_story_longer_than_the_reference_reads_the_rest_is_left_out(runs):
    found = checkpoint.load_model(str(runs / "base"))
    asked = SimpleNamespace(batch_size=1, device="cpu")
    [(nats, count)] = reward.surprise(found, ["One day"], [(" The dog ran." * 99, True)], asked)
    assert count == found.max_length - len(found.encode_prompt("One day")) + 1 and nats > 0
