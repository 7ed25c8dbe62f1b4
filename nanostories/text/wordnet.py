"""Content words of a text and their synonyms, by NLTK's tagger and WordNet.

    content_words("The cat sat.")    [Word(4, 7, "cat", "n", "NN"), Word(8, 11, "sat", "v", "VBD")]
    synonyms("happy", "a")           ["felicitous", "glad"]
    most_frequent_pos("play")        "v": it is more often a verb than a noun

The data is NLTK's, see DOWNLOAD; it may lie in a folder that NLTK_DATA names.
"""

import re
import zipfile
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np

from configs import UserError
from nanostories.text.words import STOP_WORDS, dictionary_lemmas, lemmas

# A run of letters, digits, combining accents and stray bytes is one token, so that no part of
# "dog2" or "donâ€™t" is taken for a word.
_RUN = r"[\w\u0300-\u036f\udc80-\udcff€™]+"
_TOKEN = re.compile(rf"{_RUN}(?:[-'’‘`´]{_RUN})*|[^\w\s]")
_WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")
_POS_OF_TAG = {"N": "n", "V": "v", "J": "a", "R": "r"}  # by the first letter of a Penn tag
_DICTIONARY_POS = {"n": "NOUN", "v": "VERB", "a": "ADJ", "r": "ADV"}  # lemminflect's names
DOWNLOAD = "python -m nltk.downloader wordnet averaged_perceptron_tagger_eng"


@dataclass(frozen=True)
class Word:
    """A content word, text[start:stop]. pos: WordNet's n, v, a or r; tag: Penn Treebank's."""

    start: int
    stop: int
    text: str
    pos: str
    tag: str = ""


def _read(load):
    """load(), which reads NLTK's data; UserError where the data is missing or damaged."""
    try:
        return load()
    except (LookupError, OSError, ValueError, zipfile.BadZipFile) as error:
        why = next((line.strip(" *") for line in str(error).splitlines() if line.strip(" *")), "")
        raise UserError(f"NLTK's data cannot be read ({why:.80}): {DOWNLOAD}") from None


class _Perceptron:
    """The model of NLTK's tagger, its weights in an array: same sums and order, half the time."""

    def __init__(self, model):
        self.classes = sorted(model.classes)
        column = {label: i for i, label in enumerate(self.classes)}
        self.row = {feature: i for i, feature in enumerate(model.weights)}
        self.weights = np.zeros((len(self.row), len(column)))
        for row, weights in zip(self.weights, model.weights.values(), strict=True):
            row[[column[label] for label in weights]] = list(weights.values())

    def predict(self, features, return_conf=False):
        """(the most likely tag, None); the last in the alphabet where scores tie, as in NLTK."""
        rows = [self.row[feature] for feature in features if feature in self.row]
        scores = np.add.reduce(self.weights.take(rows, 0), 0)
        return self.classes[len(self.classes) - 1 - scores[::-1].argmax()], None


@cache
def _tagger():
    from nltk.tag import PerceptronTagger

    tagger = _read(PerceptronTagger)
    tagger.model = _Perceptron(tagger.model)
    return tagger


@cache
def reader():
    from nltk.corpus import wordnet

    _read(lambda: wordnet.ensure_loaded())  # a lambda: the look-up of the method loads data, too
    return wordnet


def pos_tags(words):
    """The Penn Treebank tag of each of the words and marks of a text, list of str."""
    return [tag for _, tag in _tagger().tag(words)]


def content_words(text):
    """The nouns, verbs, adjectives and adverbs of a text in order, list of Word. Capitalized words
    are left out: most are names, and the tagger misreads children's names that begin a sentence."""
    tokens = list(_TOKEN.finditer(text))
    return [
        Word(token.start(), token.end(), token[0], _POS_OF_TAG[tag[0]], tag)
        for token, tag in zip(tokens, pos_tags([token[0] for token in tokens]), strict=True)
        if tag[0] in _POS_OF_TAG and token[0][0].islower() and _WORD.fullmatch(token[0])
        and token[0].replace("’", "'") not in STOP_WORDS
    ]  # fmt: skip


