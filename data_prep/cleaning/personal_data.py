"""Personal data: e-mail addresses, public IPv4 addresses and, where wanted, telephone numbers become placeholders.

Source: Penedo et al. 2024 (FineWeb), section 3.1 and data card. Placeholders are names and addresses that are reserved for
examples. Expressions are bounded in length and begin at the begin of a word, so that no text makes them slow; e-mail addresses
are looked for around each @ alone, IPv4 addresses where a cheap sign of one is.
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
_LOCAL_PART = re.compile(rf"(?<![{_LOCAL}])[{_LOCAL}]{{1,64}}\Z")
_DOMAIN = re.compile(r"(?:[A-Za-z0-9\-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9])")
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)")
_PHONE = re.compile(
    r"(?<![\w+.])(?:\+[1-9]\d{0,2}(?:[ .\-/]?\(?\d{1,5}\)?){2,6}|(?:\(\d{3}\) ?|\d{3}[.\-])\d{3}[.\-]\d{4})(?![\w.]?\d)"
)
_IPV4_SIGN = re.compile(r"\.\d{1,3}\.\d")
_OCTET = re.compile(r"(?<![\w.])\d{1,3}\Z")
_DIGITS = re.compile(r"\d")
MIN_PHONE_DIGITS, MAX_PHONE_DIGITS = 8, 15

RULES = (
    Rule("email_address", SOURCE, ("email_placeholder",), effect="mask"),
    Rule("ip_address", SOURCE, ("ip_placeholder",), effect="mask"),
    Rule("phone_number", "not in FineWeb: E.164 and North American numbers", ("phone_placeholder",), effect="mask"),
)


Find = Callable[[str], Iterator[tuple[int, int]]]
"""Begins and ends of data of one kind in a text, ascending and apart."""


@dataclass(frozen=True)
class Mask:
    """One kind of personal data and what stands for it."""

    rule: str
    find: Find
    placeholder: str


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
            text, places, removed = _masked(text, mask)
            if places:
                by_rule[mask.rule] = RuleEdit(places, removed, example="")
        if not by_rule:
            return None
        for mask in self._masks:
            if mask.rule in by_rule:
                by_rule[mask.rule].example = _around(text, mask.placeholder)
        return Edit(text, by_rule)


def emails(text: str) -> Iterator[tuple[int, int]]:
    """E-mail addresses: a local part of at most 64 characters (RFC 5321) and a domain with a dot."""
    end, at = 0, text.find("@")
    while at >= 0:
        local = _LOCAL_PART.search(text, max(end, at - 65), at)
        domain = _DOMAIN.match(text, at + 1) if local else None
        if local and domain:
            yield local.start(), domain.end()
            end = domain.end()
        at = text.find("@", at + 1)


def public_ipv4_addresses(text: str) -> Iterator[tuple[int, int]]:
    """IPv4 addresses that belong to somebody: private, reserved and documentation ones do not."""
    for sign in _IPV4_SIGN.finditer(text):
        first = _OCTET.search(text, max(0, sign.start() - 3), sign.start())
        match = _IPV4.match(text, first.start()) if first else None
        if match and _is_public(match.group()):
            yield match.span()


def phone_numbers(text: str) -> Iterator[tuple[int, int]]:
    """Telephone numbers in international (E.164) or North American form, of 8 to 15 digits."""
    for match in _PHONE.finditer(text):
        if MIN_PHONE_DIGITS <= len(_DIGITS.findall(match.group())) <= MAX_PHONE_DIGITS:
            yield match.span()


def _is_public(address: str) -> bool:
    try:
        return ipaddress.IPv4Address(address).is_global
    except ValueError:
        return False


def _masks(settings: PersonalDataSettings) -> Iterator[Mask]:
    if settings.email_placeholder is not None:
        yield Mask("email_address", emails, settings.email_placeholder)
    if settings.ip_placeholder is not None:
        yield Mask("ip_address", public_ipv4_addresses, settings.ip_placeholder)
    if settings.phone_placeholder is not None:
        yield Mask("phone_number", phone_numbers, settings.phone_placeholder)


def _masked(text: str, mask: Mask) -> tuple[str, int, int]:
    """The text with placeholders, how many, and the bytes that went."""
    pieces: list[str] = []
    places = before = removed = 0
    for begin, end in mask.find(text):
        if text[begin:end] != mask.placeholder:
            pieces += [text[before:begin], mask.placeholder]
            places += 1
            removed += end - begin
            before = end
    if not places:
        return text, 0, 0
    return "".join([*pieces, text[before:]]), places, removed


def _around(text: str, placeholder: str) -> str:
    """The text around the first placeholder, all secrets masked already."""
    at = max(text.find(placeholder), 0)
    return text[max(0, at - CONTEXT_CHARACTERS) : at + len(placeholder) + CONTEXT_CHARACTERS]
