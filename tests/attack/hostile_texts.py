"""Texts that a terminal would obey, a browser would run, or a file could not hold."""

from __future__ import annotations

MARK = "document.documentElement.dataset.pwned=1"
MARKUP = [
    f"<script>{MARK}</script>",
    f"</script><script>{MARK}</script>",
    f"</style><script>{MARK}</script>",
    f"</textarea><script>{MARK}</script>",
    f"</title><svg onload={MARK}>",
    f"<img src=x onerror={MARK}>",
    f'<img src="x" onerror="{MARK}">',
    f'"><img src=x onerror={MARK}>',
    f"'><img src=x onerror={MARK}>",
    f"<svg/onload={MARK}>",
    f"<svg><script>{MARK}</script></svg>",
    f"<svg><animate onbegin={MARK} attributeName=x dur=1s>",
    f'<svg><set onbegin="{MARK}" attributeName="x" to="y"/></svg>',
    f'<math><mtext><style><img src=x onerror="{MARK}"></style></mtext></math>',
    f"<body onload={MARK}>",
    f"<iframe srcdoc='<script>parent.{MARK}</script>'></iframe>",
    f"<iframe src='javascript:parent.{MARK}'></iframe>",
    f"<object data='data:text/html,<script>parent.{MARK}</script>'></object>",
    f"<embed src='javascript:{MARK}'>",
    f'<a href="javascript:{MARK}" autofocus onfocus={MARK}>x</a>',
    f"<input autofocus onfocus={MARK}>",
    f"<select autofocus onfocus={MARK}>",
    f"<details open ontoggle={MARK}><summary>x</summary></details>",
    f"<video><source onerror={MARK}></video>",
    f"<audio src=x onerror={MARK}>",
    f"<marquee onstart={MARK}>x</marquee>",
    f"<form action='javascript:{MARK}'><button autofocus onfocus={MARK}>x</button></form>",
    f"<meta http-equiv=refresh content='0;url=javascript:{MARK}'>",
    f"<base href='javascript:{MARK}//'>",
    f"<link rel=stylesheet href='data:text/css,*{{x:1}}' onload={MARK}>",
    f"<style onload={MARK}>*{{color:red}}</style>",
    f"<style>@import 'javascript:{MARK}';</style>",
    f'<p style="background:url(javascript:{MARK})">x</p>',
    f'<div style="animation-name:x" onanimationstart="{MARK}"></div>',
    f"<template><script>{MARK}</script></template>",
    f"<noscript><p title='</noscript><img src=x onerror={MARK}>'>",
    f"<!--><img src=x onerror={MARK}>-->",
    f"<![CDATA[><script>{MARK}</script>]]>",
    f"<?xml ?><script>{MARK}</script>",
    f"&lt;script&gt;{MARK}&lt;/script&gt;",
    f"{{{{ ''.__class__ }}}}<script>{MARK}</script>",
    f"{{% raw %}}<script>{MARK}</script>",
    f"${{{MARK}}}",
    f"`;{MARK};`",
    f"\\u003cscript>{MARK}</script>",
    f"';{MARK};'",
    f'";{MARK};"',
    f"\u2028{MARK}\u2029",
    f"<scr\x00ipt>{MARK}</script>",
    f"\ufeff<script>{MARK}</script>",
    f"<SCRIPT SRC=data:text/javascript,{MARK}></SCRIPT>",
    f"<button popovertarget=x onclick={MARK}>x</button><div popover id=x onbeforetoggle={MARK}></div>",
]
OBEYED = [
    "\x1b[2J\x1b[H",  # clears the screen
    "\x1b]8;;http://evil\x1b\\click\x1b]8;;\x1b\\",  # a link
    "\x1b]0;title\x07",  # the title of the window
    "\x1b]52;c;cm0gLXJmIH4=\x07",  # the clipboard
    "\x1b[6n\x1b[c",  # the terminal writes back
    "\x1bP+q544e\x1b\\",  # device control
    "\x1b_G;x\x1b\\\x1b^x\x1b\\",  # application, privacy message
    "\x1b(0\x1bc",  # another character set, a reset
    "\x9b31mred\x9d0;t\x9c\x90q\x9c",  # the same in one character each
    "real\rforged",
    "a\x08\x08b\x7f\x0c\x0b",
    "\x07\x05\x0e\x0f\x00",
    "admin\u202egnp.exe\u2066x\u2069\u200f",  # directions
    "one\u2028two\u2029three\x85four",  # lines
    "half \ud800 and \udcff",  # cannot be written at all
    "[link=http://evil]x[/link] [red]y[/] [/] [bold",  # the table's own markup
]
