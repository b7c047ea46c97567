"""How far shallow cues get on the embedded data sets, and how alike two texts may be.

    python -m tests.data.baselines

prints the accuracies that src/fleetune/data/embedded/README.md states. Nothing here reads word
order or meaning: each is a baseline the data must not be solved by.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np

from fleetune.data.base import Split
from fleetune.data.demo import load_demo

_POSITIVE = """
adore adored amazing beautiful beautifully best better bliss brilliant charming cheerful clean
clever comfortable confident delicious delight delighted delightful easy elegant enjoy enjoyed
excellent fair fantastic fascinating favourite fine friendly fun funny generous gentle glad
glorious good gorgeous grateful great happily happy heavenly helpful honest immaculate joy kind
laugh laughing love loved lovely magical magnificent marvel marvellous nice perfect perfectly
pleasant pleased pleasure polite pretty punctual quick reliable sensible smile smiling smooth
splendid spotless superb sweet thank thanks thoughtful thrilled thrilling treat triumph warm
warmest welcoming wonder wonderful wonderfully worth
"""
_NEGATIVE = """
afraid angry annoying awful bad badly bitter blame boring broke broken catastrophe cold complain
complained complaint confusing cost cramped crash cross cruel curse damp dead dirty disappointed
disappointing disaster disgrace disgraceful dishonest dismal dreadful dull fail failed failure
fault faulty filthy flimsy furious gloomy greasy hate hates hideous hopeless horrible horrid
impossible infuriating insulting irritating late lazy leaked lost mess miserable misleading
mistake nasty noisy nuisance overcrowded pain painful pity pointless poor poorly problem regret
rotten rude ruined sad selfish shambles shame shoddy slow sour spoiled stiff stuck terrible
terribly toxic trouble ugly uncomfortable unhelpful unpleasant useless vile weak worse worst
wretched wrong
"""

POSITIVE, NEGATIVE = frozenset(_POSITIVE.split()), frozenset(_NEGATIVE.split())

WORD_GRAM, CHARACTER_GRAM = 3, 5


def words(text: str) -> tuple[str, ...]:
    """Lower-case words, without punctuation; an apostrophe inside a word belongs to it."""
    return tuple(re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower()))


def opening(text: str) -> tuple[str, ...]:
    return words(text)[:4]


def word_grams(text: str) -> frozenset[Hashable]:
    found = words(text)
    return frozenset(found[i : i + WORD_GRAM] for i in range(len(found) - WORD_GRAM + 1))


def character_grams(text: str) -> frozenset[Hashable]:
    plain = " ".join(words(text))
    return frozenset(plain[i : i + CHARACTER_GRAM] for i in range(len(plain) - CHARACTER_GRAM + 1))


def alike(
    texts: Sequence[str], grams: Callable[[str], frozenset[Hashable]], limit: float
) -> Iterator[tuple[int, int]]:
    """Pairs (i, j), i < j, of texts whose sets of grams have a Jaccard index of `limit` or more."""
    sets = [grams(text) for text in texts]
    holders: dict[Hashable, list[int]] = defaultdict(list)
    for j, own in enumerate(sets):
        shared = Counter(i for gram in own for i in holders[gram])
        for i, count in shared.items():
            if count >= limit * (len(own) + len(sets[i]) - count):
                yield i, j
        for gram in own:
            holders[gram].append(j)


def texts_and_rows(name: str) -> tuple[list[str], list[str]]:
    """All texts of both splits of an embedded data set, and the id of the row each stands in."""
    dataset = load_demo(name)
    texts: list[str] = []
    rows: list[str] = []
    for split in (dataset.train, dataset.tests["test"]):
        for column in (split.first, split.second or ()):
            texts.extend(column)
            rows.extend(split.ids[: len(column)])
    return texts, rows


def labels_of(split: Split) -> np.ndarray:
    assert split.labels is not None
    return split.labels


def word_list_accuracy() -> float:
    """Sentiment, train and test together: more words of POSITIVE than of NEGATIVE, or not.

    A tie, most often no word of either list, counts as negative.
    """
    dataset = load_demo("demo-sentiment")
    right = total = 0
    for split in (dataset.train, dataset.tests["test"]):
        for text, label in zip(split.first, labels_of(split), strict=True):
            found = words(text)
            score = sum(word in POSITIVE for word in found) - sum(
                word in NEGATIVE for word in found
            )
            right += int(score > 0) == label
            total += 1
    return right / total


def tfidf_accuracy(
    train: Sequence[str], train_labels: np.ndarray, test: Sequence[str], test_labels: np.ndarray
) -> float:
    """Test accuracy of a logistic regression on tf-idf weights of words and word pairs."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(ngram_range=(1, 2))
    model = LogisticRegression(max_iter=1000).fit(vectorizer.fit_transform(train), train_labels)
    return float(model.score(vectorizer.transform(test), test_labels))


def sentiment_tfidf_accuracy() -> float:
    dataset = load_demo("demo-sentiment")
    train, test = dataset.train, dataset.tests["test"]
    return tfidf_accuracy(train.first, labels_of(train), test.first, labels_of(test))


def hypothesis_only_accuracy() -> float:
    """Entailment without the premise."""
    dataset = load_demo("demo-entailment")
    train, test = dataset.train, dataset.tests["test"]
    assert train.second is not None and test.second is not None
    return tfidf_accuracy(train.second, labels_of(train), test.second, labels_of(test))


def overlap_accuracy() -> float:
    """Entailment by the share of the hypothesis's words that stand in the premise.

    The threshold, and which side of it means entailment, are the best ones on train.
    """
    dataset = load_demo("demo-entailment")
    train, test = dataset.train, dataset.tests["test"]
    shares, labels = _overlaps(train), labels_of(train)
    rules = ((t, above) for t in np.unique(shares) for above in (0, 1))
    at, above = max(rules, key=lambda rule: np.mean(_by_overlap(shares, *rule) == labels))
    return float(np.mean(_by_overlap(_overlaps(test), at, above) == labels_of(test)))


def _overlaps(split: Split) -> np.ndarray:
    assert split.second is not None
    pairs = zip(split.first, split.second, strict=True)
    sets = [(set(words(premise)), set(words(hypothesis))) for premise, hypothesis in pairs]
    return np.array([len(premise & hypothesis) / len(hypothesis) for premise, hypothesis in sets])


def _by_overlap(shares: np.ndarray, threshold: float, above: int) -> np.ndarray:
    return np.where(shares >= threshold, above, 1 - above)


BASELINES: dict[str, Callable[[], float]] = {
    "demo-sentiment, word list (train and test)": word_list_accuracy,
    "demo-sentiment, tf-idf of 1-2 words (test)": sentiment_tfidf_accuracy,
    "demo-entailment, tf-idf of the hypothesis alone (test)": hypothesis_only_accuracy,
    "demo-entailment, word overlap (test)": overlap_accuracy,
}

if __name__ == "__main__":
    for title, accuracy in BASELINES.items():
        print(f"{title}: {accuracy():.3f}")
