"""The live view on a fake console: widths, hostile names, colour, drawing times, and how it ends."""

from __future__ import annotations

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from fleetune.cohort.events import Advanced, EpochDone, Started, TrialDone, TrialFailed, TrialParked
from fleetune.live import follow
from fleetune.live.lines import Lines
from fleetune.live.screen import SECONDS_BETWEEN, SHARE_OF_TIME, Screen, picture
from fleetune.live.state import Plan, State
from fleetune.study import saving
from tests.live.made_up import Clock, trial

WIDTHS = (20, 40, 60, 100, 200)
HOSTILE = "[bold red]a[/] \x1b[31m\x07\r\n:boom: 日本語 \u202e"
STYLES = re.compile(r"\x1b\[([0-9;]*)m")
ERASE_LINE, HIDE, SHOW = "\x1b[2K", "\x1b[?25l", "\x1b[?25h"


def busy(n: int, *, optimistic: bool = False, clock: Clock | None = None) -> State:
    """n trials of three methods in the middle of their training, one of them parked."""
    time = clock or Clock()
    state = State(Plan(n + 5, 2000 * n, optimistic=optimistic), time)
    trials = [
        trial(f"m{i % 3}-{HOSTILE}-s{i}", method=f"m{i % 3}{HOSTILE}", task=HOSTILE, scores=(0.5, 0.1 * (i % 9)))
        for i in range(n)
    ]  # fmt: skip
    for one in trials:
        state.follow(Started(one))
        state.follow(EpochDone(one, one.results[-1]))
    time.now += 1
    state.follow(Advanced(tuple(trials), rows=16, tokens=160))
    state.follow(TrialParked(trials[-1]))
    state.follow(TrialFailed(trial("broken", task=HOSTILE), "the loss became nan"))
    return state


def drawn(state: State, width: int, height: int = 24) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    console.print(picture(state, width, height))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("height", [10, 24, 60])
@pytest.mark.parametrize("n", [2, 40])
def test_a_picture_fits_its_console(width: int, height: int, n: int) -> None:
    lines = drawn(busy(n), width, height)
    assert max(cell_len(line) for line in lines) <= width
    # With three bests, head and foot, ten lines are the fewest that hold one trial too.
    assert len(lines) <= max(height, 12)


@pytest.mark.parametrize("width", WIDTHS[1:])
def test_what_matters_is_said_at_every_width(width: int) -> None:
    told = "\n".join(drawn(busy(5), width))
    for words in (
        "cohort of 4",
        "epoch",
        "best",
        "1/10 trials (1 failed)",
        "16 examples/s",
        "left",
        "58 %",
    ):
        assert words in told
    assert "accuracy 0.5000" in told and "best so far on the selection rows" in told


@pytest.mark.parametrize("height", [8, 10, 12])
@pytest.mark.parametrize("stopping", [False, True])
def test_low_screens_keep_how_far_the_run_is(height: int, stopping: bool) -> None:
    """The bests give way, and what a second Ctrl-C does is said until the end."""
    state = busy(5)
    state.stopping = stopping
    found = drawn(state, 30, height)
    assert len(found) <= height and any("trials" in line and "/" in line for line in found)
    assert any("stopping after this step" in line for line in found) == stopping


def test_a_signal_is_told_in_the_picture() -> None:
    """A line written beside it would be wiped by the next picture, and leave lines of the last one behind."""
    state = busy(2)
    screen, out = screen_on(state, width=80, height=24, force_terminal=True)
    with screen:
        assert saving.tellers
        saving.tellers[-1]()
        assert "stopping after this step" in out.getvalue()
    assert not saving.tellers


def test_wide_screens_say_more() -> None:
    narrow, wide = "\n".join(drawn(busy(5), 40)), "\n".join(drawn(busy(5), 100))
    assert "loss" in wide and "score" in wide and "cohort of 4, 1 waiting" in wide
    assert "loss" not in narrow and "score" not in narrow


def test_too_many_trials_are_counted_and_not_listed() -> None:
    told = "\n".join(drawn(busy(40), 100))
    shown = sum(line.startswith(("m0-", "m1-", "m2-")) for line in drawn(busy(40), 100))
    assert f"and {39 - shown} more" in told


def test_optimistic_scores_carry_their_stamp_on_the_screen() -> None:
    assert "OPTIMISTIC" in "\n".join(drawn(busy(3, optimistic=True), 60))


