"""How the instruction rows speak: requests, the wordings of each constraint, and the small change of the answers.

Wordings come as (both splits, train only, exam only). What both splits share is shorter than eight words, so that a
training row does not share an 8-gram with an exam item merely because both ask for the same format.
"""

from __future__ import annotations

Splits = dict[str, tuple[str, ...]]

REQUESTS: Splits = {
    "train": (
        "Tell me about {topic}.",
        "Write a short text about {topic}.",
        "What should I know about {topic}?",
        "Give me a brief description of {topic}.",
        "Write a few lines about {topic}.",
        "Explain the basics of {topic} to a curious child.",
        "Write something about {topic} for a school newsletter.",
        "I would like to learn about {topic}. Please help me.",
        "Could you summarize the basics of {topic}?",
        "Share some useful facts about {topic}.",
        "I am curious about {topic}. What can you tell me?",
        "Please write a short note about {topic}.",
    ),
    "exam": (
        "Tell me about {topic}.",
        "Write a short text about {topic}.",
        "What should I know about {topic}?",
        "Write a short blog post about {topic}.",
        "Help me understand {topic}.",
        "Give a quick introduction to {topic}.",
        "Can you write a little about {topic} for a poster?",
        "What is worth knowing about {topic}?",
    ),
}
LETTERS: Splits = {
    "train": (
        "Write a short message to my friend {person} about {topic}.",
        "Write a short letter to {person} about {topic}.",
        "My neighbor {person} wants to hear about {topic}. Write a short note.",
    ),
    "exam": (
        "Write a short letter to {person} about {topic}.",
        "Draft a brief email to my colleague {person} about {topic}.",
    ),
}
STATEMENTS: Splits = {
    "train": (
        'Does the sentence "{fact}" belong in a text about {topic}?',
        'Here is a sentence: "{fact}" Is it about {topic}?',
    ),
    "exam": (
        'Does the sentence "{fact}" belong in a text about {topic}?',
        'Would you use the sentence "{fact}" in an article about {topic}?',
    ),
}
PEOPLE: Splits = {
    "train": ("Maya", "Tom", "Anna", "Leo", "Rosa", "Ben", "Lily", "Omar"),
    "exam": ("Nina", "Paul", "Grace", "Ivan"),
}
END_PHRASES: Splits = {
    "train": (
        "That is all you need to know.",
        "I hope this helps.",
        "Thanks for reading!",
        "Let me know if you have questions.",
        "Now you know the basics.",
        "What do you think?",
        "Enjoy learning more!",
        "That is the whole story.",
        "Please share this with a friend.",
        "Keep this in mind.",
        "Is there anything else I can do?",
        "And that is a fact.",
        "Take care and stay curious.",
        "There is always more to discover.",
    ),
    "exam": (
        "I hope this helps.",
        "Thanks for reading!",
        "That is my short answer.",
        "Have fun with your project!",
        "Good luck with everything.",
        "Can I help you with anything else?",
    ),
}
SPLITTERS: Splits = {
    "train": ("Section", "Part", "SECTION", "Chapter"),
    "exam": ("Section", "Part", "Topic"),
}

WORDINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "lowercase": (
        ("Use only lowercase letters.", "Write everything in lowercase."),
        (
            "Your entire response must be in lowercase with no capital letters.",
            "Write in small letters only, even at the start of sentences.",
        ),
        ("Do not use any capital letters at all.", "The whole answer must be lowercase, without any capitals."),
    ),
    "uppercase": (
        ("Use only capital letters.", "Answer in all uppercase letters."),
        ("WRITE YOUR WHOLE ANSWER IN CAPITAL LETTERS.", "Your entire response must be in capital letters only."),
        ("Every letter of the answer has to be a capital.",),
    ),
    "no_commas": (
        ("Do not use any commas.", "Avoid commas in your answer."),
        ("Your entire response must not contain a single comma.", "Write it without using commas anywhere."),
        ("Leave out all commas.", "There should be no comma in the text."),
    ),
    "end": (
        ('End with "{end_phrase}"', 'Finish with this exact phrase: "{end_phrase}"'),
        (
            'The last words of your response must be "{end_phrase}" and nothing may follow.',
            'Close your answer with exactly these words: "{end_phrase}"',
        ),
        ('Your final words should be exactly "{end_phrase}"',),
    ),
    "quotation": (
        ("Put the answer in double quotation marks.", "Wrap everything in double quotes."),
        (
            "Wrap your entire response in double quotation marks.",
            "Your answer must begin and end with a double quotation mark.",
        ),
        ("Enclose the complete text in double quotation marks.",),
    ),
    "title": (
        ("Add a title like <<my title>>.", "Start with a <<title>>."),
        (
            "Begin with a title in double angular brackets, such as <<my title>>.",
            "Give your answer a title wrapped like this: <<title>>.",
        ),
        ("Put a title between << and >> at the top.",),
    ),
    "bullets": (
        ("Use exactly {N} bullet points with *.", "Write exactly {number} * bullet points."),
        (
            "Your answer must have exactly {number} bullet points, each on a new line that starts with *.",
            "Write it as a list of exactly {N} markdown bullet points (* point).",
        ),
        ("Answer as {number} bullet points, no more and no less, and begin each with a *.",),
    ),
    "postscript": (
        ("End with a {postscript_marker} note.", "Add a short note after {postscript_marker}"),
        (
            "At the end of your answer, add a postscript that starts with {postscript_marker}",
            "Finish with a short postscript beginning with {postscript_marker}",
        ),
        ("After the text there must be a postscript that opens with {postscript_marker}",),
    ),
    "placeholders": (
        ("Include at least {N} placeholder{s} like [name].", "Use at least {number} placeholder{s} like [date]."),
        (
            "Your answer must contain at least {N} placeholder{s} in square brackets, for example [address].",
            "Leave at least {number} blank{s} to fill in, written in square brackets like [place].",
        ),
        ("Put {N} or more placeholders such as [email] in square brackets.",),
    ),
    "highlights": (
        ("Highlight at least {N} word{s} like *this*.", "Mark {number} or more words like *this*."),
        (
            "Mark at least {number} important word{s} with single asterisks, such as *word*.",
            "Put at least {N} part{s} of your answer between asterisks, for example *important part*.",
        ),
        ("Let at least {N} word{s} stand between two asterisks, as in *word*.",),
    ),
    "keywords": (
        ("Include the word{s} {words}.", "Make sure to use the word{s} {words}."),
        ("Your answer must contain the word{s} {words}.", "Write the word{s} {words} somewhere in your answer."),
        ("The text has to contain the word{s} {words}.",),
    ),
    "forbidden": (
        ("Do not use the word{s} {either}.", "Avoid the word{s} {either}."),
        ("Your answer must not contain the word{s} {either}.", "Never write the word{s} {either} in your response."),
        ("Leave out the word{s} {either} completely.",),
    ),
    "paragraphs": (
        ("Put * * * between {N} paragraphs.", "Separate {number} paragraphs with * * *"),
        (
            "Write exactly {N} paragraphs and separate them with the divider * * *",
            "Your answer must have {number} paragraphs. Put the markdown divider * * * between them.",
        ),
        ("There should be exactly {number} paragraphs with the line * * * between one and the next.",),
    ),
    "first_word": (
        (),
        (
            "Write {N} paragraphs separated by a blank line. "
            'The {place} paragraph must start with the word "{first_word}".',
            'Use exactly two paragraphs with a blank line between them, and begin the {place} one with "{first_word}".',
            'Give me two paragraphs (leave one empty line between them). Start the {place} with "{first_word}".',
        ),
        (
            'Answer in two paragraphs with an empty line in between. The {place} one opens with "{first_word}".',
            'Split the answer by a blank line into {N} paragraphs, where the {place} starts with "{first_word}".',
        ),
    ),
    "sentences": (
        ("Answer with {quantifier} {N} sentence{s}.", "Write {quantifier} {number} sentence{s}."),
        ("Your response should have {quantifier} {number} sentence{s}.", "Limit: {quantifier} {N} sentence{s}."),
        ("The number of sentences must be {quantifier} {N}.",),
    ),
    "words": (
        ("Use {quantifier} {N} words.", "Write {quantifier} {N} words in total."),
        ("Your answer should contain {quantifier} {N} words.", "Answer in {quantifier} {N} words."),
        ("The length must be {quantifier} {N} words.",),
    ),
    "two_responses": (
        ("Give two different answers separated by ******", "Write two versions with ****** between them."),
        (
            "Give two different responses, separated by six asterisks: ******",
            "I want two different versions. Separate them with a line of 6 asterisks (******).",
        ),
        ("Offer two different replies and put six asterisks (******) between them.",),
    ),
    "json": (
        ("Answer with one JSON object.", "Your output must be valid JSON."),
        (
            "Give your entire answer as one JSON object and nothing else.",
            'Answer only in JSON format with the keys "topic" and "text".',
        ),
        ("Return nothing but a single valid JSON object.",),
    ),
    "choice": (
        ("Pick one: {choices}",),
        ("Answer with one of these options: {choices}", "Your answer must contain one of these two: {choices}"),
        ("Choose from these two answers: {choices}",),
    ),
    "repeat": (
        ('First repeat exactly: "{original_prompt}" Then answer.',),
        (
            'First repeat this request word for word: "{original_prompt}" Then give your answer.',
            'Start your answer by copying the request "{original_prompt}" without change, and then answer it.',
        ),
        ('Your response must begin with the request itself, unchanged and without quotes: "{original_prompt}"',),
    ),
    "sections": (
        (),
        (
            "Divide your answer into {N} sections. Mark the beginning of each one with {section_splitter} X, "
            "such as {section_splitter} 1.",
            'Write {number} sections and begin each with the heading "{section_splitter}" and its number.',
            "Your response must have {N} sections that start with {section_splitter} 1, {section_splitter} 2 etc.",
        ),
        (
            'Split the text into {number} sections headed "{section_splitter} 1", "{section_splitter} 2" and so on.',
            "Make exactly {N} sections, each opened by {section_splitter} and a number.",
        ),
    ),
    "capitals": (
        ("Put at least {N} word{s} in CAPITALS.", "Use at least {number} ALL CAPS word{s}."),
        (
            "Write at least {N} word{s} in ALL CAPITAL letters.",
            "Use capital letters for all of at least {number} word{s}, like THIS.",
        ),
        ("Let at least {number} word{s} stand out in ALL CAPS.",),
    ),
}

