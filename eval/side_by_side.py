"""A model's completions of the paper's beginnings, each beside the nearest training story.

    python -m eval.side_by_side out/ts_33m
    python -m eval.side_by_side --init_from=gpt2 --dataset=data/tinystories-gpt2

The four beginnings in prompts/side_by_side.txt are the paper's (Eldan & Li 2023: the snowman, the
pumpkin, Tim's laser and Jen's doll) and the student report's (Jack looking for Alice), cited as
data. The nearest training story is the one that holds most of the completion's pairs of words; that
fraction is the paper's Rouge precision (memorization/nearest_story.py). A beginning that leaves the
model no room for a story is left out. Results are in eval/side_by_side.json of the run.
"""

from dataclasses import dataclass
from pathlib import Path

from configs import ROOT, load, printable, run
from eval import harness
from eval.memorization.nearest_story import StoryIndex
from nanostories.dataset.shards import Dataset
from nanostories.text.words import words_and_marks
from nanostories.training import checkpoint

PROMPTS = ROOT / "eval" / "prompts" / "side_by_side.txt"
NAMES = ("the snowman", "the pumpkin", "looking for Alice", "the laser and the doll")


@dataclass(frozen=True)
class Settings(harness.SamplingSettings):
    dataset: str = ""  # the data folder whose stories are searched; default: the run's
    temperature: float = 0.7  # 0: always the likeliest token


def main():
    settings, origin = load(Settings, positional="out_dir")
    (loaded,) = harness.open_models(settings, origin)
    dataset = settings.dataset or checkpoint.data_folder(loaded)
    index = StoryIndex(Dataset(dataset, "train").verify())
    prompts = {
        name: text for name, text in zip(NAMES, harness.beginnings(str(PROMPTS)), strict=True)
        if harness.fits([loaded], text)
    }  # fmt: skip
    folder, rows = Path(loaded.out_dir) / "eval", []
    texts = list(prompts.values())
    texts = harness.completions(loaded, texts, settings, 1, folder) if prompts else []
    for (name, prompt), (text,) in zip(prompts.items(), texts, strict=True):
        nearest = index.nearest(words_and_marks(text))
        precision = nearest.precision if nearest.bigrams else None
        rows.append(
            {"name": name, "beginning": prompt, "completion": text, "rouge_nearest": precision,
             "nearest_story": nearest.story, "nearest_text": index.text(nearest.story)}
        )  # fmt: skip
        print(printable(f"\n--- {name}\n{prompt} *** {text.strip()}"))
        if precision is not None:
            print(f"(nearest training story: {nearest.story}, Rouge precision {precision:.2f})")
    results = harness.facts_of(loaded, settings) | {
        "dataset": dataset, "data": checkpoint.data_hashes(index.data.manifest), "stories": rows,
    }  # fmt: skip
    harness.write_result(loaded.out_dir, "side_by_side", results)


if __name__ == "__main__":
    run(main)
