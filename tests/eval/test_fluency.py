"""python -m eval.fluency: its measures by hand, and the boxed model as referee of worse ones."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from beside import beside

from configs import ROOT, UserError
from eval import fluency
from eval.fluency import Continuation
from nanostories.dataset import sources
from nanostories.training import checkpoint, export

NOISE = (1.0, 0.4, 0.15)  # in standard deviations of each weight, of checkpoints 1 to 3


@pytest.fixture(scope="module")
def boxed():
    return checkpoint.load_run(ROOT / "pretrained")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A file of 150 real stories."""
    path = tmp_path_factory.mktemp("source") / "stories.txt"
    stories = sources.read(str(beside("data", "tinystories", "valid_v2.txt")))
    texts = [text for _, text in zip(range(150), stories, strict=False)]
    path.write_text("\n<|endoftext|>\n".join(texts), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def noisy(boxed, tmp_path_factory):
    """A run whose checkpoints are the boxed model with less and less noise, as if it learned."""
    run = tmp_path_factory.mktemp("runs") / "noisy"
    run.mkdir()
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(ROOT / "pretrained" / name, run)
    state = checkpoint.read_state(ROOT / "pretrained")
    for step, noise in enumerate(NOISE, 1):
        torch.manual_seed(0)
        weights = {
            name: w + noise * w.std() * torch.randn_like(w) * (w.ndim == 2)
            for name, w in boxed.model.state_dict().items()
        }
        changes = {"step": step, "best_step": step, "kept_steps": [1, 2, 3]}
        checkpoint.write_checkpoint(run, weights, None, state | changes)
    return run


def call(*words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fluency.py", "--device=cpu", *map(str, words)])
        fluency.main()


def test_the_referee_ranks_what_it_reads(noisy, source, capsys):
    call(noisy, f"--source={source}", "--steps", "--stories=20", "--max_new_tokens=40")
    results = json.loads((noisy / "eval" / "fluency-steps.json").read_text())
    sets, steps = results["sets"], results["checkpoints"]
    assert not results["own_referee"] and results["stories"] == 20
    relative = {name: row["relative"]["mean"] for name, row in {**sets, **steps}.items()}
    # Real stories stand above all models, checkpoints in the order of training.
    assert relative["real stories"] == 0 < relative["3"] < relative["2"] < relative["1"]
    assert 0 < relative["sentences shuffled"] < relative["words shuffled"]
    assert sets["sentences shuffled"]["relative"]["low"] > 0
    assert steps["3"] == sets["temperature 1.0"]
    assert relative["temperature 0.8"] < relative["temperature 1.0"]
    assert steps["1"]["non_words"]["mean"] > 0.05 > sets["real stories"]["non_words"]["mean"]
    assert sets["real stories"]["ended"]["mean"] == 1 > sets["temperature 1.0"]["ended"]["mean"]
    output = capsys.readouterr()
    assert "warning" not in output.err and "words shuffled" in output.out


def test_its_own_referee_is_warned_of(noisy, source, tmp_path, capsys):
    """Also in bfloat16, as in pretrained/: rounding makes it no other model."""
    options = f"--source={source}", "--stories=2", "--max_new_tokens=2"
    export.main([str(noisy), "--to=run", f"--out={tmp_path / 'rounded'}"])
    call(noisy, f"--referee={tmp_path / 'rounded'}", *options)
    assert "nobody should be their own referee" in capsys.readouterr().err
    assert json.loads((noisy / "eval" / "fluency.json").read_text())["own_referee"]


def test_a_model_trained_from_the_referee_is_warned_of(noisy, boxed, tmp_path):
    """As every run of reward.py is, which has no config that names another model."""
    other = checkpoint.load_run(noisy)
    assert not fluency.is_own_referee(other, boxed)
    run = shutil.copytree(noisy, tmp_path / "tuned", symlinks=True)
    config = json.loads((run / "config.json").read_text())
    config["train"]["init_from"] = str(ROOT / "pretrained")
    (run / "config.json").write_text(json.dumps(config))
    tuned = checkpoint.load_run(run)
    assert fluency.is_own_referee(tuned, boxed) and fluency.is_own_referee(boxed, tuned)


def test_likelihoods_are_the_models_own(boxed):
    beginning, rest = "Tom saw a big do", Continuation("g. He ran home.")
    unfinished = Continuation(" and", ended=False)
    nats, num_bytes = fluency.likelihoods(boxed, [beginning] * 2, [rest, unfinished])
    ids = [boxed.tokenizer.eot, *boxed.tokenizer.encode(beginning + rest.text), boxed.tokenizer.eot]
    with torch.no_grad():
        log_p = boxed.model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
    # " dog" is one token: the whole of it is scored, for half of it is new.
    first = 1 + len(boxed.tokenizer.encode("Tom saw a big"))
    expected = -sum(log_p[i - 1, ids[i]].item() for i in range(first, len(ids)))
    assert nats[0] == pytest.approx(expected, rel=1e-4)
    assert num_bytes[0] == len(" dog. He ran home.") + 1 and num_bytes[1] == len(" and")


def test_a_continuation_longer_than_the_referee_is_cut(boxed):
    long = Continuation(" frog" * 600)
    nats, num_bytes = fluency.likelihoods(boxed, ["A"], [long])
    assert num_bytes[0] <= 511 * len(" frog") and np.isfinite(nats).all()


def test_a_story_is_split_between_words():
    words = [*(f"w{i}" for i in range(69)), "end."]
    beginning, rest = fluency.split_story(" ".join(words))
    assert beginning.split() == words[:30] and rest == Continuation(" " + " ".join(words[30:]))
    assert fluency.split_story(" ".join([*words[:58], "end."])) is None
    assert fluency.split_story(" ".join(words[:69])) is None  # it has no end
    assert fluency.split_story("w " * 250 + "end.") is None


def test_shuffled_parts_change_their_places_alone():
    text, rng = " a b.\n\nC d! E f?  ", np.random.default_rng(1)
    shuffled = {fluency.shuffle(text, ["a b.", "C d!", "E f?"], rng) for _ in range(50)}
    assert " C d!\n\na b. E f?  " in shuffled and len(shuffled) == 6
    words = fluency.shuffle(text, text.split(), rng)
    assert sorted(words.split()) == sorted(text.split()) and words.count("\n") == 2


@pytest.mark.parametrize("text, unknown, mentioned", [
    (" ran. Tom smiled.", 0, 1),                               # he was in the beginning
    (" ran. Then Sue came. Sue smiled.", 1, 1),                # nobody knows her
    (" went to the park with Sue.", 1, 1),
    (" met a girl named Sue. Sue smiled.", 0, 1),
    (" said, \"My name is Sue.\" Sue left.", 0, 1),
    (" played with his best friend Sue. Sue won.", 0, 1),
    (" saw his friend, Sue, and Ben.", 1, 2),
    (" had a dog. Ben liked it and Mrs. Sue too.", 1, 2),
    (" went to Paris on Monday. He sang.", 0, 0),              # no names known to be ones
])  # fmt: skip
def test_names_that_nothing_introduces(text, unknown, mentioned):
    names = {"Tom", "Sue", "Ben"}
    assert fluency.new_names("Tom had a cat. He", text, names) == (unknown, mentioned)


def test_measures_by_hand():
    stories = [("Tom sat.", Continuation(" He ate.")), ("Sue ran.", Continuation(" She won."))]
    texts = [Continuation(" a b c d a b c d", ended=False), Continuation(" The blorf dogs.")]
    nlls = np.array([[8.0, 6.0], [4.0, 4.0]]), np.array([[4.0, 4.0], [4.0, 4.0]])
    known = {"a", "b", "c", "d"}, set()
    row = fluency.measure(stories, texts, nlls, known, seed=0)
    assert row["relative"]["mean"] == 14 / 8 - 1 and row["nats_per_byte"]["mean"] == 14 / 8
    assert row["non_words"]["mean"] == 1 / 11  # blorf
    assert row["repeated"]["mean"] == 1 / 6  # of 5 and 1 4-grams, one came before
    assert row["ended"]["mean"] == 0.5 and row["new_names"] is None


@pytest.mark.parametrize("words, why", [
    (["--init_from=nowhere/none"], "nowhere"), (["{run}", "--source=nowhere.txt"], "nowhere"),
    (["{run}", "--referee=out/nowhere", "--source={source}"], "out/nowhere"),
    (["{run}", "--stories=1", "--source={source}"], "fewer than two"),
    (["{run}"], "name data with --source"),
])  # fmt: skip
def test_errors(words, why, noisy, source):
    with pytest.raises(UserError, match=why):
        call(*(word.format(run=noisy, source=source) for word in words))
