"use strict";
/* The samples of a run: a row a prompt, a column an epoch or step; a click shows the picture in full size. */
(() => {
  const core = window.loraWorkshop;
  const { ask, byId, element, actions } = core;
  const shown = new Map();
  const beginSamples = core.newest();
  let viewer = null;

  core.onStatus.push((status) => {
    const run = status.record;
    byId("sample").disabled = !run || run.state !== "running" || !status.seconds_per_step;
    core.whenChanged("samples", [run ? [run.id, run.files] : "", status.samples], () => {
      const isNewest = beginSamples();
      if (run && status.samples) fill(byId("samples"), run, isNewest).catch(core.report);
      else byId("samples").replaceChildren();
    });
  });

  core.onRun.push((run, place) => {
    const box = element("div", { className: "lw-samples" });
    place.append(box);
    fill(box, run, () => true).catch(core.report);
  });

  actions.sample = () => ask("sample", core.currentRun());

  async function fill(box, run, isNewest) {
    const { samples } = await ask(`run/${encodeURIComponent(run.id)}/samples`);
    if (!isNewest()) return;
    for (const each of samples) Object.assign(each, { run: run.name, network: networkOf(each, run) });
    const columns = [...new Map(samples.map((each) => [each.step, each])).values()].sort((a, b) => a.step - b.step);
    const rows = [...new Map(samples.map((each) => [each.prompt_number, each])).values()]
      .sort((a, b) => a.prompt_number - b.prompt_number);
    const head = element("tr", {}, element("th", { textContent: "prompt" }),
      ...columns.map((each) => element("th", { textContent: title(each), title: `epoch ${each.epoch}, step ${each.step}` })));
    const body = rows.map((row) => element("tr", {},
      element("th", { textContent: row.prompt, title: row.prompt }),
      ...columns.map((column) => cell(samples.find((each) => each.step === column.step && each.prompt_number === row.prompt_number)))));
    const table = element("table", {}, element("thead", {}, head), element("tbody", {}, ...body));
    const strip = element("div", { className: "lw-samples-strip" }, table);
    box.replaceChildren(element("h4", { textContent: "Samples" }), strip);
    strip.scrollLeft = strip.scrollWidth;
  }

  /* The name of the file that was saved at a sample's step; undefined where there is none. */
  function networkOf(sample, run) {
    const endsEpoch = sample.step * run.total_epochs === sample.epoch * run.total_steps;
    const name = sample.step === run.total_steps ? run.name : `${run.name}-${String(sample.epoch).padStart(6, "0")}`;
    return run.files.map(core.stem).find((each) => endsEpoch && each === name);
  }

  const title = (sample) => (sample.step === 0 ? "before" : `epoch ${sample.epoch}`) + (sample.step ? `\nstep ${sample.step}` : "");

  function cell(sample) {
    if (!sample) return element("td", {});
    shown.set(sample.path, sample);
    const picture = element("img", { src: sample.thumbnail, alt: `${sample.prompt}, step ${sample.step}` });
    const button = element("button", { type: "button", className: "lw-sample", title: "show in full size" }, picture);
    button.dataset.lwAction = "show-sample";
    button.dataset.path = sample.path;
    return element("td", {}, button);
  }

  /* ---- the picture in full size ---- */

  actions["show-sample"] = (button) => {
    const sample = shown.get(button.dataset.path);
    const send = element("button", { type: "button", className: "lw-button", textContent: core.sampleWord ? core.sampleWord() : "Copy" });
    send.dataset.lwAction = "send-sample";
    send.dataset.path = sample.path;
    const close = element("button", { type: "button", className: "lw-button", textContent: "Close" });
    close.dataset.lwAction = "close-sample";
    viewer ??= makeViewer();
    if (!viewer.isConnected) byId("tabs").append(viewer);
    viewer.replaceChildren(
      element("img", { src: sample.url, alt: sample.prompt }),
      element("pre", { className: "lw-infotext", textContent: sample.infotext }),
      element("div", { className: "lw-controls" }, send, close));
    viewer.showModal();
    close.focus();
  };

  actions["close-sample"] = () => viewer.close();

  actions["send-sample"] = async (button) => {
    const sample = shown.get(button.dataset.path);
    if (await core.sendSample(sample, button)) viewer.close();
  };

  function makeViewer() {
    const made = element("dialog", { id: "lw-viewer", ariaLabel: "sample" });
    made.addEventListener("click", (event) => { if (event.target === made) made.close(); });
    return made;
  }
})();
