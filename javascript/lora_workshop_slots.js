"use strict";
/* The slot panel of txt2img and img2img. What gradio sends with a picture is one text, the panel as JSON; the fields
   here and that text are kept alike, whoever changes one of them: a person, a pasted infotext, "Send to img2img". */
(() => {
  const core = window.loraWorkshop;
  const { element, actions, masks } = core;
  const EMPTY = { network: "", unet: 1, te: 1, region: "" };
  const shown = {};

  const panelOf = (tab) => document.querySelector(`.lw-slots[data-tab="${tab}"]`);
  const textOf = (tab) => document.querySelector(`#lw-slots-${tab}-value textarea, #lw-slots-${tab}-value input`);
  const slotsOf = (panel) => [...panel.querySelectorAll(".lw-slot")];
  const field = (place, name) => place.querySelector(`[data-slot-field="${name}"]`);
  const numberOf = (text) => (text.trim() !== "" && Number.isFinite(Number(text)) ? Number(text) : text);

  /* ---- the fields as a value, and back ---- */

  function read(panel) {
    const separate = field(panel, "separate").checked;
    const mask = masks.read(panel);
    const slots = slotsOf(panel).map((slot) => {
      const unet = numberOf(field(slot, "unet").value);
      const region = mask && field(slot, "region").value;
      return { network: field(slot, "network").value.trim(), unet, te: separate ? numberOf(field(slot, "te").value) : unet, ...(region && { region }) };
    });
    return { enabled: field(panel, "enabled").checked, separate, slots, ...(slots.some((slot) => slot.region) && { mask }) };
  }

  function fill(panel, value) {
    field(panel, "enabled").checked = Boolean(value.enabled);
    if (value.slots) {
      field(panel, "separate").checked = Boolean(value.separate) || value.slots.some((slot) => slot.unet !== slot.te);
      slotsOf(panel).forEach((slot, index) => {
        const region = value.told_regions?.[index] ?? "";
        const given = { ...EMPTY, region, ...value.slots[index] };
        for (const [name, content] of Object.entries(given)) if (field(slot, name)) field(slot, name).value = content;
      });
    }
    if (value.mask) masks.write(panel, value.mask);
    dress(panel);
  }

  /* Takes what stands in the fields over into gradio's text. */
  function keep(panel) {
    const { tab } = panel.dataset;
    const text = JSON.stringify(read(panel));
    const node = textOf(tab);
    shown[tab] = text;
    if (node.value === text) return;
    node.value = text;
    node.dispatchEvent(new Event("input", { bubbles: true }));
  }

  /* gradio's text has changed; it may be ours. */
  function show(tab, text) {
    const panel = panelOf(tab);
    if (!panel || !text || text === shown[tab]) return;
    fill(panel, JSON.parse(text));
    keep(panel);
    if (read(panel).slots.some((slot) => slot.network)) load(panel);
  }

  /* ---- looks ---- */

  let known = null;
  const find = (name) => known?.find((each) => each.name === name) || known?.find((each) => each.name.toLowerCase() === name.toLowerCase());

  function dress(panel) {
    const value = read(panel);
    panel.toggleAttribute("data-separate", value.separate);
    panel.toggleAttribute("data-masked", Boolean(masks.read(panel)));
    panel.toggleAttribute("data-enabled", value.enabled);
    const missing = [];
    slotsOf(panel).forEach((slot, index) => {
      const { network } = value.slots[index];
      const entry = network && find(network);
      if (network && known && !entry) missing.push(network);
      slot.classList.toggle("lw-unused", !network);
      field(slot, "network").classList.toggle("lw-wrong", Boolean(network && known && !entry));
      slot.querySelector('[data-lw-action="show-slot"]').disabled = !entry;
      const place = slot.querySelector(".lw-slot-picture");
      const address = entry?.picture || "";
      if (place.dataset.address !== address) {
        place.dataset.address = address;
        place.replaceChildren(address ? element("img", { src: address, alt: "" }) : String(index + 1));
      }
      for (const weight of slot.querySelectorAll(".lw-slot-weight")) {
        const [range, number] = weight.querySelectorAll("input");
        const valid = typeof numberOf(number.value) === "number";
        number.classList.toggle("lw-wrong", !valid);
        if (valid) range.value = number.value;
        if (weight.dataset.part === "unet") weight.querySelector("i").textContent = value.separate ? "U-Net" : "Weight";
      }
    });
    const used = value.slots.filter((slot) => slot.network && (slot.unet || slot.te)).length;
    tell(panel, value.enabled, used, missing);
  }

  function tell(panel, enabled, used, missing) {
    const note = panel.querySelector(".lw-slot-note");
    const counted = `${used} network${used === 1 ? "" : "s"}`;
    const words = missing.length ? `There is no network ${missing.join(", ")}.` : "";
    note.textContent = words || (used && !enabled ? `${counted} chosen: they apply when Enable is ticked.` : "");
    note.classList.toggle("lw-missing", Boolean(words));
    const wrap = panel.closest(`#lw-slots-${panel.dataset.tab}`)?.querySelector(".label-wrap");
    if (!wrap) return;
    const mark = wrap.querySelector(".lw-slots-mark") || wrap.insertBefore(element("span", { className: "lw-slots-mark" }), wrap.children[1]);
    mark.textContent = enabled && used ? counted : "";
  }

  /* ---- the list of networks ---- */

  async function load(panel, fresh = false) {
    try {
      await core.networks.load(fresh);
    } catch (error) {
      panel.querySelector(".lw-slot-note").textContent = error.message;
    }
  }

  core.onNetworks.push((networks) => {
    known = networks;
    const names = [...new Set(networks.map((each) => each.name))].sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
    const list = document.getElementById("lw-networks") || document.body.appendChild(element("datalist", { id: "lw-networks" }));
    list.replaceChildren(...names.map((value) => element("option", { value })));
    for (const panel of document.querySelectorAll(".lw-slots")) dress(panel);
  });

  /* ---- what a person does ---- */

  actions["show-slot"] = (button) => core.networks.openByName(field(button.closest(".lw-slot"), "network").value.trim());

  document.addEventListener("input", ({ target }) => {
    const panel = target.closest?.(".lw-slots");
    if (!panel || target.closest(".lw-slot-mask")) return;
    if (target.type === "range") target.nextElementSibling.value = target.value;
    if (target.dataset.slotField === "separate" && target.checked) {
      for (const slot of slotsOf(panel)) field(slot, "te").value = field(slot, "unet").value;
    }
    const chosen = slotsOf(panel).filter((slot) => field(slot, "network").value.trim());
    if (target.dataset.slotField === "network" && chosen.length === 1 && chosen[0].contains(target) && !target.dataset.before) {
      field(panel, "enabled").checked = true;  // the first network of an empty panel is meant to be used
    }
    if (target.dataset.slotField === "network") target.dataset.before = target.value.trim();
    dress(panel);
    keep(panel);
  });

  /* The mask was painted: a first one goes to the networks that are there, as in sd-webui-additional-networks. */
  masks.onChange = (panel, isFirst) => {
    const used = slotsOf(panel).filter((slot) => field(slot, "network").value.trim());
    if (isFirst && used.every((slot) => !field(slot, "region").value)) {
      used.slice(0, 3).forEach((slot, index) => { field(slot, "region").value = "RGB"[index]; });
    }
    dress(panel);
    keep(panel);
  };

  document.addEventListener("focusin", ({ target }) => {
    const panel = target.closest?.(".lw-slots");
    if (panel) load(panel);
  });

  document.addEventListener("click", ({ target }) => {
    const accordion = target.closest?.("[id^='lw-slots-']");
    const panel = accordion?.querySelector(".lw-slots");
    if (panel && target.closest(".label-wrap")) load(panel, true);
  });

  window.loraWorkshopSlots = { show };
})();
