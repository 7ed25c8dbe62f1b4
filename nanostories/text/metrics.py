"""
How alike texts are, and how rich: the paper's R, and the usual measures beside it.

    precision(T1, T2)     R_k,p: the share of T1's k-grams that occur in T2 (Eldan & Li 2023, 4.3)
    f1(T1, T2)            R_k = 2PQ / (P + Q), P and Q the precisions both ways
    nearest(texts)        r_i = max over j != i of R_2(T_i, T_j)
    distinct(texts, k, n) different k-grams / k-grams, of n words (Li et al. 2016)
    factors(text)         of MTLD (McCarthy & Jarvis 2010)
    self_bleu(texts)      BLEU-4 of each against all others (Zhu et al. 2018)

A text is a list of words and marks, words.words_and_marks; its k-grams are all of them in order, so
one that occurs twice counts twice in T1. Whether it occurs in T2 is yes or no: for "a b a b a b"
against "a b" R_2,p is 3 / 5. ROUGE-2's precision lets a k-gram of T2 match once: 1 / 5.
"""

import math
from collections import Counter

from nanostories.text.words import ngrams, words_and_marks


def ngram_precision(one, other, k=2):
    """R_k,p of two texts, 0 to 1; nan where the first has no k-gram."""
    grams, theirs = ngrams(one, k), set(ngrams(other, k))
    return sum(gram in theirs for gram in grams) / len(grams) if grams else math.nan


def ngram_f1(one, other, k=2):
    """R_k of two texts, 0 to 1; nan where one has no k-gram."""
    p, q = ngram_precision(one, other, k), ngram_precision(other, one, k)
    return 2 * p * q / (p + q) if p + q else p + q


def nearest_texts(texts, k=2):
    """
    For each text its largest R_k with another of them, and which: [(R, j)]; (nan, -1) where it has
    no k-gram or there is no other that has.
    """
    counts = [Counter(ngrams(text, k)) for text in texts]
    found = [(math.nan, -1)] * len(texts)
    for i, mine in enumerate(counts):
        for j, theirs in enumerate(counts):
            if i == j or not mine or not theirs:
                continue
            both = mine.keys() & theirs.keys()
            p, q = (sum(map(one.get, both)) / one.total() for one in (mine, theirs))
            score = 2 * p * q / (p + q) if both else 0.0
            if not score <= found[i][0]:  # nan: the first
                found[i] = (score, j)
    return found


def distinct_n(texts, k, words):
    """
    The share of different k-grams among those of `words` words of some texts, 0 to 1; nan where
    these have less.

    The more words there are, the less is new, so that only shares of equally many compare: the
    texts are read one after the other in portions of so many words, and it is the portions' mean;
    what is left at the end counts in none.
    """
    shares, grams, left = [], [], words
    for text in texts:
        while len(text) >= left:
            grams += ngrams(text[:left], k)
            shares.append(len(set(grams)) / max(1, len(grams)))
            text, grams, left = text[left:], [], words
        grams += ngrams(text, k)
        left -= len(text)
    return sum(shares) / len(shares) if shares else math.nan


def mtld_factors(text, least=0.72):
    """
    In how many pieces of MTLD a text falls, a float, the mean of reading it forwards and backwards.
    A piece ends where the share of different words in it falls to `least`; what is left at the end
    counts by how far its share has fallen. Words are counted, not marks. The MTLD of a text is the
    mean of its words / factors both ways; of many short ones, of which some have no factor, we take
    all words / all factors.
    """
    words = drop_marks(text)
    return (_factors(words, least) + _factors(words[::-1], least)) / 2


def drop_marks(text):
    """The words of a text, without its marks."""
    return [word for word in text if any(c.isalnum() for c in word)]


def _factors(words, least):
    count, seen, length = 0, set(), 0
    for word in words:
        seen.add(word)
        length += 1
        if len(seen) / length <= least:
            count, seen, length = count + 1, set(), 0
    return count + (1 - len(seen) / length) / (1 - least) if length else count


def self_bleu(texts, most=4):
    """
    BLEU of each text with all others as its references, a list of floats from 0 to 1; nan where it
    is empty or alone. k-grams up to `most` words weigh the same, with the usual brevity penalty
    (Papineni et al. 2002); where none of k words matches, 0.1 of one counts (Chen & Cherry 2014,
    smoothing 1), but a text without a word of the others has 0.
    """
    logs = [0.0] * len(texts)
    for k in range(1, most + 1):
        counts = [Counter(ngrams(text, k)) for text in texts]
        top = {}  # the two largest counts of a k-gram, and whose the largest is
        for i, mine in enumerate(counts):
            for gram, count in mine.items():
                first, second, whose = top.get(gram, (0, 0, -1))
                if count > first:
                    top[gram] = (count, first, i)
                elif count > second:
                    top[gram] = (first, count, whose)
        for i, mine in enumerate(counts):
            hits = 0
            for gram, count in mine.items():
                first, second, whose = top[gram]
                hits += min(count, second if whose == i else first)
            share = (hits or (k > 1) * 0.1) / max(1, mine.total())
            logs[i] += (math.log(share) if share else -math.inf) / most
    lengths = [len(text) for text in texts]
    found = []
    for i, n in enumerate(lengths):
        others = lengths[:i] + lengths[i + 1 :]
        if not n or not others:
            found.append(math.nan)
            continue
        closest = min(others, key=lambda m: (abs(m - n), m))
        found.append(math.exp(logs[i] + min(0, 1 - closest / n)))
    return found


REPEATED = 3  # words and marks in a row that count as repeated


def repeated_ngrams(text):
    """
    (tops, bottoms): k-grams of a text that stood in it before, and all its k-grams, of REPEATED
    words and marks (seq-rep-n of Welleck et al. 2020).
    """
    grams = Counter(ngrams(words_and_marks(text), REPEATED))
    return grams.total() - len(grams), grams.total()
