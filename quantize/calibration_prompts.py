"""How the model's own calibration text begins: requests that it answers, documents it continues.

Our own words, in the eight languages of Llama 3.2. Rounding must keep both what an app asks for and
what it gives the model to read. Whole kinds of text are held out, for quality is measured on them:
docstrings, manual pages, and what the gate's prompts and the suites ask. Every prompt is at most
half of a sequence in SmolLM2's vocabulary, which takes a token or two for each letter of Hindi and
Thai.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

#: Calibration that takes every n-th sequence, with n up to this, has each kind in proportion.
LARGEST_STEP: Final = 24

#: Sent through the chat template. Language (BCP 47), then use, then text.
REQUESTS: Final[Mapping[str, Mapping[str, str]]] = {
    "en": {
        "summary": "Summarize in two sentences: The delivery of the new pumps has moved from "
        "Monday to Thursday because the carrier lost a truck. Please tell the workshop, and ask "
        "Jana whether the test bench is free on Friday morning.",
        "rewriting": "Rewrite this politely, and explain each change: your invoice is wrong again, "
        "fix it today.",
        "search query": "Which words should I type into a search engine to find out whether "
        "lithium batteries are allowed in hand luggage? Give three versions.",
        "tool call": "You can call add_event(title, date, start, minutes). Put a dentist "
        "appointment into my calendar on 9 June at 14:20, half an hour. Reply in JSON.",
        "chat": "My dog barks whenever the doorbell rings. I have tried treats and it did not "
        "help. What would you do?",
        "translation": "Translate into French and German, and keep the tone friendly: We have "
        "received your parcel, but one of the two lamps is broken.",
        "explanation": "Explain step by step how a bicycle's gears work, for someone who has never "
        "repaired one.",
        "list": "List eight things to check before I buy a used laptop, the most important first, "
        "with a reason for each.",
        "code": "Write a JavaScript function that groups an array of orders by customer and adds "
        "up their amounts. Then show how to call it.",
        "comparison": "Compare three ways of keeping food cold without electricity. Give the "
        "advantages and the cost of each.",
        "mathematics": "A tank holds 240 litres. A tap fills it in 8 minutes and a drain empties "
        "it in 20. How long does it take to fill with both open? Show every step.",
    },
    "de": {
        "summary": "Fasse in einem Satz zusammen: Die Werkstatt hat angerufen, der Ersatzreifen "
        "ist da. Der Wagen braucht aber auch neue Bremsen, und das dauert bis Mittwoch.",
        "tool call": "Du kannst licht(raum, prozent) aufrufen. Gib nur JSON aus: Im Flur soll es "
        "halb so hell sein, und in der Küche ganz dunkel.",
        "chat": "Ich möchte wieder mit dem Laufen anfangen, habe aber seit einem Jahr "
        "Knieschmerzen. Worauf soll ich achten?",
        "explanation": "Erkläre einem Zehnjährigen, warum ein Schiff aus Stahl schwimmt, ein Nagel "
        "aber nicht.",
        "translation": "Übersetze ins Englische und ins Spanische: Bitte stellen Sie den Müll erst "
        "am Abend vor die Tür.",
    },
    "fr": {
        "rewriting": "Rends ce message plus aimable : Vous avez encore garé votre camionnette "
        "devant mon garage. Enlevez-la.",
        "search query": "Quels mots-clés taper pour savoir si l'on peut composter les peaux "
        "d'agrumes ? Propose trois versions.",
        "list": "Donne une liste de dix choses à mettre dans un sac à dos pour deux jours de "
        "randonnée en montagne.",
        "tool call": "Fonction disponible : reserver_table(restaurant, personnes, heure). Je "
        "voudrais une table pour quatre Chez Lucie à vingt heures. Renvoie du JSON.",
        "translation": "Traduis en anglais puis en italien : Le médecin vous rappellera dès qu'il "
        "aura les résultats de l'analyse.",
    },
    "it": {
        "search query": "Scrivi una ricerca per trovare come togliere il calcare da una macchina "
        "per il caffè.",
        "summary": "Riassumi in due frasi: Il corriere ha consegnato solo cinque delle otto sedie. "
        "Le altre arriveranno venerdì con un altro furgone, e il trasporto lo paga il negozio.",
        "chat": "Mia figlia vuole smettere con il pianoforte dopo tre anni di lezioni. Devo "
        "insistere?",
        "explanation": "Spiega in modo semplice come fa un termometro a mercurio a misurare la "
        "febbre.",
        "list": "Fammi un elenco di sette regali sotto i trenta euro per un amico che ama "
        "cucinare.",
    },
    "pt": {
        "explanation": "Explique em palavras simples por que o céu é azul durante o dia e vermelho "
        "ao pôr do sol.",
        "rewriting": "Deixe esta mensagem mais formal: oi, não vai dar para entregar o projeto na "
        "sexta, fica para a outra semana, tá?",
        "tool call": "Função disponível: tocar_musica(artista, volume). Quero ouvir Cartola bem "
        "baixinho. Devolva só o JSON da chamada.",
        "translation": "Traduza para o inglês e o francês: A farmácia da esquina fica aberta a "
        "noite toda.",
        "list": "Liste seis maneiras de gastar menos água em casa, da mais barata à mais cara.",
    },
    "hi": {
        "summary": "छोटा करके लिखो: मिस्त्री आज नहीं आएगा, पंखा कल ठीक होगा, पैसे बाद में देने हैं।",
        "tool call": "फ़ंक्शन call(name) उपलब्ध है। पिताजी को फ़ोन लगाओ, उत्तर JSON में दो।",
        "explanation": "इंद्रधनुष कैसे बनता है? सरल शब्दों में समझाओ।",
        "list": "पैसे बचाने के पाँच आसान तरीके बताओ।",
        "rewriting": "इसे विनम्र बनाओ: शोर मत करो, बच्चा सो रहा है।",
    },
    "es": {
        "summary": "Resume en una frase: La vecina riega las plantas hasta el domingo, las llaves "
        "están en el buzón y el gato come dos veces al día.",
        "search query": "Necesito buscar en internet cómo renovar el pasaporte desde el "
        "extranjero. Escribe la búsqueda más corta posible.",
        "chat": "Mañana tengo mi primera entrevista de trabajo y estoy muy nervioso. ¿Qué me "
        "aconsejas?",
        "translation": "Traduce al portugués y al inglés: El ascensor no funciona; usen la "
        "escalera del fondo.",
        "rewriting": "Convierte estas notas en un párrafo claro: proveedor nuevo, precio 12 % "
        "menor, plazo tres semanas, falta la firma del contrato.",
    },
    "th": {
        "summary": "สรุปสั้น ๆ: ร้านเลื่อนส่งตู้เย็นเป็นวันอังคาร",
        "search query": "เขียนคำค้นหาวิธีซ่อมยางจักรยานรั่ว",
        "chat": "แมวของฉันไม่กินอาหารมาสองวันแล้ว ควรทำอย่างไรดี",
        "translation": "แปลเป็นภาษาอังกฤษ: ห้องน้ำอยู่ทางซ้ายมือ",
        "tool call": "เรียก open_app(name) เป็น JSON: เปิดแผนที่ให้หน่อย",
    },
}

#: First words of a document, without the chat template. Language, then kind, then text.
DOCUMENTS: Final[Mapping[str, Mapping[str, str]]] = {
    "en": {
        "news": "PORT ALMA - Fishermen returned to sea on Tuesday after the harbour authority "
        "lifted the ban that it had imposed in",
        "letter": "Dear Mr Okafor,\n\nThank you for applying for the post of assistant gardener. "
        "We were impressed by",
        "minutes": "Allotment society, minutes of 14 May\n\nPresent: nine members. Apologies: two."
        "\n1. Water meter. The treasurer reported that",
        "recipe": "Red lentils for six\n\n300 g red lentils\n2 onions\n1 tablespoon cumin\n\n1. "
        "Rinse the lentils until",
        "form": "Claim form\n\nName: Ruth Ellery\nPolicy number: 4471-09\nDate of damage: 2 August"
        "\nWhat happened:",
        "story": "Chapter 1\n\nIt was late in October when the old man closed the shop and",
        "dialogue": '"You\'re late," said Mrs Pym without looking up.\n"The bridge was closed."\n'
        '"It was open this morning."\n',
        "poem": "The Heron\n\nHe stands where river turns to reed,\nas grey as early rain,\n",
        "law": "Article 7. Termination. (1) Either party may end this agreement by written notice "
        "of at least thirty days. (2) Where a party",
        "mathematics": "Theorem 2. Every finite tree with at least two vertices has at least two "
        "leaves.\n\nProof. Let",
        "science": "Abstract. We study how the temperature of shallow lakes changes over a year, "
        "and",
        "manual": "Replacing the filter\n\nWARNING: Disconnect the machine from the mains.\n1. "
        "Open the front cover and press the blue tab.\n2.",
        "guide": "# Getting started\n\nThis guide shows how to install the server, write a first "
        "configuration file and open the dashboard.",
        "code: Python": 'board = [[" "] * 3 for _ in range(3)]\n\n\ndef winner(board):\n    for '
        "row in board:\n",
        "code: C": "#include <stdio.h>\n#include <stdlib.h>\n\nstruct node {\n    int key;\n    "
        "struct node *left, *right;\n};\n\nstatic struct node *insert(",
        "code: HTML": '<!DOCTYPE html>\n<html lang="en">\n<head>\n<title>Riverside Pottery'
        "</title>\n<style>\nbody {",
        "code: shell": "#!/bin/sh\nset -e\n\nfor photo in *.jpg; do\n",
        "data: CSV": "date,station,celsius,rain_mm\n2021-03-01,North,7.2,0.4\n2021-03-01,South,"
        "8.9,0.0\n2021-03-02,",
        "data: JSON": '{\n  "orders": [\n    {"id": 1041, "items": ["lamp", "cable"], "total": 62.5'
        ', "paid": true},\n    {"id": 1042,',
        "data: log": "2024-02-11 06:14:02 INFO  scheduler: job backup started\n2024-02-11 06:14:09"
        " WARN  disk: /var is 91 % full\n2024-02-11",
        "data: table": "| Planet | Radius (km) | Moons |\n|---|---|---|\n| Mercury | 2,440 | 0 |\n"
        "| Venus |",
    },
    "de": {
        "letter": "Sehr geehrte Damen und Herren,\n\nvielen Dank für Ihre Anfrage vom 3. Mai. Wir "
        "können Ihnen",
        "manual": "Wenn das Gerät nicht startet, prüfen Sie zuerst das Kabel. Danach",
        "encyclopedia": "Der Wald im Norden der Stadt ist seit dem Mittelalter bekannt. Im Winter",
        "law": "§ 4 Kündigung\n\n(1) Das Mietverhältnis kann mit einer Frist von drei Monaten "
        "gekündigt werden. (2) Die Kündigung",
        "recipe": "Kartoffelsalat\n\n1 kg festkochende Kartoffeln\n1 Zwiebel\n4 EL Essig\n\nDie "
        "Kartoffeln in der Schale kochen,",
        "story": "Als Großvater den Dachboden aufräumte, fand er unter den Zeitungen eine Kiste, "
        "die",
        "code: Java": "public class Sparkonto {\n    private double guthaben;\n\n    public void "
        "einzahlen(double betrag) {\n",
        "data: table": "| Monat | Einnahmen | Ausgaben |\n|---|---|---|\n| Januar | 1.240 € | 980 €"
        " |\n| Februar |",
        "science": "Bienen verständigen sich durch Tänze. Wie eine Arbeiterin die Richtung zur "
        "Futterquelle anzeigt,",
        "interview": "Frage: Frau Brandt, Sie bauen seit zwanzig Jahren Möbel. Was macht ein gutes "
        "Holz aus?\nAntwort:",
        "form": "Anmeldung zum Schwimmkurs\n\nName des Kindes: Jonas Weber\nGeburtsdatum: "
        "17.04.2015\nBesonderheiten:",
    },
    "fr": {
        "minutes": "Compte rendu de l'assemblée du club d'échecs\n\nPrésents : quatorze membres.\n"
        "1. Cotisations. Le président propose",
        "encyclopedia": "La commune se trouve au bord de la mer, à vingt kilomètres au sud de la "
        "ville. Son histoire",
        "description": "Le marché ouvre à sept heures. Les pêcheurs apportent leurs poissons, et",
        "news": "LYON - Après trois semaines de grève, les chauffeurs de bus ont repris le travail "
        "lundi. Le syndicat",
        "dialogue": "— Tu as vu mes clés ?\n— Elles étaient sur le buffet hier soir.\n— Elles n'y "
        "sont plus.\n—",
        "poem": "Le soir descend sur la rivière,\nLe vent s'endort dans les roseaux,\n",
        "law": "Article 12. Le locataire est tenu d'entretenir les lieux loués. Les grosses "
        "réparations sont à la charge",
        "data: CSV": "nom;prénom;ville;date d'adhésion\nMoreau;Claire;Nantes;12/03/2019\nGarcia;"
        "Hugo;Lille;",
        "manual": "Entretien de la tondeuse\n\n1. Débranchez la bougie.\n2. Retirez l'herbe collée "
        "sous le carter.\n3.",
        "mathematics": "Exercice 3. Soit f(x) = x² - 4x + 1. 1) Déterminer le minimum de f. 2) "
        "Résoudre f(x) = 0.\n\nSolution. 1)",
        "code: JavaScript": 'const panier = [\n  { article: "stylo", prix: 2.5, nombre: 4 },\n  '
        '{ article: "cahier", prix: 3.9, nombre: 2 },\n];\n\nfunction total(',
    },
    "it": {
        "history": "Il castello fu costruito nel XII secolo su una collina vicino al fiume. Oggi",
        "letter": "Gentile cliente, la sua ordinazione è stata spedita ieri. Per seguire il pacco,",
        "recipe": "Ingredienti: due uova, cento grammi di farina, un bicchiere di latte. "
        "Preparazione:",
        "form": "Modulo di iscrizione alla palestra\n\nCognome: Ferri\nNome: Paola\nData di "
        "nascita: 6/11/1988\nProblemi di salute:",
        "news": "Una scossa di terremoto è stata avvertita nella notte tra Umbria e Marche. "
        "Secondo i vigili del fuoco",
        "science": "Le piante carnivore crescono in terreni poveri di azoto. Le foglie della "
        "drosera",
        "advertisement": "Cercasi falegname con almeno tre anni di esperienza. Si offre contratto "
        "a tempo indeterminato e",
        "story": "La sera in cui Teresa tornò in paese, nessuno la riconobbe. Aveva",
        "data: log": "08:12 cancello aperto\n08:40 consegna merci, 12 casse\n09:05",
        "code: SQL": "SELECT clienti.nome, SUM(ordini.importo) AS totale\nFROM clienti\nJOIN "
        "ordini ON",
        "guide": "Tre giorni in Sardegna\n\nGiorno 1. Arrivo a Cagliari, passeggiata nel quartiere "
        "di Castello e",
    },
    "pt": {
        "encyclopedia": "A cidade foi fundada no século XVI por comerciantes que vinham do norte. "
        "Hoje",
        "minutes": "A reunião começou às nove horas. O diretor explicou que",
        "news": "O preço do café subiu pelo quarto mês seguido, segundo dados divulgados ontem. "
        "Produtores de Minas Gerais",
        "story": "Dona Lurdes vendia flores na praça havia trinta anos e nunca tinha visto",
        "code: Rust": 'use std::collections::HashMap;\n\nfn main() {\n    let frase = "o rato '
        'roeu a roupa do rei";\n    let mut contagem = HashMap::new();\n',
        "sport": "Aos 38 minutos do segundo tempo, o atacante recebeu na entrada da área e",
        "letter": "Prezada senhora Almeida,\n\nem resposta à sua carta de 10 de setembro, "
        "informamos que",
        "speech": "Senhoras e senhores, é com alegria que abro esta feira de ciências. Quando eu "
        "era estudante,",
        "data: table": "Produto | Quantidade | Preço\nArroz 5 kg | 2 | R$ 27,90\nFeijão 1 kg | 3 | "
        "R$ 8,49\n",
        "law": "Art. 5º O consumidor pode desistir do contrato no prazo de sete dias. § 1º O prazo",
        "recipe": "Bolo de cenoura\n\nIngredientes: 3 cenouras, 4 ovos, 1 xícara de óleo, 2 "
        "xícaras de açúcar.\nModo de preparo:",
    },
    "hi": {
        "description": "यह गाँव नदी के किनारे बसा है। यहाँ के लोग खेती करते हैं और",
        "encyclopedia": "भारत के उत्तर में पहाड़ हैं और दक्षिण में समुद्र है। गर्मी के मौसम में",
        "story": "बहुत समय पहले एक राजा के तीन बेटे थे। सबसे छोटा बेटा",
        "news": "नई दिल्ली: लगातार तीन दिन गिरने के बाद सोमवार को सोने के दाम में",
        "letter": "आदरणीय चाचाजी,\n\nसादर प्रणाम। आपका पत्र मिला।",
        "recipe": "आलू के पराठे\n\nसामग्री: चार आलू, दो कप आटा, नमक।\nविधि:",
        "mathematics": "प्रश्न: एक दर्जन केले 60 रुपये के हैं। पाँच केले कितने के होंगे?\nहल:",
        "data: JSON": '{"नाम": "सीता", "उम्र": 24, "शहर": "जयपुर"}\n{"नाम":',
        "poem": "बादल आए, बिजली चमकी,\nनाचे वन में मोर,\n",
        "science": "पौधे सूर्य के प्रकाश से अपना भोजन बनाते हैं। इस क्रिया को",
        "dialogue": "रमेश: तुम कहाँ जा रहे हो?\nसुरेश: बाज़ार।\nरमेश:",
    },
    "es": {
        "story": "Era una tarde de verano y los niños jugaban en la plaza cuando",
        "report": "El informe describe los resultados del segundo trimestre. Las ventas",
        "guide": "Para instalar el programa, descargue el archivo y ábralo. Después, elija la "
        "carpeta en la que",
        "recipe": "Tortilla de patatas\n\nPela cuatro patatas medianas y córtalas en láminas "
        "finas. Calienta el aceite y",
        "code: Python": 'precios = {"pan": 1.2, "leche": 0.95, "queso": 4.5}\n\nfor producto, '
        "precio in precios.items():\n",
        "data: JSON": '{"alumnos": [{"nombre": "Lucía", "edad": 12, "notas": [7, 9, 8]}, '
        '{"nombre":',
        "news": "Los bomberos lograron controlar anoche el incendio que desde el martes quemaba "
        "los montes de",
        "dialogue": "—¿Y usted quién es?\n—El nuevo cartero, señora.\n—El de antes silbaba.\n—",
        "science": "Los volcanes se forman donde el magma alcanza la superficie. En los bordes de "
        "las placas",
        "letter": "Asunto: cambio de horario\n\nEstimados alumnos:\n\nA partir del próximo mes, "
        "las clases de cerámica",
        "history": "En 1898 llegó al puerto el primer automóvil de la isla. Su dueño, un médico,",
    },
    "th": {
        "news": "เช้าวันจันทร์ ฝนตกหนักและถนนหลายสายมีน้ำท่วม ประชาชน",
        "manual": "วิธีใช้หม้อหุงข้าว\n1. ล้างข้าวให้สะอาด\n2.",
        "letter": "เรียน คุณสมชาย\n\nบริษัทได้รับใบสมัครของท่านแล้ว",
        "recipe": "ต้มยำกุ้ง\n\nส่วนผสม: กุ้ง 10 ตัว ตะไคร้ 2 ต้น\nวิธีทำ:",
        "story": "กาลครั้งหนึ่งนานมาแล้ว มีกระต่ายตัวหนึ่ง",
        "data: CSV": "ชื่อ,อายุ,จังหวัด\nมานี,12,เชียงใหม่\nปิติ,",
        "announcement": "ประกาศ\n\nพรุ่งนี้น้ำประปาจะไม่ไหลตั้งแต่เวลา 9.00 น.",
        "history": "กรุงศรีอยุธยาเคยเป็นราชธานีของไทย ก่อตั้งขึ้น",
        "dialogue": "มานี: วันนี้ตลาดคนเยอะไหม\nปิติ: เยอะมาก\nมานี:",
        "science": "น้ำเดือดที่อุณหภูมิ 100 องศาเซลเซียส เมื่อ",
        "form": "แบบฟอร์มลงทะเบียน\nชื่อ: นภา ใจดี\nอาชีพ:",
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationPrompt:
    """The beginning of one sequence of calibration text."""

    #: BCP 47 code
    language: str
    #: what the app asks for, or what sort of document it is
    kind: str
    #: sent through the chat template
    is_request: bool
    text: str

    @property
    def traits(self) -> tuple[str | bool, ...]:
        """What is to be balanced; "code: SQL" is also code."""
        return self.language, self.kind, self.kind.split(":")[0], self.is_request


def _in_balanced_order(prompts: Sequence[CalibrationPrompt]) -> tuple[CalibrationPrompt, ...]:
    """Order them so that the first n, and every n-th up to `LARGEST_STEP`, are balanced as well.

    Next comes the prompt whose language, kind and form are the scarcest in the spreads that this
    position belongs to; the first n are the spread of step 1. Large groups weigh more, as they lack
    more.
    """
    totals = Counter(trait for prompt in prompts for trait in prompt.traits)
    spreads = {step: Counter[str | bool]() for step in range(1, LARGEST_STEP + 1)}
    left, placed = list(prompts), list[CalibrationPrompt]()
    while left:
        joined = [step for step in spreads if len(placed) % step == 0]
        lacking = {
            trait: math.sqrt(total)
            * sum(
                total * (len(placed) // step + 1) / len(prompts) - spreads[step][trait]
                for step in joined
            )
            for trait, total in totals.items()
        }
        needs = [sum(lacking[trait] for trait in prompt.traits) for prompt in left]
        placed.append(left.pop(needs.index(max(needs))))
        for step in joined:
            spreads[step].update(placed[-1].traits)
    return tuple(placed)


PROMPTS: Final = _in_balanced_order(
    [
        CalibrationPrompt(language=language, kind=kind, is_request=texts is REQUESTS, text=text)
        for texts in (REQUESTS, DOCUMENTS)
        for language, kinds in texts.items()
        for kind, text in kinds.items()
    ]
)
