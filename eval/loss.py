"""Loss, perplexity and bits per byte of a run on any text.

    python -m eval.loss out/ts_cpu                           # the validation stories of its data
    python -m eval.loss out/ts_cpu --source=mine.txt         # any source that prepare.py reads
    python -m eval.loss out/v1 --dataset=data/v2             # another data folder's
    python -m eval.loss out/instruct --loss_on=story         # only the stories of Instruct records

The text is scored as it is: nothing is cleaned or dropped, and every token counts once. A story
longer than the model's block_size is read through a window that slides by half of it. Bits per byte
count one more byte for the end of each story, and so compare models with different tokenizers:

    bits per byte = sum of losses / ln 2 / sum over stories of (UTF-8 bytes + 1)
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from configs import UserError, load, run
from eval import harness
from eval.bootstrap import delta_ratio
from nanostories.dataset import instruct, sources
from nanostories.dataset.packing import PackedDataLoader
from nanostories.dataset.shards import InMemoryDataset
from nanostories.training import checkpoint
from nanostories.training.device import autocast_for, pick_dtype
from nanostories.training.validation import evaluate


@dataclass(frozen=True)
class Settings(harness.ModelSettings):
    source: str = ""  # any source of prepare.py; default: the validation stories of `dataset`
    dataset: str = ""  # a data folder; default: that of the run's data
    stories: int = 0  # only the first so many; 0: all
    loss_on: str = ""  # all, or story: of Instruct records alone; default: the run's, on its data
    batch_size: int = 8  # rows of tokens in one forward pass
    dtype: str = "float32"  # float32, bfloat16 or float16 to compute in


def groups_of_text(texts, tokenizer, size=32, records=False):
    """Yield (InMemoryDataset, bytes) for every `size` texts of an iterator.

    bytes: of their UTF-8, plus one for the end of each. records: the texts are Instruct records,
    whose stories alone are scored and counted; UserError for a text that is not one."""
    while group := list(itertools.islice(texts, size)):
        answers, scored = None, group
        if records:
            parsed = [*map(instruct.parse_record, group)]
            if None in parsed:
                wrong = "loss_on=story takes Instruct records, and this is not one"
                raise UserError(f"{wrong}: {group[parsed.index(None)]!r:.60}")
            prompts = [tokenizer.encode_prompt(record.prompt()) for record in parsed]
            answers = np.array([1 + len(ids) for ids in prompts])  # where each story begins
            group = [record.text() for record in parsed]
            scored = [record.story for record in parsed]
        stories = [[tokenizer.eot, *tokenizer.encode(text)] for text in group]
        starts = np.cumsum([0, *map(len, stories)])
        ids = np.concatenate(stories).astype(np.uint16)
        num_bytes = sum(len(text.encode("utf-8", "surrogatepass")) + 1 for text in scored)
        yield InMemoryDataset(ids, starts, answers), num_bytes


def score(model, groups, eot, batch_size, autocast):
    """(summed loss in nats, tokens, bytes) of each of the `groups_of_text`, float64 (groups, 3)."""
    block_size, rows = model.config.block_size, []
    for group, num_bytes in groups:
        loader = PackedDataLoader(
            group, eot, block_size, max(1024, block_size), batch_size, seed=0, shuffle=False,
            stride=max(1, block_size // 2), answers=group.answers, device=model.wte.weight.device,
        )  # fmt: skip
        rows.append((*evaluate(model, loader, autocast), num_bytes))
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def main():
    settings, origin = load(Settings, positional="out_dir")
    [loaded] = harness.open_models(settings, origin)
    device, loss_on = loaded.model.wte.weight.device, settings.loss_on
    if not (source := settings.source or settings.dataset):
        source = checkpoint.data_folder(loaded, "source")
        trained = checkpoint.read_config(loaded.out_dir)["train"]
        loss_on = loss_on or trained.get("loss_on", "")  # reward.py has none
    texts = sources.read(source) if settings.source else harness.val_texts(source)
    texts = itertools.islice(texts, settings.stories or None)
    groups = groups_of_text(texts, loaded.tokenizer, records=loss_on == "story")
    autocast = autocast_for(device, pick_dtype(settings.dtype, device))
    rows = score(loaded.model, groups, loaded.tokenizer.eot, settings.batch_size, autocast)
    if not len(rows):
        raise UserError(f"no text in '{source}'")
    nll, tokens, num_bytes = rows.T
    loss, loss_half = delta_ratio(nll, tokens)
    bits, bits_half = delta_ratio(nll / math.log(2), num_bytes)
    scope = " of stories, without their instructions" if loss_on == "story" else ""
    print(f"{source}: {tokens.sum():,.0f} tokens, {num_bytes.sum():,.0f} bytes{scope}")
    print(f"loss per token {loss:.4f}" + (f" +- {loss_half:.4f}" if loss_half else ""))
    perplexity = math.exp(min(loss, 700.0))  # of a loss above it no float would hold it
    print(f"perplexity {perplexity:.4f}")
    print(f"bits per byte {bits:.4f}")
    harness.write_result(loaded.out_dir, "loss", {
        "checkpoint": loaded.identity(), "source": source, "stories": settings.stories,
        "loss_on": loss_on or "all", "tokens": int(tokens.sum()), "bytes": int(num_bytes.sum()),
        "loss": loss, "loss_95": loss_half, "perplexity": perplexity,
        "bits_per_byte": bits, "bits_per_byte_95": bits_half,
    })  # fmt: skip


if __name__ == "__main__":
    run(main)
