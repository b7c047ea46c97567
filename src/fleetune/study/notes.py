"""What is to be known of a prepared run before it trains, one sentence each; data/notes.py has what the rows alone say."""

from __future__ import annotations

from fleetune.data.notes import cut_rows
from fleetune.study.prepare import Prepared, is_imitated
from fleetune.study.settings import Settings


def on_lengths(prepared: Prepared, settings: Settings, place: str) -> list[str]:
    """Rows that were cut, and a length asked for that the backbone does not read; place: where the length is given."""
    most, asked = prepared.max_length, settings.max_length
    found: list[str] = []
    if asked is not None and asked > most:
        found.append(f"{place} {asked} is more than the backbone reads: {most} tokens are used")
    for task in prepared.tasks:
        of = f" ({task.dataset.task.name})" if len(prepared.tasks) > 1 else ""
        found += [
            f"{cut_rows(count, name + of, most)} ({place})"
            for name, count in task.truncated.items()
            if count
        ]
    return found


def on_dtype(dtype: str, device: str, auto: str) -> list[str]:
    """That a dtype is slow here; auto: how the best one is asked for."""
    if not is_imitated(dtype, device):
        return []
    return [
        f"{device} has no {dtype} in hardware; {auto} would take float32, which is many times faster here"
    ]
