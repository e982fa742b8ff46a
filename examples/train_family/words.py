"""The words that the generators draw from, split into a part for training and a part that only evaluation sees."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from examples.train_family import prose

_NAMES = """Tom Anna Ben Lucy Sam Mia Jack Ella Max Rosa Leo Nora Omar Ivy Paul Kate Amir Zoe Hugo Lena Igor Maya Felix
Clara Ravi June Otto Vera Dan Alice Peter Greta Liam Sofia Noah Emma Ali Hana Yuki Chen Priya Arjun Fatima Yusuf Elena
Marco Luca Bianca Ines Pedro Carlos Marta Jonas Erik Astrid Freya Sven Olga Ivan Nina Boris Petra Karl Heidi Franz Ada
Grace Alan Edgar Ruth Simon Tara Victor Wanda Xavier Yara Zane Bella Cora Dora Eva Finn Gina Henry Iris Jade Kurt Lola
Mona Nick Opal Quinn Rita Steve Tina Uma Vince Will Abel Bruno Celia Diego Esther Fiona George Helen Isaac Julia""".split()
_SURNAMES = """Stone Rivers Hill Brook Fields Marsh Lake Woods Frost Snow Berg Lund Costa Silva Rossi Weber Klein Novak
Kovacs Horvat Popov Sato Tanaka Kim Park Singh Khan Haddad Okoro Mensah Diallo Moreau Dubois Garcia Lopez Torres Walker
Fisher Baker Carter Potter Miller Turner Cooper Mason Parker Reed Lane Ward Shaw Burke Doyle Quinn Grant Hayes""".split()
_PLACES = """London Paris Cairo Oslo Lima Kyoto Delhi Quito Rome Dublin Berlin Madrid Lisbon Vienna Prague Warsaw Athens
Helsinki Riga Tallinn Zagreb Sofia Ankara Tunis Rabat Dakar Accra Lagos Nairobi Harare Mumbai Jaipur Dhaka Hanoi Manila
Seoul Osaka Taipei Perth Sydney Hobart Suva Apia Havana Bogota Caracas Santiago Montevideo Austin Boston Denver Seattle
Portland Phoenix Dallas Chicago Toronto Montreal Calgary Bergen Gdansk Porto Seville Naples Turin Lyon Nantes Ghent Basel
Geneva Graz Salzburg Bremen Leipzig Aarhus Malmo Uppsala Turku Tampere Cork Galway Leeds York Bath Derby Exeter""".split()
_THINGS = """apples pencils books marbles stickers coins cards shells cookies stamps buttons balloons candles flowers
tickets plates spoons cups bottles boxes bricks ribbons beads stones leaves nuts pears plums lemons oranges carrots
tomatoes potatoes onions cakes muffins pies sandwiches pizzas posters photos maps pens brushes crayons erasers notebooks
folders envelopes letters keys locks ropes nails screws bolts planks tiles lamps chairs stools pillows blankets towels
shirts socks gloves scarves hats kites dolls puzzles robots trains blocks dice magnets batteries bulbs seeds roses""".split()
_THING = """lamp kettle bicycle violin camera ladder wallet blanket compass hammer mirror piano radio saddle teapot tent
umbrella vase wagon whistle anchor basket bell bench boat bucket carpet chest clock coat crown desk drum fan flute globe
guitar jacket jar jug knife lantern lens mug necklace oven painting pan puppet ring rope rug scarf shelf shovel sofa
spoon statue stove sword table telescope tractor trophy trumpet watch wheel""".split()
_ANIMALS = """cat dog fox rabbit bear owl mouse frog duck hen goat sheep horse pony cow pig wolf deer squirrel hedgehog
turtle parrot swan goose crow robin beaver otter badger mole lizard snail bee ant spider crab whale seal penguin lion
tiger monkey elephant zebra camel donkey""".split()
_COLOURS = "red blue green yellow black white brown purple orange pink grey golden silver".split()
_JOBS = """baker pilot nurse sailor painter farmer teacher clerk doctor lawyer plumber gardener butcher tailor waiter driver
singer dancer writer builder miner judge guard chemist florist barber carpenter mechanic librarian engineer astronomer
potter beekeeper shepherd""".split()
_ADJECTIVES = """small big old new bright dark quiet loud happy sad brave shy kind clever slow quick warm cold soft hard
heavy light clean dusty round flat tall short strange gentle proud lazy busy hungry tired curious""".split()
_VERBS = """book cancel create delete update find list send open close start stop check count convert compute translate
order reserve schedule move copy rename merge split sort filter print scan rotate resize compress encode decode encrypt
sign verify measure estimate compare rank label archive restore publish upload download share lock unlock mute record
play pause track report log notify invite assign approve reject pay refund ship pack weigh paint clean repair rent""".split()
_OBJECTS = """table ticket room meeting event task note file folder photo song video playlist message email letter call
invoice order parcel payment account card loan contract report chart map route flight train bus taxi hotel recipe meal
menu book page word sentence number date time alarm timer reminder calendar contact user group team project issue
branch server database backup password token key sensor lamp door window heater fan camera robot drone engine battery
tank pump valve field garden plant seed animal patient doctor clinic course lesson student exam score game match""".split()
_QUALITIES = """population height depth length width weight price cost age size speed capital currency language area
altitude temperature humidity pressure distance duration rating score rank balance status owner author title address
phone code colour flavour shape material brand model origin timetable deadline budget salary rent tax fee""".split()
_PROSE = """the a of and to in that it was he she they with for on as at by from had were not but his her their which
when there would one all said so up out if about who then them some into time only little could other than over now more
before great old made after house day man come where through long way down never own night even world life hand years
water face water light door road river garden window morning evening winter summer sea hill stone tree bird voice heart
place word name story letter friend mother father brother sister child village town field wood fire bread table chair
slowly softly quickly often always again still almost behind under between near far across along around above without
carried opened closed followed watched waited answered remembered turned walked stood found kept left
brought began heard""".split()
_SYLLABLES = """ba be bi bo bu da de di do du fa fe fi fo ga ge gi go ha he hi ho ka ke ki ko ku la le li lo lu ma me mi mo
mu na ne ni no nu pa pe pi po ra re ri ro ru sa se si so su ta te ti to tu va ve vi vo wa we wi za ze zi zo bran crel dorn
fex glim harn jux kest lorn mip nax plov quen rist stur thal vorn wex yol zent""".split()
_SCRIPTS = ((0x4E00, 0x6E00), (0xAC00, 0xB700), (0x0430, 0x044F), (0x03B1, 0x03C9), (0x3042, 0x3093), (0x00E0, 0x00FF))
_HELD_OUT_EVERY = 7
_SPLICED = 0.25
"""Share of the drawn words that are two halves of listed ones: what is met too rarely to be known must be copied."""
_PIECED = 0.45
"""Share that is made of random pieces of the vocabulary: a token that training never asks for cannot be copied later."""
_INVENTED_OF_PIECES = 0.5
"""Share of the invented words that are."""
_NARROW = 0.5
"""Share of the documents whose words of a list are few, so that most come up more than once: to be copied, a value must
then be found by two words before it, not by one."""
_FEW = 8
_LISTS = (_NAMES, _SURNAMES, _PLACES, _THINGS, _THING, _ANIMALS, _JOBS, _VERBS, _OBJECTS, _QUALITIES)
_HELD_OUT = frozenset(word.lower() for words in _LISTS for word in words[_HELD_OUT_EVERY - 1 :: _HELD_OUT_EVERY])


class Words:
    """Draws words with `rng`: from six sevenths of every list, splices of them and pieces, or with `held_out` from the rest.

    Short closed classes (colours, adjectives, prose) are not split: no skill consists in knowing one of them.
    """

    def __init__(self, rng: random.Random, *, held_out: bool = False, pieces: Sequence[str] = ()) -> None:
        """`pieces` are what the vocabulary spells words with; no word that is kept for evaluation is made of them."""
        self.rng = rng
        self.held_out = held_out
        self._pieces = pieces
        self._few: dict[int, list[str]] | None = None

    def begin(self) -> None:
        """Begins a document, in which words of a list may be few."""
        self._few = {} if self.rng.random() < _NARROW else None

    def _listed(self, words: Sequence[str]) -> str:
        while True:
            index = self.rng.randrange(len(words))
            if (index % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1) != self.held_out:
                continue
            if self.held_out or words[index].lower() not in _HELD_OUT:  # which another list may keep for evaluation
                return words[index]

    def _pick(self, words: Sequence[str]) -> str:
        if self._few is None:
            return self._drawn(words)
        if id(words) not in self._few:
            self._few[id(words)] = self.distinct(lambda: self._drawn(words), _FEW)
        return self.rng.choice(self._few[id(words)])

    def _drawn(self, words: Sequence[str]) -> str:
        word = self._listed(words)
        kind = self.rng.random()
        if self.held_out or kind >= _SPLICED + _PIECED:
            return word
        made = self._spliced(word, words) if kind < _SPLICED or not self._pieces else self._pieced(word)
        return word if made in words or made.lower() in _HELD_OUT else made

    def _spliced(self, word: str, words: Sequence[str]) -> str:
        other = self._listed(words)
        return word[: (len(word) + 1) // 2] + other[len(other) // 2 :]

    def _pieced(self, like: str) -> str:
        """One piece or two, with a capital where `like` has one."""
        made = "".join(self.rng.choice(self._pieces) for _ in range(self.rng.choice((1, 2, 2))))
        return made.capitalize() if like[0].isupper() else made

    def name(self) -> str:
        return self._pick(_NAMES)

    def full_name(self) -> str:
        return f"{self._pick(_NAMES)} {self._pick(_SURNAMES)}"

    def place(self) -> str:
        return self._pick(_PLACES)

    def things(self) -> str:
        """A plural, as word problems count them."""
        return self._pick(_THINGS)

    def thing(self) -> str:
        return self._pick(_THING)

    def animal(self) -> str:
        return self._pick(_ANIMALS)

    def job(self) -> str:
        return self._pick(_JOBS)

    def verb(self) -> str:
        return self._pick(_VERBS)

    def object(self) -> str:
        return self._pick(_OBJECTS)

    def quality(self) -> str:
        return self._pick(_QUALITIES)

    def colour(self) -> str:
        return self.rng.choice(_COLOURS)

    def adjective(self) -> str:
        return self.rng.choice(_ADJECTIVES)

    def invented(self) -> str:
        """A word that no list holds, spelt from syllables or from pieces of the vocabulary."""
        of_pieces = self._pieces and self.rng.random() < _INVENTED_OF_PIECES
        parts = self._pieces if of_pieces else _SYLLABLES
        word = "".join(self.rng.choice(parts) for _ in range(self.rng.randint(2, 3)))
        return word if word not in _HELD_OUT else self.invented()

    def foreign(self) -> str:
        """2 to 6 letters of one of several scripts."""
        first, last = self.rng.choice(_SCRIPTS)
        return "".join(chr(self.rng.randint(first, last)) for _ in range(self.rng.randint(2, 6)))

    def salad(self, least: int, most: int) -> str:
        """A sentence of words without sense: what can be quoted and never guessed."""
        words = [self.rng.choice(_PROSE) for _ in range(self.rng.randint(least, most))]
        if self.rng.random() < 0.3:
            words[self.rng.randrange(len(words))] = self.invented()
        return " ".join(words).capitalize() + "."

    def sentence(self, least: int = 5, most: int = 22) -> str:
        """A sentence to be read and quoted: real prose, or words without sense (`least` to `most` of them)."""
        return self._listed(prose.sentences()) if self.rng.random() < 0.4 else self.salad(least, most)

    def distinct(self, draw: Callable[[], str], count: int) -> list[str]:
        """`count` different draws."""
        found: list[str] = []
        while len(found) < count:
            word = draw()
            if word not in found:
                found.append(word)
        return found
