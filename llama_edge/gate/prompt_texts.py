"""Real text for the gate, written for it: eight languages, five kinds of work.

Random tokens would prove nothing: they never meet the massive activations, the attention sinks and
the long-range copying that real text causes.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptText:
    """One conversation turn. `request` is cut after as many sentences as are needed."""

    name: str
    #: BCP 47 code
    language: str
    system: str = ""
    request: tuple[str, ...]
    #: a good answer, for teacher forcing
    answer: str


GATE_TEXTS: Final[tuple[PromptText, ...]] = (
    PromptText(
        name="tool-call-en",
        language="en",
        system=(
            "You are a travel assistant. You can call one function: "
            '{"name": "find_trains", "parameters": {"from": "string", "to": "string", '
            '"date": "string", "passengers": "integer"}}. '
            "When a question needs it, answer with a JSON object and nothing else."
        ),
        request=(
            "My sister and I want to go from Basel to Hamburg on the second Friday of March.",
            "We would rather leave after breakfast and arrive before eight in the evening.",
            "Which trains are there, and do we have to change on the way?",
            "If there is a night train as well, please list it separately.",
            "We travel with two bicycles and a large dog.",
        ),
        answer=(
            '{"name": "find_trains", "parameters": {"from": "Basel SBB", "to": "Hamburg Hbf", '
            '"date": "2026-03-13", "passengers": 2}}\nI have asked for the trains of that Friday. '
            "As soon as the list is here I will leave out everything that starts before nine or "
            "arrives after eight, and I will mark the trains that take bicycles and dogs."
        ),
    ),
    PromptText(
        name="summary-de",
        language="de",
        request=(
            "Fasse den folgenden Text in zwei Sätzen zusammen.",
            "Die alte Wassermühle am Rand des Dorfes stand fast vierzig Jahre lang leer.",
            "Im vergangenen Sommer hat ein Verein das Gebäude gekauft und begonnen, das Rad, die "
            "Wehranlage und das Dach instand zu setzen.",
            "Weil das Holz an vielen Stellen morsch war, kostete die Arbeit deutlich mehr als "
            "geplant, doch Spenden aus der ganzen Gegend schlossen die Lücke.",
            "Ab dem nächsten Frühjahr soll die Mühle Strom für etwa zwölf Häuser liefern.",
            "An den Wochenenden wird eine kleine Ausstellung zeigen, wie hier früher Mehl gemahlen "
            "wurde.",
        ),
        answer=(
            "Ein Verein hat die seit vierzig Jahren leere Wassermühle gekauft und setzt sie trotz "
            "gestiegener Kosten mit Hilfe von Spenden instand. Ab dem nächsten Frühjahr soll sie "
            "zwölf Häuser mit Strom versorgen und an Wochenenden eine Ausstellung über das Mahlen "
            "von Mehl zeigen, zu der auch Schulklassen aus der Umgebung eingeladen sind."
        ),
    ),
    PromptText(
        name="retrieval-query-hi",
        language="hi",
        request=(
            "नीचे दिए गए प्रश्न के लिए खोज इंजन में डालने योग्य तीन छोटे खोज वाक्य लिखो।",
            "मेरी दादी के घर के पास एक पुराना कुआँ है जिसका पानी गर्मियों में सूख जाता है।",
            "क्या बरसात के पानी को छत से इकट्ठा करके उस कुएँ को फिर से भरा जा सकता है?",
            "इसमें कितना खर्च आएगा और क्या सरकार की कोई योजना इसमें सहायता करती है?",
            "गाँव में लगभग तीस परिवार रहते हैं और सबके घर की छत पक्की है।",
        ),
        answer=(
            "१. छत के वर्षा जल से कुआँ पुनर्भरण की विधि। २. ग्रामीण वर्षा जल संचयन की लागत प्रति परिवार। "
            "३. कुआँ पुनर्भरण के लिए सरकारी सहायता योजना। इन वाक्यों से पहले विधि, फिर लागत और अंत में "
            "सहायता के बारे में जानकारी मिलेगी।"
        ),
    ),
    PromptText(
        name="rewriting-th",
        language="th",
        request=(
            "ช่วยเขียนข้อความต่อไปนี้ใหม่ให้สุภาพและกระชับขึ้น",
            "เมื่อวานฉันสั่งกาแฟสองแก้วกับขนมปังหนึ่งชิ้น แต่ร้านส่งมาผิดหมดเลย",
            "กาแฟเย็นกลายเป็นกาแฟร้อน ส่วนขนมปังก็ไม่มีมาให้",
            "ฉันโทรไปที่ร้านสามครั้งแล้วไม่มีใครรับสาย",
            "อยากให้ร้านคืนเงินหรือส่งของมาใหม่ภายในวันนี้",
        ),
        answer=(
            "เรียนทางร้าน เมื่อวานนี้ดิฉันสั่งกาแฟเย็นสองแก้วและขนมปังหนึ่งชิ้น แต่ได้รับกาแฟร้อนและไม่ได้รับขนมปัง "
            "ดิฉันพยายามติดต่อทางโทรศัพท์แล้วสามครั้ง จึงขอความกรุณาคืนเงินหรือจัดส่งสินค้าใหม่ภายในวันนี้ ขอบคุณค่ะ"
        ),
    ),
)

MORE_TEXTS: Final[tuple[PromptText, ...]] = (
    PromptText(
        name="chat-fr",
        language="fr",
        request=(
            "Bonjour, je plante pour la première fois des tomates sur mon balcon au quatrième "
            "étage.",
            "Le balcon est orienté vers le sud-ouest et il y a souvent du vent en fin de journée.",
            "Les feuilles du bas jaunissent depuis une semaine alors que j'arrose chaque matin.",
            "Qu'est-ce que je fais de travers, et que dois-je changer en premier ?",
            "J'utilise des pots de dix litres et un terreau universel.",
        ),
        answer=(
            "Le plus souvent, des feuilles jaunes en bas de la plante viennent d'un excès d'eau. "
            "Attendez que la terre soit sèche sur deux centimètres avant d'arroser, vérifiez que "
            "les pots laissent bien couler l'eau, puis ajoutez un engrais pour tomates toutes les "
            "deux semaines. Protégez aussi les tiges du vent avec un tuteur solide."
        ),
    ),
    PromptText(
        name="summary-it",
        language="it",
        request=(
            "Riassumi in una frase il messaggio che segue.",
            "La riunione del condominio è stata spostata da martedì a giovedì sera perché "
            "l'amministratore deve andare in tribunale.",
            "Si parlerà soprattutto del tetto, che perde acqua da due inverni, e di chi debba "
            "pagare i lavori.",
            "Tre ditte hanno mandato un preventivo e la differenza tra il più basso e il più alto "
            "è di quasi ventimila euro.",
            "Chi non può venire è pregato di lasciare una delega scritta al portiere.",
        ),
        answer=(
            "La riunione del condominio è rinviata a giovedì sera e riguarderà la riparazione del "
            "tetto e la scelta tra tre preventivi molto diversi; chi non può partecipare deve "
            "lasciare una delega scritta al portiere. Conviene leggere prima i documenti, che sono "
            "a disposizione nell'atrio del palazzo."
        ),
    ),
    PromptText(
        name="rewriting-pt",
        language="pt",
        request=(
            "Reescreva o texto abaixo com palavras simples, para uma criança de oito anos.",
            "As marés resultam da atração gravitacional que a Lua e, em menor grau, o Sol exercem "
            "sobre as massas de água do planeta.",
            "Como a Terra gira, cada ponto da costa passa duas vezes por dia pela zona em que a "
            "água está mais elevada.",
            "Quando o Sol e a Lua estão alinhados, os seus efeitos somam-se e as marés são mais "
            "fortes.",
            "Em portos pouco profundos, os pescadores planeiam a saída dos barcos de acordo com "
            "esse ritmo.",
        ),
        answer=(
            "A Lua puxa a água do mar como se fosse um íman muito grande. Por isso o mar sobe e "
            "desce duas vezes por dia. Quando o Sol ajuda a Lua a puxar, o mar sobe ainda mais. Os "
            "pescadores sabem disso e só saem com os barcos quando há água suficiente no porto."
        ),
    ),
    PromptText(
        name="retrieval-query-es",
        language="es",
        request=(
            "Escribe tres consultas breves para buscar documentos que respondan a esta pregunta.",
            "Trabajo en una biblioteca pequeña y queremos prestar instrumentos musicales además "
            "de libros.",
            "Necesitamos saber qué seguro hace falta, cómo se limpia una flauta entre dos "
            "préstamos y cuánto tiempo conviene dejar cada instrumento.",
            "También nos interesa la experiencia de otras bibliotecas que ya lo hacen.",
            "El ayuntamiento nos dará una subvención si presentamos el plan antes de junio.",
        ),
        answer=(
            "Primera consulta: seguro para el préstamo de instrumentos musicales en bibliotecas. "
            "Segunda consulta: limpieza e higiene de instrumentos de viento entre préstamos. "
            "Tercera consulta: bibliotecas públicas que prestan instrumentos, duración del "
            "préstamo y resultados. Con ellas se cubren las cuatro partes de la pregunta."
        ),
    ),
    PromptText(
        name="chat-en",
        language="en",
        request=(
            "I am learning to bake bread and my loaves come out flat and dense every time.",
            "I use five hundred grams of wheat flour, three hundred of water, ten of salt and a "
            "small bag of dried yeast.",
            "The dough rests for an hour next to the heater and then goes straight into the oven.",
            "What would you change first, and how can I tell that the dough is ready?",
            "I have no mixer, so I knead by hand for about five minutes.",
        ),
        answer=(
            "Change the kneading first: five minutes by hand are too few, so go on until the dough "
            "is smooth and springs back, about twelve minutes. Then let it rise until it has "
            "doubled, shape it, and let it rest again for half an hour. Press a finger into it: if "
            "the dent fills slowly, it is ready for a very hot oven."
        ),
    ),
)
