"use strict";
/* "Try it": carries a network to where pictures are made. The page says which program that is (data-program). */
(() => {
  const core = window.loraWorkshop;
  const { byId, element, actions, stem } = core;
  const WEIGHTS = "0.4, 0.6, 0.8, 1";
  const PATIENCE_MS = 15000;
  const SETTLED_MS = 900;
  const WORDS = {
    webui: { use: "Use in txt2img", plot: "→ X/Y/Z plot", compare: "Before and after → X/Y/Z plot", sample: "Send to txt2img" },
    standalone: { use: "Use in Generate", plot: "→ Epoch × weight grid", compare: "Before and after → Grid", sample: "Copy" },
  };
  const words = () => WORDS[byId("try").dataset.program];
  const inWebUI = () => byId("try").dataset.program === "webui";

  /* ---- fields of gradio's page ---- */

  const field = (selector) => document.querySelector(`${selector} textarea, ${selector} input`);
  const visible = (node) => Boolean(node && node.offsetParent);
  const pause = (ms) => new Promise((done) => { setTimeout(done, ms); });

  async function until(what, condition) {
    const ends = Date.now() + PATIENCE_MS;
    for (;;) {
      const found = condition();
      if (found) return found;
      if (Date.now() > ends) throw new Error(`${what} did not appear on the page`);
      await pause(50);
    }
  }

  function write(node, text) {
    node.value = text;
    node.dispatchEvent(new Event("input", { bubbles: true }));
  }

  /* Writes texts by selector until they stay: late answers of the program may put older values back. */
  async function keep(texts) {
    const ends = Date.now() + PATIENCE_MS;
    for (let since = Date.now(); Date.now() - since < SETTLED_MS;) {
      for (const [selector, text] of Object.entries(texts)) {
        const node = await until(selector, () => visible(field(selector)) && field(selector));
        if (node.value !== text) {
          write(node, text);
          since = Date.now();
        }
      }
      if (Date.now() > ends) throw new Error("the page keeps changing what is filled in");
      await pause(100);
    }
  }

  /* A gradio dropdown: it lists its choices when it gets the focus, and takes the one on which the mouse goes down. */
  async function choose(selector, label) {
    const input = await until(selector, () => visible(field(selector)) && field(selector));
    if (input.value === label) return;
    input.focus();
    const option = await until(`${label} in ${selector}`, () =>
      [...document.querySelectorAll(`${selector} ul.options li`)].find((each) => each.dataset.value === label || each.ariaLabel === label));
    option.dispatchEvent(new MouseEvent("mousedown", { bubbles: true, cancelable: true }));
    await until(`${label} in ${selector}`, () => field(selector).value === label);
    input.blur();
  }

  async function tick(selector) {
    const box = await until(selector, () => document.querySelector(`${selector} input[type="checkbox"]`));
    if (!box.checked) box.click();
  }

  /* ---- tags ---- */

  /* The prompt with a network's tag: in the place of another file of its run, with its weight, or at the end. */
  function withTag(prompt, name, run) {
    const own = run.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    let placed = false;
    const replaced = prompt.replace(new RegExp(`<(?:lora|lyco):${own}(?:-\\d{6}|-step\\d{8})?(:[^>]*)?>`, "gi"), (_, rest) => {
      if (placed) return "";
      placed = true;
      return `<lora:${name}${rest || ":1"}>`;
    });
    return placed ? replaced : `${prompt.trimEnd()} <lora:${name}:1>`.trimStart();
  }

  const PROMPTS = { webui: "#txt2img_prompt", standalone: "#lw-generate-prompt" };

  function openTab(title) {
    if (inWebUI()) return document.querySelector("#tabs > .tab-nav button").click();  // txt2img is always the first
    const tabs = [...document.querySelectorAll("#lw-tabs > .tab-nav > button")];
    return tabs.find((tab) => tab.textContent.trim() === title).click();
  }

  /* Puts the tag into the prompt and returns that; where it names nothing yet, `trial` comes before it. */
  async function useNetwork(name, run, trial) {
    const prompt = PROMPTS[byId("try").dataset.program];
    openTab("Generate");
    const node = await until("the prompt", () => visible(field(prompt)) && field(prompt));
    const words = node.value.replace(/<[^>]*>/g, "").trim();
    write(node, withTag(words ? node.value : [trial, node.value].filter(Boolean).join(" "), name, run));
    node.focus();
    return node.value;
  }

  /* ---- grids ---- */

  /* The epochs among a run's files, as the axis takes them. */
  function epochsOf(run) {
    const ends = run.files.map(stem).filter((each) => each.startsWith(run.name)).map((each) => each.slice(run.name.length));
    const numbers = ends.filter((each) => /^-\d{6}$/.test(each)).map((each) => Number(each.slice(1)));
    const last = ends.includes("") ? ["last"] : [];
    return [...numbers.sort((a, b) => a - b), ...last].join(", ");
  }

  async function plotInWebUI({ name, last, epochs, trial }) {
    const plot = "#script_txt2img_xyz_plot_";
    const prompt = await useNetwork(last, name, trial);
    await choose("#txt2img_script_container #script_list", "X/Y/Z plot");
    await until("the X/Y/Z plot", () => visible(field(`${plot}x_type`)));
    await tick(`${plot}csv_mode`);
    await choose(`${plot}x_type`, "[LoRA] Epoch");
    await choose(`${plot}y_type`, "[LoRA] Weight");
    await choose(`${plot}z_type`, "Nothing");
    await keep({ [PROMPTS.webui]: prompt, [`${plot}x_values`]: `None, ${epochs}`, [`${plot}y_values`]: WEIGHTS });
  }

  async function plotInApp({ name, epochs, trial }) {
    openTab("Grid");
    await keep({ "#lw-grid-network": name, "#lw-grid-epochs": epochs, "#lw-grid-weights": WEIGHTS });
    field("#lw-grid-network").dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
    field("#lw-grid-network").blur();
    const prompt = field("#lw-generate-prompt").value || trial;
    if (prompt) write(field("#lw-grid-prompt"), prompt);
  }

  /* ---- what the page shows and does ---- */

  actions["use-network"] = (button) => useNetwork(button.dataset.name, button.dataset.run, button.dataset.trial);

  actions["plot-network"] = async (button) => {
    byId("try-note").textContent = "";
    button.disabled = true;
    try {
      await (inWebUI() ? plotInWebUI(button.dataset) : plotInApp(button.dataset));
    } catch (error) {
      byId("try-note").textContent = error.message;
    } finally {
      button.disabled = false;
    }
  };

  /* Things side by side in the X/Y/Z plot, with the prompt as it is. */
  async function compareInWebUI(axis, names, weights) {
    const plot = "#script_txt2img_xyz_plot_";
    openTab();
    const prompt = (await until("the prompt", () => visible(field(PROMPTS.webui)) && field(PROMPTS.webui))).value;
    await choose("#txt2img_script_container #script_list", "X/Y/Z plot");
    await until("the X/Y/Z plot", () => visible(field(`${plot}x_type`)));
    await tick(`${plot}csv_mode`);
    await choose(`${plot}x_type`, axis);
    await choose(`${plot}y_type`, weights ? "[LoRA] Weight" : "Nothing");
    await choose(`${plot}z_type`, "Nothing");
    const listed = names.map((name) => (name.includes(",") ? `"${name}"` : name)).join(", ");
    await keep({ [PROMPTS.webui]: prompt, [`${plot}x_values`]: listed, ...(weights ? { [`${plot}y_values`]: weights } : {}) });
  }

  async function compareInApp(names) {
    openTab("Grid");
    await keep({ "#lw-grid-network": names.join(", "), "#lw-grid-weights": WEIGHTS });
    field("#lw-grid-network").dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
    field("#lw-grid-network").blur();
    const prompt = field("#lw-generate-prompt").value;
    if (prompt) write(field("#lw-grid-prompt"), prompt);
  }

  async function disabledDuring(button, work) {
    button.disabled = true;
    try {
      await work;
    } finally {
      button.disabled = false;
    }
  }

  /* What a tool was given, and what it made of it. */
  actions["compare-networks"] = (button) => {
    const names = JSON.parse(button.dataset.names);
    return disabledDuring(button, inWebUI() ? compareInWebUI("[LoRA] Network", ["None", ...names], WEIGHTS) : compareInApp(names));
  };

  actions["compare-checkpoints"] = (button) => disabledDuring(button, compareInWebUI("Checkpoint name", JSON.parse(button.dataset.names), ""));

  /* What may be done with a checkpoint that was made of another one; the app keeps the one that it was started with. */
  core.checkpointSteps = (before, after) => {
    if (!inWebUI()) {
      const command = element("code", { textContent: `python run.py ui --checkpoint "${after}"` });
      return [element("span", { className: "lw-hint" }, "To try it, start the app with it: ", command)];
    }
    const names = [stem(before), stem(after)];
    return [
      makeButton("lw-button", `Load ${names[1]}`, "load-checkpoint", { title: names[1] }),
      makeButton("lw-button", words().compare, "compare-checkpoints", { names: JSON.stringify(names) }),
      element("span", { className: "lw-hint", textContent: `before and after: ${names.join(", ")}; the networks' tags belong into the prompt of the first alone` }),
    ];
  };

  core.useWord = () => words().use;
  core.compareWord = () => words().compare;

  function makeButton(className, textContent, action, values) {
    const made = element("button", { type: "button", className, textContent });
    Object.assign(made.dataset, { lwAction: action, ...values });
    return made;
  }

  /* The buttons for a run's last file and all its epochs; none where no file is there. */
  function buttonsOf(run) {
    if (!run || !run.files.length) return [];
    const last = stem(run.files[run.files.length - 1]);
    const epochs = epochsOf(run);
    const plot = makeButton("lw-button", words().plot, "plot-network", { name: run.name, last, epochs, trial: run.trial_prompt });
    return [
      makeButton("lw-button", words().use, "use-network", { name: last, run: run.name, trial: run.trial_prompt }),
      element("code", { textContent: `<lora:${last}:1>` }),
      ...(epochs ? [plot, element("span", { className: "lw-hint", textContent: `epochs ${epochs} × weights ${WEIGHTS}` })] : []),
    ];
  }

  /* The epoch with the lowest loss on held-out pictures, with its file where there is one. */
  const showBest = (run) => (known) => {
    const place = byId("try-best");
    place.hidden = !known;
    if (!known) return;
    const numbered = `${run.name}-${String(run.best_epoch).padStart(6, "0")}`;
    const names = run.files.map(stem);
    const name = names.includes(numbered) ? numbered : run.best_epoch === run.total_epochs && names.includes(run.name) ? run.name : "";
    const use = name ? [makeButton("lw-copy", words().use, "use-network", { name, run: run.name, trial: run.trial_prompt })] : [];
    place.replaceChildren(`best ${run.state === "running" ? "so far" : "of all"}: ${core.bestOf(run)} `, ...use);
  };

  core.fileButtons.push((path, run) => {
    const made = makeButton("lw-copy", "Use", "use-network", { name: stem(path), run: run.name, trial: run.trial_prompt });
    made.title = words().use;
    return made;
  });

  core.onRun.push((run, place) => {
    place.insertBefore(element("div", { className: "lw-controls" }, ...buttonsOf(run)), place.querySelector("details"));
  });

  core.onStatus.push((status) => {
    const run = status.record;
    core.whenChanged("try", run ? [run.id, run.files] : null, () => {
      const buttons = buttonsOf(run);
      byId("try-buttons").replaceChildren(...buttons);
      byId("try-buttons").hidden = !buttons.length;
      byId("try-hint").hidden = Boolean(buttons.length);
    });
    core.whenChanged("best", run && run.best_epoch !== null ? [run.id, run.best_epoch, run.best_loss, run.files] : null, showBest(run));
    if (inWebUI() && run && run.files.length && status.phase !== "drawing samples") {
      core.whenChanged("cards", [run.id, run.files, status.samples], refreshCards);
    }
  });

  /* The WebUI's cards: new files, and the pictures that samples have put beside them. */
  function refreshCards() {
    for (const tab of ["txt2img", "img2img"]) document.querySelector(`#${tab}_lora_extra_refresh_internal`)?.click();
  }

  core.onFiles.push((checkpoint) => {
    if (!inWebUI()) return;
    if (checkpoint) document.querySelector("#refresh_sd_model_checkpoint")?.click();
    else refreshCards();
  });

  /* ---- the WebUI's own list of checkpoints, at the top ---- */

  const loadAndResume = actions["load-and-resume"];
  let follows = false;

  actions["load-and-resume"] = (button) => {
    follows = inWebUI();
    return loadAndResume(button);
  };

  /* Shows the setting as it is: the WebUI finds nothing changed, and loads nothing. */
  core.onStatus.push(({ record, checkpoint }) => {
    if (!follows || !record || record.state !== "running") return;
    follows = false;
    if (checkpoint.chosen) window.selectCheckpoint?.(checkpoint.chosen);
  });

  /* ---- samples ---- */

  core.sampleWord = () => words().sample;

  /* The infotext of a sample, with the tag of the file that was saved at its step where there is one. */
  function infotextOf(sample) {
    const [prompt, ...rest] = sample.infotext.split(/\n(?=Negative prompt: |Steps: )/);
    return sample.network ? [withTag(prompt, sample.network, sample.run), ...rest].join("\n") : sample.infotext;
  }

  /* Sends it, or copies it; says whether the picture may be closed. */
  core.sendSample = async (sample, button) => {
    if (!inWebUI()) {
      await core.copyText(infotextOf(sample));
      button.textContent = "Copied";
      return false;
    }
    openTab();
    const node = await until("the prompt", () => visible(field("#txt2img_prompt")) && field("#txt2img_prompt"));
    write(node, infotextOf(sample));
    document.querySelector("#txt2img_tools #paste").click();  // the WebUI reads an infotext in the prompt
    return true;
  };
})();
