"""python -m eval.loss: which stories it scores."""

import json
import sys

import pytest
from tiny import settings_for, train

import prepare
from configs import UserError
from eval import harness, loss
from nanostories import storage


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two data folders of one tokenizer, and a run on the first."""
    top = tmp_path_factory.mktemp("loss")
    for name, seed, tokenizer in (("one", 0, "bpe"), ("two", 9, str(top / "one"))):
        prepare.prepare(prepare.Settings(
            source="storybook", tokenizer=tokenizer, vocab_size=400, stories=120, seed=seed,
            val_fraction=0.2, out=str(top / name), workers=1,
        ))  # fmt: skip
    train(settings_for(str(top / "one"), top / "run", max_iters=3))
    return top


def measured(runs, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["eval.loss", str(runs / "run"), *words])
    loss.main()
    return json.loads((runs / "run" / "eval" / "loss.json").read_text())


def test_the_held_out_stories_of_another_data_folder(runs, monkeypatch):
    own = measured(runs, monkeypatch)
    same = measured(runs, monkeypatch, f"--dataset={runs / 'one'}")
    other = measured(runs, monkeypatch, f"--dataset={runs / 'two'}")
    assert same["loss"] == own["loss"] != other["loss"] and other["source"] == str(runs / "two")
    with pytest.raises(UserError, match="no data in"):
        measured(runs, monkeypatch, "--dataset=data/nowhere")


def test_the_first_stories_alone(runs, monkeypatch):
    stories = list(harness.val_texts(str(runs / "one")))
    some = measured(runs, monkeypatch, "--stories=5")
    assert some["bytes"] == sum(len(text.encode()) + 1 for text in stories[:5])
    assert measured(runs, monkeypatch)["bytes"] > some["bytes"] and some["stories"] == 5


def test_a_run_of_reward_py_is_scored_whole(runs, monkeypatch):
    """Its settings have no loss_on."""
    config = storage.read_json(runs / "run" / "config.json")
    expected = measured(runs, monkeypatch)["loss"]
    assert config["train"].pop("loss_on") == "all"
    monkeypatch.setattr(loss.checkpoint, "read_config", lambda folder: config)
    assert measured(runs, monkeypatch)["loss"] == expected
