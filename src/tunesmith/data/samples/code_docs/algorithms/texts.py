"""Well-known algorithms on texts, written for the code documentation set; its builder runs every example."""

from __future__ import annotations

from collections import Counter


def edit_distance(first: str, second: str) -> int:
    """Return the Levenshtein distance: how many insertions, deletions and changes turn one text into the other.

    >>> edit_distance("kitten", "sitting")
    3
    """
    previous = list(range(len(second) + 1))
    for i, left in enumerate(first, 1):
        current = [i]
        for j, right in enumerate(second, 1):
            change = previous[j - 1] + (left != right)
            current.append(min(previous[j] + 1, current[j - 1] + 1, change))
        previous = current
    return previous[-1]


def longest_common_subsequence(first: str, second: str) -> str:
    """Return a longest text whose characters occur in both texts in the same order.

    >>> longest_common_subsequence("stone", "longest")
    'one'
    """
    best = [[""] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, left in enumerate(first, 1):
        for j, right in enumerate(second, 1):
            if left == right:
                best[i][j] = best[i - 1][j - 1] + left
            else:
                best[i][j] = max(best[i - 1][j], best[i][j - 1], key=len)
    return best[-1][-1]


def is_palindrome(text: str) -> bool:
    """Tell whether a text reads the same backwards, letters and digits only, case ignored.

    >>> is_palindrome("Never odd or even")
    True
    """
    kept = [character.lower() for character in text if character.isalnum()]
    return kept == kept[::-1]


def are_anagrams(first: str, second: str) -> bool:
    """Tell whether two texts have the same letters equally often, case and spaces ignored.

    >>> are_anagrams("Dormitory", "dirty room")
    True
    """

    def letters(text: str) -> Counter[str]:
        return Counter(text.replace(" ", "").lower())

    return letters(first) == letters(second)


def caesar(text: str, shift: int) -> str:
    """Move each letter of a text `shift` places along the alphabet; everything else stays.

    >>> caesar("Abc, xyz", 2)
    'Cde, zab'
    """
    result = []
    for character in text:
        if character.isascii() and character.isalpha():
            first = ord("a") if character.islower() else ord("A")
            result.append(chr(first + (ord(character) - first + shift) % 26))
        else:
            result.append(character)
    return "".join(result)


def run_length(text: str) -> list[tuple[str, int]]:
    """Return each run of equal characters with its length.

    >>> run_length("aaabcc")
    [('a', 3), ('b', 1), ('c', 2)]
    """
    runs: list[tuple[str, int]] = []
    for character in text:
        if runs and runs[-1][0] == character:
            runs[-1] = (character, runs[-1][1] + 1)
        else:
            runs.append((character, 1))
    return runs


def brackets_match(text: str) -> bool:
    """Tell whether every bracket of a text is closed by its own kind in the right order.

    >>> brackets_match("f(a[1]) {x}"), brackets_match("(]")
    (True, False)
    """
    closes = {")": "(", "]": "[", "}": "{"}
    opened: list[str] = []
    for character in text:
        if character in closes.values():
            opened.append(character)
        elif character in closes and (not opened or opened.pop() != closes[character]):
            return False
    return not opened


def word_counts(text: str) -> dict[str, int]:
    """Count the words of a text, case ignored, in the order of their first use.

    >>> word_counts("The cat and the dog")
    {'the': 2, 'cat': 1, 'and': 1, 'dog': 1}
    """
    counts: dict[str, int] = {}
    for word in text.lower().split():
        counts[word] = counts.get(word, 0) + 1
    return counts


def hamming_distance(first: str, second: str) -> int:
    """Count the places at which two texts of equal length differ.

    Raises:
        ValueError: the lengths differ.

    >>> hamming_distance("karolin", "kathrin")
    3
    """
    if len(first) != len(second):
        raise ValueError("the texts have different lengths")
    return sum(left != right for left, right in zip(first, second, strict=True))


def title_case(text: str) -> str:
    """Write each word with a capital first letter, but small words only at the start.

    >>> title_case("the lord of the rings")
    'The Lord of the Rings'
    """
    small = {"a", "an", "and", "of", "on", "the", "to"}
    words = []
    for place, word in enumerate(text.lower().split()):
        words.append(word if place and word in small else word.capitalize())
    return " ".join(words)


def snake_case(name: str) -> str:
    """Turn a name in camel case into snake case.

    >>> snake_case("maxTokenCount")
    'max_token_count'
    """
    parts = []
    for place, character in enumerate(name):
        if character.isupper() and place:
            parts.append("_")
        parts.append(character.lower())
    return "".join(parts)


def parse_query(query: str) -> dict[str, str]:
    """Read the pairs of a query such as "a=1&b=2"; a name without a value gets an empty text.

    >>> parse_query("page=2&sort=name&all")
    {'page': '2', 'sort': 'name', 'all': ''}
    """
    values = {}
    for part in query.split("&"):
        name, _, value = part.partition("=")
        if name:
            values[name] = value
    return values
