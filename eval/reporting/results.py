"""
What a study has made, read back: its runs, their losses, and whatever was found of them.

    study = read("out/study_small")
    run = study.grid[0]
    run.size, run.seed, run.loss            # Size(64, 2, 4), 1, 3.04
    run.found["skills"]["skills"]["plot"]   # of eval/skills.json; None stands for what is missing

Only what study.json calls done is read: a file that an older command left is no result.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from configs import UserError
from eval.reporting.study_jobs import Size, sizes
from eval.reporting.study_state import DONE, digest
from model import GPT, GPTConfig
from nanostories.training import checkpoint, huggingface

PROOFS = ("skills", "judge-prompts", "judge-paper", "judge-report", "judge-instruct",
          "side_by_side", "vocabulary", "diversity", "instruct", "interpret", "reward")  # fmt: skip


@dataclass
class Run:
    """
    A run of a study, or a published model. name: "64-2-4". kind: "" plain, syn, instruct, reward or
    rival. parameters: with embeddings; blocks: without; positions: of wpe. tokens: trained on.
    curve, train_curve: [(tokens, loss)], of validation and training stories. steps: the lines of
    metrics.jsonl of a run of reward.py. env: the machine and its versions. recipe: its settings.
    found: {name: what eval/<name>.json has}.
    """

    name: str
    out_dir: str
    kind: str = ""
    size: Size | None = None
    seed: int = 1
    parameters: int = 0
    blocks: int = 0
    positions: int = 0
    tokens: int = 0
    curve: list = field(default_factory=list)
    train_curve: list = field(default_factory=list)
    steps: list = field(default_factory=list)
    env: dict = field(default_factory=dict)
    recipe: dict = field(default_factory=dict)
    found: dict = field(default_factory=dict)

    @property
    def loss(self):
        """The last loss on the validation stories, nats a token; None where there is none."""
        return self.curve[-1][1] if self.curve else None

    @property
    def multiplied(self):
        """The weights that a token is multiplied with: the blocks' and the head's."""
        return self.parameters - self.positions


@dataclass
class Study:
    """
    All of a study: settings, pieces (rows of study.json), runs, and data: {folder: its manifest},
    of which `plain` is that of the plain stories.
    """

    settings: dict
    pieces: list
    runs: list
    data: dict

    @property
    def plain(self):
        """The manifest of the plain stories, {} where there is none."""
        return self.data.get(self.settings["dataset"], {})

    @property
    def grid(self):
        """The plain runs of the sizes in `models`, as they stand there, seed by seed."""
        asked = sizes(self.settings["models"], "models")
        mine = [run for run in self.runs if run.kind == "" and run.size in asked]
        return sorted(mine, key=lambda run: (asked.index(run.size), run.seed))

    def of(self, kind):
        """The runs of a kind, by size and seed."""
        return sorted(
            (run for run in self.runs if run.kind == kind), key=lambda r: (r.size or (), r.seed)
        )

    def first(self, size, kind=""):
        """The run of a size with the first seed that there is, or None."""
        mine = [run for run in self.runs if run.kind == kind and run.size == size]
        return min(mine, key=lambda run: run.seed, default=None)


def read(out_dir):
    """The Study in a folder; UserError where there is none."""
    path = Path(out_dir) / "study.json"
    try:
        study = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(
            f"no study in '{out_dir}'; run one first: python -m eval.study configs/study_small.py"
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    try:
        settings, pieces = study["settings"], study["jobs"]
        done = {piece["output"]: piece["sha256"] for piece in pieces if piece["status"] == DONE}
        runs = [found for piece in pieces if piece["run"] and piece["status"] == DONE
                and (found := run_in(piece["run"]))]  # fmt: skip
        folders = dict.fromkeys(piece["output"] for piece in pieces
                                if Path(piece["output"]).name == "manifest.json")  # fmt: skip
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is no study of this version: {error}") from None
    for name in settings["baselines"].replace(",", " ").split():
        runs.append(Run(name, huggingface.results_folder(name), "rival"))
    for run in runs:
        for name in PROOFS:
            proof = f"{run.out_dir}/eval/{name}.json"
            run.found[name] = _json(proof) if done.get(proof) == digest(proof) else None
        grades = Path(run.out_dir) / "eval" / "judge-paper.jsonl"
        if run.found["judge-paper"] and grades.exists():
            lines = grades.read_text(encoding="utf-8").splitlines()
            run.found["graded"] = [json.loads(line) for line in lines]
    kept = [run for run in runs if run.kind != "rival" or any(run.found.values())]
    data = {str(Path(proof).parent): _json(proof) for proof in folders}
    return Study(settings, pieces, kept, {name: facts for name, facts in data.items() if facts})


def _json(path):
    """A JSON file, or None where there is none that can be read."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def run_in(folder):
    """
    The Run of a run folder, by its name: [kind-]width-layers-heads-s<seed>. None where it is gone
    or damaged: then nothing of it has been measured.
    """
    *kind, width, layers, heads, seed = Path(folder).name.split("-")
    try:
        config, state = checkpoint.read_config(folder), checkpoint.read_state(folder)
        lines = (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except (UserError, OSError):
        return None
    with torch.device("meta"):
        model = GPT(GPTConfig(**config["model"]))
    size, lines = Size(int(width), int(layers), int(heads)), [json.loads(line) for line in lines]
    curve, train_curve = curves(lines)
    return Run(
        str(size), folder, "-".join(kind), size, int(seed[1:]), model.num_params(),
        model.num_params(embeddings=False), model.wpe.weight.numel(), state["tokens"], curve,
        train_curve, lines if kind == ["reward"] else [], _json(f"{folder}/env.json") or {},
        config["train"],
    )  # fmt: skip


def curves(lines):
    """([(tokens, validation loss)], [(tokens, training loss)]) of the lines of metrics.jsonl."""
    train = [line for line in lines if "tok_s" in line]
    val = [line for line in lines if "val_loss" in line]
    if not train:  # of reward.py
        return [], []
    at = np.interp(
        [v["step"] for v in val], [t["step"] for t in train], [t["tokens"] for t in train]
    )
    return (
        [(float(x), v["val_loss"]) for x, v in zip(at, val, strict=True)],
        [(t["tokens"], t["loss"]) for t in train],
    )
