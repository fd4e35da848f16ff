"use strict";
/* The list of network files, and the card of one: looked at here, and by name from the slot panel. */
(() => {
  const core = window.loraWorkshop;
  const { ask, byId, element, actions, stem } = core;
  const [beginList, beginCard] = [core.newest(), core.newest()];
  const inTurn = core.queue();  // an answer that came late would show the card as it was before the next change
  const MOST_SHOWN = 500;
  const ORDERS = {
    name: (a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }),
    changed: (a, b) => b.changed - a.changed,
    size: (a, b) => b.size - a.size,
  };
  const state = { networks: null, listed: null, chosen: "", notes: [] };

  /* The networks as they were last listed; asks the program the first time, or anew where `fresh`. */
  function load(fresh = false) {
    if (state.listed && !fresh) return state.listed;
    const isNewest = beginList();
    const listed = ask("networks").then((answer) => {
      if (!isNewest()) return answer.networks;
      state.networks = answer.networks;
      state.notes = answer.notes;
      draw();
      for (const tell of core.onNetworks) tell(state.networks);
      return state.networks;
    });
    state.listed = listed;
    listed.catch(() => { if (isNewest()) state.listed = null; });
    return listed;
  }

  function draw() {
    if (!byId("networks-list")) return;
    const words = byId("networks-search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (each) => words.every((word) => `${each.folder}/${each.name}`.toLowerCase().includes(word));
    const found = (state.networks || []).filter(fits).sort(ORDERS[byId("networks-order").value]);
    byId("networks-list").replaceChildren(...found.slice(0, MOST_SHOWN).map(row));
    byId("networks-notes").replaceChildren(...state.notes.map((note) => element("li", { textContent: note })));
    const more = found.length > MOST_SHOWN ? `, the first ${MOST_SHOWN} are shown: search for others` : "";
    byId("networks-count").textContent = `${found.length} of ${(state.networks || []).length}${more}`;
  }

  function row(entry) {
    const picture = entry.picture ? element("img", { src: entry.picture, alt: "", loading: "lazy" }) : element("span", { className: "lw-no-picture" });
    const button = element("button", { type: "button", className: "lw-network-row", title: entry.path }, picture,
      element("b", { textContent: entry.name }), element("span", { className: "lw-hint", textContent: entry.folder }));
    Object.assign(button.dataset, { lwAction: "open-network", path: entry.path });
    button.setAttribute("aria-current", String(entry.path === state.chosen));
    return element("li", {}, button);
  }

  async function open(path) {
    state.chosen = path;
    for (const button of byId("networks-list").querySelectorAll("button")) {
      button.setAttribute("aria-current", String(button.dataset.path === path));
    }
    const isNewest = beginCard();
    try {
      const answer = await ask(`network?path=${encodeURIComponent(path)}`);
      if (isNewest()) show(answer);
    } catch (error) {
      if (isNewest()) byId("network-card").replaceChildren(element("ul", { className: "lw-errors" }, element("li", { textContent: error.message })));
    }
  }

  const part = (selector) => byId("network-card").querySelector(selector);
  const controls = () => [...byId("network-card").querySelectorAll("[data-key]")];

  function show(answer) {
    byId("network-card").innerHTML = answer.html;
    for (const control of controls()) control.dataset.was = control.value;
  }

  /* The card after a change. What was typed since it was sent, and where, stays; so does the field of a picture: its
     dialog may be open. */
  function refresh(answer) {
    const [before, chooser, active] = [controls(), part("[data-lw-cover]"), document.activeElement];
    const typed = new Set(before.filter((control) => control.value !== (control.dataset.sent ?? control.dataset.was)));
    show(answer);
    part("[data-lw-cover]").replaceWith(chooser);
    for (const old of before.filter((each) => typed.has(each) || each === active)) {
      const control = controls().find((each) => each.dataset.key === old.dataset.key);
      if (!control) continue;
      if (typed.has(old)) control.value = old.value;
      mark(control);
      if (old !== active) continue;
      control.focus();
      control.setSelectionRange?.(old.selectionStart, old.selectionEnd);
    }
  }

  /* Opens the card of a network by the name that a tag would hold. */
  async function openByName(name) {
    const networks = await load();
    const found = networks.find((each) => each.name === name) || networks.find((each) => each.name.toLowerCase() === name.toLowerCase());
    if (!found) throw new Error(`there is no network ${name}`);
    const top = [...document.querySelectorAll("#tabs > .tab-nav > button")].find((tab) => tab.textContent.trim() === "LoRA Workshop");
    top?.click();
    [...document.querySelectorAll("#lw-tabs > .tab-nav > button")].find((tab) => tab.textContent.trim() === "Networks").click();
    await open(found.path);
  }

  const changedIn = (form) => [...form.querySelectorAll("[data-key]")].filter((control) => control.value !== control.dataset.was);

  async function save(button, route) {
    const form = button.closest(".lw-network-form");
    const values = {};
    for (const control of changedIn(form)) values[control.dataset.key] = control.dataset.sent = control.value;
    button.disabled = true;
    await change(part(".lw-network").dataset.path, `[data-kind="${form.dataset.kind}"] .lw-control-error`, route, { values });
  }

  const isShown = (path) => state.chosen === path && part(".lw-network")?.dataset.path === path;

  /* Sends a change of the network at `path`, and shows its card as it is then. */
  function change(path, place, route, body) {
    return inTurn(async () => {
      tell(path, place, "");
      try {
        const answer = await ask(route, { path, ...body });
        if (isShown(path)) {
          beginCard();  // what was asked for before tells of the time before
          refresh(answer);
        }
        await load(true);
      } catch (error) {
        tell(path, place, error.message);
        if (isShown(path)) controls().forEach(markUnsent);
      }
    });
  }

  /* Tells what is wrong at its place in the card, or above the list where another card is shown by now. */
  function tell(path, place, message) {
    if (isShown(path)) part(place).textContent = message;
    else if (message) core.report(new Error(`${stem(path)}: ${message}`));
  }

  function markUnsent(control) {
    delete control.dataset.sent;
    mark(control);
  }

  function mark(control) {
    const form = control.closest(".lw-network-form");
    form.querySelector(".lw-button").disabled = changedIn(form).length === 0;
  }

  async function setCover(input) {
    const file = input.files[0];
    if (!file) return;
    const { path } = part(".lw-network").dataset;
    const place = ".lw-cover-error";
    try {
      const picture = await addressOf(file);
      input.value = "";  // so that the same file may be chosen again
      await change(path, place, "network/cover", { picture });
    } catch (error) {
      tell(path, place, error.message);
    }
  }

  const addressOf = (file) => new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(reader.error);
    reader.readAsDataURL(file);
  });

  actions["refresh-networks"] = () => load(true);
  actions["open-network"] = (button) => open(button.dataset.path);
  actions["save-words"] = (button) => save(button, "network/words");
  actions["save-metadata"] = (button) => save(button, "network/metadata");

  document.addEventListener("input", (event) => {
    if (event.target.matches("#lw-networks-search, #lw-networks-order")) draw();
    else if (event.target.matches("#lw-network-card [data-key]")) mark(event.target);
  });
  document.addEventListener("change", (event) => {
    if (event.target.matches("[data-lw-cover]")) setCover(event.target);
  });

  core.onNetworks = [];
  core.onMount.push(() => {
    new IntersectionObserver((seen) => {
      if (seen.some((each) => each.isIntersecting)) load(true).catch(core.report);  // a training may have ended since
    }).observe(byId("networks-list").parentElement);
  });
  core.networks = { load, openByName };
})();
