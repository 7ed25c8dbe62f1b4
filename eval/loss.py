"""
Loss, perplexity and bits per byte of a run on any text.

    python -m eval.loss out/ts_cpu                           # the validation stories of its data
    python -m eval.loss out/ts_cpu --source=mine.txt         # any source that prepare.py reads
    python -m eval.loss out/instruct --loss_on=story         # of Instruct records, their stories

The text is scored whole and as it is: nothing is cleaned or dropped. Every token counts once; a
story longer than the model's block_size is read through a window that slides by half of it. Bits
per byte divide by the bytes of the text, one more for the end of each story, and so compare models
whose tokenizers differ:

    bits per byte = sum of losses / ln 2 / sum over stories of (UTF-8 bytes + 1)
"""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs import UserError, load, run
from eval.bootstrap import delta_ratio
from nanostories import storage
from nanostories.dataset import instruct, sources
from nanostories.dataset.packing import PackedDataLoader
from nanostories.dataset.shards import Dataset, InMemoryDataset
from nanostories.training import checkpoint
from nanostories.training.device import autocast_for, pick_device, pick_dtype
from nanostories.training.validation import evaluate


@dataclass(frozen=True)
class Settings:
    out_dir: str = ""  # run folder; default: the newest in out/
    checkpoint: str = "latest"  # latest or best
    init_from: str = ""  # instead of a run: gpt2, a model of the hub, or a folder with one
    revision: str = ""  # which commit, tag or branch of a model of the hub
    source: str = ""  # any source of prepare.py; default: the validation stories of the run's data
    loss_on: str = ""  # all, or story: of Instruct's records; default: as trained, else all
    batch_size: int = 8  # rows of tokens in one pass
    device: str = "auto"  # cpu, cuda, mps; auto takes the best there is
    dtype: str = "float32"  # float32, bfloat16 or float16 to compute in


def groups_of_text(texts, tokenizer, size=32, records=False):
    """
    Groups of `size` stories from an iterator of texts: (Stories, bytes), the bytes their UTF-8 and
    one for the end of each; with `records` of the stories of Instruct's records alone. Raises
    UserError for a text that is none.
    """
    while texts_now := list(itertools.islice(texts, size)):
        answers = None
        if records:
            found = [record_of(text) for text in texts_now]
            prompts = [tokenizer.encode_prompt(record.prompt()) for record in found]
            answers = np.array([1 + len(ids) for ids in prompts])
            texts_now = [record.text() for record in found]
        stories = [[tokenizer.eot, *tokenizer.encode(text)] for text in texts_now]
        starts = np.cumsum([0, *map(len, stories)])
        counted = [record.story for record in found] if records else texts_now
        size_now = sum(len(text.encode("utf-8", "surrogatepass")) + 1 for text in counted)
        ids = np.array(list(itertools.chain(*stories)), np.uint16)
        yield InMemoryDataset(ids, starts, answers), size_now


def record_of(text):
    """The instruct.Record of a text; raises UserError where it is none."""
    record = instruct.parse_record(text)
    if record is None:
        raise UserError(f"loss_on=story takes Instruct records, and this is none: {text!r:.60}")
    return record


def score(model, groups, eot, batch_size, autocast):
    """One (nats, tokens, bytes) for each group, float64 (groups, 3)."""
    block_size = model.config.block_size
    row_tokens, half = max(1024, block_size), max(1, block_size // 2)
    totals = []
    where = {"stride": half, "shuffle": False, "device": model.wte.weight.device}
    for group, size in groups:
        where["answers"] = group.answers
        batches = PackedDataLoader(group, eot, block_size, row_tokens, batch_size, seed=0, **where)
        totals.append((*evaluate(model, batches, autocast), size))
    return np.array(totals, dtype=np.float64).reshape(-1, 3)


def main():
    settings, origin = load(Settings, positional="out_dir")
    device = pick_device(settings.device)
    autocast = autocast_for(device, pick_dtype(settings.dtype, device))
    found = checkpoint.load_from_settings(settings, origin, device)
    model, tokenizer, source = found.model, found.tokenizer, settings.source
    trained = checkpoint.read_config(found.out_dir)["train"] if found.is_run() else {}
    loss_on = settings.loss_on or (not source and trained.get("loss_on")) or "all"
    if loss_on not in ("all", "story"):
        raise UserError(f"loss_on must be all or story, not '{loss_on}'")
    if source:
        texts = sources.read(source)
    else:
        source = checkpoint.data_folder(found, "source")
        data = Dataset(source, "val")
        texts = (tokenizer.decode(data.story(i)[1:]) for i in range(data.stories))
    groups = groups_of_text(texts, tokenizer, records=loss_on == "story")
    totals = score(model, groups, tokenizer.eot, settings.batch_size, autocast)
    if not len(totals):
        raise UserError(f"no text in '{source}'")
    nats, tokens, size = totals.T
    loss, loss_half = delta_ratio(nats, tokens)
    bits, bits_half = delta_ratio(nats / math.log(2), size)
    what = " of stories, not of their instructions" if loss_on == "story" else ""
    print(f"{source}: {int(tokens.sum()):,} tokens, {int(size.sum()):,} bytes{what}")
    print(f"loss per token {loss:.4f}" + (f" +- {loss_half:.4f}" if loss_half else ""))
    print(f"perplexity {math.exp(loss):.4f}")
    print(f"bits per byte {bits:.4f}")
    result = {
        "checkpoint": found.identity(),
        "source": source,
        "loss_on": loss_on,
        "tokens": int(tokens.sum()),
        "bytes": int(size.sum()),
        "loss": loss,
        "loss_95": loss_half,
        "perplexity": math.exp(loss),
        "bits_per_byte": bits,
        "bits_per_byte_95": bits_half,
    }
    folder = Path(found.out_dir) / "eval"
    folder.mkdir(parents=True, exist_ok=True)
    storage.write_json(folder / "loss.json", result)


if __name__ == "__main__":
    run(main)
