"""
Run folders: everything one training run leaves behind, and how it is read back.

    out/<run>/
        config.json       the architecture ("model") and every setting of train.py ("train")
        tokenizer.json    the tokenizer the model was trained with
        env.json          git commit, versions, device, hash of the data
        metrics.jsonl     one line for each log and each evaluation; loss.png, samples.txt
        checkpoints/<step>/   model.safetensors, state.safetensors (optimizer), state.json,
                              SHA256SUMS of the three, which `sha256sum -c` checks too
        latest, best      symlinks into checkpoints/

A checkpoint is written under a temporary name, flushed to the disk and renamed, and only then do
the symlinks swing over to it: whenever a run is killed, a folder with a step's number is complete,
and `tidy` makes the rest of the newest one's state.json. Every file is compared with its sha256
before it is read. Weights and state are safetensors, facts are JSON: nothing is ever unpickled.

    python -m nanostories.training.export out/ts_cpu --out=ts_cpu  # for transformers, llama.cpp
"""

import contextlib
import dataclasses
import errno
import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from configs import UserError
from model import GPT, GPTConfig
from nanostories.dataset.tokenizer import Tokenizer
from nanostories.storage import atomic_file, fsync, sha256, write_json
from nanostories.training import huggingface
from nanostories.training.huggingface import LoadedModel


def hashes(data_manifest):
    """{file name: sha256} of a token folder."""
    return {name: facts["sha256"] for name, facts in data_manifest["files"].items()}


# ----------------------------------------------------------------------------------------------
# writing


