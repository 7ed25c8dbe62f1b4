"""
Words of a story replaced by synonyms; everything else of it stays as it was, byte for byte.

    new, swaps = reword(text, 0.3, Wordnet(), rng)     # 30 % of its content words
    swaps[0]                                           # Swap(start=4, old="big", new="large", ...)

Two ways to find a synonym:

    Wordnet     the student report's: any single word that shares any sense with the word, as it
                stands in WordNet. So "ran" may become "campaign", and "big" in "a big ball" "adult"
    Context     ours: a word that usually means what this one does here, by Lesk's guess, that the
                corpus uses, and in this one's form: "began" becomes "started", "a big apple" "a
                large apple", with the article that it needs. Names stay, words whose sense is in
                doubt, and those that make up one thing with a neighbour ("ice cream", "woke up")

Chosen are as many content words (nouns, verbs, adjectives and adverbs) as the share asks for,
rounded by chance so that it holds on average, of those that have a synonym.
"""

import math
import re
from dataclasses import dataclass
from functools import cache

import thesaurus
from words import STOP, dictionary, lemmas, tokens

PARTS = {"n": "NOUN", "v": "VERB", "a": "ADJ", "r": "ADV"}  # WordNet's, and lemminflect's
NEAR = 12  # words on either side that say which sense a word has
SURE = 0.5  # how likely that sense must be
USUAL = 3  # a synonym has the sense among its own so many most usual ones
FOR = 2.0  # nats that a model may have against a synonym
WINDOW = 300  # characters before a word that a model reads, and half as many after it
COMMON = 1e-6  # share of a corpus's words that a synonym's forms must have


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
    words = thesaurus.content_words(text)
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
        return thesaurus.synonyms(word.text, word.pos)

    def mended(self, text, swaps):
        """The swaps, and what else they ask for: nothing."""
        return swaps


class Context:
    """
    Ours. counts: {word: how often} of a corpus, lower case, as words.tokens has them. likelihood: a
    Likelihood, by which the one that fits best is taken, if one fits; without, any of them.
    """

    def __init__(self, counts, likelihood=None):
        self.counts, self.total, self.bases = counts, sum(counts.values()), bases_of(counts)
        self.likelihood = likelihood

    def names(self, text, word):
        """The synonyms of a thesaurus.Word of a text as dictionaries have them, a list of str."""
        if in_a_unit(text, word):
            return []
        sense = self.sense(text, word)
        names = usual(sense, word.pos) if sense else ()
        least, own = COMMON * self.total, thesaurus.base_form(word.text, word.pos)
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
        near = tokens(text[: word.start])[-NEAR:] + tokens(text[word.stop :])[:NEAR]
        near = {name: lemmas(name) for name in near if name not in STOP}
        weights = [
            (count + 1) * math.prod(
                math.sqrt(self.total / (self.counts.get(name, 0) + 1))
                for name, bases in near.items() if bases & described(sense)
            )
            for sense, count in zip(senses, counts, strict=True)
        ]  # fmt: skip
        best = max(weights)
        return senses[weights.index(best)] if best >= SURE * sum(weights) else None

    def synonyms(self, text, word):
        """What a thesaurus.Word of a text may become, a list of str, in the word's own form."""
        forms = [inflected(name, word.tag) for name in self.names(text, word)]
        found = [form for form in forms if form and form != word.text]
        return self.likeliest(text, word, found) if self.likelihood and found else found

    def likeliest(self, text, word, forms):
        """
        The one of the forms that the context speaks most for, in a list; none where it speaks more
        than FOR nats against it. What speaks for a form is how much likelier it makes the text than
        the word does, less how much likelier it is anywhere: a rare word is not wrong for that.
        """
        own, *others = self.likelihood(text, word, [word.text, *forms])
        counts = [self.counts.get(form.lower(), 0) + 1 for form in (word.text, *forms)]
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
            before = re.search(r"\b(an?)(\s+)$", text[: swap.start], re.IGNORECASE)
            if before:
                article = "an" if begins_with_vowel(swap.new) else "a"
                article = article.capitalize() if before[1][0].isupper() else article
                if article.lower() != before[1].lower():
                    found.append(Swap(before.start(1), before[1], article, ""))
            found.append(swap)
        return found


