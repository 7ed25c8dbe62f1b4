"""python -m eval.skills: what a model prefers, by hand, and the command on a tiny run."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from tiny import settings_for

from configs import UserError
from eval import harness, skills
from eval.prompts.knowledge_prompts import Prompt
from nanostories.training import checkpoint


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """A run that has learned a little, and one that has not."""
    folder = tmp_path_factory.mktemp("runs")
    for name, steps in (("some", 60), ("none", 1)):
        settings = settings_for(data, folder / name, max_iters=steps, save_steps="log")
        tiny.train(settings)
    return folder


def call(*words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["skills.py", "--device=cpu", *map(str, words)])
        skills.main()


def results(folder):
    return json.loads((folder / "eval" / "skills.json").read_text())


def test_the_command(runs, capsys):
    for name in ("some", "none"):
        call(runs / name, "--steps", "--questions=40")
    some, none = (results(runs / name) for name in ("some", "none"))
    assert some["questions_sha256"] == none["questions_sha256"]
    assert set(some["correct"]) <= set(skills.KINDS)
    for kind in ("grammar", "reasoning", "facts"):  # of our own sentences, whatever the data
        assert some["questions"][kind] >= 40 > len(some["correct"][kind]) > 1
    for kind, correct in some["correct"].items():
        assert some["skills"][kind]["accuracy"]["mean"] == pytest.approx(np.mean(correct))
    steps = [row["step"] for row in some["checkpoints"]]
    assert steps == checkpoint.steps_of(runs / "some") and 32 in steps and steps[-1] == 60
    for kind, correct in some["checkpoints"][-1]["correct"].items():
        assert correct == some["correct"][kind][:: 4 if kind in ("plot", "context") else 1]
        accuracy = some["checkpoints"][-1]["skills"][kind]["accuracy"]["mean"]
        assert accuracy == pytest.approx(np.mean(correct))
    assert some["checkpoints"][0]["correct"] != some["checkpoints"][-1]["correct"]
    tokens = [row["tokens"] for row in some["checkpoints"]]
    assert tokens == sorted(tokens)
    call(runs / "some", "--steps", "--questions=40", "--first_step=32")
    assert results(runs / "some")["checkpoints"] == some["checkpoints"][steps.index(32) :]
    assert some["correct"] != none["correct"] and "grammar" in capsys.readouterr().out


def test_scores_by_hand(monkeypatch):
    """Of a prompt's pairs the fraction that is correct; of a kind each prompt counts once, but of
    grammar, reasoning and facts each rule."""
    two, one, margins = ((" b", " c"),) * 2, ((" b", " c"),), [[1.0, -3.0], [2.0], [2.0]]
    for kind, expected in (("plot", [0.5, 1.0, 1.0]), ("grammar", [2 / 3, 1.0])):
        prompts = [
            Prompt(kind, "a", two, "x"),
            Prompt(kind, "d", one, "y"),
            Prompt(kind, "e", one, "x"),
        ]
        monkeypatch.setattr(harness, "log_likelihood_margins", lambda *_: margins)
        scores = skills.score(None, prompts)
        assert scores[kind]["accuracy"].tolist() == expected
        mean = skills.summary(scores, 0)["skills"][kind]["accuracy"]["mean"]
        assert mean == pytest.approx(np.mean(expected))
    assert scores["grammar"]["margin"].tolist() == [0.0, 2.0]


def test_both_ways_are_one_question(monkeypatch):
    """Of reasoning and facts the two margins of a question count together."""
    prompts = [Prompt("facts", "a", ((" b", " c"),) * 4), Prompt("plot", "a", ((" b", " c"),) * 4)]
    monkeypatch.setattr(harness, "log_likelihood_margins", lambda *_: [[3.0, -1.0, 2.0, -4.0]] * 2)
    scores = skills.score(None, prompts)
    assert scores["facts"]["accuracy"].tolist() == [0.5] == scores["plot"]["accuracy"].tolist()
    assert scores["facts"]["margin"].tolist() == [0.0]
    monkeypatch.setattr(harness, "log_likelihood_margins", lambda *_: [[3.0, -1.0, 4.0, -2.0]] * 2)
    assert skills.score(None, prompts)["facts"]["accuracy"].tolist() == [1.0]
    assert skills.count(prompts, "facts") == 2 and skills.count(prompts, "plot") == 4


@pytest.mark.parametrize("kind", ["facts", "reasoning"])
def test_the_questions_of_a_rule_count_together(kind, monkeypatch):
    """Also those of several prompts, of which an interval would draw one without the other."""
    prompts = [Prompt(kind, text, ((" b", " c"),) * 4, text[:1]) for text in ("a1", "b", "a2")]
    margins = [[1.0] * 4, [-1.0, -1.0, 1.0, 1.0], [-1.0, -1.0, -1.0, -1.0]]
    monkeypatch.setattr(harness, "log_likelihood_margins", lambda *_: margins)
    assert skills.score(None, prompts)[kind]["accuracy"].tolist() == [0.5, 0.5]


def test_checkpoints_are_asked_a_part_of_each_kind():
    every = "012345678"
    kinds = {"grammar": every, "consistency": every, "plot": "048", "facts": every}
    prompts = [Prompt(kind, str(i), ()) for i in range(9) for kind in kinds]
    asked = [(one.kind, one.text) for one in skills.thinned(prompts)]
    assert asked == [(kind, text) for kind, some in kinds.items() for text in some]


def test_questions_are_of_the_first_stories(runs, monkeypatch):
    """As many held-out stories as a data set has would take longer to read than to ask about."""
    made_from = []
    make = lambda texts, *rest: made_from.append(texts) or kept(texts, *rest)  # noqa: E731
    kept = skills.make
    monkeypatch.setattr(skills, "make", make)
    call(runs / "none", "--questions=4", "--stories=7")
    call(runs / "none", "--questions=4")
    assert len(made_from[0]) == 7 and made_from[1][:7] == made_from[0] and len(made_from[1]) > 7


def test_what_a_model_cannot_read_is_left_out():
    encode = lambda text: list(range(len(text.split())))  # noqa: E731
    loaded = SimpleNamespace(
        tokenizer=SimpleNamespace(encode=encode), encode_prompt=encode,
        model=SimpleNamespace(config=SimpleNamespace(block_size=5)),
    )  # fmt: skip
    short = Prompt("plot", "a b c", ((" d e", " e d"),))
    long = Prompt("plot", "a b c", ((" d e", " e d f"),))
    assert skills.fitting([short, long], loaded) == [short]


@pytest.mark.parametrize("words, why", [
    (["--init_from=nowhere/none"], "nowhere"), (["{run}", "--questions=1"], "at least 2"),
    (["{run}", "--dataset=nowhere"], "no data"),
])  # fmt: skip
def test_errors(words, why, runs):
    with pytest.raises(UserError, match=why):
        call(*(word.format(run=runs / "none") for word in words))
