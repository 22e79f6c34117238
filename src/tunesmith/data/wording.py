"""What a text says, apart from how it is written: the words that count, and what must not differ.

Two questions may differ in case, punctuation, word order, small words and typing errors and still be one
question. A number, a quoted value, a negation or a name makes another one of them: "capital of Texas" is not
"capital of Ohio", however alike they look.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import cached_property, lru_cache

__all__ = ["Wording", "folded", "is_code", "is_unspaced", "same_word", "symbols_of", "wording"]

_UNSPACED = r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
_TOKEN = re.compile(
    rf"{_UNSPACED}"
    r"|[A-Za-z][+#]+(?!\w)"
    r"|\d+(?:[.,:/-]\d+)*\w*"
    r"|\w+"
)
"""Words; single characters in scripts that put no spaces between words; C++ and C#; numbers and dates whole."""
_IS_UNSPACED = re.compile(_UNSPACED)
_APOSTROPHE = re.compile(r"(?<=\w)['\u2019\u02bc](?=\w)")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=\S)|(?<=[。！？])|\n+")
_QUOTED = re.compile(
    r"\"([^\"\n]{1,60})\"|\u201c([^\u201d\n]{1,60})\u201d|`([^`\n]{1,60})`|«([^»\n]{1,60})»"
    r"|(?<!\w)'([^'\n]{1,60})'(?!\w)"
)
_SPACE = re.compile(r"\s+")
_CODE_SIGN = re.compile(r"[=<>{}|\\_]")
_CODE = re.compile(r";\s*$|\w\(|::|->|\[\d*\]", re.MULTILINE)
# The first SELECT of a line alone: what does not follow it follows no later one.
_QUERY = re.compile(r"^(?>.*?\bselect\s).+\sfrom\s", re.IGNORECASE | re.MULTILINE)
_SYMBOL = re.compile(r"\w+|[^\w\s]")
_SMALL_WORDS = """
    a an the this that these those it its i me my mine we us our ours you your yours im ive id youre
    is are was were be been being am do does did doing done have has had having can could will would shall
    should may might must get got and or if but so then also as at by for from in into of off on onto out to up
    with about than which what whats thats theres there here please pls kindly thanks thank hi hello hey ok
    okay just really actually very well now still want like need know tell show give let lets
"""
_NOT_WORDS = """
    not no never none nothing nobody neither nor without cannot cant dont doesnt didnt isnt arent wasnt
    werent hasnt havent hadnt wont wouldnt couldnt shouldnt mustnt aint unable nicht kein keine pas jamais
    nunca non
"""
_COUNTING_WORDS = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million
    billion trillion first second third fourth fifth half quarter twice
