"""Languages are told apart by letters and frequent words."""

import pytest

from llama_edge.suites.languages import LANGUAGES, is_in
from llama_edge.suites.suite import load_suite

#: Article 1 of the Universal Declaration of Human Rights, as the United Nations publish it.
ARTICLE_1 = {
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
    "en": "All human beings are born free and equal in dignity and rights.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits.",
    "hi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "it": "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti.",
    "pt": "Todos os seres humanos nascem livres e iguais em dignidade e em direitos.",
    "th": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_sentence_is_in_its_language_alone(language: str) -> None:
    assert [other for other in LANGUAGES if is_in(ARTICLE_1[language], other)] == [language]


def test_every_prompt_of_the_built_in_suite_is_in_its_language() -> None:
    for prompt in load_suite("on-device").prompts:
        text = prompt.messages[-1].content
        found = [language for language in LANGUAGES if is_in(text, language)]
        assert prompt.language in found, prompt.id
        assert found == [prompt.language] or len(text) < 60, prompt.id


@pytest.mark.parametrize("text", ["", "42!", "Xyz", "Привет, как дела?", "\ufffd"])
def test_of_other_texts_nothing_is_known(text: str) -> None:
    assert not any(is_in(text, language) for language in LANGUAGES)
