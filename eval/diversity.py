"""Does a model copy its training stories, and how similar are its completions to each other?

    python -m eval.diversity out/ts_33m                              # on the run's own data
    python -m eval.diversity out/a --beside=out/b,out/c --temperatures=1,0.5
    python -m eval.diversity --init_from=gpt2 --dataset=data/tinystories-gpt2

100 random training stories are cut after 40 % of their words, and each model continues them. A
completion, without its beginning, is measured by (Eldan & Li 2023, section 4.3, and metrics.py)

    ROUGE-2, original    its precision R_2,p against the original continuation
    ROUGE-2, another     the largest F1, R_2, against another completion; of the originals among
                         each other, too. Intervals of this and self-BLEU keep the other texts fixed
    ROUGE-2, nearest     the largest precision against any training story, exactly (nearest_story)
    new n-grams          the fraction of its n-grams, n = 1 to 5, that occur in no training story,
                         and the frequency of the others
    longest match        the most words, or tokens, in a row that one training story has. An exact
                         copy is all match, a simple template once names and nouns are masked

and by distinct-n, MTLD and self-BLEU, at each temperature. Unseen stories, the continuations of
stories of the val split, show how much any story shares with the training stories. Shorter texts
have a higher precision, so they are also cut to the lengths of the completions. Of an Instruct
record, the prompt holds the instruction, too.

The index of the training stories is built once in data/<name>/inverted_index. Results are in
eval/diversity.json of the run, every completion with its nearest story in diversity.jsonl, plots in
diversity.png, and the completions nearest to a training story in diversity.html; their names also
hold those of the models in --beside.
"""

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from configs import UserError, check_ranges, explained, load, pick, run
from eval import bootstrap, harness
from eval.memorization import page
from eval.memorization.copying import find_copies, summarize
from eval.memorization.inverted_index import story_text
from eval.memorization.nearest_story import StoryIndex
from eval.memorization.page import ORIGINALS, UNSEEN
from nanostories import storage
from nanostories.dataset.shards import Dataset
from nanostories.text import metrics
from nanostories.text.words import words_and_marks
from nanostories.training import checkpoint


@dataclass(frozen=True)
class Settings(harness.ModelSettings):
    beside: str = ""  # other runs or models, with commas, that continue the same beginnings
    dataset: str = ""  # the data folder trained on; default: the run's
    num_prompts: int = 100  # training stories whose beginnings are continued
    prompt_fraction: float = 0.4  # of a story's words, its beginning
    temperatures: str = "1,0.7,0.4"  # of the completions; plots and page show the first
    top_p: float = 1.0  # sample from the likeliest tokens that hold this much probability
    max_new_tokens: int = 500  # tokens of a completion at most
    seed: int = 1337  # of the choice of stories, the completions and the intervals
    batch_size: int = 64  # completions generated at a time
    weights: str = "auto"  # float32, bfloat16 or, on CPUs, int8; auto: bfloat16 on CUDA
    distinct_words: int = 2000  # words of a portion in which distinct-n is counted
    workers: int = 0  # processes that build the index; 0: one per core, four at most
    num_prompts_range = 2, 10**6


# ---- prompts and completions -------------------------------------------------------------------


@dataclass(frozen=True)
class StoryPrompt:
    """A training story cut in two."""

    story: int  # its number
    prompt: str  # its beginning, after the instruction if it has one
    beginning: str
    original: str  # its continuation


def split_story(text, fraction):
    """(the first `fraction` of a text's words, the others); two "" where either would be empty."""
    words = re.findall(r"\s*\S+", text)
    count = round(fraction * len(words))
    parts = "".join(words[:count]), "".join(words[count:]).lstrip()
    return parts if all(parts) else ("", "")


def split_stories(data, tokenizer, settings):
    """Yield (number, beginning, continuation) of a Dataset's stories, drawn by the seed."""
    for i in np.random.default_rng(settings.seed).permutation(data.stories).tolist():
        parts = split_story(story_text(data, tokenizer, i), settings.prompt_fraction)
        if all(parts):
            yield i, *parts


