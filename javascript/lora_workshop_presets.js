"use strict";
/* Presets that come along and a person's own, import and export: what fills the form at once, and takes it elsewhere. */
(() => {
  const core = window.loraWorkshop;
  const { ask, byId, element, actions } = core;
  const chosen = { subject: "", card: "" };
  const NOTES = {
    lost: "not carried over", unknown: "unknown, left out", explained: "not needed here", mapped: "taken over",
  };
  const beginBox = core.newest();
  let filled = [];

  function button(textContent, action, values = {}, className = "lw-button") {
    const made = element("button", { type: "button", className, textContent });
    Object.assign(made.dataset, { lwAction: action, ...values });
    return made;
  }

  function list(className, lines) {
    return element("ul", { className }, ...lines.map((line) => element("li", { textContent: line })));
  }

  /* ---- what is it?, and how large is the card? ---- */

  async function showPresets() {
    const known = await ask("presets");
    chosen.card ||= known.card;
    for (const [place, kind, presets, words] of [
      ["kind-what", "subject", known.subjects, ""], ["kind-card", "card", known.cards, "Card"],
    ]) {
      byId(place).replaceChildren(words, ...presets.map((preset) => {
        const made = button(preset.title, "choose-kind", { kind, name: preset.name }, "lw-button lw-kind");
        made.title = preset.description;
        made.setAttribute("role", "radio");
        return made;
      }));
    }
    byId("kinds").hidden = false;
    markChosen();
    showOwn(known.own);
  }

  /* Of the buttons of a kind the Tab key reaches one, arrows the others. */
  function markChosen() {
    for (const set of document.querySelectorAll(".lw-kind-set")) {
      const all = [...set.querySelectorAll(".lw-kind")];
      const checked = all.find((each) => chosen[each.dataset.kind] === each.dataset.name);
      for (const each of all) {
        each.setAttribute("aria-checked", String(each === checked));
        each.tabIndex = each === (checked || all[0]) ? 0 : -1;
      }
    }
  }

  document.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step || !event.target.matches?.(".lw-kind")) return;
    event.preventDefault();
    const all = [...event.target.parentElement.querySelectorAll(".lw-kind")];
    all[(all.indexOf(event.target) + step + all.length) % all.length].focus();
  });

  /* Fills what the presets set; what an earlier one had set and these leave alone goes back to its default. */
  actions["choose-kind"] = ({ dataset }) => {
    chosen[dataset.kind] = dataset.name;
    markChosen();
    const names = [chosen.subject, chosen.card].filter(Boolean);
    return core.form.fill(async () => {
      const { values } = await ask("presets/apply", { names });
      const defaults = core.form.defaults();
      const reset = Object.fromEntries(filled.map((name) => [name, defaults[name]]));
      filled = Object.keys(values);
      return { ...reset, ...values };
    });
  };

  /* ---- a person's own presets ---- */

  function showOwn(names) {
    byId("preset").replaceChildren(
      element("option", { value: "", textContent: names.length ? "Load a preset …" : "No presets of your own" }),
      ...names.map((name) => element("option", { value: name, textContent: name })));
  }

  document.addEventListener("change", async (event) => {
    if (event.target.id !== "lw-preset" || !event.target.value) return;
    const name = event.target.value;
    try {
      await core.form.fill(async () => (await ask(`presets/own?name=${encodeURIComponent(name)}`)).values);
    } catch (error) {
      core.report(error);
    }
  });

  actions["open-save-preset"] = () => {
    const name = element("input", { type: "text", id: "lw-preset-name", value: byId("preset").value, placeholder: "Name of the preset" });
    const remove = byId("preset").value ? [button(`Delete ${byId("preset").value}`, "delete-preset", { name: byId("preset").value })] : [];
    open("Save preset", name, element("div", { className: "lw-controls" }, button("Save", "save-preset"), ...remove));
    name.focus();
  };

  actions["save-preset"] = () => within(async (isNewest) => {
    const saved = await ask("presets/save", { name: byId("preset-name").value, settings: core.form.values() });
    showOwn(saved.own);
    byId("preset").value = saved.name;
    if (isNewest()) close();
  });

  actions["delete-preset"] = ({ dataset }) => within(async (isNewest) => {
    showOwn((await ask("presets/delete", { name: dataset.name })).own);
    if (isNewest()) close();
  });

  /* ---- import and export ---- */

  actions["open-import"] = () => {
    const file = element("input", { type: "file", id: "lw-import-file", accept: ".toml,.json,.jsonl,.txt,.ps1,.bat,.sh,.cmd" });
    const text = element("textarea", {
      id: "lw-import-text", rows: 6, spellcheck: false,
      placeholder: "… or paste it: TOML of sd-scripts or LoRA_Easy_Training_Scripts, JSON of kohya_ss, a command line of sd-scripts, a PowerShell script",
    });
    file.addEventListener("change", () => within(async () => {
      if (file.files.length) text.value = await readText(file.files[0]);
    }).catch(core.report));
    open("Import settings of another trainer", file, text, element("div", { className: "lw-controls" }, button("Import", "import")));
  };

  /* PowerShell saves what is piped into a file as UTF-16. */
  async function readText(file) {
    const bytes = new Uint8Array(await file.arrayBuffer());
    const mark = bytes[0] === 0xff && bytes[1] === 0xfe ? "utf-16le" : bytes[0] === 0xfe && bytes[1] === 0xff ? "utf-16be" : "utf-8";
    return new TextDecoder(mark).decode(bytes);
  }

  actions.import = () => within(async () => {
    const file = byId("import-file").files[0];
    const found = await ask("import", { text: byId("import-text").value, file: file ? file.name : "" });
    filled = [];
    chosen.subject = "";
    markChosen();
    await core.form.fill(() => found.values);
    const notes = Object.entries(NOTES).filter(([kind]) => found.notes[kind].length).map(([kind, words]) => {
      const lines = found.notes[kind];
      const summary = element("summary", { textContent: `${lines.length} ${words}` });
      const details = element("details", { open: kind === "lost" || kind === "unknown" }, summary, list("", lines));
      details.dataset.notes = kind;
      return details;
    });
    const title = found.warnings.length ? checkpointTitle(found.base_model) : "";
    const load = title ? [button(`Load ${title}`, "load-checkpoint", { title })] : [];
    open(`Imported: ${found.format}`, list("lw-warnings", found.warnings), element("div", { className: "lw-controls" }, ...load), ...notes);
  });

  /* The WebUI's title of a checkpoint file, where it lists one of this name. */
  function checkpointTitle(file) {
    const stem = (name) => name.split(" [")[0].split(/[\\/]/).pop().replace(/\.(safetensors|ckpt|pt)$/i, "").toLowerCase();
    const listed = window.gradio_config?.components?.find((each) => each.props?.elem_id === "setting_sd_model_checkpoint");
    const titles = (listed?.props.choices || []).map((choice) => (Array.isArray(choice) ? choice[1] : choice));
    return file && window.selectCheckpoint ? titles.find((title) => stem(title) === stem(file)) || "" : "";
  }

  actions["load-checkpoint"] = (made) => {
    window.selectCheckpoint(made.dataset.title);
    made.disabled = true;
    made.textContent = `Loading ${made.dataset.title} …`;
  };

  actions["open-export"] = () => showExport("own");

  actions["export-as"] = ({ dataset }) => showExport(dataset.format);

  const showExport = (format) => within(async (isNewest) => {
    const { text, file } = await ask("export", { settings: core.form.values(), format });
    if (!isNewest()) return;
    const download = element("a", {
      className: "lw-button", textContent: `Download ${file}`, download: file,
      href: URL.createObjectURL(new Blob([text], { type: "application/toml" })),
    });
    const copy = button("Copy", "copy-export");
    const other = format === "own" ? button("For sd-scripts", "export-as", { format: "sd-scripts" }) : button("For LoRA Workshop", "export-as", { format: "own" });
    const area = element("textarea", { id: "lw-export-text", rows: 12, readOnly: true, spellcheck: false, value: text });
    open(format === "own" ? "Export: a TOML file of LoRA Workshop" : "Export: a TOML file for sd-scripts", area,
      element("div", { className: "lw-controls" }, download, copy, other));
  });

  actions["copy-export"] = async (made) => {
    await core.copyText(byId("export-text").value);
    made.textContent = "Copied";
    setTimeout(() => { made.textContent = "Copy"; }, 1500);
  };

  /* ---- the box in which this happens ---- */

  function open(title, ...pieces) {
    beginBox();
    const box = byId("exchange");
    const shut = button("Close", "close-exchange", {}, "lw-copy");
    box.replaceChildren(element("h5", {}, `${title} `, shut), ...pieces);
    box.hidden = false;
  }

  function close() {
    beginBox();
    byId("exchange").hidden = true;
    byId("exchange").replaceChildren();
  }

  actions["close-exchange"] = close;

  /* What goes wrong stands in the box, where there is one; elsewhere when the box holds something else by then. */
  async function within(work) {
    const isNewest = beginBox();
    try {
      await work(isNewest);
    } catch (error) {
      if (!isNewest()) throw error;
      const box = byId("exchange");
      if (box.hidden) open("This did not work");
      box.querySelector(".lw-errors")?.remove();
      box.append(list("lw-errors", error.problems || [error.message]));
    }
  }

  core.onMount.push(() => showPresets().catch(core.report));
})();
