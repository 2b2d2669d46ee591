"""Personal data: e-mail addresses, public IPv4 addresses and, where wanted, telephone numbers become placeholders.

Source: Penedo et al. 2024 (FineWeb), section 3.1 and data card. Placeholders are names and addresses that are reserved for
examples. Expressions are bounded in length and begin only at the begin of a word, so that no text makes
them slow; each is tried only where a cheap sign of it is there.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from data_prep.cleaning.rule import Edit, Rule, RuleEdit
from pretrain.data.cleaning_settings import PersonalDataSettings

SOURCE = "Penedo et al. 2024 (FineWeb), section 3.1 and data card"
CONTEXT_CHARACTERS = 80
_LOCAL = r"A-Za-z0-9._%+\-"
EMAIL = re.compile(
    rf"(?<![{_LOCAL}])[{_LOCAL}]{{1,64}}@(?:[A-Za-z0-9\-]{{1,63}}\.){{1,8}}[A-Za-z]{{2,24}}(?![A-Za-z0-9])"
)
IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)")
PHONE = re.compile(
    r"(?<![\w+.])(?:\+[1-9]\d{0,2}(?:[ .\-/]?\(?\d{1,5}\)?){2,6}|(?:\(\d{3}\) ?|\d{3}[.\-])\d{3}[.\-]\d{4})(?![\w.]?\d)"
)
_IPV4_SIGN = re.compile(r"\.\d{1,3}\.\d")
_DIGITS = re.compile(r"\d")
MIN_PHONE_DIGITS = 8

RULES = (
    Rule("email_address", SOURCE, ("email_placeholder",), effect="mask"),
    Rule("ip_address", SOURCE, ("ip_placeholder",), effect="mask"),
    Rule("phone_number", "not in FineWeb: E.164 and North American numbers", ("phone_placeholder",), effect="mask"),
)


@dataclass(frozen=True)
class Mask:
    """One kind of personal data and what stands for it."""

    rule: str
    pattern: re.Pattern[str]
    placeholder: str
    sign: Callable[[str], bool]
    """Whether a text may hold such data; cheap."""
    is_one: Callable[[str], bool]
    """Whether what the expression found is such data."""


class PersonalData:
    """The step. It removes no document."""

    name = "personal_data"
    rules = RULES

    def __init__(self, settings: PersonalDataSettings) -> None:
        self.settings = settings
        self._masks = tuple(_masks(settings))

    def mask(self, text: str) -> Edit | None:
        """The text with placeholders and what was masked; None where nothing was."""
        by_rule: dict[str, RuleEdit] = {}
        for mask in self._masks:
            if mask.sign(text):
                text, places, removed = _masked(text, mask)
                if places:
                    by_rule[mask.rule] = RuleEdit(places, removed, example="")
        if not by_rule:
            return None
        for mask in self._masks:
            if mask.rule in by_rule:
                by_rule[mask.rule].example = _around(text, mask.placeholder)
        return Edit(text, by_rule)


def is_public_ipv4(address: str) -> bool:
    """Whether it is an IPv4 address that belongs to somebody: private, reserved and documentation ones do not."""
    try:
        return ipaddress.IPv4Address(address).is_global
    except ValueError:
        return False


def is_phone_number(number: str) -> bool:
    """Whether there are digits enough for a subscriber (E.164 allows 15)."""
    return MIN_PHONE_DIGITS <= len(_DIGITS.findall(number)) <= 15


def _masks(settings: PersonalDataSettings) -> Iterator[Mask]:
    if settings.email_placeholder is not None:
        yield Mask("email_address", EMAIL, settings.email_placeholder, lambda text: "@" in text, lambda _: True)
    if settings.ip_placeholder is not None:
        yield Mask("ip_address", IPV4, settings.ip_placeholder, _has_ipv4_sign, is_public_ipv4)
    if settings.phone_placeholder is not None:
        yield Mask("phone_number", PHONE, settings.phone_placeholder, lambda _: True, is_phone_number)


def _has_ipv4_sign(text: str) -> bool:
    return _IPV4_SIGN.search(text) is not None


def _masked(text: str, mask: Mask) -> tuple[str, int, int]:
    """The text with placeholders, how many, and the bytes that went."""
    pieces: list[str] = []
    places = before = removed = 0
    for match in mask.pattern.finditer(text):
        if match.group() != mask.placeholder and mask.is_one(match.group()):
            pieces += [text[before : match.start()], mask.placeholder]
            places += 1
            removed += len(match.group())
            before = match.end()
    return "".join([*pieces, text[before:]]), places, removed


def _around(text: str, placeholder: str) -> str:
    """The text around the first placeholder, all secrets masked already."""
    at = max(text.find(placeholder), 0)
    return text[max(0, at - CONTEXT_CHARACTERS) : at + len(placeholder) + CONTEXT_CHARACTERS]
