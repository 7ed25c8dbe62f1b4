"""Words of a story replaced by synonyms; the rest of the text stays as it is, byte for byte.

    new, replacements, n = substitute(text, 0.3, WordnetSynonyms(), rng)     # 30 % of n words
    replacements[0]           # Replacement(start=4, old="big", new="large", pos="a")

Two methods choose the synonyms:

    WordnetSynonyms    the student report's: any single word that shares any sense with the word, in
                       its base form. So "ran" may become "campaign", "big" in "a big ball" "adult".
    ContextSynonyms    ours: a word that usually has the word's sense here (by Lesk's algorithm),
                       that the corpus has and uses alike, in the same inflection: "began" becomes
                       "started", "a car" "an automobile". Names stay, and so do words whose sense
                       is in doubt and parts of compounds ("ice cream", "woke up").

The fraction is of the content words (nouns, verbs, adjectives and adverbs), rounded at random so
that it holds on average, and made up of words that have a synonym.
"""

import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise

from nanostories.text import wordnet
from nanostories.text.words import STOP_WORDS, lemmas, split_words, words_and_marks

# What ContextSynonyms asks of a synonym.
SENSE_WINDOW = 12  # words on either side that say which sense a word has
MIN_SENSE_PROBABILITY = 0.4  # of the word's sense
TOP_SENSES = 3  # the sense must be among so many most frequent ones of the synonym
MIN_FREQUENCY = 1e-5  # of the inflected synonym, among the corpus's words
MIN_OVERLAP = 0.2  # of what follows the two words in the corpus
MAX_LOSS = 2.0  # by how much a model's log-likelihood may fall
MAX_COMPOUND = 4  # words
CONTEXT_CHARS = 300  # before and after a word that are read


@dataclass(frozen=True)
class Replacement:
    """text[start : start + len(old)] became `new`; pos: n v a r of a word, "" of an article."""

    start: int
    old: str
    new: str
    pos: str


def substitute(text, fraction, method, rng):
    """(the text with synonyms, list of Replacement in order, the number of its content words).
    method: a WordnetSynonyms or ContextSynonyms. rng: a random.Random."""
    words = wordnet.content_words(text)
    wanted = fraction * len(words)
    count = int(wanted) + (rng.random() < wanted % 1)
    rng.shuffle(words)
    replacements = []
    for word in words:
        if len(replacements) == count:
            break
        if synonyms := method.synonyms(text, word):
            replacements.append(Replacement(word.start, word.text, rng.choice(synonyms), word.pos))
    replacements.sort(key=lambda replacement: replacement.start)
    if method.fixes_articles:
        replacements = fix_articles(text, replacements)
    parts, end = [], 0
    for replacement in replacements:
        parts += [text[end : replacement.start], replacement.new]
        end = replacement.start + len(replacement.old)
    return "".join([*parts, text[end:]]), replacements, len(words)


class WordnetSynonyms:
    """The student report's method: any synonym, as WordNet has it."""

    fixes_articles = False

    def synonyms(self, text, word):
        return wordnet.synonyms(word.text, word.pos)


class CorpusCounts:
    """How often a corpus has each word, and each pair of words in a row."""

    def __init__(self):
        self.counts, self.next_words = Counter(), defaultdict(Counter)

    def add(self, text):
        words = words_and_marks(text)
        self.counts.update(words)
        for word, next_word in pairwise(words):
            self.next_words[word][next_word] += 1

    def overlap(self, word, other):
        """Overlap of what follows two words, 0 to 1: sum over x of min(p(x|word), p(x|other))."""
        one, two = (self.next_words.get(name, {}) for name in (word, other))
        totals = sum(one.values()), sum(two.values())
        return sum(min(one[x] / totals[0], two[x] / totals[1]) for x in one.keys() & two.keys())


class ContextSynonyms:
    """Our method: synonyms that fit the context. log_likelihoods: None, or a function of (text,
    word, forms) that gives the log-likelihood of the text with each of the forms in the place of
    the word; then only the best synonym is left."""

    fixes_articles = True

    def __init__(self, corpus, log_likelihoods=None):
        self.counts, self.total = corpus.counts, corpus.counts.total()
        self.base_counts, self.log_likelihoods = count_base_forms(corpus.counts), log_likelihoods
        self.overlap = cache(corpus.overlap)

    def base_forms(self, text, word):
        """The synonyms of a wordnet.Word of a text before they are inflected, list of str."""
        sense = None if in_compound(text, word) else self.sense(text, word)
        own, least = wordnet.base_form(word.text, word.pos), MIN_FREQUENCY * self.total
        names = frequent_names(sense, word.pos) if sense else []
        names = [name for name in names if name not in (own, word.text.lower())]
        return [name for name in names if self.base_counts[name, word.pos] >= least]

    def sense(self, text, word):
        """WordNet's sense of a wordnet.Word of a text, a Synset; None where it is in doubt. Lesk's
        algorithm (1986; by gloss and examples, as in Kilgarriff and Rosenzweig 2000), with the
        senses' frequencies as priors: a word nearby that the description of a sense has, too, makes
        the sense 1 / sqrt(p) times as likely; p is the word's frequency in the corpus."""
        senses, counts = sense_counts(word.text.lower(), word.pos)
        if not sum(counts):
            return None
        before = split_words(text[max(0, word.start - CONTEXT_CHARS) : word.start])
        after = split_words(text[word.stop : word.stop + CONTEXT_CHARS])
        nearby = dict.fromkeys([*before[-SENSE_WINDOW:], *after[:SENSE_WINDOW]])
        nearby = [name for name in nearby if name not in STOP_WORDS]
        weights = []
        for sense, count in zip(senses, counts, strict=True):
            shared = (name for name in nearby if lemmas(name) & description(sense))
            factors = (math.sqrt(self.total / (self.counts[name] + 1)) for name in shared)
            weights.append((count + 1) * math.prod(factors))
        best = max(weights)
        return senses[weights.index(best)] if best >= MIN_SENSE_PROBABILITY * sum(weights) else None

    def synonyms(self, text, word):
        """The synonyms of a wordnet.Word of a text that fit, list of str, in the word's form."""
        own = word.text.lower()
        forms = [inflect(name, word.tag) for name in self.base_forms(text, word)]
        least = MIN_FREQUENCY * self.total  # rules out "experter"
        forms = [form for form in forms if form != own and self.counts[form] >= least]
        forms = [form for form in forms if wordnet.is_child_safe(form)]  # "drink" is, "drunk" not
        forms = [form for form in forms if self.overlap(own, form) >= MIN_OVERLAP]
        return self.most_likely(text, word, forms) if self.log_likelihoods and forms else forms

    def most_likely(self, text, word, forms):
        """[the form that fits the context best], or [] where even that one fits worse than the word
        by more than MAX_LOSS. The fit is the log-likelihood of the text with the form, less the
        form's log frequency in the corpus: a rare word is not wrong because it is rare."""
        count, *counts = (self.counts[form.lower()] + 1 for form in (word.text, *forms))
        fit, *fits = self.log_likelihoods(text, word, [word.text, *forms])
        if fit == -math.inf:
            return []
        pairs = zip(fits, counts, strict=True)
        gains = [new_fit - fit + math.log(count / new_count) for new_fit, new_count in pairs]
        best = max(gains)
        return [forms[gains.index(best)]] if best >= -MAX_LOSS else []


