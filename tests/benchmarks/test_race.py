"""benchmarks/race.py: two sides by turns, each by its own clock, on the same held-out stories."""

import json
import math

import pytest
import torch

from benchmarks import race
from configs import UserError
from nanostories.dataset.packing import make_loaders, open_data
from tests.benchmarks.test_training import NANOGPT


@pytest.fixture
def words(data, tmp_path):
    """The words of a race's command line: a tiny model, and a nanoGPT that is this project's."""
    (tmp_path / "model.py").write_text(NANOGPT)
    config = tmp_path / "tiny.py"
    config.write_text(
        "n_layer = 1\nn_head = 1\nn_embd = 16\nbatch_size = 2\nrow_tokens = 512\nblock_size = 256\n"
        "learning_rate = 1e-2\nwarmup_iters = 2\n"
    )
    return ["race.py", f"--nanogpt={tmp_path}", f"--config={config}", f"--dataset={data}",
            "--device=cpu", "--shapes=16-1-1", "--rows=2", "--minutes=0.02", "--points=2",
            "--sweep_minutes=0.01", "--turn_seconds=0.3", "--eval_stories=8",
            f"--out={tmp_path / 'figures' / 'race.json'}"]  # fmt: skip


@pytest.mark.slow
def test_the_figures_the_picture_and_the_winner(words, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("sys.argv", [*words, "--learning_rates=1e-9,3e-2"])
    race.main()
    facts = json.loads((tmp_path / "figures" / "race.json").read_text())
    assert (tmp_path / "figures" / "race.png").stat().st_size > 10_000
    assert len(facts["sweep"]) == 2 and facts["nanogpt"]["learning_rate"] == 3e-2
    for curve in facts["curves"].values():
        assert len(curve) == 2 and curve[0]["seconds"] >= 0.6 and curve[1]["seconds"] >= 1.2
        assert 0 < curve[0]["tokens"] <= curve[1]["tokens"]
        assert curve[1]["bits_per_byte"] < 3.7  # 9 bits a token at first
    goal = facts["curves"]["nanoGPT"][-1]["bits_per_byte"]
    reached = facts["seconds_to_nanogpt"]
    assert reached == race.time_to(facts["curves"]["nanoStories"], goal)
    out = capfd.readouterr().out
    assert f"{goal:.4f} bits per byte" in out.splitlines()[-1]


def test_both_sides_score_the_same_targets(words, data, monkeypatch):
    """With the weights at zero every target costs log2(padded vocabulary), on either side."""
    settings, _ = race.load(race.Settings, [*words[1:], "--learning_rates=1e-9"])
    own = race.own_settings(settings)
    _, loader, val_bytes = make_loaders(own, *open_data(own), "cpu")
    expected = loader.row_targets.sum() * math.log2(512) / val_bytes
    monkeypatch.setattr(torch.nn.init, "normal_", lambda weight, **_: torch.nn.init.zeros_(weight))
    [trial] = race.trials(settings)
    for side in (race.nanostories(settings, lambda: 0), race.nanogpt(settings, lambda: 0, trial)):
        assert side[1]() == pytest.approx(expected, rel=1e-5)


def test_time_to():
    curve = [{"seconds": 10.0, "bits_per_byte": 2.0}, {"seconds": 20.0, "bits_per_byte": 1.0}]
    assert race.time_to(curve, 1.5) == 15
    assert race.time_to(curve, 2.5) == 10
    assert race.time_to(curve, 0.5) is None


@pytest.mark.parametrize(
    "change, message",
    [
        ("--nanogpt=nowhere", "no nanoGPT in 'nowhere'"),
        ("--shapes=128-4", "shapes must be n_embd-n_layer-n_head"),
        ("--learning_rates=fast", "learning_rates numbers"),
        ("--minutes=0", "minutes must be more than 0"),
        ("--points=0", "points must be at least 1"),
        ("--dataset=nowhere", "no data in 'nowhere'"),
    ],
)
def test_wrong_settings_are_one_line(words, monkeypatch, change, message):
    monkeypatch.setattr("sys.argv", [*words, change])
    with pytest.raises(UserError, match=message):
        race.main()