def story_prompts(index, models, settings):
    """Random training stories as StoryPrompts that leave every model room to continue, a list."""
    prompts, data = [], index.data
    for i, beginning, original in split_stories(data, index.tokenizer, settings):
        before = [] if data.answers is None else data.prompt(i)[1:]  # the instruction
        prompt = index.tokenizer.decode(before) + beginning
        if harness.fits(models, prompt):
            prompts.append(StoryPrompt(i, prompt, beginning, original))
        if len(prompts) == settings.num_prompts:
            return prompts
    if len(prompts) < 2:
        raise UserError(f"'{data.folder}' has fewer than two stories whose beginnings fit")
    return prompts


def unseen_continuations(index, settings):
    """The continuations of num_prompts stories of the val split, a list of str; [] where it has
    fewer, for the largest similarity to another text grows with their number."""
    if not index.data.manifest["splits"].get("val", {}).get("stories"):
        return []
    val = Dataset(index.data.folder, "val").verify()
    splits = split_stories(val, index.tokenizer, settings)
    texts = [text for *_, text in itertools.islice(splits, settings.num_prompts)]
    return texts if len(texts) == settings.num_prompts else []


def generate_all(models, prompts, settings, temperatures):
    """{(model's folder, temperature): completions of the prompts, a list of str}."""
    texts, generated = [one.prompt for one in prompts], {}
    for model, x in itertools.product(models, temperatures):
        sampling = SimpleNamespace(**vars(settings) | {"temperature": x, "beams": 0})
        rows = harness.completions(model, texts, sampling, 1, Path(model.out_dir) / "eval")
        generated[model.out_dir, x] = [text for (text,) in rows]
    return generated


# ---- measures ----------------------------------------------------------------------------------


def measure(index, prompts, generated, unseen, settings):
    """({set: results}, {set: [CopyReport]}, {n: n-grams of the training stories}): all measures of
    each set of texts: each model's at each temperature, the originals, `unseen` stories.

    generated: see `generate_all`. A set's "values" hold each text's scores, None where it has none.
    """
    seed, originals = settings.seed, [one.original for one in prompts]
    models = {f"{model} at {x:g}": texts for (model, x), texts in generated.items()}
    searched = models | ({UNSEEN: unseen} if unseen else {})
    flat, training_ngrams = find_copies(index, list(itertools.chain(*searched.values())))
    flat = iter(flat)
    reports = {name: list(itertools.islice(flat, len(x))) for name, x in searched.items()}
    words = {name: [report.words for report in rows] for name, rows in reports.items()}
    words[ORIGINALS] = [words_and_marks(text) for text in originals]
    results = {}
    for name, texts in words.items():
        result, similar = measure_diversity(texts, settings)
        values = {"rouge_other": [score for score, _ in similar]}
        if rows := reports.get(name):
            result |= summarize(rows, training_ngrams, seed)
            values["rouge_nearest"] = [report.nearest.precision for report in rows]
            values["longest_match"] = [report.longest[0] for report in rows]
            values["longest_match_tokens"] = [report.longest_tokens[0] for report in rows]
        if name in models:
            pairs = zip(texts, words[ORIGINALS], strict=True)
            values["rouge_original"] = [metrics.ngram_precision(*pair) for pair in pairs]
            result["rouge_original"] = bootstrap.mean(values["rouge_original"], seed)
            nearest = [report.nearest.story for report in rows]
            own = (story == one.story for story, one in zip(nearest, prompts, strict=True))
            result["nearest_is_original"] = sum(own)
            pairs = zip(texts, words.get(UNSEEN, []), strict=False)
            cut = [index.nearest(other[: len(text)]).precision for text, other in pairs]
            result["rouge_nearest_unseen"] = bootstrap.mean(cut, seed)
            nearest = [index.text(story) for story in nearest]
            result["rouge_score"] = rouge_scores(models[name], originals, similar, nearest, seed)
        values = {x: [None if y != y else y for y in ys] for x, ys in values.items()}
        results[name] = result | {"values": values}
    return results, reports, training_ngrams


