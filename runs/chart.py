"""Small line charts beside each other as one SVG, for documents on light and dark pages."""

# Of a panel, and from one to the next, in pixels.
WIDTH, HEIGHT, TOP, STEP = 200, 150, 34, 210
# Panels in a row: at the width of a page their text stays readable.
COLUMNS = 3
INK, LINE, BLUE, GRAY = "#333", "#888", "#2a6fb0", "#888"


def place(left, most_x, most_y):
    """A function from values to pixels, from zero to the largest ones."""
    return lambda x, y: (
        left + 40 + x / most_x * (WIDTH - 60),
        TOP + HEIGHT - 24 - y / most_y * (HEIGHT - 30),
    )


def frame(left, title, x, y):
    """The title, the axes and their names."""
    x0, y0 = left + 40, TOP + HEIGHT - 24
    middle = (TOP + y0) / 2
    return [
        f'<text x="{left + WIDTH / 2}" y="16" text-anchor="middle" font-weight="bold">{title}</text>',
        f'<path d="M{x0},{TOP} V{y0} H{left + WIDTH - 14}" fill="none" stroke="{LINE}"/>',
        f'<text x="{left + 113}" y="{y0 + 29}" text-anchor="middle">{x}</text>',
        f'<text x="{left + 12}" y="{middle}" text-anchor="middle" '
        f'transform="rotate(-90 {left + 12} {middle})">{y}</text>',
    ]


def line(points, color, radius):
    """A line with a dot at each of the points, which are in pixels."""
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    dots = [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="{radius}" fill="{color}"/>' for a, b in points]
    return [f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>', *dots]


def document(panels, label, legend=()):
    """The SVG of some panels, each drawn from 0 on, three in a row; `legend` has colors and their meanings. Its ground is
    white, so that dark pages leave the text readable."""
    rows = [panels[first : first + COLUMNS] for first in range(0, len(panels), COLUMNS)]
    above = 22 if legend else 0
    width, height = STEP * max(map(len, rows)) + 4, above + (TOP + HEIGHT + 16) * len(rows)
    parts = []
    for index, (color, text) in enumerate(legend):
        x = 12 + 150 * index
        parts += [
            f'<path d="M{x},14 h18" stroke="{color}" stroke-width="2"/><circle cx="{x + 9}" cy="14" r="3" fill="{color}"/>',
            f'<text x="{x + 24}" y="18">{text}</text>',
        ]
    for row, few in enumerate(rows):
        for column, panel in enumerate(few):
            parts.append(f'<g transform="translate({STEP * column} {above + row * (TOP + HEIGHT + 16)})">{panel}</g>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{label}" font-family="sans-serif" font-size="10" '
        f'fill="{INK}"><rect width="{width}" height="{height}" rx="4" fill="#fff"/>{"".join(parts)}</svg>\n'
    )
