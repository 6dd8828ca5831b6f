"""The verdicts on all mutants beside what is known of survivors, and the page docs/mutants.md."""

from __future__ import annotations

import textwrap
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tools.mutate.mutants import Mutant
from tools.mutate.plugin import Verdict

Key = tuple[str, str, str, str, int]


@dataclass(frozen=True)
class Explanation:
    """Why some mutants of one function may survive: they change nothing, or nothing specified. `because` says it."""

    keys: tuple[Key, ...]
    because: str


def read_explanations(path: Path) -> list[Explanation]:
    """The file of explanations: tables `[[survivors]]` with `file`, `function`, `because` and `changes`, a list of
    pairs of an expression and what it becomes, and a third element for an occurrence that is not the first.

    Raises:
        ValueError: two explanations are of the same mutant.
    """
    found = []
    seen: set[Key] = set()
    for table in tomllib.loads(path.read_text())["survivors"]:
        keys = []
        for before, after, *occurrence in table["changes"]:
            key = (table["file"], table["function"], before, after, *(occurrence or [1]))
            if key in seen:
                raise ValueError(f"an explanation must be the only one of its mutant, got two of {key}")
            seen.add(key)
            keys.append(key)
        found.append(Explanation(tuple(keys), " ".join(table["because"].split())))
    return found


@dataclass(frozen=True)
class Outcome:
    """All mutants: what became of them, and which survivors are explained."""

    mutants: list[Mutant]
    invalid: frozenset[int]
    killed: dict[int, Verdict]
    explained: list[tuple[Explanation, list[Mutant]]]
    unexplained: list[Mutant]
    outdated: list[Key]  # explanations of mutants that were killed, or are no more

    @property
    def survivors(self) -> frozenset[int]:
        return frozenset(m.number for m in self.mutants) - self.invalid - self.killed.keys()


def outcome(
    mutants: list[Mutant], invalid: frozenset[int], verdicts: Iterable[Verdict], explanations: list[Explanation]
) -> Outcome:
    """Joins mutants that were tried, verdicts of any library, one of which is enough to kill, and explanations."""
    killed = {verdict.number: verdict for verdict in verdicts if verdict.killed_by}
    survivors = {m.key: m for m in mutants if m.number not in killed and m.number not in invalid}
    explained, outdated = [], []
    for explanation in explanations:
        of_it = [survivors.pop(key) for key in explanation.keys if key in survivors]
        alive = {m.key for m in of_it}
        outdated += [key for key in explanation.keys if key not in alive]
        explained.append((explanation, of_it))
    return Outcome(mutants, invalid, killed, explained, list(survivors.values()), outdated)


def table(found: Outcome) -> str:
    """Numbers of mutants by file, and of all of them, as markdown."""
    lines = ["| file | mutants | killed | invalid | survivors |", "|---|---|---|---|---|"]
    rows = [(name, [m for m in found.mutants if m.file == name]) for name in sorted({m.file for m in found.mutants})]
    for name, own in [*rows, ("all", found.mutants)]:
        numbers = {m.number for m in own}
        counts = [len(numbers & some) for some in (found.killed.keys(), found.invalid, found.survivors)]
        lines.append(f"| {name} | {len(own)} | " + " | ".join(map(str, counts)) + " |")
    return "\n".join(lines)


def survivors(found: Outcome) -> str:
    """The explained survivors as markdown, in groups of one explanation."""
    parts = []
    for explanation, own in found.explained:
        if not own:
            continue
        parts.append(f"### {own[0].file}, {own[0].function}\n")
        parts.append("| line | expression | survives as |\n|---|---|---|")
        for m in own:
            before, after = (text.replace("|", "\\|") for text in (m.before, m.after))
            again = f" (occurrence {m.occurrence})" if m.occurrence > 1 else ""
            parts.append(f"| {m.line} | `` {before} ``{again} | `` {after} `` |")
        parts.append("\n" + textwrap.fill(explanation.because, 120, break_on_hyphens=False) + "\n")
    return "\n".join(parts)


def killers(found: Outcome) -> str:
    """How many mutants each file of tests killed first, as markdown."""
    counts: dict[str, int] = {}
    for verdict in found.killed.values():
        file = verdict.killed_by.split("::")[0]
        counts[file] = counts.get(file, 0) + 1
    lines = ["| tests | mutants that failed there first |", "|---|---|"]
    lines += [f"| {file} | {count} |" for file, count in sorted(counts.items(), key=lambda pair: -pair[1])]
    return "\n".join(lines)
