"""
Content words of a text and their synonyms, by NLTK's tagger and WordNet.

    content_words("The cat sat.")     [Word(4, 7, "cat", "n", "NN"), Word(8, 11, "sat", "v", "VBD")]
    synonyms("happy", "a")            ["felicitous", "glad"]
    commonest("play")                 "v": more often a verb than a noun

The data is NLTK's: `python -m nltk.downloader wordnet averaged_perceptron_tagger_eng`, or in a
folder that NLTK_DATA names.
"""

import re
import zipfile
from collections import Counter
from dataclasses import dataclass
from functools import cache

import numpy as np

from configs import UserError
from nanostories.text.words import STOP_WORDS, dictionary_lemmas

# A run of letters, digits, accents that combine, and stray bytes is one token, so that no part of
# "dog2" or "donâ€™t" is taken for a word.
_RUN = r"[\w\u0300-\u036f\udc80-\udcff€™]+"
_TOKEN = re.compile(rf"{_RUN}(?:[-'’‘`´]{_RUN})*|[^\w\s]")
_WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")
_POS = {"N": "n", "V": "v", "J": "a", "R": "r"}  # the first letter of a Penn tag, and WordNet's
GET = "python -m nltk.downloader wordnet averaged_perceptron_tagger_eng"


@dataclass(frozen=True)
class Word:
    """A noun, verb, adjective or adverb (pos: n v a r), at text[start:stop]; tag: Penn's."""

    start: int
    stop: int
    text: str
    pos: str
    tag: str = ""


def _read(what):
    """What a function reads of NLTK's data; UserError where that is not there."""
    try:
        return what()
    except (LookupError, OSError, ValueError, zipfile.BadZipFile) as error:
        why = next((line.strip(" *") for line in str(error).splitlines() if line.strip(" *")), "")
        raise UserError(f"NLTK's WordNet and tagger cannot be read ({why:.80}): {GET}") from None


class _Perceptron:
    """NLTK's model of the tagger with its weights as arrays: the same sums, in the same order."""

    def __init__(self, model):
        self.classes = sorted(model.classes)
        number = {label: i for i, label in enumerate(self.classes)}
        self.weights = np.zeros((len(model.weights), len(number)))
        for row, weights in zip(self.weights, model.weights.values(), strict=True):
            row[[number[label] for label in weights]] = list(weights.values())
        self.row = {feature: i for i, feature in enumerate(model.weights)}

    def predict(self, features, return_conf=False):
        """(the likeliest tag, None); of equals the last in the alphabet, as NLTK has it."""
        rows = [row for row in map(self.row.get, features) if row is not None]
        scores = np.add.reduce(self.weights.take(rows, 0), 0)
        return self.classes[len(self.classes) - 1 - scores[::-1].argmax()], None


@cache
def _tagger():
    from nltk.tag import PerceptronTagger

    tagger = _read(PerceptronTagger)
    tagger.model = _Perceptron(tagger.model)  # half the time goes then
    return tagger


@cache
def reader():
    """NLTK's reader of WordNet; UserError where its data is not there."""
    from nltk.corpus import wordnet

    _read(lambda: wordnet.ensure_loaded())  # to look the function up reads the data already
    return wordnet


def pos_tags(words):
    """The Penn Treebank tag of each of the words and marks of a text, a list of str."""
    return [tag for _, tag in _tagger().tag(words)]


def content_words(text):
    """
    The content words of a text, a list of Word, in order. Capitals are left out: most are names,
    and the tagger does not know children's names at the start of a sentence.
    """
    found = list(_TOKEN.finditer(text))
    return [
        Word(match.start(), match.end(), match[0], _POS[tag[0]], tag)
        for match, tag in zip(found, pos_tags([match[0] for match in found]), strict=True)
        if tag[0] in _POS and match[0][0].islower() and _WORD.fullmatch(match[0])
        and match[0].replace("’", "'") not in STOP_WORDS
    ]  # fmt: skip


@cache
def base_form(word, pos):
    """
    The base form of a word of a part of speech, as WordNet has it; else the word, lower case. Of
    several the one that its texts have most: "saw" is of "see" rather than what a carpenter does.
    """
    found, counts = reader()._morphy(word.lower(), pos), _counts()
    return max(found, key=lambda base: counts[base, pos], default=word.lower())


@cache
def synonyms(word, pos):
    """
    The single words that share a sense of a part of speech with a word, most usual senses first:
    a list of base forms in lower case, without the word's own.
    """
    base = base_form(word, pos)
    found = (lemma.name() for sense in reader().synsets(base, pos) for lemma in sense.lemmas())
    names = dict.fromkeys(name.lower() for name in found if name.isalpha())
    return [name for name in names if name not in (base, word.lower())]


@cache
def _counts():
    """{(base form, part of speech): how often it was met} in the texts that WordNet counts."""
    import nltk

    # By itself: to load all of WordNet takes seconds, and the rest is not needed.
    found = Counter()
    for where in ("corpora/wordnet", "corpora/wordnet.zip/wordnet"):
        try:
            lines = nltk.data.find(f"{where}/cntlist.rev").open()
        except (LookupError, OSError, ValueError):  # ValueError: writable by others
            continue
        with lines:
            for line in lines:  # "play%2:33:00:: 1 57": after % stands the part of speech
                sense, _, count = line.decode().split()
                base, _, rest = sense.partition("%")
                found[base, "nvara"[int(rest[0]) - 1]] += int(count)
        return found
    raise UserError(f"WordNet's counts cannot be read: {GET}")


@cache
def most_frequent_pos(word):
    """
    The part of speech (n v a r) that a lower-case word is most often, by WordNet's counts; among
    equals the first of these; "" where it is in none.
    """
    counts, bases = _counts(), dictionary_lemmas(word)
    parts = {"NOUN": "n", "VERB": "v", "ADJ": "a", "ADV": "r"}
    found = {
        pos: max(counts[base, pos] for base in bases[part])
        for part, pos in parts.items() if part in bases
    }  # fmt: skip
    return max(found, key=found.get, default="")