class Likelihood:
    """How likely a trained model finds a text with one word or another in a place."""

    def __init__(self, name):
        """name: a run folder, or a published model. Raises UserError where there is none."""
        import checkpoint  # brings torch with it, seconds that mode wordnet should not pay

        self.found = checkpoint.load_any(name)

    def __call__(self, text, word, forms):
        """
        The log-probabilities, in nats, of a text's window around a thesaurus.Word with each of the
        forms in its place, a list of float.
        """
        import torch

        model, begin = self.found.model, self.found.begin
        before = text[max(0, word.start - WINDOW) : word.start]
        after = text[word.stop : word.stop + WINDOW // 2]
        found = []
        with torch.no_grad():
            for form in forms:
                ids = begin + self.found.tokenizer.encode(before + form + after)
                ids = torch.tensor([ids[: self.found.limit]])
                loss = model(ids[:, :-1], ids[:, 1:].contiguous(), mean=False)
                found.append(-float(loss.sum()))
        return found


def bases_of(counts):
    """{(base form, n v a r): how often} of {word: how often}: a word counts for all it may be."""
    found = {}
    for word, count in counts.items():
        forms = dictionary(word)
        for pos, part in PARTS.items():
            for base in forms.get(part, ()):
                found[base, pos] = found.get((base, pos), 0) + count
    return found


@cache
def senses_of(word, pos):
    """A lower-case word's senses, most usual first, and how often WordNet's texts have each."""
    base = thesaurus.base_form(word, pos)
    senses = thesaurus.wordnet().synsets(base, pos)
    named = [[x for x in sense.lemmas() if x.name().lower() == base] for sense in senses]
    return senses, [sum(lemma.count() for lemma in mine) for mine in named]


@cache
def described(sense):
    """The base forms of the words that say what a sense is: its names, gloss and examples."""
    texts = [sense.definition(), *sense.examples(), *sense.lemma_names()]
    found = (tokens(text.replace("_", " ")) for text in texts)
    return frozenset().union(*(lemmas(x) for words in found for x in words if x not in STOP))


@cache
def usual(sense, pos):
    """The single words of which a sense is one of the USUAL first: base forms, a tuple of str."""
    reader = thesaurus.wordnet()
    names = dict.fromkeys(name.lower() for name in sense.lemma_names() if name.isalpha())
    return tuple(name for name in names if sense in reader.synsets(name, pos)[:USUAL])


@cache
def inflected(base, tag):
    """A base form in the form of a Penn tag ("VBD", "NNS", "JJR"); "" where it has none."""
    import lemminflect  # 0.3 s, which only who looks at words should pay

    forms = lemminflect.getInflection(base, tag=tag)
    return forms[0] if forms else ""


@cache
def _is_unit(words):
    """Whether WordNet knows the words, joined, as one thing: "ice cream", "wake up"."""
    return bool(thesaurus.wordnet().synsets("_".join(words)))


def in_a_unit(text, word):
    """Whether a thesaurus.Word of a text makes up one thing with the word before or after it."""
    before = re.search(r"([^\W\d_]+)[ -]$", text[max(0, word.start - 40) : word.start])
    after = re.match(r"[ -]([^\W\d_]+)", text[word.stop : word.stop + 40])
    base = thesaurus.base_form(word.text, word.pos)
    pairs = [(before[1].lower(), x) for x in (word.text, base)] if before else []
    pairs += [(x, after[1].lower()) for x in (word.text, base)] if after else []
    hyphened = "-" in (text[word.start - 1 : word.start], text[word.stop : word.stop + 1])
    return hyphened or any(map(_is_unit, pairs))


# Words that begin with another sound than their letter.
_SILENT_H = re.compile("hour|honest|honou?r|heir", re.IGNORECASE)
_LIKE_YOU = re.compile("uni[cflqtv]|union|us[eu]|util|uten|utop|eu|ewe|ubiq", re.IGNORECASE)
_LIKE_WON = re.compile(r"(?:one|once)\b", re.IGNORECASE)


def begins_with_vowel(word):
    """Whether "an" stands before a word, by its sound: "an hour", "a unicorn"."""
    if word[:1].lower() in "aeiou":
        return not (_LIKE_YOU.match(word) or _LIKE_WON.match(word))
    return bool(_SILENT_H.match(word))
