"""Words of a text and their base forms, for everything here that counts or compares words.

split_words("Ben's x-rays broke.")           ["ben", "x-rays", "broke"]
words_and_marks("Oh, Ben's!")                ["oh", ",", "ben's", "!"]
ngrams(["oh", ",", "ben's"], 2)              [("oh", ","), (",", "ben's")]
lemmas("broke")                              {"break", "broke"}: as any part of speech
contains_word("decorate", ["decorated"])     True; but "car" is not in ["careful"]
sentences('"No!" said Tom. He ran.')         ['"No!" said Tom.', "He ran."]
"""

import re
from functools import cache, lru_cache
from pathlib import Path

# A word begins and ends with a letter; hyphens and apostrophes may stand inside.
_WORD = re.compile(r"[^\W\d_]+(?:[-'][^\W\d_]+)*")
_WORD_OR_MARK = re.compile(r"\w+(?:[-']\w+)*|[^\w\s]")

# Function words: what is left of a text without them says what it is about.
STOP_WORDS = frozenset(Path(__file__).with_name("stop_words.txt").read_text("utf-8").split())

# A sentence ends with a mark, but inside a quote only where the speaker does not go on in lower
# case: '"No!" said the cat.'
_SENTENCE_END = re.compile(
    r"(?<=[.!?])(?<!\bMr\.)(?<!\bMrs\.)(?<!\bMs\.)(?<!\bDr\.)\s+"
    r"|(?<=[.!?][\"'”’])\s+(?![a-z])|\n+"
)


def split_words(text):
    """The words of a text, list of str: lower case, straight apostrophes, no possessive 's."""
    return [word.removesuffix("'s") for word in _WORD.findall(text.lower().replace("’", "'"))]


@lru_cache(1 << 16)
def _split_chunk(chunk):
    return tuple(_WORD_OR_MARK.findall(chunk.lower().replace("’", "'")))


def words_and_marks(text):
    """The words, numbers and one-character marks of a text: lower case, straight apostrophes."""
    return [word for chunk in text.split() for word in _split_chunk(chunk)]


def word_spans(text):
    """[(start, stop)] of each of a text's `words_and_marks`. Where lower case has more characters
    than upper ("İ"), each gets the span of everything between two blanks."""
    spans = []
    for chunk in re.finditer(r"\S+", text):
        lower, start = chunk[0].lower().replace("’", "'"), chunk.start()
        words = list(_WORD_OR_MARK.finditer(lower))
        if len(lower) == len(chunk[0]):
            spans += [(start + word.start(), start + word.end()) for word in words]
        else:
            spans += [chunk.span()] * len(words)
    return spans


def ngrams(words, n):
    """The runs of n words, list of tuple."""
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def sentences(text):
    """The sentences of a text, list of str without blanks around them."""
    return [part.strip() for part in _SENTENCE_END.split(text) if part.strip()]


def unique_content_words(text):
    """The words of a text that are no function words, each once, in order: list of str."""
    return list(dict.fromkeys(word for word in split_words(text) if word not in STOP_WORDS))


@cache
def dictionary_lemmas(word):
    """{"NOUN", "VERB", "ADJ", ...: base forms} of a lower-case word; {} if no dictionary has it."""
    import lemminflect  # takes 0.3 s, which only those who look at words should pay

    return lemminflect.getAllLemmas(word)


@cache
def _base_forms(word):
    """The base forms that a word may have: one that no dictionary has, as a noun and as a verb."""
    bases = dictionary_lemmas(word)
    if not bases:
        from lemminflect import getAllLemmasOOV

        bases = getAllLemmasOOV(word, "NOUN") | getAllLemmasOOV(word, "VERB")
    return frozenset().union(*bases.values())


@cache
def lemmas(word):
    """The base forms that a lower-case word may have, and the word itself: frozenset of str."""
    return _base_forms(word) | {word}


def contains_word(word, words):
    """Whether `word`, or several that must stand together ("ice cream"), is among `words` (of
    `split_words`). A base form matches its inflections ("decorate": "decorated"), an inflected word
    those of the same base form."""
    parts = split_words(word)
    accepted = [{part} if part in _base_forms(part) else lemmas(part) for part in parts]
    return bool(parts) and any(
        all(bases & lemmas(part) for bases, part in zip(accepted, run, strict=True))
        for run in ngrams(words, len(parts))
    )
