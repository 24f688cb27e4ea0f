"""Figures that were measured in turns, and what they are judged by."""

import statistics
from dataclasses import asdict, dataclass, field


@dataclass
class Column:
    """One figure of a measurement, as the table shows it."""

    key: str
    heading: str
    digits: int = 0
    #: What the value is divided by for the table.
    scale: float = 1.0


@dataclass
class Criterion:
    """What a figure of ours must reach: a multiple of a peer's, or a value."""

    text: str
    key: str
    ours: str
    due: float
    goal: float | None = None
    #: Whose figure it is compared with; `None` for a value.
    peer: str | None = None
    #: Whether small is good.
    at_most: bool = False

    def reaches(self, value, bound):
        return value <= bound if self.at_most else value >= bound


@dataclass
class Verdict:
    """A criterion with what came out."""

    criterion: Criterion
    value: float | None

    def word(self):
        if self.value is None:
            return "not measured"
        if not self.criterion.reaches(self.value, self.criterion.due):
            return "NOT REACHED"
        goal = self.criterion.goal
        return "goal reached" if goal is not None and self.criterion.reaches(self.value, goal) else "reached"


@dataclass
class Series:
    """What one measurement gave, round by round and by subject."""

    probe: str
    title: str
    columns: list
    criteria: list = field(default_factory=list)
    #: Subject -> one dictionary of figures per round.
    rounds: dict = field(default_factory=dict)
    notes: list = field(default_factory=list)

    def add(self, subject, figures):
        self.rounds.setdefault(subject, []).append(figures)

    def values(self, subject, key):
        found = [figures.get(key) for figures in self.rounds.get(subject, [])]
        return [value for value in found if value is not None]

    def spread(self, subject, key):
        """Median, least and greatest; `None` when there is nothing."""
        values = self.values(subject, key)
        return (statistics.median(values), min(values), max(values)) if values else None

    def verdicts(self):
        return [Verdict(criterion, self._value(criterion)) for criterion in self.criteria]

    def _value(self, criterion):
        ours = self.values(criterion.ours, criterion.key)
        if not ours:
            return None
        if criterion.peer is None:
            return statistics.median(ours)
        theirs = self.values(criterion.peer, criterion.key)
        # Round by round: what disturbs one turn disturbs its neighbour too.
        ratios = [our / their for our, their in zip(ours, theirs) if their]
        return statistics.median(ratios) if ratios else None

    def as_json(self):
        return {
            "probe": self.probe,
            "title": self.title,
            "columns": [asdict(column) for column in self.columns],
            "rounds": self.rounds,
            "notes": self.notes,
            "verdicts": [
                {"text": verdict.criterion.text, "value": verdict.value, "due": verdict.criterion.due,
                 "goal": verdict.criterion.goal, "at_most": verdict.criterion.at_most, "verdict": verdict.word()}
                for verdict in self.verdicts()
            ],
        }

    @classmethod
    def from_json(cls, json):
        """What `as_json` has written, as far as a table shows it; and its verdicts, which are not made again."""
        series = cls(json["probe"], json["title"], [Column(**column) for column in json["columns"]],
                     rounds=json["rounds"], notes=json["notes"])
        verdicts = [
            Verdict(Criterion(found["text"], "", "", found["due"], found["goal"], at_most=found["at_most"]),
                    found["value"])
            for found in json["verdicts"]
        ]
        return series, verdicts