def start_run(out_dir, model_config, settings, tokenizer, environment):
    """Make the run folder and write what does not change during the run."""
    out = Path(out_dir)
    (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    with atomic_file(out / "tokenizer.json") as part:
        tokenizer.save(part)
    config = {"model": dataclasses.asdict(model_config), "train": dataclasses.asdict(settings)}
    write_json(out / "config.json", config)
    write_json(out / "env.json", environment)


# ----------------------------------------------------------------------------------------------
# saving


def optimizer_tensors(model, optimizers):
    """The optimizers' state as {"<parameter>/<state>": tensor}, ready for safetensors."""
    return {
        f"{name}/{key}": value
        for optimizer in optimizers
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizers(model, optimizers, tensors):
    """Put back what `optimizer_tensors` returned; a moment lives where its parameter does."""
    for optimizer in optimizers:
        mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in model.named_parameters():
            if id(parameter) in mine:
                keys = [key for key in tensors if key.rpartition("/")[0] == name]
                optimizer.state[parameter] = {
                    key.rpartition("/")[2]: tensors[key].to(parameter.device) for key in keys
                }


class Saver:
    """
    Saves the checkpoints of a run in a thread, one at a time.

    `save` waits for the save before it, copies the tensors to the host's memory (pinned, where
    they come from a GPU, and kept for the next time) and returns; the thread writes them.
    """

    def __init__(self, out_dir):
        self.out_dir, self.copies = out_dir, {}
        self.thread, self.saving = ThreadPoolExecutor(1), None

    def save(self, model, optimizers, state):
        """Start to `write` checkpoints/<state["step"]>; raises what `wait` does."""
        self.wait()
        weights = {name: self._copy(x, name) for name, x in model.state_dict().items()}
        moments = optimizer_tensors(model, optimizers)
        moments = {name: self._copy(x, name) for name, x in moments.items()}
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.saving = self.thread.submit(write, self.out_dir, weights, moments, dict(state))

    def _copy(self, tensor, name):
        if name not in self.copies:
            memory = {"dtype": tensor.dtype, "pin_memory": tensor.is_cuda}
            self.copies[name] = torch.empty(tensor.shape, **memory)
        return self.copies[name].copy_(tensor, non_blocking=tensor.is_cuda)

    def wait(self):
        """Return when the last save is on the disk; raises OSError or SafetensorError if not."""
        saving, self.saving = self.saving, None
        if saving:
            saving.result()


def write(out_dir, weights, moments, state):
    """
    Write checkpoints/<state["step"]> and let `tidy` point to it.

    weights, moments: {name: tensor on the CPU}. state: a JSON-able dict with "step", "best_step"
    (whose checkpoint is the best so far) and "kept" (steps whose checkpoints are to stay). Where it
    fails, what was there before is as it was.
    """
    folder = Path(out_dir) / "checkpoints"
    final, part = folder / str(state["step"]), folder / f"{state['step']}.part"
    if final.exists():  # saved when the run stopped, before its evaluation: the same weights
        _point(Path(out_dir) / "best", state["best_step"])
        return
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        save_file(weights, part / "model.safetensors")
        save_file(moments, part / "state.safetensors")
        write_json(part / "state.json", state)
        sums = [f"{sha256(part / name)}  {name}\n" for name in FILES]
        (part / "SHA256SUMS").write_text("".join(sums))
        for path in [*part.iterdir(), part]:
            fsync(path)
        part.rename(final)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    fsync(folder)
    tidy(out_dir)


FILES = ("model.safetensors", "state.safetensors", "state.json")  # of a checkpoint
RUN_FILES = ("config.json", "tokenizer.json", "env.json", "metrics.jsonl", "loss.png",
             "watch.png", "samples.txt", "latest", "best")  # fmt: skip


@contextlib.contextmanager
def full_disk_explained(out_dir):
    """Within it, an error for want of disk space becomes a UserError that says what stands."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        found = re.search(r"os error (\d+)", str(error))  # safetensors' own errors carry no errno
        number = int(found[1]) if found else getattr(error, "errno", None)
        if number not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        steps = steps_of(out_dir)
        what = f"the checkpoint of step {steps[-1]} stands" if steps else "is no checkpoint yet"
        raise UserError(
            f"the disk is full ({error}); in '{out_dir}' {what}: free some space, then "
            + ("--resume" if steps else "run the command again")
        ) from error


def steps_of(out_dir):
    """The steps of the complete checkpoints in a run folder, ascending."""
    folder = Path(out_dir) / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())


def tidy(out_dir):
    """
    Point `latest` to the newest complete checkpoint and `best` to the best one it knows of. Remove
    all but these, the one before the newest, those to be kept, and what was left half-written.
    """
    out, steps = Path(out_dir), steps_of(out_dir)
    if steps:
        state = read_json(out / "checkpoints" / str(steps[-1]), "state.json")
        for name, step in (("latest", steps[-1]), ("best", state["best_step"])):
            if step in steps:
                _point(out / name, step)
        for step in {*steps[:-2]} - {state["best_step"], *state["kept"]}:
            # Renamed first: what has a step's number for a name is complete.
            old = out / "checkpoints" / str(step)
            old.rename(f"{old}.part")
    for part in out.glob("checkpoints/*.part"):
        shutil.rmtree(part)


def recover(out_dir):
    """`tidy`, and remove what a killed run left half-written in the run folder itself."""
    tidy(out_dir)
    for name in RUN_FILES:
        Path(out_dir, f"{name}.part").unlink(missing_ok=True)


def _point(link, step):
    """Make the symlink `link` point to the checkpoint of a step, in one go."""
    part = Path(f"{link}.part")
    part.unlink(missing_ok=True)
    part.symlink_to(Path("checkpoints") / str(step))
    os.replace(part, link)


# ----------------------------------------------------------------------------------------------
# reading


def newest_run(folder="out"):
    """The run under `folder` whose checkpoint is newest; raises UserError if there is none."""
    runs = [link.parent for link in Path(folder).glob("*/latest") if link.exists()]
    if not runs:
        raise UserError(f"no trained run in '{folder}/'; train one first: make story")
    return str(max(runs, key=lambda run: (run / "latest" / "state.json").stat().st_mtime))


def read_config(out_dir):
    """A run's config.json; raises UserError if it is not there or not readable."""
    path = Path(out_dir) / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"no run in '{out_dir}' (no config.json)") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None


def find(out_dir, which="latest"):
    """The folder of a checkpoint: "latest", "best", or "checkpoints/<step>"; UserError if none."""
    folder = Path(out_dir) / which
    if not folder.is_dir():
        raise UserError(f"no checkpoint '{which}' in '{out_dir}'; the run has not saved one yet")
    return folder.resolve()


def checked(folder, name):
    """The path of a checkpoint's file, once its sha256 is the one in SHA256SUMS; or UserError."""
    path = folder / name
    try:
        if sha256(path) == _sums(folder)[name]:
            return path
        what = "does not match its sha256 in SHA256SUMS"
    except (OSError, ValueError, KeyError) as error:
        what = f"cannot be checked against SHA256SUMS: {error}"
    raise UserError(
        f"{path} is damaged: it {what}; remove that folder, and --resume takes the newest of the "
        "others"
    )


def _sums(folder):
    """{name: sha256} of a checkpoint's SHA256SUMS."""
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    return dict(line.split()[::-1] for line in lines)


def read_json(folder, name):
    """A checkpoint's JSON file, checked; raises UserError if it is damaged."""
    return json.loads(checked(folder, name).read_text(encoding="utf-8"))


def read_tensors(folder, name):
    """A checkpoint's tensors, on the CPU, checked; raises UserError if they cannot be read."""
    path = checked(folder, name)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is no safetensors file: {error}") from None


def read_state(out_dir, which="latest"):
    """The state that a checkpoint was written with, see `find` and `write`; or UserError."""
    return read_json(find(out_dir, which), "state.json")


def read_optimizer_state(out_dir, which="latest"):
    """A checkpoint's optimizer tensors, for `restore_optimizers`; or UserError."""
    return read_tensors(find(out_dir, which), "state.safetensors")


def open_model(settings, origin, device):
    """
    The LoadedModel that a script's settings name: init_from, or else a run's checkpoint.

    settings, origin: from `configs.load`, with out_dir, checkpoint, init_from and revision. In a
    config file init_from is what train.py began with; here it counts on the command line. Raises
    UserError as `load_any` does.
    """
    if settings.init_from and origin["init_from"] == "command line":
        if settings.out_dir:
            raise UserError("out_dir names a run, init_from any model: give one of the two")
        return load_any(settings.init_from, settings.checkpoint, device, settings.revision)
    return load_model(settings.out_dir or newest_run(), settings.checkpoint, device)


def load_any(name, which="latest", device="cpu", revision="", **changes):
    """
    The LoadedModel in a run folder (`load_model`), or else a published one (`pretrained.load`).
    """
    if is_run(name):
        return load_model(name, which, device, **changes)
    return huggingface.load(name, device, revision, **changes)


def is_run(name):
    """Whether `name` is a run folder, and no published model's."""
    return (Path(name) / "config.json").exists() and not huggingface.is_folder_of_one(name)


def load_model(out_dir, which="latest", device="cpu", **changes):
    """
    The model of a run as a LoadedModel: in eval mode on `device`.

    which: see `find`. changes: of the stored GPTConfig, such as dropout; a smaller block_size cuts
    positions off. Raises UserError if anything is missing, damaged, or does not fit together.
    """
    config = read_config(out_dir)["model"]
    folder = find(out_dir, which)
    state = read_json(folder, "state.json")
    written = state["model"]
    if differences := [name for name in config if config[name] != written.get(name)]:
        raise UserError(
            f"{out_dir}/config.json is not what {folder} was written with: "
            + ", ".join(f"{name} is {config[name]}, not {written[name]}" for name in differences)
        )
    tokenizer = Tokenizer.load(Path(out_dir) / "tokenizer.json")
    weights = read_tensors(folder, "model.safetensors")
    try:
        with torch.device("meta"):  # no random weights first
            model = GPT(GPTConfig(**config | changes))
        weights["wpe.weight"] = weights["wpe.weight"][: model.config.block_size]
        model.to_empty(device=device).load_state_dict(weights)
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        raise UserError(f"{folder} does not fit {out_dir}/config.json: {error}") from None
    if tokenizer.vocab_size != model.config.vocab_size:
        raise UserError(
            f"{out_dir}: the tokenizer has {tokenizer.vocab_size} tokens, "
            f"the model {model.config.vocab_size}"
        )
    limit = min(state["longest"], model.config.block_size)
    facts = {"step": state["step"], "sha256": _sums(folder)["model.safetensors"]}
    return LoadedModel(model.eval(), tokenizer, limit, [tokenizer.eot], str(out_dir), facts, [])
