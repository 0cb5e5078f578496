"""What the model is asked when it writes its own calibration text: our words, two per language."""

from typing import Final

#: The eight languages and the uses on a phone: summary, rewriting, search query, tool call, chat.
PROMPTS: Final = (
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
