"""Personal data in captions: what has the form of an address, a telephone number or a payment card's.

Each pattern is strict: what it finds is nearly always such a thing, and what is written in words (``name at example dot
org``), or as a bare row of digits, it does not find.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

#: Statistics of captions that have to be asked for, with the Arrow types of their columns.
PERSONAL: Mapping[str, pa.DataType] = {
    "has_email": pa.bool_(),
    "has_phone": pa.bool_(),
    "has_ip": pa.bool_(),
    "has_card_number": pa.bool_(),
}

# RFC 5321: 64 characters before the @, labels of 63. A file for screens of twice the pixels (icon@2x.png) is none.
_EMAIL = re.compile(
    r"(?<![\w.+%'@/-])[\w.+%'-]{1,64}@(?!\d+x\.)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.){1,8}[a-z]{2,24}(?![\w@-])",
    re.IGNORECASE,
)
# ITU-T E.164: a plus, the country's code, 8 to 15 digits in all; what parts them is written as in E.123.
_INTERNATIONAL = re.compile(r"(?<![\w+])\+[1-9](?:[ ().\-]{0,2}[0-9]){7,14}(?![ ().\-]{0,2}[0-9])")
# Of the North American plan: area and office begin with 2 to 9, and are parted from one another and the rest.
_AMERICAN = re.compile(
    r"(?<![\w.+/-])(?:1[ .-])?(?:\([2-9][0-9]{2}\)[ ]?|[2-9][0-9]{2}([-.]))[2-9][0-9]{2}[-.][0-9]{4}(?![\w/-]|\.[0-9])"
)
# Where the text says what it is.
_CALLED = re.compile(
    r"(?<!\w)(?:tel|telephone|phone|mobile|cell|fax|whatsapp|call(?: us| me)?(?: at| on)?"
    r"|telefon|tél|téléphone|телефон|тел|电话|電話)(?: ?(?:no|number|nr)\b)?[.:\s]{1,3}"
    r"(?!(?:19|20)[0-9]{2}\b)\(?[0-9](?:[ ().\-/]{0,2}[0-9]){6,14}(?![ ().\-/]{0,2}[0-9])",  # not a year
    re.IGNORECASE,
)
_IP4 = re.compile(r"(?<![\w.])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![\w]|\.[0-9])")
_IP6 = re.compile(r"(?<![\w:.])[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){3,8}(?![\w:])", re.IGNORECASE)
_CARD = re.compile(r"(?<![\w.+-])[2-6][0-9]{3}(?:[ -]?[0-9]){10,15}(?![ -]?[0-9]|\w)")
# Who issues by which first digits, and of which lengths (ISO/IEC 7812): Visa, Mastercard, American Express, Discover,
# JCB, Diners Club, UnionPay.
_ISSUERS = re.compile(
    r"4(?:[0-9]{15}|[0-9]{18})|5[1-5][0-9]{14}|2(?:22[1-9]|2[3-9][0-9]|[3-6][0-9]{2}|7[01][0-9]|720)[0-9]{12}"
    r"|3[47][0-9]{13}|6(?:011|4[4-9][0-9]|5[0-9]{2})[0-9]{12,15}|35(?:2[89]|[3-8][0-9])[0-9]{12}"
    r"|3(?:0[0-5]|[68][0-9]|9[0-9])[0-9]{11}|62[0-9]{14,17}"
)


def has_email(text: str) -> bool:
    """Whether there is an address as ``name@example.org``."""
    return "@" in text and _EMAIL.search(text) is not None


def has_phone(text: str) -> bool:
    """Whether there is a telephone number: with a plus and 8 to 15 digits (E.164); of North America; or so called.

    ``+49 89 1234567``; ``(212) 555-0123``, ``212-555-0123``, ``212.555.0123``; and 7 to 15 digits behind a word as
    ``tel.``, ``phone:``, ``call``.
    """
    return any(pattern.search(text) for pattern in (_INTERNATIONAL, _AMERICAN, _CALLED))


def has_ip(text: str) -> bool:
    """Whether there is an address of the public internet, IPv4 or IPv6; those of private networks are nobody's."""
    return any(_is_public(found[0]) for pattern in (_IP4, _IP6) for found in pattern.finditer(text))


def has_card_number(text: str) -> bool:
    """Whether there is the number of a payment card: of an issuer's digits and length, and right by Luhn's sum."""
    return any(_is_card(found[0]) for found in _CARD.finditer(text))


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def _is_card(number: str) -> bool:
    digits = number.replace(" ", "").replace("-", "")
    return _ISSUERS.fullmatch(digits) is not None and _luhn(digits) % 10 == 0 and len({*digits}) > 1


def _luhn(digits: str) -> int:
    """Luhn's sum: every second digit from the last doubled, and of that the sum of its digits."""
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return sum(map(int, digits[-1::-2])) + sum(doubled)


#: Of a text that is not blank.
PERSONAL_MEASURES: Mapping[str, Callable[[str], Any]] = {
    "has_email": has_email,
    "has_phone": has_phone,
    "has_ip": has_ip,
    "has_card_number": has_card_number,
}
