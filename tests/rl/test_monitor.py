"""What is watched, the alarms, and the frontier: by hand, and on stories that have collapsed."""

import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from eval import reward_frontier
from nanostories.dataset import storybook
from nanostories.rl.monitor import PANELS, Monitor, alarms, is_about, mentions, story_metrics
from nanostories.text.metrics import repeated_ngrams

GOOD = [story.text for story in storybook.stories(32, seed=1)]


def measured(texts, nats=2.0, **more):
    """Measures of texts whose tokens have so many nats each, with what a step adds."""
    counts = [len(text.split()) for text in texts]
    found = story_metrics(texts, [True] * len(texts), counts, [-nats * n for n in counts], "cat")
    step = {
        "loss": 0.5,
        "kl": 1.0,
        "reward": 0.2,
        "reward_error": 0.01,
        "tokens": sum(counts) / len(counts),
    }
    return found | step | more


def test_mentions():
    text = "The cat saw cats. A caterpillar, a Cat's bed! No dog."
    assert mentions("cat", text) == 3 and mentions("dog", text) == 1 == mentions("bed", text)
    assert mentions("ice cream", "Ice cream! An ice cream. Cream, ice.") == 2
    assert is_about("cat", text) and not is_about("dog", text)
    assert not is_about("cat", "The cat saw a cat and a cat.")


def test_repetition_by_hand():
    """Of a b c a b c a the 3-grams are abc bca cab abc bca: two of five again."""
    assert repeated_ngrams("a b c a b c a") == (2, 5) and repeated_ngrams("a b") == (0, 0)


def test_measures_by_hand():
    found = story_metrics(
        ["A cat ran. The cat sat.", "No."], [True, False], [9, 1], [-12.0, -8.0], "cat"
    )
    assert found["about"] == 0.5 and found["mentions"] == 1 and found["ended"] == 0.5
    assert found["perplexity"] == pytest.approx(math.exp(2)) and found["words"] == 3.5
    assert math.isnan(found["distinct_2"]) and found["repetition"] == 0


@pytest.mark.parametrize("text, what", [
    ("cat " * 100, {"mentions", "repetition", "distinct_2"}),
    ("A cat.", {"words", "mentions"}),
    (" ".join(GOOD[:3]), {"words"}),
])  # fmt: skip
def test_what_sounds(text, what):
    base = measured(GOOD)
    assert alarms(measured(GOOD), base) == []
    assert what <= set(alarms(measured([text] * 32), base))


@pytest.mark.parametrize("change, what", [
    ({"nats": 2.5}, "perplexity"), ({"nats": 1.4}, "perplexity"), ({"kl": 60.0}, "kl"),
    ({"reward": 0.1}, "reward"),
])  # fmt: skip
def test_each_alarm(change, what):
    assert alarms(measured(GOOD, **change), measured(GOOD)) == [what]


def test_a_measure_that_is_0_can_alarm():
    """Where the reference repeats nothing; a distinct-2 that none can know stays silent."""
    base = measured(GOOD, repetition=0.0, distinct_2=math.nan)
    assert alarms(measured(GOOD, repetition=0.9), base) == ["repetition"]
    assert alarms(measured(GOOD, repetition=0.01), base) == []


def test_alarms_go_by_several_steps(tmp_path):
    """A bad step is none yet; what was logged before a resume counts. And the picture is drawn."""
    settings = SimpleNamespace(out_dir=str(tmp_path), word="cat", method="rloo", kl_factor=0.1)
    base, bad = measured(GOOD), measured(["cat " * 100] * 32)
    watch = Monitor(settings, base, [])
    assert [watch.add(bad) for _ in range(4)] == [[]] * 4
    assert "repetition" in watch.add(bad)
    watch = Monitor(settings, base, [measured(GOOD)] * 40 + [bad] * 3)
    assert "repetition" in watch.add(bad)
    lines = [{"step": i + 1} | measured(GOOD) for i in range(3)]
    lines[-1]["alarm_repetition"] = 1
    watch.plot(lines)
    assert (tmp_path / "watch.png").read_bytes()[:4] == b"\x89PNG"
    assert all(name in lines[0] for name in PANELS)


def test_best_of_n():
    """The mean of the maximum over all draws."""
    rewards = [0.3, -1.0, 2.0, 0.5]
    for n in (1, 2, 3):
        kl, reward = reward_frontier.best_of(rewards, n)
        every = [max(draw) for draw in itertools.product(rewards, repeat=n)]
        assert reward == pytest.approx(np.mean(every))
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
        kl, reward = reward_frontier.best_of(normal, n)
        assert reward <= np.interp(kl, *zip(*curve, strict=True)) + 0.02


def test_no_model_chooses_the_prompt():
    """Of two prompts whose stories are worth 0 and 1 whatever is told, nothing can be gained."""
    rewards = [0.0, 1.0] * 50
    assert reward_frontier.over_prompts(reward_frontier.best_of, rewards, 2, 4)[1] == pytest.approx(
        0.5
    )
    assert reward_frontier.over_prompts(reward_frontier.optimum, rewards, 2, 0.1) == pytest.approx(
        (0, 0.5)
    )
    assert reward_frontier.over_prompts(reward_frontier.best_of, rewards, 1, 4)[1] > 0.9
    assert (
        reward_frontier.over_prompts(reward_frontier.optimum, [0.0] * 99 + [1.0], 2, 0.01) is None
    )


def test_the_files_of_a_sweep(tmp_path, capsys):
    runs = []
    for factor in ("0", "0.1"):
        out = tmp_path / f"kl_{factor}"
        out.mkdir()
        lines = [{"step": i, "kl": i * 1.0, "reward": float(factor)} for i in range(1, 31)]
        (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        runs.append(str(out))
    settings = SimpleNamespace(out_dir=str(tmp_path), word="cat", method="rloo")
    reward_frontier.write(
        settings, runs, SimpleNamespace(rewards=[0.0, 0.1, 0.3] * 20, prompts=[0])
    )
    found = json.loads((tmp_path / "frontier.json").read_text())
    assert [run["kl_factor"] for run in found["runs"]] == [0, 0.1]
    assert [run["reward"] for run in found["runs"]] == pytest.approx([0, 0.1])
    assert found["runs"][0]["kl"] == pytest.approx(np.mean(range(11, 31)))
    assert found["best_of"][0] == {"n": 1, "kl": 0, "reward": pytest.approx(0.4 / 3)}
    assert (tmp_path / "frontier.png").read_bytes()[:4] == b"\x89PNG"
    assert "kl_factor 0.1: reward 0.100" in capsys.readouterr().out