CHOICES = (
    ("My answer is yes.", "My answer is no."),
    ("It belongs.", "It does not belong."),
    ("Answer: yes", "Answer: no"),
    ("True", "False"),
)
GREETINGS = ("Hi {person}!", "Hello {person}!", "Dear {person}!")
CLOSINGS = ("See you soon!", "Best wishes to you.", "I hope to hear from you soon.", "Have a great day!")
LINKS = ("Also, ", "In fact, ", "In addition, ", "What is more, ")
TITLES = ("All About {topic}", "{topic}", "A Short Look at {topic}", "Notes on {topic}", "The Basics of {topic}")
OPENERS = {
    "Another": "Another thing to know:",
    "Everyone": "Everyone should know this:",
    "Finally": "Finally one more point:",
    "Here": "Here is a useful fact:",
    "Imagine": "Imagine this:",
    "Note": "Note this:",
    "Remember": "Remember this:",
    "Today": "Today we know this:",
}
POSTSCRIPTS = (
    "Ask me if you want to know more.",
    "There is much more to learn.",
    "A good book will tell you more.",
    "I enjoyed writing this.",
)
BLANKS = (
    ("Please ask [name] for more details.", "You can send questions to [email]."),
    ("Please ask [name] or write to [email] for more details.", "Call [name] at [phone] for more details."),
    ("Please ask [name] or call [phone] before [date].", "Contact [name] at [email] or visit [address]."),
)
NUMBERS = ("zero", "one", "two", "three", "four", "five")
PRONOUNS = ("It ", "Its ", "Their ", "Them ", "They ")
STOP_WORDS = (
    "about across after again almost another around because become becomes before began behind being below between "
    "could every first found instead itself looks makes means needs never often other should slightly their there "
    "these thing things those through toward under until usually where which while without would yours"
)
