"use strict";
/* The form: reads and fills its fields, asks for the plan of what stands in them, finds settings, shows what is wrong. */
(() => {
  const core = window.loraWorkshop;
  const { ask, byId, actions } = core;
  const TYPING_MS = 500;
  const [beginPlan, beginLook] = [core.newest(), core.newest()];
  const inTurn = core.queue();
  let planned = "";
  let timer = 0;

  const fields = () => [...document.querySelectorAll("#lw-train-page .lw-field")];
  const control = (field) => field.querySelector("[name]");
  const valueOf = (field) => (control(field).type === "checkbox" ? control(field).checked : control(field).value);
  const values = () => Object.fromEntries(fields().map((field) => [field.dataset.name, valueOf(field)]));
  const defaults = () => Object.fromEntries(fields().map((field) => [field.dataset.name, field.dataset.default]));
  const isChanged = (field) => String(valueOf(field)) !== field.dataset.default;

  /* ---- filling in ---- */

  function write(field, value) {
    const target = control(field);
    if (target.type === "checkbox") target.checked = value === true || value === "true";
    else target.value = value;
    followSuggestion(field);
  }

  /* Shows the values that `find` gives; fields without one stay as they are. What fills the form does so one after the
     other, in the order of the clicks. */
  function fill(find) {
    const filled = inTurn(async () => {
      const given = await find();
      for (const field of fields()) {
        if (field.dataset.name in given) write(field, given[field.dataset.name]);
      }
      showProblems({});
      noteChanges();
      filter();
    });
    return filled.then(() => plan(true));
  }

  /* The settings of a run, with some others in their place; "" is the present or latest run. */
  function fillFromRun(run, others = {}) {
    return fill(async () => ({ ...(await ask(`form?run=${encodeURIComponent(run)}`)).values, ...others }));
  }

  function followSuggestion(field) {
    const suggest = field.querySelector(".lw-suggest");
    if (suggest) suggest.value = control(field).value;
  }

  /* ---- the plan ---- */

  async function plan(look = false, asked = false) {
    clearTimeout(timer);
    const settings = values();
    planned = JSON.stringify(settings);
    const isNewest = beginPlan();
    const isNewestLook = look ? beginLook() : () => false;
    const answer = await ask("form/plan", { settings, look, asked });
    if (isNewestLook() && answer.report) byId("report").innerHTML = answer.report;
    if (isNewest()) showPlan(answer);
  }

  function showPlan(answer) {
    if (answer.plan) core.whenChanged("plan", answer.plan, () => { byId("plan").innerHTML = answer.plan; });
    showProblems(answer.fields);
  }

  function planWhenChanged(look) {
    if (JSON.stringify(values()) !== planned) plan(look).catch(core.report);
  }

  /* Each problem beside its field. */
  function showProblems(byName) {
    for (const field of fields()) {
      const problems = byName[field.dataset.name] || [];
      const words = field.querySelector(".lw-field-error");
      words.textContent = problems.join("\n");
      words.hidden = !problems.length;
      field.classList.toggle("lw-wrong", problems.length > 0);
      control(field).setAttribute("aria-invalid", String(problems.length > 0));
    }
    noteGroups();
  }

  function showFirstProblem() {
    for (const wrong of document.querySelectorAll(".lw-group .lw-wrong")) wrong.closest(".lw-group").open = true;
    document.querySelector("#lw-train-page .lw-wrong")?.scrollIntoView({ block: "center", behavior: "smooth" });
  }

  /* ---- finding settings ---- */

  function noteChanges() {
    for (const field of fields()) field.classList.toggle("lw-changed", isChanged(field));
    byId("changed-count").textContent = `(${document.querySelectorAll("#lw-groups .lw-changed").length})`;
    noteGroups();
  }

  function noteGroups() {
    for (const group of document.querySelectorAll(".lw-group")) {
      const [wrong, changed] = [".lw-wrong", ".lw-changed"].map((each) => group.querySelectorAll(each).length);
      const note = group.querySelector(".lw-group-note");
      note.textContent = wrong ? `${wrong} to put right` : changed ? `${changed} changed` : "";
      note.classList.toggle("lw-group-wrong", wrong > 0);
    }
  }

  /* Shows what fits the words and the switches; a group without any such field goes, one with some opens. */
  function filter() {
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const changedOnly = byId("changed-only").checked;
    const filtering = words.length > 0 || changedOnly;
    let found = 0;
    for (const group of document.querySelectorAll(".lw-group")) {
      for (const field of group.querySelectorAll(".lw-field")) {
        const fits = words.every((word) => field.dataset.words.includes(word));
        field.hidden = !fits || (changedOnly && !isChanged(field));
      }
      for (const section of group.querySelectorAll(".lw-section")) section.hidden = !section.querySelector(".lw-field:not([hidden])");
      group.hidden = !group.querySelector(".lw-field:not([hidden])");
      found += group.hidden ? 0 : 1;
    }
    byId("no-match").hidden = found > 0;
    return filtering;
  }

  /* Opens all groups where a switch or a word asks for it, and folds them again when nothing does any more. */
  function openGroups() {
    const open = filter() || byId("all-settings").checked;
    for (const group of document.querySelectorAll(".lw-group")) group.open = open;
  }

  /* ---- events ---- */

  const ownField = (event) => event.target.closest?.("#lw-train-page .lw-field");

  document.addEventListener("input", (event) => {
    if (event.target.id === "lw-search") openGroups();
    if (!ownField(event) || event.target.matches(".lw-suggest")) return;
    clearTimeout(timer);
    timer = setTimeout(planWhenChanged, TYPING_MS);
  });

  document.addEventListener("change", (event) => {
    if (["lw-all-settings", "lw-changed-only"].includes(event.target.id)) openGroups();
    const field = ownField(event);
    if (!field) return;
    if (event.target.matches(".lw-suggest")) control(field).value = event.target.value;
    followSuggestion(field);
    noteChanges();
    planWhenChanged(["train_data_dir", "dataset_config"].includes(field.dataset.name));
  });

  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target.id === "lw-field-train_data_dir") plan(true, true).catch(core.report);
  });

  actions.look = () => plan(true, true);

  actions.defaults = () => {
    const kept = ["train_data_dir", "class_tokens", "output_name"];
    return fill(() => Object.fromEntries(Object.entries(defaults()).filter(([name]) => !kept.includes(name))));
  };

  actions.start = async () => {
    clearTimeout(timer);
    const settings = values();
    planned = JSON.stringify(settings);
    const isNewest = beginPlan();
    const answer = await ask("form/start", { settings });
    if (isNewest()) showPlan(answer);
    if (answer.run) return;
    if (!isNewest()) throw new Error("not started: something was wrong, and the settings were changed meanwhile; press Start again");
    showFirstProblem();
  };

  /* The present or latest run's settings on a page that was just opened, unless somebody has begun to type. */
  function restore() {
    return fill(async () => {
      const before = JSON.stringify(values());
      const { values: given } = await ask("form?run=");
      return JSON.stringify(values()) === before ? given : {};
    });
  }

  core.onMount.push(() => restore().catch(core.report));
  Object.assign(core, { form: { values, defaults, fill, fillFromRun } });
})();
