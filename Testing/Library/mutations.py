"""Bytes, texts and JSON gone wrong. Whoever drives the random numbers, hypothesis or a seed, decides what happens."""

from __future__ import annotations

import copy
import json
import math
import re
from random import Random
from typing import Any

NUMBERS = (
    "0", "-1", "1", "2", "3", "7", "255", "256", "30000", "65536", "2147483647", "-2147483648", "4294967296",
    "9223372036854775807", "99999999999999999999", "1e9", "1e308", "1e-308", "-0.0", "0.5", "nan", "inf", "-inf",
    "0x10", "1,5", "１", "²", "1e", "--1", "",
)  # fmt: skip
WORDS = (
    "", " ", "\t", "\r", "\0", "\\", "/", "..", ".", "*", "?", "%s", "%", "{}", "{0}", "=", ":", ":=", ";", "|", "&",
    "@", "#", "-", "--", "'", '"', "<", ">", "]]>", "&x;", "NaN", "null", "None", "true", "LOCAL", "LIST", "none", "L4",
    "l4", "S1", "T13", "L4/L5", "canal", "L3:L1", "T11:S1", "L5@0,0,0", "L5@nan,0,0", "x" * 300, "ä" * 200, "\ud800",
    "\u202e",
    "＝1+1", "=1+1", "vertebra", "custom:", "custom:x", "ignore", "background", "a\nb",
)  # fmt: skip
HEADER_LINES = (
    "data file: {secret}", "data file:\t{secret}", "ElementDataFile = {secret}", "elementdatafile = LOCAL",
    "# x\rdata file: x",
    "byte skip: -1", "line skip: 3", "encoding: hex", "encoding: bzip2", "dimension: 16", "NDims = 30000", "NDims = -1",
    "HeaderSize = -1", "CompressedData = True", "kinds: " + "domain " * 400, "content: " + "x" * 5000,
    "space: scanner-xyz",
    "space directions: (0,0,0) (0,0,0) (0,0,0)", "Segment0_Layer:=99999", "Segment0_LabelValue:=1e3", "Segment0_Name:=",
    "Segmentation_MasterRepresentation:=Fractional labelmap", "Segmentation_ConversionParameters:=|&|&||",
    "Segment00000_ID:=x", "Segment1_Tags:=|:|:|SpineSegAI.Structure:nan|",
)  # fmt: skip
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_TIMES = (1, 1, 1, 2, 4)  # how often an input is changed: mostly once, so that what is behind a check is met, too


def damaged(data: bytes, rng: Random) -> bytes:
    """Cut short, doubled, or with other bytes in it."""
    for _ in range(rng.choice(_TIMES)):
        start = rng.randrange(min(len(data), rng.choice((64, 400, 1 << 30))) + 1)
        before, part, after = _cut(data, start, rng.choice((1, 1, 2, 4, 8, 64, 4096)))
        noise = bytes(rng.randrange(256) for _ in part[:16])
        same = rng.choice((b"\0", b"\xff", b"\x7f", b"\n", b"\r", b"9")) * len(part)
        data = before + rng.choice((b"", after, part * 2 + after, noise + after, same + after, part + after + part))
    return data


def reworded(text: str, rng: Random, secret: str = "secret.raw") -> str:
    """Lines left out, doubled, put elsewhere or added; numbers and words changed; other line ends."""
    for _ in range(rng.choice(_TIMES)):
        lines = text.split("\n")
        at = rng.randrange(len(lines))
        kind = rng.randrange(8)
        if kind == 0:
            del lines[at]
        elif kind == 1:
            lines.insert(at, lines[rng.randrange(len(lines))])
        elif kind == 2:
            lines.insert(at, rng.choice(HEADER_LINES).replace("{secret}", secret))
        elif kind == 3:
            lines[at] = lines[at].replace(rng.choice((" ", ":", "=", ",", '"')), rng.choice(WORDS))
        elif kind == 4:
            cut = rng.randrange(len(lines[at]) + 1)
            lines[at] = lines[at][:cut] + rng.choice(WORDS) + lines[at][cut:]
        text = rng.choice(("\r", "\r\n")).join(lines) if kind == 5 else "\n".join(lines)
        if kind > 5 and (found := list(_NUMBER.finditer(text))):
            number = rng.choice(found)
            text = text[: number.start()] + rng.choice(NUMBERS) + text[number.end() :]
    return text


def odd_value(rng: Random) -> Any:
    """What nobody expects in a JSON document."""
    scalars = (None, True, False, 0, 1, -1, 0.5, 24, 2**31, 2**70, 1e308, math.nan, math.inf, -math.inf)
    holders: tuple[Any, ...] = ([], {}, [[]], [None], {"": None}, [1, 2, 3], ["L4", "L5"], {"L4": 1}, [0] * 1000)
    kind = rng.randrange(5)
    if kind == 4:
        return _nested(rng.choice((3, 50))) if rng.randrange(8) == 0 else rng.randrange(-3, 300)
    return copy.deepcopy(rng.choice((scalars, holders, WORDS, NUMBERS)[kind]))


def altered(document: Any, rng: Random) -> Any:
    """A copy of a JSON document with odd values, and keys that are missing, new, or have each other's values."""
    document = copy.deepcopy(document)
    for _ in range(rng.choice(_TIMES)):
        places = list(_places(document))
        if not places:
            return odd_value(rng)
        holder, key = rng.choice(places)
        kind = rng.randrange(8)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[rng.choice(WORDS)] = holder[key]
        elif kind == 1:
            holder.append(holder[key])
        elif kind == 2:
            other, its = rng.choice(places)
            holder[key] = copy.deepcopy(other[its]) if other[its] is not holder else odd_value(rng)
        else:
            holder[key] = odd_value(rng)
    return document


def as_json(document: Any, rng: Random) -> str:
    """A JSON text, sometimes one that goes wrong as text, or that is nested far too deeply."""
    text = json.dumps(document)
    kind = rng.randrange(12)
    if kind == 0:
        return reworded(text, rng)
    if kind == 1:
        return rng.choice(("[", '{"a":')) * 100_000
    return "\ufeff" + text if kind == 2 else text


def _cut(data: bytes, start: int, length: int) -> tuple[bytes, bytes, bytes]:
    return data[:start], data[start : start + length], data[start + length :]


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def _places(value: Any) -> Any:
    if isinstance(value, (dict, list)):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])
