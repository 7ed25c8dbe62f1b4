"""Which held-out instructions a model is asked, for the evaluations that ask any."""

import numpy as np

from configs import UserError
from nanostories.dataset import instruct, sources
from nanostories.dataset.shards import Dataset
from nanostories.dataset.tokenizer import Tokenizer
from nanostories.training import checkpoint

ROOM = 32  # tokens that must be left for a story, for its instruction to be asked


def read_records(settings, found):
    """
    ([instruct.Record], what they were read from) that the settings name for a Trained.

    settings: source, else dataset, else the val split of the run's own data; and seed, of records
    that are made. Raises UserError where there is none.
    """
    if settings.source:
        texts = sources.read(settings.source, seed=settings.seed)
        where = settings.source
    else:
        where = settings.dataset
        if not where and not found.is_run():
            raise UserError(f"'{settings.init_from}' has no data of its own: name some --source")
        where = where or checkpoint.read_config(found.out_dir)["train"]["dataset"]
        data, decode = Dataset(where, "val"), Tokenizer.load(where).decode
        texts = (decode(data.story(i)[1:]) for i in range(data.stories))
    records = [
        record for text in texts if (record := instruct.parse_record(text)) and record.fields
    ]
    if not records:
        raise UserError(f"'{where}' has no Instruct record with an instruction")
    return records, where


def choose(records, models, count, seed):
    """`count` of the records, drawn by the seed, that leave each model room for a story."""
    order = np.random.default_rng(seed).permutation(len(records))
    chosen = []
    for i in order:
        prompt = records[i].prompt()
        if all(len(found.prompt(prompt)) + ROOM <= found.limit for found in models):
            chosen.append(records[i])
        if len(chosen) == count:
            break
    if len(chosen) < min(2, count):
        raise UserError("fewer than two of the instructions leave room for a story")
    return chosen
