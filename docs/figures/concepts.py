"""Draws the figures of concepts.md: `python docs/figures/concepts.py`. SVG on a card of its own, for light and dark pages."""

from pathlib import Path

INK, SOFT, CARD = "#1f2937", "#64748b", "#f8fafc"
BLUE, ORANGE, GREEN = "#bfdbfe", "#fed7aa", "#bbf7d0"
MARKER = (
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    f'<path d="M0 0 8 4 0 8z" fill="{SOFT}"/></marker></defs>'
)


def box(x: float, y: float, width: float, height: float, fill: str, text: str = "") -> str:
    shape = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5" fill="{fill}" stroke="{SOFT}"/>'
    return shape + (label(x + width / 2, y + height / 2 + 5, text) if text else "")


def label(x: float, y: float, text: str, anchor: str = "middle", fill: str = INK) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{fill}">{text}</text>'


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path d="M{x1} {y1}L{x2} {y2}" stroke="{SOFT}" stroke-width="1.5" marker-end="url(#tip)"/>'


def save(name: str, width: int, height: int, title: str, parts: list[str]) -> None:
    size, font = f'viewBox="0 0 {width} {height}"', 'font-family="sans-serif" font-size="14"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font} role="img">'
    card = f'<rect width="{width}" height="{height}" rx="8" fill="{CARD}"/>'
    text = "\n".join([head, f"<title>{title}</title>", MARKER, card, *parts, "</svg>\n"])
    Path(__file__).with_name(f"{name}.svg").write_text(text)


def segments() -> None:
    """Three segments, and what passes between them."""
    parts = []
    for number in range(3):
        x = 40 + 230 * number
        parts += [
            box(x, 130, 170, 40, BLUE, f"segment {number + 1}"),
            label(x + 85, 195, "its own tokens, causally", fill=SOFT),
        ]
        parts += [arrow(x + 40, 75, x + 40, 128), arrow(x + 130, 128, x + 130, 75)]
        parts += [label(x + 34, 106, "read", "end", SOFT), label(x + 136, 106, "write", "start", SOFT)]
        parts += [box(x, 30, 170, 42, ORANGE, ("memory: empty", "memory of 1", "memory of 1, 2")[number])]
        if number < 2:
            parts.append(arrow(x + 172, 51, x + 228, 51))
    parts.append(label(360, 228, "A segment reads what earlier segments wrote, and is written when it ends.", fill=SOFT))
    save("segments", 720, 245, "Segments and the memory that passes between them", parts)


def memories() -> None:
    """Cached tokens, a matrix, a signal."""
    parts = [label(125, 30, "tokens"), label(365, 30, "a matrix"), label(600, 30, "a signal")]
    parts += [box(30 + 38 * i, 60, 32, 90, ORANGE if i else CARD) for i in range(5)]
    parts += [label(46, 110, "…", fill=SOFT), label(125, 180, "each key with its value;", fill=SOFT)]
    parts += [label(125, 200, "the oldest go", fill=SOFT)]
    parts += [box(310 + 22 * i, 55 + 22 * j, 22, 22, BLUE if (i + 2 * j) % 3 else ORANGE) for i in range(5) for j in range(5)]
    parts += [label(365, 190, "a sum over all pairs;", fill=SOFT), label(365, 210, "the more, the more it blurs", fill=SOFT)]
    curve = "M490 130C510 60 530 60 550 100S590 150 610 100 650 60 670 95 700 120 710 90"
    parts += [f'<path d="{curve}" fill="none" stroke="#15803d" stroke-width="2.5"/>', arrow(485, 155, 712, 155)]
    parts += [label(600, 180, "the whole past on [0, 1];", fill=SOFT), label(600, 200, "the older, the narrower", fill=SOFT)]
    save("memories", 740, 230, "What three kinds of memory keep", parts)


def budget() -> None:
    """Equal bars of FLOPs, cut into more or fewer steps."""
    parts = []
    for row, (name, steps, fill) in enumerate((("window", 12, BLUE), ("small memory", 9, ORANGE), ("large memory", 6, GREEN))):
        y, width = 30 + 52 * row, 504 / steps
        parts.append(label(140, y + 24, name, "end"))
        parts += [box(160 + width * i, y, width, 36, fill) for i in range(steps)]
        parts.append(label(676, y + 24, "same FLOPs", "start", SOFT))
    parts.append(label(412, 205, "FLOPs spent; a box is a training step (a sketch, not a measurement)", fill=SOFT))
    save("budget", 760, 225, "One budget of FLOPs cut into steps of different cost", parts)


if __name__ == "__main__":
    segments()
    memories()
    budget()
