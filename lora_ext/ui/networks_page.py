"""The tab of network files: a list to look through and the card of the chosen one, as HTML."""

from __future__ import annotations

NETWORKS_PANEL = """
<section class="lw-networks-page">
  <div class="lw-controls">
    <input type="search" id="lw-networks-search" placeholder="Search by name or folder" aria-label="search the networks"
      autocomplete="off" spellcheck="false">
    <select id="lw-networks-order" aria-label="order">
      <option value="name">by name</option><option value="changed">newest first</option>
      <option value="size">largest first</option>
    </select>
    <button type="button" class="lw-button" data-lw-action="refresh-networks">Refresh</button>
    <span id="lw-networks-count" class="lw-hint"></span>
  </div>
  <p class="lw-control-error" role="alert" data-lw-error></p>
  <ul id="lw-networks-notes" class="lw-warnings"></ul>
  <div class="lw-networks-columns">
    <ul id="lw-networks-list" class="lw-networks-list" tabindex="0" aria-label="networks"></ul>
    <div id="lw-network-card"><p class="lw-hint">Choose a network.</p></div>
  </div>
</section>
"""
