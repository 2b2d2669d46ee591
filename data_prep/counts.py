"""What was read and left out, in counts, of a range or of a corpus."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from data_prep.cleaning.tally import EXAMPLES, Example, Tally, smallest
from data_prep.items import BadDocument, Dropped


@dataclass
class Counts:
    """Grows while documents are read; `merge` adds another part of the corpus, in the order of the plan."""

    documents: int = 0
    """Readable ones, those that are left out included."""
    passed: int = 0
    """Those of them that pass cleaning."""
    bad_documents: int = 0
    """Those that cannot be read."""
    bad: list[BadDocument] = field(default_factory=list)
    """They themselves, of a range; of a corpus the first few."""
    damaged_files: int = 0
    """Those of them with which the rest of a file is lost."""
    damaged: list[BadDocument] = field(default_factory=list)
    """The first few of these."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Readable ones that are left out, by reason."""
    contaminated: list[Example] = field(default_factory=list)
    """Some of those that share text with an eval file."""
    tally: Tally = field(default_factory=Tally)
    """Of the cleaning, by step and rule."""

    def add_bad(self, document: BadDocument) -> None:
        """Something could not be read."""
        self.bad_documents += document.documents
        self.bad.append(document)
        if document.lost == "rest_of_file":
            self.damaged_files += 1
            self.damaged = [*self.damaged, document][:EXAMPLES]

    def drop(self, dropped: Dropped) -> None:
        """A document is left out."""
        self.dropped[dropped.reason] = self.dropped.get(dropped.reason, 0) + 1

    def add_contaminated(self, example: Example) -> None:
        """A document shares text with an eval file."""
        self.contaminated = smallest([*self.contaminated, example])

    def merge(self, other: "Counts") -> None:
        """Adds the counts of a part that comes later."""
        self.documents += other.documents
        self.passed += other.passed
        self.bad_documents += other.bad_documents
        self.bad = [*self.bad, *other.bad[:EXAMPLES]][:EXAMPLES]
        self.damaged_files += other.damaged_files
        self.damaged = [*self.damaged, *other.damaged][:EXAMPLES]
        for reason, count in other.dropped.items():
            self.dropped[reason] = self.dropped.get(reason, 0) + count
        self.contaminated = smallest([*self.contaminated, *other.contaminated])
        self.tally.merge(other.tally)

    @classmethod
    def sum(cls, parts: Iterable["Counts"]) -> Self:
        """Of several parts, in order."""
        total = cls()
        for part in parts:
            total.merge(part)
        return total

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the ledger."""
        return {**asdict(replace(self, tally=Tally())), "tally": self.tally.to_dict()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(
            documents=content["documents"],
            passed=content["passed"],
            bad_documents=content["bad_documents"],
            bad=[BadDocument(**document) for document in content["bad"]],
            damaged_files=content.get("damaged_files", 0),
            damaged=[BadDocument(**document) for document in content.get("damaged", ())],
            dropped=dict(content["dropped"]),
            contaminated=[Example(**example) for example in content["contaminated"]],
            tally=Tally.from_dict(content["tally"]),
        )

    def summary(self) -> dict[str, Any]:
        """For the manifest: documents, bad_documents, dropped by reason; where there are any, the number of damaged files."""
        told = {
            "documents": self.documents,
            "bad_documents": self.bad_documents,
            "dropped": dict(sorted(self.dropped.items())),
        }
        return told | ({"damaged_files": self.damaged_files} if self.damaged_files else {})
