"""The part of speech of every token of a story, by NLTK's tagger (wordnet.py says how to get it).

    tag_tokens(ids, tokenizer)      ["end", "name", "verb", "article", "noun", "mark"]

A token gets the part of speech of the word that it begins in or continues: " banana" is a noun, and
so are "ban" and "ana". A token of blanks is a "blank", <|endoftext|> an "end". A name is a word
that is capitalized inside a sentence of the story and is no function word. All other words are
tagged in lower case, because the tagger misreads "Do" or "Lily" at the beginning of a sentence.
"""

from itertools import chain, islice, repeat

from nanostories.text import wordnet
from nanostories.text.words import STOP_WORDS, word_spans

POS = (
    "name", "noun", "verb", "adjective", "adverb", "pronoun", "article", "determiner",
    "preposition", "conjunction", "number", "mark", "other", "blank", "end",
)  # fmt: skip

# By how a Penn Treebank tag begins (Marcus et al. 1993, table 2).
_PENN = {
    "NNP": "name", "NN": "noun", "VB": "verb", "MD": "verb", "JJ": "adjective", "RB": "adverb",
    "WRB": "adverb", "PRP": "pronoun", "WP": "pronoun", "EX": "pronoun", "DT": "determiner",
    "PDT": "determiner", "WDT": "determiner", "IN": "preposition", "TO": "preposition",
    "RP": "preposition", "CC": "conjunction", "CD": "number",
}  # fmt: skip
_BEFORE_SENTENCE = frozenset(".!?:…()[]–—*-\"“”'‘’")  # marks after which a sentence may begin


def _pos_of_word(word, tag):
    if not any(char.isalnum() for char in word):
        return "mark"
    if word.lower() in ("a", "an", "the"):
        return "article"
    return next((pos for prefix, pos in _PENN.items() if tag.startswith(prefix)), "other")


def _split_contraction(word):
    """A word as Penn Treebank splits it: ["do", "n't"], ["I", "'m"], ["banana"]."""
    straight = word.lower().replace("’", "'")
    cut = len(word) - 3 if straight.endswith("n't") else straight.find("'")
    return [word[:cut], straight[cut:]] if cut > 0 else [word]


def _tag_words(text, spans):
    """The part of speech of each of a text's words and marks, which lie at these `word_spans`."""
    words = [text[start:stop] for start, stop in spans]
    split, names = [_split_contraction(word) for word in words], set()
    for i in range(1, len(words)):
        between, stem = text[spans[i - 1][1] : spans[i][0]], split[i][0]
        begins = words[i - 1] in _BEFORE_SENTENCE or "\n" in between  # it may begin a sentence
        if stem[0].isupper() and not begins and stem.lower() not in STOP_WORDS:
            names.add(stem)
    parts, first = [], []  # what the tagger reads, and the index in it where each word begins
    for stem, *rest in split:
        first.append(len(parts))
        parts += [stem if stem in names or stem == "I" else stem.lower(), *rest]
    tags = wordnet.pos_tags(parts)
    return [
        "name" if stem in names else _pos_of_word(word, tags[i])
        for word, (stem, *_), i in zip(words, split, first, strict=True)
    ]


def tag_tokens(ids, tokenizer):
    """The part of speech of each of a story's tokens, as stored: list of str, all of POS."""
    tokens = [b"" if i == tokenizer.eot else tokenizer.decode_bytes([i]) for i in ids]
    text = b"".join(tokens).decode("utf-8", "surrogateescape")  # damaged bytes keep their places
    spans, tag_of_char = word_spans(text), ["blank"] * len(text)
    for tag, (start, stop) in zip(_tag_words(text, spans), spans, strict=True):
        tag_of_char[start:stop] = [tag] * (stop - start)
    sizes = (len(char.encode("utf-8", "surrogateescape")) for char in text)
    tag_of_byte = chain.from_iterable(map(repeat, tag_of_char, sizes))
    parts = []
    for i, token in zip(ids, tokens, strict=True):
        tags = [tag for tag in islice(tag_of_byte, len(token)) if tag != "blank"]
        parts.append("end" if i == tokenizer.eot else tags[0] if tags else "blank")
    return parts
