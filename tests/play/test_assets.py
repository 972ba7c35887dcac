"""The page is small, strict and whole; one file of it asks nobody for anything."""

from __future__ import annotations

import json
import re

from tercet.play import assets

MODULES = {name: data.decode() for name, (data, _) in assets.assets().items() if name.endswith(".js")}


def test_page_and_files_are_below_200_kilobytes():
    assert len(assets.page()) + sum(len(data) for data, _ in assets.assets().values()) < 200_000


def test_nothing_on_the_page_comes_from_elsewhere_or_stands_in_the_markup():
    html = assets.page().decode()
    assert "style=" not in html
    assert not re.search(r"<script[^>]*>[^<]", html)
    for text in (html, *MODULES.values(), assets.assets()["play.css"][0].decode()):
        assert "//cdn" not in text
        assert not re.findall(r"https?://", text)


def test_texts_never_become_markup():
    for name, text in MODULES.items():
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text), name


def test_every_import_is_a_file_that_exports_the_name():
    for name, text in MODULES.items():
        for names, file in re.findall(r'^import \{ ([^}]*) \} from "\./([^"]+)";$', text, re.M):
            exported = set(re.findall(r"^export (?:async )?(?:function\*?|const|class) (\w+)", MODULES[file], re.M))
            assert set(names.split(", ")) <= exported, (name, file)


def test_modules_of_the_frozen_page_share_no_name_and_need_no_other():
    names = [f"{name}.js" for name in assets.FROZEN]
    top = [
        found
        for name in names
        for found in re.findall(r"^(?:export )?(?:async )?(?:function\*?|const|let|class) (\w+)", MODULES[name], re.M)
    ]
    assert len(top) == len(set(top))
    needed = {file for name in names for file in re.findall(r'from "\./([^"]+)"', MODULES[name])}
    assert needed <= set(names)
    before = dict.fromkeys(names)
    for number, name in enumerate(names):
        assert all(file in list(before)[:number] for file in re.findall(r'from "\./([^"]+)"', MODULES[name]))


def test_a_frozen_page_has_a_policy_by_digest_and_its_texts_are_no_markup():
    html = assets.frozen({"title": "<b>a & b</b>", "path": [{"user": "</script><script>alert(1)</script>"}]})
    assert re.search(r'content="default-src \'none\'[^"]*style-src \'sha256-[^"]*script-src \'sha256-[^"]*"', html)
    assert "unsafe" not in html
    assert "alert(1)</script>" not in html
    assert "<title>&lt;b&gt;a &amp; b&lt;/b&gt;</title>" in html
    assert not re.search(r"https?://", html)
    state = re.search(r'<script type="application/json" id="state">(.*?)</script>', html, re.S)
    assert state is not None
    assert json.loads(state.group(1))["path"][0]["user"] == "</script><script>alert(1)</script>"
    script = html[html.index('<script type="module">') :]
    assert not re.search(r"^(?:import|export) ", script, re.M)
