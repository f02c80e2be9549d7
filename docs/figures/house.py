"""Draws the rooms of the package from its real imports: `python -m docs.figures.house`, from the root of the repository.

A room stands one floor above the highest room that it imports. A line goes from a room to each that it imports, but for
those that it reaches through another one, too.
"""

from pathlib import Path

from tests.support.imports import ROOMS, imports_of, modules_of, room_of

INK, SOFT, CARD, ROOM = "#1f2937", "#94a3b8", "#f8fafc", "#bfdbfe"
WIDTH, FLOOR, BOX = 900, 62, (96, 34)
HIDDEN = ("", "__main__")  # the face and the entry point, which every picture of a house has


def floors_of(below: dict[str, set[str]]) -> dict[str, int]:
    """Room -> its floor: 0 for rooms that import none."""
    floors: dict[str, int] = {}
    for room in ROOMS:  # ground first, so that what a room imports has its floor already
        if room in below:
            floors[room] = 1 + max((floors[other] for other in below[room]), default=-1)
    return floors


def direct(below: dict[str, set[str]]) -> set[tuple[str, str]]:
    """The imports that are not also reached through another room."""
    reached: dict[str, set[str]] = {}
    for room in ROOMS:
        if room in below:
            reached[room] = below[room].union(*(reached[other] for other in below[room]))
    return {
        (room, other)
        for room, others in below.items()
        for other in others
        if not any(other in reached[between] for between in others if between != other)
    }


def drawn(root: Path) -> str:
    """The picture as SVG, on a card of its own for light and dark pages."""
    rooms = [room for room in ROOMS if room not in HIDDEN]
    below: dict[str, set[str]] = {room: set() for room in rooms}
    for one in imports_of(root):
        above, other = room_of(one.importer), room_of(one.imported)
        if above != other and above not in HIDDEN and other not in HIDDEN:
            below[above].add(other)
    files = {room: sum(room_of(module) == room for module in modules_of(root)) for room in rooms}
    floors = floors_of(below)
    height = (max(floors.values()) + 1) * FLOOR + 20
    place: dict[str, tuple[float, float]] = {}
    for floor in range(max(floors.values()) + 1):
        here = [room for room in rooms if floors[room] == floor]
        for number, room in enumerate(here):
            place[room] = (WIDTH * (number + 1) / (len(here) + 1), height - 10 - FLOOR * (floor + 0.5))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="14" '
        'role="img">',
        "<title>The rooms of infini_jax: each imports only rooms below it</title>",
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="{CARD}"/>',
    ]
    for room, other in sorted(direct(below)):
        (x1, y1), (x2, y2) = place[room], place[other]
        parts.append(f'<path d="M{x1:.0f} {y1 + BOX[1] / 2:.0f}L{x2:.0f} {y2 - BOX[1] / 2:.0f}" stroke="{SOFT}"/>')
    for room in rooms:
        x, y = place[room]
        parts.append(
            f'<rect x="{x - BOX[0] / 2:.0f}" y="{y - BOX[1] / 2:.0f}" width="{BOX[0]}" height="{BOX[1]}" rx="5" '
            f'fill="{ROOM}" stroke="{SOFT}"/>'
        )
        count = "" if files[room] == 1 else f" {files[room]}"
        parts.append(f'<text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle" fill="{INK}">{room}{count}</text>')
    return "\n".join([*parts, "</svg>\n"])


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(drawn(Path(__file__).parents[2]))
