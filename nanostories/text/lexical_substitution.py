"""
Words of a story replaced by synonyms; everything else of it stays as it was, byte for byte.

    new, swaps = reword(text, 0.3, Wordnet(), rng)     # 30 % of its content words
    swaps[0]                                           # Swap(start=4, old="big", new="large", ...)

Two ways to find a synonym:

    Wordnet     the student report's: any single word that shares any sense with the word, as it
                stands in WordNet. So "ran" may become "campaign", and "big" in "a big ball" "adult"
    Context     ours: a word that usually means what this one does here, by Lesk's guess, that the
                corpus has and uses alike ("told" is followed by other words than "said"), and in
                this one's form: "began" becomes "started", "a big apple" "a large apple", with the
                article that it needs. Names stay, words whose sense is in doubt, and those that
                make up one thing with a neighbour ("ice cream", "woke up")

Chosen are as many content words (nouns, verbs, adjectives and adverbs) as the share asks for,
rounded by chance so that it holds on average, of those that have a synonym.
"""

import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise

from nanostories.text import wordnet
from nanostories.text.words import (
    STOP_WORDS,
    dictionary_lemmas,
    lemmas,
    split_words,
    words_and_marks,
)

PARTS = {"n": "NOUN", "v": "VERB", "a": "ADJ", "r": "ADV"}  # WordNet's, and lemminflect's
NEAR = 12  # words on either side that say which sense a word has
SURE = 0.4  # how likely that sense must be
USUAL = 3  # a synonym has the sense among its own so many most usual ones
FOR = 2.0  # nats that a model may have against a synonym
COMMON = 1e-5  # share of a corpus's words that a synonym must have, in its form
ALIKE = 0.2  # share of what follows it in the corpus that a synonym has in common with the word
UNIT = 4  # words that may make up one thing
AROUND = 300  # characters before and behind a word that are looked at


@dataclass(frozen=True)
class Swap:
    """text[start : start + len(old)] became `new`; pos: n v a r of a word, "" of an article."""

    start: int
    old: str
    new: str
    pos: str


def reword(text, share, way, rng):
    """
    (the text with synonyms, [Swap] in the order of the text, its content words): two of str and
    list, and how many.

    share: of the content words, 0 to 1. way: a Wordnet or a Context. rng: a random.Random, which
    alone decides what is left to chance.
    """
    words = wordnet.content_words(text)
    wanted = share * len(words)
    count = int(wanted) + (rng.random() < wanted % 1)
    places = list(range(len(words)))
    rng.shuffle(places)
    swaps = []
    for i in places:
        if len(swaps) == count:
            break
        if found := way.synonyms(text, words[i]):
            swaps.append(Swap(words[i].start, words[i].text, rng.choice(found), words[i].pos))
    swaps.sort(key=lambda swap: swap.start)
    swaps = way.mended(text, swaps)
    pieces, last = [], 0
    for swap in swaps:
        pieces += [text[last : swap.start], swap.new]
        last = swap.start + len(swap.old)
    return "".join([*pieces, text[last:]]), swaps, len(words)


class Wordnet:
    """The report's way."""

    def synonyms(self, text, word):
        """What a thesaurus.Word of a text may become, a list of str."""
        return wordnet.synonyms(word.text, word.pos)

    def mended(self, text, swaps):
        """The swaps, and what else they ask for: nothing."""
        return swaps


class Usage:
    """How a corpus uses words: counts {word: how often}, follows {word: {what comes next: ...}}."""

    def __init__(self):
        self.counts, self.follows = Counter(), defaultdict(Counter)

    def add(self, text):
        """Count the words and marks of a text, in lower case."""
        found = words_and_marks(text)
        self.counts.update(found)
        for word, after in pairwise(found):
            self.follows[word][after] += 1

    def alike(self, word, other):
        """The share that two words have in common of what follows them, 0 to 1."""
        one, two = (self.follows.get(name, {}) for name in (word, other))
        sums = sum(one.values()), sum(two.values())
        return sum(min(one[x] / sums[0], two[x] / sums[1]) for x in one.keys() & two.keys())


