"""Masks names and nouns, so that a story retold with other names and things counts as the same.

    mask = masker(index)
    mask("kite"), mask("fly")        # MASK, "fly"

A word is masked wherever it occurs. It is a noun if WordNet counts it most often as one, and a name
if most of its occurrences inside a sentence are capitalized. Function words, indefinite pronouns
and a few adverbs that WordNet has only as nouns are never masked.
"""

import functools

from nanostories.text import wordnet
from nanostories.text.words import STOP_WORDS, dictionary_lemmas

_OTHERS = """
    something anything nothing everything someone anyone everyone somebody anybody everybody nobody
    inside outside home today tomorrow yesterday right hello hi goodbye bye wow
"""
_NEVER = STOP_WORDS | frozenset(_OTHERS.split())
MASK = "<noun>"  # no word: words_and_marks would cut it up


def is_masked(word, counts=None):
    """Whether a word is masked. counts: its occurrences inside a sentence of the training stories,
    and those capitalized; None of a word that they do not have."""
    base = word.removesuffix("'s")
    if base in _NEVER or not base[:1].isalpha():
        return False
    if counts is None and not dictionary_lemmas(base):  # taken for a name
        return True
    mid_sentence, capitalized = counts or (0, 0)
    return 2 * capitalized > mid_sentence or wordnet.most_frequent_pos(base) == "n"


def masker(index):
    """A function that turns the masked words into MASK, by the counts of a StoryIndex."""
    # Where a segment lacks a word its number is 0, a story's end, which is inside no sentence.
    pairs = zip(index.segments, index.local, strict=True)
    totals = sum(segment.word_counts[local, 1:] for segment, local in pairs)
    counts = dict(zip(index.numbers, totals[1:].tolist(), strict=True))
    return functools.cache(lambda word: MASK if is_masked(word, counts.get(word)) else word)
