"use strict";
/* The list of runs, one of them with its settings, and the ways on from there. */
(() => {
  const core = window.loraWorkshop;
  const { ask, byId, bestOf, element, grouped, actions, STATES } = core;
  const beginRun = core.newest();

  const when = (seconds) => (seconds ? new Date(seconds * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" }) : "");

  async function show(isNewest) {
    const { runs, notes } = await ask("runs");
    if (!isNewest()) return;
    core.whenChanged("runs", [runs, notes], () => {
      const rows = runs.map((run) => {
        const open = element("button", { type: "button", className: "lw-copy", textContent: "Open" });
        open.dataset.lwAction = "open-run";
        open.dataset.run = run.id;
        const cells = [
          element("b", { textContent: run.name }),
          element("span", { className: "lw-pill", textContent: STATES[run.state] }),
          when(run.created), `${grouped(run.steps)} / ${grouped(run.total_steps)}`,
          run.loss === null ? "–" : run.loss.toFixed(4), bestOf(run) || "–", String(run.files.length), open,
        ];
        const row = element("tr", {}, ...cells.map((cell) => element("td", {}, cell)));
        row.dataset.state = run.state;
        return row;
      });
      byId("runs").replaceChildren(...rows);
      byId("runs-empty").hidden = rows.length > 0;
      byId("runs-notes").replaceChildren(...notes.map((note) => element("li", { textContent: note })));
    });
  }

  function runButton(textContent, action, run) {
    const made = element("button", { type: "button", className: "lw-button", textContent });
    Object.assign(made.dataset, { lwAction: action, run: run.id });
    return made;
  }

  /* For a run that has ended early and left a state: a new run that goes on from there. */
  function resumeButton(run) {
    if (!run.state_to_resume) return [];
    const made = runButton("Go on from its last state", "resume-run", run);
    made.title = made.dataset.state = run.state_to_resume;
    return [made];
  }

  const openTrain = () => [...document.querySelectorAll("#lw-tabs > .tab-nav > button")].find((tab) => tab.textContent.trim() === "Train")?.click();

  async function openRun(id) {
    const isNewest = beginRun();
    const { run, settings } = await ask(`run/${encodeURIComponent(id)}`);
    const chart = element("div", { className: "lw-chart-box", innerHTML: await ask(`run/${encodeURIComponent(id)}/chart`) });
    if (!isNewest()) return;
    const files = element("ul", { className: "lw-saved" });
    core.showFiles(files, run, run.files.map((path) => ({ path, label: "" })));
    const again = runButton("Use these settings", "use-settings", run);
    const values = Object.entries(settings).map(([name, value]) =>
      element("li", {}, element("code", { textContent: name }), ` ${value === null ? "none" : value}`));
    byId("run-detail").replaceChildren(
      element("h4", { textContent: `${run.name}: ${STATES[run.state]}, ${when(run.created)}` }),
      element("p", { className: "lw-run-note", textContent: [run.note, run.error].filter(Boolean).join(" · ") }),
      element("p", { textContent: [run.checkpoint, ...run.dataset.slice(0, 1)].filter(Boolean).join(" · ") }),
      element("p", { textContent: bestOf(run) && `Best: ${bestOf(run)}` }),
      element("div", { className: "lw-columns" }, chart, files),
      element("div", { className: "lw-controls" }, again, ...resumeButton(run)),
      element("details", {}, element("summary", { textContent: "Settings" }), element("ul", { className: "lw-settings" }, ...values)),
    );
    for (const add of core.onRun) add(run, byId("run-detail"));
    byId("run-detail").scrollIntoView({ block: "nearest", behavior: "smooth" });
  }

  actions["open-run"] = (button) => openRun(button.dataset.run);

  actions["use-settings"] = (button) => {
    openTrain();
    return core.form.fillFromRun(button.dataset.run);
  };

  actions["resume-run"] = async (button) => {
    openTrain();
    await core.form.fillFromRun(button.dataset.run, { resume: button.dataset.state });
    await actions.start();
  };

  core.runs = { show, resumeButton };
})();
