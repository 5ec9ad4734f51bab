"""Text for people."""

from __future__ import annotations

# neither a model nor a file must move the cursor or clear the screen
_VISIBLE = {i: 0x2400 + i for i in range(32) if chr(i) not in "\n\t"} | {127: 0x2421}
_VISIBLE |= {i: 0xFFFD for i in range(128, 160)}


def format_bytes(n: float) -> str:
    """1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB"):
        if abs(n) < 1024:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.2f} GiB"


def visible(text: str) -> str:
    """Text from anywhere as a terminal can be given it: control characters are shown, not obeyed."""
    return text.replace("\r\n", "\n").translate(_VISIBLE)
