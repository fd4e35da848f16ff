"use strict";
/* The page's side of a training run: polls the status route, shows it, and sends what the buttons ask for.
   Nothing here knows which program serves the page. Ids begin with "lw-", addresses are relative to the page. */
(() => {
  const ROUTES = "lora-workshop/api/";
  const RUNNING_MS = 1000;
  const IDLE_MS = 4000;
  const LOST_MS = 60000;
  const CHART_MS_PER_STEP = 2;
  const STATES = {
    queued: "waiting", running: "training", paused: "paused", finished: "finished",
    stopped: "stopped", failed: "failed", crashed: "crashed",
  };
  /* What the other scripts of the page add: onMount(), onStatus(status), onRun(run, place), fileButtons(path, run). */
  const core = { onMount: [], onStatus: [], onRun: [], fileButtons: [] };
  const beginPoll = newest();
  let chartAt = 0;
  let chartAsked = false;
  const seen = { run: null, chart: "", saved: "", messages: "", queue: "", runs: "", paused: "", lost: false };

  const byId = (name) => document.getElementById(`lw-${name}`);

  function element(tag, properties = {}, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  function setText(name, text) {
    const target = byId(name);
    if (target && target.textContent !== text) target.textContent = text;
  }

  /* Runs `draw` only when `value` differs from what was drawn last, so that selections and focus stay. */
  function whenChanged(key, value, draw) {
    const text = JSON.stringify(value);
    if (seen[key] === text) return;
    seen[key] = text;
    draw(value);
  }

  /* Of several that ask at once only the last one shows what it is told: `const isNewest = begin()` before it asks. */
  function newest() {
    let last = 0;
    return () => {
      const mine = (last += 1);
      return () => mine === last;
    };
  }

  /* Work that is handed to `inTurn(work)` of one queue is done one after the other, whatever becomes of it. */
  function queue() {
    let last = Promise.resolve();
    return (work) => {
      const done = last.then(work);
      last = done.catch(() => {});  // whoever has handed it in tells what went wrong
      return done;
    };
  }

  async function ask(route, body) {
    const options = { credentials: "same-origin", headers: {} };
    const key = byId("live").dataset.key;
    if (key) options.headers["X-LoRA-Workshop-Key"] = key;
    if (body !== undefined) {
      Object.assign(options, { method: "POST", body: JSON.stringify(body) });
      options.headers["Content-Type"] = "application/json";
    }
    const answer = await fetch(new URL(ROUTES + route, document.baseURI), options);
    if (answer.status === 401) throw new Error("it was started anew: load this page again");
    if (answer.headers.get("content-type")?.includes("json")) {
      const values = await answer.json();
      if (!answer.ok) throw Object.assign(new Error(values.error || values.detail || `answer ${answer.status}`), values);
      return values;
    }
    if (!answer.ok) throw new Error(`answer ${answer.status}`);
    return answer.text();
  }

  /* The key for the pictures, which the browser fetches by itself. */
  function keepKey(key) {
    if (key) document.cookie = `lora-workshop-key-${location.port}=${key}; path=/; SameSite=Strict`;
  }

  /* ---- words ---- */

  function duration(seconds) {
    if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
    if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
    return `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`;
  }

  function speed(secondsPerStep) {
    return secondsPerStep < 1 ? `${(1 / secondsPerStep).toFixed(1)} steps/s` : `${secondsPerStep.toFixed(1)} s/step`;
  }

  const grouped = (number) => number.toLocaleString("en-US");
  const stem = (path) => path.split(/[\\/]/).pop().replace(/\.(safetensors|ckpt|pt)$/i, "");

  function facts(status) {
    const run = status.record;
    if (run.state === "queued") return run.note || "waits for its turn";
    const parts = [];
    if (["running", "paused"].includes(run.state) && !["training", "paused"].includes(status.phase)) {
      parts.push(status.phase + (status.phase_total ? ` ${status.phase_done} / ${status.phase_total}` : ""));
    }
    parts.push(`step ${grouped(run.steps)} / ${grouped(run.total_steps)}`);
    if (run.total_epochs) parts.push(`epoch ${Math.max(1, run.epochs)} of ${run.total_epochs}`);
    if (run.state === "running") {
      if (status.seconds_per_step) parts.push(speed(status.seconds_per_step));
      if (status.eta_seconds !== null) parts.push(`${duration(status.eta_seconds)} left`);
    } else if (run.finished && run.started) {
      parts.push(`took ${duration(run.finished - run.started)}`);
    }
    if (run.loss !== null) parts.push(`loss ${run.loss.toFixed(4)}`);
    return parts.join(" · ");
  }

  const MOST_RATES = 6;
  const PARTS = { unet: "U-Net", text_encoder: "text encoder" };
  const short = (number) => (number !== 0 && Math.abs(number) < 0.01 ? number.toExponential(2).replace(/\.?0+e/, "e") : number.toPrecision(3));
  const bestOf = (run) => (run.best_epoch === null ? "" : `epoch ${run.best_epoch} (validation ${run.best_loss.toFixed(4)})`);

  /* Rates, memory and losses by timesteps, as they are at the moment. */
  function numbers(status) {
    if (!status.record || status.record.state !== "running") return "";
    const all = Object.entries(status.learning_rates).map(([part, rate]) =>
      `${Object.entries(PARTS).reduce((words, [name, shown]) => words.replace(name, shown), part)} ${short(rate)}`);
    const rates = all.length > MOST_RATES ? [...all.slice(0, MOST_RATES), "…"] : all;
    const bands = Object.entries(status.bands).map(([band, loss]) => `${band}: ${loss.toFixed(3)}`);
    return [
      rates.length ? `rate ${rates.join(", ")}` : "", bands.length ? `loss by timesteps ${bands.join(", ")}` : "",
      status.memory_gb === null ? "" : `memory ${status.memory_gb.toFixed(1)} GB`,
    ].filter(Boolean).join(" · ");
  }

  /* ---- the run that goes on ---- */

  function showRun(status) {
    const run = status.record;
    const live = byId("live");
    live.dataset.state = run ? run.state : "idle";
    for (const name of ["save", "stop", "cancel"]) {
      byId(name).disabled = !status.active || (name === "save" && run.state === "queued");
    }
    const paused = Boolean(run) && run.state === "paused";
    setText("pause", paused ? "Resume" : "Pause");
    byId("pause").disabled = !paused && (!run || run.state !== "running");
    const shown = [status.live_network, status.live_network_problem, status.missing_checkpoint];
    whenChanged("paused", paused ? shown : [], showPause);
    setText("run-state", run ? STATES[run.state] : "idle");
    setText("run-name", run ? run.name : "No run yet in this session.");
    setText("run-facts", run ? facts(status) : "Press Start: progress, loss and saved epochs appear here.");
    setText("run-numbers", numbers(status));
    setText("run-note", run ? [run.state === "queued" ? "" : run.note, run.error].filter(Boolean).join(" · ") : "");
    const percent = Math.round(1000 * status.progress) / 10;
    byId("bar-fill").style.width = `${percent}%`;
    byId("bar").setAttribute("aria-valuenow", String(percent));
    whenChanged("saved", run ? status.saved.map((file) => [file.path, file.epoch, file.step]) : [], (files) =>
      showFiles(byId("saved"), run, files.map(([path, epoch, step]) => ({ path, label: `epoch ${epoch}, step ${step}` }))));
    const told = run ? new Set([...run.dataset, ...run.plan, ...run.warnings, run.error]) : new Set();
    whenChanged("messages", run ? status.messages.filter((message) => !told.has(message.text)) : [], (messages) =>
      byId("messages").replaceChildren(...messages.slice(-8).map((message) =>
        element("li", { className: `lw-${message.level}`, textContent: message.text }))));
    whenChanged("resumable", run ? [run.id, status.state_to_resume] : null, (known) =>
      byId("resumable").replaceChildren(...(known ? core.runs.resumeButton({ ...run, state_to_resume: status.state_to_resume }) : [])));
    whenChanged("queue", status.queued.filter((other) => !run || other.id !== run.id), showQueue);
    showChart(run, status.validations);
    for (const show of core.onStatus) show(status);
  }

  /* A tag, and a button that copies it. */
  function tagPieces(name) {
    const tag = `<lora:${name}:1>`;
    const copy = element("button", { type: "button", className: "lw-copy", textContent: "Copy tag" });
    copy.dataset.lwAction = "copy";
    copy.dataset.text = tag;
    return [element("code", { textContent: tag }), copy];
  }

  function showFiles(list, run, files) {
    list.replaceChildren(...files.map(({ path, label }) =>
      element("li", { title: path }, element("span", { textContent: label }), ...tagPieces(stem(path)),
        ...core.fileButtons.map((make) => make(path, run)))));
  }

  /* While a run is paused: its network's name in prompts or why it does nothing, and the way back to its checkpoint. */
  function showPause([network, problem, checkpoint]) {
    const pieces = network ? ["In prompts, as it is now:", ...tagPieces(network)] : [];
    if (problem) pieces.push(element("span", { className: "lw-warning", textContent: `does nothing: ${problem}` }));
    if (checkpoint) {
      const load = element("button", { type: "button", className: "lw-button", id: "lw-load-and-resume" });
      load.textContent = `Load ${checkpoint} and resume`;
      load.dataset.lwAction = "load-and-resume";
      pieces.push(load);
    }
    byId("paused").replaceChildren(...pieces);
    byId("paused").hidden = pieces.length === 0;
  }

  function showQueue(queued) {
    byId("queue").replaceChildren(...queued.map((run) => {
      const remove = element("button", { type: "button", className: "lw-copy", textContent: "Take out" });
      remove.dataset.lwAction = "unqueue";
      remove.dataset.run = run.id;
      return element("li", {}, element("b", { textContent: run.name }), ` ${run.note || "waits for its turn"} `, remove);
    }));
  }

  /* The longer a run, the rarer: the program reads all its steps for each chart. */
  function showChart(run, validations) {
    const state = run ? `${run.id} ${run.steps} ${run.state} ${validations}` : "";
    const early = run && run.state === "running" && seen.chart.startsWith(`${run.id} `) && Date.now() - chartAt < run.steps * CHART_MS_PER_STEP;
    if (state === seen.chart || early || chartAsked) return;
    seen.chart = state;
    chartAt = Date.now();
    if (!run) return;
    chartAsked = true;
    ask(`run/${encodeURIComponent(run.id)}/chart`).then((svg) => { byId("chart").innerHTML = svg; }).catch(report)
      .finally(() => { chartAsked = false; });
  }

  /* On every tab: what a button did is told where it is. */
  function report(error) {
    for (const place of document.querySelectorAll("[data-lw-error]")) {
      if (place.textContent !== error.message) place.textContent = error.message;
    }
  }

  /* ---- what buttons do ---- */

  const currentRun = () => ({ id: seen.run });

  const ACTIONS = {
    pause: () => ask(byId("live").dataset.state === "paused" ? "resume" : "pause", currentRun()),
    "load-and-resume": () => ask("resume", { ...currentRun(), load_checkpoint: true }),
    save: () => ask("save", currentRun()),
    stop: () => ask("stop", currentRun()),
    cancel: (button) => {
      if (button.dataset.sure) return ask("cancel", currentRun());
      const word = button.textContent;
      button.dataset.sure = "yes";
      button.textContent = "Really?";
      setTimeout(() => { delete button.dataset.sure; button.textContent = word; }, 3000);
      return null;
    },
    unqueue: (button) => ask("stop", { id: button.dataset.run }),
    copy: async (button) => {
      await copyText(button.dataset.text);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy tag"; }, 1500);
    },
  };

  /* The clipboard is closed to pages that are neither local nor served over https. */
  async function copyText(text) {
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    const field = element("textarea", { value: text });
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    return undefined;
  }

  /* What must not be done twice at once, a double click say; actions with one word exclude each other. */
  const ONCE = {
    start: "start", "resume-run": "start", "preview-tool": "tool", "run-tool": "tool",
    pause: "pause", "load-and-resume": "pause", save: "save", sample: "sample",
  };
  const pending = new Set();

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-lw-action]");
    const once = ONCE[button?.dataset.lwAction];
    if (!button || button.disabled || pending.has(once)) return;
    report(new Error(""));
    if (once) pending.add(once);
    button.setAttribute("aria-busy", "true");
    try {
      await ACTIONS[button.dataset.lwAction](button);
    } catch (error) {
      report(error);
    } finally {
      pending.delete(once);
      button.removeAttribute("aria-busy");
    }
    poll();
  });

  /* ---- polling ---- */

  let timer = 0;
  let mounted = null;
  let unanswered = 0;

  async function poll() {
    clearTimeout(timer);
    const isNewest = beginPoll();
    let pause = IDLE_MS;
    const live = byId("live");
    if (live && !document.hidden) {
      if (mounted !== live) {
        mounted = live;
        for (const key of Object.keys(seen)) if (key !== "run" && key !== "lost") seen[key] = "";
        keepKey(live.dataset.key);
        for (const begin of core.onMount) begin();
      }
      try {
        const status = await ask("status");
        if (!isNewest()) return;
        seen.run = status.record ? status.record.id : null;
        setText("checkpoint", status.checkpoint.line);
        showRun(status);
        if (byId("runs").offsetParent !== null) await core.runs.show(isNewest);
        if (!isNewest()) return;
        if (status.active || status.queued.length) pause = RUNNING_MS;
        if (seen.lost) report(new Error(""));
        seen.lost = false;
        unanswered = 0;
      } catch (error) {
        if (!isNewest()) return;
        seen.lost = true;
        /* Nobody listens: asked less and less often, for a WebUI's start fails on a request that comes too early. */
        if (error instanceof TypeError) pause = Math.min(IDLE_MS * 2 ** ++unanswered, LOST_MS);
        report(new Error(`The program does not answer (${error.message}); this page tries again by itself.`));
      }
    } else if (!live) {
      pause = 250;
    }
    timer = setTimeout(poll, pause);
  }

  document.addEventListener("visibilitychange", poll);
  Object.assign(core, { STATES, poll, ask, newest, queue, byId, bestOf, grouped, showFiles, duration, element, report, stem, whenChanged, currentRun, copyText, actions: ACTIONS });
  window.loraWorkshop = core;
  if (document.readyState !== "complete") document.addEventListener("DOMContentLoaded", poll);
  else poll();
})();
