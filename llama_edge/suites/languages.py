"""Which language a text is in, as far as letters and frequent words tell.

Eight languages, those that Llama 3.2 supports. The other six are written in Latin letters: each has
words that nearly every sentence has and the others rarely do. No word list says more of a text of
three words than that it does not know.
"""

import re
import unicodedata
from collections.abc import Mapping
from typing import Final

LANGUAGES: Final = ("de", "en", "es", "fr", "hi", "it", "pt", "th")
#: Written without spaces between words, and without a mark at the end of a sentence.
WITHOUT_SPACES: Final = frozenset({"ja", "km", "lo", "my", "th", "zh"})

#: How the names of letters begin.
_SCRIPTS: Final[Mapping[str, str]] = {"hi": "DEVANAGARI", "th": "THAI"}
_WORD: Final = re.compile(r"[^\W\d_]+")
#: Of a text's letters: names and numbers of others may be in it.
_MOST: Final = 0.5
#: Of each language, separated by spaces; what an apostrophe parts counts as two words.
_FREQUENT: Final[Mapping[str, str]] = {
    "de": (
        "aber als am an auch auf aus bei das dass dem den der des die durch ein eine einem "
        "einen einer er es für haben hat ich ihr im in ist mich mir mit nach nicht nur oder "
        "sich sie sind so um und uns unter über vom von vor war was wenn werden wie wir wird "
        "zu zum zur"
    ),
    "en": (
        "a about an and are as at be been but by can for from has have he her his how i if in "
        "into is it its me my not of on or our please she so that the their there they this "
        "to was we were what when which who will with would you your"
    ),
    "es": (
        "a al como con cuando de del desde dónde el ella en entre es esta está este fue ha "
        "hasta hay la las le lo los más mi muy no nos o para pero por porque que qué se si "
        "sin sobre son su sus también te tu un una y ya"
    ),
    "fr": (
        "a au aux avec à c ce ces cette comme d dans de des du elle en est et être il ils j "
        "je l la le les leur leurs m mais n ne nous on ont ou où par pas plus pour qu que qui "
        "s sa sans se ses son sont sur t tout très un une votre vous y"
    ),
    "it": (
        "a agli ai al all alla alle anche c che chi come con cosa d da dal dalla degli dei "
        "del dell della delle di dopo e ed è gli ha hanno i il in l la le lo ma mi nel nell "
        "nella non o per perché più prima quando questa questo se si sono su sul sulla un una "
        "uno"
    ),
    "pt": (
        "a ao aos as até à com como da das de do dos e ela ele em entre era está é foi há "
        "isso já mais mas me muito na nas não no nos o os ou para pela pelo por porque quando "
        "que são se sem seu sua também tem um uma você"
    ),
}
_WORDS: Final = {name: frozenset(words.split()) for name, words in _FREQUENT.items()}


def is_in(text: str, language: str) -> bool:
    """Whether a text is in this one of `LANGUAGES`, rather than in another one of them."""
    script = _SCRIPTS.get(language)
    if script is not None:
        return _share(text, script) > _MOST
    found = _WORD.findall(unicodedata.normalize("NFC", text).casefold())
    hits = {name: sum(map(words.__contains__, found)) for name, words in _WORDS.items()}
    # `> 0`: of a text without any frequent word, nothing is known.
    return _share(text, "LATIN") > _MOST and hits[language] == max(hits.values()) > 0


def _share(text: str, script: str) -> float:
    """Of the text's letters and the marks on them, how many are of this script."""
    letters = [character for character in text if unicodedata.category(character)[0] in "LM"]
    own = sum(unicodedata.name(letter, "").startswith(script) for letter in letters)
    return own / len(letters) if letters else 0.0