"""
_SMALL = frozenset(_SMALL_WORDS.split())
"""Words that carry little: articles, pronouns, auxiliaries, courtesies. A text of nothing else keeps them."""
_NOT = frozenset(_NOT_WORDS.split())
_COUNTING = frozenset(_COUNTING_WORDS.split())
_TURNS = frozenset(("from", "to", "than"))
"""Small words after which it matters what follows: from Boston to Denver."""
_DEGREES = frozenset(("most", "least", "more", "less", "fewer", "fewest", "best", "worst"))
_NO_DEGREES = frozenset(
    ("request", "interest", "invest", "forest", "harvest", "protest", "honest", "suggest")
)
"""Of what a degree is said matters: the capital of the largest state, the state with the largest capital."""
_COURTESIES = frozenset(
    (
        "please",
        "pls",
        "kindly",
        "thanks",
        "thank",
        "hi",
        "hello",
        "hey",
        "ok",
        "okay",
        "just",
        "really",
    )
)
_NEGATION = "not "


@dataclass(frozen=True)
class Wording:
    """A text by what it says.

    Attributes:
        words: the words that count, in order, folded; plurals as singulars.
        guarded: numbers, quoted values, identifiers and "not": equal in texts that say the same.
        names: words with a capital inside a sentence, folded. Empty where case says nothing.
        bound: (word, next word that counts) for words that give a direction or a degree.
        sentences: `words` by sentence, when there are several.
        tokens: all words as they stand, folded, small ones included; without courtesies.
    """

    words: tuple[str, ...]
    guarded: frozenset[str]
    names: frozenset[str]
    bound: frozenset[tuple[str, str]]
    sentences: tuple[tuple[str, ...], ...]
    tokens: tuple[str, ...]

    @cached_property
    def counts(self) -> Counter[str]:
        """How often each word that counts occurs."""
        return Counter(self.words)

    @cached_property
    def grams(self) -> frozenset[object]:
        """Words and pairs of neighbours: what Jaccard similarity is taken of."""
        return frozenset((*self.words, *zip(self.words, self.words[1:], strict=False)))


def folded(text: str) -> str:
    """Without case, compatibility forms, runs of white space and closing punctuation."""
    plain = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return _SPACE.sub(" ", plain.casefold()).strip().rstrip(" .;!?。！？")


def wording(text: str) -> Wording:
    """Read a text. Words of languages without a list of small words all count."""
    plain = text if text.isascii() else unicodedata.normalize("NFKC", text)
    plain = _APOSTROPHE.sub("", plain)
    guarded = _quoted(plain)
    cased = _says_case(plain)
    names: set[str] = set()
    bound: set[tuple[str, str]] = set()
    sentences: list[tuple[str, ...]] = []
    everything: list[str] = []
    telling: list[str] = []
    n_negations = 0
    for sentence in _SENTENCE_END.split(plain):
        tokens = _TOKEN.findall(sentence)
        if not tokens:
            continue
        lowered = [token.casefold() for token in tokens]
        sentences.append(_read_sentence(lowered, guarded, bound, n_negations))
        n_negations += sum(token in _NOT for token in lowered)
        everything += lowered
        if sentences[-1]:
            telling += lowered
        if cased:
            names.update(
                _stem(low)
                for token, low in zip(tokens[1:], lowered[1:], strict=True)
                if token[0].isupper() and low not in _SMALL
            )
    words = tuple(word for sentence in sentences for word in sentence) or tuple(everything)
    if not words:
        guarded.add(plain.strip())  # Signs alone: they must be the same.
    if ("from", "") not in bound:
        bound = {pair for pair in bound if pair[0] != "to"}  # "how to pay": no direction.
    bound.discard(("from", ""))
    parts = tuple(sentence for sentence in sentences if sentence)
    return Wording(
        words,
        frozenset(guarded),
        frozenset(names),
        frozenset(bound),
        parts if len(parts) > 1 else (),
        tuple(token for token in telling if token not in _COURTESIES) or tuple(everything),
    )


def _read_sentence(
    lowered: list[str], guarded: set[str], bound: set[tuple[str, str]], n_negations: int
) -> tuple[str, ...]:
    """The words of a sentence that count; what is guarded and bound goes to the two sets.

    Args:
        n_negations: of the sentences before.
    """
    words = []
    turn = ""
    for token in lowered:
        if token in _NOT:
            # Twice "not" is not once "not".
            guarded.add(f"{_NEGATION}{n_negations}")
            n_negations += 1
        elif token in _SMALL:
            turn = token if token in _TURNS else turn
            if token == "from":
                bound.add(("from", ""))
        else:
            word = _stem(token)
            if token in _COUNTING or not token.isalpha():
                guarded.add(token)
                word = token
            words.append(word)
            if turn:
                bound.add((turn, word))
            turn = word if _is_superlative(word) else ""
    return tuple(words)


def _is_superlative(word: str) -> bool:
    return word in _DEGREES or (len(word) > 5 and word.endswith("est") and word not in _NO_DEGREES)


def _quoted(plain: str) -> set[str]:
    """Values in quotes, whole: "red" and "blue" are two values though each is a plain word."""
    if not any(mark in plain for mark in "\"'`\u201c«"):
        return set()
    found = (folded("".join(match.groups(""))) for match in _QUOTED.finditer(plain))
    return {f'"{value}"' for value in found if value}


def _says_case(plain: str) -> bool:
    """Whether capitals stand for names: not in titles and shouted texts."""
    tokens = _TOKEN.findall(plain)
    n_capital = sum(token[0].isupper() for token in tokens)
    return 0 < n_capital <= max(2, len(tokens) // 2) and not plain.isupper()


def _stem(word: str) -> str:
    """The singular of a regular plural, near enough that both give the same."""
    if len(word) > 3 and word[-1] == "s" and word[-2] not in "sui":
        if word.endswith("ies") and len(word) > 4:
            return word[:-3] + "y"
        return word[:-2] if word.endswith(("ches", "shes", "xes", "sses")) else word[:-1]
    return word


def is_unspaced(word: str) -> bool:
    """Whether a word is a character of a script that puts no spaces between words: a part of one only."""
    return len(word) == 1 and _IS_UNSPACED.match(word) is not None


def is_code(text: str) -> bool:
    """Whether symbols carry meaning in a text, as in SQL, JSON, identifiers and program text."""
    if _CODE_SIGN.search(text):
        return True
    if any(map(text.__contains__, ";([:-")) and _CODE.search(text):
        return True
    return "select" in text.lower() and _QUERY.search(text) is not None


def symbols_of(text: str) -> list[str]:
    """Words and single symbols of code, without case and white space."""
    return _SYMBOL.findall(folded(text))


@lru_cache(maxsize=65_536)
def same_word(one: str, other: str) -> bool:
    """Whether one word is the other with a typing error.

    One slip (a letter more, less, other, or two swapped) in words of five letters or more, two from ten letters on.
    Shorter words differ: Iran is not Iraq. Numbers and identifiers never have typing errors.
    """
    if one == other:
        return True
    shorter, longer = sorted((one, other), key=len)
    if len(longer) < 5 or not (one.isalpha() and other.isalpha()):
        return False
    allowed = 2 if len(shorter) >= 10 else 1
    if len(longer) - len(shorter) > allowed:
        return False
    one, other = _without_shared_ends(shorter, longer)
    if allowed == 1:
        return len(other) <= 1 or (len(one) == 2 and one == other[::-1])
    return _distance(one, other) <= allowed


def _without_shared_ends(one: str, other: str) -> tuple[str, str]:
    """What is left of two words without the letters that both begin and end with."""
    start, most = 0, min(len(one), len(other))
    while start < most and one[start] == other[start]:
        start += 1
    end = 0
    while end < most - start and one[-1 - end] == other[-1 - end]:
        end += 1
    return one[start : len(one) - end], other[start : len(other) - end]


def _distance(one: str, other: str) -> int:
    """Slips from one word to the other (optimal string alignment; Damerau 1964)."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for at, letter in enumerate(one):
        made = [at + 1]
        for to, wanted in enumerate(other):
            cost = min(row[to] + (letter != wanted), row[to + 1] + 1, made[to] + 1)
            if before and to and letter == other[to - 1] and one[at - 1] == wanted:
                cost = min(cost, before[to - 1] + 1)
            made.append(cost)
        before, row = row, made
    return row[-1]
