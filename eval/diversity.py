"""
Does a model copy? Its stories beside each other, and beside every story it was trained on.

    python -m eval.diversity out/ts_33m                              # on the run's own data
    python -m eval.diversity out/a --beside=out/b,out/c --temperatures=1,0.5
    python -m eval.diversity --init_from=gpt2 --dataset=data/tinystories-gpt2

100 random training stories are cut at 40 %, and each model goes on from there. Of what it told, T,
without the beginning (Eldan & Li 2023, section 4.3, and metrics.py for R):

    s    R_2,p(T, what the story went on with): how much of the story itself it tells again
    r    the largest R_2(T, another T): how alike the completions are; of the stories' own too
         (intervals of r and self-BLEU: with the other texts as they are)
    h    the largest R_2,p(T, S) of all training stories S, exactly (nearest_story.py)
    g    how often each of its k-grams, k = 1 to 5, occurs in them, as a share of all: log10, -10
         for never
    run  the most words, and tokens, that stand in one of them in a row: an exact copy, where that
         is all of it; a simple template, where it is once names and nouns are masked (copying.py)

beside distinct-n, MTLD and self-BLEU, for each temperature. A word or mark is what
words.words_and_marks makes of a text, everywhere. Beside it stands what the rest of stories scores
that no model has seen, the data's val split: so much has any such story in common with the training
stories. The shorter a text, the larger its h: so h also stands beside that of those same stories
cut to the lengths of the completions. The index is built once for each data folder, in
data/<name>/overlap. Of an Instruct record, every model is given all that stands before the story.

Results are in eval/diversity.json of the run, each completion with its closest story in
diversity.jsonl, the plots in diversity.png, and the completions nearest to a training story, with
what they share marked, in diversity.html; with --beside in files that say so in their names.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from configs import UserError, load, run
from eval import bootstrap
from eval.harness import beside_names, completions, fits
from eval.memorization import page
from eval.memorization.copying import copies, summary
from eval.memorization.inverted_index import text_of
from eval.memorization.nearest_story import Index
from eval.memorization.page import ORIGINALS, UNSEEN
from nanostories import storage
from nanostories.dataset.shards import Dataset
from nanostories.inference.generate import check_sampling_settings
from nanostories.text import metrics
from nanostories.text.words import words_and_marks
from nanostories.training import checkpoint
from nanostories.training.device import pick_device


@dataclass(frozen=True)
class Settings:
    out_dir: str = ""  # run folder; default: the newest in out/
    checkpoint: str = "latest"  # latest or best
    init_from: str = ""  # instead of a run: a model of the hub, or a folder with one
    revision: str = ""  # which commit, tag or branch of a model of the hub
    beside: str = ""  # other runs or models, with commas, that go on from the same beginnings
    dataset: str = ""  # the data folder trained on; default: the run's
    prompts: int = 100  # how many beginnings
    cut: float = 0.4  # which share of a story's words is its beginning
    temperatures: str = "1,0.7,0.4"  # of the completions; plots and page are of the first
    top_p: float = 1.0  # choose among the likeliest tokens that hold this share of probability
    max_new_tokens: int = 500  # tokens of a completion at the most
    seed: int = 1337  # of the choice of stories, the completions and the intervals
    batch_size: int = 64  # stories generated at a time
    device: str = "auto"  # cpu, cuda, mps; auto takes the best there is
    weights: str = "auto"  # float32, bfloat16 or, on CPUs, int8; auto: bfloat16 on CUDA
    distinct_words: int = 2000  # distinct-n is of so many words at a time
    workers: int = 0  # processes that build the index; 0: a core each, four at most


@dataclass(frozen=True)
class Beginning:
    """A story cut in two. prompt: what a model is given, of an Instruct record all before too."""

    story: int
    prompt: str
    text: str
    rest: str


# ----------------------------------------------------------------------------------------------
# what is told


def cut_at(text, share):
    """A text's first words, so many of them, and what follows: two str; blanks between are lost."""
    words = list(re.finditer(r"\S+", text))
    count = round(share * len(words))
    if not 0 < count < len(words):
        return "", ""
    return text[: words[count - 1].end()], text[words[count].start() :].rstrip()


