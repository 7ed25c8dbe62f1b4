"""Read back what a study has made: its runs, their losses, and the results of every evaluation.

    study = read_study("out/study_small")
    run = study.grid[0]
    run.size, run.seed, run.loss              # Size(64, 2, 4), 1, 3.04
    run.results["skills"]["skills"]["plot"]   # of eval/skills.json; None where it is missing

Only what study.json calls done is read: a file that an older command left is not a result.
"""

import contextlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from configs import UserError, explained
from eval.interpretability.page import read_patterns
from eval.reporting.study_jobs import RESULTS, Size, listed, sizes
from eval.reporting.study_state import DONE, digest
from model import GPT, GPTConfig
from nanostories import storage
from nanostories.training import checkpoint, huggingface

# {evaluation: name of the lines of its .jsonl file among the results of a Run}
LINES = {"judge-paper": "grades", "reward": "reward_stories", "diversity": "copies",
         "instruct": "instructed"}  # fmt: skip


@dataclass
class Run:
    """A run of a study, or a published model."""

    name: str  # "64-2-4"
    out_dir: str
    kind: str = ""  # as study_jobs.py names them, "" for plain stories; or baseline
    size: Size | None = None
    seed: int = 1
    parameters: int = 0  # with embeddings
    block_parameters: int = 0  # without embeddings
    matmul_parameters: int = 0  # that each token is multiplied with: of the blocks and the head
    tokens: int = 0  # trained on
    curve: list = field(default_factory=list)  # [(tokens, loss)] on validation stories
    train_curve: list = field(default_factory=list)  # [(tokens, loss)] on training stories
    steps: list = field(default_factory=list)  # lines of metrics.jsonl, of reward.py
    env: dict = field(default_factory=dict)  # the machine and its versions
    recipe: dict = field(default_factory=dict)  # the settings of train.py
    # {evaluation: what its JSON file holds, or None}; and what LINES name
    results: dict = field(default_factory=dict)

    @property
    def loss(self):
        """The last loss on the validation stories, in nats per token; None where there is none."""
        return self.curve[-1][1] if self.curve else None


@dataclass
class Study:
    settings: dict
    jobs: list  # the rows of study.json
    runs: list
    data: dict  # {folder: manifest}

    @property
    def plain_data(self):
        """The manifest of the plain stories, {} where there is none."""
        return self.data.get(self.settings["dataset"], {})

    @property
    def grid(self):
        """The plain runs of the sizes in `models`, in their order, seed by seed."""
        order = sizes(self.settings["models"], "models")
        runs = [run for run in self.runs if run.kind == "" and run.size in order]
        return sorted(runs, key=lambda run: (order.index(run.size), run.seed))

    def of_kind(self, kind):
        """The runs of a kind, by size and seed."""
        runs = [run for run in self.runs if run.kind == kind]
        return sorted(runs, key=lambda run: (run.size or (), run.seed))

    def epochs(self, run):
        """How often a Run has read each story of its data, on average; None if not known."""
        data = self.data.get(run.recipe.get("dataset"), {})
        tokens = data.get("splits", {}).get("train", {}).get("tokens")
        return run.tokens / tokens if tokens else None

    def first(self, size, kind=""):
        """The run of a size and kind with the lowest seed, or None."""
        return next((run for run in self.of_kind(kind) if run.size == size), None)


def read_study(out_dir):
    """The Study in a folder; UserError where there is none."""
    path = Path(out_dir) / "study.json"
    missing = f"no study in '{out_dir}'; run one first: python -m eval.study configs/study_small.py"
    study = storage.read_json(path, missing)
    with explained(f"{path} is not a study of this version: ", KeyError, TypeError):
        settings, jobs = study["settings"], study["jobs"]
        done = {job["output"]: job["sha256"] for job in jobs if job["status"] == DONE}
        folders = [job["run"] for job in jobs if job["run"] and job["status"] == DONE]
        baselines = listed(settings["baselines"])
    runs = [run for folder in folders if (run := read_run(folder))]
    runs += [Run(name, huggingface.results_folder(name), "baseline") for name in baselines]
    for run in runs:
        for name in RESULTS.values():
            output = f"{run.out_dir}/eval/{name}.json"
            if (run.kind, name) == ("ood", "instruct"):  # beside its control
                output = f"{run.out_dir}/eval/{name}-beside-instruct-{run.size}-s{run.seed}.json"
            run.results[name] = _read_json(output) if done.get(output) == digest(output) else None
            lines = Path(output).with_suffix(".jsonl")
            if run.results[name] and name in LINES and lines.exists():
                run.results[LINES[name]] = storage.read_json(lines, lines=True)
        page = Path(run.out_dir) / "eval" / "interpret.html"
        if run.results["interpret"] and page.exists():
            run.results["patterns"] = read_patterns(page)
    runs = [run for run in runs if run.kind != "baseline" or any(run.results.values())]
    manifests = [Path(job["output"]) for job in jobs if job["output"].endswith("/manifest.json")]
    made = [path for path in manifests if done.get(str(path)) == digest(path)]
    data = {str(path.parent): facts for path in made if (facts := _read_json(path))}
    return Study(settings, jobs, runs, data)


def _read_json(path):
    """None where there is no file that can be read."""
    with contextlib.suppress(UserError):
        return storage.read_json(path)


def read_run(folder):
    """The Run of a run folder, [kind-]width-layers-heads-s<seed>; None if missing or damaged."""
    *kind, width, layers, heads, seed = Path(folder).name.split("-")
    kind, size = "-".join(kind), Size(int(width), int(layers), int(heads))
    try:
        config, state = checkpoint.read_config(folder), checkpoint.read_state(folder)
        lines = storage.read_json(Path(folder) / "metrics.jsonl", lines=True)
    except (UserError, OSError):
        return None
    with torch.device("meta"):
        model = GPT(GPTConfig(**config["model"]))
    curve, train_curve = loss_curves(lines)
    return Run(
        str(size), folder, kind, size, int(seed[1:]),
        parameters=model.num_params(), block_parameters=model.num_params(embeddings=False),
        matmul_parameters=model.num_matmul_params(), tokens=state["tokens"],
        curve=curve, train_curve=train_curve, steps=lines if kind in ("reward", "naive") else [],
        env=_read_json(f"{folder}/env.json") or {}, recipe=config["train"],
    )  # fmt: skip


def loss_curves(lines):
    """([(tokens, validation loss)], [(tokens, training loss)]) of the lines of metrics.jsonl."""
    train = [line for line in lines if "tok_s" in line]
    if not train:  # of reward.py
        return [], []
    steps, tokens = [line["step"] for line in train], [line["tokens"] for line in train]
    val = [(float(np.interp(line["step"], steps, tokens)), line["val_loss"]) for line in lines
           if "val_loss" in line]  # fmt: skip
    return val, [(line["tokens"], line["loss"]) for line in train]