def measure_diversity(texts, settings):
    """(measures of the diversity of texts, lists of words; their metrics.nearest_texts)."""
    similar, seed = metrics.nearest_texts(texts), settings.seed
    distinct = {n: metrics.distinct_n(texts, n, settings.distinct_words) for n in (1, 2, 3, 4)}
    lengths = [len(metrics.drop_marks(text)) for text in texts]
    return {
        "mean_words": sum(map(len, texts)) / max(1, len(texts)),
        "rouge_other": bootstrap.mean([score for score, _ in similar], seed),
        "distinct": {str(n): None if x != x else x for n, x in distinct.items()},
        "mtld": bootstrap.ratio(lengths, [metrics.mtld_factors(text) for text in texts], seed),
        "self_bleu": bootstrap.mean(metrics.self_bleu(texts), seed),
    }, similar


def rouge_scores(texts, originals, similar, nearest, seed):
    """Means of ROUGE-2 by the package rouge_score, which lets a bigram of the reference match once.

    texts, originals, nearest: str. similar: of metrics.nearest_texts. Returns {"original", "other",
    "nearest": {"clipped": of our words, "default": of the package's words}}, intervals over the
    texts that have a bigram; "other" is the F1, the others are precisions."""
    from rouge_score.rouge_scorer import RougeScorer

    scorers = {
        "clipped": RougeScorer(["rouge2"], tokenizer=SimpleNamespace(tokenize=words_and_marks)),
        "default": RougeScorer(["rouge2"]),
    }
    others = [texts[j] if j >= 0 else None for _, j in similar]
    columns = (originals, "precision"), (others, "fmeasure"), (nearest, "precision")
    results = {}
    for name, (references, kind) in zip(("original", "other", "nearest"), columns, strict=True):
        pairs = zip(references, texts, strict=True)
        pairs = [x for x in pairs if x[0] is not None and len(words_and_marks(x[1])) > 1]
        results[name] = {}
        for version, scorer in scorers.items():
            scores = [getattr(scorer.score(*pair)["rouge2"], kind) for pair in pairs]
            results[name][version] = bootstrap.mean(scores, seed)
    return results


def differences(results, generated, seed):
    """{other model at a temperature: {measure: interval of the first's ROUGE-2 less its own}}."""
    first, rows = next(iter(generated))[0], {}
    for model, x in ((model, x) for model, x in generated if model != first):
        both = [results[f"{name} at {x:g}"]["values"] for name in (first, model)]
        row = rows[f"{model} at {x:g}"] = {}
        for kind in ("rouge_original", "rouge_nearest"):
            pairs = [([y or 0 for y in v[kind]], [y is not None for y in v[kind]]) for v in both]
            row[kind] = bootstrap.difference(*pairs, seed)
    return rows


def trained_on(model, data):
    """Whether a model was trained on a Dataset; None of one that was not trained here."""
    if not model.is_run():
        return None
    hashes = checkpoint.read_state(model.out_dir)["data"]
    return checkpoint.data_hashes(data.manifest).items() <= hashes.items()


def show(results):
    """Print the tables of copying and of diversity."""
    rows = []
    for name, row in results.items():
        cells = [None] * 7
        if "copies" in row:
            match, copies = row["longest_match"], row["copies"]
            words = match["words"] and "{median:g}, {max}".format(**match["words"])
            cells = [row["rouge_nearest"], row.get("rouge_nearest_unseen"),
                     row["ngrams"]["4"]["new"], words, copies["exact"],
                     match["words_masked"] and copies["template"], copies["short"]]  # fmt: skip
        rows.append([name, row.get("rouge_original"), row["rouge_other"], *cells])
    print()
    harness.print_table(["", "ROUGE-2, original", "ROUGE-2, another", "ROUGE-2, nearest",
                         "nearest, unseen stories", "new 4-grams", "longest match: median, max",
                         "exact copies", "templates", "too short"], rows)  # fmt: skip
    print()
    harness.print_table(
        ["", "words", *(f"distinct-{n}" for n in (1, 2, 3, 4)), "MTLD", "self-BLEU"],
        [[name, f"{row['mean_words']:.1f}", *row["distinct"].values(),
          bootstrap.format_interval(row["mtld"], 1), row["self_bleu"]]
         for name, row in results.items()],
    )  # fmt: skip


