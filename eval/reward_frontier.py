"""Reward against sqrt(KL) for several runs of reward.py, and for what needs no training.

    python -m eval.reward_frontier out/kl_0 out/kl_0.02 out/kl_0.1     # out/frontier.json and .png

The runs share the reference and the reward; they differ in kl_factor or method. Two more lines are
computed from the rewards of the reference's own stories (reference.json in a run folder):

    best of n       the best of n stories of the reference: the baseline to beat. Its KL is at most
                    log n - (n - 1) / n (Beirami et al. 2024)
    the optimum     ref(y) exp(R(y) / beta) / Z for all beta: no policy has more reward at that KL.
                    Estimated with importance weights exp(R / beta) on the stories, while the
                    effective sample size is large enough

With several prompts, the lines are computed for each one and averaged: a policy cannot choose the
prompt.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs import UserError, load, run
from nanostories.plotting import plot_to
from nanostories.rl.reference import read_settings
from nanostories.storage import read_json, write_json

# Settings that the runs must share.
SHARED = ("word", "start", "embedder", "top_sentences", "max_similarity", "min_words",
          "repetition_penalty", "max_new_tokens", "temperature")  # fmt: skip
LAST_STEPS = 20  # of a run; their mean is where it ended
NS = (1, 2, 4, 8, 16, 32, 64)
BETAS = np.geomspace(2, 0.005, 60)
MIN_SAMPLE_SIZE = 16  # effective, 1 / sum of squared weights, for an estimate of the optimum


@dataclass(frozen=True)
class Settings:
    runs: tuple = ()  # run folders of reward.py
    out: str = ""  # folder of frontier.json and frontier.png; default: the one that holds the runs


def best_of_n(rewards, n):
    """(upper bound of KL, expected reward) of the best of n stories with these rewards."""
    ordered, count = np.sort(np.asarray(rewards, np.float64)), len(rewards)
    quantiles = np.arange(count + 1) / count
    return math.log(n) - (n - 1) / n, float(ordered @ np.diff(quantiles**n))


def optimum(rewards, beta):
    """(KL, expected reward) of ref exp(R / beta) / Z; None where too few stories have weight."""
    rewards = np.asarray(rewards, np.float64)
    weights = np.exp((rewards - rewards.max()) / beta)
    weights /= weights.sum()
    if 1 / (weights**2).sum() < MIN_SAMPLE_SIZE:
        return None
    positive = weights[weights > 0]
    return float((positive * np.log(positive * len(rewards))).sum()), float(weights @ rewards)


def mean_over_prompts(point_of, rewards, prompts, *args):
    """The mean point over the prompts, whose rewards take turns; None where one has no point."""
    points = [point_of(rewards[i::prompts], *args) for i in range(prompts)]
    return None if None in points else tuple(np.mean(points, 0))


def read_runs(folders):
    """[(folder, its settings, reference.json, (KL, reward) of each step, float (steps, 2))].

    Raises UserError for a folder that is not a run of reward.py, or is not comparable to the first.
    """
    runs = []
    for folder in folders:
        settings, reference = read_settings(folder), read_json(Path(folder) / "reference.json")
        lines = read_json(Path(folder) / "metrics.jsonl", lines=True)
        steps = np.array([[line["kl"], line["reward"]] for line in lines])
        if not len(steps):
            raise UserError(f"'{folder}' has no step yet")
        runs.append((folder, settings, reference, steps))
        differ = [name for name in SHARED if settings[name] != runs[0][1][name]]
        differ += ["reference"] if reference["model"] != runs[0][2]["model"] else []
        if differ:
            raise UserError(f"'{folder}' differs from '{folders[0]}' in {', '.join(differ)}")
    return runs


def frontier(runs):
    """The content of frontier.json: points of both lines, and where each of `read_runs` ended."""
    rewards, prompts = runs[0][2]["rewards"], runs[0][2]["prompts"]
    best = [({"n": n}, mean_over_prompts(best_of_n, rewards, prompts, n)) for n in NS]
    optima = [({"beta": float(beta)}, mean_over_prompts(optimum, rewards, prompts, beta))
              for beta in BETAS]  # fmt: skip
    ends = [({"method": settings["method"], "kl_factor": settings["kl_factor"], "out_dir": folder},
             steps[-LAST_STEPS:].mean(0)) for folder, settings, _, steps in runs]  # fmt: skip
    results = {"word": runs[0][1]["word"]}
    for name, points in (("best_of", best), ("optimum", optima), ("runs", ends)):
        results[name] = [facts | {"kl": float(point[0]), "reward": float(point[1])}
                         for facts, point in points if point is not None]  # fmt: skip
    return results


def plot(results, runs, path):
    """Draw frontier.json, and the path of each of `read_runs`, averaged over 10 steps."""
    with plot_to(path, size=(7, 4.6)) as (_, axes):
        for name, label, style in (("optimum", "the optimum", ":"), ("best_of", "best of n", "--")):
            points = [[point["kl"], point["reward"]] for point in results[name]]
            kl, reward = np.array(points).reshape(-1, 2).T  # none, if each prompt has few stories
            axes.plot(np.sqrt(kl.clip(0)), reward, style, color="black", lw=1, label=label)
        for point in results["best_of"]:
            xy = math.sqrt(point["kl"]), point["reward"]
            axes.annotate(point["n"], xy, fontsize=7, xytext=(2, -9), textcoords="offset points")
        for end, (*_, steps) in zip(results["runs"], runs, strict=True):
            smooth = np.array([steps[max(0, i - 9) : i + 1].mean(0) for i in range(len(steps))])
            [line] = axes.plot(np.sqrt(smooth[:, 0].clip(0)), smooth[:, 1], lw=1, alpha=0.6)
            label = f"{end['method']}, kl_factor {end['kl_factor']:g}"
            axes.plot(math.sqrt(max(0, end["kl"])), end["reward"], "o", color=line.get_color(),
                      label=label)  # fmt: skip
        axes.set(xlabel="sqrt(KL(policy || reference))", ylabel="reward",
                 title=f"stories about {results['word']}")  # fmt: skip
        axes.legend(fontsize=8)


def main():
    settings, _ = load(Settings, positional="runs")
    if not settings.runs:
        raise UserError("usage: python -m eval.reward_frontier out/<run of reward.py> ...")
    runs = read_runs(settings.runs)
    results = frontier(runs)
    for end in results["runs"]:
        print(f"{end['out_dir']}: kl_factor {end['kl_factor']:g}, reward {end['reward']:.3f}, "
              f"KL {end['kl']:.2f}")  # fmt: skip
    out = Path(settings.out or Path(settings.runs[0]).parent)
    write_json(out / "frontier.json", results)
    plot(results, runs, out / "frontier.png")
    print(out / "frontier.png")


if __name__ == "__main__":
    run(main)
