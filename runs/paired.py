"""Statistics of paired runs: every arm has one value for each seed, and arms are compared seed by seed.

A difference is claimed by the rule of `claim`; nothing else in a table says that one arm is better.
"""

import math
import statistics
import textwrap

ESTABLISHED, INDICATIVE, NOTHING = "✓", "(✓)", ""

RULE = (
    "✓: five seeds or more, the same sign in every seed, and a mean above two standard errors. "
    "(✓), indicative: three or four seeds, the same sign in every seed. "
    "No mark: the difference is not shown. A mark says that the difference is there; "
    "its sign says which arm it favors."
)


def differences(ours, theirs):
    """`ours` minus `theirs` ({seed: value}) for the seeds that both have, in order of the seed."""
    return [ours[seed] - theirs[seed] for seed in sorted(set(ours) & set(theirs))]


def standard_error(values):
    """Standard error of the mean; infinite where one value says nothing about the spread."""
    if len(values) < 2:
        return math.inf
    return statistics.stdev(values) / math.sqrt(len(values))


def claim(values):
    """The mark of paired differences, see RULE."""
    if len(values) < 3 or not (all(v > 0 for v in values) or all(v < 0 for v in values)):
        return NOTHING
    if len(values) < 5:
        return INDICATIVE
    wide = abs(statistics.mean(values)) > 2 * standard_error(values)
    return ESTABLISHED if wide else NOTHING


def cell(values, digits=2):
    """Mean and range in percent: `31.24 (29.80–33.01)`; a single value alone; empty for none."""
    if not values:
        return ""
    percent = lambda value: f"{100 * value:.{digits}f}"
    text = percent(statistics.mean(values))
    return f"{text} ({percent(min(values))}–{percent(max(values))})" if len(values) > 1 else text


def difference_cell(values):
    """Mean difference in points, its range, its standard error and its mark."""
    if not values:
        return ""
    text = f"{100 * statistics.mean(values):+.2f}"
    if len(values) > 1:
        low, high, error = min(values), max(values), standard_error(values)
        text += f" ({100 * low:+.2f} to {100 * high:+.2f}) ± {100 * error:.2f}"
    return f"{text} {claim(values)}".replace("-", "−").rstrip()


def table(header, rows):
    """A Markdown table; the first column is to the left, the others to the right."""
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def prose(text):
    """A paragraph in lines of at most 100 characters."""
    return textwrap.fill(text, 100, break_on_hyphens=False)


def between_markers(document, name, text):
    """`document` with `text` between the markers of `name`; KeyError where it has no such pair."""
    begin, end = f"<!-- evidence:{name} -->", f"<!-- /evidence:{name} -->"
    if document.count(begin) != 1 or document.count(end) != 1:
        raise KeyError(name)
    before, rest = document.split(begin)
    if end not in rest:
        raise KeyError(name)
    text = text.strip("\n")
    return f"{before}{begin}\n{text}\n{rest[rest.index(end):]}"