def beginnings(index, models, settings):
    """[Beginning] of training stories, drawn by the seed, whose beginnings fit all models."""
    found, data = [], index.data
    for i in np.random.default_rng(settings.seed).permutation(data.stories).tolist():
        text, rest = cut_at(index.text(i), settings.cut)
        prompt = text
        if data.answers is not None:
            prompt = index.tokenizer.decode(data.prompt(i)[1:]) + text
        if text and fits(models, prompt):
            found.append(Beginning(i, prompt, text, rest))
        if len(found) == settings.prompts:
            return found
    if len(found) < 2:
        raise UserError(f"'{data.folder}' has fewer than two stories whose beginnings fit")
    return found


def unseen(index, settings):
    """
    What follows the beginnings of as many stories of the val split, a list of str; none where it
    has fewer: r is the larger the more texts there are.
    """
    if not index.data.manifest["splits"].get("val", {}).get("stories"):
        return []
    data, found = Dataset(index.data.folder, "val"), []
    for i in np.random.default_rng(settings.seed).permutation(data.stories).tolist():
        if rest := cut_at(text_of(data, index.tokenizer, i), settings.cut)[1]:
            found.append(rest)
        if len(found) == settings.prompts:
            return found
    return []


def tell(models, found, settings, heats):
    """{(model's folder, temperature): completions of the beginnings, a list of str}."""
    told, prompts = {}, [one.prompt for one in found]
    for model in models:
        folder = Path(model.out_dir) / "eval"
        folder.mkdir(parents=True, exist_ok=True)
        for heat in heats:
            texts = completions(model, prompts, how(settings, heat), 1, folder)
            told[model.out_dir, heat] = [one for (one,) in texts]
    return told


# ----------------------------------------------------------------------------------------------
# what is measured


def richness(words, settings):
    """
    (what a set of texts, lists of words, holds of different things, its nearest pairs): r, MTLD and
    self-BLEU, intervals; distinct-1 to -4.
    """
    near, seed = metrics.nearest_texts(words), settings.seed
    distinct = {n: metrics.distinct_n(words, n, settings.distinct_words) for n in (1, 2, 3, 4)}
    lengths = [len(metrics.drop_marks(text)) for text in words]
    return {
        "words": sum(map(len, words)) / max(1, len(words)),
        "r": bootstrap.mean([score for score, _ in near], seed),
        "distinct": {str(n): None if x != x else x for n, x in distinct.items()},
        "mtld": bootstrap.ratio(lengths, [metrics.mtld_factors(text) for text in words], seed),
        "self_bleu": bootstrap.mean(metrics.self_bleu(words), seed),
    }, near


class _Words:
    """words_and_marks, as rouge_score takes a tokenizer."""

    tokenize = staticmethod(words_and_marks)


def rouge(pairs, kind, seed):
    """
    The mean precision or fmeasure of ROUGE-2 by the package rouge_score, of pairs (text, reference)
    of str: {"clipped": of our words and marks, "default": of rouge_score's own}. Texts without a
    bigram do not count, as in R.
    """
    from rouge_score.rouge_scorer import RougeScorer

    pairs = [pair for pair in pairs if len(words_and_marks(pair[0])) > 1]
    scorers = {
        "clipped": RougeScorer(["rouge2"], tokenizer=_Words),
        "default": RougeScorer(["rouge2"]),
    }
    return {
        name: bootstrap.mean(
            [getattr(scorer.score(pair[1], pair[0])["rouge2"], kind) for pair in pairs], seed
        )
        for name, scorer in scorers.items()
    }


