"""The log of a run: progress lines on the terminal, metrics.jsonl, loss.png and samples.txt."""

import contextlib
import json
import math
import re
from pathlib import Path

from nanostories.plotting import plot_to
from nanostories.storage import from_json, write_text
from nanostories.training.distributed import print0


class RunLogger:
    """state: the run's, at its start; lines that a killed run wrote of later steps are removed."""

    def __init__(self, out_dir, state):
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

    def progress(self, state, lr, loss, norm, time_left, peak_tokens_per_second=None):
        """A progress line, printed and logged. norm: of the gradient. peak_tokens_per_second: at
        which a GPU would do nothing but the model's arithmetic; MFU is the fraction reached.
        """
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
