"""Names of tables and columns as English words, and the little grammar that questions need.

What a rule cannot know is said, not guessed: `is_cryptic` names what wants words from the user.
"""

from __future__ import annotations

import re

__all__ = [
    "article",
    "is_cryptic",
    "is_plural",
    "list_of",
    "noun_phrase",
    "plural",
    "singular",
    "spoken",
    "words_of",
]


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


MAX_NAME_CHARS = 60
_PARTS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")
_KNOWN = {
    "addr": "address", "amt": "amount", "avg": "average", "cat": "category", "cust": "customer",
    "dept": "department", "desc": "description", "dob": "date of birth", "emp": "employee",
    "fname": "first name", "lname": "last name", "max": "maximum", "min": "minimum",
    "no": "number", "num": "number", "nr": "number", "org": "organisation", "pct": "percentage",
    "prod": "product", "qty": "quantity", "tel": "telephone number", "yr": "year",
    "born": "year of birth", "founded": "founding year", "built": "construction year",
    }  # fmt: skip
"""Abbreviations and verbs of which one noun is nearly always meant."""
_DATES = {
    "closed": "closing date", "created": "creation date", "deleted": "deletion date", "delivered": "delivery date",
    "ended": "end date", "hired": "hiring date", "joined": "joining date", "opened": "opening date",
    "ordered": "order date", "paid": "payment date", "posted": "posting date", "published": "publication date",
    "registered": "registration date", "released": "release date", "returned": "return date",
    "shipped": "shipping date", "started": "start date", "updated": "date of the last update",
}  # fmt: skip
"""Verbs of columns such as `ordered_at`."""
_SHORT = _set(
    "act air ant app arm art bag ban bat bee bin bit bug can cap cow cup cut dam den doc dot egg fan fix fox fun gem "
    "gun gym hat hen hit hot hub hut jam jar jet kid kit leg lid lip log low man mud new nut oak old one owl pan pen "
    "pie pig pit pot rat raw ray red rib rug run saw ski son spa sub tap tie tin ton tub two use vet zoo big dry "
    "age bar bay bed bid box bus car cat cpu day dog ear end eye fat fee gap gas gdp gpa ice id ink ip isbn iso "
    "job key lab law leg lot map mix net oil pay pet pin pub ram rod row rum sea set sex sku sky sum tag tax "
    "tea tip toe top toy url usd van vat war way web win year zip zone by of in on to at for and per"
)
_IRREGULAR = {
    "child": "children", "foot": "feet", "goose": "geese", "man": "men", "mouse": "mice",
    "person": "people", "tooth": "teeth", "woman": "women", "datum": "data", "index": "indexes",
    "leaf": "leaves", "shelf": "shelves", "knife": "knives", "wife": "wives", "half": "halves",
    "wolf": "wolves", "thief": "thieves", "loaf": "loaves", "life": "lives", "staff": "staff members",
    "series": "series", "species": "species", "aircraft": "aircraft", "sheep": "sheep",
    "hero": "heroes", "potato": "potatoes", "tomato": "tomatoes", "quiz": "quizzes",
}  # fmt: skip
_SINGULARS = {many: one for one, many in _IRREGULAR.items()} | {
    "movies": "movie", "cookies": "cookie", "ties": "tie", "pies": "pie", "caches": "cache",
    "staff": "staff member", "statuses": "status", "addresses": "address", "buses": "bus",
    "horses": "horse", "houses": "house", "courses": "course", "causes": "cause", "uses": "use",
    "nurses": "nurse", "purchases": "purchase", "warehouses": "warehouse", "diseases": "disease",
    "databases": "database", "cases": "case", "phases": "phase", "bases": "base", "shoes": "shoe",
    "responses": "response", "expenses": "expense", "licenses": "license", "leases": "lease",
    "releases": "release", "analyses": "analysis", "axes": "axis", "sizes": "size", "prizes": "prize",
    "heroes": "hero", "potatoes": "potato", "tomatoes": "tomato", "boxes": "box", "taxes": "tax",
}  # fmt: skip
_UNCOUNTED = _set(
    "info information data equipment news inventory stock weather traffic history metadata log music money"
)
_NOT_PLURAL = _set("gas bias canvas atlas lens bus plus minus series news gps")
_VERBS = _set(
    "at on lost won sold sent paid held made kept left met run taken given shown seen done"
)
_NOUNS_IN_ED = _set("speed breed seed feed bed need weed steed shed sled reed deed")
_AMOUNTS = {
    "sales": "sales figure",
    "earnings": "amount of earnings",
    "savings": "amount of savings",
}
_AN_BEFORE = re.compile(
    r"(?:[aeio]|u(?!ni|s[ae]|ti|r[aio]|k|ro)|hour|honou?r|heir|8|11\b|18\b)", re.I
)


