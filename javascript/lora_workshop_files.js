"use strict";
/* The file tools: a form for each, a preview before anything is written, progress, and the way to compare the result.
   The work belongs to the program, not to this page: a page that is opened anew shows it as it is. */
(() => {
  const core = window.loraWorkshop;
  const { ask, byId, element, actions, stem } = core;
  const BUSY_MS = 500;
  const LOST_MS = 5000;
  const STATES = { idle: "idle", running: "at work", finished: "finished", cancelled: "cancelled", failed: "not done" };
  const beginFollowing = core.newest();
  const state = { timer: 0, reported: 0, restored: null, touched: false, suggested: {} };

  const page = () => byId("files");
  const forms = () => [...page().querySelectorAll(".lw-tool")];
  const form = (name) => forms().find((each) => each.dataset.tool === name);
  const shown = () => forms().find((each) => !each.hidden);
  const fields = (of) => [...of.querySelectorAll(".lw-field")];
  const control = (field) => field.querySelector("[name]");
  const fieldOf = (of, name) => fields(of).find((field) => field.dataset.name === name);
  const valueOf = (field) => (control(field).type === "checkbox" ? control(field).checked : control(field).value);
  const values = (of) => Object.fromEntries(fields(of).map((field) => [field.dataset.name, valueOf(field)]));

  /* ---- the forms ---- */

  function choose(name) {
    if (!form(name)) return;
    state.touched = true;
    for (const each of forms()) each.hidden = each.dataset.tool !== name;
    for (const button of page().querySelectorAll(".lw-kind")) {
      const chosen = button.dataset.tool === name;
      button.setAttribute("aria-checked", String(chosen));
      button.tabIndex = chosen ? 0 : -1;
    }
  }

  function write(of, given) {
    for (const field of fields(of)) {
      if (!(field.dataset.name in given)) continue;
      const target = control(field);
      if (target.type === "checkbox") target.checked = given[field.dataset.name] === true;
      else target.value = given[field.dataset.name];
      followSuggestion(field);
    }
  }

  function followSuggestion(field) {
    const suggest = field.querySelector(".lw-suggest");
    if (suggest) suggest.value = control(field).value;
  }

  async function listFiles() {
    const found = await ask("tools/files");
    for (const kind of ["networks", "checkpoints"]) {
      byId(`files-${kind}`).replaceChildren(...found[kind].map((value) => element("option", { value })));
    }
  }

  /* A name for the output, until somebody gives another one. */
  function suggest(of) {
    const out = fieldOf(of, "out");
    if (!out || (control(out).value && control(out).value !== state.suggested[of.dataset.tool])) return;
    const sources = ["file", "files", "network", "checkpoint", "tuned"].map((name) => fieldOf(of, name)).filter(Boolean);
    const lines = sources.map((field) => control(field).value.trim().split("\n").filter(Boolean));
    const first = lines.find((each) => each.length)?.[0].trim();
    const plain = first ? stem(first).replace(/:[^:]*$/, "") : "";
    const folder = sources.some((field, index) => field.dataset.name === "files" && lines[index].length > 1);
    const one = plain && plain !== "loaded" ? `${plain}-${of.dataset.tool}.safetensors` : "";
    const name = folder ? `${of.dataset.tool}-output` : one;
    state.suggested[of.dataset.tool] = control(out).value = name;
  }

  const NOT_GIVEN = { network: ["network", "files", "file"], file: ["files", "file"], checkpoint: ["checkpoint"], output: ["out"] };

  /* The field that a problem is about: it begins with the field's name, with what stands in the field, or with the
     path of the output; undefined where it is about none. */
  function fieldAbout(of, problem) {
    const named = fieldOf(of, problem.match(/^([a-z_]+)(?=[ :])/)?.[1]);
    if (named) return named;
    const missing = NOT_GIVEN[problem.match(/^no (\w+) is given/)?.[1]] || [];
    const plain = problem.replace(/^['"]/, "").replaceAll("\\\\", "\\");  // Python doubles the backslashes of what it quotes
    const begins = (text) => text && ["'", '"', ":"].some((end) => plain.startsWith(text + end));
    const lines = (field) => String(valueOf(field)).split("\n").map((line) => line.trim());
    const quotes = (field) => lines(field).some((line) => begins(line) || begins(line.replace(/:[^:\\/]*$/, "")));
    const out = fieldOf(of, "out");
    const target = out && control(out).value.trim().replaceAll("\\", "/");
    const path = problem.match(/^(.+?)(?: is | takes | cannot | belongs | holds |: )/)?.[1].replaceAll("\\", "/");
    return missing.map((name) => fieldOf(of, name)).find(Boolean) || fields(of).find(quotes) ||
      (target && path?.split("/").pop() === target.split("/").pop() ? out : undefined);
  }

  /* Each problem beside its field; what is about none of them stands at the work. */
  function showProblems(of, problems) {
    const rest = [];
    for (const field of fields(of)) field.querySelector(".lw-field-error").textContent = "";
    for (const problem of problems) {
      const field = fieldAbout(of, problem);
      if (field) field.querySelector(".lw-field-error").textContent += `${problem}\n`;
      else rest.push(problem);
    }
    for (const field of fields(of)) {
      const words = field.querySelector(".lw-field-error");
      words.hidden = !words.textContent;
      field.classList.toggle("lw-wrong", !words.hidden);
      control(field).setAttribute("aria-invalid", String(!words.hidden));
    }
    for (const folded of of.querySelectorAll("details:has(.lw-wrong)")) folded.open = true;
    byId("tool-problems").replaceChildren(...rest.map((textContent) => element("li", { textContent })));
  }

  /* ---- the work ---- */

  async function begin(what) {
    const of = shown();
    state.touched = true;
    showProblems(of, []);
    try {
      show(await ask(`tools/${of.dataset.tool}/${what}`, { settings: values(of) }));
      byId("tool-report").innerHTML = "";
      state.reported = 0;
      byId("tool-live").scrollIntoView({ block: "nearest", behavior: "smooth" });
    } catch (error) {
      showProblems(of, error.problems || [error.message]);
      page().querySelector(".lw-wrong")?.scrollIntoView({ block: "center", behavior: "smooth" });
    }
    await follow();
  }

  /* Shows how the work stands, again and again while it goes on, and at the end what it made. */
  async function follow() {
    clearTimeout(state.timer);
    const isNewest = beginFollowing();
    try {
      const status = await ask("tools/status");
      if (!isNewest()) return;
      show(status);
      if (status.state === "running") {
        state.timer = setTimeout(follow, BUSY_MS);
      } else if (status.number !== state.reported) {
        const answer = await ask("tools/report");
        if (!isNewest()) return;
        state.reported = status.number;
        if (answer.status.number === status.number && answer.status.state === status.state) ended(answer);
        else state.timer = setTimeout(follow, BUSY_MS);  // another page has begun another work
      }
    } catch (error) {
      if (!isNewest()) return;
      core.report(error);
      state.timer = setTimeout(follow, LOST_MS);
    }
  }

  /* Only what has changed is written: a screen reader tells it then. */
  function setText(id, text) {
    if (byId(id).textContent !== text) byId(id).textContent = text;
  }

  function show(status) {
    const running = status.state === "running";
    const of = form(status.tool);
    byId("tool-live").dataset.state = status.state;
    setText("tool-state", STATES[status.state]);
    setText("tool-name", of ? `${status.preview ? "preview: " : ""}${of.dataset.title}` : "");
    const percent = status.state === "finished" ? 100 : status.total ? Math.round((1000 * status.done) / status.total) / 10 : 0;
    byId("tool-bar-fill").style.width = `${percent}%`;
    byId("tool-bar").setAttribute("aria-valuenow", String(percent));
    byId("tool-bar").hidden = !running;
    const left = status.seconds_left === null ? "" : `${core.duration(status.seconds_left)} left`;
    const took = running || status.state === "idle" ? "" : `took ${core.duration(status.seconds)}`;
    byId("tool-facts").textContent = (running ? [status.total ? `${percent} %` : "", left] : [took]).filter(Boolean).join(" · ");
    byId("tool-cancel").hidden = !running;
    for (const button of page().querySelectorAll("[data-lw-action='preview-tool'], [data-lw-action='run-tool']")) button.disabled = running;
    if (running) byId("tool-next").replaceChildren();
    page().classList.toggle("lw-working", running);
  }

  function ended({ status, report, html }) {
    const of = form(status.tool);
    if (of) showProblems(of, status.problems);
    byId("tool-report").innerHTML = html || "";
    byId("tool-next").replaceChildren(...(report && !status.preview ? nextSteps(status, report) : []));
    if (!report || status.preview || !report.files.length) return;
    listFiles().catch(core.report);
    core.networks?.load(true).catch(core.report);
    for (const tell of core.onFiles) tell(of.dataset.checkpoints === "true");
  }

  /* ---- what may be done with what was written ---- */

  const namesIn = (text) => String(text || "").split("\n").map((line) => stem(line.trim()).replace(/:[^:\\/]*$/, "")).filter(Boolean);

  /* What is right after a tool: use or load the result, hold it against what it was made of, repair what is ill. */
  function nextSteps(status, report) {
    if (report.checked) return report.checked.filter(canBeRepaired).map(({ file }) => repairButton(file));
    const after = report.files.map((file) => stem(file.path));
    if (!after.length) return [];
    return form(status.tool).dataset.checkpoints === "true" ? core.checkpointSteps(report.checkpoint, report.files[0].path) : withNetworks(status.values, after);
  }

  const canBeRepaired = ({ findings }) => findings.some((finding) => finding.text.includes("`repair`"));

  function repairButton(file) {
    const made = element("button", { type: "button", className: "lw-button", textContent: `Repair ${stem(file)} …` });
    Object.assign(made.dataset, { lwAction: "open-tool", tool: "repair", values: JSON.stringify({ file }) });
    return made;
  }

  /* Networks that went in, then those that came out, each once. */
  function withNetworks(given, after) {
    const before = ["file", "files", "network"].flatMap((name) => namesIn(given[name]));
    const names = [...new Set([...before, ...after])];
    if (names.length === 1) return [useButton(after[0])];
    const compare = element("button", { type: "button", className: "lw-button", textContent: core.compareWord() });
    Object.assign(compare.dataset, { lwAction: "compare-networks", names: JSON.stringify(names) });
    const hint = element("span", { className: "lw-hint", textContent: `before and after: ${names.join(", ")}` });
    return [useButton(after[0]), compare, hint];
  }

  function useButton(name) {
    const made = element("button", { type: "button", className: "lw-button", textContent: core.useWord() });
    Object.assign(made.dataset, { lwAction: "use-network", name, run: name, trial: "" });
    return made;
  }

  /* Opens the tab with a tool and some of its values filled in. */
  function openTool(name, given) {
    const top = [...document.querySelectorAll("#tabs > .tab-nav > button")].find((tab) => tab.textContent.trim() === "LoRA Workshop");
    top?.click();
    [...document.querySelectorAll("#lw-tabs > .tab-nav > button")].find((tab) => tab.textContent.trim() === "Files").click();
    choose(name);
    write(form(name), given);
    suggest(form(name));
  }

  actions["choose-tool"] = (button) => choose(button.dataset.tool);
  actions["preview-tool"] = () => begin("preview");
  actions["run-tool"] = () => begin("run");
  actions["cancel-tool"] = () => ask("tools/cancel", {}).then(follow);
  actions["open-tool"] = (button) => openTool(button.dataset.tool, JSON.parse(button.dataset.values));

  /* ---- events ---- */

  document.addEventListener("input", (event) => {
    if (event.target.closest?.("#lw-files .lw-tool")) state.touched = true;
  });

  document.addEventListener("change", (event) => {
    const of = event.target.closest?.("#lw-files .lw-tool");
    if (!of) return;
    const field = event.target.closest(".lw-field");
    if (event.target.matches(".lw-suggest")) control(field).value = event.target.value;
    followSuggestion(field);
    if (event.target.matches(".lw-add-network")) addNetwork(event.target);
    else if (event.target.name !== "out") suggest(of);
  });

  function addNetwork(line) {
    const field = line.closest(".lw-field");
    const name = line.value.trim();
    line.value = "";
    if (!name) return;
    const text = control(field).value.trimEnd();
    const entry = field.dataset.name === "files" ? name : `${name}:1`;
    control(field).value = text ? `${text}\n${entry}` : entry;
    suggest(field.closest(".lw-tool"));
  }

  /* Arrow keys go from tool to tool, as in any group of radio buttons. */
  document.addEventListener("keydown", (event) => {
    const button = event.target.closest?.("#lw-files .lw-kind");
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!button || !step) return;
    event.preventDefault();
    const all = [...page().querySelectorAll(".lw-kind")];
    const next = all[(all.indexOf(button) + step + all.length) % all.length];
    choose(next.dataset.tool);
    next.focus();
  });

  /* A page that is opened anew: the work that goes on, or the last one, with its values, unless somebody has begun. */
  async function restore() {
    const status = await ask("tools/status");
    if (status.number && !state.touched) {
      choose(status.tool);
      if (form(status.tool)) write(form(status.tool), status.values);
    }
    await follow();
  }

  core.onFiles = [];  // called as tell(checkpoint: boolean) when a file was written
  core.onMount.push(() => {
    if (!page()) return;
    for (const of of forms()) fields(of).forEach(followSuggestion);
    Object.assign(state, { reported: 0, touched: false, restored: restore().catch(core.report) });
    listFiles().catch(core.report);
    new IntersectionObserver((seen) => {
      if (!seen.some((each) => each.isIntersecting)) return;
      listFiles().catch(core.report);
      state.restored.then(follow);  // another page may have begun a work
    }).observe(page());
  });
  core.files = { openTool };
})();
