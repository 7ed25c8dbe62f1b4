"""
Words of a text and their base forms, for everything here that counts or compares words.

    tokens("Ben's x-rays broke.")       ["ben", "x-rays", "broke"]
    lemmas("broke")                     {"break", "broke"}: of every part of speech it can be
    used("decorate", tokens(story))     True where "decorated" is, and "car" is not in "careful"
    words_and_marks("Oh, Ben's!")       ["oh", ",", "ben's", "!"]
    ngrams(["oh", ",", "ben's"], 2)     [("oh", ","), (",", "ben's")]
"""

import re
from functools import cache, lru_cache

# A word begins and ends with a letter; hyphens and apostrophes may stand inside.
_TOKEN = re.compile(r"[^\W\d_]+(?:[-'][^\W\d_]+)*")
_POSSESSIVE = re.compile("'s$")
_WORD_OR_MARK = re.compile(r"\w+(?:[-']\w+)*|[^\w\s]")

# Function words: what is left of a text without them says what it is about.
_FUNCTION_WORDS = """
    a an the this that these those some any no every each all both other another such own same
    i me my mine we us our you your he him his she her hers it its they them their theirs one ones
    myself yourself himself herself itself themselves who whom whose which what where when why how
    and or but nor so yet if because while although though as than then there here too also very
    not never always again just only even still already more most much many lot lots few little
    be am is are was were been being do does did done doing have has had having will would shall
    should can could may might must let lets get gets got getting
    of in on at by for with about into onto from to up down out off over under through after before
    between during without against around near away back toward towards until upon along across
    can't couldn't didn't doesn't don't hadn't hasn't haven't isn't i'm i'll i've shouldn't they're
    wasn't we're weren't won't wouldn't you're yes oh
"""
STOP_WORDS = frozenset(_FUNCTION_WORDS.split())


def split_words(text):
    """
    The words of a text in order, a list of str: lower case, with straight apostrophes, and without
    a possessive 's.
    """
    return [_POSSESSIVE.sub("", word) for word in _TOKEN.findall(text.lower().replace("’", "'"))]


@lru_cache(1 << 16)
def of_chunk(chunk):
    """The words and marks of a text without blanks, a tuple of str: see `words_and_marks`."""
    return tuple(_WORD_OR_MARK.findall(chunk.lower().replace("’", "'")))


def words_and_marks(text):
    """
    All of a text but its blanks, in order, a list of str, lower case, with straight apostrophes:
    words (letters, digits and underscores, with hyphens and apostrophes inside) and single marks.
    """
    return [word for chunk in text.split() for word in of_chunk(chunk)]


def word_spans(text):
    """
    Where each of the words and marks of a text stands in it: [(start, stop)]. Where lower case has
    more characters than upper (as of "İ"), all between two blanks counts as each one's place.
    """
    found = []
    for chunk in re.finditer(r"\S+", text):
        lower, at = chunk[0].lower().replace("’", "'"), chunk.start()
        words = list(_WORD_OR_MARK.finditer(lower))
        if len(lower) == len(chunk[0]):
            found += [(at + word.start(), at + word.end()) for word in words]
        else:
            found += [chunk.span()] * len(words)
    return found


def ngrams(words, n):
    """The runs of n words, a list of tuples."""
    return list(zip(*(words[i:] for i in range(n)), strict=False))


@cache
def dictionary_lemmas(word):
    """{"NOUN", "VERB", "ADJ", ...: base forms} of a lower-case word, {} where it is in no
    dictionary."""
    import lemminflect  # 0.3 s, which only who looks at words should pay

    return lemminflect.getAllLemmas(word)


@cache
def _bases(word):
    """The base forms that a word may have: one in no dictionary, as a noun and as a verb."""
    found = dictionary_lemmas(word)
    if not found:
        from lemminflect import getAllLemmasOOV as guess

        found = guess(word, "NOUN") | guess(word, "VERB")
    return frozenset().union(*found.values())


@cache
def lemmas(word):
    """The base forms that a lower-case word may have, itself included: a frozenset of str."""
    return _bases(word) | {word}


@cache
def _base_forms(asked):
    """What some base form of a word must be for it to count as the `asked` one, inflected."""
    return frozenset([asked]) if asked in _bases(asked) else lemmas(asked)


def contains_word(asked, told):
    """
    Whether a word stands among the tokens `told`, in any of its inflections.

    asked: a word, or several that must stand together ("ice cream"). A base form counts for its
    inflections ("decorate": "decorated"), an inflected one for those of the same base form.
    """
    wanted = [_base_forms(word) for word in split_words(asked)]
    runs = zip(*(told[i:] for i in range(len(wanted))), strict=False)
    return bool(wanted) and any(
        all(bases & lemmas(word) for bases, word in zip(wanted, run, strict=True)) for run in runs
    )


def unique_content_words(text):
    """The content words of a text, each once, in order: a list of str, lower case."""
    return list(dict.fromkeys(word for word in split_words(text) if word not in STOP_WORDS))


# A sentence ends with a mark, perhaps in a quote that is not spoken on about: '"No!" said the cat.'
_END = re.compile(
    r"(?<=[.!?])(?<!\bMr\.)(?<!\bMrs\.)(?<!\bMs\.)(?<!\bDr\.)\s+"
    r"|(?<=[.!?][\"'”’])\s+(?![a-z])|\n+"
)


def sentences(text):
    """The sentences of a text, a list of str without blanks around them."""
    return [part.strip() for part in _END.split(text) if part.strip()]