def measure(index, found, told, others, settings):
    """
    ({set: results}, {set: [Copy]}, k-grams of the training stories): everything about each set of
    texts, by its name: the models' at each temperature, the originals, those no model has seen.

    found: [Beginning]; told: see `tell`; others: texts of `unseen`. values: s, r, h and runs of
    each text, None where it has none.
    """
    rests, seed = [one.rest for one in found], settings.seed
    models = {f"{model} at {heat:g}": texts for (model, heat), texts in told.items()}
    asked = models | ({UNSEEN: others} if others else {})
    seen, totals = copies(index, [text for texts in asked.values() for text in texts])
    seen, copied = iter(seen), {}
    for name, texts in asked.items():
        copied[name] = [next(seen) for _ in texts]
    words = {name: [copy.words for copy in rows] for name, rows in copied.items()}
    words[ORIGINALS] = [words_and_marks(text) for text in rests]
    results = {}
    for name, texts in words.items():
        result, near = richness(texts, settings)
        values = {"r": [score for score, _ in near]}
        if rows := copied.get(name):
            result |= summary(rows, totals, seed)
            values |= {"h": [copy.closest.share for copy in rows]}
            values |= {"run": [copy.run[0] for copy in rows]}
            values |= {"run_tokens": [copy.tokens[0] for copy in rows]}
        if name in models:
            pairs = zip(texts, words[ORIGINALS], strict=True)
            values["s"] = [metrics.ngram_precision(*pair) for pair in pairs]
            own = sum(a.closest.story == b.story for a, b in zip(rows, found, strict=True))
            result |= {"s": bootstrap.mean(values["s"], seed), "closest_is_the_original": own}
            result["h_of_unseen_as_long"] = as_long(index, texts, words.get(UNSEEN), seed)
            closest = [index.text(copy.closest.story) for copy in rows]
            alike = [(models[name][i], models[name][j]) for i, (_, j) in enumerate(near) if j >= 0]
            result["rouge_score"] = {
                "s": rouge(zip(models[name], rests, strict=True), "precision", seed),
                "r": rouge(alike, "fmeasure", seed),
                "h": rouge(zip(models[name], closest, strict=True), "precision", seed),
            }
        values = {x: [None if y != y else y for y in ys] for x, ys in values.items()}
        results[name] = result | {"values": values}
    return results, copied, totals


def as_long(index, words, others, seed):
    """h of the texts that no model has seen, each cut to the length of one of the words' texts."""
    if not others:
        return None
    pairs = zip(words, others, strict=False)
    return bootstrap.mean([index.closest(real[: len(text)]).share for text, real in pairs], seed)


def differences(results, told, seed):
    """
    {other model at a temperature: {s, h: interval of the first model's less its}}, over the same
    beginnings.
    """
    first, found = next(iter(told))[0], {}
    for model, heat in told:
        if model == first:
            continue
        both = [results[f"{name} at {heat:g}"]["values"] for name in (first, model)]
        found[f"{model} at {heat:g}"] = {}
        for kind in "sh":
            sides = [([x or 0 for x in v[kind]], [x is not None for x in v[kind]]) for v in both]
            found[f"{model} at {heat:g}"][kind] = bootstrap.difference(*sides, seed)
    return found


# ----------------------------------------------------------------------------------------------
# the command


def how(settings, temperature):
    """The settings of telling at a temperature, as completions and check take them."""
    return SimpleNamespace(**vars(settings) | {"temperature": temperature, "beams": 0})


def temperatures_of(settings):
    """The temperatures as floats, each once; UserError where they are none."""
    try:
        found = list(dict.fromkeys(float(one) for one in settings.temperatures.split(",")))
    except ValueError:
        found = [math.nan]
    if not all(map(math.isfinite, found)):
        raise UserError(
            f"temperatures are numbers with commas between them, not '{settings.temperatures}'"
        )
    return found


def trained_on(model, data):
    """Whether a model was trained on a Dataset; None of one that was not trained here."""
    if not model.is_run():
        return None
    known = checkpoint.read_state(model.out_dir)["data"]
    return all(
        known.get(name) == sha for name, sha in checkpoint.data_hashes(data.manifest).items()
    )


def show(results):
    """Print the tables: what is copied, and how rich the texts are."""
    wide = max(map(len, results))
    print(f"\n{'':{wide}}{'s':>24}{'r':>24}{'h':>24}{'h of unseen, as long':>24}"
          f"{'4-grams never seen':>24}{'run: median, max':>18}{'exact':>7}{'template':>9}"
          f"{'short':>7}")  # fmt: skip
    for name, row in results.items():
        cells = [
            bootstrap.format_interval(row.get(x)) for x in ("s", "r", "h", "h_of_unseen_as_long")
        ]
        line = name.ljust(wide) + "".join(cell.rjust(24) for cell in cells)
        if "g" in row:
            run, levels = row["run"]["words"], row["levels"]
            line += bootstrap.format_interval(row["g"]["4"]["never"]).rjust(24)
            line += (f"{run['median']:g}, {run['max']}" if run else "-").rjust(18)
            line += f"{levels['exact']:>7}"
            line += f"{levels['template'] if row['run']['words_masked'] else '-':>9}"
            line += f"{levels['short']:>7}"
        print(line)
    print(f"\n{'':{wide}}{'words':>8}" + "".join(f"{f'distinct-{n}':>12}" for n in (1, 2, 3, 4))
          + f"{'MTLD':>24}{'self-BLEU':>24}")  # fmt: skip
    for name, row in results.items():
        shares = ("-" if x is None else f"{x:.3f}" for x in row["distinct"].values())
        line = f"{name:{wide}}{row['words']:>8.1f}" + "".join(f"{x:>12}" for x in shares)
        line += bootstrap.format_interval(row["mtld"], 1).rjust(24)
        print(line + bootstrap.format_interval(row["self_bleu"]).rjust(24))


