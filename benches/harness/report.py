"""The table for people and the JSON for programs."""

import json


def spread(series, subject, column):
    found = series.spread(subject, column.key)
    if not found:
        return "-"
    median, least, most = (value / column.scale for value in found)
    number = f"{{:,.{column.digits}f}}".format
    return f"{number(median)} ({number(least)}-{number(most)})" if least != most else number(median)


def table(series):
    """One series as text: a line for each subject, a line for each verdict."""
    rows = [["", *(column.heading for column in series.columns)]]
    for subject in series.rounds:
        rows.append([subject, *(spread(series, subject, column) for column in series.columns)])
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = [f"{series.probe}  {series.title}"]
    for row in rows:
        cells = [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        lines.append("    " + "  ".join(cells).rstrip())
    for verdict in series.verdicts():
        criterion = verdict.criterion
        value = "-" if verdict.value is None else f"{verdict.value:,.2f}"
        bound = "at most" if criterion.at_most else "at least"
        goal = "" if criterion.goal is None else f", goal {criterion.goal:g}"
        lines.append(f"    {criterion.text}: {value} (due {bound} {criterion.due:g}{goal}): {verdict.word()}")
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


def write_json(file, facts, all_series):
    file.parent.mkdir(exist_ok=True)
    whole = {**facts, "series": [series.as_json() for series in all_series]}
    file.write_text(json.dumps(whole, indent=1) + "\n")
