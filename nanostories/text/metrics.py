"""Similarity and diversity of texts: the paper's R, and the usual measures beside it.

    ngram_precision(T1, T2)  R_k,p: share of T1's k-grams that occur in T2 (Eldan & Li 2023, 4.3)
    nearest_texts(texts)     r_i = max over j != i of R_2(T_i, T_j), with R_k = 2PQ / (P + Q) of
                             the precisions P and Q both ways
    distinct_n(texts, k, n)  different k-grams / k-grams, of n words (Li et al. 2016)
    mtld_factors(text)       of MTLD (McCarthy & Jarvis 2010)
    self_bleu(texts)         BLEU-4 of each against all others (Zhu et al. 2018)
    repeated_ngrams(text)    seq-rep-n (Welleck et al. 2020)

A text is a list of words and marks (`words.words_and_marks`). A k-gram that occurs twice in T1
counts twice; whether it occurs in T2 is yes or no. So for "a b a b a b" against "a b" R_2,p is 3/5.
ROUGE-2's precision, which lets each k-gram of T2 match once, is 1/5.
"""

import math
from collections import Counter
from itertools import permutations

from nanostories.text.words import ngrams, words_and_marks


def ngram_precision(text, other, k=2):
    """R_k,p of two texts, 0 to 1; nan where the first has no k-gram."""
    grams, known = ngrams(text, k), set(ngrams(other, k))
    return sum(gram in known for gram in grams) / len(grams) if grams else math.nan


def nearest_texts(texts, k=2):
    """[(R_k, j)]: for each text its largest R_k with another text, and that one's number;
    (nan, -1) where it, or every other, has no k-gram."""
    counts = [Counter(ngrams(text, k)) for text in texts]
    nearest = [(math.nan, -1)] * len(texts)
    for i, j in permutations(range(len(texts)), 2):
        if counts[i] and counts[j]:
            common = counts[i].keys() & counts[j].keys()
            p, q = (sum(map(one.get, common)) / one.total() for one in (counts[i], counts[j]))
            score = 2 * p * q / (p + q) if common else 0.0
            if not score <= nearest[i][0]:  # true of the first, as of any comparison with nan
                nearest[i] = (score, j)
    return nearest


def distinct_n(texts, k, words):
    """The share of different k-grams among those of `words` words of some texts, 0 to 1; nan where
    the texts are shorter. Longer texts repeat more, so only shares of equally many words compare:
    the texts are read in portions of `words` words, and the mean of the portions' shares is taken,
    without the incomplete last one. No k-gram spans two texts."""
    shares, grams, left = [], [], words
    for text in texts:
        while len(text) >= left:
            grams += ngrams(text[:left], k)
            shares.append(len(set(grams)) / max(1, len(grams)))
            text, grams, left = text[left:], [], words
        grams += ngrams(text, k)
        left -= len(text)
    return sum(shares) / len(shares) if shares else math.nan


def drop_marks(text):
    return [word for word in text if any(char.isalnum() for char in word)]


def mtld_factors(text, threshold=0.72):
    """The number of MTLD factors of a text without its marks, float, the mean of reading it both
    ways. A factor ends where the share of different words in it falls to `threshold`; the rest
    counts by how far its share has fallen. The MTLD of one text is the mean of words / factors both
    ways; of many short texts, some without a factor, we take all words / all factors."""
    words = drop_marks(text)
    return (_factors(words, threshold) + _factors(words[::-1], threshold)) / 2


def _factors(words, threshold):
    count, seen, length = 0, set(), 0
    for word in words:
        seen.add(word)
        length += 1
        if len(seen) / length <= threshold:
            count, seen, length = count + 1, set(), 0
    return count + (1 - len(seen) / length) / (1 - threshold) if length else count


def self_bleu(texts):
    """BLEU-4 of each text with all others as its references, as NLTK's sentence_bleu has it, list
    of float, 0 to 1; nan where it is empty or alone. Where no k-gram matches, 0.1 counts as
    matching (Chen & Cherry 2014, smoothing 1), but a text that shares no word with the others has
    0. NLTK counts the k-grams of all texts anew for each."""
    counts = [Counter(gram for n in range(1, 5) for gram in ngrams(text, n)) for text in texts]
    highest, second = Counter(), Counter()  # of the counts of each k-gram in the texts
    for gram, number in (item for count in counts for item in count.items()):
        second[gram] = max(second[gram], min(number, highest[gram]))
        highest[gram] = max(highest[gram], number)
    lengths, scores = Counter(map(len, texts)), [math.nan] * len(texts)
    for i, text in enumerate(texts):
        if not text or len(texts) == 1:
            continue
        matches, totals = Counter(), Counter()  # by k
        for gram, number in counts[i].items():
            others = second[gram] if number == highest[gram] else highest[gram]
            matches[len(gram)] += min(number, others)
            totals[len(gram)] += number
        logs = [math.log((matches[n] or 0.1) / (totals[n] or 1)) for n in range(1, 5)]
        # The length of another text that is closest, the shorter of two.
        other_lengths = lengths - Counter([len(text)])
        closest = min(other_lengths, key=lambda length: (abs(length - len(text)), length))
        brevity = min(1.0, math.exp(1 - closest / len(text)))
        scores[i] = brevity * math.exp(sum(logs) / 4) if matches[1] else 0.0
    return scores


def repeated_ngrams(text, n=3):
    """(k-grams of n words and marks that occurred before in a str, all its k-grams), two int."""
    grams = Counter(ngrams(words_and_marks(text), n))
    return grams.total() - len(grams), grams.total()