def completion_rows(index, prompts, generated, reports, results):
    """The lines of diversity.jsonl: each completion with all that was measured of it."""
    for (model, x), texts in generated.items():
        name = f"{model} at {x:g}"
        for i, (one, text) in enumerate(zip(prompts, texts, strict=True)):
            report = reports[name][i]
            length, start = report.longest
            yield {
                "model": model, "temperature": x, "story": one.story, "beginning": one.beginning,
                "original": one.original, "completion": text, "copy_kind": report.kind(),
                **{key: column[i] for key, column in results[name]["values"].items()},
                "longest_match_masked": report.longest_masked and report.longest_masked[0],
                "words": len(report.words), "tokens": report.num_tokens,
                "longest_match_text": " ".join(report.words[start : start + length]),
                "nearest_story": report.nearest.story,
                "nearest_text": index.text(report.nearest.story),
            }  # fmt: skip


def main():
    settings, origin = load(Settings, positional="out_dir")
    with explained("temperatures are numbers with commas between: ", ValueError):
        temperatures = [*dict.fromkeys(map(float, settings.temperatures.split(",")))]  # each once
    for temperature in temperatures:
        check_ranges(harness.SamplingSettings(temperature=temperature))

    models = harness.open_models(settings, origin)
    folder = settings.dataset or checkpoint.data_folder(models[0])
    data = Dataset(folder, "train").verify()
    known = {model.out_dir: trained_on(model, data) for model in models}
    for name in (name for name, same in known.items() if same is False):
        print(f"{name} was trained on other data than {folder}")
    index = StoryIndex(data, settings.workers)

    prompts = story_prompts(index, models, settings)
    print(f"{len(prompts)} beginnings of {folder}, {data.stories:,} stories")
    generated = generate_all(models, prompts, settings, temperatures)
    unseen = unseen_continuations(index, settings)
    results, reports, training_ngrams = measure(index, prompts, generated, unseen, settings)
    gaps = differences(results, generated, settings.seed)
    show(results)
    for name, gap in gaps.items():
        intervals = (f"{kind} {bootstrap.format_interval(x)}" for kind, x in gap.items())
        print(f"{models[0].out_dir} minus {name}: {', '.join(intervals)}")

    record = {
        "dataset": folder, "data": checkpoint.data_hashes(data.manifest),
        "models": {model.out_dir: model.identity() for model in models},
        "trained_on_dataset": known, "num_prompts": len(prompts),
        **pick(settings, "prompt_fraction", "temperatures", "top_p", "max_new_tokens", "weights",
               "seed", "distinct_words"),
        "training_ngrams": training_ngrams, "differences": gaps, "sets": results,
    }  # fmt: skip
    others = "".join(f"-beside-{Path(model.out_dir).name}" for model in models[1:])
    lines = list(completion_rows(index, prompts, generated, reports, results))
    harness.write_result(models[0].out_dir, f"diversity{others}", record, lines)
    path = Path(models[0].out_dir) / "eval" / f"diversity{others}"
    page.plot(record, f"{path}.png")
    shown = lines[: len(prompts)]  # the first model's at the first temperature
    storage.write_text(f"{path}.html", page.render(shown, record))
    print(f"{path}.png has the plots, {path}.html the completions nearest to a training story")


if __name__ == "__main__":
    run(main)
