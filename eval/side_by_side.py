"""
The stories that the paper shows, as a model goes on with them, each beside the closest one it read.

    python -m eval.side_by_side out/ts_33m
    python -m eval.side_by_side --init_from=gpt2 --dataset=data/tinystories-gpt2

The four beginnings in side_by_side.txt are the paper's (Eldan & Li 2023: the snowman, the pumpkin,
Tim's laser and Jen's doll) and the student report's (Jack looking for Alice), cited as data.
Closest is the training story that holds most of the completion's pairs of words: its share is h,
the paper's Rouge precision (nearest_story.py). A beginning that leaves a model no room to go on is
left out. Results are in eval/side_by_side.json of the run.
"""

from dataclasses import dataclass
from pathlib import Path

from configs import ROOT, load, run
from eval.harness import beginnings, completions, fits
from eval.memorization.nearest_story import StoryIndex
from nanostories import storage
from nanostories.dataset.shards import Dataset
from nanostories.inference.generate import check_sampling_settings
from nanostories.text.words import words_and_marks
from nanostories.training import checkpoint
from nanostories.training.device import pick_device

NAMES = ("the snowman", "the pumpkin", "looking for Alice", "the laser and the doll")


@dataclass(frozen=True)
class Settings:
    out_dir: str = ""  # run folder; default: the newest in out/
    checkpoint: str = "latest"  # latest or best
    init_from: str = ""  # instead of a run: a model of the hub, or a folder with one
    revision: str = ""  # which commit, tag or branch of a model of the hub
    dataset: str = ""  # the data folder whose stories are searched; default: the run's
    temperature: float = 0.7  # of the completions
    top_p: float = 1.0  # choose among the likeliest tokens that hold this share of probability
    beams: int = 0  # 0: by chance; else beam search of this width
    max_new_tokens: int = 300  # tokens of a completion at the most
    seed: int = 1337  # of the completions
    batch_size: int = 64  # stories generated at a time
    device: str = "auto"  # cpu, cuda, mps; auto takes the best there is
    weights: str = "auto"  # float32, bfloat16 or, on CPUs, int8; auto: bfloat16 on CUDA


def main():
    settings, origin = load(Settings, positional="out_dir")
    check_sampling_settings(settings)
    found = checkpoint.load_from_settings(settings, origin, pick_device(settings.device))
    where = settings.dataset or checkpoint.data_folder(found)
    index = StoryIndex(Dataset(where, "train"))
    texts = beginnings(str(ROOT / "eval" / "prompts" / "side_by_side.txt"))
    folder = Path(found.out_dir) / "eval"
    folder.mkdir(parents=True, exist_ok=True)
    stories = [
        (name, text) for name, text in zip(NAMES, texts, strict=True)
        if fits([found], text)
    ]  # fmt: skip
    rows, texts = [], [text for _, text in stories]
    told = completions(found, texts, settings, 1, folder) if texts else []
    for (name, text), (one,) in zip(stories, told, strict=True):
        closest = index.nearest(words_and_marks(one))
        share = closest.precision if closest.bigrams else None
        rows.append(
            {"name": name, "beginning": text, "completion": one, "h": share,
             "closest": closest.story, "closest_text": index.text(closest.story)}
        )  # fmt: skip
        print(f"\n--- {name}\n{text} *** {one.strip()}")
        if share is not None:
            print(f"(closest training story: number {closest.story}, h {share:.2f})")
    results = {"checkpoint": found.identity(), "dataset": where,
               "data": checkpoint.data_hashes(index.data.manifest), "stories": rows}  # fmt: skip
    names = ("temperature", "top_p", "beams", "max_new_tokens", "seed", "weights")
    results |= {name: getattr(settings, name) for name in names}
    storage.write_json(folder / "side_by_side.json", results)
    print(f"\n{folder / 'side_by_side.json'}")


if __name__ == "__main__":
    run(main)
