"""
Held-out stories with one thing broken: what a model that has learned English would not write.

    questions = make(texts, 300, seed=1)      # of each kind, from a list of stories
    questions[0].prompt     # Prompt("grammar", "... and they", ((" were sad.", " was sad."),))

Minimal pairs, as of Warstadt et al. 2020 (BLiMP), made from the stories themselves:

    grammar       a word in a form that English does not allow there: "They was", "a apple",
                  "wanted to played", "and she play", "with he", "because them"
    consistency   another name where the story speaks again of somebody it has named before. The
                  other name is drawn as often as it is told of, so what is usual decides nothing
    plot          two sentences of it in the wrong order (Barzilay & Lapata 2008)

Half of them are told by chance. Sentences in quotes are in no plot: who says what comes first is
often open.
"""

import itertools
import random
import re
from collections import Counter
from typing import NamedTuple

from eval.prompts.knowledge_prompts import Prompt
from nanostories.text.words import STOP_WORDS, dictionary_lemmas, sentences

KINDS = ("grammar", "consistency", "plot")
LONGEST = 1400  # characters of a story that is asked about: with words for tokens, below 512
TRIES = 20  # of names, for one that is not in a story
_FORMS = {"was": "were", "is": "are", "has": "have", "him": "he", "them": "they", "us": "we"}
_FORMS |= {other: form for form, other in _FORMS.items()} | {"a": "an", "an": "a"}
_BASE = "want|wants|wanted|like|likes|liked|love|loves|loved|try|tried|start|started|began|decided"
_BASE = rf"(?:(?:{_BASE}|need|needs|needed|had|learned) to|did not|didn't|could|could not|couldn't)"
# What stands before a form, and the form; two by two. What is right for one rule is wrong for the
# other, so a reader who knows no more than which form is usual, or short, is right half the time.
_RULES = (
    {"singular": r"(?<!\bif )\b(?:[Hh]e|[Ss]he|[Ii]t) (was|is|has)\b(?!n't)",
     "plural": r"\b(?:[Tt]hey|[Ww]e) (were|are|have)\b(?!n't)"},
    {"a": r"(?<=[a-z] )(a) (?=[bcdfgjklmnpqrstvwz][a-z]{2})",
     "an": r"(?<=[a-z] )(an) (?=[aeio][a-z]{2})"},
    {"base": rf"\b{_BASE} ([a-z]+)\b",
     "past": r"(?:[.!?\n]|\band|\bbut|\bso|\bbecause) (?:[Hh]e|[Ss]he|[Ii]t) ([a-z]+)\b"},
    {"object": r"\b(?:with|for|at|from|behind|near) (him|them|us)\b",
     "subject": r"\b(?:and|but|because|when|that) (he|they|we) (?=[a-z]+ed\b|was|were|had)"},
)  # fmt: skip
_NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]+\b")


class Question(NamedTuple):
    """
    A Prompt with one pair, a kind of KINDS and which rule made it. A model that gives the right
    continuation the higher probability has told it.
    """

    kind: str
    rule: str
    prompt: Prompt


def make(texts, count, seed):
    """`count` Questions of each kind from a list of stories, fewer where they have no more."""
    texts = [text for text in dict.fromkeys(texts) if 200 < len(text) <= LONGEST]
    makers = (grammar, consistency, plot)
    return [question for of in makers for question in of(texts, count, random.Random(seed))]


def sentence_from(text, at):
    """A text from a place to the end of its sentence."""
    return re.match(r"[^.!?\n]*[.!?]?", text[at:])[0]


def question(kind, rule, text, at, word, other):
    """The Question whether `word`, which stands at a place of a text, or `other` stands there."""
    rest = sentence_from(text, at)
    right, wrong = (f" {said}{rest[len(word) :]}" for said in (word, other))
    return Question(kind, rule, Prompt(kind, text[:at].rstrip(), ((right, wrong),)))


def broken(rule, word):
    """A form of a word that its rule does not allow; None where there is none for certain."""
    if rule not in ("base", "past"):
        return _FORMS[word]
    from lemminflect import getInflection

    bases = dictionary_lemmas(word).get("VERB", ())
    if len(bases) != 1 or word in _FORMS:
        return None
    past = getInflection(bases[0], "VBD")
    if len(past) != 1 or past[0] == bases[0]:
        return None
    one, other = (bases[0], past[0]) if rule == "base" else (past[0], bases[0])
    return other if word == one else None


def grammar(texts, count, rng):
    """Questions of forms, of each rule as many as of the other of its pair, one in a story."""
    pairs = []
    for rules in _RULES:
        found = {rule: [] for rule in rules}
        for rule, pattern in rules.items():
            for text in texts:
                places = list(re.finditer(pattern, text))
                place = rng.choice(places) if places else None
                if place and (other := broken(rule, place[1])):
                    at = place.start(1)
                    found[rule].append(question("grammar", rule, text, at, place[1], other))
            rng.shuffle(found[rule])
        pairs.append(list(zip(*found.values(), strict=False)))
    dealt = (both for row in itertools.zip_longest(*pairs) for both in row if both)
    return [one for both in itertools.islice(dealt, count // 2) for one in both]


def names_in(texts):
    """{name: how often}: words with a capital inside sentences that have none elsewhere."""
    capital = Counter(name for text in texts for name in _NAME.findall(text))
    plain = Counter(word for text in texts for word in re.findall(r"\b[a-z]+\b", text))
    return {
        name: n for name, n in capital.items()
        if n > 2 and plain[name.lower()] < n / 20 and name.lower() not in STOP_WORDS
    }  # fmt: skip


def consistency(texts, count, rng):
    """Questions of names that stood before, at least a sentence ago, in a story's second half."""
    names, found = names_in(texts), []
    places = []
    for text in texts:
        mine = [p for p in _NAME.finditer(text) if p[0] in names]
        mine = [
            p for p in mine
            if p.start() > len(text) / 2 and re.search(rf"\b{p[0]}\b.*[.!?]", text[: p.start()])
        ]  # fmt: skip
        if mine:
            places.append((text, rng.choice(mine)))
    drawn = [place[0] for _, place in places]
    rng.shuffle(places)
    for text, place in places:
        tried = (rng.choice(drawn) for _ in range(TRIES))
        other = next((name for name in tried if name not in text), None)
        if other:
            found.append(question("consistency", "name", text, place.start(), place[0], other))
        if len(found) == count:
            break
    return found


def plot(texts, count, rng):
    """Questions in which order two sentences of a story's second half stand."""
    found = []
    for text in texts:
        parts = sentences(text)
        i = rng.randrange(len(parts) // 2, max(len(parts) // 2 + 1, len(parts) - 1))
        some = parts[i : i + 2]
        at = text.find(" ".join(some))
        if len(some) == 2 and at > 0 and '"' not in "".join(some) and some[0] != some[1]:
            order = tuple(" " + " ".join(one) for one in (some, some[::-1]))
            found.append(Question("plot", "order", Prompt("plot", text[:at].rstrip(), (order,))))
    rng.shuffle(found)
    return found[:count]
