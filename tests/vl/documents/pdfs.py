"""PDFs to read, written by hand: what a page shows is known to the point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Page:
    """A page of `width` x `height` points filled with `colour` (0 to 1), and black in its lower left quarter."""

    width: float
    height: float
    colour: tuple[float, float, float] = (1.0, 1.0, 1.0)
    rotate: int = 0

    @property
    def content(self) -> str:
        fill = " ".join(map(str, self.colour))
        whole = f"{fill} rg 0 0 {self.width} {self.height} re f"
        return f"{whole} 0 0 0 rg 0 0 {self.width / 2} {self.height / 2} re f"


def write_pdf(path: Path, pages: Sequence[Page], trailer: str = "") -> Path:
    """A PDF of such pages. `trailer`: more entries of the trailer."""
    numbers = [3 + 2 * i for i in range(len(pages))]
    objects = {
        1: "<< /Type /Catalog /Pages 2 0 R >>",
        2: f"<< /Type /Pages /Count {len(pages)} /Kids [{' '.join(f'{n} 0 R' for n in numbers)}] >>",
    }
    for number, page in zip(numbers, pages, strict=True):
        objects[number] = (
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {page.width} {page.height}] /Rotate {page.rotate} "
            f"/Contents {number + 1} 0 R /Resources << >> >>"
        )
        objects[number + 1] = f"<< /Length {len(page.content)} >>\nstream\n{page.content}\nendstream"
    out, places = "%PDF-1.4\n", []
    for number, content in sorted(objects.items()):
        places.append(len(out))
        out += f"{number} 0 obj\n{content}\nendobj\n"
    start = len(out)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n" + "".join(f"{place:010} 00000 n \n" for place in places)
    out += f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R {trailer}>>\nstartxref\n{start}\n%%EOF\n"
    path.write_bytes(out.encode("latin-1"))
    return path