def lines_of(index, found, told, copied, results):
    """The lines of diversity.jsonl: each completion with all that was found of it."""
    for (model, heat), texts in told.items():
        name = f"{model} at {heat:g}"
        values = results[name]["values"]
        for i, (one, text, copy) in enumerate(zip(found, texts, copied[name], strict=True)):
            yield {
                "model": model, "temperature": heat, "story": one.story, "beginning": one.text,
                "original": one.rest, "completion": text, "level": copy.level(),
                **{x: values[x][i] for x in ("s", "r", "h", "run", "run_tokens")},
                "run_masked": copy.masked and copy.masked[0],
                "words": len(copy.words), "tokens": copy.length,
                "copied": " ".join(copy.words[copy.run[1] : sum(copy.run)]),
                "closest": copy.closest.story, "closest_text": index.text(copy.closest.story),
            }  # fmt: skip


def main():
    settings, origin = load(Settings, positional="out_dir")
    heats = temperatures_of(settings)
    for heat in heats:
        check_sampling_settings(how(settings, heat))
    if settings.prompts < 2:
        raise UserError("prompts must be at least 2")
    if settings.distinct_words < 1 or settings.workers < 0:
        raise UserError("distinct_words must be at least 1, workers not negative")
    if not 0 < settings.cut < 1:
        raise UserError("cut must be between 0 and 1")
    device = pick_device(settings.device)
    models = [checkpoint.load_from_settings(settings, origin, device)]
    models += [
        checkpoint.load_model(name, settings.checkpoint, device) for name in beside_names(settings)
    ]
    where = settings.dataset or checkpoint.data_folder(models[0])
    data = Dataset(where, "train")
    known = {model.out_dir: trained_on(model, data) for model in models}
    for name in (name for name, same in known.items() if same is False):
        print(f"{name} was trained on other data than {where}")
    index = Index(data, settings.workers)
    found = beginnings(index, models, settings)
    print(f"{len(found)} beginnings of {where}, {index.data.stories:,} stories")
    told = tell(models, found, settings, heats)
    others = unseen(index, settings)
    results, copied, totals = measure(index, found, told, others, settings)
    show(results)
    gaps = differences(results, told, settings.seed)
    for name, gap in gaps.items():
        print(f"{models[0].out_dir} less {name}: " + ", ".join(
            f"{kind} {bootstrap.format_interval(x)}" for kind, x in gap.items()))  # fmt: skip
    names_ = ("cut", "temperatures", "top_p", "max_new_tokens", "weights", "seed", "distinct_words")
    facts = {"dataset": where, "data": checkpoint.data_hashes(index.data.manifest)}
    facts |= {"models": {model.out_dir: model.identity() for model in models}}
    facts |= {"trained_on_it": known}
    facts |= {"prompts": len(found)} | {name: getattr(settings, name) for name in names_}
    facts |= {"training_ngrams": totals, "difference": gaps, "sets": results}
    write(index, models, found, told, copied, facts)


def write(index, models, found, told, copied, results):
    """diversity.json, .jsonl, .png and .html in eval/ of the first model's folder."""
    beside = "".join(f"-beside-{Path(model.out_dir).name}" for model in models[1:])
    path = Path(models[0].out_dir) / "eval" / f"diversity{beside}"
    lines = list(lines_of(index, found, told, copied, results["sets"]))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    storage.write_text(f"{path}.jsonl", text)
    first = [line for line in lines if line["model"] == models[0].out_dir]
    first = [line for line in first if line["temperature"] == first[0]["temperature"]]
    storage.write_text(f"{path}.html", page.page(first, results))
    with storage.atomic_file(f"{path}.png") as part:
        page.plot(results, part)
    storage.write_json(f"{path}.json", results)
    print(f"\n{path}.png shows it, {path}.html what was nearest to a training story")


if __name__ == "__main__":
    run(main)