def words_of(name: str) -> str:
    """A name's words, in lower case: `customerId`, `CUSTOMER_ID` and `customer-id` alike."""
    words = [word.lower() for word in _PARTS.findall(name)]
    if len(words) == 2 and words[1] in ("at", "on") and words[0] in _DATES:
        return _DATES[words[0]]
    return " ".join(_KNOWN.get(word, word) for word in words)


def is_cryptic(words: str) -> bool:
    """Whether words want to be spelled out by the user: no vowel, digits, letters too few, or a verb."""
    parts = words.split()
    if not parts or len(words) > MAX_NAME_CHARS:
        return True
    for part in parts:
        if part in _SHORT or part in _NOUNS_IN_ED:
            continue
        if len(part) <= 3 or any(c.isdigit() for c in part) or not re.search(r"[aeiouy]", part):
            return True
    last = parts[-1]
    return last in _VERBS or (last.endswith("ed") and last not in _NOUNS_IN_ED)


def singular(words: str) -> str:
    """The words with their last one in the singular; what is no plural stays."""
    head, _, last = words.rpartition(" ")
    if last in _UNCOUNTED:
        return f"{words} record"
    if last in _SINGULARS:
        one = _SINGULARS[last]
    elif last.endswith("ies") and len(last) > 4:
        one = f"{last[:-3]}y"
    elif re.search(r"(?:ss|sh|ch|x|zz)es$", last):
        one = last[:-2]
    elif is_plural(last):
        one = last[:-1]
    else:
        one = last
    return f"{head} {one}".strip()


def plural(words: str) -> str:
    """The words with their last one in the plural."""
    head, _, last = words.rpartition(" ")
    if " of " in f" {words} " and not head.startswith("of"):
        first, _, rest = words.partition(" of ")
        return f"{plural(first)} of {rest}"
    if last in _IRREGULAR:
        many = _IRREGULAR[last]
    elif last in _UNCOUNTED:
        many = f"{last} records"
    elif re.search(r"[^aeiou]y$", last):
        many = f"{last[:-1]}ies"
    elif re.search(r"(?:s|sh|ch|x|z)$", last):
        many = f"{last}es"
    else:
        many = f"{last}s"
    return f"{head} {many}".strip()


def is_plural(words: str) -> bool:
    """Whether the last word looks like a plural."""
    last = words.rpartition(" ")[2]
    if last in _SINGULARS:
        return True
    return last.endswith("s") and not re.search(r"(?:ss|us|is)$", last) and last not in _NOT_PLURAL


def noun_phrase(words: str) -> str:
    """A number's name as something that can be high: "docks" -> "number of docks"."""
    last = words.rpartition(" ")[2]
    if last in _AMOUNTS:
        return words.removesuffix(last) + _AMOUNTS[last]
    if is_plural(words) and not words.startswith(("number of", "amount of")):
        return f"number of {words}"
    return words


def article(words: str) -> str:
    """With "a" or "an" in front."""
    return f"{'an' if _AN_BEFORE.match(words) else 'a'} {words}"


def spoken(value: int | float | str) -> str:
    """A value as it stands in a question; quoted where its end could be mistaken."""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, int):
        return str(value)
    plain = re.fullmatch(r"\w(?:[\w '&./-]*\w)?", value)
    return value if plain and not value.isdigit() else f'"{value}"'


def list_of(items: list[str], last: str = "and") -> str:
    """ "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}"
