"""
The simple words that a teacher's stories are built on, from a corpus of stories for small children.

    python -m eval.simple_words --source="stories/*.txt"     # writes eval/prompts/simple_words.txt
    read()["verb"]                                           # ["say", "want", "go", ...]

The base forms of the nouns, verbs and adjectives that the corpus has most often, each as what it
most often is there: 700, 500 and 300 of them. (The paper's list had about 1,500 and is not known.)
simple_words.txt as it stands was made of 26,887 stories of TinyStoriesV2; a minute reads 8,000.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from configs import UserError, load, run
from nanostories import storage
from nanostories.dataset import sources
from nanostories.text import wordnet
from nanostories.text.words import dictionary_lemmas

KINDS = {"noun": ("n", "NOUN", 700), "verb": ("v", "VERB", 500), "adjective": ("a", "ADJ", 300)}
PATH = Path(__file__).parent / "prompts" / "simple_words.txt"
_PRONOUNS = "something anything everything nothing someone anyone everyone somebody anybody"
PRONOUNS = {*_PRONOUNS.split(), "everybody", "nobody"}


@dataclass(frozen=True)
class Settings:
    source: str = "tinystories"  # stories, any source of prepare.py
    out: str = str(PATH)  # the file to write


def count(texts):
    """Counter of (base form, kind) over the content words of texts."""
    names = {pos: (kind, tag) for kind, (pos, tag, _) in KINDS.items()}
    raw = Counter()
    for text in texts:
        raw.update((word.text, word.pos) for word in wordnet.content_words(text))
    found = Counter()
    for (word, pos), times in raw.items():
        kind, tag = names.get(pos, ("", ""))
        if bases := dictionary_lemmas(word).get(tag):
            found[bases[0], kind] += times
    return found


def choose(found):
    """{kind: its words, the most frequent first} of `count`."""
    best = {}
    for (word, kind), times in found.items():
        if word.isalpha() and word.islower() and len(word) > 1 and word not in PRONOUNS:
            best[word] = max(best.get(word, (0, "")), (times, kind))
    ranked = sorted(best, key=lambda word: (-best[word][0], word))
    return {
        kind: [word for word in ranked if best[word][1] == kind][:most]
        for kind, (_, _, most) in KINDS.items()
    }


def read(path=PATH):
    """{kind: words} of a file that this wrote, or of your own; UserError where it is none."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"words cannot be read from '{path}': {error}") from None
    found = {kind: [] for kind in KINDS}
    for line in lines:
        kind, colon, words = line.partition(":")
        if colon and kind in found:
            found[kind] += words.split()
    if missing := [kind for kind, words in found.items() if not words]:
        raise UserError(f"'{path}' has no line '{missing[0]}: ...'")
    return found


def main():
    settings, _ = load(Settings)
    texts = sources.read(settings.source, split="train")
    kinds = choose(count(texts))
    lines = (f"{kind}: {word}\n" for kind, words in kinds.items() for word in words)
    storage.write_text(settings.out, "".join(lines))
    sizes = ", ".join(f"{len(words)} {kind}s" for kind, words in kinds.items())
    print(f"{settings.out}: {sizes}")


if __name__ == "__main__":
    run(main)
