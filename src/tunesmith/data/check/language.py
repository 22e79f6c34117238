"""Which language a text is in.

English and the languages with a script of their own are told here. The rest is told by py3langid where
it is installed (the extra `data`), else by the small words of languages in Latin script. A short text
has no language rather than a guessed one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType

__all__ = ["CODES", "NAMES", "has_model", "told"]

_WORDS: Mapping[str, str] = {
    "en": "the of and to is that it for was with as are this be at from have or by not but what which "
    "you your we they their there when who how does can would should will my has been about into i do "
    "an please if could than then because",
    "de": "der die das und ist nicht ein eine einen dem den von zu mit sich auf für im es wie auch als "
    "aus werden wird sind oder wenn kann ich sie wir was bei nach über haben hat einer durch noch nur",
    "fr": "le la les des et est une un du dans que qui pour pas sur avec ce il elle nous vous je ne sont "
    "par plus au aux comment quelle quel cette mais ou être ont mon votre leur c'est qu'il",
    "es": "el los las una del que es en por para con se su como más pero está este esta son lo al sus "
    "cuando muy qué cómo cuál puede porque también hay fue ser yo mi tiene y",
    "pt": "o os uma do da dos das que é em para com não se por como mais mas está este esta são ao seu "
    "sua quando muito você qual pode porque também há foi ser eu meu tem no na um",
    "it": "il gli una del della che è di per con non si come più ma sono questo questa alla nel nella "
    "dei delle lo anche quando molto cosa quale può perché ci ha essere io mio tra",
    "nl": "de het een van en is dat niet op te zijn voor met die aan er maar ook als bij door wordt dan "
    "naar hoe wat kan ik je wij ze mijn heeft hebben uit nog geen deze over",
    "sv": "och att det är en som på för av inte med till har ett om vi kan från men jag du den hur vad "
    "är ska eller när var mycket också efter",
    "da": "og at det er en som på for af ikke med til har et om vi kan fra men jeg du den hvordan hvad "
    "skal eller når var meget også efter der de",
    "no": "og at det er en som på for av ikke med til har et om vi kan fra men jeg du den hvordan hva "
    "skal eller når var mye også etter",
    "fi": "ja on ei että se oli mutta hän kun niin kuin mitä tämä ovat myös joka jos olen voi miten "
    "minun sinun hyvin tai vain sen",
    "pl": "i w nie na jest się że do to z jak o co po jego ale od za przez są być czy dla tak już tylko "
    "może który które jestem mój",
    "cs": "a je se na že to v ne s jako pro ale jsou by jak co po která který není být mám také nebo "
    "když tak jen může od za",
    "ro": "și este nu în la de pe cu care o un sunt pentru mai din ce ca dar se cum când aceasta poate "
    "fi după sau lui am",
    "hu": "a az és hogy nem is egy van meg ez de mint csak ha már vagy volt lehet mi ki hogyan nagyon "
    "kell még ezt",
    "tr": "ve bir bu için ile de da ne çok daha olarak olan gibi ama var değil mı mi nasıl kadar sonra "
    "ben sen her en",
    "id": "yang dan di ini itu dengan untuk dari pada tidak adalah dalam akan ada saya anda apa atau "
    "bisa ke juga oleh kami bagaimana sudah karena",
    "vi": "và là của có không được một cho với các này trong người những như để khi tôi bạn gì thế làm "
    "đã sẽ hay",
}
"""Small words of each language; what several share counts for each of them."""

_OWN_SCRIPT = re.compile(
    "([\u3040-\u30ff])|([\uac00-\ud7af\u1100-\u11ff])|([\u3400-\u9fff])|([\u0370-\u03ff\u1f00-\u1fff])|"
    "([\u0590-\u05ff])|([\u0b80-\u0bff])|([\u0e00-\u0e7f])|([\u10a0-\u10ff])|([\u0530-\u058f])"
)
_OWNERS = ("ja", "ko", "zh", "el", "he", "ta", "th", "ka", "hy")
"""Languages that have a script for themselves, by the groups of `_OWN_SCRIPT`."""
_CYRILLIC = re.compile("[\u0400-\u04ff]")

_NAME_LIST = (
    "af Afrikaans,am Amharic,ar Arabic,as Assamese,az Azerbaijani,be Belarusian,bg Bulgarian,bn Bengali,br Breton,"
    "ca Catalan,cs Czech,cy Welsh,da Danish,de German,el Greek,en English,eo Esperanto,es Spanish,et Estonian,"
    "eu Basque,fa Persian,fi Finnish,fo Faroese,fr French,ga Irish,gl Galician,gu Gujarati,he Hebrew,hi Hindi,"
    "hr Croatian,ht Haitian,hu Hungarian,hy Armenian,id Indonesian,ig Igbo,is Icelandic,it Italian,ja Japanese,"
    "jv Javanese,ka Georgian,kk Kazakh,km Khmer,kn Kannada,ko Korean,ku Kurdish,ky Kyrgyz,la Latin,"
    "lb Luxembourgish,lo Lao,lt Lithuanian,lv Latvian,mg Malagasy,mk Macedonian,ml Malayalam,mn Mongolian,"
    "mr Marathi,ms Malay,mt Maltese,my Burmese,ne Nepali,nl Dutch,no Norwegian,oc Occitan,or Odia,pa Punjabi,"
    "pl Polish,ps Pashto,pt Portuguese,ro Romanian,ru Russian,rw Kinyarwanda,sd Sindhi,si Sinhala,sk Slovak,"
    "sl Slovenian,so Somali,sq Albanian,sr Serbian,sv Swedish,sw Swahili,ta Tamil,te Telugu,tg Tajik,th Thai,"
    "tk Turkmen,tl Tagalog,tr Turkish,tt Tatar,ug Uyghur,uk Ukrainian,ur Urdu,uz Uzbek,vi Vietnamese,xh Xhosa,"
    "yo Yoruba,zh Chinese,zu Zulu"
)
NAMES: Mapping[str, str] = MappingProxyType(
    {"": "undecided"} | dict(pair.split(" ", 1) for pair in _NAME_LIST.split(","))
)
"""Name of each language by its code of ISO 639-1; "" for none."""
CODES: tuple[str, ...] = tuple(NAMES)
"""All that `told` can say."""

_LANGUAGES_OF: dict[str, tuple[str, ...]] = {}
for _code, _words in _WORDS.items():
    for _word in set(_words.split()):
        _LANGUAGES_OF[_word] = (*_LANGUAGES_OF.get(_word, ()), _code)
_WIDE = re.compile("[\u0370-\u1fff\u3040-\ud7af]")
_EDGES = ".,;:!?\"'()[]{}«»“”„…¿¡*_`"
_READ_CHARACTERS = 600
_MIN_WORDS = 3
_MIN_SHARE = 0.12
_MIN_LEAD = 2
_MIN_CHARACTERS = 20
_MIN_CONFIDENCE = 0.7
_SAME = {"nb": "no", "nn": "no", "wuu": "zh", "yue": "zh", "bs": "hr"}
"""Codes of py3langid -> the code that such a language goes by here."""


def told(text: str) -> str:
    """The code of the language of a text's first 600 characters, or "" when that is not sure.

    Sure is: half of its letters are of a script with one language; or at least three small words, an
    eighth of all words, are English (without py3langid: of one language), and two more than of any
    other; or py3langid gives it at least 0.7.
    """
    head = text[:_READ_CHARACTERS]
    if not head.isascii():
        n_letters = sum(map(str.isalpha, head))
        if len(_WIDE.findall(head)) * 3 >= n_letters > 1 and (own := _by_script(head)):
            return own
    by_words = _by_words(head)
    if by_words == "en":
        return by_words
    model = _model()
    if model is None:
        return by_words
    if len(head.encode("utf-8", "replace")) < _MIN_CHARACTERS:
        return ""
    code, confidence = model(head.encode("utf-8", "replace").decode())
    code = _SAME.get(code, code)
    return code if confidence >= _MIN_CONFIDENCE and code in NAMES else ""


def has_model() -> bool:
    """Whether py3langid is installed."""
    return _model() is not None


@cache
def _model() -> Callable[[str], tuple[str, float]] | None:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ModuleNotFoundError:
        return None
    found: Callable[[str], tuple[str, float]] = LanguageIdentifier.from_model_file(
        MODEL_FILE, norm_probs=True
    ).classify
    return found


def _by_words(text: str) -> str:
    counts: dict[str, int] = {}
    words = text.lower().split()
    for word in words:
        for code in _LANGUAGES_OF.get(word) or _LANGUAGES_OF.get(word.strip(_EDGES)) or ():
            counts[code] = counts.get(code, 0) + 1
    if not counts:
        return ""
    best = max(counts, key=lambda code: (counts[code], code))
    n_best = counts.pop(best)
    n_other = max(counts.values(), default=0)
    is_sure = n_best >= max(_MIN_WORDS, _MIN_SHARE * len(words)) and n_best >= n_other + _MIN_LEAD
    return best if is_sure else ""


def _by_script(text: str) -> str:
    """The language that has the script of most letters for itself; "" for Cyrillic, Arabic and others."""
    counts = [0] * len(_OWNERS)
    for found in _OWN_SCRIPT.finditer(text):
        counts[(found.lastindex or 1) - 1] += 1
    n_letters = sum(map(str.isalpha, text))
    # Kana among Chinese characters need only be there.
    if counts[0] and counts[0] * 25 >= counts[2]:
        counts[0] += counts[2]
        counts[2] = 0
    most = max(range(len(counts)), key=counts.__getitem__)
    if counts[most] * 3 >= n_letters:
        return _OWNERS[most]
    # Without a model: Russian alone has these letters, Ukrainian those.
    if _model() is None and len(_CYRILLIC.findall(text)) * 2 > n_letters:
        return "uk" if re.search("[іїєґ]", text) else "ru" if re.search("[ыэ]", text) else ""
    return ""
