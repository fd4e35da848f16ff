"""Fixed HTML of the page; javascript/lora_workshop.js fills in what changes."""

from __future__ import annotations

from html import escape


def step_heading(number: int, title: str) -> str:
    """The heading of one step of the work."""
    return f'<h3 class="lw-step"><span>{number}</span>{escape(title)}</h3>'


CONTROLS = """
  <button type="button" class="lw-button" id="lw-pause" data-lw-action="pause" disabled>Pause</button>
  <button type="button" class="lw-button" id="lw-save" data-lw-action="save" disabled>Save now</button>
  <button type="button" class="lw-button" id="lw-sample" data-lw-action="sample" disabled>Sample now</button>
  <button type="button" class="lw-button" id="lw-stop" data-lw-action="stop" disabled>Stop and keep</button>
  <button type="button" class="lw-button" id="lw-cancel" data-lw-action="cancel" disabled>Cancel</button>
  <span id="lw-control-error" class="lw-control-error" role="alert" data-lw-error></span>
"""


def live_panel(page_key: str) -> str:
    """The run that goes on; the script sends the key along with all that it asks, where there is one."""
    return f"""
<section id="lw-live" class="lw-live" data-state="idle" data-key="{escape(page_key)}" aria-label="training">
  <p class="lw-run-line"><span id="lw-run-state" class="lw-pill">idle</span><b id="lw-run-name"></b></p>
  <div id="lw-bar" class="lw-bar" role="progressbar" aria-label="progress" aria-valuemin="0" aria-valuemax="100">
    <div id="lw-bar-fill"></div>
  </div>
  <p id="lw-run-facts" class="lw-run-facts"></p>
  <p id="lw-run-numbers" class="lw-run-numbers"></p>
  <p id="lw-run-note" class="lw-run-note"></p>
  <div id="lw-paused" class="lw-paused" hidden></div>
  <div id="lw-resumable" class="lw-controls"></div>
  <ul id="lw-queue" class="lw-queue"></ul>
  <div class="lw-columns">
    <div><h4>Loss <label class="lw-switch"><input type="checkbox" id="lw-show-bands"> by timesteps</label></h4>
      <div id="lw-chart" class="lw-chart-box">
      <p class="lw-hint">The loss of each step appears here.</p></div></div>
    <div><h4>Saved epochs</h4><ul id="lw-saved" class="lw-saved"></ul></div>
  </div>
  <div id="lw-samples" class="lw-samples"></div>
  <ul id="lw-messages" class="lw-messages"></ul>
</section>
"""


def try_panel(program: str) -> str:
    """Buttons that carry a run's network to where pictures are made in `program` (webui, standalone)."""
    return f"""
<section id="lw-try" class="lw-try" data-program="{escape(program)}">
  <p id="lw-try-best" class="lw-best" hidden></p>
  <p id="lw-try-hint" class="lw-hint">As soon as a file is saved, it can be tried from here.</p>
  <div id="lw-try-buttons" class="lw-controls" hidden></div>
  <p id="lw-try-note" class="lw-control-error" role="alert"></p>
</section>
"""


RUNS_PANEL = """
<section class="lw-runs-page">
  <p class="lw-control-error" role="alert" data-lw-error></p>
  <table class="lw-runs">
    <thead><tr><th>Name</th><th>State</th><th>Started</th><th>Steps</th><th>Loss</th>
      <th>Best epoch</th><th>Files</th><th></th></tr></thead>
    <tbody id="lw-runs"></tbody>
  </table>
  <p id="lw-runs-empty" class="lw-hint">No runs yet.</p>
  <ul id="lw-runs-notes" class="lw-hint"></ul>
  <div id="lw-run-detail" class="lw-run-detail"></div>
</section>
"""
