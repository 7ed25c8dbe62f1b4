"""Metrics, alarms and frontier: computed by hand, and on stories that have collapsed."""

import itertools
import json
import math
import sys
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest

from configs import UserError
from eval import reward_frontier
from nanostories.dataset import storybook
from nanostories.rl.monitor import (
    PANELS,
    alarms,
    alarms_of_recent,
    is_about,
    mentions,
    plot,
    story_metrics,
)
from nanostories.storage import write_json
from nanostories.text.metrics import repeated_ngrams
from reward import Settings

GOOD = [story.text for story in storybook.stories(32, seed=1)]


def measured(texts, nll=2.0, **more):
    """Metrics of texts with this negative log-likelihood per token, with what a step adds."""
    counts = [len(text.split()) for text in texts]
    metrics = story_metrics(texts, [True] * len(texts), counts, [-nll * n for n in counts], "cat")
    step = {
        "loss": 0.5,
        "kl": 1.0,
        "reward": 0.2,
        "reward_error": 0.01,
        "tokens": sum(counts) / len(counts),
    }
    return metrics | step | more


def test_mentions():
    text = "The cat saw cats. A caterpillar, a Cat's bed! No dog."
    assert mentions("cat", text) == 3 and mentions("dog", text) == 1 == mentions("bed", text)
    assert mentions("ice cream", "Ice cream! An ice cream. Cream, ice.") == 2
    assert is_about("cat", text) and not is_about("dog", text)
    assert not is_about("cat", "The cat saw a cat and a cat.")


def test_repetition_by_hand():
    """Of a b c a b c a the 3-grams are abc bca cab abc bca: two of five again."""
    assert repeated_ngrams("a b c a b c a") == (2, 5) and repeated_ngrams("a b") == (0, 0)


def test_metrics_by_hand():
    metrics = story_metrics(
        ["A cat ran. The cat sat.", "No."], [True, False], [9, 1], [-12.0, -8.0], "cat"
    )
    assert metrics["about"] == 0.5 and metrics["mentions"] == 1 and metrics["ended"] == 0.5
    assert metrics["perplexity"] == pytest.approx(math.exp(2)) and metrics["words"] == 3.5
    assert math.isnan(metrics["distinct_2"]) and metrics["repetition"] == 0


@pytest.mark.parametrize("text, names", [
    ("cat " * 100, {"mentions", "repetition", "distinct_2"}),
    ("A cat.", {"words", "mentions"}),
    (" ".join(GOOD[:3]), {"words"}),
])  # fmt: skip
def test_alarms_of_collapsed_stories(text, names):
    base = measured(GOOD)
    assert alarms(measured(GOOD), base) == []
    assert names <= set(alarms(measured([text] * 32), base))


@pytest.mark.parametrize("change, name", [
    ({"nll": 2.5}, "perplexity"), ({"nll": 1.4}, "perplexity"), ({"kl": 60.0}, "kl"),
    ({"reward": 0.1}, "reward"),
])  # fmt: skip
def test_each_alarm(change, name):
    assert alarms(measured(GOOD, **change), measured(GOOD)) == [name]


def test_a_metric_whose_baseline_is_0_can_alarm():
    """Where the reference repeats nothing; a distinct-2 that is nan stays silent."""
    base = measured(GOOD, repetition=0.0, distinct_2=math.nan)
    assert alarms(measured(GOOD, repetition=0.9), base) == ["repetition"]
    assert alarms(measured(GOOD, repetition=0.01), base) == []


def test_alarms_compare_several_steps():
    """One bad step raises none; the lines before a resume count."""
    baseline, bad = measured(GOOD), measured(["cat " * 100] * 32)
    assert [alarms_of_recent([bad] * n, baseline) for n in range(5)] == [[]] * 5
    assert "repetition" in alarms_of_recent([bad] * 5, baseline)
    assert "repetition" in alarms_of_recent([measured(GOOD)] * 40 + [bad] * 4, baseline)
    unknown = [{"step": 1}] * 4 + [measured(GOOD)]  # lines without the metrics
    assert alarms_of_recent(unknown, baseline) == []


def test_the_plot(tmp_path):
    settings = SimpleNamespace(out_dir=str(tmp_path), word="cat", method="rloo", kl_factor=0.1)
    lines = [{"step": i + 1} | measured(GOOD) for i in range(3)]
    lines[-1]["alarm_repetition"] = 1
    plot(settings, measured(GOOD), lines)
    assert (tmp_path / "monitor.png").read_bytes()[:4] == b"\x89PNG"
    assert all(name in lines[0] for name in PANELS)


