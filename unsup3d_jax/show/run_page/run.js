"use strict";
// Draws the curves of a run and shows its panels; asks the server, if one shows this page,
// for what is new.

{
  const HEIGHT = 190, LEFT = 52, RIGHT = 10, TOP = 16, BOTTOM = 22;
  const SIGNS = { warning: "▲", rollback: "◀\ufe0e", skip: "○", diverged: "✕" };
  const KINDS = { warning: "warning", rollback: "went back", skip: "step skipped",
    diverged: "diverged" };
  const DASHES = ["", "7 3", "2 3", "9 3 2 3", "4 2", "12 4", "1 2", "6 2 1 2"];
  const SHARE = 0.02;  // of the values at each end that "Middle" leaves out
  const SECONDS = 5;  // between two questions to the server

  const byId = (id) => document.getElementById(id);
  const root = byId("run");
  let run = JSON.parse(byId("content").textContent);

  const element = (name, attributes = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };
  const drawn = (name, attributes = {}, text = "") => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text) made.textContent = text;
    return made;
  };

  function shown(value) {
    if (value === null) return "not finite";
    const size = Math.abs(value);
    if (size !== 0 && (size >= 1e6 || size < 1e-3)) return value.toExponential(2);
    return String(Number(value.toPrecision(4)));
  }
  const counted = (step) => step.toLocaleString("en");
  const short = (step) => step >= 1e6 ? `${Number((step / 1e6).toPrecision(3))}M`
    : step >= 1e4 ? `${Number((step / 1e3).toPrecision(3))}k` : counted(step);

  function ticks(low, high, most) {
    const raw = (high - low) / most;
    const power = 10 ** Math.floor(Math.log10(raw));
    const unit = [1, 2, 5, 10].find((x) => x * power >= raw * 0.999) * power;
    const found = [];
    for (let i = Math.ceil(low / unit - 1e-9); i * unit <= high + unit * 1e-9; i++) {
      found.push(Number((i * unit).toPrecision(12)));
    }
    return found;
  }
  function powers(low, high) {
    const decades = Math.log10(high / low);
    const found = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) {
      if (decades > 6 && e % Math.ceil(decades / 5)) continue;
      for (const factor of decades < 2.2 ? [1, 2, 5] : [1]) {
        const value = factor * 10 ** e;
        if (value >= low * 0.999 && value <= high * 1.001) found.push(value);
      }
    }
    return found;
  }
  // The point of a series that is nearest to a step; its steps ascend.
  function nearest(series, step) {
    let low = 0, high = series.s.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (series.s[middle] < step) low = middle + 1; else high = middle;
    }
    if (low > 0 && step - series.s[low - 1] < series.s[low] - step) low -= 1;
    return low;
  }

  class Chart {
    constructor(data) {
      this.log = data.log;
      this.middle = false;
      this.at = null;  // step under the pointer, or chosen by keys
      this.title = element("strong", {}, data.title);
      this.logButton = element("button", { type: "button" }, "Log");
      this.middleButton = element("button", { type: "button" }, "Middle");
      this.logButton.title = "Logarithmic scale";
      this.middleButton.title = "Leaves out the highest and the lowest 2 %";
      this.legend = element("div", { class: "legend" });
      this.reading = element("p", { class: "reading" });
      this.svg = drawn("svg", { class: "chart", tabindex: 0, role: "slider" });
      this.figure = element("figure", {},
        element("figcaption", {}, this.title, this.logButton, this.middleButton),
        this.legend, this.reading, this.svg);
      this.logButton.setAttribute("aria-label", `${data.title}: logarithmic scale`);
      this.middleButton.setAttribute("aria-label", `${data.title}: without extremes`);
      this.logButton.addEventListener("click", () => { this.log = !this.log; this.draw(); });
      this.middleButton.addEventListener("click", () => {
        this.middle = !this.middle;
        this.draw();
      });
      this.svg.addEventListener("pointermove", (event) => this.point(event));
      this.svg.addEventListener("pointerdown", (event) => this.point(event));
      this.svg.addEventListener("pointerleave", () => this.move(null));
      this.svg.addEventListener("blur", () => this.move(null));
      this.svg.addEventListener("keydown", (event) => this.key(event));
      this.update(data);
    }

    update(data) {
      this.data = data;
      const steps = new Set(), values = [];
      for (const series of data.series) {
        for (const step of series.s) steps.add(step);
        for (const value of series.v) if (value !== null) values.push(value);
      }
      this.steps = [...steps].sort((a, b) => a - b);
      this.values = values.sort((a, b) => a - b);
      this.positive = values.length > 0 && values[0] > 0;
      this.logButton.disabled = !this.positive;
      this.legend.replaceChildren(...data.series.map((series, i) => {
        const sample = drawn("svg", { viewBox: "0 0 26 8", "aria-hidden": "true" });
        sample.append(drawn("line", { x1: 0, x2: 26, y1: 4, y2: 4, class: `curve c${i % 8}`,
          "stroke-dasharray": DASHES[i % 8] }));
        if (series.split === "val") {
          sample.append(drawn("circle", { cx: 13, cy: 4, r: 3, class: `dot f${i % 8}` }));
        }
        return element("span", {}, sample, series.label);
      }));
      this.draw();
    }

    range() {
      const values = this.values, last = values.length - 1;
      let low = values[0], high = values[last];
      if (this.middle && last > 0) {
        low = values[Math.floor(last * SHARE)];
        high = values[Math.ceil(last * (1 - SHARE))];
      }
      if (this.log && this.positive) {
        return high > low ? [low, high] : [low / 2, high * 2];
      }
      const margin = (high - low) * 0.04 || Math.abs(high) * 0.1 || 1;
      return [low - margin, high + margin];
    }

    draw() {
      const log = this.log && this.positive;
      this.logButton.setAttribute("aria-pressed", log);
      this.middleButton.setAttribute("aria-pressed", this.middle);
      const width = Math.max(this.svg.clientWidth || 340, 120);
      this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
      this.svg.replaceChildren();
      if (!this.values.length) {
        this.svg.append(drawn("text", { x: LEFT, y: HEIGHT / 2 }, "never finite"));
        this.describe();
        return;
      }
      const [low, high] = this.range(), f = log ? Math.log : (x) => x;
      const first = this.steps[0], last = this.steps[this.steps.length - 1];
      const x = (step) => last === first ? (LEFT + width - RIGHT) / 2
        : LEFT + (step - first) / (last - first) * (width - LEFT - RIGHT);
      const y = (value) => HEIGHT - BOTTOM
        - (f(value) - f(low)) / (f(high) - f(low)) * (HEIGHT - TOP - BOTTOM);
      const inside = (value) => Math.min(Math.max(y(value), TOP - 6), HEIGHT - BOTTOM + 6);
      this.x = x;
      this.y = inside;
      this.stepAt = (pixel) => first
        + (pixel - LEFT) / Math.max(width - LEFT - RIGHT, 1) * (last - first);

      for (const value of log ? powers(low, high) : ticks(low, high, 5)) {
        this.svg.append(
          drawn("line", { x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value),
            class: "grid" }),
          drawn("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" },
            shown(value)));
      }
      for (const step of last > first ? ticks(first, last, width > 420 ? 6 : 4) : [first]) {
        if (!Number.isInteger(step)) continue;
        this.svg.append(drawn("text", { x: x(step), y: HEIGHT - 6,
          "text-anchor": x(step) > width - 28 ? "end" : "middle" }, short(step)));
      }
      let sign = -100;
      for (const mark of run.marks) {
        if (mark.step < first || mark.step > last) continue;
        const kind = `kind-${SIGNS[mark.kind] ? mark.kind : "other"}`, at = x(mark.step);
        this.svg.append(drawn("line", { x1: at, x2: at, y1: TOP, y2: HEIGHT - BOTTOM,
          class: `mark ${kind}` }));
        if (at - sign < 9) continue;  // one upon the other could not be told
        sign = at;
        this.svg.append(drawn("text", { x: at, y: 11, "text-anchor": "middle",
          class: `sign ${kind}` }, SIGNS[mark.kind] || "•"));
      }
      this.data.series.forEach((series, i) => {
        let path = "", on = false;
        series.s.forEach((step, k) => {
          if (series.v[k] === null) { on = false; return; }
          path += `${on ? "L" : "M"}${x(step).toFixed(1)} ${inside(series.v[k]).toFixed(1)}`;
          on = true;
        });
        this.svg.append(drawn("path", { d: path, class: `curve c${i % 8}`,
          "stroke-dasharray": series.split === "val" ? "" : DASHES[i % 8] }));
        if (series.s.length > 60 || (series.split !== "val" && series.s.length > 1)) return;
        series.s.forEach((step, k) => {
          if (series.v[k] === null) return;
          this.svg.append(drawn("circle", { cx: x(step), cy: inside(series.v[k]), r: 2.6,
            class: `dot f${i % 8}` }));
        });
      });
      this.cursor = drawn("g", { "aria-hidden": "true" });
      this.svg.append(this.cursor);
      this.move(this.at);
    }

    // What is told of a step: of each series its nearest point.
    told(step) {
      return this.data.series.map((series) => {
        const k = nearest(series, step), there = series.s[k];
        const at = there === step ? "" : ` (step ${counted(there)})`;
        return `${series.label} ${shown(series.v[k])}${at}`;
      }).join(", ");
    }

    describe() {
      const parts = this.data.series.map((series) => {
        const values = series.v.filter((value) => value !== null);
        if (!values.length) return `${series.label}: never finite`;
        const low = values.reduce((a, b) => Math.min(a, b));
        const high = values.reduce((a, b) => Math.max(a, b));
        return `${series.label}: from ${shown(values[0])} to `
          + `${shown(values[values.length - 1])}, lowest ${shown(low)}, highest ${shown(high)}`;
      });
      this.svg.setAttribute("aria-label", `Curve of ${this.data.title}. ${parts.join("; ")}`);
      const first = this.steps[0] ?? 0, last = this.steps[this.steps.length - 1] ?? 0;
      const at = this.at ?? last;
      this.svg.setAttribute("aria-valuemin", first);
      this.svg.setAttribute("aria-valuemax", last);
      this.svg.setAttribute("aria-valuenow", at);
      this.svg.setAttribute("aria-valuetext", `step ${counted(at)}: ${this.told(at)}`);
    }

    move(step) {
      this.at = step;
      this.describe();
      const last = this.steps[this.steps.length - 1];
      if (last === undefined || !this.cursor) return;
      this.reading.textContent = step === null ? `Last: ${this.told(last)}`
        : `Step ${counted(step)}: ${this.told(step)}`;
      this.cursor.replaceChildren();
      if (step === null) return;
      this.cursor.append(drawn("line", { x1: this.x(step), x2: this.x(step), y1: TOP,
        y2: HEIGHT - BOTTOM, class: "cursor" }));
      this.data.series.forEach((series, i) => {
        const k = nearest(series, step);
        if (series.v[k] === null) return;
        this.cursor.append(drawn("circle", { cx: this.x(series.s[k]),
          cy: this.y(series.v[k]), r: 4, class: `dot f${i % 8}` }));
      });
      const near = run.marks.filter((mark) => this.x
        && Math.abs(this.x(mark.step) - this.x(step)) < 4);
      if (near.length) {
        const mark = near[0];
        this.reading.textContent += `. ${KINDS[mark.kind] || mark.kind} at step `
          + `${counted(mark.step)}${mark.text ? `: ${mark.text}` : ""}`;
      }
    }

    point(event) {
      if (!this.steps.length || !this.stepAt) return;
      const box = this.svg.getBoundingClientRect();
      const wanted = this.stepAt(event.clientX - box.left);
      this.move(this.steps[nearest({ s: this.steps }, wanted)]);
    }

    key(event) {
      const last = this.steps.length - 1;
      if (last < 0) return;
      const at = this.at === null ? last : nearest({ s: this.steps }, this.at);
      const far = Math.max(Math.round(last / 10), 1);
      const to = { ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1,
        PageDown: at - far, PageUp: at + far, Home: 0, End: last }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      this.move(this.steps[Math.min(Math.max(to, 0), last)]);
    }
  }

  const charts = new Map(), places = new Map();
  function drawCurves() {
    for (const group of run.groups) {
      if (!places.has(group.title)) {
        const grid = element("div", { class: "charts" });
        places.set(group.title, grid);
        byId("curves").append(element("h3", {}, group.title), grid);
      }
      for (const data of group.charts) {
        const name = `${group.title}/${data.title}`;
        if (charts.has(name)) {
          charts.get(name).update(data);
        } else {
          const chart = new Chart(data);
          charts.set(name, chart);
          places.get(group.title).append(chart.figure);
          chart.draw();  // now that it has a width
        }
      }
    }
    if (!run.groups.length) {
      byId("curves").replaceChildren(element("p", {}, "Nothing has been logged yet."));
    } else if (!byId("curves").querySelector("figure")) {
      byId("curves").replaceChildren();
    } else {
      for (const stray of byId("curves").querySelectorAll(":scope > p")) stray.remove();
    }
  }
  let width = 0;
  new ResizeObserver(() => {
    if (root.clientWidth === width) return;
    width = root.clientWidth;
    for (const chart of charts.values()) chart.draw();
  }).observe(root);

  // --- panels ---

  const when = byId("when"), panel = byId("panel"), away = byId("away");
  let picture = null;  // step that is shown
  function showPicture(index) {
    const step = run.pictures[index];
    when.value = index;
    byId("at").textContent = counted(step);
    when.setAttribute("aria-valuetext", `step ${counted(step)}`);
    if (step === picture) return;
    picture = step;
    away.textContent = "";
    panel.alt = `The panel of step ${counted(step)}`;
    panel.src = `pictures/${step}.png`;
  }
  panel.addEventListener("load", () => {
    panel.classList.toggle("small", panel.naturalWidth < 500);
  });
  panel.addEventListener("error", () => {
    const kept = run.embedded;
    if (panel.src.startsWith("data:") || picture === null) return;
    away.textContent = `pictures/${picture}.png is not beside this page: panels stay in the `
      + "run's folder, and only the newest travels with the page"
      + (kept ? `. Shown is that of step ${counted(kept.step)}.` : ", which it was too large for.");
    panel.alt = kept ? `The panel of step ${counted(kept.step)}` : "";
    if (kept) panel.src = kept.src; else panel.removeAttribute("src");
  });
  when.addEventListener("input", () => showPicture(Number(when.value)));
  function showPanels() {
    const count = run.pictures.length, before = picture;
    byId("panels").hidden = !count;
    if (!count) return;
    // Who looks at the newest one goes on to see the newest one.
    const newest = before === null || Number(when.value) === Number(when.max);
    when.max = count - 1;
    when.disabled = count < 2;
    const same = run.pictures.indexOf(before);
    const near = nearest({ s: run.pictures }, before ?? 0);
    showPicture(newest ? count - 1 : same >= 0 ? same : near);
  }

  drawCurves();
  showPanels();

  // --- what is new ---

  if (root.dataset.live) {
    let tag = "", busy = false;
    const ask = async () => {
      if (busy || document.hidden) return;
      busy = true;
      const trouble = byId("trouble");
      try {
        const headers = tag ? { "If-None-Match": tag } : {};
        const answer = await fetch(location.pathname, { headers, cache: "no-store" });
        trouble.hidden = true;
        if (answer.status === 304) return;
        if (!answer.ok) throw new Error(`The program answers ${answer.status}.`);
        const text = await answer.text();
        const fresh = new DOMParser().parseFromString(text, "text/html");
        run = JSON.parse(fresh.getElementById("content").textContent);
        tag = answer.headers.get("ETag") || "";
        for (const id of ["state", "scores", "happened", "facts", "config"]) {
          const [old, now] = [byId(id), fresh.getElementById(id)];
          const opened = old.querySelector("details")?.open;
          if (opened) now.querySelector("details")?.setAttribute("open", "");
          if (old.innerHTML === now.innerHTML) continue;
          old.replaceChildren(...now.childNodes);
        }
        drawCurves();
        showPanels();
      } catch (error) {
        trouble.textContent = error instanceof TypeError
          ? "No answer: is the program still running? What is shown is what was."
          : error.message;
        trouble.hidden = false;
      } finally {
        busy = false;
      }
    };
    setInterval(ask, SECONDS * 1000);
    document.addEventListener("visibilitychange", ask);
  }
}
