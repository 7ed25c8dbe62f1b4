"""
The part of speech of every token of a story, by NLTK's tagger (wordnet.py says how to get it).

    parts_of(ids, tokenizer)      ["end", "name", "verb", "article", "noun", "mark"]

A token is of the word that it begins in, or that it goes on with: " banana" is a noun, and so are
"ban" and "ana". One of blanks alone is a "blank", <|endoftext|> an "end". A name is what has a
capital letter inside a sentence of the story and is no function word; all others are tagged in
lower case, for the tagger takes "Do" or "Lily" at the beginning of one for nearly anything.
"""

import numpy as np

from nanostories.text import wordnet
from nanostories.text.words import STOP_WORDS, word_spans

POS = (
    "name", "noun", "verb", "adjective", "adverb", "pronoun", "article", "determiner",
    "preposition", "conjunction", "number", "mark", "other", "blank", "end",
)  # fmt: skip

# Where Penn Treebank tags (Marcus et al. 1993, table 2) begin so, they are these.
_PENN = {
    "NNP": "name", "NN": "noun", "VB": "verb", "MD": "verb", "JJ": "adjective", "RB": "adverb",
    "WRB": "adverb", "PRP": "pronoun", "WP": "pronoun", "EX": "pronoun", "DT": "determiner",
    "PDT": "determiner", "WDT": "determiner", "IN": "preposition", "TO": "preposition",
    "RP": "preposition", "CC": "conjunction", "CD": "number",
}  # fmt: skip
_ARTICLES = ("a", "an", "the")
_ENDS = frozenset(".!?:…()[]–—*-\"“”'‘’")  # what the beginning of a sentence may stand after


def _part(word, tag):
    """The part of speech of a word with a Penn tag."""
    if not any(char.isalnum() for char in word):
        return "mark"
    if word.lower() in _ARTICLES:
        return "article"
    return next((part for begin, part in _PENN.items() if tag.startswith(begin)), "other")


def _halves(word):
    """A word as Penn Treebank cuts it: ["do", "n't"], ["I", "'m"], ["banana"]."""
    straight = word.lower().replace("’", "'")
    cut = len(word) - 3 if straight.endswith("n't") else straight.find("'")
    return [word[:cut], straight[cut:]] if cut > 0 else [word]


def _tagged(text, places):
    """The part of speech of each of a text's words and marks, which stand at these places."""
    words = [text[start:stop] for start, stop in places]
    begins = [True] * len(words)  # a sentence, or may do so: after a quote, too
    for i in range(1, len(words)):
        between = text[places[i - 1][1] : places[i][0]]
        begins[i] = words[i - 1] in _ENDS or "\n" in between
    cut = [_halves(word) for word in words]
    names = {
        stem for (stem, *_), begin in zip(cut, begins, strict=True)
        if stem[0].isupper() and not begin and stem.lower() not in STOP_WORDS
    }  # fmt: skip
    pieces, first = [], []  # what the tagger reads, and where in it each word begins
    for stem, *rest in cut:
        first.append(len(pieces))
        pieces += [stem if stem in names or stem == "I" else stem.lower(), *rest]
    tags = wordnet.pos_tags(pieces)
    return [
        "name" if stem in names else _part(word, tags[i])
        for word, (stem, *_), i in zip(words, cut, first, strict=True)
    ]


def tag_tokens(ids, tokenizer):
    """
    The part of speech of each of a story's tokens, a list of str, all of POS.

    ids: as stored, <|endoftext|> first or none. Raises UserError where NLTK's data is missing.
    """
    pieces = [b"" if i == tokenizer.eot else tokenizer.decode_bytes([i]) for i in ids]
    raw = b"".join(pieces)
    text = raw.decode("utf-8", errors="surrogateescape")  # damaged bytes keep their places
    places = word_spans(text)
    tagged = _tagged(text, places)
    # Which word each byte belongs to, -1 for blanks.
    width = [len(char.encode("utf-8", "surrogateescape")) for char in text]
    at = np.cumsum([0, *width])
    owner = np.full(len(raw) + 1, -1)
    for number, (start, stop) in enumerate(places):
        owner[at[start] : at[stop]] = number
    found, place = [], 0
    for i, piece in zip(ids, pieces, strict=True):
        inside = owner[place : place + len(piece)]
        inside = inside[inside >= 0]
        place += len(piece)
        if i == tokenizer.eot:
            found.append("end")
        elif not len(inside):
            found.append("blank")
        else:
            found.append(tagged[inside[0]])
    return found
