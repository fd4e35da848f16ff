"use strict";
/* The mask of a slot panel: painted in red, green and blue, divided evenly, or loaded. Black is where none of them acts. */
(() => {
  const core = window.loraWorkshop;
  const { actions } = core;
  const LONGEST = 384;
  const COLOURS = { red: "#f00", green: "#0f0", blue: "#00f", nothing: "#000" };
  const masks = { onChange: null };
  const painted = new WeakMap();  // panel → the mask as an address, where it is not all black

  const canvasOf = (panel) => panel.querySelector(".lw-mask");
  const brushOf = (panel) => panel.querySelector('.lw-brush[aria-checked="true"]')?.dataset.brush || "red";

  masks.read = (panel) => painted.get(panel) || "";

  /* Shows a mask that came with the panel's text, as it is. */
  masks.write = (panel, address) => {
    if (masks.read(panel) === address) return;
    painted.set(panel, address);
    draw(panel, address).catch(core.report);
  };

  async function draw(panel, address) {
    const image = new Image();
    image.src = address;
    await image.decode();
    size(canvasOf(panel), image.naturalWidth, image.naturalHeight);
    const canvas = canvasOf(panel);
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  }

  /* Makes the canvas black, in the form of the picture. */
  function size(canvas, width, height) {
    const scale = LONGEST / Math.max(width, height, 1);
    canvas.width = Math.max(1, Math.round(width * scale));
    canvas.height = Math.max(1, Math.round(height * scale));
    const context = canvas.getContext("2d");
    context.fillStyle = COLOURS.nothing;
    context.fillRect(0, 0, canvas.width, canvas.height);
  }

  function fit(panel) {
    const [width, height] = ["width", "height"].map((name) =>
      Number(document.querySelector(`#${panel.dataset.tab}_${name} input[type="number"]`)?.value) || 512);
    size(canvasOf(panel), width, height);
  }

  function changed(panel) {
    const canvas = canvasOf(panel);
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    const isBlack = !data.some((value, index) => index % 4 !== 3 && value > 0);
    const isFirst = !masks.read(panel);
    painted.set(panel, isBlack ? "" : canvas.toDataURL("image/png"));
    masks.onChange(panel, isFirst && !isBlack);
  }

  /* ---- painting ---- */

  let stroke = null;

  function place(canvas, event) {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * canvas.width, ((event.clientY - box.top) / box.height) * canvas.height];
  }

  function paint(event) {
    const { panel, canvas, last } = stroke;
    const next = place(canvas, event);
    const context = canvas.getContext("2d");
    Object.assign(context, { strokeStyle: COLOURS[brushOf(panel)], lineWidth: Number(panel.querySelector(".lw-mask-size").value), lineCap: "round" });
    context.beginPath();
    context.moveTo(...last);
    context.lineTo(next[0] + 0.01, next[1]);  // a line without length would not be drawn
    context.stroke();
    stroke.last = next;
  }

  document.addEventListener("pointerdown", (event) => {
    const canvas = event.target.closest?.(".lw-mask");
    if (!canvas) return;
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    stroke = { panel: canvas.closest(".lw-slots"), canvas, last: place(canvas, event) };
    paint(event);
  });
  document.addEventListener("pointermove", (event) => { if (stroke) paint(event); });
  for (const end of ["pointerup", "pointercancel"]) {
    document.addEventListener(end, () => {
      if (stroke) changed(stroke.panel);
      stroke = null;
    });
  }

  /* ---- the other tools ---- */

  actions["mask-brush"] = (button) => {
    for (const each of button.parentElement.children) each.setAttribute("aria-checked", String(each === button));
  };

  actions["mask-parts"] = (button) => {
    const panel = button.closest(".lw-slots");
    const canvas = canvasOf(panel);
    const parts = Number(button.dataset.parts);
    fit(panel);
    ["red", "green", "blue"].slice(0, parts).forEach((colour, index) => {
      const context = canvas.getContext("2d");
      context.fillStyle = COLOURS[colour];
      const from = Math.round((canvas.width * index) / parts);
      context.fillRect(from, 0, Math.round((canvas.width * (index + 1)) / parts) - from, canvas.height);
    });
    changed(panel);
  };

  actions["mask-clear"] = (button) => {
    fit(button.closest(".lw-slots"));
    changed(button.closest(".lw-slots"));
  };

  document.addEventListener("change", async ({ target }) => {
    if (!target.matches?.(".lw-mask-file") || !target.files[0]) return;
    const panel = target.closest(".lw-slots");
    const address = URL.createObjectURL(target.files[0]);
    try {
      await draw(panel, address);
      changed(panel);
    } catch (error) {
      panel.querySelector(".lw-slot-note").textContent = `${target.files[0].name} cannot be read as a picture`;
    } finally {
      URL.revokeObjectURL(address);
      target.value = "";
    }
  });

  /* An empty mask has the form of the picture; it is looked at when the panel is unfolded. */
  document.addEventListener("toggle", ({ target }) => {
    const panel = target.matches?.(".lw-slot-mask") && target.open ? target.closest(".lw-slots") : null;
    if (panel && !masks.read(panel)) fit(panel);
  }, true);

  core.masks = masks;
})();
