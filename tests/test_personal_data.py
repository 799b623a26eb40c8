"""Personal data in captions: what has its form is found, and what only looks like it is not; and in no time."""

from __future__ import annotations

import ipaddress
import random
import time

import pandas as pd
import pyarrow as pa
import pytest

from curator_dask.errors import ConfigError
from curator_dask.frames.names import CAPTION_DEFINITIONS, PERSONAL_DEFINITIONS
from curator_dask.text import TEXT_STATISTICS, TextStatistics
from curator_dask.text.personal import PERSONAL, PERSONAL_MEASURES

EMAIL = {
    "write to jane.doe+x@example.co.uk now": True,
    "(a@b.de)": True,
    "x_y@sub.example.org.": True,
    "mailto:ana@example.org": True,
    "zoë@example.org": True,
    "icon@2x.png": False,
    "@handle": False,
    "me@home": False,
    "user@@example.com": False,
    "name at example dot org": False,
    "a" * 100 + "@x.de": False,
    "https://medium.com/@someone.else": False,
}
PHONE = {
    "call +49 89 1234567": True,
    "+1 (555) 010-9999": True,
    "(212) 555-0123": True,
    "212-555-0123.": True,
    "212.555.0123": True,
    "1-800-555-0199": True,
    "tel. 089 123456": True,
    "Tel: 0123456789": True,
    "电话: 010 1234 5678": True,
    "2019-08-12 10.11.12": False,
    "ISBN 978-3-16-148410-0": False,
    "$1,234,567": False,
    "IMG_20190812_123456": False,
    "18+ 2019 2020": False,
    "1920x1080": False,
    "iphone 12345678": False,
    "phone 2019-2020": False,
    "call 911": False,
    "1234567890": False,
    "+12345678901234567890": False,
    "212-555-0123-45": False,
}
IP = {
    "8.8.8.8": True,
    "at 8.8.4.4.": True,
    "2001:4860:4860::8888": True,
    "192.168.0.1": False,
    "::1": False,
    "1.2.3.4.5": False,
    "999.1.1.1": False,
    "12:30:45": False,
    "std::vector": False,
    "10:20:30:40": False,
}
CARD = {
    "4111 1111 1111 1111": True,
    "no. 5500-0000-0000-0004.": True,
    "378282246310005": True,
    "4111111111111112": False,
    "4006381333931": False,  # of a product
    "0000000000000000": False,
    "+4111111111111111": False,
}
CASES = {"has_email": EMAIL, "has_phone": PHONE, "has_ip": IP, "has_card_number": CARD}


@pytest.mark.parametrize("name", CASES)
def test_what_is_found(name):
    for text, expected in CASES[name].items():
        for around in (text, f"a cat, {text} and a dog", f"{text}\n{text}"):
            assert PERSONAL_MEASURES[name](around) is expected, around


def test_addresses_are_those_that_python_takes_for_public():
    draw = random.Random(3)
    for _ in range(500):
        address = ipaddress.IPv4Address(draw.getrandbits(32))
        assert PERSONAL_MEASURES["has_ip"](f"seen from {address} today") is address.is_global


def test_card_numbers_are_right_by_luhns_sum():
    draw = random.Random(4)
    found = 0
    for _ in range(300):
        first = "4" + "".join(draw.choices("0123456789", k=14))
        passing = [last for last in "0123456789" if PERSONAL_MEASURES["has_card_number"](first + last)]
        # By the sum as it is usually told: from the right, every second digit doubled, less 9 where that is more.
        doubled = [int(each) * 2 for each in first[::-2]]
        total = sum(each - 9 * (each > 9) for each in doubled) + sum(map(int, first[-2::-2]))
        assert passing == [str(-total % 10)]
        found += len(passing)
    assert found == 300


def test_no_text_takes_long():
    texts = ("a" * 100_000 + "@", "x@" + "a." * 50_000, "+1 " * 30_000, "1 " * 50_000, "4111" * 25_000)
    for text in (*texts, ":" * 100_000):
        for odd in (text, text[::-1], "tel. " + text):
            start = time.process_time()
            for measure in PERSONAL_MEASURES.values():
                measure(odd)
            assert time.process_time() - start < 1


def test_columns_of_captions():
    texts = [*EMAIL, *PHONE, *IP, *CARD, None, "  "]
    frame = pd.DataFrame({"caption": pd.array(texts, pd.ArrowDtype(pa.string()))})
    rows = pa.Table.from_pandas(TextStatistics(["words", "personal"]).step()(frame)).to_pylist()
    assert len(rows) == len(texts)
    for text, row in zip(texts, rows, strict=True):
        blank = text is None or not text.strip()
        expected = {name: None if blank else PERSONAL_MEASURES[name](text) for name in PERSONAL}
        assert {name: row[f"text_{name}"] for name in PERSONAL} == expected
    assert TextStatistics().names == [*TEXT_STATISTICS] == TextStatistics(["all"]).names
    assert [*PERSONAL_DEFINITIONS] == [*PERSONAL]
    assert [*CAPTION_DEFINITIONS] == [*TEXT_STATISTICS, *PERSONAL]
    with pytest.raises(ConfigError, match="of personal"):
        TextStatistics(["has_mail"])