class Context:
    """
    Ours. usage: of a corpus. likelihood: a Likelihood, by which the one that fits best is taken, if
    one fits; without, any of them.
    """

    def __init__(self, usage, likelihood=None):
        self.usage, self.counts, self.total = usage, usage.counts, usage.counts.total()
        self.bases, self.likelihood = bases_of(usage.counts), likelihood
        self.alike = cache(usage.alike)

    def names(self, text, word):
        """The synonyms of a thesaurus.Word of a text as dictionaries have them, a list of str."""
        if in_a_unit(text, word):
            return []
        sense = self.sense(text, word)
        names = usual(sense, word.pos) if sense else ()
        least, own = COMMON * self.total, wordnet.base_form(word.text, word.pos)
        found = [name for name in names if self.bases.get((name, word.pos), 0) >= least]
        return [name for name in found if name not in (own, word.text.lower())]

    def sense(self, text, word):
        """
        WordNet's sense of a thesaurus.Word of a text, a Synset; None where it is in doubt.

        Lesk's guess (1986; by gloss and examples, as in Kilgarriff and Rosenzweig 2000), from how
        often a word has each sense: a word near by that a sense's description has, too, makes the
        sense 1 / sqrt(p) times likelier, p its share of the corpus's words.
        """
        senses, counts = senses_of(word.text.lower(), word.pos)
        if not sum(counts):
            return None
        before = text[max(0, word.start - AROUND) : word.start]
        near = (
            split_words(before)[-NEAR:] + split_words(text[word.stop : word.stop + AROUND])[:NEAR]
        )
        near = {name: lemmas(name) for name in near if name not in STOP_WORDS}
        weights = [
            (count + 1) * math.prod(
                math.sqrt(self.total / (self.counts[name] + 1))
                for name, bases in near.items() if bases & described(sense)
            )
            for sense, count in zip(senses, counts, strict=True)
        ]  # fmt: skip
        best = max(weights)
        return senses[weights.index(best)] if best >= SURE * sum(weights) else None

    def synonyms(self, text, word):
        """What a thesaurus.Word of a text may become, a list of str, in the word's own form."""
        forms = [inflected(name, word.tag) for name in self.names(text, word)]
        own, least = word.text.lower(), COMMON * self.total  # so nothing is made up: "experter"
        found = [
            form for form in forms
            if form != own and self.counts[form] >= least and self.alike(own, form) >= ALIKE
        ]  # fmt: skip
        return self.likeliest(text, word, found) if self.likelihood and found else found

    def likeliest(self, text, word, forms):
        """
        The one of the forms that the context speaks most for, in a list; none where it speaks more
        than FOR nats against it. What speaks for a form is how much likelier it makes the text than
        the word does, less how much likelier it is anywhere: a rare word is not wrong for that.
        """
        own, *others = self.likelihood(text, word, [word.text, *forms])
        if own == -math.inf:
            return []
        counts = [self.counts[form.lower()] + 1 for form in (word.text, *forms)]
        scores = [
            score - own + math.log(counts[0] / count)
            for score, count in zip(others, counts[1:], strict=True)
        ]
        best = max(scores)
        return [forms[scores.index(best)]] if best >= -FOR else []

    def mended(self, text, swaps):
        """The swaps, with those of "a" and "an" that they ask for."""
        found = []
        for swap in swaps:
            first = max(0, swap.start - 20)
            before = re.search(r"\b(an?)\s+[\"“‘']?$", text[first : swap.start], re.IGNORECASE)
            if before:
                article = "an" if begins_with_vowel(swap.new) else "a"
                article = article.capitalize() if before[1][0].isupper() else article
                if article.lower() != before[1].lower():
                    found.append(Swap(first + before.start(1), before[1], article, ""))
            found.append(swap)
        return found


