"""The talk and facts of `tercet.data.talk`, written by hand: what is asked, and a short, true, friendly answer.

`then` is a second question with its answer. The topics of the training and the exam tables are disjoint.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """One thing to talk about: phrasings of the question, the answer, and perhaps a second exchange."""

    name: str
    asks: tuple[str, ...]
    answer: str
    then: tuple[str, str] | None = None


@dataclass(frozen=True)
class Fact:
    """One thing to know: phrasings of the question, the short right answer and plausible wrong ones."""

    name: str
    asks: tuple[str, ...]
    answer: str
    wrong: tuple[str, str, str]


TALK_TRAIN: tuple[Topic, ...] = (
    Topic(
        "rainbow",
        (
            "What causes a rainbow?",
            "How does a rainbow form?",
        ),
        (
            "A rainbow forms when sunlight enters raindrops, bends, reflects off the back of each drop and bends "
            "again on the way out. Each color bends by a slightly different angle, so they spread into an arc."
        ),
    ),
    Topic(
        "blue sky",
        (
            "Why is the sky blue?",
            "Can you explain why the daytime sky looks blue?",
        ),
        (
            "Air scatters short wavelengths of sunlight, such as blue, much more than long ones, such as red. That "
            "scattered blue light reaches our eyes from every direction, so the sky looks blue."
        ),
    ),
    Topic(
        "tides",
        (
            "What causes the tides?",
            "Why does the sea rise and fall twice a day?",
        ),
        (
            "Tides are caused mainly by the gravity of the Moon, with some help from the Sun. As Earth turns, a "
            "coast passes through two bulges of water each day, which we see as high tides."
        ),
    ),
    Topic(
        "seasons",
        (
            "Why do we have seasons?",
            "What makes summer warmer than winter?",
        ),
        (
            "Seasons come from the tilt of Earth's axis. When your half of the planet leans toward the Sun, "
            "sunlight falls more directly and days are longer, so it is summer."
        ),
    ),
    Topic(
        "thunder",
        (
            "What is thunder?",
            "Why does lightning make a loud noise?",
        ),
        (
            "Lightning heats the air around it to an extreme temperature in an instant. The air expands so fast "
            "that it sends out a shock wave, and we hear that as thunder."
        ),
    ),
    Topic(
        "clouds",
        (
            "What are clouds made of?",
            "How do clouds form?",
        ),
        (
            "Clouds are made of tiny water droplets or ice crystals. They form when moist air rises and cools "
            "until the water vapor condenses on specks of dust."
        ),
    ),
    Topic(
        "volcano",
        (
            "What is a volcano?",
            "Why do volcanoes erupt?",
        ),
        (
            "A volcano is an opening in Earth's crust through which molten rock, ash and gas escape. It erupts "
            "when pressure builds up in the magma below until it forces its way out."
        ),
    ),
    Topic(
        "earthquake",
        (
            "What causes an earthquake?",
            "Why does the ground shake in an earthquake?",
        ),
        (
            "Earth's plates push against each other and get stuck along faults. When the rock finally slips, "
            "stored energy travels through the ground as waves and makes it shake."
        ),
    ),
    Topic(
        "photosynthesis",
        (
            "What is photosynthesis?",
            "How do plants make their food?",
        ),
        (
            "Photosynthesis is how plants turn light, water and air into sugar. The green pigment chlorophyll "
            "captures the light, and oxygen is given off along the way."
        ),
    ),
    Topic(
        "bees",
        (
            "Why are bees important?",
            "What do bees do for us?",
        ),
        (
            "Bees carry pollen from flower to flower while they gather nectar. Many fruits, nuts and vegetables "
            "depend on that pollination, so bees help to feed us."
        ),
        then=(
            "Do all bees live in hives?",
            (
                "No. Honeybees and bumblebees live in colonies, but most bee species are solitary, and each female "
                "builds her own small nest."
            ),
        ),
    ),
    Topic(
        "migration",
        (
            "Why do birds migrate?",
            "What makes birds fly south in autumn?",
        ),
        (
            "Birds migrate mostly to find food. When winter makes insects and seeds scarce, they move to warmer "
            "places and return in spring to raise their young."
        ),
    ),
    Topic(
        "hibernation",
        (
            "What is hibernation?",
            "Why do some animals sleep through the winter?",
        ),
        (
            "Hibernation is a long rest in which an animal's heartbeat, breathing and temperature drop. It saves "
            "energy at a time when food is hard to find."
        ),
    ),
    Topic(
        "camouflage",
        (
            "What is camouflage in nature?",
            "How do animals use camouflage?",
        ),
        (
            "Camouflage is coloring or a shape that blends in with the surroundings. It helps some animals hide "
            "from predators and helps others surprise their prey."
        ),
    ),
    Topic(
        "whales",
        (
            "Are whales fish?",
            "Why is a whale not a fish?",
        ),
        (
            "Whales are mammals. They breathe air through lungs, are warm-blooded and feed their calves with milk, "
            "although they spend their whole life in water."
        ),
    ),
    Topic(
        "bats",
        (
            "How do bats find their way in the dark?",
            "How can bats fly at night without bumping into things?",
        ),
        (
            "Bats send out very high calls and listen to the echoes. From the time and direction of each echo they "
            "can tell where an obstacle or an insect is."
        ),
    ),
    Topic(
        "dinosaurs",
        (
            "What happened to the dinosaurs?",
            "Why did the dinosaurs die out?",
        ),
        (
            "Most scientists think that a large asteroid struck Earth about 66 million years ago and changed the "
            "climate. Most dinosaurs died out, but one group survived as the birds of today."
        ),
    ),
    Topic(
        "fossils",
        (
            "How do fossils form?",
            "What is a fossil?",
        ),
        (
            "Fossils are traces of ancient life kept in rock. Often a dead animal or plant was buried by mud, and "
            "minerals slowly replaced its hard parts."
        ),
    ),
    Topic(
        "coral reefs",
        (
            "What is a coral reef?",
            "Are corals plants or animals?",
        ),
        (
            "Corals are small animals that build hard skeletons of limestone. Over many years the skeletons pile "
            "up into reefs, which give shelter to a huge number of sea creatures."
        ),
    ),
    Topic(
        "leaves in autumn",
        (
            "Why do leaves change color in autumn?",
            "What makes leaves turn yellow and red?",
        ),
        (
            "In autumn trees stop making green chlorophyll. Yellow and orange pigments that were hidden become "
            "visible, and some trees also make red ones."
        ),
    ),
    Topic(
        "tree rings",
        (
            "What do the rings of a tree tell us?",
            "How can you find out the age of a tree?",
        ),
        (
            "A tree usually adds one ring of wood each year, so counting the rings gives its age. Wide rings point "
            "to good years and narrow ones to dry or cold years."
        ),
    ),
    Topic(
        "recycling",
        (
            "Why should we recycle?",
            "What is the use of recycling?",
        ),
        (
            "Recycling turns used paper, glass and metal into new products. It saves raw materials and energy, and "
            "it keeps waste out of landfills."
        ),
    ),
    Topic(
        "compost",
        (
            "How do I start composting?",
            "What goes into a compost heap?",
        ),
        (
            "Mix green scraps such as vegetable peels with brown material such as dry leaves. Keep the heap "
            "slightly damp and turn it now and then, and it will become rich soil in a few months."
        ),
    ),
    Topic(
        "solar panels",
        (
            "How do solar panels work?",
            "What does a solar panel do?",
        ),
        (
            "Solar panels are made of cells that turn light into electricity. When light hits the cell, it frees "
            "electrons, and these flow as a current through a wire."
        ),
    ),
    Topic(
        "wind power",
        (
            "How does a wind turbine make electricity?",
            "What is wind power?",
        ),
        (
            "The wind turns the blades of a turbine, and the blades turn a generator. The generator changes that "
            "motion into electricity."
        ),
    ),
    Topic(
        "magnets",
        (
            "How do magnets work?",
            "Why do magnets stick to iron?",
        ),
        (
            "In a magnet, many tiny magnetic regions point in the same direction and create a field. Near iron, "
            "the field lines up the regions in the iron as well, so the two attract each other."
        ),
    ),
    Topic(
        "density",
        (
            "Why does ice float on water?",
            "What makes an ice cube float?",
        ),
        (
            "Water expands when it freezes, so ice is less dense than liquid water. A less dense solid floats, and "
            "that is why ice stays at the top."
        ),
    ),
    Topic(
        "soap",
        (
            "How does soap clean?",
            "Why does soap remove grease?",
        ),
        (
            "One end of a soap molecule likes water and the other likes grease. Soap surrounds bits of grease so "
            "that water can carry them away."
        ),
    ),
    Topic(
        "yeast",
        (
            "Why does bread dough rise?",
            "What does yeast do in bread?",
        ),
        (
            "Yeast eats sugar in the dough and gives off carbon dioxide. The gas gets trapped in the stretchy "
            "dough as bubbles and makes it rise."
        ),
    ),
    Topic(
        "rust",
        (
            "What is rust?",
            "Why does iron rust?",
        ),
        (
            "Rust is a reddish compound that forms when iron reacts with oxygen and water. Paint, oil or a layer "
            "of zinc keeps the water away and slows it down."
        ),
    ),
    Topic(
        "atoms",
        (
            "What is an atom?",
            "What are things made of at the smallest scale?",
        ),
        (
            "All ordinary matter is made of atoms. An atom has a tiny nucleus of protons and neutrons, with "
            "electrons around it."
        ),
    ),
    Topic(
        "light speed",
        (
            "How fast is light?",
            "What is the speed of light?",
        ),
        (
            "In empty space light travels about 300,000 kilometers per second. At that speed, sunlight needs a "
            "little over eight minutes to reach us."
        ),
    ),
    Topic(
        "moon phases",
        (
            "Why does the Moon change its shape?",
            "What are the phases of the Moon?",
        ),
        (
            "The Moon does not really change its shape. As it travels around Earth, we see different parts of its "
            "sunlit half, and we call these views phases."
        ),
    ),
    Topic(
        "eclipse",
        (
            "What is a solar eclipse?",
            "How does a solar eclipse happen?",
        ),
        (
            "A solar eclipse happens when the Moon passes exactly between the Sun and Earth and covers the Sun. "
            "Never look at it without proper eye protection."
        ),
    ),
    Topic(
        "stars",
        (
            "Why do stars twinkle?",
            "What makes stars seem to flicker?",
        ),
        (
            "Starlight passes through moving layers of warm and cold air before it reaches us. The air bends the "
            "light a little differently from moment to moment, so the star seems to twinkle."
        ),
    ),
    Topic(
        "black hole",
        (
            "What is a black hole?",
            "Can you describe a black hole in simple words?",
        ),
        (
            "A black hole is a region of space where gravity is so strong that not even light can escape. Many "
            "form when very massive stars collapse."
        ),
    ),
    Topic(
        "space station",
        (
            "What is the International Space Station?",
            "What do astronauts do on the space station?",
        ),
        (
            "The International Space Station is a laboratory that orbits Earth about every ninety minutes. "
            "Astronauts live there for months and do research in near weightlessness."
        ),
    ),
    Topic(
        "vaccines",
        (
            "How do vaccines work?",
            "What does a vaccine do in the body?",
        ),
        (
            "A vaccine shows the immune system a harmless piece or form of a germ. The body learns to recognize it "
            "and can respond quickly if the real germ appears."
        ),
    ),
    Topic(
        "germs",
        (
            "Why should I wash my hands?",
            "What is the point of washing hands with soap?",
        ),
        (
            "Hands pick up germs from everything they touch. Washing them with soap for about twenty seconds "
            "removes most of the germs before they reach your mouth, nose or eyes."
        ),
    ),
    Topic(
        "sleep",
        (
            "How much sleep do adults need?",
            "How many hours should I sleep?",
        ),
        (
            "Most adults need between seven and nine hours of sleep a night. If you wake up rested and stay alert "
            "during the day, you are probably getting enough."
        ),
        then=(
            "What can I do if I cannot fall asleep?",
            (
                "Try going to bed at the same time every day, dim the lights and put screens away an hour before. "
                "If worries keep you awake, writing them down can help."
            ),
        ),
    ),
    Topic(
        "exercise",
        (
            "How much exercise is healthy?",
            "How often should I exercise?",
        ),
        (
            "A common guideline for adults is about 150 minutes of moderate activity a week, such as brisk "
            "walking. Even short walks count, so start small and build up."
        ),
    ),
    Topic(
        "water intake",
        (
            "How much water should I drink?",
            "Do I really need eight glasses of water a day?",
        ),
        (
            "Needs vary with your size, the weather and your activity. For most healthy people, drinking when "
            "thirsty and a bit more in heat or during sport is enough."
        ),
    ),
    Topic(
        "breakfast",
        (
            "What is a quick healthy breakfast?",
            "Can you suggest something healthy for breakfast?",
        ),
        (
            "Try oatmeal with fruit and a handful of nuts. It takes about five minutes, keeps you full for hours "
            "and is easy to vary."
        ),
    ),
    Topic(
        "vitamins",
        (
            "What are vitamins for?",
            "Why do we need vitamins?",
        ),
        (
            "Vitamins are substances that the body needs in small amounts to work well. A varied diet with fruit, "
            "vegetables, grains and protein covers most of them."
        ),
    ),
    Topic(
        "blood",
        (
            "What does blood do?",
            "Why do we need blood?",
        ),
        (
            "Blood carries oxygen and nutrients to every part of the body and takes waste away. It also contains "
            "cells that fight infections."
        ),
    ),
    Topic(
        "bones",
        (
            "How many bones does an adult have?",
            "Tell me something about human bones.",
        ),
        "An adult has 206 bones. Babies are born with more, and some of them grow together as the child gets older.",
    ),
    Topic(
        "sunscreen",
        (
            "Why should I use sunscreen?",
            "What does sunscreen protect me from?",
        ),
        (
            "Sunscreen blocks part of the ultraviolet light that burns the skin and can cause cancer. Put it on "
            "before you go out and again every two hours."
        ),
    ),
    Topic(
        "headache",
        (
            "I have a mild headache. What can I do?",
            "What helps against a mild headache?",
        ),
        (
            "Drink some water, rest your eyes and take a short break in a quiet place. If the headache is sudden "
            "and severe or does not go away, please see a doctor."
        ),
    ),
    Topic(
        "stress",
        (
            "I feel stressed at work. Any advice?",
            "How can I deal with stress?",
        ),
        (
            "I am sorry that it feels heavy right now. Pick the one task that matters most, take short breaks, and "
            "talk with someone you trust about what could be moved or shared."
        ),
    ),
    Topic(
        "greeting",
        (
            "Hello! How are you?",
            "Hi there, how is it going?",
        ),
        "Hello! I am ready to help. What would you like to talk about?",
    ),
    Topic(
        "thanks",
        (
            "Thanks for your help today.",
            "Thank you, that was useful.",
        ),
        "You are welcome! I am glad it helped. Just ask if anything else comes up.",
    ),
    Topic(
        "goodbye",
        (
            "I have to go now. Bye!",
            "Goodbye for today.",
        ),
        "Goodbye, and have a good day! Come back whenever you like.",
    ),
    Topic(
        "who are you",
        (
            "Who are you?",
            "Are you a person or a program?",
        ),
        (
            "I am a language model, a computer program that answers questions and helps with writing. I am not a "
            "person, and I can make mistakes, so check what matters."
        ),
    ),
    Topic(
        "joke",
        (
            "Tell me a joke.",
            "Do you know a short joke?",
        ),
        "Why did the bicycle fall over? Because it was two-tired.",
        then=(
            "Another one, please.",
            "What do you call a bear with no teeth? A gummy bear.",
        ),
    ),
    Topic(
        "compliment",
        (
            "You are really smart.",
            "I think you do a great job.",
        ),
        "Thank you, that is kind of you! I am happy when I can be useful.",
    ),
    Topic(
        "bored",
        (
            "I am bored. What should I do?",
            "What can I do on a dull afternoon?",
        ),
        (
            "You could take a walk with no plan, cook something new or learn three card tricks. Pick the one that "
            "makes you a little curious and give it twenty minutes."
        ),
    ),
    Topic(
        "rainy day with children",
        (
            "What can I do with children on a rainy day?",
            "It is raining and the kids are restless. Any ideas?",
        ),
        (
            "Build a blanket fort, hold a paper airplane contest or bake simple cookies together. A treasure hunt "
            "with small clues around the home also works well."
        ),
    ),
    Topic(
        "birthday wish",
        (
            "Write a short birthday wish for a friend.",
            "How can I wish a friend a happy birthday in two sentences?",
        ),
        "Happy birthday! I hope the coming year brings you good health, good company and many reasons to laugh.",
    ),
    Topic(
        "sorry message",
        (
            "How do I apologize to a friend?",
            "I hurt a friend's feelings. What should I say?",
        ),
        (
            "Say plainly what you did, that you are sorry, and what you will do differently. Then listen, and give "
            "your friend time to answer."
        ),
    ),
    Topic(
        "job interview",
        (
            "How do I prepare for a job interview?",
            "What should I do before a job interview?",
        ),
        (
            "Read about the company, think of a few examples that show your skills and prepare two questions of "
            "your own. Practice out loud once or twice so the first answer comes easily."
        ),
        then=(
            "Which question could I ask at the end?",
            (
                "You could ask what a good first half year in this role would look like. It shows interest and "
                "tells you what they expect."
            ),
        ),
    ),
    Topic(
        "resume",
        (
            "How long should a resume be?",
            "Do you have advice for a resume?",
        ),
        (
            "One page is enough for most people, and two for a long career. Put the most relevant experience first "
            "and describe results with numbers where you can."
        ),
    ),
    Topic(
        "time management",
        (
            "How can I manage my time better?",
            "I never finish my tasks. What can I do?",
        ),
        (
            "Write down everything, choose the three most important tasks for the day and start with the hardest. "
            "Leave some free time, since things usually take longer than planned."
        ),
    ),
    Topic(
        "studying",
        (
            "What is a good way to study?",
            "How can I remember what I learn?",
        ),
        (
            "Test yourself instead of only reading again, and spread the practice over several days. Explaining "
            "the topic to someone else quickly shows what you have not understood yet."
        ),
    ),
    Topic(
        "learning a language",
        (
            "How do I learn a new language?",
            "What is the best way to start learning a language?",
        ),
        (
            "Practice a little every day, learn the most common words first and speak early even if you make "
            "mistakes. Songs, simple books and a conversation partner keep it fun."
        ),
    ),
    Topic(
        "saving money",
        (
            "How can I save money each month?",
            "What is a simple way to start saving?",
        ),
        (
            "Move a fixed amount to a savings account on the day you are paid, before you spend anything. Then "
            "look at regular costs such as subscriptions and cancel what you do not use."
        ),
    ),
    Topic(
        "budget",
        (
            "What is a budget?",
            "Why should I make a budget?",
        ),
        (
            "A budget is a plan for how you will use your money in a month. It shows what comes in, what goes out "
            "and what is left for savings."
        ),
    ),
    Topic(
        "interest",
        (
            "What is interest on a loan?",
            "Why do banks charge interest?",
        ),
        (
            "Interest is the price of borrowing money, usually given as a percentage per year. It pays the lender "
            "for waiting and for the risk of not getting the money back."
        ),
    ),
    Topic(
        "inflation",
        (
            "What is inflation?",
            "Why do prices rise over time?",
        ),
        (
            "Inflation is a general rise in prices. It can happen when demand grows faster than the supply of "
            "goods or when producing them becomes more expensive."
        ),
    ),
    Topic(
        "democracy",
        (
            "What is a democracy?",
            "How does a democracy work?",
        ),
        (
            "In a democracy the people hold the power, usually by electing representatives. Free elections, equal "
            "rights and a free press are important parts of it."
        ),
    ),
    Topic(
        "constitution",
        (
            "What is a constitution?",
            "Why does a country have a constitution?",
        ),
        (
            "A constitution is the highest law of a country. It says how the government works, limits its power "
            "and protects basic rights."
        ),
    ),
    Topic(
        "printing press",
        (
            "Why was the printing press important?",
            "What changed with the printing press?",
        ),
        (
            "The printing press made it possible to copy books quickly and cheaply. New ideas could spread to many "
            "more people, and more of them learned to read."
        ),
    ),
    Topic(
        "silk road",
        (
            "What was the Silk Road?",
            "What was traded on the Silk Road?",
        ),
        (
            "The Silk Road was a network of trade routes between China and the Mediterranean. Silk, spices, glass "
            "and paper traveled along it, and so did ideas and religions."
        ),
    ),
    Topic(
        "roman roads",
        (
            "Why did the Romans build roads?",
            "What were Roman roads for?",
        ),
        (
            "Roman roads let armies, messengers and traders move quickly across the empire. They were built in "
            "layers for drainage, and some routes are still in use."
        ),
    ),
    Topic(
        "industrial revolution",
        (
            "What was the Industrial Revolution?",
            "What changed during the Industrial Revolution?",
        ),
        (
            "It was a period, beginning in Britain in the 1700s, when machines and factories replaced much of the "
            "work done by hand. Steam power was a driving force, and many people moved to cities."
        ),
    ),
    Topic(
        "vikings",
        (
            "Who were the Vikings?",
            "What are the Vikings known for?",
        ),
        (
            "The Vikings were seafarers from Scandinavia who lived about a thousand years ago. They raided and "
            "traded across Europe and even reached North America."
        ),
    ),
    Topic(
        "olympic games",
        (
            "Where did the Olympic Games begin?",
            "What is the origin of the Olympic Games?",
        ),
        (
            "The ancient games were held at Olympia in Greece, traditionally from 776 BC on. The modern Olympics "
            "began in Athens in 1896."
        ),
    ),
    Topic(
        "marie curie",
        (
            "Who was Marie Curie?",
            "What did Marie Curie discover?",
        ),
        (
            "Marie Curie was a physicist and chemist who studied radioactivity. She discovered polonium and radium "
            "with her husband Pierre and won two Nobel Prizes."
        ),
    ),
    Topic(
        "gandhi",
        (
            "Who was Mahatma Gandhi?",
            "What is Gandhi remembered for?",
        ),
        (
            "Mahatma Gandhi led India's movement for independence from Britain. He is remembered for peaceful "
            "protest, which inspired civil rights leaders around the world."
        ),
    ),
    Topic(
        "ada lovelace",
        (
            "Who was Ada Lovelace?",
            "Why is Ada Lovelace famous?",
        ),
        (
            "Ada Lovelace was an English mathematician of the 1800s. Her notes on a planned computing machine "
            "contain what many call the first published computer program."
        ),
    ),
    Topic(
        "internet",
        (
            "What is the internet?",
            "How does the internet work in simple words?",
        ),
        (
            "The internet is a worldwide network of computers. Data is cut into small packets, sent along "
            "whichever routes are available and put together again at the other end."
        ),
    ),
    Topic(
        "search engine",
        (
            "How does a search engine work?",
            "How does a search engine find pages?",
        ),
        (
            "A search engine visits web pages in advance and stores their words in a large index. When you search, "
            "it looks up your words and ranks the pages that fit best."
        ),
    ),
    Topic(
        "password",
        (
            "How do I choose a good password?",
            "What makes a password strong?",
        ),
        (
            "Use a long phrase of several unrelated words and a different password for each account. A password "
            "manager can remember them, and two-step login adds protection."
        ),
    ),
    Topic(
        "phishing",
        (
            "What is phishing?",
            "How can I spot a phishing mail?",
        ),
        (
            "Phishing is a message that pretends to come from someone you trust in order to steal data. Be careful "
            "with urgent requests and odd addresses, and do not follow their links."
        ),
    ),
    Topic(
        "backup",
        (
            "Why should I back up my files?",
            "How do I back up my data?",
        ),
        (
            "Disks fail, and devices get lost. Keep at least one copy on an external drive and another in a "
            "different place, and check now and then that you can restore it."
        ),
    ),
    Topic(
        "programming",
        (
            "What is programming?",
            "How do I start to learn programming?",
        ),
        (
            "Programming means writing exact instructions for a computer. Start with a beginner-friendly language "
            "such as Python and build something small that you would really use."
        ),
        then=(
            "What could my first project be?",
            (
                "A small quiz, a number-guessing game or a list of your expenses are all good first projects. They "
                "are short, and you can improve them step by step."
            ),
        ),
    ),
    Topic(
        "algorithm",
        (
            "What is an algorithm?",
            "Can you explain the word algorithm?",
        ),
        (
            "An algorithm is a list of clear steps that solves a problem. A recipe is a good comparison, since "
            "following the same steps should give the same result."
        ),
    ),
    Topic(
        "machine learning",
        (
            "What is machine learning?",
            "How does a computer learn from data?",
        ),
        (
            "Machine learning lets a program find patterns in examples instead of following rules written by hand. "
            "The more fitting examples it sees, the better it usually gets at new cases."
        ),
    ),
    Topic(
        "microwave",
        (
            "How does a microwave oven heat food?",
            "Why does a microwave warm my soup?",
        ),
        (
            "A microwave oven sends out waves that make the water molecules in food move back and forth. That "
            "motion turns into heat and warms the food."
        ),
    ),
    Topic(
        "refrigerator",
        (
            "How does a refrigerator work?",
            "How does a fridge keep food cold?",
        ),
        (
            "A fridge pumps a fluid through pipes. The fluid takes up heat inside as it evaporates and gives it "
            "off at the back as it is compressed and condenses."
        ),
    ),
    Topic(
        "bicycle tires",
        (
            "How often should I pump up my bicycle tires?",
            "My bicycle tires feel soft. What should I do?",
        ),
        (
            "Check the pressure about every two weeks and pump the tires to the value printed on their side. If "
            "one goes soft again within a day, look for a puncture."
        ),
    ),
    Topic(
        "houseplants",
        (
            "How often should I water houseplants?",
            "My houseplant has yellow leaves. What is wrong?",
        ),
        (
            "Yellow leaves often come from too much water. Let the top of the soil dry before you water again, and "
            "make sure that the pot can drain."
        ),
    ),
    Topic(
        "growing tomatoes",
        (
            "How do I grow tomatoes?",
            "What do tomato plants need?",
        ),
        (
            "Tomatoes need sun, warmth and regular water at the roots. Tie the stems to a stake and remove the "
            "small side shoots so the plant puts its energy into fruit."
        ),
    ),
    Topic(
        "boiling eggs",
        (
            "How long should I boil an egg?",
            "How do I cook a hard-boiled egg?",
        ),
        (
            "Put the egg in boiling water for about six minutes if you like it soft, and about ten if you like it "
            "hard. Cool it in cold water so it peels easily."
        ),
    ),
    Topic(
        "cooking pasta",
        (
            "How do I cook pasta?",
            "What is the right way to boil pasta?",
        ),
        (
            "Bring plenty of salted water to a boil, add the pasta and stir once or twice. Taste it a minute "
            "before the time on the package and drain it while it is still slightly firm."
        ),
    ),
    Topic(
        "cooking rice",
        (
            "How do I cook rice?",
            "How much water do I need for rice?",
        ),
        (
            "Rinse the rice and use about two cups of water for one cup of white rice. Bring it to a boil, cover "
            "it, simmer for about fifteen minutes and let it rest for five."
        ),
    ),
    Topic(
        "pancakes",
        (
            "How do I make pancakes?",
            "What goes into pancake batter?",
        ),
        (
            "Whisk one cup of flour, one cup of milk, one egg and a pinch of salt. Fry small ladles of batter in a "
            "little butter until both sides are golden."
        ),
    ),
    Topic(
        "salad dressing",
        (
            "How do I make a simple salad dressing?",
            "What is an easy dressing for salad?",
        ),
        (
            "Mix three parts of oil with one part of vinegar or lemon juice. Add salt, pepper and a little "
            "mustard, and shake it well."
        ),
    ),
    Topic(
        "storing bread",
        (
            "How do I keep bread fresh?",
            "Where should I store bread?",
        ),
        (
            "Keep bread in a box or a paper bag at room temperature for two or three days. For longer storage, "
            "slice it and freeze it."
        ),
    ),
    Topic(
        "tea",
        (
            "How do I make a good cup of tea?",
            "How long should tea steep?",
        ),
        (
            "Pour hot water over the tea and wait about three minutes for green and four for black tea. Green tea "
            "tastes better with water that is not quite boiling."
        ),
    ),
    Topic(
        "coffee beans",
        (
            "Where does coffee come from?",
            "What are coffee beans?",
        ),
        (
            "Coffee beans are the seeds of a small red fruit that grows in warm countries such as Brazil and "
            "Ethiopia. They are dried and roasted before they are ground."
        ),
    ),
    Topic(
        "chocolate",
        (
            "How is chocolate made?",
            "What is chocolate made from?",
        ),
        (
            "Chocolate is made from cacao seeds, which are fermented, dried, roasted and ground. Sugar and often "
            "milk are added to make it sweet and smooth."
        ),
    ),
    Topic(
        "removing a stain",
        (
            "How do I get a wine stain out of a shirt?",
            "I spilled red wine on my shirt. What now?",
        ),
        (
            "Dab the stain with a cloth, do not rub, and rinse it with cold water. Then soak it with soap or salt "
            "before you wash it as usual."
        ),
    ),
    Topic(
        "packing",
        (
            "How should I pack for a short trip?",
            "What should I take on a weekend trip?",
        ),
        (
            "Pack one outfit per day, one warm layer, your medicine and a charger. Rolling the clothes saves "
            "space, and a list helps you forget nothing."
        ),
    ),
    Topic(
        "first camping trip",
        (
            "What do I need for camping?",
            "I am going camping for the first time. What should I bring?",
        ),
        (
            "Bring a tent, a warm sleeping bag, a mat, a light, water and simple food. Try the tent at home once, "
            "so that setting it up in the dark will not surprise you."
        ),
    ),
    Topic(
        "maps",
        (
            "How do I read a map?",
            "What is the scale of a map?",
        ),
        (
            "The scale tells how a distance on the map relates to the real one, so one centimeter may stand for "
            "one kilometer. Turn the map to north and compare it with what you see."
        ),
    ),
    Topic(
        "compass",
        (
            "How does a compass work?",
            "Why does a compass point north?",
        ),
        (
            "A compass needle is a small magnet that can turn freely. It lines up with Earth's magnetic field, so "
            "one end points roughly north."
        ),
    ),
    Topic(
        "time zones",
        (
            "Why are there time zones?",
            "What is a time zone?",
        ),
        (
            "Earth turns, so noon comes at different moments in different places. Time zones group regions that "
            "share a clock, which keeps their midday near the middle of the day."
        ),
    ),
    Topic(
        "leap years",
        (
            "Why do we have leap years?",
            "What is a leap year for?",
        ),
        (
            "Earth needs about 365 and a quarter days to go around the Sun. An extra day every four years, with a "
            "few exceptions, keeps the calendar in step with the seasons."
        ),
    ),
    Topic(
        "equator",
        (
            "What is the equator?",
            "Why is it hot near the equator?",
        ),
        (
            "The equator is an imaginary line around the middle of Earth. Sunlight falls there almost straight "
            "down all year, so the ground receives a lot of heat."
        ),
    ),
    Topic(
        "amazon rainforest",
        (
            "Why is the Amazon rainforest important?",
            "What is special about the Amazon rainforest?",
        ),
        (
            "The Amazon is the largest rainforest on Earth and home to a great many species. Its trees store "
            "carbon and send moisture into the air that later falls as rain."
        ),
    ),
    Topic(
        "deserts",
        (
            "What is a desert?",
            "Are all deserts hot?",
        ),
        (
            "A desert is a place with very little rain or snow. Some are hot, like the Sahara, but others, like "
            "the Gobi, can be bitterly cold."
        ),
    ),
    Topic(
        "fractions",
        (
            "What is a fraction?",
            "Can you explain fractions to a child?",
        ),
        (
            "A fraction tells how many equal parts of a whole you have. If a pizza is cut into four equal slices "
            "and you eat one, you ate one fourth."
        ),
    ),
    Topic(
        "percent",
        (
            "What does percent mean?",
            "Can you explain percentages?",
        ),
        (
            "Percent means out of a hundred. Twenty percent of a class is therefore twenty out of every hundred, "
            "or one in five."
        ),
    ),
    Topic(
        "average",
        (
            "What is an average?",
            "How do I work out an average?",
        ),
        (
            "Add all the values and divide by how many there are. The average of 2, 4 and 6 is 4, because the sum "
            "is 12 and there are three values."
        ),
    ),
    Topic(
        "prime numbers",
        (
            "What is a prime number?",
            "Can you explain prime numbers?",
        ),
        (
            "A prime number is a whole number greater than 1 that can be divided only by 1 and itself. Seven is "
            "prime, while eight is not, because it is two times four."
        ),
    ),
    Topic(
        "pi",
        (
            "What is pi?",
            "What does the number pi tell us?",
        ),
        (
            "Pi is the distance around a circle divided by the distance across it. It is about 3.14, and its "
            "decimals go on forever without repeating."
        ),
    ),
    Topic(
        "metaphor",
        (
            "What is a metaphor?",
            "Can you give an example of a metaphor?",
        ),
        (
            "A metaphor describes one thing as if it were another, for example by calling time a thief. It makes "
            "an idea vivid without the word like."
        ),
    ),
    Topic(
        "noun and verb",
        (
            "What is the difference between a noun and a verb?",
            "How do I tell a noun from a verb?",
        ),
        (
            "A noun names a person, a place or a thing, such as river. A verb tells what someone does or what "
            "happens, such as flow."
        ),
    ),
    Topic(
        "comma",
        (
            "When do I use a comma?",
            "What is a comma for?",
        ),
        (
            "Commas separate the items of a list and the parts of a longer sentence. If you would pause briefly "
            "while reading aloud, a comma may belong there."
        ),
    ),
    Topic(
        "its and it's",
        (
            "What is the difference between its and it's?",
            "When do I write it's with an apostrophe?",
        ),
        (
            "Its shows that something belongs to it, as in its color. It's is short for it is or it has, so try "
            "reading it that way to see which one fits."
        ),
    ),
    Topic(
        "haiku",
        (
            "What is a haiku?",
            "Can you explain what a haiku is?",
        ),
        (
            "A haiku is a short Japanese poem, often written in English as three lines of five, seven and five "
            "syllables. It usually captures one moment, often in nature."
        ),
    ),
    Topic(
        "fable",
        (
            "What is a fable?",
            "What makes a story a fable?",
        ),
        (
            "A fable is a short story, often with animals that talk, that teaches a lesson. The race of the "
            "tortoise and the hare is a well-known one."
        ),
    ),
    Topic(
        "jazz",
        (
            "What is jazz?",
            "Where did jazz come from?",
        ),
        (
            "Jazz is a style of music that grew up in New Orleans around 1900, with roots in blues and ragtime. "
            "Swing rhythms and improvisation are typical of it."
        ),
    ),
    Topic(
        "orchestra",
        (
            "What instruments are in an orchestra?",
            "Which groups of instruments make up an orchestra?",
        ),
        (
            "An orchestra has four main groups, which are strings, woodwinds, brass and percussion. The strings "
            "are usually the largest, and a conductor leads them all."
        ),
    ),
    Topic(
        "chess",
        (
            "How do you win a game of chess?",
            "What is checkmate?",
        ),
        (
            "You win by checkmate, which means that the enemy king is attacked and cannot escape. If a player has "
            "no legal move but is not in check, the game is a draw."
        ),
    ),
    Topic(
        "marathon",
        (
            "How long is a marathon?",
            "Why is a marathon so long?",
        ),
        (
            "A marathon is 42.195 kilometers, or a little over 26 miles. It recalls the legend of a Greek "
            "messenger who ran from Marathon to Athens."
        ),
    ),
    Topic(
        "photography",
        (
            "How can I take better photos?",
            "Do you have a simple tip for photos?",
        ),
        (
            "Look at the light first and keep the Sun beside or behind you. Then move closer, put the subject a "
            "little off center and hold the camera still."
        ),
    ),
    Topic(
        "drawing",
        (
            "How do I get better at drawing?",
            "I want to learn to draw. Where do I start?",
        ),
        (
            "Draw a little every day from real things, and begin with simple shapes such as boxes and cylinders. "
            "Look at the object more than at the paper."
        ),
    ),
    Topic(
        "reading habit",
        (
            "How can I read more books?",
            "I want to read more. Any tips?",
        ),
        (
            "Keep a book where you usually reach for your phone and read ten minutes before bed. Stop reading "
            "books that you do not enjoy."
        ),
        then=(
            "What kind of book is good to begin with?",
            (
                "Short stories or a brief mystery novel work well. You reach an ending soon, and that makes you "
                "want to go on."
            ),
        ),
    ),
    Topic(
        "new neighbor",
        (
            "How do I get to know my neighbors?",
            "I just moved here. How can I meet my neighbors?",
        ),
        (
            "Say hello when you meet, introduce yourself and ask for a small tip about the area. A plate of "
            "cookies at the door is an old trick that still works."
        ),
    ),
    Topic(
        "adopting a dog",
        (
            "I want to adopt a dog. What should I think about?",
            "What should I know before I get a dog?",
        ),
        (
            "A dog needs time, walks, training and money for food and the vet for ten years or more. Choose one "
            "that fits your home and how active you are."
        ),
        then=(
            "Are older dogs a good choice?",
            (
                "Yes, they often are. Older dogs tend to be calmer and may already know the basics, and shelters "
                "can tell you about their character."
            ),
        ),
    ),
    Topic(
        "cats purring",
        (
            "Why do cats purr?",
            "What does it mean when a cat purrs?",
        ),
        (
            "Cats often purr when they feel safe and content, for example on a warm lap. They may also purr when "
            "they are hurt, perhaps to calm themselves."
        ),
    ),
    Topic(
        "goldfish",
        (
            "How do I take care of goldfish?",
            "What does a goldfish need?",
        ),
        (
            "Goldfish need more room than a small bowl offers. Give them a filtered tank, feed them little, and "
            "replace part of the water every week."
        ),
    ),
    Topic(
        "smoke alarm",
        (
            "Where should I put a smoke alarm?",
            "Do I need a smoke alarm?",
        ),
        (
            "Put one in every bedroom, in the hallway and on each floor, in the middle of the ceiling. Test it "
            "once a month and change the battery when it chirps."
        ),
    ),
    Topic(
        "small cut",
        (
            "What should I do about a small cut?",
            "I cut my finger a little. What now?",
        ),
        (
            "Rinse the cut under clean water, press a clean cloth on it until it stops bleeding and cover it. See "
            "a doctor if it is deep, dirty or will not stop bleeding."
        ),
    ),
    Topic(
        "bicycle helmet",
        (
            "Should I wear a helmet on a bicycle?",
            "Why do people wear bicycle helmets?",
        ),
        (
            "Yes, it is a good idea. A helmet takes up part of the shock in a fall and clearly lowers the risk of "
            "a serious head injury."
        ),
    ),
    Topic(
        "power cut",
        (
            "What should I have at home for a power cut?",
            "How can I prepare for a power cut?",
        ),
        (
            "Keep a flashlight, spare batteries, drinking water, some food that needs no cooking and a charged "
            "power bank. Leave the fridge closed as much as you can."
        ),
    ),
)


TALK_EXAM: tuple[Topic, ...] = (
    Topic(
        "snow",
        ("How does snow form?",),
        (
            "Snow forms when water vapor in a cold cloud freezes onto tiny particles and grows into crystals. The "
            "crystals join into flakes and fall when they become heavy enough."
        ),
    ),
    Topic(
        "wind",
        ("What causes wind?",),
        (
            "Wind is air that flows from areas of high pressure to areas of low pressure. The differences arise "
            "because the Sun heats Earth unevenly."
        ),
    ),
    Topic(
        "fog",
        ("What is fog?",),
        (
            "Fog is a cloud that touches the ground. It forms when moist air cools near the surface and its water "
            "vapor turns into tiny droplets."
        ),
    ),
    Topic(
        "hurricane",
        ("How does a hurricane form?",),
        (
            "A hurricane forms over warm ocean water, which feeds the air with heat and moisture. As the moist air "
            "rises, more air rushes in and the storm begins to spin."
        ),
    ),
    Topic(
        "glacier",
        ("What is a glacier?",),
        (
            "A glacier is a thick mass of ice that forms where more snow falls than melts over many years. It "
            "moves slowly downhill under its own weight."
        ),
    ),
    Topic(
        "salty sea",
        ("Why is the sea salty?",),
        (
            "Rivers carry dissolved minerals from rocks into the sea. Water evaporates and the salt stays behind, "
            "so it has built up over a very long time."
        ),
    ),
    Topic(
        "evaporation",
        ("Why do wet clothes dry on a line?",),
        (
            "The water in the cloth slowly turns into vapor and moves into the air. Sun and wind speed this up "
            "because they add heat and carry the damp air away."
        ),
    ),
    Topic(
        "echo",
        ("What is an echo?",),
        (
            "An echo is a sound that comes back to you after it bounces off a hard surface such as a cliff. The "
            "delay tells you how far away the surface is."
        ),
    ),
    Topic(
        "friction",
        ("What is friction?",),
        (
            "Friction is a force that resists motion when two surfaces rub against each other. It lets us walk "
            "without slipping, and it also turns motion into heat."
        ),
    ),
    Topic(
        "electricity",
        ("What is an electric current?",),
        (
            "An electric current is a flow of electric charge, usually electrons moving through a metal wire. A "
            "battery or a generator provides the push that keeps it going."
        ),
    ),
    Topic(
        "battery",
        ("How does a battery work?",),
        (
            "A battery stores chemical energy. When it is connected, a reaction inside moves electrons from one "
            "end through the circuit to the other, and this current powers the device."
        ),
    ),
    Topic(
        "lever",
        ("How does a lever help us lift things?",),
        (
            "A lever turns around a fixed point. If you push far from that point, a small force over a long "
            "distance can lift a heavy load over a short distance."
        ),
    ),
    Topic(
        "microscope",
        ("What is a microscope used for?",),
        (
            "A microscope uses lenses to make very small things look larger. With it we can see cells, bacteria "
            "and the fine structure of materials."
        ),
    ),
    Topic(
        "telescope",
        ("What does a telescope do?",),
        (
            "A telescope gathers light from distant objects with a lens or a mirror. This makes faint stars and "
            "planets look brighter and closer."
        ),
    ),
    Topic(
        "comet",
        ("What is a comet?",),
        (
            "A comet is a small body of ice and dust that orbits the Sun. When it comes near the Sun, it warms up "
            "and releases gas and dust that form a tail."
        ),
    ),
    Topic(
        "milky way",
        ("What is the Milky Way?",),
        (
            "The Milky Way is the galaxy in which we live. It contains more than a hundred billion stars, and from "
            "Earth we see it as a pale band across the night sky."
        ),
    ),
    Topic(
        "ants",
        ("How do ants find their way to food?",),
        (
            "Ants leave a trail of scent when they find food. Other ants follow the trail and make it stronger, so "
            "a line forms between the nest and the food."
        ),
    ),
    Topic(
        "spider webs",
        ("Why do spiders spin webs?",),
        (
            "Many spiders spin webs of silk to catch insects. When an insect gets stuck, the spider feels the "
            "threads shake and comes to take its meal."
        ),
    ),
    Topic(
        "owls",
        ("How do owls hunt at night?",),
        (
            "Owls have large eyes that work well in dim light and very sharp hearing. Soft feathers let them fly "
            "almost without a sound."
        ),
    ),
    Topic(
        "frogs",
        ("How does a tadpole become a frog?",),
        (
            "A tadpole hatches from an egg and lives in water with gills and a tail. Over weeks it grows legs and "
            "lungs, loses its tail and moves onto land."
        ),
    ),
    Topic(
        "cactus",
        ("How does a cactus survive in dry places?",),
        (
            "A cactus stores water in its thick stem and has spines instead of leaves, so it loses little "
            "moisture. Its wide roots take up rain quickly."
        ),
    ),
    Topic(
        "mushrooms",
        ("Are mushrooms plants?",),
        (
            "No, mushrooms are fungi. They do not make food from sunlight, and many of them feed on dead wood or "
            "leaves instead."
        ),
    ),
    Topic(
        "food chain",
        ("What is a food chain?",),
        (
            "A food chain shows who eats whom in nature. For example, grass is eaten by a rabbit, and the rabbit "
            "is eaten by a fox."
        ),
    ),
    Topic(
        "endangered species",
        ("Why do some animals become endangered?",),
        (
            "Animals become endangered when their numbers fall too low. Common causes are the loss of their "
            "habitat, hunting, pollution and a changing climate."
        ),
    ),
    Topic(
        "skin",
        ("What does our skin do?",),
        (
            "Skin protects the body from germs and injuries and keeps water in. It also helps control temperature "
            "and lets us feel touch, heat and pain."
        ),
    ),
    Topic(
        "muscles",
        ("Why do my muscles hurt after sport?",),
        (
            "Hard or unusual exercise causes tiny damage in the muscle fibers. The soreness comes as the body "
            "repairs them, and it usually fades within a few days."
        ),
    ),
    Topic(
        "teeth",
        ("How often should I brush my teeth?",),
        (
            "Brush twice a day for about two minutes with a fluoride toothpaste. Clean between the teeth once a "
            "day as well and see a dentist regularly."
        ),
    ),
    Topic(
        "common cold",
        ("What helps against a common cold?",),
        (
            "There is no quick cure, but rest, warm drinks and time help. See a doctor if you get a high fever, "
            "have trouble breathing or do not improve after about ten days."
        ),
    ),
    Topic(
        "yawning",
        ("Why do we yawn?",),
        (
            "Scientists are not completely sure. Yawning is linked to being tired or bored, may help keep the "
            "brain alert, and is surprisingly contagious."
        ),
    ),
    Topic(
        "dreams",
        ("Why do we dream?",),
        (
            "Nobody knows for certain. Many researchers think that dreams are connected with how the brain sorts "
            "memories and feelings during sleep."
        ),
    ),
    Topic(
        "healthy snack",
        ("What is a healthy snack for the office?",),
        (
            "Nuts, an apple or carrot sticks with hummus are good choices. They are easy to carry and keep you "
            "full longer than sweets."
        ),
    ),
    Topic(
        "public speaking",
        ("I am nervous about giving a speech. Any tips?",),
        (
            "Practice it aloud a few times and learn the first two sentences by heart. Breathe slowly before you "
            "start, and remember that the audience wants you to do well."
        ),
        then=(
            "What if I forget what to say?",
            (
                "Pause, take a breath and look at your notes. A few seconds of silence feel long to you but hardly "
                "anyone else will notice."
            ),
        ),
    ),
    Topic(
        "making friends",
        ("How can I make friends in a new city?",),
        (
            "Join something that meets every week, such as a sports club or a language class. Seeing the same "
            "people again and again makes it easier to become friends."
        ),
    ),
    Topic(
        "good morning",
        ("Good morning!",),
        "Good morning! I hope your day starts well. What can I do for you?",
    ),
    Topic(
        "feeling sad",
        ("I feel a bit sad today.",),
        (
            "I am sorry to hear that. Would you like to tell me what happened? A short walk or a call with someone "
            "you like may help as well."
        ),
    ),
    Topic(
        "what can you do",
        ("What can you help me with?",),
        (
            "I can answer questions, explain ideas, help with writing and think through plans with you. I can be "
            "wrong, so please check important facts."
        ),
    ),
    Topic(
        "riddle",
        ("Tell me a riddle.",),
        "What has hands but cannot clap?",
        then=(
            "I give up. What is it?",
            "A clock! It has hands that show the time, but they cannot clap.",
        ),
    ),
    Topic(
        "gift for a parent",
        ("What is a nice gift for my mother?",),
        (
            "Think of something that fits her day, such as a plant for the window, a framed photo or a meal at her "
            "favorite place. A handwritten note makes it personal."
        ),
    ),
    Topic(
        "thank you note",
        ("Help me write a short thank you note to a teacher.",),
        "Thank you for your patience and your clear lessons this year. You made me curious, and I will remember that.",
    ),
    Topic(
        "saying no",
        ("How can I say no politely?",),
        (
            "Thank the person for asking, say clearly that you cannot do it and keep the reason short. If you "
            "like, offer another time or another person who could help."
        ),
    ),
    Topic(
        "being late",
        ("I am always late. How can I change that?",),
        (
            "Plan to arrive ten minutes early and count back from there, with time for getting ready. Put out what "
            "you need the evening before."
        ),
    ),
    Topic(
        "tidy desk",
        ("How do I keep my desk tidy?",),
        (
            "Give every item a fixed place and clear the desk for five minutes at the end of the day. Keep only "
            "what you use daily within reach."
        ),
    ),
    Topic(
        "moving house",
        ("What should I do first when I move house?",),
        (
            "Make a list, book the movers early and begin packing the things that you rarely use. Label each box "
            "with its room and what is inside."
        ),
    ),
    Topic(
        "houseplant for dark rooms",
        ("Which houseplant grows well in a dark room?",),
        (
            "A snake plant or a ZZ plant can live with little light. Water them rarely, since they suffer more "
            "from wet roots than from dryness."
        ),
    ),
    Topic(
        "soup",
        ("How do I make a simple vegetable soup?",),
        (
            "Fry an onion in a little oil, add chopped vegetables and cover them with broth. Simmer until they are "
            "soft, then add salt, pepper and herbs."
        ),
        then=(
            "Can I freeze the soup?",
            (
                "Yes. Let it cool, fill it into containers with a little room at the top and freeze it for up to "
                "about three months."
            ),
        ),
    ),
    Topic(
        "ripe avocado",
        ("How do I know that an avocado is ripe?",),
        (
            "Press it gently in your palm. A ripe avocado gives way a little, while a hard one needs a few more "
            "days at room temperature."
        ),
    ),
    Topic(
        "cutting onions",
        ("How can I cut onions without crying?",),
        (
            "Cool the onion in the fridge for half an hour and use a very sharp knife. Both keep the irritating "
            "vapor from reaching your eyes."
        ),
    ),
    Topic(
        "leftover rice",
        ("What can I do with leftover rice?",),
        (
            "Fried rice is an easy choice. Cook it in a hot pan with an egg and some vegetables, and put leftovers "
            "in the fridge soon after the first meal."
        ),
    ),
    Topic(
        "honey",
        ("Why does honey not go bad?",),
        (
            "Honey contains so little water and so much sugar that germs can hardly grow in it. If it gets hard, a "
            "warm water bath makes it liquid again."
        ),
    ),
    Topic(
        "cheese making",
        ("How is cheese made?",),
        (
            "Milk is thickened with bacteria and an enzyme called rennet until curds form. The curds are drained, "
            "pressed and salted, and many cheeses then ripen for weeks or months."
        ),
    ),
    Topic(
        "paper",
        ("How is paper made?",),
        (
            "Wood is broken down into fibers and mixed with water to make pulp. The pulp is spread on a screen, "
            "pressed and dried into thin sheets."
        ),
    ),
    Topic(
        "glass",
        ("What is glass made of?",),
        (
            "Glass is made mainly from sand, which is melted at a very high temperature together with soda and "
            "lime. It is shaped while hot and hardens as it cools."
        ),
    ),
    Topic(
        "great wall",
        ("Why was the Great Wall of China built?",),
        (
            "It was built over many centuries to protect the northern border from raids. It also helped to control "
            "trade and travel and to pass on signals."
        ),
    ),
    Topic(
        "renaissance",
        ("What was the Renaissance?",),
        (
            "The Renaissance was a period of European history that began in Italy in the 1300s. Art, science and "
            "learning flourished, inspired by ancient Greece and Rome."
        ),
    ),
    Topic(
        "pyramids",
        ("Why did the Egyptians build pyramids?",),
        (
            "The pyramids were tombs for kings. The Egyptians believed in a life after death, so they buried "
            "rulers with things that they might need there."
        ),
    ),
    Topic(
        "nelson mandela",
        ("Who was Nelson Mandela?",),
        (
            "Nelson Mandela fought against apartheid in South Africa and spent 27 years in prison. In 1994 he "
            "became the country's first Black president."
        ),
    ),
    Topic(
        "united nations",
        ("What is the United Nations?",),
        (
            "The United Nations is an organization of nearly all countries, founded in 1945. It works for peace, "
            "human rights and help in times of crisis."
        ),
    ),
    Topic(
        "taxes",
        ("Why do we pay taxes?",),
        (
            "Taxes pay for things that people share, such as schools, roads, hospitals and the police. Governments "
            "decide how much is collected and how it is spent."
        ),
    ),
    Topic(
        "supply and demand",
        ("What is supply and demand?",),
        (
            "Prices tend to rise when many people want something that is scarce, and to fall when there is plenty "
            "of it. Buyers and sellers meet somewhere in between."
        ),
    ),
    Topic(
        "cloud storage",
        ("What is cloud storage?",),
        (
            "Cloud storage keeps your files on computers of a provider that you reach over the internet. You can "
            "open the files from any device once you log in."
        ),
    ),
    Topic(
        "spam",
        ("What is spam?",),
        (
            "Spam is unwanted mail sent to many people at once, often as advertising or fraud. Filters catch most "
            "of it, and it is best not to answer."
        ),
    ),
    Topic(
        "video call",
        ("How can I look better in a video call?",),
        (
            "Sit facing a window or a lamp and put the camera at eye level. A quiet room and a simple background "
            "help as well."
        ),
    ),
    Topic(
        "area",
        ("How do I find the area of a rectangle?",),
        (
            "Multiply the length by the width. A room that is four meters long and three meters wide has an area "
            "of twelve square meters."
        ),
    ),
    Topic(
        "even and odd",
        ("What is the difference between even and odd numbers?",),
        (
            "An even number can be divided by two without a remainder, such as eight. An odd number leaves a "
            "remainder of one, such as nine."
        ),
    ),
    Topic(
        "roman numerals",
        ("How do Roman numerals work?",),
        (
            "Letters stand for values, such as I for one, V for five and X for ten. They are added from left to "
            "right, but a smaller letter before a larger one is subtracted."
        ),
    ),
    Topic(
        "synonym",
        ("What is a synonym?",),
        "A synonym is a word with the same or nearly the same meaning as another one. Big and large are synonyms.",
    ),
    Topic(
        "proverb",
        ("What does the early bird catches the worm mean?",),
        (
            "It means that people who start early or act quickly have the best chance of success. It is often said "
            "to encourage someone to get going."
        ),
    ),
    Topic(
        "poetry",
        ("What makes a text a poem?",),
        (
            "A poem uses language with special care for sound, rhythm and images. It is usually written in lines, "
            "and it does not have to rhyme."
        ),
    ),
    Topic(
        "impressionism",
        ("What is Impressionism?",),
        (
            "Impressionism is a style of painting that began in France in the 1870s. Painters such as Monet tried "
            "to capture light and a fleeting moment with quick strokes of color."
        ),
    ),
    Topic(
        "guitar",
        ("Is the guitar hard to learn?",),
        (
            "The first weeks are a little hard because your fingers get sore. With a few simple chords and daily "
            "practice you can play many songs within some months."
        ),
    ),
    Topic(
        "swimming",
        ("How do I get over my fear of deep water?",),
        (
            "Begin in shallow water with a patient teacher and practice floating and breathing out under water. Go "
            "deeper in small steps, and only when you feel calm."
        ),
    ),
    Topic(
        "puppy training",
        ("How do I teach a puppy to sit?",),
        (
            "Hold a treat above its nose and move it slowly back until the puppy sits down. Say the word sit, give "
            "the treat at once and repeat in short sessions."
        ),
        then=(
            "How long should a session be?",
            "About five minutes is plenty for a puppy. Several short sessions a day work better than one long one.",
        ),
    ),
)


FACTS_TRAIN: tuple[Fact, ...] = (
    Fact(
        "capital of France",
        ("What is the capital of France?", "Which city is the capital of France?"),
        "Paris",
        ("Lyon", "Marseille", "Nice"),
    ),
    Fact(
        "capital of Italy",
        ("What is the capital of Italy?", "Which city is the Italian capital?"),
        "Rome",
        ("Milan", "Naples", "Turin"),
    ),
    Fact(
        "capital of Spain",
        ("What is the capital of Spain?", "Which city is the seat of Spain's government?"),
        "Madrid",
        ("Barcelona", "Seville", "Valencia"),
    ),
    Fact(
        "capital of China",
        ("What is the capital of China?", "Which Chinese city is the capital?"),
        "Beijing",
        ("Shanghai", "Hong Kong", "Guangzhou"),
    ),
    Fact(
        "capital of Kenya",
        ("What is the capital of Kenya?", "Name the Kenyan capital."),
        "Nairobi",
        ("Mombasa", "Kampala", "Kisumu"),
    ),
    Fact(
        "capital of Argentina",
        ("What is the capital of Argentina?", "Which city is Argentina's capital?"),
        "Buenos Aires",
        ("Santiago", "Córdoba", "Montevideo"),
    ),
    Fact(
        "capital of Turkey",
        ("What is the capital of Turkey?", "Which Turkish city is the capital?"),
        "Ankara",
        ("Istanbul", "Izmir", "Antalya"),
    ),
    Fact(
        "capital of Norway",
        ("What is the capital of Norway?", "Name Norway's capital city."),
        "Oslo",
        ("Bergen", "Stockholm", "Copenhagen"),
    ),
    Fact(
        "largest planet",
        ("Which planet is the largest in our solar system?", "Name the biggest planet that orbits the Sun."),
        "Jupiter",
        ("Saturn", "Earth", "Neptune"),
    ),
    Fact(
        "planet nearest the sun",
        ("Which planet is closest to the Sun?", "Name the planet with the smallest orbit."),
        "Mercury",
        ("Venus", "Mars", "Earth"),
    ),
    Fact(
        "planet with bright rings",
        ("Which planet is famous for its bright rings?", "Around which planet are the rings easiest to see?"),
        "Saturn",
        ("Mars", "Mercury", "Venus"),
    ),
    Fact(
        "freezing point",
        (
            "At what temperature in Celsius does water freeze at sea level?",
            "What is the freezing point of water in degrees Celsius?",
        ),
        "0 degrees",
        ("10 degrees", "32 degrees", "100 degrees"),
    ),
    Fact(
        "symbol of oxygen",
        ("What is the chemical symbol of oxygen?", "Which letter stands for oxygen in chemistry?"),
        "O",
        ("Ox", "N", "C"),
    ),
    Fact(
        "symbol of iron",
        ("What is the chemical symbol of iron?", "Which two letters stand for iron in the periodic table?"),
        "Fe",
        ("Ir", "In", "Fr"),
    ),
    Fact(
        "lightest element",
        ("Which chemical element is the lightest?", "Name the element with atomic number one."),
        "Hydrogen",
        ("Helium", "Carbon", "Oxygen"),
    ),
    Fact(
        "formula of water",
        ("What is the chemical formula of water?", "How do chemists write water as a formula?"),
        "H2O",
        ("CO2", "O2", "NaCl"),
    ),
    Fact(
        "legs of a spider",
        ("How many legs does a spider have?", "What is the number of legs on a spider?"),
        "Eight",
        ("Six", "Four", "Ten"),
    ),
    Fact(
        "largest animal",
        ("What is the largest animal on Earth?", "Which animal is bigger than any other?"),
        "The blue whale",
        ("The elephant", "The giraffe", "The polar bear"),
    ),
    Fact(
        "fastest land animal",
        ("Which land animal runs the fastest?", "Name the fastest animal on land."),
        "The cheetah",
        ("The horse", "The lion", "The greyhound"),
    ),
    Fact(
        "animal with black and white stripes",
        ("Which African animal has black and white stripes?", "Name the striped relative of the horse."),
        "The zebra",
        ("The giraffe", "The hyena", "The antelope"),
    ),
    Fact(
        "young dog",
        ("What is a young dog called?", "Give the word for a baby dog."),
        "A puppy",
        ("A kitten", "A cub", "A calf"),
    ),
    Fact(
        "young cow",
        ("What is a young cow called?", "Give the word for a baby cow."),
        "A calf",
        ("A lamb", "A foal", "A kid"),
    ),
    Fact(
        "what bees make",
        ("What sweet food do bees make?", "Which food do people take from beehives?"),
        "Honey",
        ("Butter", "Sugar", "Syrup"),
    ),
    Fact(
        "what silk comes from",
        ("Which animal makes the thread for silk?", "From which creature does silk come?"),
        "The silkworm",
        ("The spider", "The sheep", "The goat"),
    ),
    Fact(
        "home of kangaroos",
        ("In which country do kangaroos live in the wild?", "Which country is the home of the kangaroo?"),
        "Australia",
        ("India", "Brazil", "South Africa"),
    ),
    Fact(
        "home of wild giant pandas",
        ("In which country do giant pandas live in the wild?", "Which country is the home of the giant panda?"),
        "China",
        ("Japan", "Nepal", "Thailand"),
    ),
    Fact(
        "author of Don Quixote",
        ("Who wrote Don Quixote?", "Which writer is the author of Don Quixote?"),
        "Miguel de Cervantes",
        ("Dante Alighieri", "Pablo Neruda", "Voltaire"),
    ),
    Fact(
        "author of Oliver Twist",
        ("Who wrote Oliver Twist?", "Which English novelist created Oliver Twist?"),
        "Charles Dickens",
        ("Thomas Hardy", "Oscar Wilde", "Rudyard Kipling"),
    ),
    Fact(
        "author of Tom Sawyer",
        ("Who wrote The Adventures of Tom Sawyer?", "Which American author invented Tom Sawyer?"),
        "Mark Twain",
        ("Ernest Hemingway", "Jack London", "Herman Melville"),
    ),
    Fact(
        "painter of the Mona Lisa",
        ("Who painted the Mona Lisa?", "Which artist made the Mona Lisa?"),
        "Leonardo da Vinci",
        ("Michelangelo", "Rembrandt", "Raphael"),
    ),
    Fact(
        "composer of the Moonlight Sonata",
        ("Who composed the Moonlight Sonata?", "Which composer wrote the Moonlight Sonata?"),
        "Ludwig van Beethoven",
        ("Johann Sebastian Bach", "Antonio Vivaldi", "Claude Debussy"),
    ),
    Fact(
        "theory of relativity",
        ("Which scientist developed the theory of relativity?", "Who is known for the theory of relativity?"),
        "Albert Einstein",
        ("Isaac Newton", "Niels Bohr", "Galileo Galilei"),
    ),
    Fact(
        "first on the moon",
        ("Who was the first person to walk on the Moon?", "Which astronaut stepped on the Moon first?"),
        "Neil Armstrong",
        ("Yuri Gagarin", "Buzz Aldrin", "John Glenn"),
    ),
    Fact(
        "first president of the United States",
        ("Who was the first president of the United States?", "Name the first American president."),
        "George Washington",
        ("Abraham Lincoln", "Thomas Jefferson", "Benjamin Franklin"),
    ),
    Fact(
        "end of the second world war",
        ("In which year did the Second World War end?", "What year marks the end of World War Two?"),
        "1945",
        ("1918", "1939", "1950"),
    ),
    Fact(
        "city of the Eiffel Tower",
        ("In which city is the Eiffel Tower?", "Where does the Eiffel Tower stand?"),
        "Paris",
        ("London", "Vienna", "Madrid"),
    ),
    Fact(
        "country of the Taj Mahal",
        ("In which country is the Taj Mahal?", "Which country is home to the Taj Mahal?"),
        "India",
        ("Iran", "Egypt", "Pakistan"),
    ),
    Fact(
        "country of Machu Picchu",
        ("In which country is Machu Picchu?", "Which country is home to the ruins of Machu Picchu?"),
        "Peru",
        ("Mexico", "Chile", "Ecuador"),
    ),
    Fact(
        "largest country",
        ("Which country is the largest by area?", "Name the country with the most land."),
        "Russia",
        ("Canada", "China", "Brazil"),
    ),
    Fact(
        "largest hot desert",
        ("What is the largest hot desert in the world?", "Which hot desert covers the most land?"),
        "The Sahara",
        ("The Gobi", "The Kalahari", "The Mojave"),
    ),
    Fact(
        "river through London",
        ("Which river flows through London?", "On which river does London lie?"),
        "The Thames",
        ("The Seine", "The Rhine", "The Danube"),
    ),
    Fact(
        "continent of Brazil",
        ("On which continent is Brazil?", "Which continent does Brazil belong to?"),
        "South America",
        ("Africa", "Europe", "North America"),
    ),
    Fact(
        "language of Brazil",
        ("Which language do most people in Brazil speak?", "What is the official language of Brazil?"),
        "Portuguese",
        ("Spanish", "French", "Italian"),
    ),
    Fact(
        "currency of Japan",
        ("What is the currency of Japan?", "With which money do people pay in Japan?"),
        "The yen",
        ("The yuan", "The won", "The dollar"),
    ),
    Fact(
        "days in a leap year",
        ("How many days are there in a leap year?", "How long is a leap year in days?"),
        "366",
        ("365", "364", "360"),
    ),
    Fact(
        "minutes in an hour",
        ("How many minutes are in one hour?", "One hour is how many minutes?"),
        "60",
        ("24", "100", "30"),
    ),
    Fact(
        "months in a year",
        ("How many months does a year have?", "What is the number of months in one year?"),
        "Twelve",
        ("Ten", "Seven", "Twenty-four"),
    ),
    Fact(
        "sides of a triangle",
        ("How many sides does a triangle have?", "What is the number of sides of a triangle?"),
        "Three",
        ("Four", "Five", "Six"),
    ),
    Fact(
        "degrees in a right angle",
        ("How many degrees are in a right angle?", "What does a right angle measure in degrees?"),
        "90",
        ("45", "180", "360"),
    ),
    Fact(
        "smallest prime number",
        ("What is the smallest prime number?", "Which prime number comes first?"),
        "2",
        ("1", "3", "0"),
    ),
    Fact(
        "opposite of hot",
        ("What is the opposite of hot?", "Give the word that means the opposite of hot."),
        "Cold",
        ("Warm", "Dry", "Bright"),
    ),
    Fact(
        "opposite of ancient",
        ("What is the opposite of ancient?", "Give a word that means the opposite of ancient."),
        "Modern",
        ("Old", "Large", "Distant"),
    ),
    Fact(
        "plural of mouse",
        ("What is the plural of mouse?", "What do we call more than one mouse?"),
        "Mice",
        ("Mouses", "Mices", "Meese"),
    ),
    Fact(
        "past tense of go",
        ("What is the past tense of go?", "How do you say go in the past tense?"),
        "Went",
        ("Goed", "Gone", "Going"),
    ),
    Fact(
        "color of grass",
        ("What color is healthy grass?", "Which color does grass have in spring?"),
        "Green",
        ("Blue", "Red", "Purple"),
    ),
    Fact(
        "mixing red and white",
        ("What color do you get by mixing red and white paint?", "Red and white paint together make which color?"),
        "Pink",
        ("Purple", "Orange", "Brown"),
    ),
    Fact(
        "organ that pumps blood",
        ("Which organ pumps blood through the body?", "What organ keeps the blood moving?"),
        "The heart",
        ("The liver", "The lungs", "The stomach"),
    ),
    Fact(
        "organ for thinking",
        ("Which organ do we think with?", "What organ controls our thoughts?"),
        "The brain",
        ("The heart", "The kidneys", "The spleen"),
    ),
    Fact(
        "main food of koalas",
        ("What leaves do koalas mainly eat?", "Which tree feeds koalas?"),
        "Eucalyptus",
        ("Oak", "Bamboo", "Maple"),
    ),
    Fact(
        "main ingredient of bread",
        ("What is the main ingredient of bread?", "Bread is made mostly of which ingredient?"),
        "Flour",
        ("Sugar", "Rice", "Butter"),
    ),
    Fact(
        "dried grapes",
        ("What are dried grapes called?", "What do grapes become when they are dried?"),
        "Raisins",
        ("Prunes", "Figs", "Dates"),
    ),
    Fact(
        "instrument with 88 keys",
        ("Which instrument usually has 88 keys?", "What instrument has 52 white and 36 black keys?"),
        "The piano",
        ("The violin", "The flute", "The guitar"),
    ),
    Fact(
        "players in a soccer team",
        (
            "How many players of one soccer team are on the field?",
            "With how many players does a soccer team start a match?",
        ),
        "Eleven",
        ("Nine", "Seven", "Fifteen"),
    ),
    Fact(
        "sport of Wimbledon",
        ("Which sport is played at Wimbledon?", "For which sport is Wimbledon famous?"),
        "Tennis",
        ("Cricket", "Golf", "Rugby"),
    ),
)


FACTS_EXAM: tuple[Fact, ...] = (
    Fact("capital of Germany", ("What is the capital of Germany?",), "Berlin", ("Munich", "Hamburg", "Frankfurt")),
    Fact("capital of Japan", ("What is the capital of Japan?",), "Tokyo", ("Osaka", "Kyoto", "Seoul")),
    Fact("capital of Egypt", ("What is the capital of Egypt?",), "Cairo", ("Alexandria", "Khartoum", "Tripoli")),
    Fact("capital of Canada", ("What is the capital of Canada?",), "Ottawa", ("Toronto", "Vancouver", "Montreal")),
    Fact("capital of Australia", ("What is the capital of Australia?",), "Canberra", ("Sydney", "Melbourne", "Perth")),
    Fact("capital of Russia", ("What is the capital of Russia?",), "Moscow", ("Kyiv", "Minsk", "Warsaw")),
    Fact("capital of Greece", ("What is the capital of Greece?",), "Athens", ("Sparta", "Sofia", "Corinth")),
    Fact("capital of Peru", ("What is the capital of Peru?",), "Lima", ("Quito", "Bogotá", "Cusco")),
    Fact("capital of Portugal", ("What is the capital of Portugal?",), "Lisbon", ("Porto", "Granada", "Faro")),
    Fact("capital of Thailand", ("What is the capital of Thailand?",), "Bangkok", ("Hanoi", "Manila", "Jakarta")),
    Fact("the red planet", ("Which planet is called the red planet?",), "Mars", ("Venus", "Jupiter", "Mercury")),
    Fact(
        "natural satellite of Earth",
        ("What is the name of the natural satellite that orbits Earth?",),
        "The Moon",
        ("The Sun", "Titan", "Venus"),
    ),
    Fact(
        "star of the solar system",
        ("Which star is at the center of our solar system?",),
        "The Sun",
        ("Polaris", "Sirius", "The Moon"),
    ),
    Fact(
        "boiling point",
        ("At what temperature in Celsius does water boil at sea level?",),
        "100 degrees",
        ("50 degrees", "80 degrees", "212 degrees"),
    ),
    Fact("symbol of gold", ("What is the chemical symbol of gold?",), "Au", ("Go", "Ag", "Gd")),
    Fact("symbol of sodium", ("What is the chemical symbol of sodium?",), "Na", ("So", "S", "Sd")),
    Fact(
        "gas plants take in",
        ("Which gas do plants take in from the air to make sugar?",),
        "Carbon dioxide",
        ("Helium", "Nitrogen", "Methane"),
    ),
    Fact(
        "most common gas in air",
        ("Which gas makes up most of the air around us?",),
        "Nitrogen",
        ("Oxygen", "Hydrogen", "Carbon dioxide"),
    ),
    Fact("hardest mineral", ("What is the hardest natural mineral?",), "Diamond", ("Quartz", "Gold", "Iron")),
    Fact("frozen water", ("What do we call water when it is frozen solid?",), "Ice", ("Steam", "Fog", "Dew")),
    Fact(
        "force that makes things fall",
        ("Which force makes an apple fall to the ground?",),
        "Gravity",
        ("Magnetism", "Friction", "Electricity"),
    ),
    Fact("legs of an insect", ("How many legs does an insect have?",), "Six", ("Eight", "Four", "Twelve")),
    Fact(
        "tallest animal",
        ("What is the tallest animal in the world?",),
        "The giraffe",
        ("The elephant", "The camel", "The ostrich"),
    ),
    Fact(
        "largest bird", ("What is the largest living bird?",), "The ostrich", ("The eagle", "The penguin", "The swan")
    ),
    Fact(
        "animal that builds dams",
        ("Which animal is known for building dams in rivers?",),
        "The beaver",
        ("The otter", "The fox", "The rabbit"),
    ),
    Fact(
        "animal with a trunk",
        ("Which animal has a long trunk?",),
        "The elephant",
        ("The lion", "The kangaroo", "The bear"),
    ),
    Fact("young cat", ("What is a young cat called?",), "A kitten", ("A puppy", "A cub", "A chick")),
    Fact("young sheep", ("What is a young sheep called?",), "A lamb", ("A calf", "A piglet", "A foal")),
    Fact(
        "caterpillar becomes",
        ("What does a caterpillar turn into?",),
        "A butterfly",
        ("A spider", "A beetle", "A snail"),
    ),
    Fact(
        "where penguins live",
        ("On which icy continent do emperor penguins live?",),
        "Antarctica",
        ("Europe", "Asia", "North America"),
    ),
    Fact(
        "author of Hamlet",
        ("Who wrote Hamlet?",),
        "William Shakespeare",
        ("John Milton", "Charles Dickens", "Oscar Wilde"),
    ),
    Fact(
        "author of Pride and Prejudice",
        ("Who wrote Pride and Prejudice?",),
        "Jane Austen",
        ("Emily Brontë", "Virginia Woolf", "Mary Shelley"),
    ),
    Fact(
        "author of War and Peace",
        ("Who wrote War and Peace?",),
        "Leo Tolstoy",
        ("Fyodor Dostoevsky", "Victor Hugo", "Franz Kafka"),
    ),
    Fact(
        "detective of Baker Street",
        ("Which fictional detective lives at 221B Baker Street?",),
        "Sherlock Holmes",
        ("Hercule Poirot", "Miss Marple", "James Bond"),
    ),
    Fact(
        "painter of the Starry Night",
        ("Who painted The Starry Night?",),
        "Vincent van Gogh",
        ("Pablo Picasso", "Claude Monet", "Salvador Dalí"),
    ),
    Fact(
        "composer of The Magic Flute",
        ("Who composed The Magic Flute?",),
        "Wolfgang Amadeus Mozart",
        ("Franz Schubert", "Giuseppe Verdi", "Richard Wagner"),
    ),
    Fact(
        "laws of motion",
        ("Which scientist formulated the three laws of motion?",),
        "Isaac Newton",
        ("Charles Darwin", "Marie Curie", "Louis Pasteur"),
    ),
    Fact(
        "theory of evolution",
        ("Which scientist wrote On the Origin of Species?",),
        "Charles Darwin",
        ("Gregor Mendel", "Albert Einstein", "Galileo Galilei"),
    ),
    Fact(
        "inventor of the telephone",
        ("Who is credited with the first patent for the telephone?",),
        "Alexander Graham Bell",
        ("Thomas Edison", "Nikola Tesla", "Henry Ford"),
    ),
    Fact(
        "explorer of 1492",
        ("Which explorer sailed across the Atlantic in 1492?",),
        "Christopher Columbus",
        ("Marco Polo", "James Cook", "Ferdinand Magellan"),
    ),
    Fact(
        "president during the American Civil War",
        ("Who was president of the United States during the Civil War?",),
        "Abraham Lincoln",
        ("George Washington", "Theodore Roosevelt", "John Adams"),
    ),
    Fact(
        "start of the first world war",
        ("In which year did the First World War begin?",),
        "1914",
        ("1939", "1900", "1945"),
    ),
    Fact(
        "country of the pyramids of Giza",
        ("In which country are the pyramids of Giza?",),
        "Egypt",
        ("Mexico", "Peru", "Iraq"),
    ),
    Fact("city of the Colosseum", ("In which city is the Colosseum?",), "Rome", ("Athens", "Paris", "Venice")),
    Fact(
        "city of Big Ben",
        ("In which city can you hear the bell called Big Ben?",),
        "London",
        ("New York", "Dublin", "Berlin"),
    ),
    Fact(
        "city of the Statue of Liberty",
        ("In which American city is the Statue of Liberty?",),
        "New York",
        ("Chicago", "Boston", "Washington"),
    ),
    Fact(
        "highest mountain",
        ("What is the highest mountain on Earth above sea level?",),
        "Mount Everest",
        ("Mont Blanc", "Kilimanjaro", "Mount Fuji"),
    ),
    Fact(
        "largest ocean",
        ("Which ocean is the largest?",),
        "The Pacific",
        ("The Atlantic", "The Indian Ocean", "The Arctic"),
    ),
    Fact(
        "river of Egypt", ("Which river flows through Egypt?",), "The Nile", ("The Amazon", "The Congo", "The Ganges")
    ),
    Fact("continent of Nigeria", ("On which continent is Nigeria?",), "Africa", ("Asia", "Europe", "South America")),
    Fact(
        "language of Mexico",
        ("Which language do most people in Mexico speak?",),
        "Spanish",
        ("Portuguese", "English", "French"),
    ),
    Fact(
        "currency of the United States",
        ("What is the currency of the United States?",),
        "The dollar",
        ("The euro", "The pound", "The peso"),
    ),
    Fact("days in a week", ("How many days are in a week?",), "Seven", ("Five", "Ten", "Twelve")),
    Fact("seconds in a minute", ("How many seconds are in one minute?",), "60", ("12", "24", "100")),
    Fact("hours in a day", ("How many hours are there in one full day?",), "24", ("12", "48", "60")),
    Fact("sides of a hexagon", ("How many sides does a hexagon have?",), "Six", ("Five", "Eight", "Four")),
    Fact("years in a century", ("How many years are in a century?",), "100", ("10", "50", "1000")),
    Fact("month after March", ("Which month comes after March?",), "April", ("May", "June", "February")),
    Fact(
        "day before Friday",
        ("Which day of the week comes just before Friday?",),
        "Thursday",
        ("Saturday", "Monday", "Wednesday"),
    ),
    Fact("opposite of empty", ("What is the opposite of empty?",), "Full", ("Small", "Open", "Light")),
    Fact("plural of child", ("What is the plural of child?",), "Children", ("Childs", "Childes", "Childrens")),
    Fact("past tense of eat", ("What is the past tense of eat?",), "Ate", ("Eated", "Eaten", "Eating")),
    Fact(
        "mixing blue and yellow",
        ("What color do you get by mixing blue and yellow paint?",),
        "Green",
        ("Purple", "Orange", "Red"),
    ),
    Fact("color of a ripe banana", ("What color is the peel of a ripe banana?",), "Yellow", ("Blue", "Red", "White")),
    Fact(
        "organ for breathing",
        ("With which organs do we breathe?",),
        "The lungs",
        ("The kidneys", "The eyes", "The muscles"),
    ),
    Fact("sense of the ears", ("Which sense do we have through our ears?",), "Hearing", ("Smell", "Taste", "Sight")),
    Fact("main ingredient of cheese", ("From which liquid is cheese made?",), "Milk", ("Water", "Oil", "Juice")),
    Fact(
        "instrument with strings and a bow",
        ("Which instrument is played with a bow and held under the chin?",),
        "The violin",
        ("The trumpet", "The drum", "The piano"),
    ),
    Fact(
        "sport with a hoop",
        ("In which sport do players throw a ball through a hoop?",),
        "Basketball",
        ("Baseball", "Hockey", "Golf"),
    ),
    Fact(
        "what a thermometer measures",
        ("What does a thermometer measure?",),
        "Temperature",
        ("Weight", "Distance", "Speed"),
    ),
)
