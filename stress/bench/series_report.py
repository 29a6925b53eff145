"""Texts, tables and aims of what is measured of sending only what changed."""

from __future__ import annotations

from collections.abc import Callable

from .aims import Aim, Rows

BYTES, SECONDS = 1.05, 1.05

SERIES = """Series of 10 checkpoints made by the real frameworks, each in new files, as they write them; the same ones
saved by every tool, each when the one before is in the store. Means of checkpoints 2 to 10, in MB: what a checkpoint
has; what of it the one before has not at the same place of the same file, in bytes, in blocks of 4 KiB, and rounded to
the chunks of 16 MiB in which this package looks (*chunks / blocks* is that rounding); what each tool sent. *without*:
this package without content digests. (The incumbent saves 3 of the 10.) Ours and the incumbent's are bodies that a
server received, rclone's its bytes of TCP (with `--copy-dest` of the checkpoint before), restic's and borg's what their
repositories grew by: both compress, and cut by content, so they also find what has moved; but what they store only they
can read."""
SECONDS_TEXT = """The same series: seconds from the call of `save()` until the checkpoint is in the store, which is
behind a network of so many MB/s (*-*: none); medians of so many first checkpoints (*firsts*), of which the store has
nothing, and of *n* later ones. restic is held to the rate by its own `--limit-upload`. Others save a series once."""
COMPRESSION = """The second checkpoint of a series (at most 256 MiB of it) through `zstd -b` in memory, on one core: as
it is, and with the bytes of its numbers put together by their place in the number. Ratio, and MB/s to compress and to
decompress.

Not built, for what it would save is a tenth to a third of what is sent, at a core's whole time, only behind networks
slower than that core, and at a price: other clients could not read the objects, and unchanged chunks of a file would no
longer lie at the same place, so that the store could not copy them, which saves far more."""
EDITS = """A task saves after one to three random edits of big files (in place, appended, shifted, truncated, holes,
chunks swapped, renamed, merged, other content of the same CRC-32 and size); between saves objects of the checkpoint
before are deleted or replaced by others of the same size, agent or uploader are killed, or another machine goes on.
Every checkpoint is read from the store, and compared by SHA-256."""


def of_series(rows: Rows) -> list[Aim]:
    worst = max((row for row in rows if "ours / chunks" in row), key=lambda row: row["ours / chunks"], default=None)
    if worst is None:
        return []
    text = f"Bytes sent at most {BYTES:g} x the bytes that changed, in chunks of 16 MiB"
    figures = f"at most {worst['ours / chunks']:.3f} x: {worst['series']}"
    return [Aim(text, worst["ours / chunks"] <= BYTES, figures)]


def of_seconds(rows: Rows) -> list[Aim]:
    found = []
    for label in ("first", "later"):
        ratio = f"ours / without, {label}"
        measured = [row for row in rows if ratio in row]
        if measured:
            over = [row for row in measured if row[ratio] > SECONDS]
            shown = over or [max(measured, key=lambda row: row[ratio])]
            figures = "; ".join(f"{row['series']} at {row['network, MB/s']}: {row[ratio]:.2f} x" for row in shown)
            what = "of which the store has nothing" if label == "first" else "that follow"
            text = f"Time to durable of checkpoints {what} at most {SECONDS:g} x of without digests"
            found.append(Aim(text, not over, f"{'over it: ' if over else 'at most '}{figures}"))
    return found


#: name, title, text, aims
SECTIONS: tuple[tuple[str, str, str, Callable[[Rows], list[Aim]] | None], ...] = (
    ("series", "Send only what changed", SERIES, of_series),
    ("series_seconds", "Send only what changed: time to durable", SECONDS_TEXT, of_seconds),
    ("compression", "Compression", COMPRESSION, None),
)
