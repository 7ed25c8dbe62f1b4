"""How well a model writes, by a stronger model in place of a judge: no key, no network.

    python -m eval.fluency out/ts_cpu                        # the referee is pretrained/
    python -m eval.fluency out/ts_cpu --steps                # its earlier checkpoints, too
    python -m eval.fluency out/ts_cpu --referee=out/ts_33m --source=mine.txt

eval.skills says what a model prefers; this says what it writes. The model continues the beginnings
of 200 held-out stories, at temperatures 0.8 and 1.0, and the referee reads each continuation and
the story's own. Of each set:

    relative     the referee's negative log-likelihood, nats per byte, less that of the stories' own
                 continuations of the same beginnings: 0 is as likely as real
    non-words    fraction of words that are neither in a dictionary nor in other held-out stories
    repeated     fraction of 4-grams of words and marks that occurred before in the continuation
    new names    fraction of names that nothing introduces: not in the beginning, and at their first
                 mention neither "named Tom" nor "her friend Tom"
    ended        fraction of continuations that end

At 1.0 a model writes as it has learned, and what it has not learned the referee finds unlikely: so
`relative` ranks models there, real stories first. At 0.8 it avoids what is unlikely, as the author
of a story does not, and may come out below 0: more predictable than real, which is not better. The
stories' own sentences and words in another order show what the referee makes of those.

Results compare where referee, stories and lengths are the same. The referee should be stronger than
the model, another one, and not trained on the stories. Intervals are 95 % bootstrap intervals over
the beginnings; the result is eval/fluency.json of the run, with --steps eval/fluency-steps.json.
"""

import re
import sys
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from configs import UserError, load, pick, run
from eval import bootstrap, harness
from eval.prompts.minimal_pairs import count_names
from nanostories.dataset import sources
from nanostories.dataset.cleaning import is_finished
from nanostories.inference.generate import Completion
from nanostories.text.metrics import repeated_ngrams
from nanostories.text.words import STOP_WORDS, dictionary_lemmas, sentences, split_words
from nanostories.training import checkpoint, model_settings

TEMPERATURES = (0.8, 1.0)
BEGINNING, LONGEST = 30, 250  # words of a beginning, and of a story at most
COLUMNS = {"relative": "relative", "non-words": "non_words", "repeated": "repeated",
           "new names": "new_names", "ended": "ended"}  # fmt: skip
# What stands before the first mention of a name that it introduces.
_INTRODUCTION = re.compile(
    r"\b(?:named|called|[Nn]ames? (?:is|was|were)|Mrs?\.|Ms\.|Miss|Dr\.|Aunt|Uncle"
    r"|(?:an?|the|his|her|their|my|our|your|[a-z]+'s)(?: [a-z]+){1,3}"
    r"(?<! and)(?<! with)(?<! to)(?<! of)(?<! for)(?<! from)(?<! at)(?<! by)(?<! but),?) $"
)


@dataclass(frozen=True)
class Settings(harness.ModelSettings):
    referee: str = ""  # the model that reads: a run or a published model; default: pretrained/
    source: str = ""  # held-out stories, any source of prepare.py; default: those of the run's data
    stories: int = 200  # how many of them are continued
    max_new_tokens: int = 300  # most tokens of a continuation
    steps: bool = False  # every checkpoint that the run has kept, too
    seed: int = 1337  # of the choice of stories, the sampling and the intervals
    batch_size: int = 64  # continuations generated at a time


class Continuation(NamedTuple):
    text: str
    ended: bool = True


# ---- the stories -------------------------------------------------------------------------------


def split_story(text):
    """(beginning, the rest) of a story, the beginning of BEGINNING words; None for one that is too
    short or too long, or has no end."""
    words = list(re.finditer(r"\S+", text))
    if not 2 * BEGINNING <= len(words) <= LONGEST or not is_finished(text):
        return None
    end = words[BEGINNING - 1].end()
    return text[:end], Continuation(text[end:])


