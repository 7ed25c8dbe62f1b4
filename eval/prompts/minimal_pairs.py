"""Held-out stories with one thing broken: what a model that has learned English would not write.

    questions = make(texts, 300, seed=1)      # of each kind, from a list of stories
    questions[0].prompt     # Prompt("grammar", "... and they", ((" were sad.", " was sad."),))

Minimal pairs, as of Warstadt et al. 2020 (BLiMP), made from the stories themselves:

    grammar       a word in a form that English does not allow there: "They was", "a apple",
                  "wanted to played", "and she play", "with he", "because them"
    consistency   another name where the story comes back to somebody it has named before. Names
                  are drawn by their frequency, so the more usual one is not more often right
    plot          two of its sentences in the wrong order (Barzilay & Lapata 2008)

Chance answers half of them. A plot question has no sentence with quotes: either of two speakers
may often speak first.
"""

import itertools
import random
import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from eval.prompts.knowledge_prompts import Prompt
from nanostories.text.words import STOP_WORDS, dictionary_lemmas, sentences

KINDS = ("grammar", "consistency", "plot")
MIN_LENGTH, MAX_LENGTH = 200, 1400  # characters of a story: with words for tokens, below 512
TRIES = 20  # names drawn to find one that is not in a story
_TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
_RULES, _FORMS = _TABLES["rules"], _TABLES["forms"]
_FORMS |= {other: form for form, other in _FORMS.items()}
_NAME = re.compile(r"(?<=[a-z,] )([A-Z][a-z]+)\b")


class Question(NamedTuple):
    """A Prompt of one of KINDS with one pair of continuations, and the rule behind it."""

    rule: str
    prompt: Prompt


def make(texts, count, seed):
    """`count` Questions of each kind from a list of stories, fewer where they have no more."""
    texts = [text for text in dict.fromkeys(texts) if MIN_LENGTH < len(text) <= MAX_LENGTH]
    makers = (grammar, consistency, plot)
    return [question for maker in makers for question in maker(texts, count, random.Random(seed))]


def _question(kind, rule, text, match, other):
    """The Question whether the word match[1] of a text or `other` stands there."""
    rest = re.match(r"[^.!?\n]*[.!?]?", text[match.end(1) :])[0]  # of the sentence
    pair = (f" {match[1]}{rest}", f" {other}{rest}")
    return Question(rule, Prompt(kind, text[: match.start(1)].rstrip(), (pair,)))


def broken(rule, word):
    """A form of a word that its rule does not allow; None where there is none for certain."""
    if rule not in ("base", "past"):
        return _FORMS[word]
    from lemminflect import getInflection

    lemmas = dictionary_lemmas(word).get("VERB", ())
    if len(lemmas) != 1 or word in _FORMS:
        return None
    past = getInflection(lemmas[0], "VBD")
    if len(past) != 1 or past[0] == lemmas[0]:
        return None
    right, wrong = (lemmas[0], past[0]) if rule == "base" else (past[0], lemmas[0])
    return wrong if word == right else None


def grammar(texts, count, rng):
    """Questions of forms: as many of each rule as of the other one of its pair, one in a story."""
    pairs = []
    for rules in _RULES:
        by_rule = []
        for rule, pattern in rules.items():
            questions = []
            for text in texts:
                matches = list(re.finditer(pattern, text))
                match = rng.choice(matches) if matches else None
                if match and (wrong := broken(rule, match[1])):
                    questions.append(_question("grammar", rule, text, match, wrong))
            rng.shuffle(questions)
            by_rule.append(questions)
        pairs.append(zip(*by_rule, strict=False))
    mixed = (pair for row in itertools.zip_longest(*pairs) for pair in row if pair)
    return [question for pair in itertools.islice(mixed, count // 2) for question in pair]


def count_names(texts):
    """{name: count}: words with a capital inside sentences that are rare without one."""
    capital = Counter(name for text in texts for name in _NAME.findall(text))
    plain = Counter(word for text in texts for word in re.findall(r"\b[a-z]+\b", text))
    return {
        name: n for name, n in capital.items()
        if n > 2 and plain[name.lower()] < n / 20 and name.lower() not in STOP_WORDS
    }  # fmt: skip


def consistency(texts, count, rng):
    """Questions of a name in a story's second half that an earlier sentence has mentioned."""
    names, places = count_names(texts), []
    for text in texts:
        matches = [
            match for match in _NAME.finditer(text)
            if match[1] in names and match.start() > len(text) / 2
            and re.search(rf"\b{match[1]}\b.*[.!?]", text[: match.start()])
        ]  # fmt: skip
        if matches:
            places.append((text, rng.choice(matches)))
    drawn, questions = [match[1] for _, match in places], []
    rng.shuffle(places)
    for text, match in places:
        tries = (rng.choice(drawn) for _ in range(TRIES))
        if other := next((name for name in tries if name not in text), None):
            questions.append(_question("consistency", "name", text, match, other))
    return questions[:count]


def plot(texts, count, rng):
    """Questions of the order of two sentences in a story's second half."""
    questions = []
    for text in texts:
        parts = sentences(text)
        i = rng.randrange(len(parts) // 2, max(len(parts) // 2 + 1, len(parts) - 1))
        two = parts[i : i + 2]
        start = text.find(" ".join(two))
        if len(two) == 2 and start > 0 and '"' not in "".join(two) and two[0] != two[1]:
            pair = tuple(" " + " ".join(order) for order in (two, two[::-1]))
            questions.append(Question("order", Prompt("plot", text[:start].rstrip(), (pair,))))
    rng.shuffle(questions)
    return questions[:count]
