"""Which model a command takes: a run, the newest one, a published one, or that in pretrained/."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from configs import ROOT, UserError
from nanostories.training import checkpoint


@dataclass(frozen=True)
class ModelSettings:
    out_dir: str = ""  # run folder; default: the newest in out/, or without any pretrained/
    checkpoint: str = "latest"  # latest or best
    init_from: str = ""  # instead of a run: gpt2, a model of the hub, or a folder with one
    revision: str = ""  # commit, tag or branch of a model of the hub


def runs_in(folder):
    """The runs under a folder that have saved a checkpoint, a list of Path."""
    return [link.parent for link in Path(folder).glob("*/latest") if link.exists()]


def newest_run(folder="out"):
    """The run under `folder` whose checkpoint is newest; raises UserError if there is none."""
    if not (runs := runs_in(folder)):
        raise UserError(f"no trained run in '{folder}/'; train one first: make story")

    def saved_at(run):
        return (checkpoint.resolve_checkpoint(run) / "state.json").stat().st_mtime

    return str(max(runs, key=saved_at))


def pretrained():
    """The folder of the run that comes with the project, str; UserError if it is gone."""
    if not (folder := Path(os.path.relpath(ROOT / "pretrained"))).is_dir():
        raise UserError(f"'{folder}' is missing: git checkout {folder}, or name another model")
    return str(folder)


def default_run():
    """The newest run in out/, or the pretrained one where there is none; prints which."""
    if runs_in("out"):
        print(f"the newest run: {(run := newest_run())}", file=sys.stderr)
    else:
        line = "no trained run in 'out/' yet, so this is the model that comes with nanoStories:"
        print(line, run := pretrained(), file=sys.stderr)
    return run


def load_from_settings(settings, origin, device):
    """The LoadedModel that a script's ModelSettings name; origin: of `configs.load`.

    In a config file init_from is where training starts, so it counts on the command line only."""
    if settings.init_from and origin["init_from"] == "command line":
        if settings.out_dir:
            raise UserError("out_dir names a run, init_from any model: give one of the two")
        return checkpoint.load_model(
            settings.init_from, settings.checkpoint, device, settings.revision
        )
    return checkpoint.load_run(settings.out_dir or default_run(), settings.checkpoint, device)