def choose_stories(texts, count, seed):
    """(`count` (beginning, the rest) pairs of a list of stories, at most of half of them; the words
    and the names of the others, two sets). UserError where there are fewer than two."""
    order, chosen = np.random.default_rng(seed).permutation(len(texts)), {}
    for i in order:
        if len(chosen) < min(count, len(texts) // 2) and (story := split_story(texts[i])):
            chosen[i] = story
    if len(chosen) < 2:
        lengths = f"of {2 * BEGINNING} to {LONGEST} words"
        raise UserError(f"of {len(texts)} stories, fewer than two are {lengths} and finished")
    others = [text for i, text in enumerate(texts) if i not in chosen]
    words = {word for text in others for word in split_words(text)}
    return list(chosen.values()), (words, {*count_names(others)})


def shuffle(text, parts, rng):
    """`text` with its parts, list of str in order, in another order; what is between them stays."""
    shuffled, at = "", 0
    for part, other in zip(parts, rng.permutation(np.array(parts, object)), strict=True):
        start = text.index(part, at)
        shuffled, at = shuffled + text[at:start] + other, start + len(part)
    return shuffled + text[at:]


# ---- what is measured --------------------------------------------------------------------------


def likelihoods(referee, beginnings, continuations):
    """(nats, bytes) of each continuation under a LoadedModel, float64 (2, n). Where it ended,
    <|endoftext|> counts as one byte."""
    tokenizer, limit = referee.tokenizer, referee.model.config.block_size - len(referee.bos_ids)
    sizes = tokenizer.token_bytes
    prompts, completions, num_bytes = [], [], []
    for beginning, (text, ended) in zip(beginnings, continuations, strict=True):
        # The tokens of the whole, for a model may go on within a word.
        ids, length = tokenizer.encode(beginning + text), len(beginning.encode())
        first = int((np.cumsum(sizes[ids]) <= length).sum())
        rest, ended = ids[first:limit], ended and len(ids) <= limit
        prompts.append(referee.bos_ids + ids[:first])
        completions.append(Completion(rest, ended))
        num_bytes.append(int(sizes[rest].sum()) + ended)
    pairs = harness.completion_nlls(referee.model, prompts, completions, tokenizer.eot)
    return np.array([[nll for nll, _ in pairs], num_bytes], np.float64)


def new_names(beginning, text, names):
    """(names in a continuation that nothing introduces, its names), two int. names: a set."""
    mentioned = {word for word in re.findall(r"\b[A-Z][a-z]+\b", text) if word in names}
    unknown = 0
    for name in mentioned - set(re.findall(r"\w+", beginning)):
        before = (beginning + text)[: len(beginning) + re.search(rf"\b{name}\b", text).start()]
        unknown += not _INTRODUCTION.search(before)
    return unknown, len(mentioned)


def measure(stories, continuations, nlls, known, seed):
    """{measure: interval} of a set of continuations. stories: (beginning, the real Continuation)
    pairs. nlls: `likelihoods` of the set and of the real ones. known: (words, names), two sets."""
    vocabulary, names = known

    def is_non_word(word):
        return not (word in vocabulary or word in STOP_WORDS or dictionary_lemmas(word))

    words = [split_words(one.text) for one in continuations]
    repeats = zip(*(repeated_ngrams(one.text, 4) for one in continuations), strict=True)
    pairs = zip(stories, continuations, strict=True)
    unknown = zip(*(new_names(start, one.text, names) for (start, _), one in pairs), strict=True)
    return {
        "relative": bootstrap.difference(*nlls, seed),
        "nats_per_byte": bootstrap.ratio(*nlls[0], seed),
        "non_words": bootstrap.ratio(
            [sum(map(is_non_word, some)) for some in words], [*map(len, words)], seed
        ),
        "repeated": bootstrap.ratio(*repeats, seed),
        "new_names": bootstrap.ratio(*unknown, seed),
        "ended": bootstrap.mean([one.ended for one in continuations], seed),
    }


class Referee:
    """Measures sets of continuations of the same stories, (beginning, Continuation) pairs."""

    def __init__(self, loaded, stories, known, seed):
        self.loaded, self.stories, self.known, self.seed = loaded, stories, known, seed
        self.beginnings, self.real = zip(*stories, strict=True)
        self.real_nlls = likelihoods(loaded, self.beginnings, self.real)

    def measure(self, continuations):
        """{measure: interval}; see `measure`."""
        nlls = likelihoods(self.loaded, self.beginnings, continuations), self.real_nlls
        return measure(self.stories, continuations, nlls, self.known, self.seed)

    def controls(self):
        """{name: measures} of what is no model's: the real continuations, whole and shuffled."""
        rng, shuffled = np.random.default_rng(self.seed), {}
        for name, split in (("sentences shuffled", sentences), ("words shuffled", str.split)):
            texts = [shuffle(text, split(text), rng) for text, _ in self.real]
            shuffled[name] = self.measure([*map(Continuation, texts)])
        return {"real stories": self.measure(self.real)} | shuffled

    def model(self, loaded, settings, temperature):
        """The measures of a LoadedModel's continuations."""
        options = pick(settings, "max_new_tokens", "seed", "batch_size")
        sampling = harness.SamplingSettings(temperature=temperature, **options)
        samples = harness.generate_completions(loaded, self.beginnings, sampling, 1)
        texts = [(loaded.tokenizer.decode(one.ids), one.ended) for [one] in samples]
        return self.measure([Continuation(*one) for one in texts])


# ---- the command -------------------------------------------------------------------------------


def is_own_referee(loaded, referee):
    """Whether two LoadedModels have the same weights, to within the rounding of bfloat16, or one
    was trained from the other."""
    states = [one.model.state_dict() for one in (loaded, referee)]
    if [w.shape for w in states[0].values()] != [w.shape for w in states[1].values()]:
        return False
    pairs = zip(*(state.values() for state in states), strict=True)
    if all(torch.equal(a.bfloat16(), b.bfloat16()) for a, b in pairs):
        return True
    runs = [one for one in (loaded, referee) if one.is_run()]
    bases = [checkpoint.read_config(one.out_dir)["train"]["init_from"] for one in runs]
    folders = {Path(one.out_dir).resolve() for one in runs}
    return len(folders) < len(runs) or any(
        base and Path(base).resolve() in folders for base in bases
    )


def show(title, rows):
    """Print {label: measures} as a table; title: of its first column."""
    cells = [[label, *map(row.get, COLUMNS.values())] for label, row in rows.items()]
    harness.print_table([title, *COLUMNS], cells)


def main():
    settings, origin = load(Settings, positional="out_dir")
    [loaded] = harness.open_models(settings, origin)
    if settings.steps and not loaded.is_run():
        raise UserError("steps are those of a run: name its folder")
    device, name = loaded.model.wte.weight.device, settings.referee or model_settings.pretrained()
    judge = checkpoint.load_model(name, device=device)
    if own := is_own_referee(loaded, judge):
        line = f"warning: '{name}' is the model itself, or one was trained from the other: nobody"
        print(line, "should be their own referee", file=sys.stderr)
    source = settings.source or checkpoint.data_folder(loaded, "source")
    texts = list(sources.read(source) if settings.source else harness.val_texts(source))
    stories, known = choose_stories(texts, settings.stories, settings.seed)
    referee = Referee(judge, stories, known, settings.seed)

    sets = referee.controls()
    sets |= {f"temperature {t}": referee.model(loaded, settings, t) for t in TEMPERATURES}
    results = {
        "checkpoint": loaded.identity(), "referee": judge.identity() | {"name": str(name)},
        "own_referee": own, "source": source, "stories": len(stories), "seed": settings.seed,
        "max_new_tokens": settings.max_new_tokens, "max_length": loaded.max_length,
        "stories_sha256": sha256(repr(stories).encode("utf-8", "surrogatepass")).hexdigest(),
        "sets": sets,
    }  # fmt: skip
    show("", sets)
    if settings.steps:
        results["checkpoints"] = rows = {}
        for step in checkpoint.steps_of(loaded.out_dir):
            earlier = checkpoint.load_run(loaded.out_dir, f"checkpoints/{step}", device)
            known = earlier.identity() == loaded.identity()
            measures = sets["temperature 1.0"] if known else referee.model(earlier, settings, 1.0)
            rows[str(step)] = measures
        print()
        show("step", rows)
    harness.write_result(loaded.out_dir, "fluency-steps" if settings.steps else "fluency", results)


if __name__ == "__main__":
    run(main)