def test_best_of_n():
    """The mean of the maximum over all draws."""
    rewards = [0.3, -1.0, 2.0, 0.5]
    for n in (1, 2, 3):
        kl, reward = reward_frontier.best_of_n(rewards, n)
        maxima = [max(draw) for draw in itertools.product(rewards, repeat=n)]
        assert reward == pytest.approx(np.mean(maxima))
        assert kl == pytest.approx(math.log(n) - (n - 1) / n)


def test_the_optimum():
    """Of two rewards by turns it is a coin's; of too few stories that weigh, none."""
    rewards, beta = [0.0, 1.0] * 100, 0.5
    kl, reward = reward_frontier.optimum(rewards, beta)
    p = 1 / (1 + math.exp(-1 / beta))
    assert reward == pytest.approx(p)
    assert kl == pytest.approx(p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)))
    assert reward_frontier.optimum([0.0] * 99 + [1.0], 0.01) is None
    # No best of n lies above it.
    normal = np.random.default_rng(0).normal(size=2000)
    points = [reward_frontier.optimum(normal, beta) for beta in np.geomspace(9, 0.5, 40)]
    curve = [point for point in points if point]
    for n in (2, 4):
        kl, reward = reward_frontier.best_of_n(normal, n)
        assert reward <= np.interp(kl, *zip(*curve, strict=True)) + 0.02


def test_a_policy_cannot_choose_the_prompt():
    """Two prompts whose stories all have the rewards 0 and 1: nothing can be gained."""
    rewards, mean = [0.0, 1.0] * 50, reward_frontier.mean_over_prompts
    assert mean(reward_frontier.best_of_n, rewards, 2, 4)[1] == pytest.approx(0.5)
    assert mean(reward_frontier.optimum, rewards, 2, 0.1) == pytest.approx((0, 0.5))
    assert mean(reward_frontier.best_of_n, rewards, 1, 4)[1] > 0.9
    assert mean(reward_frontier.optimum, [0.0] * 99 + [1.0], 2, 0.01) is None


def make_run(out, kl_factor, **changes):
    """A run folder of reward.py with what the frontier reads."""
    settings = asdict(Settings(kl_factor=kl_factor)) | changes
    lines = [{"step": i, "kl": i * 1.0, "reward": kl_factor} for i in range(1, 31)]
    write_json(out / "config.json", {"model": {}, "train": settings})
    write_json(out / "reference.json", {"model": {"sha256": "a"}, "prompts": 1,
                                        "rewards": [0.0, 0.1, 0.3] * 20})  # fmt: skip
    (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(out)


def call(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["reward_frontier.py", *words])
    reward_frontier.main()


def test_the_frontier_of_two_runs(tmp_path, capsys, monkeypatch):
    """From the run folders alone; beside the runs, or where --out says."""
    runs = [make_run(tmp_path / f"kl_{factor}", factor) for factor in (0.0, 0.1)]
    call(monkeypatch, *runs)
    results = json.loads((tmp_path / "frontier.json").read_text())
    assert [run["kl_factor"] for run in results["runs"]] == [0, 0.1]
    assert [run["reward"] for run in results["runs"]] == pytest.approx([0, 0.1])
    assert results["runs"][0]["kl"] == pytest.approx(np.mean(range(11, 31)))
    assert results["best_of"][0] == {"n": 1, "kl": 0, "reward": pytest.approx(0.4 / 3)}
    assert (tmp_path / "frontier.png").read_bytes()[:4] == b"\x89PNG"
    assert "kl_factor 0.1, reward 0.100" in capsys.readouterr().out
    call(monkeypatch, runs[1], f"--out={tmp_path / 'one'}")
    assert len(json.loads((tmp_path / "one" / "frontier.json").read_text())["runs"]) == 1


def test_the_frontier_refuses(tmp_path, monkeypatch):
    """Runs of another reward or another reference, and folders that are no such run."""
    run, other = make_run(tmp_path / "a", 0.0), make_run(tmp_path / "b", 0.0, word="dog")
    with pytest.raises(UserError, match=r"differs from '.*a' in word"):
        call(monkeypatch, run, other)
    other = make_run(tmp_path / "c", 0.0)
    write_json(tmp_path / "c" / "reference.json", {"model": {}, "prompts": 1, "rewards": [0.0]})
    with pytest.raises(UserError, match="in reference"):
        call(monkeypatch, run, other)
    with pytest.raises(UserError, match="no run in"):
        call(monkeypatch, str(tmp_path / "none"))
    write_json(tmp_path / "old" / "config.json", {"train": {"kl_factor": 0.1, "enough": 1.0}})
    with pytest.raises(UserError, match="not a run of reward"):
        call(monkeypatch, str(tmp_path / "old"))
    with pytest.raises(UserError, match="usage: "):
        call(monkeypatch)