@cache
def base_form(word, pos):
    """WordNet's most frequent base form of a word ("saw": "see"), or the word in lower case."""
    bases, counts = reader()._morphy(word.lower(), pos), _counts()
    return max(bases, key=lambda base: counts[base, pos], default=word.lower())


@cache
def synonyms(word, pos):
    """The `names` of a word's senses of this part of speech, most frequent senses first, without
    its own. A sense that WordNet writes with a capital is none of the word's: "er" is not "Er",
    erbium."""
    base = base_form(word, pos)
    senses = (sense for sense in reader().synsets(base, pos) if base in sense.lemma_names())
    merged = dict.fromkeys(name for sense in senses for name in names(sense))
    return [name for name in merged if name not in (base, word.lower())]


@cache
def names(sense):
    """The single words of a Synset that may be put into a story for children: list of str, base
    forms in lower case."""
    words = dict.fromkeys(name.lower() for name in sense.lemma_names() if name.isalpha())
    return [word for word in words if is_child_safe(word)]


# A sense is not for children where WordNet marks its use so, or its definition has such a word.
_UNSAFE_DOMAINS = {"obscenity", "vulgarism", "dirty_word", "disparagement", "ethnic_slur", "slang"}
_UNSAFE_DEFINITION = re.compile(
    r"offensive (?:\w+ )?(?:term|name|word)|ethnic slur|derogatory|disparag|obscene"
    r"|vulgar (?:term|slang|word)|sexual|genital|male reproductive gland|vagina|penis|testic"
    r"|copulat|prostitut|excrement|feces|bowel movement|\burin|defecat"
)


@cache
def _listed_words():
    """The words of the package better-profanity (MIT license), frozenset of str."""
    path = files("better_profanity") / "profanity_wordlist.txt"
    return frozenset(path.read_text(encoding="utf-8").lower().split("\n"))


@cache
def is_child_safe(word):
    """Whether a lower-case word may be put into a story for children: not where better-profanity
    lists the word or a base form of it, nor where a third of its senses are not for children and
    WordNet counts none of the others in its texts: "screw" is listed, "crapper" has no other sense,
    "tool" has."""
    bases = lemmas(word)
    if bases & _listed_words():
        return False
    unsafe, others = 0, []
    for lemma in (lemma for base in bases for lemma in reader().lemmas(base)):
        sense = lemma.synset()
        marks = [*lemma.usage_domains(), *(x for y in sense.usage_domains() for x in y.lemmas())]
        marked = _UNSAFE_DOMAINS & {mark.name() for mark in marks}
        if marked or _UNSAFE_DEFINITION.search(sense.definition()):
            unsafe += 1
        else:
            others.append(lemma.count())
    return sum(others) > 0 or 2 * unsafe < len(others) or not unsafe


@cache
def _counts():
    """Counter {(base form, pos): how often it occurs in WordNet's tagged texts}."""
    import nltk

    counts = Counter()
    # Read by itself: to load all of WordNet takes seconds.
    with _read(lambda: nltk.data.find("corpora/wordnet/cntlist.rev").open()) as lines:
        for line in lines:  # "play%2:33:00:: 1 57": after % stands the part of speech
            sense, _, count = line.decode().split()
            base, _, rest = sense.partition("%")
            counts[base, "nvara"[int(rest[0]) - 1]] += int(count)
    return counts


@cache
def dictionary_base_forms(word):
    """{part of speech (n v a r): base forms} of a lower-case word, by lemminflect's dictionary."""
    bases = dictionary_lemmas(word)
    return {pos: bases[name] for pos, name in _DICTIONARY_POS.items() if name in bases}


@cache
def most_frequent_pos(word):
    """The part of speech that a lower-case word most often has in WordNet, n v a r; "" for none."""
    counts, bases = _counts(), dictionary_base_forms(word)
    return max(bases, key=lambda pos: max(counts[base, pos] for base in bases[pos]), default="")
