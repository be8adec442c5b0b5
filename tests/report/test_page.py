"""The page: one file that fetches nothing, tells what is missing, and takes names literally."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from squint._checks import InputError
from squint._files import write_bytes
from squint.report import write_report

Build = Callable[..., Path]
MakeRecord = Callable[..., dict[str, Any]]
FIGURES = ["accuracy_vs_eps", "examples_lsq", "examples_squint_a", "information_plane", "loss_terms"]
EMPTY_TAGS = {"meta", "source", "img", "br"}


class Page(HTMLParser):
    """Collects a page's text, its tags with their attributes, and tags that are not closed properly."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = ""
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(self.text.replace("\u00a0", " ").split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in EMPTY_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += f" {data}" if self.open and self.open[-1] != "style" else ""

    def values(self, attribute: str) -> list[str]:
        return [value for _, attributes in self.tags if (value := attributes.get(attribute)) is not None]


def test_page_is_well_formed_with_unique_ids_and_live_links(report: Path) -> None:
    parsed = Page(report)
    assert parsed.unbalanced == []
    assert parsed.open == []
    ids = parsed.values("id")
    assert len(ids) == len(set(ids))
    assert {link.removeprefix("#") for link in parsed.values("href")} <= set(ids)


def test_nothing_is_fetched_or_run(report: Path) -> None:
    parsed = Page(report)
    assert all(link.startswith("#") for link in parsed.values("href"))
    assert all(source.startswith("data:image/") for source in parsed.values("src") + parsed.values("srcset"))
    assert {tag for tag, _ in parsed.tags}.isdisjoint({"script", "link", "iframe", "object", "base"})
    assert "url(" not in report.read_text(encoding="utf-8")
    assert "default-src 'none'; img-src data:" in str(parsed.values("content"))


def test_figures_are_on_the_page_and_beside_it(report: Path) -> None:
    parsed = Page(report)
    assert sorted(parsed.values("data-figure")) == FIGURES
    folder = report.parent / "figures"
    assert sorted(f.name for f in folder.iterdir()) == sorted(
        f"{n}.{e}" for n in FIGURES for e in ("png", "svg")
    )
    images = [attributes for tag, attributes in parsed.tags if tag == "img"]
    embedded = [base64.b64decode(str(image["src"]).partition(",")[2]) for image in images]
    for name in FIGURES:
        with Image.open(folder / f"{name}.png") as image:
            assert image.size[0] == 1080
        svg = (folder / f"{name}.svg").read_bytes()
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        assert svg in embedded
    assert all(len(image["alt"] or "") > 40 for image in images)


def test_headline_table_and_flags_are_told(report: Path) -> None:
    text = Page(report).text
    for part in (
        "classifies 29.8 % of 1,000 images correctly under PGD at L∞ eps 5/255 (seed protocol",
        "38.4 [35.4, 41.4]",
        "UNTRUSTED 2 red flags",
        "Square finds adversarial points for images that PGD leaves standing square = 0.561, pgd = 0.648",
        "which to first order is adversarial training with small perturbations",
        "epochs: 30 # <b>not bold</b>",
        "torch 2.13.0",
        "All 15 records",
    ):
        assert part in text
    assert "ladder" not in text


def test_same_files_same_page(build: Build, tmp_path: Path) -> None:
    first = write_report(build(tmp_path / "a", only_results=True))
    again = write_report(build(tmp_path / "b", only_results=True))
    assert again == tmp_path / "b" / "report.html"
    assert again.read_bytes() == first.read_bytes()


def test_untrusted_headline_gives_its_reasons(
    build: Build, results: dict[str, Any], record: MakeRecord, tmp_path: Path
) -> None:
    results["records"] = [record("squint_a", 5, trusted=False, red_flags=[])]
    text = Page(write_report(build(tmp_path, results, only_results=True))).text
    assert "UNTRUSTED Not to be relied on, because: an active test of the attack is missing" in text
    assert "no flag an active test" in text


def test_different_budgets_are_pointed_out(
    build: Build, results: dict[str, Any], record: MakeRecord, tmp_path: Path
) -> None:
    results["records"] = [record("squint_a", 5), record("lsq", 5, preset="quick")]
    text = Page(write_report(build(tmp_path, results, only_results=True))).text
    assert "The rows were attacked with different budgets" in text
    assert "seed protocol; quick preset" in text or "quick preset; seed protocol" in text


def test_missing_parts_are_left_out_with_a_sentence(
    build: Build, results: dict[str, Any], tmp_path: Path
) -> None:
    results["plane"] = []
    path = write_report(build(tmp_path, results, only_results=True))
    parsed = Page(path)
    assert parsed.values("data-figure") == ["accuracy_vs_eps"]
    for sentence in ("no training log", "kept no examples", "no information plane", "no config.yaml"):
        assert sentence in parsed.text


def test_a_run_without_any_record_has_a_page(build: Build, tmp_path: Path) -> None:
    bare = {"format_version": 1, "headline_eps": "5/255", "headline_attack": "pgd"}
    parsed = Page(write_report(build(tmp_path, bare, only_results=True)))
    assert parsed.unbalanced == []
    assert "No system has been evaluated" in parsed.text
    assert "holds no system and no record" in parsed.text
    assert not (tmp_path / "figures").exists()


def test_markup_in_names_stays_text(build: Build, results: dict[str, Any], tmp_path: Path) -> None:
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
    results["recipe"] = results["dataset"] = results["config_hash"] = evil
    results["class_names"] = [evil] * 10
    results["versions"] = results["hardware"] = {evil: evil}
    for system in results["systems"]:
        system["title"] = system["description"] = system["weight_bits"] = evil
    for point in results["plane"]:
        point["threat"] = evil
    for record in results["records"]:
        record["red_flags"] = [{"kind": evil, "message": evil, "measured": {evil: evil}}, evil]
        record["preset"] = evil
    folder = build(tmp_path, results, examples=("lsq",))
    (folder / "config.yaml").write_text(f"</pre>{evil}")
    (folder / "examples" / "lsq.npz").rename(folder / "examples" / 'x"><b>y.npz')
    parsed = Page(write_report(folder))
    assert parsed.unbalanced == []
    assert {tag for tag, _ in parsed.tags}.isdisjoint({"script", "b"})
    assert parsed.values("onerror") == []
    assert parsed.text.count("<script>alert(1)</script>") > 20


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_bytes(before := b"the old report")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(InputError, match="disk full"):
        write_bytes(path, b"half")
    assert path.read_bytes() == before
    assert not list(tmp_path.glob(".report*"))


def test_a_corrupt_file_writes_nothing(build: Build, tmp_path: Path) -> None:
    folder = build(tmp_path)
    (folder / "examples" / "lsq.npz").write_bytes(b"torn")
    with pytest.raises(InputError, match=re.escape("lsq.npz is no whole npz file")):
        write_report(folder)
    assert not (folder / "report.html").exists()
    assert not (folder / "figures").exists()
