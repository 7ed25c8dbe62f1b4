"""The teacher as author: a strong model writes stories, the way the data set itself was made.

    export JUDGE_API_KEY=...
    python -m eval.teacher --judge=gpt-4o --count=1000 --out=stories.jsonl --dry_run
    python -m eval.teacher --judge=gpt-4o --count=1000 --out=stories.jsonl
    python prepare.py --source=stories.jsonl                  # then train on them,
    python prepare.py --source=instruct:stories.jsonl         # or on instructions for them

Each prompt names a verb, a noun and an adjective of prompts/simple_words.txt and some of the six
features, drawn uniformly by the seed. Story i has the same prompt whatever the count, so a larger
count, or a second call after a stop, requests only the stories that are missing. Each line of the
file is a story with its words, features and prompt, as in TinyStories_all_data.

Replies are cached in <out>.replies; limits and key are those of eval/llm/client.py.

    python -m eval.teacher --count_words="stories/*.txt"       # writes prompts/simple_words.txt

makes the list of words: the base forms of the nouns, verbs and adjectives that a corpus has
most often, each as what it most often is there: 700, 500 and 300 of them. (The paper's list had
about 1,500 and is not published.) simple_words.txt was made from 26,887 stories of TinyStoriesV2; a
minute counts 8,000 stories.
"""

import json
import random
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from configs import ROOT, UserError, explained, load, run
from eval.llm.client import Client
from eval.llm.settings import JudgeSettings, check_judge
from nanostories import storage
from nanostories.dataset import sources
from nanostories.dataset.instruct import FEATURES
from nanostories.text import wordnet
from nanostories.text.words import dictionary_lemmas

WORDS = ROOT / "eval" / "prompts" / "simple_words.txt"
WORDING = tomllib.loads(WORDS.with_name("teacher.toml").read_text(encoding="utf-8"))
# Of each kind of word: its tags in WordNet and in the dictionary, and how many the list has.
KINDS = {"noun": ("n", "NOUN", 700), "verb": ("v", "VERB", 500), "adjective": ("a", "ADJ", 300)}
_PRONOUNS = "something anything everything nothing someone anyone everyone somebody anybody"
PRONOUNS = {*_PRONOUNS.split(), "everybody", "nobody"}


@dataclass(frozen=True)
class Settings(JudgeSettings):
    out: str = "stories.jsonl"  # the file of stories
    count: int = 100  # how many stories
    words: str = ""  # a file of words: lines "noun: ...", "verb: ...", "adjective: ..."
    seed: int = 0  # of the words and features
    judge_temperature: float = 1.0  # of the model
    max_tokens: int = 700  # most tokens of a story
    count_words: str = ""  # instead write the file of words: counted in any source of prepare.py


def main():
    settings, _ = load(Settings)
    if settings.count_words:
        write_words(settings.words or WORDS, sources.read(settings.count_words, split="train"))
        return
    check_judge(settings)
    words = read_words(settings.words or WORDS)

    def complete(number):
        *_, prompt = draw_prompt(words, settings.seed, number)
        client.complete([{"role": "user", "content": prompt}], number)

    if settings.dry_run:
        for number in range(min(10, settings.count)):
            print(f"--- story {number}\n{draw_prompt(words, settings.seed, number)[-1]}\n")
    with Client(settings, f"{settings.out}.replies", WORDING["version"]) as client:
        try:
            client.map(complete, range(settings.count))
        finally:  # what was paid for is written, however it ended
            if not settings.dry_run:
                written, faulty = write_stories(client, words, settings)
                print(f"{settings.out}: {written} stories ({faulty} cut off or empty, left out)")
            print(f"{settings.judge}: {client.summary()}")


# ---- prompts and stories -----------------------------------------------------------------------


