"""Held-out stories with one thing broken: what a model that has read the story would not write.

    prompts = make(texts, 640, seed=1)      # of each kind, from a list of stories
    prompts[0]      # Prompt("consistency", "... and then", ((" Tom ran.", " Ben ran."),), "name")

Minimal pairs, as of Warstadt et al. 2020 (BLiMP), made from the stories themselves:

    consistency   a name or a noun that the story has last mentioned many words before, or another
                  one that it has not mentioned: of two stories each gets the word of the other,
                  so each word is as often wrong as right
    context       which of two nouns that the story has both mentioned comes here
    plot          two of its sentences in the wrong order (Barzilay & Lapata 2008)

Chance answers half of them. A plot question has no sentence with quotes: either of two speakers
may often speak first.
"""

import random
import re
from collections import Counter
from pathlib import Path

from eval.prompts.knowledge_prompts import Prompt
from nanostories.text.words import STOP_WORDS, sentences

KINDS = ("consistency", "context", "plot")
MIN_LENGTH, MAX_LENGTH = 200, 1400  # characters of a story
MAX_PROMPT = 800  # characters of the story before the question: short, to be read fast
_NAME = re.compile(r"(?<=[a-z,] )(?!Mrs?\b|Ms\b|Dr\b)([A-Z][a-z]+)\b")
_NOUN = re.compile(r"\b(?:[Tt]he|his|her|their|my|your) (?!end\b)([a-z]+)\b")


def make(texts, count, seed):
    """`count` Prompts of each of KINDS from a list of stories, fewer where they have no more."""
    texts = [text for text in dict.fromkeys(texts) if MIN_LENGTH < len(text) <= MAX_LENGTH]
    makers = (consistency, context, plot)
    return [prompt for maker in makers for prompt in maker(texts, count, random.Random(seed))]


def count_names(texts):
    """{name: count}: words with a capital inside sentences that are rare without one."""
    capital = Counter(name for text in texts for name in _NAME.findall(text))
    plain = Counter(word for text in texts for word in re.findall(r"\b[a-z]+\b", text))
    return {
        name: n for name, n in capital.items()
        if n > 2 and plain[name.lower()] < n / 20 and name.lower() not in STOP_WORDS
    }  # fmt: skip


def simple_nouns():
    """The nouns of simple_words.txt, a set of str."""
    lines = Path(__file__).with_name("simple_words.txt").read_text("utf-8").splitlines()
    return {line.removeprefix("noun: ") for line in lines if line.startswith("noun: ")}


def returns(texts, pattern, known, distance, rng, between=0):
    """[(text, match)] in random order: of each story one place, at random, where it comes back to
    one of the `known` words that it has last mentioned a `distance` (a range) of words before, with
    at least `between` of the other known words since."""
    places = []
    for text in texts:
        matches = []
        for match in pattern.finditer(text[:MAX_PROMPT]):
            if match[1] not in known:
                continue
            parts = re.split(rf"\b{match[1]}\b", text[: match.start(1)])
            others = sum(word in known for word in pattern.findall(parts[-1]))
            if len(parts) > 1 and len(parts[-1].split()) in distance and others >= between:
                matches.append(match)
        if matches:
            places.append((text, rng.choice(matches)))
    rng.shuffle(places)
    return places


def _prompt(kind, rule, text, match, other):
    """The Prompt that asks whether the word match[1] of a text or `other` stands there."""
    rest = re.match(r"[^.!?\n]*[.!?]?", text[match.end(1) :])[0]  # of the sentence
    pair = (f" {match[1]}{rest}", f" {other}{rest}")
    return Prompt(kind, text[: match.start(1)].rstrip(), (pair,), rule)


def consistency(texts, count, rng):
    """Prompts of a name that the story comes back to, after another name, and of nouns: the names
    are three quarters of all, or as many as there are."""
    nouns, names = simple_nouns(), count_names(texts)
    far = returns(texts, _NAME, names, range(30, MAX_LENGTH), rng, between=1)
    farther = returns(texts, _NOUN, nouns, range(60, MAX_LENGTH), rng)
    prompts = swapped("name", far)[: 3 * count // 8 * 2]
    return prompts + swapped("noun", farther)[: (count - len(prompts)) // 2 * 2]


def swapped(rule, places):
    """Prompts of consistency, two by two: of two stories, each with the word of the other one,
    which it does not have. So each word is as often wrong as right."""
    prompts, waiting = [], []
    for text, match in places:
        fitting = (i for i, (other_text, other) in enumerate(waiting)
                   if match[1] not in other_text and other[1] not in text)  # fmt: skip
        if (i := next(fitting, None)) is None:
            waiting.append((text, match))
            continue
        other_text, other = waiting.pop(i)
        prompts.append(_prompt("consistency", rule, text, match, other[1]))
        prompts.append(_prompt("consistency", rule, other_text, other, match[1]))
    return prompts


def context(texts, count, rng):
    """Prompts of a noun that the story comes back to; the other one is of the story, too. Half of
    `count`: templates.py has the others."""
    known, prompts = simple_nouns(), []
    for text, match in returns(texts, _NOUN, known, range(8, 50), rng, between=1):
        mentioned = dict.fromkeys(_NOUN.findall(text[: match.start(1)]))
        others = [word for word in mentioned if word in known and word != match[1]]
        prompts.append(_prompt("context", "of two nouns", text, match, rng.choice(others)))
    return prompts[: count // 2]


def plot(texts, count, rng):
    """Prompts of the order of two sentences that follow each other."""
    prompts = []
    for text in texts:
        parts = sentences(text[:MAX_PROMPT])[:-1]  # the last may be cut
        if len(parts) < 3:
            continue
        i = rng.randrange(1, len(parts) - 1)
        two = parts[i : i + 2]
        start = text.find(" ".join(two))
        if start > 0 and not set('"“”') & set("".join(two)) and two[0] != two[1]:
            pair = tuple(" " + " ".join(order) for order in (two, two[::-1]))
            prompts.append(Prompt("plot", text[:start].rstrip(), (pair,), "order"))
    rng.shuffle(prompts)
    return prompts[:count]
