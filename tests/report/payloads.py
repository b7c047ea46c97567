"""Texts that must show as texts wherever a user can put them."""

from __future__ import annotations

from typing import Any

PLACES = ("run", "task", "label", "text", "reason", "backbone", "machine", "setting")
"""Each stands in the facts as MARK and its name, until `planted` puts a payload there."""

PAYLOADS = (
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><img src=x onerror=alert(1)>',
    "'><svg onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    "</title><script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "</desc></svg><img src=x onerror=alert(1)>",
    "]]><script>alert(1)</script>",
    "<!--<script>alert(1)</script>-->",
    "--><script>alert(1)</script>",
    "<iframe src=javascript:alert(1)></iframe>",
    "<a href=javascript:alert(1)>x</a>",
    "<math><mtext><img src=x onerror=alert(1)></mtext></math>",
    "<details open ontoggle=alert(1)>",
    "<body onload=alert(1)>",
    "<meta http-equiv=refresh content='0;url=https://example.invalid/'>",
    "<link rel=stylesheet href=https://example.invalid/x.css>",
    "<base href=https://example.invalid/>",
    "<form action=https://example.invalid/><input autofocus onfocus=alert(1)>",
    "<video src=https://example.invalid/v onerror=alert(1)>",
    "<style>@import 'https://example.invalid/x.css';</style>",
    "{{ 7 * 7 }}{% raw %}",
    "${alert(1)}`alert(1)`",
    "$\\mathdefault{x}$ $\\frac{1}{2}$",
    "&lt;script&gt;alert(1)&lt;/script&gt; &#60;b&#62;",
    "\u202eevil\u202c \u200b\ufeff \x00\x07\x1b[31m",
    "\U0001f600 caf\u00e9 \u4e2d\u6587 \u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    "a\nb\r\n<b onmouseover=alert(1)>c\u2028d",
)


def planted(value: Any, payloads: dict[str, str]) -> Any:
    """The same facts with payloads in their places; keys of dictionaries too."""
    if isinstance(value, str):
        for place, payload in payloads.items():
            value = value.replace(f"MARK{place}", payload)
        return value
    if isinstance(value, dict):
        return {planted(k, payloads): planted(v, payloads) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [planted(v, payloads) for v in value]
    return value
