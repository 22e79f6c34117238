"""Names of persons, where the words around them say so.

There is no model behind this. A name is found after a phrase that introduces a person ("my name
is", a form of address, a salutation, "signed by"), in a field of that meaning, below a closing
line of a letter, and after weaker phrases ("I am", "this is", "hi") where the first word is one of
a list of common given names. A name in running text without such a phrase is not found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tunesmith.data.clean.spans import Span

__all__ = ["GIVEN", "LOWER_CUES", "find_full_names", "find_lower_names", "find_names"]

_GIVEN_WORDS = """
    aaron abdul abdullah adam adrian agnes ahmed aisha alan albert alejandro aleksandra alessandro alex alexander
    alexandra alfred ali alice alicia alina amanda amelia amina amir amy ana anastasia andre andrea andreas andres
    andrew angela angelina anita anja ann anna anne annette antoine anton antonio arjun arthur astrid ayesha barbara
    beatrice beatriz ben benjamin bernard bernd bianca bjorn bob brenda brian bruno camille carla carlos carmen
    carol caroline catherine cecilia charles charlotte chen chloe chris christian christina christine christoph
    christopher clara claire claudia colin cristina daniel daniela dave david deborah deepak denise dennis derek
    diana diego dieter dimitri dmitri dolores dominik dominique donald dorothy douglas edward eduardo elena eleanor
    elias elisabeth elizabeth ella ellen emily emma eric erik erika ernst esther eva evelyn fatima felix fernando
    finn florian frances francesca francesco francois frank franz fred frederik frida gabriel gabriela gary george
    gerald gerard gerhard giorgio giovanni giulia gloria greg gregory greta guillaume gunther gustav hannah hans
    harold harry hassan heather heidi heinrich helen helena helga henri henrik henry hiroshi hugo ian ibrahim igor
    ines ingrid irene irina isabel isabella isabelle ivan jack jacob jacqueline jacques jakob james jamie jan jane
    janet janine jasmine jason javier jean jeff jeffrey jennifer jens jeremy jerry jessica jim joan joao joe johan
    johanna johannes john jonas jonathan jorge jose josef joseph joshua joyce juan judith julia julian julie jurgen
    justin kai kamala karen karin karl katarina kate katharina katherine kathleen katrin keiko keith kelly ken
    kenneth kenji kevin klaus kristina krzysztof kumar lars laura lauren lea leila lena leo leon leonardo li liam
    lidia lina linda lisa lorenzo louis louise luca lucas lucia lucy luis luisa lukas magdalena malcolm manuel marc
    marcel marco marcus margaret maria marie marina mario mark markus marta martha martin mary mateo matthew
    matthias max maya megan mehmet mei melissa michael michel michelle miguel mike mila min mohamed mohammed monica
    monika muhammad nadia nancy natalia natalie nathan nicholas nicolas nicole niklas nikolai nina noah nora oleg
    oliver olivia olga omar oscar otto pablo pamela paolo patricia patrick paul paula pedro peter petra philip
    philippe pierre piotr priya rachel rafael rahul raj rajesh ralf ralph ramon raquel rebecca renate renee ricardo
    richard rita robert roberto robin roger roland roman ronald rosa rose roy ruth ryan sabine sabrina sam samantha
    samir samuel sandra sanjay sara sarah scott sean sebastian sergei sergio sharon silvia simon simone sofia sonia
    sophia sophie stefan stefanie stella stephan stephanie stephen steve steven sunita susan susanne suzanne sven
    svetlana sylvia tamara tanja tanya tatiana teresa theo theresa thomas tim timothy tina tobias tom tomas tony
    tracy ursula valentina valeria vanessa vera veronica victor victoria viktor vincent vladimir walter wei
    wendy werner wilhelm william wolfgang xavier yasmin yosef yuki yuri yusuf yves zoe
    """
GIVEN = frozenset(_GIVEN_WORDS.split())
"""Common given names of several languages, without accents; they decide only after weak phrases."""

_U = r"[A-ZÀ-ÖØ-ÞĀ-ŽА-ЯЁ]"
_PART = rf"{_U}\w{{0,24}}(?:['’-]\w{{1,24}}){{0,2}}"
_BETWEEN = r"(?:de la|de los|del|de|da|do|dos|di|du|des|la|le|van der|van den|van|von der|von|zu|al|bin|bint|ibn|el|of)"
_NAME = rf"{_PART}\.?(?:(?: {_BETWEEN})?[ -](?:{_PART}|{_U}\.)){{0,3}}"
_STRONG = re.compile(
    r"(?<!\w)(?=(?:[Mm]y (?:full |first |last |legal |maiden )?(?:sur)?name(?:'s| is|:)|[Nn]ame is|[Nn]amed"
    r"|(?:I'm|I am) called|[Cc]all me|"
    r"[Mm]ein Name ist|[Ii]ch hei(?:ß|ss)e|[Jj]e m['’]appelle|[Mm]on nom est|[Mm]e llamo|[Mm]i nombre es"
    r"|[Mm]i chiamo|"
    r"[Ii]l mio nome è|[Mm]e chamo|[Mm]eu nome é|[Ii]k heet|[Mm]ijn naam is|[Nn]azywam się|[Mm]am na imię"
    r"|[Jj]ag heter|"
    r"[Mm]itt namn är|[Jj]eg hedder|[Jj]eg heter|[Bb]enim adım|[Мм]еня зовут|"
    r"[Ss]igned(?: by|:)|[Ss]igned,|[Pp]atient:|[Cc]ustomer:|[Cc]ontact:|[Ee]mployee:|[Cc]lient:|[Aa]ttn:?"
    r"|[Cc]ardholder:?|"
    r"[Aa]ccount holder(?: is|:)?|(?:[Ff]ull|[Ff]irst|[Ll]ast|[Gg]iven|[Ff]amily|[Cc]ustomer|[Uu]ser|[Pp]atient"
    r"|[Cc]lient|"
    r"[Ee]mployee|[Cc]ontact)[ _-]?[Nn]ame[\"']?(?: is|:|=)|[Ss]urname[\"']?(?: is|:|=)|\b(?:Vor|Nach)name:"
    r"|[Nn]ombre:|[Nn]om:|"
    r"[Mm]r\.?|MR\.?|[Mm]rs\.?|[Mm]s\.|Ms|[Mm]iss|Mx\.?|Prof\.|Dr\.?|Herrn?|Frau|Monsieur|Madame|Mme\.?|M\."
    r"|Señora?|Sra?\.|Doña|Don|"
    r"Signora?|Sig\.(?:ra)?|Senhora?|Dhr\.|Mevr\.|Pan[ia]?|Dear|Hello,? (?:Mr|Mrs|Ms)\.?|Lieber?|Liebe|Cher"
    r"|Chère|Estimad[oa]|Querid[oa]|"
    r"Caro|Cara|Gentile|Prezad[oa]|Beste)[ ]{1,2}[\"']?"
    rf"(?P<name>{_NAME}))"
)
_WEAK = re.compile(
    r"(?<!\w)(?=(?:I am|I'm|I’m|[Tt]his is|[Ii]t's|[Hh]i|[Hh]ello|[Hh]ey|[Hh]allo|[Bb]onjour|[Hh]ola|[Cc]iao"
    r"|[Oo]lá|[Ii]ch bin|"
    r"[Jj]e suis|[Ss]oy|[Ss]ono|[Ss]ou|[Nn]ame[\"']?:|name[\"']? ?=|[Aa]uthor:|[Ff]rom:|[Tt]o:|[Cc]c:|[Bb]y"
    r"|[Aa]sk for|[Ss]peak (?:to|with)|"
    r"[Cc]ontact|[Mm]y (?:wife|husband|son|daughter|brother|sister|boss|friend|colleague|manager|mother|father"
    r"|partner)),? "
    rf"[\"']?(?P<name>{_NAME}))"
)
_CLOSING = re.compile(
    r"(?=(?:[Bb]est,|[Ll]ove,|(?:[Bb]est|[Kk]ind|[Ww]arm|[Mm]any)? ?(?:[Rr]egards|[Ww]ishes|[Tt]hanks)"
    r"|[Ss]incerely(?: yours)?"
    r"|[Yy]ours (?:sincerely|faithfully|truly)|"
    r"[Cc]heers|[Tt]hank you|[Cc]ordially|(?:Mit )?(?:freundlichen|besten|herzlichen|lieben) Grü(?:ß|ss)en?"
    r"|Viele Grüße|"
    r"[Cc]ordialement|[Bb]ien à vous|(?:[Uu]n )?[Ss]aludos?(?: cordiales)?|[Aa]tentamente|[Cc]ordiali saluti"
    r"|[Dd]istinti saluti|"
    r"[Aa]tenciosamente|[Mm]et vriendelijke groet(?:en)?|[Pp]ozdrawiam),?[ \t]*\r?\n[ \t]*(?:-{1,2} ?)?"
    rf"(?P<name>{_NAME})[ \t]*(?=\r?\n|$))"
)
_STRONG_ENDS_WORDS = """
    is s name named called me heiße heisse appelle est llamo es chiamo è chamo é heet imię heter är hedder adım
    зовут by signed patient customer contact employee client attn cardholder holder surname vorname nachname
    nombre nom mr mrs ms miss mx prof dr herr herrn frau monsieur madame mme m señor señora sr sra doña don signor
    signora sig ra senhor senhora dhr mevr pan pani dear lieber liebe cher chère estimado estimada querido querida
    caro cara gentile prezado prezada beste
    """
_STRONG_ENDS = frozenset(_STRONG_ENDS_WORDS.split())
_WEAK_ENDS_WORDS = """
    am m is s hi hello hey hallo bonjour hola ciao olá bin suis soy sono sou name author from to cc by for with
    contact wife husband son daughter brother sister boss friend colleague manager mother father partner
    """
_WEAK_ENDS = frozenset(_WEAK_ENDS_WORDS.split())
_CLOSING_ENDS_WORDS = """
    regards wishes thanks best love sincerely yours faithfully truly cheers you cordially grüßen grüssen grüße
    cordialement
    vous saludo saludos cordiales atentamente saluti atenciosamente groet groeten pozdrawiam
    """
_CLOSING_ENDS = frozenset(_CLOSING_ENDS_WORDS.split())
"""The last words of the phrases above: one of them stands before every name that is found."""
_CAPITAL = re.compile(rf"{_U}(?<=[ \"'\n].)(?!['’](?:m|ve|d|ll)\b)(?=[a-zß-ÿā-žа-я'’.])")
_ABBREVIATIONS = frozenset(
    {"mr", "mrs", "ms", "mx", "prof", "dr", "mme", "m", "sr", "sra", "sig", "ra", "dhr", "mevr"}
)
_MARKS = " .,:;!?\"'()[]{}<>=-_*\t\r\n"
_NO_NAME_WORDS = """
    a all american an anna's app are as at be bot but can card chatgpt check company congratulations customer
    data dear dr english everyone for from friend friends german get god good guys hello here hi how i if in
    information is it just lord madam majesty manager miss mr mrs ms my no not of ok on or our password please
    regards best cheers love sincerely wishes none null nil true false undefined
    prof professor recruiter santa sir siri so sql support team thank thanks that the there this to trust
    unable user users we what when where which who why world would yes you your quixote damen herren
    """
_NO_NAME = frozenset(_NO_NAME_WORDS.split())
_ACCENTS = str.maketrans("áàâäãåéèêëíìîïóòôöõøúùûüçñýłśžšč", "aaaaaaeeeeiiiioooooouuuucnylszsc")


def find_names(text: str) -> Iterator[Span]:
    """Names of persons that a phrase introduces; the phrase itself is not part of the span."""
    for match in _CAPITAL.finditer(text):
        start = match.start()
        if _opens_sentence(text, start):
            continue
        before = text[max(0, start - 24) : start].replace("_", " ")
        said = before.rstrip(_MARKS)
        words = said.rsplit(None, 1)
        if words:
            word = words[-1].replace("’", "'").rpartition("'")[2].lstrip(_MARKS).lower()
            for pattern in _phrases(text, start, word, before[len(said) :]):
                yield from _introduced(text, start, pattern)


_LOWER = re.compile(
    r"\b(?:my name(?:'s| is)|mein name ist|je m'appelle|me llamo|mi chiamo|mrs?\.?) "
    r"(?P<name>(?P<first>[a-zà-ÿ]{2,20})(?: [a-zà-ÿ]{2,20})?)\b"
)
LOWER_CUES = ("name", "m'app", "llamo", "chiamo", "mr")
"""One of these stands in every text with a name that `find_lower_names` finds."""
_AFTER_WORDS = """and from with here but my can calling speaking und et y e"""
_AFTER_NAMES = frozenset(_AFTER_WORDS.split())
_FULL = re.compile(rf"(?<!\w)(?P<name>{_PART}(?:(?: {_BETWEEN})?[ -](?:{_PART}|{_U}\.)){{1,3}})")
_FIRST_WORD = re.compile(r"\w+[^\w]*")


def find_full_names(text: str) -> Iterator[Span]:
    """A common given name with a family name after it, without a phrase.

    Meant for texts in which other personal data was found: elsewhere it would take the names of
    places and of persons in the news.
    """
    at = 0
    while match := _FULL.search(text, at):
        at = match.end()
        if _is_given(match["name"]):
            for span in _named(text, *match.span("name")):
                if " " in span.text:
                    yield span
        elif word := _FIRST_WORD.match(text, match.start()):
            # "Customer Anna Berg": the name may begin with the next word.
            at = word.end()


def _opens_sentence(text: str, start: int) -> bool:
    """Whether a sentence ends right before; quick, since most capitals open one."""
    mark = text[start - 2 : start - 1]
    if mark == ".":
        return text[max(0, start - 7) : start - 2].rpartition(" ")[2].lower() not in _ABBREVIATIONS
    return mark in ("!", "?")


def find_lower_names(text: str) -> Iterator[Span]:
    """Names that a phrase introduces and that are written without capitals, as in chats."""
    for match in _LOWER.finditer(text):
        if _is_given(match["first"]):
            start, end = match.span("name")
            words = match["name"].split(" ")
            if words[-1] in _AFTER_NAMES:
                end = start + len(words[0])
            yield Span.of(text, start, end, "name")


def _phrases(text: str, start: int, word: str, marks: str) -> Iterator[re.Pattern[str]]:
    """The phrases that can end with this word and the marks after it; a full stop ends a sentence."""
    if any(mark in marks for mark in ".!?") and word not in _ABBREVIATIONS:
        return
    if word in _STRONG_ENDS:
        yield _STRONG
    if word in _CLOSING_ENDS and "\n" in marks:
        yield _CLOSING
    if word in _WEAK_ENDS and _is_given(text[start : start + 24]):
        yield _WEAK


def _introduced(text: str, start: int, phrase: re.Pattern[str]) -> Iterator[Span]:
    """The name that starts there, when the whole phrase stands before it."""
    for match in phrase.finditer(text, max(0, start - 48), start + 120):
        if match.start("name") == start:
            yield from _named(text, *match.span("name"))
            return


def _is_given(name: str) -> bool:
    first = re.split(r"[^\w]", name, maxsplit=1)[0].lower().translate(_ACCENTS)
    return first in GIVEN


def _named(text: str, start: int, end: int) -> Iterator[Span]:
    """The span up to the first word that no name has."""
    words = list(re.finditer(r"[^ ]+", text[start:end]))
    kept = end
    for place, word in enumerate(words):
        plain = word[0].strip(".,'’").lower()
        is_shouted = len(plain) > 3 and word[0].isupper() and place == 0 and len(words) == 1
        if plain in _NO_NAME or is_shouted:
            kept = start + (words[place - 1].end() if place else 0)
            break
    found = text[start:kept]
    if (len(found.rstrip(".")) >= 2 and any(map(str.islower, found))) or " " in found:
        trimmed = found if re.search(rf"{_U}\.$", found) else found.rstrip(".")
        yield Span.of(text, start, start + len(trimmed), "name")
