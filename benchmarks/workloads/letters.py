"""Letters with facts to copy, made from a seed: orders, contacts, appointments, faults.

Each has the facts between sentences of its own kind, as letters have them, in an order and number
that differ from letter to letter.
"""

from __future__ import annotations

import random
from collections.abc import Callable

_FIRST = "Amelia Bram Chidi Dunja Elif Farid Greta Hiro Ines Jonas Kavita Liam Mira Noor Pia"
_LAST = "Abbott Becker Costa Drummond Eriksen Fontaine Grahame Holt Ibarra Jansen Kowalski Novak"
_STREET = "Mill Lane, Orchard Road, Station Street, Harbour View, Chapel Hill, Weaver's Yard"
_TOWN = "Ashford, Delmont, Kirkwall, Novara, Redbridge, Tamworth, Vinton, Whitby"
_GOODS = (
    "desk lamp, folding chair, water filter, bicycle pump, wool blanket, garden hose, tea kettle, "
    "paper shredder, tool box, picture frame, phone charger, rain jacket, storage crate"
)
_TOPIC = (
    "the budget for spring, the new warehouse, two applications, the leak in the cellar, "
    "the summer party, the contract with the printers, safety training, the broken elevator"
)
_DAY = "Monday, Tuesday, Wednesday, Thursday, Friday"


def letter(number: int) -> str:
    """The letter with this number: the same text for the same number."""
    draw = random.Random(f"letter {number}")
    return _KINDS[number % len(_KINDS)](draw)


def _one(draw: random.Random, words: str) -> str:
    return draw.choice(words.split(", ") if ", " in words else words.split())


def _some(draw: random.Random, words: str, least: int, most: int) -> list[str]:
    return draw.sample(words.split(", "), draw.randint(least, most))


def _person(draw: random.Random) -> str:
    return f"{_one(draw, _FIRST)} {_one(draw, _LAST)}"


def _mail(person: str) -> str:
    return person.lower().replace(" ", ".") + "@example.com"


def _phone(draw: random.Random) -> str:
    return f"555-{draw.randint(100, 999)}-{draw.randint(1000, 9999)}"


def _order(draw: random.Random) -> str:
    person = _person(draw)
    goods = [
        f"{draw.randint(2, 12)} of the {item} at {draw.randint(4, 90)}.{draw.randint(10, 99)} euros"
        for item in _some(draw, _GOODS, 3, 5)
    ]
    return (
        f"Hello, this is {person} from the office in {_one(draw, _TOWN)}. As I said on the phone, "
        f"we would like to order {', '.join(goods[:-1])} and {goods[-1]}. Please send everything "
        f"to {draw.randint(1, 99)} {_one(draw, _STREET)}, and the invoice to {_mail(person)}. Our "
        f"customer number is {_one(draw, 'KD BX TR')}-{draw.randint(10000, 99999)}. The last "
        f"delivery came a week late, so we would be glad if this one arrived by "
        f"{_one(draw, _DAY)}. If something is not in stock, call me at {_phone(draw)} before noon."
    )


def _contacts(draw: random.Random) -> str:
    lines = [
        f"{person} {does} and can be reached at {_phone(draw)} or {_mail(person)}."
        for person, does in zip(
            [_person(draw) for _ in range(4)],
            draw.sample(
                [
                    "looks after the buildings",
                    "is responsible for the accounts",
                    "answers questions about travel",
                    "runs the workshop on the second floor",
                    "is the doctor of the company",
                    "takes care of new colleagues",
                ],
                4,
            ),
            strict=True,
        )
    ]
    return (
        "Welcome to the team! In your first week you will need help now and then, and these are "
        f"the people to ask. {' '.join(lines)} The entrance is at {draw.randint(1, 99)} "
        f"{_one(draw, _STREET)}; the door opens at {draw.randint(6, 8)}:30. Bring an identity card "
        "on the first day, and a cup for your coffee."
    )


def _minutes(draw: random.Random) -> str:
    lines = [
        f"{_person(draw)} spoke about {topic} and will send a plan by {_one(draw, _DAY)}, "
        f"{draw.randint(1, 30)} {_one(draw, 'March April May June')}."
        for topic in _some(draw, _TOPIC, 3, 4)
    ]
    return (
        f"Minutes of the meeting in {_one(draw, _TOWN)}, room {draw.randint(101, 420)}. The "
        f"meeting began at {draw.randint(8, 15)}:15, and {_person(draw)} took the chair. "
        f"{' '.join(lines)} Nobody had objections to the minutes of the last meeting. The next one "
        f"is on {_one(draw, _DAY)} at {draw.randint(8, 15)}:45, and {_person(draw)} brings a cake."
    )


def _fault(draw: random.Random) -> str:
    times = sorted(draw.sample(range(8 * 60, 17 * 60), 4))
    when = [f"{minutes // 60}:{minutes % 60:02}" for minutes in times]
    return (
        f"Report number {draw.randint(1000, 9999)}, written by {_person(draw)}. At {when[0]} the "
        f"pump in hall {draw.randint(1, 9)} showed error E{draw.randint(10, 99)} and stopped. At "
        f"{when[1]} the shift leader {_person(draw)} was told and closed valve "
        f"V{draw.randint(10, 99)}. The pressure was {draw.randint(2, 9)}.{draw.randint(1, 9)} bar, "
        f"and {draw.randint(20, 400)} litres of water had run out. At {when[2]} the technician "
        f"{_person(draw)} replaced the seal, part number {draw.randint(100000, 999999)}. The pump "
        f"ran again at {when[3]}. The costs are about {draw.randint(120, 900)} euros."
    )


_KINDS: tuple[Callable[[random.Random], str], ...] = (_order, _contacts, _minutes, _fault)
