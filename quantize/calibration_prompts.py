"""How the model's own calibration text begins: requests that it answers, documents to go on with.

Our own words, in the eight languages. Rounding must keep both what an app asks for and what it
gives the model to read.
"""

from typing import Final

#: Said through the chat template. The uses on a phone: summary, rewriting, search query, tool call.
REQUESTS: Final = (
    "Summarize in two sentences: The delivery of the new pumps has moved from Monday to Thursday "
    "because the carrier lost a truck. Please tell the workshop, and ask Jana whether the test "
    "bench is free on Friday morning.",
    "Explain step by step how a bicycle's gears work, for someone who has never repaired one.",
    "Write a Python function that reads a CSV file and returns the mean of every numeric column. "
    "Document its parameters, what it returns and the errors that it raises.",
    "You can call get_weather(city, day). Will I need an umbrella in Lisbon tomorrow? Answer with "
    "the call as JSON, then describe how the result should be shown.",
    "Tell the history of the printing press and what it changed for schools, trade and science.",
    "Rewrite this politely, and explain each change: your invoice is wrong again, fix it today.",
    "Write a short story about a lighthouse keeper who finds a letter in the winter store.",
    "Compare three ways of keeping food cold without electricity. List advantages and costs.",
    "Fasse in zwei Sätzen zusammen: Die Besprechung am Montag fällt aus, weil der Raum belegt ist; "
    "wir treffen uns am Donnerstag um zehn und brauchen bis dahin die Zahlen vom März.",
    "Récris ce message plus poliment : ta facture est encore fausse, corrige-la aujourd'hui.",
    "Scrivi una ricerca per trovare come togliere il calcare da una macchina per il caffè.",
    "Explique em palavras simples por que as marés sobem e descem duas vezes por dia.",
    "Resume este mensaje: el tren de las ocho sale hoy a las nueve y media por obras en la vía.",
    "इस संदेश को दो वाक्यों में लिखो: नई मशीनें सोमवार की जगह गुरुवार को आएँगी, कृपया सबको बता दें।",
    "สรุปข้อความนี้เป็นสองประโยค: การส่งเครื่องสูบน้ำเลื่อนจากวันจันทร์เป็นวันพฤหัสบดี",
    "What should I check before I buy a used laptop? Give reasons and prices for each part.",
)

#: First words of a document, without the chat template.
DOCUMENTS: Final = (
    "# Getting started\n\nThis guide shows how to install the package, write a first configuration "
    "file and start the server. ",
    "Returns the index of the first item that matches, or -1 if none does.\n\n"
    "Parameters\n----------\n",
    "The river rises in the hills north of the town and flows south for about ninety kilometres. ",
    "Minutes of the meeting\n\nPresent: the treasurer, the secretary and five members. 1. The "
    "accounts of last year ",
    "Abstract. We study how the temperature of shallow lakes changes over a year, and ",
    "Dear neighbours,\n\nas many of you know, the roof of the community hall ",
    "NAME\n    backup - copy files to another disk\n\nSYNOPSIS\n    backup [OPTION]... SOURCE DEST"
    "\n\nDESCRIPTION\n",
    "Chapter 1\n\nIt was late in October when the old man closed the shop and ",
    "Die Funktion gibt eine Liste aller Dateien zurück, die seit dem letzten Aufruf geändert "
    "wurden. ",
    "La commune se trouve au bord de la mer, à vingt kilomètres au sud de la ville. Son histoire ",
    "Il programma legge un file di testo e stampa il numero di righe, di parole e di caratteri. ",
    "A cidade foi fundada no século XVI por comerciantes que vinham do norte. Hoje ",
    "Para instalar el programa, descargue el archivo y ábralo. Después, elija la carpeta en la "
    "que ",
    "यह गाँव नदी के किनारे बसा है। यहाँ के लोग खेती करते हैं और ",
    "โปรแกรมนี้ใช้สำหรับจัดการไฟล์ในเครื่องคอมพิวเตอร์ ผู้ใช้สามารถ",
    "Q: How do I reset my password?\nA: Open the settings, choose Account and ",
    "Sehr geehrte Damen und Herren,\n\nvielen Dank für Ihre Anfrage vom 3. Mai. Wir können Ihnen ",
    "Der Wald im Norden der Stadt ist seit dem Mittelalter bekannt. Im Winter ",
    "Wenn das Gerät nicht startet, prüfen Sie zuerst das Kabel. Danach ",
    "Cette option indique le nom du fichier de configuration. Par défaut, ",
    "Le marché ouvre à sept heures. Les pêcheurs apportent leurs poissons, et ",
    "Bonjour à tous, voici le compte rendu de la réunion de mardi. Premièrement, ",
    "Il castello fu costruito nel XII secolo su una collina vicino al fiume. Oggi ",
    "Gentile cliente, la sua ordinazione è stata spedita ieri. Per seguire il pacco, ",
    "Ingredienti: due uova, cento grammi di farina, un bicchiere di latte. Preparazione: ",
    "La función devuelve el número de elementos de la lista. Si la lista está vacía, ",
    "Era una tarde de verano y los niños jugaban en la plaza cuando ",
    "El informe describe los resultados del segundo trimestre. Las ventas ",
    "Este comando mostra os ficheiros do diretório atual. As opções são: ",
    "A reunião começou às nove horas. O diretor explicou que ",
    "भारत के उत्तर में पहाड़ हैं और दक्षिण में समुद्र है। गर्मी के मौसम में ",
    "เช้าวันจันทร์ ฝนตกหนักและถนนหลายสายมีน้ำท่วม ประชาชน",
)
