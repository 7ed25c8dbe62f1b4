"""Is a model's vocabulary richer? A model of plain stories beside one of stories with synonyms.

    python -m eval.vocabulary out/plain out/syn

Both continue the same beginnings. Measured on the completions:

    MTLD, distinct-n    how soon words repeat (nanostories/text/metrics.py)
    synonym entropy     bits: which base form a content word has, given its most frequent sense:
                        "big" and "large" share theirs, "find" and "see" do not, though they can
    rare words          fraction of words that are in a dictionary or in plain stories, but not
                        among the most frequent words, which make up 95 % of plain stories
    non-words           fraction of words that are in neither

and each model's loss on the validation stories of both runs: per token, or bits per byte where the
tokenizers differ. Intervals are 95 %: bootstrap over the beginnings, and for losses the delta
method over groups of at most 32 stories. Grades of eval.judge --mode=synonyms are shown too, where
both models have some, as in the student report's table 6. Results are in eval/vocabulary.json of
the second run.
"""

import contextlib
import itertools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs import UserError, load, pick, run
from eval import bootstrap, harness, loss
from nanostories import storage
from nanostories.text import metrics, wordnet
from nanostories.text.words import dictionary_lemmas, split_words, words_and_marks
from nanostories.training import checkpoint
from nanostories.training.device import autocast_for, pick_dtype

GROUP_SIZE = 32  # stories whose losses are summed
FREQUENT = 0.95  # fraction of the words of plain stories that are not rare
MEASURES = [("MTLD", "mtld", 1), ("synonym entropy, bits", "synonym_entropy", 3),
            ("rare words", "rare", 4), ("non-words", "non_words", 4),
            *((f"distinct-{n}", f"distinct_{n}", 3) for n in (1, 2, 3))]  # fmt: skip


@dataclass(frozen=True)
class Settings(harness.SamplingSettings):
    syn_dir: str = ""  # run folder of the model of stories with synonyms; out_dir: of plain ones
    prompts: str = ""  # beginnings: ours, paper (from the hub) or a file
    num_samples: int = 4  # completions of each
    dtype: str = "float32"  # float32, bfloat16 or float16 for the losses
    distinct_words: int = 300  # distinct-n is of so many words of a beginning's completions


def word_sense(word, pos):
    """(a word's most frequent sense in WordNet, its base form), two str; None without synonyms."""
    if not wordnet.synonyms(word, pos):
        return None
    base = wordnet.base_form(word, pos)
    return wordnet.reader().synsets(base, pos)[0].name(), base


def word_senses(text):
    """[(sense, base form)] of the content words of a text that have synonyms."""
    senses = (word_sense(word.text, word.pos) for word in wordnet.content_words(text))
    return [pair for pair in senses if pair]


def frequent_words(counts):
    """The most frequent words, which make up FREQUENT of a {word: count}: a set."""
    ranked, limit = Counter(counts).most_common(), FREQUENT * sum(counts.values())
    before = itertools.accumulate((count for _, count in ranked), initial=0)
    return {word for (word, _), seen in zip(ranked, before, strict=False) if seen < limit}


def synonym_entropy(texts, seed):
    """The interval of the entropy of words given their senses, in bits per word; None without any.
    texts: `word_senses` of each."""
    pairs = sorted(set(itertools.chain(*texts)))
    if not pairs:
        return None
    tallies = map(Counter, texts)
    counts = np.array([[tally[pair] for pair in pairs] for tally in tallies], np.float64)
    starts = [i for i, (sense, _) in enumerate(pairs) if not i or sense != pairs[i - 1][0]]

    def entropy(sums):  # (draws, pairs) -> (draws,), nan for a draw without words
        per_sense = np.add.reduceat(sums, starts, axis=1)
        per_sense = np.repeat(per_sense, np.diff([*starts, len(pairs)]), axis=1)
        logs = np.log2(np.divide(sums, per_sense, out=np.ones_like(sums), where=sums > 0))
        words = sums.sum(1)
        return np.divide(-(sums * logs).sum(1), words, where=words > 0, out=words * np.nan) + 0.0

    # A sample shows fewer words than there are: so the basic bootstrap, which corrects for that.
    resamples = bootstrap.resample_counts(len(texts), np.random.default_rng(seed))
    draws = [entropy(counts.sum(0, keepdims=True))]
    draws += [entropy(some @ counts) for some in np.array_split(resamples, 20)]  # saves memory
    return bootstrap.basic_interval(np.concatenate(draws), len(texts))


