"use strict";
/* The list of network files, and the card of one: looked at here, and by name from the slot panel. */
(() => {
  const core = window.loraWorkshop;
  const { ask, byId, element, actions } = core;
  const MOST_SHOWN = 500;
  const ORDERS = {
    name: (a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }),
    changed: (a, b) => b.changed - a.changed,
    size: (a, b) => b.size - a.size,
  };
  const state = { networks: null, loading: null, chosen: "", notes: [] };

  /* The networks as they were last listed; asks the program the first time, or anew where `fresh`. */
  function load(fresh = false) {
    if (state.networks && !fresh) return Promise.resolve(state.networks);
    state.loading ??= ask("networks").then((answer) => {
      state.networks = answer.networks;
      state.notes = answer.notes;
      draw();
      for (const tell of core.onNetworks) tell(state.networks);
      return state.networks;
    }).finally(() => { state.loading = null; });
    return state.loading;
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
    try {
      show(await ask(`network?path=${encodeURIComponent(path)}`));
    } catch (error) {
      byId("network-card").replaceChildren(element("ul", { className: "lw-errors" }, element("li", { textContent: error.message })));
    }
  }

  function show(answer) {
    byId("network-card").innerHTML = answer.html;
    for (const control of byId("network-card").querySelectorAll("[data-key]")) control.dataset.was = control.value;
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
    const values = Object.fromEntries(changedIn(form).map((control) => [control.dataset.key, control.value]));
    button.disabled = true;
    const place = `[data-kind="${form.dataset.kind}"] .lw-control-error`;
    await inTurn(() => change(byId("network-card").querySelector(place), route, { values }, button));
  }

  /* Changes are sent one after the other: an answer that came late would show the card as it was before the next. */
  async function inTurn(work) {
    const before = state.turn;
    let done;
    state.turn = new Promise((ended) => { done = ended; });
    await before;
    try {
      await work();
    } finally {
      done();
    }
  }

  /* Sends a change and shows the card as it is then; what another form holds unsaved stays in it. */
  async function change(place, route, body, button) {
    const card = byId("network-card").querySelector(".lw-network");
    const form = button?.closest(".lw-network-form");
    const unsaved = [...card.querySelectorAll(".lw-network-form")].filter((each) => each !== form).flatMap(changedIn)
      .map((control) => [control.closest(".lw-network-form").dataset.kind, control.dataset.key, control.value]);
    place.textContent = "";
    if (button) button.disabled = true;
    try {
      show(await ask(route, { path: card.dataset.path, ...body }));
      for (const [kind, key, value] of unsaved) {
        const control = byId("network-card").querySelector(`[data-kind="${kind}"] [data-key="${CSS.escape(key)}"]`);
        control.value = value;
        mark(control);
      }
      await load(true);
    } catch (error) {
      place.textContent = error.message;
      if (button) button.disabled = false;
    }
  }

  function mark(control) {
    const form = control.closest(".lw-network-form");
    form.querySelector(".lw-button").disabled = changedIn(form).length === 0;
  }

  async function setCover(input) {
    const file = input.files[0];
    if (!file) return;
    const picture = await new Promise((done, failed) => {
      const reader = new FileReader();
      reader.onload = () => done(reader.result);
      reader.onerror = () => failed(reader.error);
      reader.readAsDataURL(file);
    });
    await inTurn(() => change(byId("network-card").querySelector(".lw-cover-error"), "network/cover", { picture }, null));
  }

  actions["refresh-networks"] = () => load(true);
  actions["open-network"] = (button) => open(button.dataset.path);
  actions["save-words"] = (button) => save(button, "network/words");
  actions["save-metadata"] = (button) => save(button, "network/metadata");

  document.addEventListener("input", (event) => {
    if (event.target.matches("#lw-networks-search, #lw-networks-order")) draw();
    else if (event.target.matches("#lw-network-card [data-key]")) mark(event.target);
  });
  document.addEventListener("change", (event) => {
    if (event.target.matches("[data-lw-cover]")) setCover(event.target).catch(core.report);
  });

  core.onNetworks = [];
  core.onMount.push(() => {
    new IntersectionObserver((seen) => {
      if (seen.some((each) => each.isIntersecting)) load(true).catch(core.report);  // a training may have ended since
    }).observe(byId("networks-list").parentElement);
  });
  core.networks = { load, openByName };
})();
