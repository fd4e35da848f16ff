"""The report of a file tool as HTML: verdict, facts, warnings, files, curves and every module."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from lora_ext.merge.work import ModuleReport, OutputFile, ToolReport
from lora_ext.web.markup import warnings
from lora_ext.web.spectrum_chart import spectrum_charts


def report_html(report: ToolReport, preview: bool) -> str:
    """The whole report; everything in it that may come from a file is escaped."""
    verdict = f'<span class="lw-pill" data-verdict="{report.verdict}">{report.verdict}</span>' if report.verdict else ""
    return (
        f'<article class="lw-tool-report" data-preview="{str(preview).lower()}">'
        f"<h4>{escape(report.title)} {verdict}</h4>"
        f"{_files(report.files, preview)}{warnings(report.warnings)}{_facts(report)}"
        f"{spectrum_charts(report.modules)}{_modules(report.modules)}</article>"
    )


def _facts(report: ToolReport) -> str:
    rows = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(text).replace(chr(10), '<br>')}</dd></div>"
        for name, text in report.facts.items()
    )
    return f'<dl class="lw-network-facts lw-tool-facts">{rows}</dl>' if rows else ""


def _files(files: Sequence[OutputFile], preview: bool) -> str:
    word = "would write" if preview else "wrote"
    items = "".join(
        f'<li data-path="{escape(str(each.path))}" data-name="{escape(each.path.stem)}">{word} '
        f"<code>{escape(str(each.path))}</code> ({each.shown_size})</li>"
        for each in files
    )
    return f'<ul class="lw-tool-files">{items}</ul>' if items else ""


def _modules(modules: Sequence[ModuleReport]) -> str:
    if not modules:
        return ""
    rows = "".join(
        f"<tr><td>{escape(each.key)}</td><td>{_number(each.rank_before)}</td><td>{_number(each.rank_after)}</td>"
        f"<td>{'' if each.kept is None else f'{each.kept:.2%}'}</td></tr>"
        for each in modules
    )
    return (
        f'<details class="lw-tool-modules"><summary>All {len(modules):,} modules</summary><table class="lw-runs">'
        f"<thead><tr><th>Module</th><th>Rank before</th><th>after</th><th>kept</th></tr></thead><tbody>{rows}</tbody>"
        "</table></details>"
    )


def _number(value: int | None) -> str:
    return "–" if value is None else str(value)
