"""
Is a model's vocabulary richer? A model of plain stories beside one of the same with synonyms.

    python -m eval.vocabulary out/plain out/syn

Both go on from the same beginnings; of what they tell:

    MTLD, distinct-n    how soon words repeat (metrics.py)
    synonym entropy     bits: which base form a content word has, given what it most usually means:
                        "big" and "large" mean the same, "find" and "see" do not, though they can
    rare words          share of words that are in a dictionary or in plain stories, but none of
                        those which make up 95 % of plain stories
    non-words           share of words that are in neither

and each one's loss on the validation stories of both data folders, a token, or where the two have
not the same tokenizer, a byte. Intervals are 95 %: bootstrap intervals over the beginnings, and of
the losses by the delta method over groups of at most 32 stories. Where eval.judge --mode=synonyms
has graded both, its grades stand beside, as in the student report's table 6. Results are in
eval/vocabulary.json of the second run.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs import UserError, load, run
from eval import bootstrap, loss
from eval.harness import beginnings, completions
from nanostories import storage
from nanostories.dataset.shards import Dataset
from nanostories.inference.generate import check_sampling_settings
from nanostories.text import metrics, wordnet
from nanostories.text.words import dictionary_lemmas, split_words, words_and_marks
from nanostories.training import checkpoint
from nanostories.training.device import autocast_for, pick_device, pick_dtype

GROUP = 32  # stories whose losses are taken together
USUAL = 0.95  # share of the words of plain stories that are not rare


@dataclass(frozen=True)
class Settings:
    out_dir: str = ""  # run folder of the model of plain stories
    syn_dir: str = ""  # run folder of the model of stories with synonyms
    checkpoint: str = "latest"  # latest or best
    prompts: str = ""  # beginnings: ours, paper (from the hub) or a file
    num_samples: int = 4  # completions of each
    temperature: float = 1.0  # of the completions
    top_p: float = 1.0  # choose among the likeliest tokens that hold this share of probability
    max_new_tokens: int = 300  # tokens of a completion at the most
    seed: int = 1337  # of the completions and the intervals
    batch_size: int = 64  # stories generated at a time
    beams: int = 0  # 0: by chance; else beam search of this width
    device: str = "auto"  # cpu, cuda, mps; auto takes the best there is
    weights: str = "auto"  # float32, bfloat16 or, on CPUs, int8; auto: bfloat16 on CUDA
    dtype: str = "float32"  # float32, bfloat16 or float16 for the losses
    distinct_words: int = 300  # distinct-n is of so many words of a beginning's completions


# ----------------------------------------------------------------------------------------------
# words and what they stand for


def meaning(word, pos):
    """
    (the most usual sense of a word, its base form), by WordNet, two str; None where no other word
    has a sense in common with it.
    """
    if not wordnet.synonyms(word, pos):
        return None
    base = wordnet.base_form(word, pos)
    return wordnet.reader().synsets(base, pos)[0].name(), base


def meanings(text):
    """[(sense, base form)] of the content words of a text that have synonyms."""
    found = (meaning(word.text, word.pos) for word in wordnet.content_words(text))
    return [pair for pair in found if pair]


def usual_of(counts):
    """The most frequent words that make up USUAL of plain stories, a set, by {word: how often}."""
    found, left = set(), USUAL * sum(counts.values())
    for word, count in Counter(counts).most_common():
        if left <= 0:
            break
        found.add(word)
        left -= count
    return found


def entropy(counts, seed):
    """
    The entropy of words given what they stand for, in bits, with its interval over the texts.

    counts: of each text [(what a word means, word)]. A sample shows fewer words than there
    are, so its entropy is too low, and a resample's lower still, by about as much: mean and
    interval are those of the basic bootstrap, which takes that off (Davison & Hinkley 1997, 5.2).
    """
    kinds = sorted({pair for text in counts for pair in text})
    if not kinds:
        return None
    number = {pair: i for i, pair in enumerate(kinds)}
    matrix = np.zeros((len(counts), len(kinds)))
    for row, text in zip(matrix, counts, strict=True):
        for pair in text:
            row[number[pair]] += 1
    starts = [i for i, (of, _) in enumerate(kinds) if not i or of != kinds[i - 1][0]]

    def bits(sums):  # (draws, kinds)
        groups = np.add.reduceat(sums, starts, axis=1)
        whole = np.repeat(groups, np.diff([*starts, len(kinds)]), axis=1)
        logs = np.log2(np.divide(sums, whole, out=np.ones_like(sums), where=sums > 0))
        words = sums.sum(1)  # of a draw that has none, nan
        return np.divide(-(sums * logs).sum(1), words, where=words > 0, out=words * np.nan) + 0.0

    resamples = bootstrap.resample_counts(len(counts), np.random.default_rng(seed))
    draws = [bits(matrix.sum(0, keepdims=True))]
    draws += [bits(some @ matrix) for some in np.array_split(resamples, 20)]  # to save memory
    return bootstrap.basic_interval(np.concatenate(draws), len(counts))


def richness(told, counts, settings):
    """
    {measure: interval} of the completions of one model, a list of str for each beginning. counts:
    {word: how often} in plain stories.
    """
    usual, seed = usual_of(counts), settings.seed
    spoken = [[split_words(text) for text in texts] for texts in told]
    marked = [[words_and_marks(text) for text in texts] for texts in told]

    def share(holds):
        tops = [sum(holds(word) for text in texts for word in text) for texts in spoken]
        return bootstrap.ratio(tops, [sum(map(len, texts)) for texts in spoken], seed)

    def known(word):
        return word in counts or bool(dictionary_lemmas(word))

    lengths = [sum(len(metrics.drop_marks(text)) for text in texts) for texts in marked]
    factors = [sum(metrics.mtld_factors(text) for text in texts) for texts in marked]
    distinct = {
        f"distinct_{n}": bootstrap.mean(
            [metrics.distinct_n(texts, n, settings.distinct_words) for texts in marked], seed)
        for n in (1, 2, 3)
    }  # fmt: skip
    return {
        "words": bootstrap.ratio(lengths, [len(texts) for texts in told], seed),
        "mtld": bootstrap.ratio(lengths, factors, seed),
        "synonym_entropy": entropy([[x for t in texts for x in meanings(t)] for texts in told],
                                   seed),
        "rare": share(lambda word: word not in usual and known(word)),
        "non_words": share(lambda word: not known(word)),
        **distinct,
    }  # fmt: skip


# ----------------------------------------------------------------------------------------------
# the command


def stories_of(found):
    """The validation stories that a run was measured on, a list of str, and its data folder."""
    folder = checkpoint.data_folder(found)
    data = Dataset(folder, "val")
    return [found.tokenizer.decode(data.story(i)[1:]) for i in range(data.stories)], folder


def loss_on(found, texts, settings, of_bytes):
    """{"mean", "low", "high", "n"} of the loss on texts, nats a token, or of_bytes bits a byte."""
    device = found.model.wte.weight.device
    autocast = autocast_for(device, pick_dtype(settings.dtype, device))
    groups = loss.groups_of_text(iter(texts), found.tokenizer, min(GROUP, 1 + len(texts) // 8))
    nats, count, size = loss.score(found.model, groups, found.tokenizer.eot, 8, autocast).T
    mean, half = (
        bootstrap.delta_ratio(nats / np.log(2), size)
        if of_bytes
        else bootstrap.delta_ratio(nats, count)
    )
    half = half or 0.0
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": len(nats)}


def graded(found):
    """What eval.judge --mode=synonyms found of this very checkpoint, {grade: interval}, or {}."""
    path = Path(found.out_dir) / "eval" / "judge-synonyms.json"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        return results["grades"] if results["checkpoint"] == found.identity() else {}
    except (OSError, ValueError, KeyError):
        return {}


def show(results):
    """Print the table: a measure a row, plain / with synonyms."""
    both = list(results["models"].values())
    names = {"mtld": ("MTLD", 1), "synonym_entropy": ("synonym entropy, bits", 3),
             "rare": ("rare words", 4), "non_words": ("non-words", 4)}  # fmt: skip
    names |= {f"distinct_{n}": (f"distinct-{n}", 3) for n in (1, 2, 3)}
    rows = [(label, [bootstrap.format_interval(x[key], digits) for x in both])
            for key, (label, digits) in names.items()]  # fmt: skip
    unit = "bits per byte" if results["loss_of_bytes"] else "loss"
    rows += [(f"{unit} on {where}", [bootstrap.format_interval(x["loss"][where], 4) for x in both])
             for where in both[0]["loss"]]  # fmt: skip
    for grade in dict.fromkeys([*both[0]["judge"], *both[1]["judge"]]):
        rows.append((grade, [bootstrap.format_interval(x["judge"].get(grade), 2) for x in both]))
    wide = max(len(label) for label, _ in rows)
    print(f"\n{'':{wide}}  {'plain':<28}{'with synonyms'}")
    for label, cells in rows:
        print(f"{label:{wide}}  {cells[0]:<28}{cells[1]}")


def main():
    settings, _ = load(Settings, positional=("out_dir", "syn_dir"))
    if not (settings.out_dir and settings.syn_dir):
        raise UserError("usage: python -m eval.vocabulary out/<plain> out/<syn>")
    if Path(settings.out_dir).resolve() == Path(settings.syn_dir).resolve():
        raise UserError("name two runs: a model is not compared with itself")
    check_sampling_settings(settings)
    device = pick_device(settings.device)
    models = [checkpoint.load_run(name, settings.checkpoint, device)
              for name in (settings.out_dir, settings.syn_dir)]  # fmt: skip
    plain, plain_data = stories_of(models[0])
    syn, syn_data = stories_of(models[1])
    counts = Counter()
    for text in plain:
        counts.update(split_words(text))
    prompts = beginnings(settings.prompts)
    meaning("dog", "n")  # says what is missing before anything is told
    of_bytes, results = not models[0].tokenizer.same_as(models[1].tokenizer), {}
    for found in models:
        folder = Path(found.out_dir) / "eval"
        folder.mkdir(parents=True, exist_ok=True)
        told = completions(found, prompts, settings, settings.num_samples, folder)
        row = richness(told, counts, settings)
        row["loss"] = {name: loss_on(found, texts, settings, of_bytes)
                       for name, texts in ((plain_data, plain), (syn_data, syn))}  # fmt: skip
        results[found.out_dir] = row | {"judge": graded(found), "checkpoint": found.identity()}
    results = {"models": results, "prompts": len(prompts), "loss_of_bytes": of_bytes} | {
        name: getattr(settings, name)
        for name in ("num_samples", "temperature", "top_p", "max_new_tokens", "seed")
    }
    show(results)
    path = Path(settings.syn_dir) / "eval" / "vocabulary.json"
    storage.write_json(path, results)
    print(f"\n{path}")


if __name__ == "__main__":
    run(main)
