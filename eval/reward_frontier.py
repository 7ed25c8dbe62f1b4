"""
What a reward costs: reward against sqrt(KL) of several runs, and what needs no training.

    frontier.write(settings, ["out/cat/kl_0", "out/cat/kl_0.05"], reference)   # .json and .png

Two lines stand beside the runs, both made of the reference's own stories alone:

    best of n       the best of n stories: the line to beat. Its KL is at most log n - (n - 1) / n
                    (Beirami et al. 2024)
    the optimum     ref(y) exp(R(y) / beta) / Z for all beta: no model can have more reward at that
                    KL. Estimated with the stories' weights exp(R / beta), as far as more than a few
                    of them weigh anything

Of several prompts each has lines of its own, and shown is their mean: no model chooses the prompt.
"""

import json
import math
from pathlib import Path

import numpy as np

from nanostories.storage import atomic_file, write_json

LAST = 20  # steps of a run whose mean is where it ended
NS = (1, 2, 4, 8, 16, 32, 64)
WEIGHING = 16  # stories that must weigh for the optimum to be estimated: 1 / sum w^2


def best_of(rewards, n):
    """(KL at the most, expected reward) of the best of n stories drawn from these."""
    ordered, m = np.sort(np.asarray(rewards, np.float64)), len(rewards)
    places = np.arange(m + 1) / m
    return math.log(n) - (n - 1) / n, float(ordered @ np.diff(places**n))


def optimum(rewards, beta):
    """(KL, expected reward) of ref exp(R / beta) / Z over these stories; None where few weigh."""
    rewards = np.asarray(rewards, np.float64)
    weights = np.exp((rewards - rewards.max()) / beta)
    weights /= weights.sum()
    if 1 / (weights**2).sum() < WEIGHING:
        return None
    held = weights[weights > 0]
    return float((held * np.log(held * len(rewards))).sum()), float(weights @ rewards)


def over_prompts(point_of, rewards, prompts, *how):
    """
    The mean of point_of(rewards, *how) over the prompts, to which the stories of these rewards were
    told by turns; None where it is None for one of them.
    """
    points = [point_of(rewards[i::prompts], *how) for i in range(prompts)]
    return None if None in points else tuple(np.mean(points, 0))


def path_of(out_dir):
    """[(step, KL, reward)] of a run, by its metrics.jsonl."""
    lines = map(json.loads, (Path(out_dir) / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["kl"], line["reward"]) for line in lines]


def write(settings, runs, reference):
    """frontier.json and frontier.png in settings.out_dir, of the runs in these folders."""
    told = reference.rewards, len(reference.prompts)
    betas = np.geomspace(2, 0.005, 60)
    found = {
        "word": settings.word,
        "method": settings.method,
        "best_of": [{"n": n} | _point(*over_prompts(best_of, *told, n)) for n in NS],
        "optimum": [
            {"beta": float(beta)} | _point(*point)
            for beta in betas if (point := over_prompts(optimum, *told, beta))
        ],
        "runs": [],
    }  # fmt: skip
    for out in runs:
        path = path_of(out)
        last = np.array(path[-LAST:])[:, 1:].mean(0)
        name = Path(out).name.removeprefix("kl_")
        found["runs"].append({"kl_factor": float(name), "out_dir": out} | _point(*last))
    write_json(Path(settings.out_dir) / "frontier.json", found)
    plot(found, {run["out_dir"]: path_of(run["out_dir"]) for run in found["runs"]},
         Path(settings.out_dir) / "frontier.png")  # fmt: skip
    for run in found["runs"]:
        print(f"kl_factor {run['kl_factor']:g}: reward {run['reward']:.3f}, KL {run['kl']:.2f}")
    print(Path(settings.out_dir) / "frontier.png")


def _point(kl, reward):
    return {"kl": float(kl), "reward": float(reward)}


def plot(found, paths, where):
    """The picture of frontier.json; paths: {run folder: path_of}."""
    from matplotlib.figure import Figure  # slow to import, and needed only here

    figure = Figure(figsize=(7, 4.6), layout="tight")
    axes = figure.subplots()
    for name, label, style in (("optimum", "the optimum", ":"), ("best_of", "best of n", "--")):
        points = found[name]
        axes.plot([math.sqrt(max(0, p["kl"])) for p in points], [p["reward"] for p in points],
                  style, color="black", lw=1, label=label)  # fmt: skip
    for point in found["best_of"]:
        place = (math.sqrt(point["kl"]), point["reward"])
        axes.annotate(point["n"], place, fontsize=7, xytext=(2, -9), textcoords="offset points")
    for run in found["runs"]:
        path = np.array(paths[run["out_dir"]])
        smooth = np.array([path[max(0, i - 9) : i + 1].mean(0) for i in range(len(path))])
        x = np.sqrt(np.maximum(0, smooth[:, 1]))
        [line] = axes.plot(x, smooth[:, 2], lw=1, alpha=0.6)
        axes.plot(math.sqrt(max(0, run["kl"])), run["reward"], "o", color=line.get_color(),
                  label=f"kl_factor {run['kl_factor']:g}")  # fmt: skip
    axes.set(xlabel="sqrt(KL(policy || reference))", ylabel="reward",
             title=f"stories about {found['word']}: {found['method']}")  # fmt: skip
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    with atomic_file(where) as part:
        figure.savefig(part, dpi=120, format="png")