class Likelihood:
    """How likely a trained model finds a text with one word or another in a place."""

    def __init__(self, name):
        """name: a run folder, or a published model. Raises UserError where there is none."""
        from nanostories.training import (
            checkpoint,  # brings torch with it, seconds that mode wordnet should not pay
        )

        self.found = checkpoint.load_model(name)

    @staticmethod
    def use_one_core():
        """What this process computes with torch."""
        import torch

        torch.set_num_threads(1)

    def __call__(self, text, word, forms):
        """
        The log-probabilities, in nats, of a text's window around a thesaurus.Word with each of the
        forms in its place, a list of float; -inf where the model does not reach so far.
        """
        import torch

        reach, found = (
            min(AROUND, self.found.max_length // 2),
            [],
        )  # a character is a token at the most
        before = text[max(0, word.start - reach) : word.start]
        after = text[word.stop : word.stop + reach // 2]
        with torch.no_grad():
            for form in forms:
                ids = self.found.bos_ids + self.found.tokenizer.encode(before + form + after)
                if len(ids) > self.found.max_length:  # but for what is not ASCII
                    found.append(-math.inf)
                    continue
                ids = torch.tensor([ids])
                loss = self.found.model(ids[:, :-1], ids[:, 1:].contiguous(), mean=False)
                found.append(-float(loss.sum()))
        return found


def bases_of(counts):
    """{(base form, n v a r): how often} of {word: how often}: a word counts for all it may be."""
    found = {}
    for word, count in counts.items():
        forms = dictionary_lemmas(word)
        for pos, part in PARTS.items():
            for base in forms.get(part, ()):
                found[base, pos] = found.get((base, pos), 0) + count
    return found


@cache
def senses_of(word, pos):
    """A lower-case word's senses, most usual first, and how often WordNet's texts have each."""
    base = wordnet.base_form(word, pos)
    senses = wordnet.reader().synsets(base, pos)
    named = [[x for x in sense.lemmas() if x.name().lower() == base] for sense in senses]
    return senses, [sum(lemma.count() for lemma in mine) for mine in named]


@cache
def described(sense):
    """The base forms of the words that say what a sense is: its names, gloss and examples."""
    texts = [sense.definition(), *sense.examples(), *sense.lemma_names()]
    found = (split_words(text.replace("_", " ")) for text in texts)
    return frozenset().union(*(lemmas(x) for words in found for x in words if x not in STOP_WORDS))


@cache
def usual(sense, pos):
    """The single words of which a sense is one of the USUAL first: base forms, a tuple of str."""
    reader = wordnet.reader()
    names = dict.fromkeys(name.lower() for name in sense.lemma_names() if name.isalpha())
    return tuple(name for name in names if sense in reader.synsets(name, pos)[:USUAL])


@cache
def inflected(base, tag):
    """A base form in the form of a Penn tag ("VBD", "NNS", "JJR"); "" where it has none."""
    import lemminflect  # 0.3 s, which only who looks at words should pay

    forms = lemminflect.getInflection(base, tag=tag)
    return forms[0] if forms else ""


@lru_cache(1 << 18)
def _is_unit(words):
    """Whether WordNet knows the words, joined, as one thing: "ice cream", "wake up"."""
    return bool(wordnet.reader().synsets("_".join(words)))


def in_a_unit(text, word):
    """Whether a thesaurus.Word of a text makes up one thing with words beside it."""
    before = re.search(r"(?:[^\W\d_]+[ -])*$", text[max(0, word.start - 60) : word.start])[0]
    after = re.match(r"(?:[ -][^\W\d_]+)*", text[word.stop : word.stop + 60])[0]
    if before.endswith("-") or after.startswith("-"):
        return True
    before, after = re.split("[ -]", before.lower())[:-1], re.split("[ -]", after.lower())[1:]
    before, after = before[1 - UNIT :], after[: UNIT - 1]
    return any(
        _is_unit((*before[len(before) - i :], one, *after[:j]))
        for one in {word.text.lower(), wordnet.base_form(word.text, word.pos)}
        for i in range(len(before) + 1)
        for j in range(min(len(after), UNIT - 1 - i) + 1)
        if i + j
    )


# Words that begin with another sound than their letter.
_SILENT_H = re.compile("hour|honest|honou?r|heir", re.IGNORECASE)
_LIKE_YOU = re.compile(
    "uni[cflqtv]|union|unis|unanim|us[aeu]|util|uten|utop|eu|ewe|ubiq|uku|ur[ai]n", re.IGNORECASE
)
_LIKE_WON = re.compile(r"(?:one|once)\b", re.IGNORECASE)


def begins_with_vowel(word):
    """Whether "an" stands before a word, by its sound: "an hour", "a unicorn"."""
    if word[:1].lower() in "aeiou":
        return not (_LIKE_YOU.match(word) or _LIKE_WON.match(word))
    return bool(_SILENT_H.match(word))