def screen_on(state: State, **console: object) -> tuple[Screen, io.StringIO]:
    file = io.StringIO()
    settings = {"width": 100, "height": 30, "force_terminal": True, "legacy_windows": False}
    return Screen(state, Console(file=file, **{**settings, **console})), file


def test_names_are_neither_markup_nor_control() -> None:
    screen, file = screen_on(busy(3), color_system=None)
    with screen:
        screen.watch(TrialFailed(trial(HOSTILE), f"a reason {HOSTILE}"))
    told = file.getvalue()
    assert "[bold red]a[/]" in told and ":boom:" in told
    assert "\x1b[31m" not in told and "\x07" not in told and "\u202e" not in told
    assert "\\x1b[31m" in told


def test_no_color_leaves_no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    def colours() -> set[int]:
        screen, file = screen_on(busy(3), color_system="truecolor")
        with screen:
            screen.watch(Advanced((), 0, 0))
        codes = [c for found in STYLES.findall(file.getvalue()) for c in found.split(";") if c]
        return {int(c) for c in codes if int(c) >= 30}

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert colours()  # the bar has a colour, so the next line can fail
    monkeypatch.setenv("NO_COLOR", "1")
    assert colours() == set()


def test_drawing_takes_a_small_share_of_the_time() -> None:
    """However slow the terminal and however many the rounds."""
    for cost in (0.0, 0.001, 0.1):
        time = Clock()
        state = busy(3, clock=time)
        screen, file = screen_on(state)
        draws = 0

        def refresh(cost: float = cost, time: Clock = time) -> None:
            nonlocal draws
            draws += 1
            time.now += cost

        with screen:
            screen.live.refresh = refresh  # type: ignore[method-assign]
            start = time.now
            for _ in range(20_000):
                time.now += 0.005
                screen.watch(Advanced((), 0, 0))
            took = time.now - start
            screen.live.refresh = lambda: None  # type: ignore[method-assign]
        del file
        # One picture more: the first comes at once.
        assert draws <= took / SECONDS_BETWEEN + 1
        assert cost * draws <= SHARE_OF_TIME * took + cost
        assert draws > 10


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, SystemExit])
def test_the_view_is_wiped_at_the_end_and_the_cursor_comes_back(
    error: type[BaseException] | None,
) -> None:
    screen, file = screen_on(busy(4), color_system=None)
    before = ""
    try:
        with screen:
            screen.watch(Advanced((), 16, 160))
            before = file.getvalue()
            if error is not None:
                raise error
    except BaseException as caught:
        assert error is not None and type(caught) is error
    after = file.getvalue()[len(before) :]
    assert HIDE in before and SHOW in after
    height = before.count("\n") + 1
    assert after.count(ERASE_LINE) >= height - 1
    last = after.rstrip("\n").splitlines()[-1]
    assert last.endswith("1/9 trials have ended, 0:01 in this command; 1 failed")


def test_a_pipe_gets_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(State(Plan(2, 3200), Clock()))
    one = trial(f"a-{HOSTILE}", scores=(0.25,))
    for event in (Started(one), EpochDone(one, one.results[-1]), TrialDone(one), TrialFailed(trial("b"), HOSTILE)):  # fmt: skip
        lines.watch(event)
    told = capsys.readouterr().err
    assert told.isprintable() or set(c for c in told if not c.isprintable()) == {"\n"}
    found = told.splitlines()
    assert found[0] == "reviews: train" and len(found) == 4
    assert "epoch 1.0/4 loss 1.0000 accuracy 0.2500 (best 0.2500); 0 examples/s" in found[1]
    assert found[2].endswith("done, best epoch 1 (1/2 trials)")
    assert found[3].endswith("(2/2 trials)") and "b: failed, [bold red]" in found[3]


@pytest.mark.parametrize(("terminal", "kind"), [(True, Screen), (False, Lines)])
def test_who_is_told_depends_on_the_terminal(
    monkeypatch: pytest.MonkeyPatch, tmp_path, terminal: bool, kind: type
) -> None:
    made = Console(file=io.StringIO(), force_terminal=terminal, width=80, height=24)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(follow, "Console", lambda stderr: made)
    monkeypatch.setattr(follow, "plan_of", lambda *given: Plan(1, 100))
    monkeypatch.setattr(follow, "everyone", lambda *watches: watches[0])
    with follow.in_terminal(None, tmp_path) as watch:  # type: ignore[arg-type]
        assert isinstance(watch.__self__, kind)  # type: ignore[attr-defined]
