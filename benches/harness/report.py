"""The table for people and the JSON for programs."""

import json

from .series import Series


def spread(series, subject, column):
    found = series.spread(subject, column.key)
    if not found:
        return "-"
    median, least, most = (value / column.scale for value in found)
    number = f"{{:,.{column.digits}f}}".format
    return f"{number(median)} ({number(least)}-{number(most)})" if least != most else number(median)


def rows(series):
    """A head, and a row for each subject."""
    head = ["", *(column.heading for column in series.columns)]
    return [head] + [
        [subject, *(spread(series, subject, column) for column in series.columns)] for subject in series.rounds
    ]


def judgement(verdict):
    """What is asked for, what came out, and the word for it."""
    criterion = verdict.criterion
    value = "-" if verdict.value is None else f"{verdict.value:,.2f}"
    bound = "at most" if criterion.at_most else "at least"
    goal = "" if criterion.goal is None else f", goal {criterion.goal:g}"
    return f"{criterion.text}: {value} (due {bound} {criterion.due:g}{goal}): {verdict.word()}"


def table(series):
    """One series as text: a line for each subject, a line for each verdict."""
    cells_of = rows(series)
    widths = [max(len(row[index]) for row in cells_of) for index in range(len(cells_of[0]))]
    lines = [f"{series.probe}  {series.title}"]
    for row in cells_of:
        cells = [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        lines.append("    " + "  ".join(cells).rstrip())
    lines += [f"    {judgement(verdict)}" for verdict in series.verdicts()]
    lines += [f"    {note}" for note in series.notes]
    disturbed = disturbance(series)
    if disturbed:
        lines.append(f"    {disturbed}")
    return "\n".join(lines)


def disturbance(series):
    """Says when others took a part of the machine in spite of the repeats."""
    every = [figures for rounds in series.rounds.values() for figures in rounds if "foreign" in figures]
    if not every:
        return ""
    worst = max(figures["stolen"] + figures["foreign"] for figures in every)
    return f"up to {worst:.0%} of the processors went to others" if worst > 0.1 else ""


def summary(all_series):
    """Every verdict in one line each."""
    lines = ["Ratios"]
    for series in all_series:
        for verdict in series.verdicts():
            value = "-" if verdict.value is None else f"{verdict.value:,.2f}"
            text = f"{series.probe:4} {series.title}: {verdict.criterion.text}"
            lines.append(f"    {verdict.word():12} {value:>9}  {text}")
    return "\n".join(lines)


def heading(facts):
    """When, of what and where: the lines above all tables."""
    seen = facts["machine"]
    return [
        f"{facts['date']}, commit {facts['commit']}",
        f"{seen['cpu']}, {seen['cores']} cores, {seen['memory_gib']} GiB, {seen['system']}, Linux {seen['kernel']}",
        f"TCP {facts['congestion_control']}; {facts['rounds']} rounds; medians, with least and greatest in brackets",
    ]


def markdown(whole):
    """What `write_json` has written, as Markdown for a document."""
    lines = [f"- {line}" for line in heading(whole)]
    for json in whole["series"]:
        series, verdicts = Series.from_json(json)
        head, *others = rows(series)
        lines += ["", f"### {series.probe}: {series.title}", ""]
        lines += [_row(head), _row(["---", *(["---:"] * (len(head) - 1))]), *map(_row, others), ""]
        lines += [f"- {judgement(verdict)}" for verdict in verdicts]
        lines += [f"- {note}" for note in [*series.notes, disturbance(series)] if note]
    left_out = [*whole["failures"], *(f"left out: {text}" for text in whole["missing"].values())]
    if left_out:
        lines += ["", *(f"- {_cell(text)}" for text in left_out)]
    return "\n".join(line for index, line in enumerate(lines) if line or lines[index - 1])


def _row(cells):
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text):
    return " ".join(text.replace("|", "\\|").split())


def write_json(file, facts, all_series):
    file.parent.mkdir(exist_ok=True)
    whole = {**facts, "series": [series.as_json() for series in all_series]}
    file.write_text(json.dumps(whole, indent=1) + "\n")
