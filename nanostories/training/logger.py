"""The log of a run: progress lines on the terminal, metrics.jsonl, loss.png and samples.txt.

With report_to, each line of metrics.jsonl is also logged to TensorBoard or Weights & Biases.
"""

import contextlib
import json
import math
import re
import secrets
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from configs import UserError
from nanostories.plotting import plot_to
from nanostories.storage import from_json, write_text
from nanostories.training.distributed import print0


def tensorboard(out, state, settings):
    """A function that logs a line of metrics.jsonl."""
    from torch.utils.tensorboard import SummaryWriter  # an optional package

    # A resumed run hides what a killed one logged of later steps.
    writer = SummaryWriter(str(out / "tensorboard"), purge_step=state["step"] + 1)

    def log(line):
        for name in line.keys() - {"step"}:
            writer.add_scalar(name, line[name], line["step"])
        writer.flush()

    return log


def wandb(out, state, settings):
    """As `tensorboard`; a resumed run continues the one whose id is in the run folder."""
    import wandb  # an optional package

    if not (id_file := out / "wandb_id.txt").exists():
        write_text(id_file, secrets.token_hex(8))
    run = wandb.init(project="nanostories", name=out.name, id=id_file.read_text(), resume="allow",
                     dir=str(out), config=asdict(settings))  # fmt: skip
    run.define_metric("*", step_metric="step")  # W&B's own step cannot go back on a resume
    return run.log  # wandb ends the run when the process does


SERVICES = {"tensorboard": tensorboard, "wandb": wandb}


def services(report_to):
    """The names in the setting report_to; UserError for others, and for a missing package."""
    names = [name for name in report_to.replace(" ", "").split(",") if name]
    for name in names:
        if name not in SERVICES:
            raise UserError(f"report_to must be tensorboard, wandb or both, not '{name}'")
        if not find_spec(name):
            raise UserError(f"--report_to={name} needs a package: pip install {name}")
    return names


class RunLogger:
    """state: the run's, at its start; lines that a killed run wrote of later steps are removed.
    settings: the run's; its report_to names the services to log to."""

    def __init__(self, out_dir, state, settings=None):
        self.out, self.lines = Path(out_dir), []
        self.last = state["seconds"], state["tokens"]  # at the last progress line
        for line in self._read("metrics.jsonl").splitlines():
            # The last line of a run killed while it wrote it is no JSON.
            with contextlib.suppress(ValueError, TypeError, KeyError):
                line = from_json(line)
                if line["step"] <= state["last_evaluation" if "val_loss" in line else "step"]:
                    self.lines.append(line)
        write_text(self.out / "metrics.jsonl", "".join(json.dumps(x) + "\n" for x in self.lines))
        samples = re.split(r"^(?=--- step \d+$)", self._read("samples.txt"), flags=re.MULTILINE)
        kept = [text for text in samples[1:] if int(text.split()[2]) <= state["last_evaluation"]]
        write_text(self.out / "samples.txt", "".join(kept))
        self.services = {}  # {name: the function that logs a line there}
        for name in services(settings.report_to) if settings else ():
            with self._left_out_if_it_fails(name):
                self.services[name] = SERVICES[name](self.out, state, settings)

    @contextlib.contextmanager
    def _left_out_if_it_fails(self, name):
        """Whatever goes wrong with a service, the run goes on."""
        try:
            yield
        except Exception as error:
            self.services.pop(name, None)
            text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            print0(f"the run goes on without {name}: {text}")

    def _read(self, name):
        path = self.out / name
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def _append(self, name, text):
        with open(self.out / name, "a", encoding="utf-8") as file:
            file.write(text)

    def write(self, **line):
        """A line of metrics.jsonl: "step" and what was measured; no nan, which JSON lacks."""
        line = {name: value for name, value in line.items() if math.isfinite(value)}
        self.lines.append(line)
        self._append("metrics.jsonl", json.dumps(line) + "\n")
        for name, log in list(self.services.items()):
            with self._left_out_if_it_fails(name):
                log(line)

    def progress(self, state, lr, loss, norm, time_left, peak_tokens_per_second=None):
        """A progress line, printed and logged. norm: of the gradient. peak_tokens_per_second: at
        which a GPU would do nothing but the model's arithmetic; MFU is the fraction reached."""
        step, tokens, seconds = state["step"], state["tokens"], state["seconds"]
        speed = (tokens - self.last[1]) / max(seconds - self.last[0], 1e-9)
        self.last = seconds, tokens
        line = {"step": step, "loss": loss, "lr": lr, "grad_norm": norm, "tok_s": round(speed),
                "tokens": tokens, "seconds": round(seconds, 2)}  # fmt: skip
        text = f"step {step:>6} | loss {loss:.4f} | lr {lr:.2e} | norm {norm:.2f} | "
        text += f"{line['tok_s']:>7,} tok/s | "
        if peak_tokens_per_second:
            line["mfu"] = speed / peak_tokens_per_second
            text += f"mfu {line['mfu']:.1%} | "
        if state["skipped"]:
            line["skipped"] = state["skipped"]
            text += f"skipped {line['skipped']} | "
        print0(f"{text}eta {time_left}")
        self.write(**line)

    def validation(self, state, loss, bits_per_byte):
        """An evaluation's result, printed and logged; loss in nats per token."""
        step = state["step"]
        print0(f"step {step:>6} | validation loss {loss:.4f} | bits per byte {bits_per_byte:.4f}")
        self.write(step=step, val_loss=loss, val_bpb=bits_per_byte, seconds=state["seconds"])

    def sample(self, step, text):
        self._append("samples.txt", f"--- step {step}\n{text}\n")

    def plot(self):
        """loss.png: training loss and validation loss over the steps."""
        with plot_to(self.out / "loss.png") as (_, axes):
            for name, style, label in (("loss", "-", "training"), ("val_loss", "o-", "validation")):
                lines = [line for line in self.lines if name in line]
                x, y = ([line[key] for line in lines] for key in ("step", name))
                axes.plot(x, y, style, label=label, lw=1, ms=4)
            axes.set(xlabel="step", ylabel="loss (nats per token)", title=self.out.name)
            axes.legend()