def count_base_forms(counts):
    """Counter of (base form, n v a r), by a Counter of words: each counts as all it may be."""
    base_counts = Counter()
    for word, count in counts.items():
        for pos, bases in wordnet.dictionary_base_forms(word).items():
            base_counts.update({(base, pos): count for base in bases})
    return base_counts


@cache
def sense_counts(word, pos):
    """(the Synsets of a lower-case word, their counts in WordNet's texts), most frequent first."""
    base = wordnet.base_form(word, pos)
    senses = wordnet.reader().synsets(base, pos)
    own = [[lemma for lemma in sense.lemmas() if lemma.name().lower() == base] for sense in senses]
    return senses, [sum(lemma.count() for lemma in lemmas) for lemmas in own]


@cache
def description(sense):
    """The base forms of the words in a sense's names, gloss and examples, a frozenset of str."""
    text = " ".join([sense.definition(), *sense.examples(), *sense.lemma_names()])
    words = set(split_words(text.replace("_", " "))) - STOP_WORDS
    return frozenset().union(*map(lemmas, words))


@cache
def frequent_names(sense, pos):
    """Those of wordnet.names(sense) that have it among their TOP_SENSES."""
    names = wordnet.names(sense)
    return [name for name in names if sense in wordnet.reader().synsets(name, pos)[:TOP_SENSES]]


@cache
def inflect(base, tag):
    """A base form in the form of a Penn tag ("VBD", "NNS", "JJR"); "" where it has none."""
    import lemminflect  # takes 0.3 s, which only those who look at words should pay

    return next(iter(lemminflect.getInflection(base, tag=tag)), "")


@lru_cache(1 << 18)
def _is_compound(words):
    return bool(wordnet.reader().synsets("_".join(words)))


def in_compound(text, word):
    """Whether a hyphen or an entry of WordNet ("ice cream") joins a Word of a text to others."""
    before = re.search(r"(?:[^\W\d_]+[ -])*$", text[max(0, word.start - 60) : word.start])[0]
    after = re.match(r"(?:[ -][^\W\d_]+)*", text[word.stop : word.stop + 60])[0]
    if before.endswith("-") or after.startswith("-"):
        return True
    before = re.split("[ -]", before.lower())[:-1][1 - MAX_COMPOUND :]
    after = re.split("[ -]", after.lower())[1:][: MAX_COMPOUND - 1]
    return any(
        _is_compound((*before[len(before) - i :], form, *after[:j]))
        for form in {word.text.lower(), wordnet.base_form(word.text, word.pos)}
        for i in range(len(before) + 1)
        for j in range(min(len(after), MAX_COMPOUND - 1 - i) + 1)
        if i + j
    )


def fix_articles(text, replacements):
    """The replacements, and those of "a" and "an" before them that the new words need."""
    fixed = []
    for replacement in replacements:
        first = max(0, replacement.start - 20)
        pattern = r"\b(an?)\s+[\"“‘']?$"
        if before := re.search(pattern, text[first : replacement.start], re.IGNORECASE):
            article = "an" if begins_with_vowel_sound(replacement.new) else "a"
            article = article.capitalize() if before[1][0].isupper() else article
            if article.lower() != before[1].lower():
                fixed.append(Replacement(first + before.start(1), before[1], article, ""))
        fixed.append(replacement)
    return fixed


# Words that begin with another sound than their letter: "hour", "unicorn", "one".
_SILENT_H = re.compile("hour|honest|honou?r|heir", re.IGNORECASE)
_CONSONANT_SOUND = re.compile(
    r"uni[cflqstv]|union|unanim|us[aeu]|ut(il|en|op)|eu|ewe|ubiq|uku|ur[ai]n|onc?e\b", re.IGNORECASE
)


def begins_with_vowel_sound(word):
    """Whether "an" stands before a word: "an hour", "a unicorn"."""
    vowel = word[:1].lower() in "aeiou"
    return not _CONSONANT_SOUND.match(word) if vowel else bool(_SILENT_H.match(word))