def draw_prompt(words, seed, number):
    """([verb, noun, adjective], features, prompt) of story `number`, uniform draws."""
    rng = random.Random(f"{seed} {number}")
    drawn = [rng.choice(words[kind]) for kind in ("verb", "noun", "adjective")]
    features = [name for name in FEATURES if rng.random() < 0.5]
    return drawn, features, prompt_of(drawn, features)


def prompt_of(words, features):
    """The prompt of prompts/teacher.toml for a verb, a noun and an adjective."""
    verb, noun, adjective = words
    wanted = ", ".join(WORDING["features"][name] for name in features)
    wanted = WORDING["wanted"].format(wanted) if wanted else ""
    return WORDING["prompt"].format(verb=verb, noun=noun, adjective=adjective, wanted=wanted)


def story_rows(client, words, settings):
    """The row of each cached story, in order, as a dict; None of one that is cut off or empty."""
    # The replies in the file: at Ctrl-C a few of a million, and some threads are still writing.
    lines = map(client.replies.get, list(client.replies.lines))
    numbers = {n for line in lines if type(n := line.get("number")) is int}
    for number in sorted(n for n in numbers if n < settings.count):
        drawn, features, prompt = draw_prompt(words, settings.seed, number)
        line = client.cached([{"role": "user", "content": prompt}], number)
        if line is None:
            continue
        story = line["reply"].strip()
        instruction = {"prompt:": prompt, "words": drawn, "features": features}
        row = {"story": story, "instruction": instruction, "source": settings.judge}
        yield row if story and line.get("finish") != "length" else None


def write_stories(client, words, settings):
    """Write all cached stories; returns (number written, number cut off or empty)."""
    counts = Counter(row is None for row in story_rows(client, words, settings))
    if counts[False]:  # else a file from before is kept: a wrong key must not empty it
        rows = filter(None, story_rows(client, words, settings))
        with storage.atomic_file(settings.out) as part, open(part, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return counts[False], counts[True]


# ---- simple words ------------------------------------------------------------------------------


def count_words(texts):
    """Counter of (base form, kind) over the content words of texts."""
    forms = Counter((word.text, word.pos) for text in texts for word in wordnet.content_words(text))
    kinds, counts = {pos: (kind, tag) for kind, (pos, tag, _) in KINDS.items()}, Counter()
    for (word, pos), count in forms.items():
        kind, tag = kinds.get(pos, ("", ""))
        if lemmas := dictionary_lemmas(word).get(tag):
            counts[lemmas[0], kind] += count
    return counts


def choose_words(counts):
    """{kind: its words, the most frequent first} of `count_words`."""
    best = {}  # of each word, how often it is of its most frequent kind
    for (word, kind), count in counts.items():
        plain = word.isalpha() and word.islower() and len(word) > 1 and word not in PRONOUNS
        if plain and wordnet.is_child_safe(word):
            best[word] = max(best.get(word, (0, "")), (count, kind))
    ranked = sorted(best, key=lambda word: (-best[word][0], word))
    return {
        kind: [word for word in ranked if best[word][1] == kind][:size]
        for kind, (_, _, size) in KINDS.items()
    }


def write_words(path, texts):
    """Write the file of the most frequent words of texts."""
    words = choose_words(count_words(texts))
    lines = (f"{kind}: {word}\n" for kind in words for word in words[kind])
    storage.write_text(path, "".join(lines))
    print(f"{path}: " + ", ".join(f"{len(words[kind])} {kind}s" for kind in words))


def read_words(path=WORDS):
    """{kind: words} of a file of words; UserError where it cannot be read or lacks a kind."""
    with explained(f"words cannot be read from '{path}': ", OSError, UnicodeDecodeError):
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    words = {kind: [] for kind in KINDS}
    for line in lines:
        kind, _, names = line.partition(":")
        words.get(kind, []).extend(names.split())
    for kind, some in words.items():
        if not some:
            raise UserError(f"'{path}' has no line '{kind}: ...'")
    return words


if __name__ == "__main__":
    run(main)
