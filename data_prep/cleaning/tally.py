"""What a cleaning chain did, counted by step and rule, with examples. Tallies of parts merge in any order to the same whole.

A step counts documents and bytes (UTF-8) that came in, that went out and that it changed. A rule counts the documents it removed
or changed, the bytes that went with them, and the places (lines, masks) it changed. Examples are the texts with the smallest
hashes: a fixed, unbiased choice that needs no order.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import xxhash

EXAMPLES = 5
EXAMPLE_CHARACTERS = 300


@dataclass(frozen=True, order=True)
class Example:
    """A text that was left out or changed, for people."""

    digest: str
    """Hash of the whole text, in hex."""
    text: str
    """Its beginning."""
    why: str = ""
    """What else is to be told."""


def smallest(examples: Iterable[Example]) -> list[Example]:
    """Those with the smallest hashes."""
    return sorted(set(examples))[:EXAMPLES]


@dataclass
class RuleTally:
    """Of one rule."""

    documents: int = 0
    bytes: int = 0
    places: int = 0
    examples: list[Example] = field(default_factory=list)

    def add(self, document_bytes: int, places: int, text: str) -> None:
        """Counts one document."""
        self.documents += 1
        self.bytes += document_bytes
        self.places += places
        digest = xxhash.xxh3_64_hexdigest(text.encode("utf-8", "surrogatepass"))
        if len(self.examples) < EXAMPLES or digest < self.examples[-1].digest:
            self.examples = smallest([*self.examples, Example(digest, text[:EXAMPLE_CHARACTERS])])

    def merge(self, other: "RuleTally") -> None:
        """Adds the counts of another part."""
        self.documents += other.documents
        self.bytes += other.bytes
        self.places += other.places
        self.examples = smallest([*self.examples, *other.examples])


@dataclass
class StepTally:
    """Of one step."""

    documents_in: int = 0
    bytes_in: int = 0
    documents_out: int = 0
    bytes_out: int = 0
    documents_edited: int = 0
    rules: dict[str, RuleTally] = field(default_factory=dict)

    def merge(self, other: "StepTally") -> None:
        """Adds the counts of another part."""
        self.documents_in += other.documents_in
        self.bytes_in += other.bytes_in
        self.documents_out += other.documents_out
        self.bytes_out += other.bytes_out
        self.documents_edited += other.documents_edited
        for name, rule in other.rules.items():
            self.rules.setdefault(name, RuleTally()).merge(rule)


@dataclass
class Tally:
    """Of a chain: its steps in their order."""

    steps: dict[str, StepTally] = field(default_factory=dict)

    def step(self, name: str) -> StepTally:
        """The tally of a step, made when first asked for."""
        return self.steps.setdefault(name, StepTally())

    def rule(self, step: str, rule: str) -> RuleTally:
        """The tally of a rule, made when first asked for."""
        rules = self.step(step).rules
        if rule not in rules:
            rules[rule] = RuleTally()
        return rules[rule]

    def merge(self, other: "Tally") -> None:
        """Adds the counts of another part; `other` stays as it is."""
        for name, step in other.steps.items():
            self.step(name).merge(step)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: rules sorted by name, so that equal tallies are equal bytes."""
        return {
            name: {
                **{key: value for key, value in vars(step).items() if key != "rules"},
                "rules": {
                    rule: {
                        "documents": told.documents,
                        "bytes": told.bytes,
                        "places": told.places,
                        "examples": [[example.digest, example.text] for example in told.examples],
                    }
                    for rule, told in sorted(step.rules.items())
                },
            }
            for name, step in self.steps.items()
        }

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> "Tally":
        """The inverse of `to_dict`."""
        tally = cls()
        for name, step in told.items():
            counts = {key: value for key, value in step.items() if key != "rules"}
            tally.steps[name] = StepTally(**counts)
            for rule, values in step["rules"].items():
                examples = [Example(*example) for example in values["examples"]]
                tally.steps[name].rules[rule] = RuleTally(**{**values, "examples": examples})
        return tally
