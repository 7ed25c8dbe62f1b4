"""The log of a run: progress lines on the terminal, metrics.jsonl, loss.png and samples.txt."""

import json
import math
import re
from datetime import timedelta
from pathlib import Path

from nanostories.storage import atomic_file, write_text


class RunLogger:
    """Progress lines, and metrics.jsonl, loss.png and samples.txt of the run folder."""

    def __init__(self, out_dir, state):
        """state: where the run stands; what a dead run wrote of later steps is dropped."""
        self.out, self.lines = Path(out_dir), []
        self.ticked = (state["seconds"], state["tokens"])
        for line in self._read("metrics.jsonl").splitlines():
            try:
                line = json.loads(line)
            except ValueError:
                continue  # the last line of a run killed while it wrote it
            if line["step"] <= state["evaluated" if "val_loss" in line else "step"]:
                self.lines.append(line)
        write_text(self.out / "metrics.jsonl", "".join(map(_line, self.lines)))
        samples = re.split(r"^(?=--- step \d+$)", self._read("samples.txt"), flags=re.MULTILINE)
        kept = [text for text in samples[1:] if int(text.split()[2]) <= state["evaluated"]]
        write_text(self.out / "samples.txt", "".join(kept))

    def _read(self, name):
        path = self.out / name
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def write(self, **line):
        """A line of metrics.jsonl: "step" and what was measured; no nan, which JSON lacks."""
        line = {name: value for name, value in line.items() if math.isfinite(value)}
        self.lines.append(line)
        self._append("metrics.jsonl", _line(line))

    def progress(self, state, lr, loss, norm, seconds, left, top_pace=None):
        """
        A progress line, printed and logged. seconds: spent on steps so far; left: to go; top_pace:
        the tokens a second at which the machine would be busy with nothing but the model's sums.
        """
        step, tokens = state["step"], state["tokens"]
        pace = (tokens - self.ticked[1]) / max(seconds - self.ticked[0], 1e-9)
        self.ticked = (seconds, tokens)
        line = {"step": step, "loss": loss, "lr": lr, "grad_norm": norm, "tok_s": round(pace),
                "tokens": tokens, "seconds": round(seconds, 2)}  # fmt: skip
        text = f"step {step:>6} | loss {loss:.4f} | lr {lr:.2e} | norm {norm:.2f} | "
        text += f"{line['tok_s']:>7,} tok/s | "
        if top_pace:
            line["mfu"] = pace / top_pace
            text += f"mfu {line['mfu']:.1%} | "
        if state["skipped"]:
            line["skipped"] = state["skipped"]
            text += f"skipped {line['skipped']} | "
        print(f"{text}eta {timedelta(seconds=max(0, round(left)))}", flush=True)
        self.write(**line)

    def sample(self, step, text):
        """A story for samples.txt."""
        self._append("samples.txt", f"--- step {step}\n{text}\n")

    def _append(self, name, text):
        with open(self.out / name, "a", encoding="utf-8") as file:
            file.write(text)

    def plot(self):
        """loss.png: training loss and validation loss over the steps."""
        from matplotlib.figure import Figure  # slow to import, and needed only here

        figure = Figure(figsize=(7, 4), layout="tight")
        axes = figure.subplots()
        for name, style, label in (("loss", "-", "training"), ("val_loss", "o-", "validation")):
            lines = [line for line in self.lines if name in line]
            x, y = ([line[key] for line in lines] for key in ("step", name))
            axes.plot(x, y, style, label=label, lw=1, ms=4)
        axes.set(xlabel="step", ylabel="loss (nats per token)", title=self.out.name)
        axes.grid(alpha=0.3)
        axes.legend()
        with atomic_file(self.out / "loss.png") as part:
            figure.savefig(part, dpi=120, format="png")


def _line(facts):
    return json.dumps(facts) + "\n"