def richness(samples, counts, settings):
    """{measure: interval} of lists of completions. counts: {word: count} of plain stories."""
    frequent, seed = frequent_words(counts), settings.seed
    words = [[word for text in texts for word in split_words(text)] for texts in samples]
    marked = [[words_and_marks(text) for text in texts] for texts in samples]
    lengths = [sum(len(metrics.drop_marks(text)) for text in texts) for texts in marked]
    factors = [sum(metrics.mtld_factors(text) for text in texts) for texts in marked]
    senses = [[pair for text in texts for pair in word_senses(text)] for texts in samples]

    def is_known(word):
        return word in counts or bool(dictionary_lemmas(word))

    def fraction(condition):
        matches = [sum(map(condition, some)) for some in words]
        return bootstrap.ratio(matches, [*map(len, words)], seed)

    def distinct(n):
        values = [metrics.distinct_n(texts, n, settings.distinct_words) for texts in marked]
        return bootstrap.mean(values, seed)

    return {
        "words": bootstrap.ratio(lengths, [*map(len, samples)], seed),
        "mtld": bootstrap.ratio(lengths, factors, seed),
        "synonym_entropy": synonym_entropy(senses, seed),
        "rare": fraction(lambda word: word not in frequent and is_known(word)),
        "non_words": fraction(lambda word: not is_known(word)),
        **{f"distinct_{n}": distinct(n) for n in (1, 2, 3)},
    }


def loss_interval(loaded, texts, settings, per_byte):
    """The interval of a LoadedModel's loss on texts, nats per token, or bits if per_byte."""
    device = loaded.model.wte.weight.device
    autocast = autocast_for(device, pick_dtype(settings.dtype, device))
    size = min(GROUP_SIZE, 1 + len(texts) // 8)
    groups = loss.groups_of_text(iter(texts), loaded.tokenizer, size)
    nll, tokens, num_bytes = loss.score(loaded.model, groups, loaded.tokenizer.eot, 8, autocast).T
    pair = (nll / np.log(2), num_bytes) if per_byte else (nll, tokens)
    mean, half = bootstrap.delta_ratio(*pair)
    half = half or 0.0
    return bootstrap.as_interval(mean, mean - half, mean + half, len(nll))


def judge_grades(loaded):
    """{grade: interval} of this very checkpoint by eval.judge --mode=synonyms, {} without."""
    with contextlib.suppress(UserError, KeyError):
        results = storage.read_json(Path(loaded.out_dir) / "eval" / "judge-synonyms.json")
        if results["checkpoint"] == loaded.identity():
            return results["grades"]
    return {}


def show(results):
    """Print the table: a row for each measure, a column for each model."""
    models, rows = list(results["models"].values()), []

    def add(label, digits, intervals):
        rows.append([label, *(bootstrap.format_interval(x, digits) for x in intervals)])

    for label, key, digits in MEASURES:
        add(label, digits, [row[key] for row in models])
    unit = "bits per byte" if results["loss_per_byte"] else "loss"
    for data in models[0]["loss"]:
        add(f"{unit} on {data}", 4, [row["loss"][data] for row in models])
    for grade in models[0]["judge"] | models[1]["judge"]:
        add(grade, 2, [row["judge"].get(grade) for row in models])
    harness.print_table(["", "plain", "with synonyms"], rows)


def main():
    settings, origin = load(Settings, positional=("out_dir", "syn_dir"))
    if not (settings.out_dir and settings.syn_dir):
        raise UserError("usage: python -m eval.vocabulary out/<plain> out/<syn>")
    if Path(settings.out_dir).resolve() == Path(settings.syn_dir).resolve():
        raise UserError("name two runs: a model is not compared with itself")
    (plain,) = harness.open_models(settings, origin)
    device = plain.model.wte.weight.device
    syn = checkpoint.load_run(settings.syn_dir, settings.checkpoint, device)
    folders = map(checkpoint.data_folder, (plain, syn))
    data = {folder: list(harness.val_texts(folder)) for folder in folders}
    counts = Counter(word for text in next(iter(data.values())) for word in split_words(text))
    prompts = harness.beginnings(settings.prompts)
    word_sense("dog", "n")  # raises UserError where WordNet is missing, before the long work
    per_byte, models = not plain.tokenizer.same_as(syn.tokenizer), {}
    for loaded in (plain, syn):
        folder = Path(loaded.out_dir) / "eval"
        samples = harness.completions(loaded, prompts, settings, settings.num_samples, folder)
        models[loaded.out_dir] = richness(samples, counts, settings) | {
            "loss": {x: loss_interval(loaded, data[x], settings, per_byte) for x in data},
            "judge": judge_grades(loaded),
            "checkpoint": loaded.identity(),
        }
    results = {"models": models, "prompts": len(prompts), "loss_per_byte": per_byte}
    results |= pick(settings, "num_samples", "temperature", "top_p", "max_new_tokens", "seed")
    show(results)
    harness.write_result(settings.syn_dir, "vocabulary", results)


if __name__ == "__main__":
    run(main)
